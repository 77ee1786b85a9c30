# shellcheck shell=bash source-path=SCRIPTDIR
# SPDX-License-Identifier: GPL-2.0-only
# Ways through legacy tables that are not straight: a match that drops by itself, TEE that sends a copy through the
# tables in the middle of them, chains that hold nothing, and more rules than are watched.
# shellcheck source=lib.sh
. /tests/lib.sh

iptables_rules() {
    cat <<'RULES'
*mangle
:outer -
:inner -
:copied -
-A PREROUTING -p udp --dport 7789 -j inner
-A PREROUTING -p udp --dport 7781 -j outer
-A outer -p udp --dport 9 -j inner
-A outer -j inner
RULES
    echo "-A inner -j TEE --gateway $1"
    cat <<'RULES'
-A inner -j DROP
-A OUTPUT -p udp --dport 7789 -j copied
-A OUTPUT -p udp --dport 7781 -j copied
-A copied -j DROP
COMMIT
*filter
:empty -
:emptier -
RULES
    for i in {0..14}; do echo ":d$i -"; done
    cat <<'RULES'
-A INPUT -p udp --dport 7782 -j empty
-A INPUT -p udp --dport 7782 -g emptier
-A INPUT -p udp --dport 7783 -m statistic --mode nth --every 2 --packet 0 -j DROP
-A INPUT -p udp --dport 7783 -j DROP
-A INPUT -p udp --dport 7785 -j d0
-A INPUT -p udp --dport 7784 -m hashlimit --hashlimit-name small --hashlimit-upto 9/sec --hashlimit-mode srcport --hashlimit-htable-size 1 --hashlimit-htable-max 1 -j DROP
RULES
    # A ladder of chains.
    for i in {0..13}; do
        echo "-A d$i -p udp --dport 9 -j DROP"
        echo "-A d$i -j d$((i + 1))"
    done
    echo '-A d14 -j DROP'
    echo COMMIT
}
# many RULES: every other one drops
many() {
    awk -v count="$1" 'BEGIN {
        print "*raw"
        for (i = 0; i < count; i++)
            print "-A PREROUTING -p udp --dport " 20000 + i " -j " (i % 2 ? "ACCEPT" : "DROP")
        print "COMMIT"
    }'
}

network none
forwarding
iptables_rules 10.1.0.2 | iptables-legacy-restore
iptables_rules fd00:b::2 | ip6tables-legacy-restore
trace run --dst "$ranges" --record "$out/recording"
{
    for address in $vm4 $vm6; do
        ip netns exec provider /tests/send "$address" 2 7781 7782 7783 7785
    done
    # The match remembers one source port, which its rule drops; what it has no room for it drops itself.
    ip netns exec provider /tests/send "$vm4" 3 7784
    save_rules legacy after
    many 10000 | iptables-legacy-restore
    many 17000 | ip6tables-legacy-restore
    pause 1.2
    ip netns exec provider /tests/send "$vm4" 2 20000 25000 29998
    ip netns exec provider /tests/send "$vm6" 2 20000 25000 36000 36998
} >"$out/send.log" 2>&1 || true
pause 1
stop run
save_rules legacy many
