# shellcheck shell=bash source-path=SCRIPTDIR
# SPDX-License-Identifier: GPL-2.0-only
# Targets that drop when they fail: a router without a single address can neither masquerade nor redirect, and TPROXY has
# nobody to hand a packet to. And rules that ask a set. Each rule has packets of its own: the port tells which.
# shellcheck source=lib.sh
. /tests/lib.sh

for netns in bare asker; do
    ip netns add $netns
done
ip link add in netns bare type veth peer name eth0 netns asker
ip -netns bare -batch - <<'IP'
link add out type dummy
link set in address 02:00:00:00:09:fe
link set in up
link set out up
route add 100.100.9.0/24 dev in
route add 10.8.0.0/16 dev out
IP
ip -netns asker -batch - <<'IP'
address add 100.100.9.1/24 dev eth0
link set eth0 up
neighbour add 100.100.9.254 lladdr 02:00:00:00:09:fe nud permanent dev eth0
route add default via 100.100.9.254
IP
in_bare() { ip netns exec bare "$@"; }
in_bare sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.in.rp_filter=0

in_bare nft -f - <<'NFT'
table ip fails {
    set asked {
        type ipv4_addr
        elements = { 10.8.0.1 }
    }
    chain pre {
        type nat hook prerouting priority dstnat; policy accept;
        udp dport 7601 counter redirect to :99
    }
    chain post {
        type nat hook postrouting priority srcnat; policy accept;
        udp dport 7602 counter masquerade
    }
    chain forward {
        type filter hook forward priority 0; policy accept;
        udp dport 7604 ip daddr @asked counter drop
    }
}
NFT
in_bare ipset create traced hash:ip
in_bare ipset add traced 10.8.0.1
rules() { # PORT: of redirect; the others follow
    cat <<RULES
*nat
-A PREROUTING -p udp -m udp --dport $1 -j REDIRECT --to-ports 99
-A POSTROUTING -p udp -m udp --dport $(($1 + 1)) -j MASQUERADE
COMMIT
*mangle
-A PREROUTING -p udp -m udp --dport $(($1 + 2)) -j TPROXY --on-port 1 --on-ip 0.0.0.0 --tproxy-mark 0x0/0x0
COMMIT
*filter
-A FORWARD -p udp -m udp --dport $(($1 + 3)) -m set --match-set traced dst -j DROP
COMMIT
RULES
}
rules 7611 | in_bare iptables-nft-restore
rules 7621 | in_bare iptables-legacy-restore
trace run --dst "$ranges" --record "$out/recording"
{
    ip netns exec asker /tests/send 10.8.0.1 2 7601 7602 7604 7611 7612 7613 7614 7621 7622 7623 7624
    pause 1
} >"$out/send.log" 2>&1
stop run
in_bare nft -a -s list ruleset >"$out/after.nft"
in_bare nft -j -a list ruleset >"$out/after.nft.json"
in_bare iptables-nft-save -c >"$out/nft.save4"
in_bare iptables-legacy-save -c >"$out/legacy.save4"
