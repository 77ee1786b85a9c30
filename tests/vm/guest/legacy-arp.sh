# shellcheck shell=bash source-path=SCRIPTDIR
# SPDX-License-Identifier: GPL-2.0-only
# The legacy table of ARP: rules that drop at each of its hooks, through user chains too, its target that changes what it
# drops, its policy, and a request that is dropped in the middle of an IP table, while the rules change. The rules' own
# counters tell how many each one has dropped.
# shellcheck source=lib.sh
. /tests/lib.sh

network none
# One request for each address, not three.
for netns in '' 'ip netns exec provider'; do
    $netns sysctl -qw net.ipv4.neigh.eth0.mcast_solicit=1
done
# Both know each other, so that no request of theirs is met by what is below.
ip netns exec provider ping -q -c 1 -W 5 $vm4 >"$out/ping.log"

while read -r rule; do
    # shellcheck disable=SC2086 # words
    arptables-legacy $rule
done <<'RULES'
-N outer
-N inner
-A outer -d 10.0.0.1 -j ACCEPT
-A outer -j inner
-A inner -s 10.0.0.9 -j DROP
-A inner -j DROP
-A INPUT -d 10.0.0.81 -j DROP
-A INPUT -d 10.0.0.82 -j outer
-A INPUT -d 10.0.0.83 -j mangle --mangle-ip-s 10.0.0.99 --mangle-target DROP
-A INPUT -d 10.0.0.84 -j mangle --mangle-ip-s 10.0.0.98 --mangle-target CONTINUE
-A INPUT -s 10.0.0.98 -j DROP
-A OUTPUT -d 10.0.0.85 -j DROP
-A OUTPUT -d 10.0.0.86 -j outer
-A INPUT -d 10.0.0.2 -j ACCEPT
-P INPUT DROP
RULES
# To nobody: who copies there must ask for the address first.
iptables-legacy -t mangle -A PREROUTING -p udp --dport 7811 -j TEE --gateway 10.0.0.86
trace run --all --record "$out/recording"
{
    for round in 1 2 3; do
        for last in 81 82 83 84 87; do
            ip netns exec provider /tests/send 10.0.0.$last 1 9
        done
        /tests/send 10.0.0.85 1 9
        /tests/send 10.0.0.86 1 9
        pause 1.2
        # The table is replaced, its counters are added again; the numbers of the rules before stay.
        arptables-legacy -A INPUT -d 10.0.1.$round -j DROP
        arptables-legacy -A OUTPUT -d 10.0.1.$round -j DROP
    done
    ip neigh flush dev eth0 nud failed
    ip netns exec provider /tests/send $vm4 1 7811
    pause 0.5
} >"$out/send.log" 2>&1 || true
stop run
arptables-legacy -L -n >"$out/after.list"
arptables-legacy -L -n -v -x >"$out/after.counters"
