# shellcheck shell=bash source-path=SCRIPTDIR
# SPDX-License-Identifier: GPL-2.0-only
# tsdroptrace check, and the counts of packets that pass: a peer whose answers die here, one that never answers, one that
# has no route, one that refuses, and healthy ones.
# shellcheck source=lib.sh
. /tests/lib.sh

# asks NAME TARGET
asks() {
    local name=$1 status=0
    timeout 30 tsdroptrace check "$2" --json-file "$out/$name.json" >"$out/$name.out" 2>"$out/$name.err" || status=$?
    echo "$status" >"$out/$name.exit"
}

network legacy
# Takes what it is sent and says nothing. (AF_INET, SOCK_DGRAM; perl has no modules here.)
ip -netns provider address add 100.100.9.9/32 dev lo
# shellcheck disable=SC2016 # perl's
ip netns exec provider perl -e 'socket(my $s, 2, 2, 17) or die; bind($s, pack("S n C4 x8", 2, 53, 100, 100, 9, 9)) or die; sleep' &
listener=$!
ip route add unreachable 100.100.8.0/24
save_rules legacy before
asks dns $dns4:53/udp
save_rules legacy after
asks silent 100.100.9.9:53/udp
asks routeless 100.100.8.8:53/udp
# Once, on 7.2, the kernel itself refused this packet at the output hook, and no more could be known of it than what was said.
# What is tested is the way of one that gets through.
asks echo 10.0.0.1/icmp
if [ "$(<"$out/echo.exit")" = 10 ] && grep -q 'by a rule that is not known' "$out/echo.json"; then
    for kind in json out err; do mv "$out/echo.$kind" "$out/echo-refused.$kind"; done
    asks echo 10.0.0.1/icmp
fi
iptables-legacy -I INPUT 1 -i eth0 -s 100.100.0.0/16 -j ACCEPT
asks open $dns4:53/udp
asks refused $dns4:22/tcp
iptables-legacy -I OUTPUT 1 -d $dns4 -p udp --dport 7901 -j DROP
asks output $dns4:7901/udp
# A device that hands what it sends to another one, which sends it again.
for netns in '' '-netns provider'; do
    # shellcheck disable=SC2086 # two words
    ip $netns link add link eth0 name eth0.7 type vlan id 7
    # shellcheck disable=SC2086
    ip $netns address add "10.7.0.$([ -n "$netns" ] && echo 1 || echo 2)/24" dev eth0.7
    # shellcheck disable=SC2086
    ip $netns link set eth0.7 up
done
asks vlan 10.7.0.1/icmp
# A router on the way that knows no way on; a neighbour that is not there; a peer of the tailnet, behind tailscaled, which
# nobody here plays; and an address of somebody else's that a route which Tailscale has accepted covers.
ip netns exec provider sysctl -qw net.ipv4.ip_forward=1
ip -netns provider route add unreachable 192.0.2.0/24
asks router 192.0.2.9:4000/udp
asks dead 10.0.0.99/icmp
asks tunnel 100.101.102.104:4000/udp
ip route add 100.103.0.0/16 dev tailscale0 table 52
asks covered 100.103.7.180:4000/udp
trace unsent --dst 100.103.0.0/16
pause 1
stop unsent
kill $listener
