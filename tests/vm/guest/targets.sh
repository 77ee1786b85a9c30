# shellcheck shell=bash source-path=SCRIPTDIR
# SPDX-License-Identifier: GPL-2.0-only
# Targets that drop when they fail: a router without a single address can neither masquerade nor redirect, TPROXY has
# nobody to hand a packet to, those that change TCP's header find it too short, and a prefix has no other for one address.
# Rules that ask a set, and the chains of nat. Each rule has packets of its own: the port tells which, or the address.
# shellcheck source=lib.sh
. /tests/lib.sh

for netns in bare asker; do
    ip netns add $netns
done
ip link add in netns bare type veth peer name eth0 netns asker
for netns in bare asker; do # no addresses of the links themselves
    ip netns exec $netns sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.addr_gen_mode=1
done
ip netns exec bare sysctl -qw net.ipv6.conf.in.addr_gen_mode=1 net.ipv6.conf.all.forwarding=1
ip -netns bare -batch - <<'IP'
link add out type dummy
link set in address 02:00:00:00:09:fe
link set in up
link set out up
route add 100.100.9.0/24 dev in
route add 10.8.0.0/16 dev out
route add local 10.8.0.99/32 dev in
route add fd7a:115c:a1e0::/48 dev in
route add fd00:8::/48 dev out
IP
ip -netns asker -batch - <<'IP'
address add 100.100.9.1/24 dev eth0
address add fd7a:115c:a1e0::9/64 dev eth0 nodad
address add fd7a:115c:a1e0:0:ffff:ffff:ffff:ffff/128 dev eth0 nodad
link set eth0 up
neighbour add 100.100.9.254 lladdr 02:00:00:00:09:fe nud permanent dev eth0
neighbour add fd7a:115c:a1e0::fe lladdr 02:00:00:00:09:fe nud permanent dev eth0
route add default via 100.100.9.254
route add fd00:8::/48 via fd7a:115c:a1e0::fe dev eth0 src fd7a:115c:a1e0::9
route add fd00:8:0:5::/64 via fd7a:115c:a1e0::fe dev eth0 src fd7a:115c:a1e0:0:ffff:ffff:ffff:ffff
IP
in_bare() { ip netns exec bare "$@"; }
in_bare sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.in.rp_filter=0

# An option of TCP's header: from 5.18. Where it is longer than the header, the packet is dropped; else it goes on.
reset=''
[ -n "$old" ] || reset='tcp dport 7607-7608 counter reset tcp option maxseg'
native() { # FAMILY ADDRESS
    cat <<NFT
table $1 fails {
    set asked {
        type ipv${1/ip6/6}_addr
        elements = { $2 }
    }
    chain pre {
        type nat hook prerouting priority dstnat; policy accept;
        udp dport 7601 counter redirect to :99
    }
    chain strict {
        type nat hook prerouting priority dstnat + 1; policy drop;
        udp dport 7605 counter drop
        udp dport 7606 counter
        udp dport != 7606 accept
        meta l4proto != udp accept
    }
    chain proxy { # with nobody to hand it to, the rule goes on
        type filter hook prerouting priority mangle; policy accept;
        udp dport 7609 counter tproxy to :1
    }
    chain post {
        type nat hook postrouting priority srcnat; policy accept;
        udp dport 7602 counter masquerade
    }
    chain forward {
        type filter hook forward priority 0; policy accept;
        udp dport 7604 $1 daddr @asked counter drop
        $reset
        tcp dport 7607 counter drop
        udp dport 7609 counter drop
    }
}
NFT
}
{ native ip 10.8.0.1 | sed s/ipvip_addr/ipv4_addr/ && native ip6 fd00:8::1; } | in_bare nft -f -
in_bare ipset create traced4 hash:ip
in_bare ipset add traced4 10.8.0.1
in_bare ipset create traced6 hash:ip family inet6
in_bare ipset add traced6 fd00:8::1
rules() { # FAMILY PORT: of redirect; the others follow
    local any=0.0.0.0 last=$(($2 % 100))
    [ "$1" = 4 ] || any=::
    cat <<RULES
*nat
-A PREROUTING -p udp -m udp --dport $2 -j REDIRECT --to-ports 99
-A POSTROUTING -p udp -m udp --dport $(($2 + 1)) -j MASQUERADE
COMMIT
*mangle
-A PREROUTING -p udp -m udp --dport $(($2 + 2)) -j TPROXY --on-port 1 --on-ip $any --tproxy-mark 0x0/0x0
-A FORWARD -p tcp -m tcp --dport $(($2 + 5)) --tcp-flags SYN,RST SYN -j TCPMSS --set-mss 500
-A FORWARD -p tcp -m tcp --dport $(($2 + 6)) -j TCPOPTSTRIP --strip-options sack-permitted
RULES
    if [ "$1" = 4 ]; then
        echo "-A PREROUTING -d 10.8.0.$last -p tcp -j ECN --ecn-tcp-remove"
    else
        echo "-A PREROUTING -d fd00:8:0:$last::/64 -p udp -j DNPT --src-pfx fd00:8:0:$last::/64 --dst-pfx fd00:8:0:99::/64"
        echo "-A POSTROUTING -p udp -m udp --dport $(($2 + 7)) -j SNPT --src-pfx fd7a:115c:a1e0::/64 --dst-pfx fd7a:115c:a1e0:99::/64"
    fi
    cat <<RULES
COMMIT
*filter
-A FORWARD -p udp -m udp --dport $(($2 + 3)) -m set --match-set traced$1 dst -j DROP
-A FORWARD -p tcp -m tcp --dport $(($2 + 4)) -j SYNPROXY --sack-perm --mss 1460
COMMIT
RULES
}
for family in 4 6; do
    rules $family 7611 | in_bare "ip${family/4/}tables-nft-restore"
    rules $family 7621 | in_bare "ip${family/4/}tables-legacy-restore"
done
case $(uname -r) in
5.10.* | 6.1.*) # CLUSTERIP is gone from 6.3. It drops what conntrack does not know.
    in_bare iptables-legacy -t raw -A PREROUTING -p udp --dport 7630 -j CT --notrack
    in_bare iptables-legacy -A INPUT -d 10.8.0.99 -i in -p udp --dport 7630 -j CLUSTERIP --new --hashmode sourceip \
        --clustermac 01:00:5e:00:00:20 --total-nodes 2 --local-node 1 --hash-init 1
    ;;
esac
sent() { ip netns exec asker /tests/send "$@"; }
# segments ADDRESS HEADER [PORT]...: TCP, by the kernel's own IP. HEADER: the hexadecimal digits behind both ports.
segments() {
    # shellcheck disable=SC2016 # perl's
    ip netns exec asker perl -e '
        my ($address, $header, @ports) = @ARGV;
        my $six = $address =~ /:/;
        socket(my $raw, $six ? 10 : 2, 3, 6) or die;
        my $to = $six ? pack("SnNH32N", 10, 0, 0, "fd000008" . "0" x 23 . "1", 0) : pack("Sna4x8", 2, 0, pack("C4", split /\./, $address));
        for my $port (@ports ? @ports : (0)) {
            for (1, 2) {
                send($raw, $port ? pack("nnH*", 4000 + $_, $port, $header) : pack("H*", $header), 0, $to) or die;
            }
        }' "$@"
}
broken=00000001000000004002020000000000  # of four
with_mss=0000000100000000600202000000000002040200
long_mss=00000001000000006002020000000000020a0200
trace run --dst "$ranges" --record "$out/recording"
{
    for address in 10.8.0.1 fd00:8::1; do
        sent $address 2 7601 7602 7604 7605 7606 7609 7611 7612 7613 7614 7621 7622 7623 7624
        segments $address $broken 7615 7616 7617 7625 7626 7627
        segments $address $with_mss 7607
        [ -n "$old" ] || segments $address $long_mss 7608
    done
    for last in 11 21; do
        segments 10.8.0.$last 1e70 # two bytes
        sent fd00:8:0:$last:ffff:ffff:ffff:ffff 2 76$((last + 8))
        sent fd00:8:0:5::1 2 76$((last + 7))
    done
    sent 10.8.0.99 2 7630
    pause 1
} >"$out/send.log" 2>&1
stop run
in_bare nft -a -s list ruleset >"$out/after.nft"
in_bare nft -j -a list ruleset >"$out/after.nft.json"
for kind in nft legacy; do
    in_bare "iptables-$kind-save" -c >"$out/$kind.save4"
    in_bare "ip6tables-$kind-save" -c >"$out/$kind.save6"
done
