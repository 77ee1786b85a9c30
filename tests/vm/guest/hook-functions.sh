# shellcheck shell=bash source-path=SCRIPTDIR
# SPDX-License-Identifier: GPL-2.0-only
# Drops by functions at netfilter's hooks that have no rules: conntrack, whose table is full or which two connections
# would share an entry of, IPVS without a server, and a BPF program. The first packet of each shows that there is such a
# function; which one it is is known of the others. Conntrack's own counters tell how many there were.
# shellcheck source=lib.sh
. /tests/lib.sh

network none
forwarding
nft -f - <<'NFT'
table ip nat {
    chain post {
        type nat hook postrouting priority srcnat; policy accept;
        udp dport 7751 snat to 10.1.0.1:4000
    }
}
table inet states {
    chain input {
        type filter hook input priority 0; policy accept;
        ct state established counter accept
    }
}
NFT
traced() { cat /sys/kernel/tracing/enabled_functions >"$out/attached.$1"; }
# drop and insert_failed, over all CPUs
counters() {
    local fields names drop=0 failed=0 i
    {
        read -ra names
        while read -ra fields; do
            for i in "${!names[@]}"; do
                case ${names[i]} in
                drop) drop=$((drop + 16#${fields[i]})) ;;
                insert_failed) failed=$((failed + 16#${fields[i]})) ;;
                esac
            done
        done
    } </proc/net/stat/nf_conntrack
    echo "$1 $drop $failed" >>"$out/counters"
}

# Whoever has to ask for an address first may find conntrack's table with room again.
ip netns exec provider ping -q -c 1 -W 5 $vm4 >"$out/ping.log"
ip netns exec provider ping -q -c 1 -W 5 $vm6 >>"$out/ping.log"
# Where the table is full, conntrack makes room if another connection is near: only few are to be there, far apart.
modprobe nf_conntrack_netlink
vm_helper forget
echo 262144 >/sys/module/nf_conntrack/parameters/hashsize
trace run --all --record "$out/recording"
traced before
counters start
full() { # PACKETS: no room for more connections
    sysctl -qw net.netfilter.nf_conntrack_max=1
    ip netns exec provider /tests/send $vm4 "$1" 7752
    ip netns exec provider /tests/send $vm6 "$1" 7752
    sysctl -qw net.netfilter.nf_conntrack_max=65536
}
{
    modprobe -a ip_vs ip_vs_rr
    vm_helper ipvs $vm4 7754 # and nobody to send to
    others=(ipv4_confirm)
    if [[ $(uname -r) != 6.1.* && -z $old ]]; then # from 6.4
        others=(nf_confirm nf_hook_run_bpf)
        ip netns exec client vm_helper bpf 2 1 0 >"$out/bpf" &
        until [ -s "$out/bpf" ]; do pause 0.1; done
    fi
    # Each datagram has a source port of its own: all but the first would become the same connection.
    /tests/send $client4 2 7751
    ip netns exec provider /tests/send $client4 1 7753
    ip netns exec provider /tests/send $vm4 1 7754
    full 1
    # Each of them is traced within a second and what it takes to attach, under emulation longer.
    [ -n "$old" ] || wait_for 20 /sys/kernel/tracing/enabled_functions ipv4_conntrack_in ipv6_conntrack_in ip_vs_in_hook "${others[@]}"
    pause 0.2
    mark known
    /tests/send $client4 3 7751
    ip netns exec provider /tests/send $client4 2 7753
    ip netns exec provider /tests/send $vm4 2 7754
    full 3
    counters end
} >"$out/send.log" 2>&1
pause 0.5
traced after
stop run
