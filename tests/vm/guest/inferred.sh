# shellcheck shell=bash source-path=SCRIPTDIR
# SPDX-License-Identifier: GPL-2.0-only
# A kernel that lets no program be attached to functions: rules are inferred from their counters. The port tells which
# rule drops a packet; each step of packets is over, and looked at, before the next one begins.
# shellcheck source=lib.sh
. /tests/lib.sh

backend=$1
network none
case $backend in
legacy | iptables-nft)
    kind=${backend#iptables-}
    for family in ip ip6; do
        "${family}tables-$kind-restore" --noflush <<'RULES'
*filter
:deep - [0:0]
-A INPUT -p udp -m udp --dport 7801 -j DROP
-A INPUT -p udp -m udp --dport 7802 -j REJECT
-A INPUT -p udp -m udp --dport 7803 -j deep
-A INPUT -p udp -m udp --dport 7805 -m statistic --mode nth --every 2 --packet 0 -j DROP
-A INPUT -p udp -m udp --dport 7805 -j DROP
-A INPUT -p udp -m udp --dport 7808 -m comment --comment "7809 7810" -j DROP
-A deep -p tcp -j DROP
-A deep -j DROP
COMMIT
RULES
    done
    "iptables-$kind" -P FORWARD DROP
    ;;
nftables)
    nft -f - <<'NFT'
table inet fw {
    chain deep {
        meta l4proto tcp counter drop
        counter drop
    }
    chain input {
        type filter hook input priority 0; policy accept;
        udp dport 7801 counter drop
        udp dport 7802 counter reject
        udp dport 7803 jump deep
        udp dport 7805 numgen inc mod 2 == 0 counter drop
        udp dport 7805 counter drop
        udp dport 7808 counter drop comment "7809 7810"
        udp dport 7806 drop
    }
    chain forward {
        type filter hook forward priority 0; policy drop;
    }
}
NFT
    ;;
esac
forwarding
trace run --dst "$ranges" --record "$out/recording"
# step ADDRESS PACKETS PORT...
step() {
    ip netns exec provider /tests/send "$@"
    pause 1.5
}
{
    for address in "$vm4" "$vm6"; do
        step "$address" 1 7801
        step "$address" 3 7801
        step "$address" 2 7802
        step "$address" 2 7803
        step "$address" 2 7805
        step "$address" 1 7801 7802 7803
    done
    step "$client4" 2 7807
    [ "$backend" != nftables ] || step "$vm4" 1 7806
    # Before the packets of 7808 can have been looked at, the rules are others.
    mark change
    ip netns exec provider /tests/send "$vm4" 1 7808
    case $backend in
    nftables) nft add table ip another ;;
    *) "iptables-$kind" -A INPUT -p udp -m udp --dport 9 -j ACCEPT ;;
    esac
    mark changed
    pause 1.5
} >"$out/send.log" 2>&1
case $backend in
legacy) save_rules legacy after ;;
iptables-nft) save_rules iptables-nft after ;;
nftables) save_rules nftables after ;;
esac
stop run
