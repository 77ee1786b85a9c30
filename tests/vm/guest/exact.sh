# shellcheck shell=bash source-path=SCRIPTDIR
# SPDX-License-Identifier: GPL-2.0-only
# Rules of every kind that drop, each met by packets of its own: the destination port tells which. What the kernel says
# itself is kept beside what tsdroptrace says: the rules' counters, and the kernel's trace of each packet.
# shellcheck source=lib.sh
. /tests/lib.sh
backend=$1

# iptables_rules IPV6ED_ICMP REJECT_WITH TRACE
iptables_rules() {
    local icmp=$1 request=$2 reject=$3 trace=$4
    cat <<RULES
*raw
${trace:+-A PREROUTING -p udp --dport 7000:7999 -j TRACE
-A PREROUTING -p tcp --dport 7000:7999 -j TRACE
-A PREROUTING -p $icmp $request -j TRACE
-A OUTPUT -p udp --dport 7000:7999 -j TRACE}
-A PREROUTING -p udp --dport 7001 -j DROP
-A OUTPUT -p udp --dport 7203 -j DROP
COMMIT
*mangle
-A PREROUTING -p udp --dport 7004 -j MARK --set-mark 0x1234
-A PREROUTING -p udp --dport 7002 -j DROP
-A INPUT -p udp --dport 7003 -j DROP
-A FORWARD -p udp --dport 7103 -j DROP
-A OUTPUT -p udp --dport 7202 -j DROP
-A POSTROUTING -p udp --dport 7206 -j DROP
COMMIT
*filter
:INPUT DROP
:FORWARD DROP
:one -
:two -
:gone -
:gone-on -
:nothing -
:shared -
:left -
:around -
:fwd -
:out -
-A INPUT -i lo -j ACCEPT
-A INPUT -p $icmp $request -j DROP
-A INPUT -p $icmp -j ACCEPT
-A INPUT -j left
-A INPUT -p udp --dport 7004 -j DROP
-A INPUT -p udp --dport 7005 -j one
-A INPUT -p udp --dport 7006 -g gone
-A INPUT -p udp --dport 7007 -j shared
-A INPUT -p udp --dport 7008 -m comment --comment "the other way" -j shared
-A INPUT -p udp --dport 7009 -j around
-A INPUT -p udp --dport 7009 -j DROP
-A INPUT -p udp --dport 7010 -j REJECT --reject-with $reject
-A INPUT -i eth0 -p udp -m multiport --dports 7011,7911 -m comment --comment "it's \"quoted\" \\\\ text" -j DROP
-A INPUT -p udp --dport 7013 -g nothing
-A INPUT -p tcp --dport 7014 -j DROP
-A INPUT -p udp --dport 7015 -g gone-on
-A INPUT -p tcp --dport 7016 -j REJECT --reject-with tcp-reset
-A INPUT -p udp --dport 7025 -m conntrack --ctstate NEW -j DROP
-A one -p udp --dport 9 -j DROP
-A one -j left
-A one -p udp -j two
-A two -p udp --dport 9 -j DROP
-A two -p udp --sport 9 -j DROP
-A two -p udp -j DROP
-A gone -p udp --dport 9 -j DROP
-A gone -j DROP
-A gone-on -j left
-A gone-on -j two
-A nothing -p udp --dport 9 -j DROP
-A shared -p udp --dport 9 -j DROP
-A shared -j DROP
-A left -p udp --dport 9 -j DROP
-A left -j RETURN
-A left -j DROP
-A around -j left
-A around -j left
-A FORWARD -p $icmp -j ACCEPT
-A FORWARD -p udp --dport 7401 -j ACCEPT
-A FORWARD -j left
-A FORWARD -p udp --dport 7101 -j DROP
-A FORWARD -p udp --dport 7102 -j fwd
-A FORWARD -p udp --dport 7105 -j REJECT --reject-with $reject
-A fwd -i eth0 -o eth1 -j DROP
-A OUTPUT -p udp --dport 7201 -j DROP
-A OUTPUT -p udp --dport 7204 -j out
-A OUTPUT -p udp --dport 7205 -j REJECT --reject-with $reject
-A out -p udp --dport 9 -j DROP
-A out -j DROP
COMMIT
RULES
}

with_iptables() { # legacy|nft [TRACE]
    iptables_rules icmp '--icmp-type echo-request' icmp-port-unreachable "${2:-}" | "iptables-$1-restore"
    iptables_rules icmpv6 '--icmpv6-type echo-request' icmp6-port-unreachable "${2:-}" | "ip6tables-$1-restore"
    ip netns exec client "iptables-$1" -A INPUT -p udp --dport 7401 -j DROP
    ip netns exec client "ip6tables-$1" -A INPUT -p udp --dport 7401 -j DROP
}

with_nft() {
    nft -f - <<'NFT'
table inet tsdt {
    set ports {
        type inet_service
        elements = { 7022, 7922 }
    }
    map verdicts {
        type inet_service : verdict
        elements = { 7026 : drop, 7027 : goto gone }
    }
    set blocked {
        type ipv4_addr
        flags interval
        elements = { 10.0.0.0/8, 100.64.0.0-100.101.0.7, 192.0.2.1 comment "x, 100.100.2.136" }
    }
    set blocked6 {
        type ipv6_addr
        flags interval
        elements = { fd00::/16, fd7a:115c:a1e0::/48 }
    }
    set for-a-while {
        type ifname . inet_service
        flags timeout
        elements = { "eth1" . 7029 timeout 1h, "eth0" . 7029 timeout 2h comment "for a while" }
    }
    chain one {
        udp dport 9 counter drop
        jump left
        meta l4proto udp counter jump two
    }
    chain two {
        udp dport 9 counter drop
        udp sport 9 counter drop
        counter drop
    }
    chain gone {
        udp dport 9 counter drop
        counter drop
    }
    chain gone-on {
        jump left
        jump two
    }
    chain nothing {
        udp dport 9 counter drop
    }
    chain shared {
        udp dport 9 counter drop
        counter drop comment "shared by two"
    }
    chain left {
        udp dport 9 counter drop
        return
        counter drop
    }
    chain around {
        jump left
        jump left
    }
    chain mapped {
        udp dport 9 counter drop
        counter drop
    }
    chain raw-pre {
        type filter hook prerouting priority raw; policy accept;
        udp dport 7001 counter drop
    }
    chain mangle-pre {
        type filter hook prerouting priority mangle; policy accept;
        udp dport 7004 meta mark set 0x1234
        udp dport 7002 counter drop
    }
    chain input {
        type filter hook input priority filter; policy drop;
        iif "lo" accept
        icmp type echo-request counter drop
        icmpv6 type echo-request counter drop
        meta l4proto { icmp, ipv6-icmp } accept
        jump left
        udp dport { 7023, 7024 } accept
        udp dport 7004 counter drop
        udp dport 7005 counter jump one
        udp dport 7006 counter goto gone
        udp dport 7007 counter jump shared
        udp dport 7008 counter jump shared
        udp dport 7009 jump around
        udp dport 7009 counter drop
        udp dport 7010 counter reject
        iifname "eth0" udp dport { 7011, 7911 } counter log prefix "it's \\ odd " drop comment "text"
        udp dport 7013 goto nothing
        tcp dport 7014 counter drop
        udp dport 7015 goto gone-on
        tcp dport 7016 counter reject with tcp reset
        udp dport vmap { 7017 : drop, 7018 : jump mapped, 7019 : goto gone }
        udp dport 7020 counter reject with icmpx admin-prohibited
        udp dport 7021 ip saddr vmap { 100.100.2.136 : drop }
        udp dport 7021 ip6 saddr vmap { fd7a:115c:a1e0::53 : drop }
        udp dport @ports counter drop
        udp dport 7025 ct state new counter drop
        udp dport vmap @verdicts
        udp dport 7028 ip saddr @blocked counter drop
        udp dport 7028 ip6 saddr @blocked6 counter drop
        iifname . udp dport @for-a-while meta l4proto { tcp, udp } counter drop
    }
    chain forward {
        type filter hook forward priority filter; policy drop;
        meta l4proto { icmp, ipv6-icmp } accept
        udp dport 7401 accept
        jump left
        udp dport 7101 counter drop
        udp dport 7102 jump onward
        udp dport 7105 counter reject
    }
    chain onward {
        iifname "eth0" oifname "eth1" counter drop
    }
    chain mangle-forward {
        type filter hook forward priority mangle; policy accept;
        udp dport 7103 counter drop
    }
    chain leaving {
        udp dport 9 counter drop
        counter drop
    }
    chain output {
        type filter hook output priority filter; policy accept;
        udp dport 7201 counter drop
        udp dport 7204 jump leaving
        udp dport 7205 counter reject
    }
    chain mangle-out {
        type route hook output priority mangle; policy accept;
        udp dport 7202 counter drop
    }
    chain raw-out {
        type filter hook output priority raw; policy accept;
        udp dport 7203 counter drop
    }
    chain post {
        type filter hook postrouting priority mangle; policy accept;
        udp dport 7206 counter drop
    }
}
table ip four {
    chain input {
        type filter hook input priority 10; policy accept;
        ip saddr 100.64.0.0/10 udp dport 7023 counter drop
    }
}
table ip6 six {
    chain input {
        type filter hook input priority 10; policy accept;
        ip6 saddr fd7a:115c:a1e0::/48 udp dport 7023 counter drop
    }
}
table netdev early {
    chain ingress {
        type filter hook ingress device "eth0" priority 0; policy accept;
        udp dport 7024 meta nftrace set 1 counter drop
    }
}
NFT
    ip netns exec client nft -f - <<'NFT'
table inet there {
    chain input {
        type filter hook input priority 0; policy accept;
        udp dport 7401 counter drop
    }
}
NFT
}

# Before every other table; the packets' trace goes to "nft monitor trace".
trace_with_nft() {
    nft -f - <<'NFT'
table inet oracle {
    chain pre {
        type filter hook prerouting priority -350; policy accept;
        meta l4proto { tcp, udp } th dport 7000-7999 meta nftrace set 1
        icmp type echo-request meta nftrace set 1
        icmpv6 type echo-request meta nftrace set 1
    }
    chain leaving {
        type filter hook output priority -350; policy accept;
        meta l4proto { tcp, udp } th dport 7000-7999 meta nftrace set 1
    }
}
NFT
    nft -a monitor trace >"$out/trace" 2>&1 &
    monitor=$!
}

network none
forwarding
monitor=''
case $backend in
legacy)
    modprobe nf_log_syslog || true
    with_iptables legacy trace
    dmesg -c >/dev/null
    ;;
iptables-nft)
    with_iptables nft
    trace_with_nft
    ;;
nftables)
    with_nft
    trace_with_nft
    ;;
esac
stat -Lc %i /run/netns/client >"$out/netns.client"
# What passes while the tracer attaches, on both CPUs, must not disturb what it says afterwards.
passing=()
for _ in 1 2; do
    /tests/send 10.0.0.1 1000000 6999 >/dev/null &
    passing+=($!)
done
trace run --dst "$ranges" --record "$out/recording"
kill "${passing[@]}"
wait "${passing[@]}" || true

incoming=$(seq 7001 7013)
incoming+=" 7015 $(seq 7017 7029)"
# shellcheck disable=SC2086  # lists
{
    for address in $vm4 $vm6; do
        ip netns exec provider /tests/send "$address" 2 $incoming
        ip netns exec provider timeout 2 bash -c "exec 3>/dev/tcp/$address/7014" &
        ip netns exec provider timeout 2 bash -c "exec 3>/dev/tcp/$address/7016" &
        ip netns exec provider ping -c 1 -W 1 "$address" &
    done
    for address in $client4 $client6; do
        ip netns exec provider /tests/send "$address" 2 7101 7102 7103 7104 7105 7401
    done
    for address in $dns4 $dns6; do
        /tests/send "$address" 2 7201 7202 7203 7204 7205 7206 >>"$out/senders"
    done
    # shellcheck disable=SC2046 # a list
    wait $(jobs -p | grep -vx "$monitor\|${tracers[run]}") || true
} >"$out/send.log" 2>&1
pause 0.7
stop run
save_rules "$backend" after
if [ -n "$monitor" ]; then
    kill "$monitor" || true
else
    dmesg >"$out/trace"
fi
case $backend in
legacy) kind=legacy ;;
*) kind=nft ;;
esac
ip netns exec client nft -a -s list ruleset >"$out/client.nft" || true
ip netns exec client "iptables-$kind-save" >"$out/client.save4" || true
ip netns exec client "ip6tables-$kind-save" >"$out/client.save6" || true
