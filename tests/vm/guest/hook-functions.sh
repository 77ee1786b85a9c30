# shellcheck shell=bash source-path=SCRIPTDIR
# SPDX-License-Identifier: GPL-2.0-only
# Drops by functions at netfilter's hooks that have no rules: conntrack, whose table is full or which two connections
# would share an entry of, IPVS without a server, and a BPF program. The first packet of each shows that there is such a
# function; which one it is is known of the others. Conntrack's own counters tell how many there were.
# shellcheck source=lib.sh
. /tests/lib.sh

network none
forwarding
bridge
nft -f - <<'NFT'
table ip nat {
    chain post {
        type nat hook postrouting priority srcnat; policy accept;
        udp dport 7751 snat to 10.1.0.1:4000
    }
    chain out {
        type nat hook output priority -100; policy accept;
        udp dport 7755 dnat to 10.66.0.1
    }
}
table ip6 nat {
    chain out {
        type nat hook output priority -100; policy accept;
        udp dport 7755 dnat to fd00:66::1
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

# Nobody is to be met there: nat, which asks for the route again, drops what it has sent that way.
ip route add unreachable 10.66.0.0/16
ip route add unreachable fd00:66::/32
iptables-legacy -t nat -A POSTROUTING -p udp --dport 7756 -j MASQUERADE --to-ports 4001-4001

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
bad_headers() { # PACKETS: IPv4 with a wrong checksum, for br_netfilter to look at
    # shellcheck disable=SC2016 # perl's
    ip netns exec left perl -e '
        open(my $file, "<", "/sys/class/net/eth0/ifindex") or die;
        my $index = <$file>;
        socket(my $socket, 17, 3, 0) or die;
        my $frame = "\xff" x 6 . pack("H12n", "020000000701", 0x0800) .
            pack("CCnnnCCna4a4", 0x45, 0, 36, 7, 0, 9, 17, 1, pack("C4", 100, 100, 7, 1), pack("C4", 100, 100, 7, 2)) .
            pack("nnnn", 4000, 7757, 16, 0) . "datagram";
        for (1 .. $ARGV[0]) {
            defined send($socket, $frame, 0, pack("SnlSCCa8", 17, 0, $index, 0, 0, 6, "")) or die;
        }' "$1"
}
{
    modprobe -a ip_vs ip_vs_rr
    vm_helper ipvs $vm4 7754 # and nobody to send to
    modprobe br_netfilter
    others=(ipv4_confirm)
    if [[ $(uname -r) != 6.1.* && -z $old ]]; then # from 6.4
        others=(nf_confirm nf_hook_run_bpf)
        ip netns exec client vm_helper bpf 2 1 0 >"$out/bpf" &
        until [ -s "$out/bpf" ]; do pause 0.1; done
    fi
    # Each datagram has a source port of its own: all but the first would become the same connection.
    /tests/send $client4 2 7751 7756
    ip netns exec provider /tests/send $client4 1 7753
    ip netns exec provider /tests/send $vm4 1 7754
    bad_headers 1
    full 1
    # Last: IPVS is among those that may have dropped these.
    /tests/send $client4 1 7755
    /tests/send $client6 1 7755
    # Each of them is traced within a second and what it takes to attach, under emulation longer.
    [ -n "$old" ] || wait_for 20 /sys/kernel/tracing/enabled_functions ipv4_conntrack_in ipv6_conntrack_in ip_vs_in_hook nf_nat_ipv4_local_fn \
        nf_nat_ipv6_local_fn "${others[@]}"
    pause 0.2
    mark known
    /tests/send $client4 3 7751 7756
    /tests/send $client4 2 7755
    /tests/send $client6 2 7755
    ip netns exec provider /tests/send $client4 2 7753
    ip netns exec provider /tests/send $vm4 2 7754
    bad_headers 3
    full 3
    counters end
} >"$out/send.log" 2>&1
pause 0.5
traced after
stop run
rmmod br_netfilter >"$out/rmmod" 2>&1 || true
lsmod >"$out/modules.end"
