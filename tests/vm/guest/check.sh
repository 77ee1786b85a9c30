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
ip netns exec provider ip route add blackhole 100.100.9.9/32
ip route add unreachable 100.100.8.0/24
save_rules legacy before
asks dns $dns4:53/udp
save_rules legacy after
asks silent 100.100.9.9:53/udp
asks routeless 100.100.8.8:53/udp
asks echo 10.0.0.1/icmp
iptables-legacy -I INPUT 1 -i eth0 -s 100.100.0.0/16 -j ACCEPT
asks open $dns4:53/udp
asks refused $dns4:22/tcp
iptables-legacy -I OUTPUT 1 -d $dns4 -p udp --dport 7901 -j DROP
asks output $dns4:7901/udp
