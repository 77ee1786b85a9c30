# shellcheck shell=bash source-path=SCRIPTDIR
# SPDX-License-Identifier: GPL-2.0-only
# What the catalogue explains, by real causes, under one tracer: port and address say which cause it is
# (tests/vm/checks/explanations.py). Rules of programs that Debian does not package are written as they write them; those
# of Tailscale in all its forms, each on a machine of its own.
# shellcheck disable=SC2016 # what other shells expand
# shellcheck source=lib.sh
. /tests/lib.sh

# All that this needs beside the network: devices that are down, without a program, slow; addresses; a rule that refuses.
network none
forwarding
modprobe -a tun act_gact cls_u32 sch_tbf xfrm_user
for device in tun7 tailscale7; do ip tuntap add $device mode tun; done
ip -batch - <<'IP'
link set tun7 up
link set tailscale7 up
link add down0 type dummy
link add slow0 type dummy
link set slow0 up
address add 10.0.0.3/24 dev eth0
address add 10.0.0.4/24 dev eth0
route add 100.100.3.3/32 dev eth1
route add 10.79.0.1/32 dev tun7
route add 10.79.1.1/32 dev tailscale7
route add 10.79.2.1/32 dev slow0 src 10.0.0.2
route add throw 10.78.0.0/16
route add local default dev lo table 100
route add 172.17.0.0/16 dev eth1
route add fd7a:115c:a1e0::7777/128 dev tailscale0
rule add pref 5300 to 10.77.0.0/16 unreachable
rule add pref 5301 fwmark 0x1 lookup 100
IP
ip -netns provider -batch - <<'IP'
address add 100.64.3.4/32 dev lo
address add 100.100.3.3/32 dev lo
route add default via 10.0.0.2 dev eth0 src 100.100.2.136
route add 10.0.0.3/32 dev eth0 src 100.100.3.3
route add 10.0.0.4/32 dev eth0 src 100.100.2.136
route add fd7a:115c:a1e0::7777/128 via fd00:a::2 dev eth0 src fd7a:115c:a1e0::53
IP
in_provider() { ip netns exec provider "$@"; }

# ---- machines that run Tailscale: ts1 to ts5, 10.0.1N.2, each with a peer of its own behind tailscale0 ----

forms='old-legacy old-nft native nodivert return'
# The rules that tailscaled writes, from the newest to the oldest order: before 1.96 the DROP stood above the accept for
# tailscale0; --stateful-filtering; with the node attribute disable-linux-cgnat-drop-rule a RETURN instead.
iptables_form() { # FORM
    local jumps='-I INPUT 1 -j ts-input
-I FORWARD 1 -j ts-forward' stateful='' drop='-A ts-input -s 100.115.92.0/23 ! -i tailscale0 -j RETURN
-A ts-input -s 100.64.0.0/10 ! -i tailscale0 -j DROP'
    case $1 in
    old-legacy) stateful='-A ts-forward -o tailscale0 -m conntrack ! --ctstate RELATED,ESTABLISHED -j DROP' ;;
    nodivert) jumps='' ;;
    return) drop='-A ts-input -s 100.64.0.0/10 ! -i tailscale0 -j RETURN' ;;
    esac
    cat <<RULES
*filter
:ts-input - [0:0]
:ts-forward - [0:0]
$jumps
-A ts-input -s 100.101.102.103/32 -i lo -j ACCEPT
$drop
-A ts-input -i tailscale0 -j ACCEPT
-A ts-input -p udp -m udp --dport 41641 -j ACCEPT
-A ts-forward -i tailscale0 -j MARK --set-xmark 0x40000/0xff0000
-A ts-forward -m mark --mark 0x40000/0xff0000 -j ACCEPT
-A ts-forward -s 100.64.0.0/10 -o tailscale0 -j DROP
$stateful
-A ts-forward -o tailscale0 -j ACCEPT
COMMIT
RULES
}
# Native, before 1.100: marks in the other byte order.
native_form() {
    cat <<'NFT'
table ip filter {
    chain ts-input {
        iifname "lo*" ip saddr 100.101.102.103 counter accept
        iifname != "tailscale0*" ip saddr 100.115.92.0/23 counter return
        iifname != "tailscale0*" ip saddr 100.64.0.0/10 counter drop
        iifname "tailscale0*" counter accept
        udp dport 41641 counter accept
    }
    chain ts-forward {
        iifname "tailscale0*" counter meta mark set meta mark & 0xffff00ff | 0x00000400
        meta mark & 0x0000ff00 == 0x00000400 counter accept
        oifname "tailscale0*" ip saddr 100.64.0.0/10 counter drop
        oifname "tailscale0*" ct state != established,related counter drop
        oifname "tailscale0*" counter accept
    }
    chain INPUT { type filter hook input priority 0; policy accept; counter jump ts-input; }
    chain FORWARD { type filter hook forward priority 0; policy accept; counter jump ts-forward; }
}
NFT
}
n=0
for form in $forms; do
    n=$((n + 1))
    ip netns add ts$n
    ip -netns provider -batch - <<IP
link add ts$n type veth peer name eth0 netns ts$n
address add 10.0.1$n.1/24 dev ts$n
link set ts$n up
route add 10.0.1$n.2/32 dev ts$n src 100.100.2.136
route add 100.101.102.1${n}0/32 via 10.0.1$n.2 dev ts$n src 100.64.3.4
route add 100.101.102.1${n}1/32 via 10.0.1$n.2 dev ts$n src 10.0.1$n.1
IP
    ip -netns ts$n -batch - <<IP
link set lo up
address add 10.0.1$n.2/24 dev eth0
link set eth0 up
link add tailscale0 mtu 1280 type dummy
address add 100.101.102.103/32 dev tailscale0
link set tailscale0 up
route add default via 10.0.1$n.1 dev eth0
route add 100.101.102.1${n}0/32 dev tailscale0
route add 100.101.102.1${n}1/32 dev tailscale0
IP
    case $form in
    native) load="nft -f -" ;;
    old-nft) load="iptables-nft-restore --noflush" ;;
    *) load="iptables-legacy-restore --noflush" ;;
    esac
    if [ "$form" = native ]; then native_form; else iptables_form "$form"; fi |
        ip netns exec ts$n sh -c "echo 1 >/proc/sys/net/ipv4/ip_forward; exec $load"
done

# ---- rules that tell by chain, table, comment or form whose they are ----

forwarded='DOCKER-USER DOCKER-ISOLATION-STAGE-2 DOCKER DOCKER-INGRESS KUBE-PROXY-FIREWALL KUBE-POD-FW-ABCDEF cali-tw-cali1
    CILIUM_FORWARD CNI-FORWARD NETAVARK_ISOLATION_2 FLANNEL-FWD WEAVE-NPC LIBVIRT_FWI mine-forward'
incoming='f2b-sshd CROWDSEC_CHAIN sshguard FWKNOP_INPUT KUBE-FIREWALL ISTIO_DROP ufw-before-input ufw-user-input
    ufw-skip-to-policy-input DENYIN nixos-fw-refuse NETBIRD-ACL-INPUT mine-input'
legacy_rules() {
    local chain port
    echo '*filter'
    for chain in $forwarded $incoming mine-ts ts-input; do echo ":$chain - [0:0]"; done
    port=7101
    for chain in $forwarded; do
        echo "-A FORWARD -p udp -m udp --dport $port -j $chain"
        case $chain in
        *POD-FW* | LIBVIRT*) echo "-A $chain -j REJECT --reject-with icmp-port-unreachable" ;;
        cali*) echo "-A $chain -m comment --comment \"cali:abc\" -j DROP" ;;
        *) echo "-A $chain -j DROP" ;;
        esac
        port=$((port + 1))
    done
    port=7121
    for chain in $incoming; do
        echo "-A INPUT -p udp -m udp --dport $port -j $chain"
        [ "$chain" != f2b-sshd ] && echo "-A $chain -s 100.100.2.136/32 -j DROP" ||
            echo "-A $chain -s 100.100.2.136/32 -j REJECT --reject-with icmp-port-unreachable"
        port=$((port + 1))
    done
    # The same rule without its owner's chain, and the chain with another rule.
    cat <<'RULES'
-A INPUT -p udp -m udp --dport 7141 -j mine-ts
-A mine-ts -s 100.64.0.0/10 ! -i tailscale0 -j DROP
-A INPUT -p udp -m udp --dport 7142 -j ts-input
-A ts-input -s 100.100.2.136/32 -p udp -m udp --dport 7142 -j DROP
-A OUTPUT -p udp -m udp --dport 7143 -m comment --comment "kube-system/kube-dns:dns-tcp has no endpoints" -j REJECT --reject-with icmp-port-unreachable
-A OUTPUT -p udp -m udp --dport 7144 -m comment --comment "kube-system/kube-dns:dns-tcp has endpoints" -j REJECT --reject-with icmp-port-unreachable
-A OUTPUT -p udp -m udp --dport 7145 -j DROP
COMMIT
*raw
-A PREROUTING -d 172.17.0.2/32 ! -i docker0 -j DROP
-A PREROUTING -d 172.17.0.4/32 -j DROP
-A PREROUTING -p udp -m udp --dport 7148 -m rpfilter --invert -j DROP
-A PREROUTING -d 10.9.0.2/32 ! -i wg0 -m addrtype ! --src-type LOCAL -m comment --comment "wg-quick(8) rule for wg0" -j DROP
COMMIT
RULES
}
legacy_rules | iptables-legacy-restore
ip6tables-legacy-restore <<'RULES'
*filter
:ufw6-user-input - [0:0]
:mine6 - [0:0]
-A INPUT -p udp -m udp --dport 7128 -j ufw6-user-input
-A ufw6-user-input -s fd7a:115c:a1e0::53/128 -j DROP
-A INPUT -p udp -m udp --dport 7129 -j mine6
-A mine6 -s fd7a:115c:a1e0::53/128 -j DROP
COMMIT
RULES
iptables-nft-restore <<'RULES'
*filter
:CROWDSEC_CHAIN - [0:0]
-A INPUT -p udp -m udp --dport 7161 -j CROWDSEC_CHAIN
-A CROWDSEC_CHAIN -s 100.100.2.136/32 -j DROP
-A INPUT -p udp -m udp --dport 7162 -j DROP
COMMIT
RULES
# only PORT: what a chain with the policy drop is not to meet.
only() { echo "meta l4proto != udp accept; udp dport != $1 accept"; }
nft -f - <<NFT
table ip crowdsec { chain crowdsec-chain-input { type filter hook input priority 5; udp dport 7201 counter drop; }; }
table ip sshguard { chain blacklist { type filter hook input priority 5; policy drop; $(only 7202); }; }
table inet fw4 { chain input_wan { type filter hook input priority 5; udp dport 7203 counter drop; }; }
table inet nixos-fw { chain input { type filter hook input priority 5; udp dport 7204 counter drop; }; }
table inet opensnitch { chain filter_output { type filter hook output priority 5; udp dport 7205 drop; }; }
table inet mullvad { chain output { type filter hook output priority 5; policy drop; $(only 7206); }; }
table inet nordvpn { chain postrouting { type filter hook postrouting priority 5; udp dport 7207 drop; }; }
table inet cloudflare-warp { chain tun { type filter hook output priority 5; policy drop; $(only 7208); }; }
table ip netbird { chain in { type filter hook input priority 5; udp dport 7209 drop; }; }
table ip docker-bridges {
    chain filter-forward-in__docker0 { udp dport 7210 counter drop comment "UNPUBLISHED PORT DROP"; }
    chain filter-FORWARD { type filter hook forward priority 5; jump filter-forward-in__docker0; }
    chain raw-PREROUTING {
        type filter hook prerouting priority raw;
        ip daddr 172.17.0.3 iifname != "docker0" counter drop comment "DROP DIRECT ACCESS"
    }
}
table inet netavark { chain NETAVARK-HOSTPORT-DNAT { type filter hook forward priority 5; udp dport 7212 drop; }; }
table inet f2b-table {
    set addr-set-sshd { type ipv4_addr; elements = { 100.100.2.136 }; }
    chain f2b-chain {
        type filter hook input priority 5;
        udp dport 7213 ip saddr @addr-set-sshd reject with icmp port-unreachable
    }
}
table inet firewalld {
    chain filter_INPUT { type filter hook input priority 5; udp dport 7214 reject with icmpx admin-prohibited; }
}
table inet firewalld_policy_drop { chain filter_INPUT { type filter hook input priority 6; policy drop; $(only 7215); }; }
table ip wg-quick-wg0 {
    chain preraw {
        type filter hook prerouting priority raw;
        iifname != "wg0" ip daddr 10.9.0.3 fib saddr type != local drop
    }
}
table ip libvirt_network { chain guest_input { type filter hook forward priority 5; udp dport 7217 counter reject; }; }
table inet mine {
    chain pre { type filter hook prerouting priority raw; udp dport 7218 fib saddr . iif oif missing drop; }
    chain in { type filter hook input priority 7; udp dport 7219 counter drop; }
    chain marks {
        type filter hook prerouting priority mangle;
        ip daddr 10.78.0.1 meta mark set 0x80000
        udp dport 7321 meta mark set 0x1
    }
}
table inet netbird { chain in { type filter hook input priority 5; udp dport 7220 drop; }; }
table netdev early {
    chain in { type filter hook ingress device "eth0" priority 0; udp dport 7316 fwd to "down0"; }
}
NFT

# ---- the rest of the kernel ----

tc qdisc add dev slow0 root tbf rate 8kbit burst 1600 limit 1600
tc qdisc add dev eth0 clsact
tc filter add dev eth0 ingress protocol ip prio 1 u32 match ip dport 7325 0xffff action drop
tc filter add dev eth0 egress protocol ip prio 1 u32 match ip dport 7326 0xffff action drop
ip xfrm policy add src 100.100.2.136 dst 10.0.0.4 dir in tmpl proto esp mode transport
mkdir -p /tmp/cgroup
mount -t cgroup2 none /tmp/cgroup
mkdir -p /tmp/cgroup/denied /tmp/cgroup/shut
vm_helper bpf-egress /tmp/cgroup/denied >"$out/cgroup.ready" &
helpers=($!)
vm_helper bpf-ingress /tmp/cgroup/shut >"$out/cgroup-in.ready" &
helpers+=($!)
wait_for 10 "$out/cgroup-in.ready" ready
# Sockets that nobody reads, one for each of these ports; 7334 has a filter that takes nothing, 7335 is of the group whose
# program drops all that comes; and a TUN that is open and not read. (Only what perl itself has.)
sysctl -qw net.core.rmem_default=20000000
# shellcheck disable=SC2016 # perl's
perl -e 'my @open;
    my $nothing = pack("S C C L", 6, 0, 0, 0); # BPF_RET | BPF_K
    sub join_group { open(my $group, ">", "/tmp/cgroup$_[0]/cgroup.procs") or die; print $group "0" or die; close($group) or die; }
    for (7317, 7318, 7330, 7334, 7335) {
        join_group("/shut") if $_ == 7335;
        socket(my $s, 2, 2, 17) or die; setsockopt($s, 1, 8, pack("i", 1)) if $_ == 7317;
        join_group("") if $_ == 7335;
        setsockopt($s, 1, 26, pack("S x6 P", 1, $nothing)) or die if $_ == 7334; # SO_ATTACH_FILTER
        bind($s, pack("S n C4 x8", 2, $_, 0, 0, 0, 0)) or die; push @open, $s; }
    open(my $tun, "+<", "/dev/net/tun") or die; push @open, $tun;
    my $name = pack("a16 S x22", "tailscale9", 0x1001);
    ioctl($tun, 0x400454ca, $name) or die "TUNSETIFF: $!"; # IFF_TUN, IFF_NO_PI
    syswrite(STDOUT, "ready\n"); sleep' >"$out/sockets.ready" &
helpers+=($!)
wait_for 10 "$out/sockets.ready" ready
wait_for 10 "$out/cgroup.ready" ready
ip -batch - <<'IP'
link set tailscale9 txqueuelen 1
link set tailscale9 up
route add 10.79.3.1/32 dev tailscale9
IP
tc qdisc replace dev tailscale9 root noqueue
sysctl -qw net.ipv4.neigh.eth0.unres_qlen_bytes=4096 net.ipv4.udp_rmem_min=1 net.core.rmem_default=212992
mac=$(</sys/class/net/eth0/address) mac1=$(</sys/class/net/eth1/address)

# Entries of this machine's own, of which one fix would stand below the drop; and a file with a mistake. Only for a tracer
# that is started now: a replay elsewhere does not have them.
mkdir -p /etc/tsdroptrace/explain.d
cat >/etc/tsdroptrace/explain.d/50-lab.yaml <<'YAML'
causes:
  - id: lab-quarantine
    when: {kind: rule, chain: mine-input, source: 100.100.0.0/16}
    unless: {source: 100.100.3.0/24}
    say: "The lab's quarantine holds {src}: it came in by {in_dev}."
    fixes:
      - {do: "iptables-legacy -A INPUT -s {src} -j ACCEPT", risk: it may infect others}
YAML
printf 'causes:\n  - id: broken\n    when: {kind: nonsense}\n    say: nothing\n' >/etc/tsdroptrace/explain.d/60-bad.yaml
trace own --dst $ranges --port 7132,7133
rm -r /etc/tsdroptrace
trace run --all --record "$out/recording"
save_rules legacy before
save_rules iptables-nft before-nft

# to ADDRESS PORT...: one packet to each, in the process that reads this; errors of the sender are kept.
sender='to() { local address=$1 port; shift; for port; do printf explanation >"/dev/udp/$address/$port" || true; done; }'
numbers() { seq -s " " "$1" "$2"; }
{
    # From the provider, all at once.
    {
        echo "$sender"
        for n in 1 2 3 4 5; do
            echo "to 10.0.1$n.2 701$n; to 100.101.102.1${n}0 702$n; to 100.101.102.1${n}1 703$n"
        done
        echo "to $client4 $(numbers 7101 7114) 7210 7212 7217"
        echo "to $vm4 $(numbers 7121 7133) 7141 7142 7161 7162 7201 7202 7203 7204 7209 7213 7214 7215 7219 7220"
        echo "to $vm6 7128 7129"
        echo "to 172.17.0.2 7146; to 172.17.0.4 7147; to 172.17.0.3 7211; to 10.0.0.3 7148 7218; to 10.9.0.2 7149"
        echo "to 10.9.0.3 7216; to $vm4 7316 7325 7334 7335; to 10.0.0.4 7330; to 10.77.0.1 7313; to 10.78.0.1 7314"
        echo "for i in 1 2 3 4 5 6 7 8; do to $vm4 7317; done"
    } | in_provider bash
    # From here.
    mark sending
    {
        echo "$sender"
        echo "to $dns4 7143 7144 7205 7206 7207 7208 7326; to 10.79.0.1 7315; to 10.79.1.1 7315"
        echo 'printf -v long %01000d 0'
        echo 'for i in 1 2 3 4 5 6 7 8; do printf $long >/dev/udp/10.79.2.1/7323; printf $long >/dev/udp/10.0.0.99/7311; done'
        echo 'for i in 1 2 3 4; do to 10.79.3.1 7332; done'
        echo "to $dns4 7145"
    } | bash 2>"$out/sender.err"
    echo "$sender; echo 0 >/tmp/cgroup/denied/cgroup.procs; to $dns4 7329" | bash
    # No room: for neighbours (the one above is still being asked for), and for all sockets together.
    sysctl -qw net.ipv4.neigh.default.gc_thresh3=1 net.ipv4.neigh.default.gc_thresh2=1 net.ipv4.neigh.default.gc_thresh1=1
    echo "$sender; for i in 94 95 96 97 98; do to 10.0.0.\$i 7312; done" | bash
    sysctl -qw net.ipv4.neigh.default.gc_thresh3=1024 net.ipv4.neigh.default.gc_thresh2=512 \
        net.ipv4.neigh.default.gc_thresh1=128
    memory=$(</proc/sys/net/ipv4/udp_mem)
    sysctl -qw net.ipv4.udp_mem='1 1 1'
    echo 'printf -v long %060000d; for ((i = 0; i < 30; i++)); do printf $long >/dev/udp/127.0.0.1/7318; done' | bash
    sysctl -qw "net.ipv4.udp_mem=$memory"
    # Packets that no program would send.
    in_provider /tests/odd eth0 "$mac"
    pause 1
    # What the explanation asks a sysctl for.
    echo "$sender; to $vm4 7321" | in_provider bash
    sysctl -qw net.ipv6.conf.all.forwarding=0
    echo "$sender; to $client6 7319" | in_provider bash
    pause 1.5
    # A rule that is gone before anybody can read its text.
    kill -STOP "${tracers[run]}"
    iptables-legacy -I INPUT 1 -p udp --dport 7333 -j ts-input
    iptables-legacy -A ts-input -s 100.64.0.0/10 ! -i tailscale0 -j DROP
    echo "$sender; to $vm4 7333" | in_provider bash
    iptables-legacy -D ts-input -s 100.64.0.0/10 ! -i tailscale0 -j DROP
    iptables-legacy -D INPUT 1
    kill -CONT "${tracers[run]}"
    # IPv6 on a device that has none; and the end of everything on another one.
    sysctl -qw net.ipv6.conf.eth1.disable_ipv6=1
    ip netns exec client /tests/odd eth1 "$mac1" disabled
    vm_helper xdp eth0 >"$out/xdp.ready" &
    helpers+=($!)
    wait_for 10 "$out/xdp.ready" ready
    echo "$sender; to $vm4 7328" | in_provider bash
} >"$out/send.log" 2>&1
pause 2
stop own
stop run
sysctl -qw net.ipv6.conf.eth1.disable_ipv6=0 net.ipv4.udp_rmem_min=4096 net.ipv4.neigh.eth0.unres_qlen_bytes=212992
kill "${helpers[@]}"
ip xfrm policy flush
ip rule del pref 5300
ip rule del pref 5301
ip route flush table 100
ip route del throw 10.78.0.0/16
for device in tun7 tailscale7 tailscale9 down0 slow0; do ip link del $device 2>/dev/null || true; done
for n in 1 2 3 4 5; do ip netns del ts$n; done
umount -l /tmp/cgroup
