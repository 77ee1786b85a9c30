# shellcheck shell=bash source-path=SCRIPTDIR
# SPDX-License-Identifier: GPL-2.0-only
# matches legacy|iptables-nft: packets that a match of a rule drops by itself, which moves no counter: a hashlimit without
# room for another source port, and a header that is cut short. The rules behind it would drop the packet, too, and so
# would the policy.
# shellcheck source=lib.sh
. /tests/lib.sh
kind=${1#iptables-}

rules() { # POLICY
    cat <<RULES
*filter
:INPUT $1 [0:0]
:short - [0:0]
-A INPUT -p udp --dport 7791 -m hashlimit --hashlimit-name room --hashlimit-upto 99/sec --hashlimit-burst 99 --hashlimit-mode srcport --hashlimit-htable-size 1 --hashlimit-htable-max 1 --hashlimit-htable-expire 600000 -j ACCEPT
-A INPUT -p udp --dport 7791 -j DROP
-A INPUT -p tcp -j short
-A short -p tcp -m comment --comment "not this one" -m multiport --dports 7792 -j ACCEPT
-A short -j DROP
-A INPUT -p udp --dport 7793 -j ACCEPT
-A INPUT -p udp --dport 7795 -j DROP
COMMIT
RULES
}
send() { ip netns exec provider /tests/send "$@"; }
# A TCP header of two bytes, by the kernel's own IP.
short() {
    # shellcheck disable=SC2016 # perl's
    ip netns exec provider perl -e 'socket(my $raw, 2, 3, 6) or die; for (1 .. $ARGV[0]) {
        send($raw, "\x1e\x70", 0, pack("Sna4x8", 2, 0, pack("C4", 10, 0, 0, 2))) or die }' "$1"
}
arrived() { grep ^Udp: /proc/net/snmp >"$out/udp.$1"; } # NoPorts: those that no rule has dropped
attached() { # FUNCTION...: a second, and what it takes under emulation
    if [ -n "$old" ]; then
        pause 4
    else
        wait_for 30 /sys/kernel/tracing/enabled_functions "$@"
        pause 1
    fi
}
traced() { [ -n "$old" ] || cat /sys/kernel/tracing/enabled_functions >"$out/attached.$1"; }

network none
rules DROP | "iptables-$kind-restore"
rules ACCEPT | "ip6tables-$kind-restore"
ip netns exec provider ping -q -c 1 -W 5 $vm6 >"$out/ping.log"
trace run --dst "$ranges" --record "$out/recording"
{
    traced before
    arrived before
    send $vm4 1 7793
    send $vm4 1 7791 # takes the room
    if [ "$kind" = legacy ]; then
        send $vm4 1 7791
        attached hashlimit_mt multiport_mt
    else
        send $vm4 1 7794
        attached nft_match_eval nft_match_large_eval
    fi
    mark known
    send $vm4 3 7791
    send $vm4 2 7794
    short 2
    send $vm6 3 7791
    arrived after
    traced after
    pause 1
} >"$out/send.log" 2>&1
stop run
save_rules "$1" after
[ "$kind" = nft ] || exit 0

# Where the kernel tells a rule's drop from a policy's by its place, that is enough, once both have been seen.
trace again --dst "$ranges"
{
    send $vm4 1 7795
    send $vm4 1 7794
    send $vm4 1 7791
    attached nft_match_eval nft_match_large_eval
    mark known.again
    send $vm4 2 7791
    send $vm4 1 7794
    pause 1
} >"$out/again.log" 2>&1
stop again
save_rules "$1" again
