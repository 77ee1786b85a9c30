# SPDX-License-Identifier: GPL-2.0-only
"""Rules that the programs themselves have written: whose they are, why they are in the way, and what helps.

The texts are those of these versions, as Debian has them; where another one writes other rules, it is time to look at
the catalogue (userspace/explain/catalogue) again."""

import re

from .guest import check_run
from .scenarios import replay

NFT_REJECT = "reject with icmpx admin-prohibited"
REJECT = "-j REJECT --reject-with icmp-port-unreachable"

# PROGRAM -> (destination port, explanation, where: table, chain and text, first fix); "policy" instead of a text.
EXPECTED = {
    "ufw": ("iptables-nft", [
        (7301, "ufw-denied", ("filter", "ufw-user-input", "-A ufw-user-input -p udp -m udp --dport 7301 -j DROP"),
         "ufw prepend allow from 10.0.0.1"),
        (7302, "ufw-denied", ("filter", "ufw-user-input", f"-A ufw-user-input -p udp -m udp --dport 7302 {REJECT}"),
         "ufw prepend allow from 10.0.0.1"),
        (7303, "ufw-denied", ("filter", "ufw-user-forward", "-A ufw-user-forward -p udp -m udp --dport 7303 -j DROP"),
         "ufw route prepend allow to 10.1.0.2"),
        (7304, "ufw-policy", ("filter", "INPUT", "policy"), "ufw allow from 10.0.0.1"),
        (7305, "ufw-policy", ("filter", "FORWARD", "policy"), "ufw route allow to 10.1.0.2"),
        (7306, "conntrack-invalid",
         ("filter", "ufw-before-input", "-A ufw-before-input -m conntrack --ctstate INVALID -j DROP"), None),
        (137, "ufw", ("filter", "ufw-skip-to-policy-input", "-A ufw-skip-to-policy-input -j DROP"),
         "ufw allow from 10.0.0.1"),
    ]),
    "firewalld": ("nftables", [
        (7311, "firewalld", ("firewalld", "filter_IN_public_deny", "ip saddr 10.0.0.0/24 udp dport 7311 drop"),
         "firewall-cmd --zone=trusted --add-source=10.0.0.1"),
        (7312, "firewalld", ("firewalld", "filter_INPUT_POLICIES", NFT_REJECT),
         "firewall-cmd --zone=trusted --add-source=10.0.0.1"),
        (7313, "firewalld", ("firewalld", "filter_FORWARD_POLICIES", NFT_REJECT),
         "firewall-cmd --zone=trusted --change-interface=eth0"),
    ]),
    "fail2ban": (None, [
        (7321, "fail2ban-ban",
         ("f2b-table", "f2b-chain", "udp dport 7321 ip saddr @addr-set-new reject with icmp port-unreachable"),
         "fail2ban-client unban 10.0.0.1"),
        (7322, "fail2ban-ban", ("filter", "f2b-old", f"-A f2b-old -s 10.0.0.1/32 {REJECT}"),
         "fail2ban-client unban 10.0.0.1"),
        (7323, "fail2ban-ban",
         ("filter", "INPUT", "-A INPUT -p udp -m udp --dport 7323 -m set --match-set f2b-ipset src " + REJECT),
         "fail2ban-client unban 10.0.0.1"),
    ]),
    "libvirt-nftables": ("nftables", [
        (7331, "libvirt-network", ("libvirt_network", "guest_input", 'oif "virbr0" reject'),
         "virsh net-dumpxml NETWORK"),
        (7332, "libvirt-network", ("libvirt_network", "guest_output", 'iif "virbr0" reject'),
         "virsh net-dumpxml NETWORK"),
    ]),
    "libvirt-iptables": ("iptables-nft", [
        (7331, "libvirt-network", ("filter", "LIBVIRT_FWI", f"-A LIBVIRT_FWI -o virbr0 {REJECT}"),
         "virsh net-dumpxml NETWORK"),
        (7332, "libvirt-network", ("filter", "LIBVIRT_FWO", f"-A LIBVIRT_FWO -i virbr0 {REJECT}"),
         "virsh net-dumpxml NETWORK"),
    ]),
    "podman": ("nftables", [
        (7341, "podman-isolation", ("netavark", "NETAVARK-ISOLATION-2", 'oifname "podman2" drop'),
         "podman network connect NETWORK CONTAINER"),
        (7342, "podman-isolation", ("netavark", "NETAVARK-ISOLATION-2", 'oifname "podman1" drop'),
         "podman network connect NETWORK CONTAINER"),
        (7343, "conntrack-invalid", ("netavark", "FORWARD", "ct state invalid drop"), None),
    ]),
    "wg-quick-nftables": ("nftables", [
        (7351, "wg-quick-guard", ("wg-quick-wg0", "preraw",
                                  'iifname != "wg0" ip daddr 10.9.0.2 fib saddr type != local drop'),
         "AllowedIPs = 10.0.0.1"),
    ]),
    "wg-quick-iptables": ("iptables-nft", [
        (7351, "wg-quick-guard",
         ("raw", "PREROUTING", "-A PREROUTING -d 10.9.0.2/32 ! -i wg0 -m addrtype ! --src-type LOCAL -m comment "
          '--comment "wg-quick(8) rule for wg0" -j DROP'), "AllowedIPs = 10.0.0.1"),
    ]),
    "docker": ("iptables-nft", [
        (7361, "docker-forward-policy", ("filter", "FORWARD", "policy"),
         "iptables -I DOCKER-USER 1 -i eth0 -o eth1 -d 10.1.0.2 -p udp --dport 7361 -j ACCEPT"),
        (7362, "docker-forward-policy", ("filter", "FORWARD", "policy"),
         "iptables -I DOCKER-USER 1 -i eth0 -o docker0 -d 172.17.0.2 -p udp --dport 7362 -j ACCEPT"),
        (7363, "docker-isolation", ("filter", "DOCKER-ISOLATION-STAGE-2",
                                    re.compile(r"-A DOCKER-ISOLATION-STAGE-2 -o br-[0-9a-f]{12} -j DROP")),
         "docker network connect NETWORK CONTAINER"),
    ]),
}
OWNERS = {"docker": "Docker", "podman": "Podman (netavark)", "libvirt-nftables": "libvirt",
          "libvirt-iptables": "libvirt", "wg-quick-nftables": "wg-quick",
          "wg-quick-iptables": "wg-quick"}
SCENARIOS = [f"owner-{program}" for program in EXPECTED]


def without_counters(text):
    """As `nft -s` prints it, which the guest has used."""
    return re.sub(r" ?counter packets \d+ bytes \d+", "", text)


def program_rules(group, guest, validator, program):
    scenario = f"owner-{program}"
    run = guest.run(scenario)
    check_run(group, run, validator)
    listed = {without_counters(line).strip().replace(" counter", "")
              for kind in ("nft", "save") for line in guest.text(f"{scenario}/rules.{kind}").splitlines()}
    backend, drops = EXPECTED[program]
    for port, explanation, (table, chain, text), fix in drops:
        found = run.drops_to_port(port)
        if not group.equal(len(found), 1, f"port {port}: drop lines"):
            continue
        drop, policy = found[0], text == "policy"
        rule = drop["rule"] or {}
        group.fields(drop, {
            "drop": {"kind": "policy" if policy else "rule"},
            "rule": {"table": table, "chain": chain, "owner": None if policy else OWNERS.get(program, program),
                     "backend": backend or ("nftables" if table == "f2b-table" else "iptables-nft")},
            "explanation": {"id": explanation}}, f"port {port}")
        fixes = [one["do"] for one in (drop["explanation"] or {"fixes": []})["fixes"]]
        if fix:
            group.equal(fixes[:1], [fix], f"port {port}: the first fix")
        if not policy:
            said = without_counters(rule.get("text") or "").replace(" counter", "")
            group.true(re.fullmatch(text if isinstance(text, re.Pattern) else re.escape(text), said),
                       f"port {port}: the rule's text", said)
            group.true(said in listed, f"port {port}: the rule is one of those that Debian's tools list", said)
    causes = [cause for cause in run.final["causes"] if cause["rule"]]
    group.equal(len(causes), len({where for _, _, where, _ in drops}), "no other rule has dropped anything")
    group.equal(run.final["lost"], {}, "nothing was lost")


def all_checks(report, guest, validator, program):
    def ran(group):
        for name in SCENARIOS:
            status, lasted = guest.scenarios.get(name, ("did not run", 0))
            group.equal(status, 0, f"{name}: how it ended (after {lasted:.0f} s; its log: {guest.directory}/{name}/log)")

    report.run("owners", "the programs ran", ran)
    for name in EXPECTED:
        report.run("owners", f"rules of {name}", program_rules, guest, validator, name)
        report.run("owners", f"replay: {name}", replay, guest, validator, program, f"owner-{name}")
