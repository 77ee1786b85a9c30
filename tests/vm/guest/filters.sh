# shellcheck shell=bash source-path=SCRIPTDIR
# SPDX-License-Identifier: GPL-2.0-only
# One packet of each kind, again and again, under tracers with all kinds of filters.
# shellcheck source=lib.sh
. /tests/lib.sh

network none
forwarding
nft -f - <<'NFT'
table inet filters {
    chain prerouting { # before fragments are put together
        type filter hook prerouting priority -450; policy accept;
        udp dport { 7800, 7803 } accept
        ip saddr { 100.100.2.136, 192.0.2.1, 198.51.100.7 } counter drop
        ip6 saddr { fd7a:115c:a1e0::53, 2001:db8::1 } counter drop
    }
    chain input {
        type filter hook input priority 0; policy drop;
        meta l4proto { icmp, ipv6-icmp } accept
        udp dport 7800 accept
    }
    chain output {
        type filter hook output priority 0; policy accept;
        udp dport 7801 counter drop
    }
}
NFT
iptables-legacy -A FORWARD -p udp --dport 7804 -j DROP
ip netns exec provider nft -f - <<'NFT'
table inet there {
    chain output {
        type filter hook output priority 0; policy accept;
        udp dport 7802 counter drop
    }
}
NFT
ip netns exec provider stat -Lc %i /proc/self/ns/net >"$out/netns.provider"
vm_netns=$(stat -Lc %i /proc/self/ns/net)
mac=$(</sys/class/net/eth0/address)

# A thousand networks of each family; none of them is of interest here.
printf -v many '%s.0/24,' 172.{16..19}.{0..249}
printf -v many6 'fd99:%s::/48,' {1000..1999}

# 5.10 takes long to start one: there, one for each kind of filter (FILTERS_OF_OLD in tests/vm/checks/scenarios.py).
launched=()
with() {
    [[ -z $old || " dst run protos icmp src-to iface netns-name many every " == *" $1 "* ]] || return 0
    launch "$1" --json-file "$out/$1.json" "${@:2}"
    launched+=("$1")
}

# What has been launched sees one packet of each kind.
provoke() {
    local name
    for name in "${launched[@]}"; do started "$name" "$name.json"; done
    {
        ip netns exec provider /tests/frames eth0 "$mac"
        /tests/send "$dns4" 1 7801
        ip netns exec provider /tests/send "$vm4" 1 7802
        ip netns exec client /tests/send "$dns4" 1 7804
    } >>"$out/send.log" 2>&1
    pause 1
    for name in "${launched[@]}"; do kill -TERM "${tracers[$name]}"; done
    for name in "${launched[@]}"; do ended "$name"; done
    launched=()
}

with dst --dst "$ranges"
with from --dst "$ranges" --direction from
with run --dst "$ranges" --port 53 --record "$out/recording"
with ports --dst "$ranges" --port 4000,4001 --port 7801
with udp --dst "$ranges" --proto udp
with protos --dst "$ranges" --proto tcp,sctp,47
with icmp --dst "$ranges" --proto icmp,icmpv6
provoke

with src --dst "$ranges" --src "$vm4" --src "$vm6"
with src-to --dst "$ranges" --src "$vm4,$vm6" --direction to
with iface --dst "$ranges" --iface eth1 --iface nosuchdevice
with netns-name --dst "$ranges" --netns provider
with netns-path --dst "$ranges" --netns /run/netns/client --netns /run/netns/provider
with netns-inode --dst "$ranges" --netns "$vm_netns"
of_reason=(--reason NETFILTER_DROP)
if [ -n "$old" ]; then # gives no reasons
    of_reason=()
    status=0
    tsdroptrace --dst "$ranges" --reason NETFILTER_DROP >"$out/reason.out" 2>"$out/reason.err" || status=$?
    echo "$status" >"$out/reason.exit"
else
    with reason --dst "$ranges" --reason NETFILTER_DROP,SKB_DROP_REASON_NO_SOCKET
    with reason-other --dst "$ranges" --reason otherhost --reason UNHANDLED_PROTO
fi
provoke

with rules --dst "$ranges" --rules-only
with all --all --port 4009 --proto udp
with all-src --all --src "$vm4" --rules-only
with many --dst "$many$ranges" --src "$many6$vm4,$vm6" --port 53
with none --dst "${many6%,}" --port 53
with every --dst "$ranges" --src "$vm4" --port 53,7801 --proto udp --iface eth0 --netns "$vm_netns" \
    "${of_reason[@]}" --rules-only
provoke
nft list table inet filters >"$out/after.nft"
