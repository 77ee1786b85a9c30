# shellcheck shell=bash source-path=SCRIPTDIR
# SPDX-License-Identifier: GPL-2.0-only
# More processes than CPUs, all of them sending, while packets come in: on a preemptible kernel processes are
# interrupted, preempted and moved to other CPUs in the middle of netfilter. Each packet still has its own rule.
# shellcheck source=lib.sh
. /tests/lib.sh
backend=$1

incoming=$(seq 7901 7904) outgoing=$(seq 7911 7914)
iptables_rules() {
    echo '*filter'
    for port in $incoming; do
        echo "-A INPUT -p udp -m multiport --dports $port -j DROP"
    done
    for port in $outgoing; do
        echo "-A OUTPUT -p udp -m multiport --dports $port -j $([ "$port" = 7914 ] && echo REJECT || echo DROP)"
    done
    echo COMMIT
}
nft_rules() {
    echo 'table inet preempted {'
    echo 'chain input { type filter hook input priority 0; policy accept;'
    for port in $incoming; do
        echo "udp dport $port counter drop"
    done
    echo '}; chain output { type filter hook output priority 0; policy accept;'
    for port in $outgoing; do
        echo "udp dport $port counter $([ "$port" = 7914 ] && echo reject || echo drop)"
    done
    echo '}; }'
}

network none
case $backend in
legacy)
    iptables_rules | iptables-legacy-restore
    iptables_rules | ip6tables-legacy-restore
    ;;
nftables) nft_rules | nft -f - ;;
esac
trace run --dst "$ranges"

busy() { while :; do :; done; }
{
    others=()
    for _ in 1 2 3; do
        busy &
        others+=($!)
    done
    for port in $incoming; do
        ip netns exec provider bash -c "exec 3>/dev/udp/$vm4/$port; exec dd if=/dev/zero bs=32 count=1000000 >&3" &
        others+=($!)
    done
    for port in $outgoing; do
        /tests/send $dns4 1000000 "$port" &
        others+=($!)
        /tests/send $dns6 1000000 "$port" &
        others+=($!)
    done
    pause "${2:-6}"
    kill "${others[@]}"
    wait "${others[@]}"
} >"$out/send.log" 2>&1 || true
pause 1 # what is still in the queues
stop run
save_rules "$backend" after
