# shellcheck shell=bash source-path=SCRIPTDIR
# SPDX-License-Identifier: GPL-2.0-only
# More packets, faster than they can be shown: counts stay exact, and what was not shown is said. Meanwhile rulesets
# change.
# shellcheck source=lib.sh
. /tests/lib.sh

network none
iptables-legacy -A INPUT -p udp --dport 7801 -j DROP
nft -f - <<'NFT'
table inet flooded {
    chain input {
        type filter hook input priority 10; policy accept;
        udp dport 7802 counter drop
        udp dport 7803 counter drop
    }
}
NFT
iptables-legacy -A INPUT -p udp --dport 7804 -j DROP
trace run --dst "$ranges"

flood() { # PORT PACKETS
    ip netns exec provider bash -c "exec 3>/dev/udp/$vm4/$1; dd if=/dev/zero bs=32 count=$2 >&3"
}
{
    mark flood
    flood 7801 20000
    mark flood.legacy
    flood 7802 10000
    mark flood.nft
    pause 1
    # Fewer, with the rulesets being changed meanwhile.
    flood 7803 3000 &
    for i in 1 2 3; do
        nft insert rule inet flooded input udp dport 9$i counter drop
    done
    wait $!
    flood 7804 3000 &
    for i in 1 2 3; do
        iptables-legacy -I INPUT 1 -p udp --dport 9$i -j DROP
    done
    wait $!
} >"$out/send.log" 2>&1
# As long as it takes to write down what it has.
size=-1
while [ "$size" != "$(stat -c %s "$out/run.json")" ]; do
    size=$(stat -c %s "$out/run.json")
    pause 0.5
done
stop run
save_rules legacy legacy
save_rules nftables nft
