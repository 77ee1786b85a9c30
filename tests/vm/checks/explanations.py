# SPDX-License-Identifier: GPL-2.0-only
"""What the catalogue says of real causes: which entry, the first fix with this machine's own values, and what must not be
said where a condition does not hold. tests/vm/guest/explanations.sh sends one packet to each port or address."""

import re

from .guest import check_run, version

DNS, VM, CLIENT = "100.100.2.136", "10.0.0.2", "10.1.0.2"
VM6 = "fd00:a::2"
KERNELS = ["6.1", "6.12", "newest"]


class Told:
    """What must be said of the packets to an address and port: the entry (a pattern), its first fix, pieces of any fix,
    pieces of the summary, and what nothing may say. `by`: which drops of these packets are meant, where there are others."""

    def __init__(self, entry, fix=None, fixes=(), says=(), hides=(), by=None):
        self.entry, self.fix, self.fixes, self.says, self.hides, self.by = entry, fix, fixes, says, hides, by


def accept(chain, match, tool="iptables-legacy"):
    return f"{tool} -I {chain} 1 {match} -j ACCEPT"


def tailscale():
    """Each form on a machine of its own, of which none drops as another one does."""
    attribute = "node attribute disable-linux-cgnat-drop-rule, and rp_filter=1"
    told = {}
    for number, tool in enumerate(("iptables-legacy", "iptables", "nft", "iptables-legacy", "iptables-legacy"), 1):
        there, host = f"ip netns exec ts{number} ", f"10.0.1{number}.2"
        insert = (lambda chain, devices, source: f"{there}{tool} -I {chain} 1 {devices} -s {source} -j ACCEPT") if (
            tool != "nft") else None
        native = f'{there}nft insert rule ip filter '
        if number in (1, 2, 3):
            narrow = insert("INPUT", "-i eth0", "100.100.0.0/16") if insert else (
                native + 'INPUT iifname "eth0" ip saddr 100.100.0.0/16 accept')
            told[host, 7010 + number] = Told("tailscale-cgnat", attribute, [narrow, "use another resolver"][:1],
                                             ["This packet had reached eth0.", f"{DNS} is Alibaba Cloud's DNS.",
                                              f"{DNS} is not a tailnet peer"])
        else:  # no jump, or RETURN: it comes as far as there is nobody
            told[host, 7010 + number] = Told("kernel-no-socket", there + "ss -lnptu", hides=["Tailscale", "tailscale"])
        peer = f"100.101.102.1{number}0"
        if number == 4:
            told[peer, 7020 + number] = None  # it goes into the tunnel
        else:
            through = insert("FORWARD", "-i eth0 -o tailscale0", "100.64.3.4") if insert else (
                native + 'FORWARD iifname "eth0" oifname "tailscale0" ip saddr 100.64.3.4 accept')
            told[peer, 7020 + number] = Told("tailscale-forward-cgnat", through, says=["claims"], hides=[
                "past tailscale0", "is a tailnet peer, and this packet"])
        peer = f"100.101.102.1{number}1"
        told[peer, 7030 + number] = Told(
            "tailscale-stateful-filtering", "tailscale set --stateful-filtering=false") if number in (1, 3) else None
    return told


def rules():
    """By chain, table, comment or form."""
    show = "iptables-legacy -t filter -L {} -n -v --line-numbers"
    port = "-p udp --dport {}"
    told = {}
    network_policy = "kubectl get networkpolicies -A"
    forward = [("docker-user", show.format("DOCKER-USER")), ("docker-isolation", "docker network connect NETWORK CONTAINER"),
               ("docker-unpublished", "docker run --publish (or ports: in compose)"),
               ("owned-rule", "docker network, docker run --publish, /etc/docker/daemon.json"),
               ("kube-proxy", "kubectl get services -A -o wide"), ("kubernetes-network-policy", network_policy),
               ("calico-policy", network_policy), ("cilium-rule", "cilium monitor -t drop"),
               ("container-network", "/etc/cni/net.d"), ("podman-isolation", "podman network connect NETWORK CONTAINER"),
               ("container-network", "Flannel's configuration"), ("container-network", "Weave Net's configuration"),
               ("libvirt-network", "virsh net-dumpxml NETWORK"), ("unowned-rule", show.format("mine-forward"))]
    for number, (entry, fix) in enumerate(forward, 7101):
        told[CLIENT, number] = Told(entry, fix)
    narrow = f"-i eth0 -o eth1 -s {DNS} -p udp --dport "
    told[CLIENT, 7101].fixes = [f"iptables-legacy -I DOCKER-USER 1 {narrow}7101 -j ACCEPT"]
    told[CLIENT, 7114].fixes = [accept("FORWARD", f"{narrow}7114")]
    told[CLIENT, 7114].hides = ["Docker", "Kubernetes"]
    incoming = [("fail2ban-ban", f"fail2ban-client unban {DNS}"), ("crowdsec-ban", f"cscli decisions delete --ip {DNS}"),
                ("sshguard-ban", f"{DNS} in SSHGuard's whitelist"), ("fwknop", "fwknop -n HOST"),
                ("kubernetes-firewall", show.format("KUBE-FIREWALL")), ("istio-rule", "istioctl analyze -A"),
                ("ufw-first-rules", "a rule in /etc/ufw/before.rules, above the one that drops"),
                ("ufw-denied", f"ufw prepend allow from {DNS}"), ("ufw", f"ufw allow from {DNS}"), ("csf", f"csf -g {DNS}"),
                ("nixos", "networking.firewall.allowedTCPPorts (allowedUDPPorts)"),
                ("netbird", "a policy that allows it, in NetBird's management"), ("unowned-rule", show.format("mine-input"))]
    for number, (entry, fix) in enumerate(incoming, 7121):
        told[VM, number] = Told(entry, fix)
    # One host, its protocol and the port: not all that the provider has.
    told[VM, 7133].fixes = [accept("INPUT", f"-i eth0 -s {DNS} {port.format(7133)}")]
    told[VM, 7133].hides = ["100.100.0.0/16", "fail2ban", "CrowdSec"]
    told.update({
        # The same rule without its owner's chain, the chain with another rule, another comment, another match.
        (VM, 7141): Told("unowned-rule", show.format("mine-ts"), hides=["Tailscale takes", "disable-linux-cgnat"]),
        (VM, 7142): Told("tailscale-rule", "tailscale debug prefs", hides=["disable-linux-cgnat", "Tailscale takes"]),
        (DNS, 7143): Told("kubernetes-no-endpoints", "kubectl get endpointslices,pods -A -o wide"),
        (DNS, 7144): Told("unowned-rule", show.format("OUTPUT"), hides=["kubectl", "endpoints:"]),
        (DNS, 7145): Told("unowned-rule", show.format("OUTPUT"), [accept("OUTPUT", f"-o eth0 -d {DNS} {port.format(7145)}")]),
        ("172.17.0.2", 7146): Told("docker-direct-access", "docker run --publish (or ports: in compose)"),
        ("172.17.0.4", 7147): Told("unowned-rule", show.replace("filter", "raw").format("PREROUTING"), hides=["Docker"]),
        ("172.17.0.3", 7211): Told("docker-direct-access", "docker run --publish (or ports: in compose)"),
        ("10.0.0.3", 7148): Told("reverse-path-rule", "ip route get 100.100.3.3", says=["does not leave by eth0"]),
        ("10.0.0.3", 7218): Told("reverse-path-rule", "ip route get 100.100.3.3"),
        ("10.9.0.2", 7149): Told("wg-quick-guard", f"AllowedIPs = {DNS}", says=["The rule's comment is wg-quick's"]),
        ("10.9.0.3", 7216): Told("wg-quick-guard", f"AllowedIPs = {DNS}", says=["The table's name is wg-quick's"]),
        # Nobody outside can rightly have an address of the tailnet: nothing is advised that would let it in.
        (VM6, 7128): Told("ufw-denied", "ufw status numbered", hides=["prepend"]),
        (VM6, 7129): Told("unowned-rule", "ip6tables-legacy -t filter -L mine6 -n -v --line-numbers", hides=["ufw", "ACCEPT"]),
        (VM, 7161): Told("crowdsec-ban", f"cscli decisions delete --ip {DNS}"),
        (VM, 7162): Told("unowned-rule", "iptables -t filter -L INPUT -n -v --line-numbers",
                         [accept("INPUT", f"-i eth0 -s {DNS} {port.format(7162)}", "iptables")], hides=["CrowdSec"]),
        (VM, 7201): Told("crowdsec-ban", f"cscli decisions delete --ip {DNS}"),
        (VM, 7202): Told("owned-policy", "SSHGuard's whitelist"),
        (VM, 7203): Told("openwrt", "uci show firewall"),
        (VM, 7204): Told("nixos", "networking.firewall.allowedTCPPorts (allowedUDPPorts)"),
        (DNS, 7205): Told("opensnitch", "the system firewall rules in OpenSnitch's window"),
        (DNS, 7206): Told("vpn-lockdown", "mullvad lan set allow", hides=["nordvpn", "warp-cli"]),
        (DNS, 7207): Told("vpn-lockdown", f"nordvpn allowlist add subnet {DNS}", hides=["mullvad", "warp-cli"]),
        (DNS, 7208): Told("vpn-lockdown", "warp-cli settings", hides=["nordvpn", "mullvad"]),
        (VM, 7209): Told("netbird", "a policy that allows it, in NetBird's management"),
        (VM, 7220): Told("unowned-rule", "nft -a list chain inet netbird in", hides=["NetBird"]),  # theirs is of ip
        (CLIENT, 7210): Told("docker-bridges", "docker run --publish (or ports: in compose)"),
        (CLIENT, 7212): Told("container-network", "podman network"),
        (VM, 7213): Told("fail2ban-ban", f"fail2ban-client unban {DNS}"),
        (VM, 7214): Told("firewalld", f"firewall-cmd --zone=trusted --add-source={DNS}"),
        (VM, 7215): Told("firewalld", f"firewall-cmd --zone=trusted --add-source={DNS}"),
        (CLIENT, 7217): Told("libvirt-network", "virsh net-dumpxml NETWORK"),
        (VM, 7219): Told("unowned-rule", "nft -a list chain inet mine in",
                         [f'nft insert rule inet mine in iifname "eth0" ip saddr {DNS} udp dport 7219 accept']),
        (VM, 7333): Told("tailscale-cgnat", "node attribute disable-linux-cgnat-drop-rule, and rp_filter=1",
                         [accept("INPUT", "-i eth0 -s 100.100.0.0/16")], ["Going by the chain's name and the packet's"],
                         by=lambda d: d["rule"] and not d["rule"]["text"]),
    })
    return told


def is_kernel(drop):
    return drop["drop"]["kind"] == "kernel"


def kernel(guest):
    """Reasons that a kernel does not have it tells as none; then the function is all that is known."""
    def has(reason):
        return reason in guest.reasons
    decision = f"ip route get {{}} from {DNS} iif eth0"
    clamp = "{} -t mangle -A FORWARD -o tailscale0 -p tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu"
    dev = "ip -s link show dev {}"
    no_rx = "ethtool -K eth0 rx off"
    plain = "kernel-not-specified-function"
    queue = "kernel-qdisc-drop-generic" if version(guest.kernel) >= (7, 0) else "kernel-qdisc-drop"
    told = {
        (CLIENT, 7301): Told("kernel-ttl", f"ip route get {CLIENT}"),
        ("fd00:b::2", 7301): Told("kernel-hop-limit", "ip route get fd00:b::2"),
        (VM, 7302): Told("kernel-ip-csum", no_rx), (VM, 7303): Told("kernel-udp-csum", no_rx),
        (VM, 7304): Told("kernel-tcp-csum", no_rx), (VM, "icmp"): Told("kernel-icmp-csum", no_rx),
        ("127.0.0.1", 7305): Told("kernel-ip-localnet", "tcpdump -eni eth0 net 127.0.0.0/8") if has("IP_LOCALNET") else
        Told(plain),
        (VM, 7306): Told("kernel-ip-invalid-source") if has("IP_INVALID_SOURCE") else Told(plain),
        ("100.101.102.104", 7307): Told("kernel-pkt-too-big", clamp.format("iptables"), says=["1400 bytes", "is 1280"]),
        ("fd7a:115c:a1e0::7777", 7307): Told("kernel-pkt-too-big", clamp.format("ip6tables"), says=["1400 bytes", "1280"]),
        (VM, 7308): Told("kernel-pkt-too-small"), (VM, "200"): Told("kernel-ip-noproto", says=["protocol 200"]),
        (VM, 7322): Told("kernel-ip-local-source", f"ip route get {VM}", says=["one of this machine's own addresses"],
                         hides=["src_valid_mark"]) if has("IP_LOCAL_SOURCE") else Told(plain, hides=["src_valid_mark"]),
        ("10.77.0.1", 7313): Told("kernel-ip-innoroutes", decision.format("10.77.0.1"), hides=["carries mark"]),
        ("10.78.0.1", 7314): Told("kernel-tailscale-unreachable", "ip rule; ip route show table all"),
        # A TUN that no program has open.
        ("10.79.0.1", 7315): Told(queue, dev.format("tun7"), says=["tun7 is a tunnel"], hides=["tailscaled"]),
        ("10.79.1.1", 7315): Told(queue, "systemctl restart tailscaled", [dev.format("tailscale7")],
                                  ["while no program has it open"]),
        # A device that is down has a queue that takes nothing.
        (VM, 7316): Told(queue, "tc -s qdisc show dev down0", [dev.format("down0")], [" down"], ["tunnel"]),
        (VM, 7317): Told("kernel-socket-rcvbuff", "ss -nmpu", hides=["sysctl -w"]),
        ("127.0.0.1", 7318): Told("kernel-proto-mem", "sysctl net.ipv4.udp_mem net.ipv4.tcp_mem"),
        ("fd00:b::2", 7319): Told("kernel-forwarding-off", "sysctl -w net.ipv6.conf.all.forwarding=1"),
        (VM, 7321): Told("kernel-ip-local-source" if has("IP_LOCAL_SOURCE") else "kernel-marked-source",
                         "sysctl -w net.ipv4.conf.all.src_valid_mark=0", says=["mark 0x1", "src_valid_mark is 1 here"]),
        ("10.79.2.1", 7323): Told(queue, "tc -s qdisc show dev slow0", hides=["tunnel"]),
        (VM, 7325): Told("kernel-tc-ingress", "tc filter show dev eth0 ingress; bpftool net show dev eth0"),
        (DNS, 7326): Told("kernel-tc-egress", "tc filter show dev eth0 egress; bpftool net show dev eth0"),
        # A socket's own filter, a program on its control group: the kernel does not tell one from the other.
        (VM, 7334): Told("kernel-socket-filter", "bpftool cgroup tree", ["ausearch -m avc -ts recent"], ["the kernel does not say"]),
        (VM, 7335): Told("kernel-socket-filter", "bpftool cgroup tree", ["ausearch -m avc -ts recent"], ["the kernel does not say"]),
        (VM, 7328): Told("kernel-xdp", "bpftool net show dev eth0"),
        (DNS, 7329): Told("kernel-bpf-cgroup-egress", "bpftool cgroup tree"),
        ("10.0.0.4", 7330): Told("kernel-xfrm-policy", "ip xfrm policy; ip xfrm state"),
        ("fd00:b::1", 7331): Told("kernel-ipv6disabled", "sysctl -w net.ipv6.conf.eth1.disable_ipv6=0"),
        ("10.79.3.1", 7332): Told("kernel-full-ring", "systemctl restart tailscaled", [dev.format("tailscale9")]),
        ("10.0.0.99", 7311): Told("kernel-neigh-(queuefull|failed)", "ip neigh show dev eth0"),
        ("10.0.0.98", 7312): Told("kernel-neigh-createfail",
                                  "sysctl net.ipv4.neigh.default.gc_thresh3 net.ipv6.neigh.default.gc_thresh3",
                                  by=lambda d: d["drop"]["reason"] == "NEIGH_CREATEFAIL"),
    }
    for one in told.values():
        one.by = one.by or is_kernel
    return told


def place_of(drop):
    packet = drop["packet"]
    if packet["proto"] in ("icmp", "200"):
        return packet["dst"], packet["proto"]
    return packet["dst"], packet["dport"]


def everything(guest):
    return {**tailscale(), **rules(), **kernel(guest)}


def explanations(group, guest, validator):
    run = guest.run("explanations")
    check_run(group, run, validator)
    group.equal(run.final["lost"], {}, "nothing was lost")
    entries = set()
    for (address, port), told in everything(guest).items():
        what = f"{address} {port}"
        drops = [d for d in run.drops if place_of(d) == (address, port) and (not told or not told.by or told.by(d))]
        if told is None:
            group.equal([d for d in drops if d["drop"]["kind"] != "kernel"], [], f"{what}: no rule drops it")
            continue
        if not group.true(drops, f"{what}: drop lines ({told.entry})"):
            continue
        for drop in drops[:3]:
            explanation = drop["explanation"] or {"id": "", "summary": "", "fixes": []}
            fixes = [fix["do"] for fix in explanation["fixes"]]
            group.true(re.fullmatch(told.entry, explanation["id"]), f"{what}: the entry is {told.entry}",
                       (explanation["id"], drop["drop"], drop["rule"] and drop["rule"]["text"]))
            entries.add(explanation["id"])
            if told.fix:
                group.equal(fixes[:1], [told.fix], f"{what}: the first fix")
            for piece in told.fixes:
                group.true(piece in fixes, f"{what}: a fix is {piece}", fixes)
            for piece in told.says:
                group.true(piece in explanation["summary"], f"{what}: says {piece!r}", explanation["summary"])
            for piece in told.hides:
                group.true(piece not in explanation["summary"] + "\n".join(fixes), f"{what}: does not say {piece!r}",
                           (explanation["summary"], fixes))
            group.true(all(fix["risk"] for fix in explanation["fixes"]), f"{what}: each fix has its price")
    group.true(len(entries) >= 60, "entries that were met", sorted(entries))
    group.true({"kernel-neigh-queuefull", "kernel-neigh-failed"} <= entries | {
        d["explanation"]["id"] for d in run.drops_to_port(7311)}, "a neighbour: queue and failure", entries)
    # The sender of what a rule drops on its way out learns it at once.
    error = guest.text("explanations/sender.err")
    group.true("Operation not permitted" in error, "the sender's own error", error)
    told = run.drops_to_port(7145)[0]["explanation"]["summary"]
    group.true(re.search(r"bash \(pid \d+\) was sending it and got EPERM \(Operation not permitted\)\.", told),
               "the explanation says so", told)


def own_entries(group, guest, validator):
    """Files of /etc/tsdroptrace/explain.d; the run without them says what is built in."""
    run = guest.run("explanations", "own")
    check_run(group, run, validator)
    lab, other = run.drops_to_port(7133), run.drops_to_port(7132)
    group.equal((len(lab), len(other)), (1, 1), "drop lines")
    for drop in lab:
        group.fields(drop["explanation"], {
            "id": "lab-quarantine", "summary": lambda text: text.startswith(
                f"The lab's quarantine holds {DNS}: it came in by eth0."),
            "fixes": [{"do": f"iptables-legacy -A INPUT -s {DNS} -j ACCEPT", "risk": "it may infect others; it does not help "
                       "against this drop: at the end of INPUT it stands below the rule that drops"}]}, "an own entry")
    group.equal(other[0]["explanation"]["id"], "netbird", "a rule that it is not about")
    group.equal(guest.run("explanations").drops_to_port(7133)[0]["explanation"]["id"], "unowned-rule", "without the file")
    told = [line for line in run.err.splitlines() if "60-bad.yaml" in line]
    group.true(len(told) == 1 and re.search(r"60-bad[.]yaml:3\b", told[0]) and "nonsense" in told[0],
               "a file with a mistake: which line, and what is wrong", run.err)
