# shellcheck shell=bash source-path=SCRIPTDIR
# SPDX-License-Identifier: GPL-2.0-only
# Packets that rules hand to programs in userspace, and that die: nobody listens, the queue is full, the program says
# so, or ends. And those that the program lets pass, and that a later table drops: one that came in, and one of this machine's.
# shellcheck source=lib.sh
. /tests/lib.sh

network none
iptables_rules() {
    cat <<'RULES'
*filter
:queued -
-A INPUT -p udp --dport 7771 -j queued
-A INPUT -p udp --dport 7772 -j NFQUEUE --queue-num 72
-A INPUT -p udp --dport 7773 -j NFQUEUE --queue-num 73
-A INPUT -p udp --dport 7777 -j DROP
-A queued -p udp --dport 9 -j DROP
-A queued -j NFQUEUE --queue-num 71
COMMIT
RULES
}
iptables_rules | iptables-legacy-restore
iptables_rules | ip6tables-legacy-restore
iptables-nft -A INPUT -p udp --dport 7776 -j NFQUEUE --queue-num 76
nft -f - <<'NFT'
table inet q {
    chain queued {
        udp dport 9 counter drop
        counter queue to 74
    }
    chain input {
        type filter hook input priority -10; policy accept;
        udp dport 7774 jump queued
        udp dport 7775 counter queue to 75
        udp dport 7777 counter queue to 77
        udp dport 7778 counter queue flags bypass to 78
    }
    chain output {
        type filter hook output priority 0; policy accept;
        udp dport 7779 counter queue to 77
    }
    chain postrouting {
        type filter hook postrouting priority 0; policy accept;
        udp dport 7779 counter drop
    }
}
NFT
lsmod >"$out/modules.before"
trace run --dst "$ranges" --record "$out/recording"
declare -A listeners
listen() { # NUMBER MODE MAXLEN
    vm_helper queue "$@" >"$out/listener.$1" &
    listeners[$1]=$!
    echo "$1 $!" >>"$out/listeners"
    until [ -s "$out/listener.$1" ]; do pause 0.1; done
}
{
    # Before any program has ever listened.
    ip netns exec provider /tests/send $vm4 2 7771 7774 7776 7778
    ip netns exec provider /tests/send $vm6 2 7771 7774
    mark listeners
    modprobe nfnetlink_queue
    listen 72 drop 100
    listen 73 hold 1
    listen 75 drop 100
    listen 77 accept 100
    # The module is noticed within a second; under emulation it may take seconds to attach to it.
    if [ -n "$old" ]; then
        wait_for 20 /sys/kernel/debug/kprobes/list "nfqnl_recv_verdict+"
    else
        wait_for 20 /sys/kernel/tracing/enabled_functions nfqnl_enqueue_packet "nfqnl_recv_verdict [nf" nfqnl_recv_verdict_batch
    fi
    pause 1
    mark listening
    ip netns exec provider /tests/send $vm4 2 7771 7772 7774 7775 7776 7777 7778
    ip netns exec provider /tests/send $vm6 2 7772 7775
    ip netns exec provider /tests/send $vm4 3 7773
    /tests/send $dns4 2 7779
    cat /proc/net/netfilter/nfnetlink_queue >"$out/nfnetlink_queue"
    pause 0.3
    mark closing
    kill "${listeners[73]}"
    pause 0.5
} >"$out/send.log" 2>&1
pause 0.5
stop run
save_rules legacy legacy
save_rules iptables-nft nft
kill "${listeners[@]}" || true
