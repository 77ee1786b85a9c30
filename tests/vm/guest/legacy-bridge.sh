# shellcheck shell=bash source-path=SCRIPTDIR
# SPDX-License-Identifier: GPL-2.0-only
# ebtables-legacy: rules that drop at each hook, through user chains too, its targets that drop what they change, policies of
# built-in and of user chains, and the table broute, whose DROP is none. The rules' own counters tell how many each one has
# dropped.
# shellcheck source=lib.sh
. /tests/lib.sh

modprobe -q ebtable_filter || true
lsmod >"$out/modules"
grep -q ebtables "$out/modules" || exit 0 # from 7.2
network none
bridge
while read -r rule; do
    # shellcheck disable=SC2086 # words
    ebtables-legacy $rule
done <<'RULES'
-N outer -P RETURN
-N inner -P RETURN
-N strict -P DROP
-A outer -s 02:00:00:00:00:01 -j ACCEPT
-A outer -p IPv4 -j inner
-A inner -p ARP -j DROP
-A inner -j DROP
-A strict -p ARP -j ACCEPT
-A FORWARD -p IPv4 --ip-proto udp --ip-dport 7821 -j DROP
-A FORWARD -p IPv4 --ip-proto udp --ip-dport 7822 -j outer
-A FORWARD -p IPv4 --ip-proto udp --ip-dport 7826 -j strict
-A INPUT -p IPv4 --ip-proto udp --ip-dport 7823 -j DROP
-A OUTPUT -p IPv4 --ip-proto udp --ip-dport 7824 -j DROP
-A OUTPUT -p IPv4 --ip-proto udp --ip-dport 7825 -j outer
-t nat -N changes -P RETURN
-t nat -A changes -j dnat --to-destination 02:00:00:00:00:02 --dnat-target DROP
-t nat -A PREROUTING -p IPv4 --ip-proto udp --ip-dport 7827 -j DROP
-t nat -A PREROUTING -p ARP --arp-ip-dst 100.100.7.77 -j arpreply --arpreply-mac 02:00:00:00:00:03
-t nat -A PREROUTING -p IPv4 --ip-proto udp --ip-dport 7829 -j mark --mark-set 0x5 --mark-target DROP
-t nat -A PREROUTING -p IPv4 --ip-proto udp --ip-dport 7830 -j changes
-t nat -A PREROUTING -p IPv4 --ip-proto udp --ip-dport 7831 -j redirect --redirect-target DROP
-t nat -A POSTROUTING -p IPv4 --ip-proto udp --ip-dport 7828 -j snat --to-source 02:00:00:00:00:04 --snat-target DROP
-t broute -A BROUTING -p IPv4 --ip-proto udp --ip-dport 7832 -j redirect --redirect-target DROP
RULES
iptables-legacy -A INPUT -p udp --dport 7832 -j DROP
# They know each other before anything asks about them.
ip netns exec left ping -q -c 1 -W 5 100.100.7.2 >"$out/ping.log"
ip netns exec left ping -q -c 1 -W 5 100.100.7.3 >>"$out/ping.log"
trace run --all --record "$out/recording"
{
    for _ in 1 2; do
        ip netns exec left /tests/send 100.100.7.2 2 7821 7822 7826 7827 7828 7829 7830 7831
        ip netns exec left /tests/send 100.100.7.3 2 7823 7832
        /tests/send 100.100.7.1 2 7824 7825
        ip netns exec left /tests/send 100.100.7.77 1 9
        pause 1.5
        # The table is replaced, its counters are added again.
        ebtables-legacy -D FORWARD -p IPv4 --ip-proto udp --ip-dport 7899 -j DROP || true
        ebtables-legacy -A FORWARD -p IPv4 --ip-proto udp --ip-dport 7899 -j DROP
    done
    pause 1.5
    for table in filter nat; do
        ebtables-legacy -t $table -L >"$out/$table.list"
        ebtables-legacy -t $table -L --Lc >"$out/$table.counters"
    done
    ebtables-legacy -P INPUT DROP
    ip netns exec left /tests/send 100.100.7.3 4 7834
    pause 1.5
    ebtables-legacy -D FORWARD 3
    ebtables-legacy -X strict
    ip netns exec left /tests/send 100.100.7.3 4 7833
    pause 1
} >"$out/send.log" 2>&1
stop run
