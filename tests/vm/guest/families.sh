# shellcheck shell=bash source-path=SCRIPTDIR
# SPDX-License-Identifier: GPL-2.0-only
# nf_tables beyond the common roads: arp, bridge and netdev tables, expressions that drop after they have looked, the
# deepest way that the kernel allows, rules of ebtables-nft and arptables-nft. Each rule has packets of its own; the
# kernel's trace tells which rule dropped which.
# shellcheck source=lib.sh
. /tests/lib.sh

network none
forwarding
bridge

deep() {
    local i
    for ((i = 14; i >= 0; i--)); do
        echo "chain c$i {"
        [ $i = 14 ] && echo 'counter drop' || echo "udp dport 9 counter drop; jump c$((i + 1))"
        echo '}'
    done
}
egress=''
[ -n "$old" ] || egress='chain egress { # from 5.16
        type filter hook egress device "eth0" priority 0; policy accept;
        udp dport 7713 counter drop
    }
    chain leaving {
        type filter hook egress device "eth0" priority 20; policy drop;
        udp dport != 7717 accept
        meta l4proto != udp accept
        meta protocol != ip accept
    }
    chain onward { # empty, until there is a flow on the fast path
        type filter hook egress device "eth1" priority 0; policy accept;
    }'
nft -f - <<NFT
table inet tracer {
    chain pre { type filter hook prerouting priority -450; meta l4proto { tcp, udp } th dport 7700-7799 meta nftrace set 1; }
    chain out { type filter hook output priority -450; meta l4proto { tcp, udp } th dport 7700-7799 meta nftrace set 1; }
}
table bridge tracer {
    chain pre { type filter hook prerouting priority -450; meta nftrace set 1; }
    chain out { type filter hook output priority -450; meta nftrace set 1; }
}
table arp tracer {
    chain in { type filter hook input priority -450; meta nftrace set 1; }
    chain out { type filter hook output priority -450; meta nftrace set 1; }
}
table netdev early {
    chain ingress {
        type filter hook ingress device "eth0" priority 0; policy accept;
        udp dport 7700-7799 meta nftrace set 1
        udp dport 7711 counter drop
        udp dport 7715 fwd ip to 10.1.0.2 device "eth1"
    }
    chain late {
        type filter hook ingress device "eth0" priority 20; policy drop;
        udp dport != 7716 accept
        meta l4proto != udp accept
        meta protocol != ip accept
    }
    $egress
}
table inet early {
    chain ingress {
        type filter hook ingress device "eth0" priority 10; policy accept;
        udp dport 7714 counter drop
    }
}
table arp a {
    chain in {
        type filter hook input priority 0; policy accept;
        arp daddr ip 10.0.0.77 counter drop
    }
    chain strict {
        type filter hook input priority 10; policy drop;
        arp daddr ip != 10.0.0.79 accept
    }
    chain out {
        type filter hook output priority 0; policy accept;
        arp daddr ip 10.0.0.88 counter drop
    }
}
table bridge b {
    chain pre {
        type filter hook prerouting priority 0; policy accept;
        udp dport 7701 counter drop
        udp dport 7702 counter reject
    }
    chain in {
        type filter hook input priority 0; policy accept;
        udp dport 7703 counter drop
        udp dport 7704 counter reject with icmp admin-prohibited
    }
    chain forward {
        type filter hook forward priority 0; policy accept;
        ether type ip udp dport 7705 counter drop
    }
    chain out {
        type filter hook output priority 0; policy accept;
        udp dport 7706 counter drop
    }
    chain post {
        type filter hook postrouting priority 0; policy accept;
        udp dport 7707 counter drop
    }
    chain last {
        type filter hook forward priority 20; policy drop;
        udp dport != 7708 accept
        meta protocol != ip accept
    }
}
table inet asleep {
    flags dormant
    chain input {
        type filter hook input priority -200; policy accept;
        udp dport { 7738, 7745 } counter drop
    }
}
table inet awake {
    synproxy thin {
        mss 1460
        wscale 7
        timestamp sack-perm
    }
    ct expectation expected {
        protocol udp
        dport 9999
        timeout 1h
        size 1
        l3proto ip
    }
    $(deep)
    chain input {
        type filter hook input priority 0; policy accept;
        udp dport 7731 jump c0
        udp dport 7732 jump {
            udp dport 9 counter drop
            counter drop
        }
        udp dport 7733 limit rate over 1/hour burst 1 packets counter drop
        udp dport 7734 quota over 10 bytes counter drop
        udp dport 7735 ct count over 1 counter drop
        udp dport 7737 ct expectation set "expected"
        udp dport 7738 counter drop
    }
    chain later {
        type filter hook input priority 20; policy accept;
        udp dport 7739 counter drop
    }
    chain latest {
        type filter hook input priority 21; policy drop;
        udp dport != 7740 accept
        meta l4proto != udp accept
    }
    chain untracked {
        type filter hook prerouting priority -300; policy accept;
        tcp dport { 7736, 7761, 7762 } notrack
    }
    chain proxy {
        type filter hook input priority 30; policy accept;
        tcp dport 7736 synproxy mss 1460 wscale 7 timestamp sack-perm
        tcp dport 7762 synproxy name thin
    }
    flowtable fast {
        hook ingress priority 5
        devices = { eth0, eth1 }
    }
    chain forward {
        type filter hook forward priority 0; policy accept;
        udp dport 7741 counter drop
        udp dport 7744 counter
        meta l4proto udp flow add @fast
        udp dport 7742 counter drop
        ip saddr . udp dport vmap { 100.100.2.136 . 7743 : drop }
    }
}
NFT
ip netns exec provider nft -f - <<'NFT'
table ip altered {
    chain out {
        type filter hook output priority 0; policy accept;
        tcp dport { 7736, 7761, 7762 } tcp flags set ack
        udp dport 7715 ip ttl set 1
    }
}
NFT
arptables-nft -A INPUT -d 10.0.0.78 -j DROP
ebtables-nft -A FORWARD -p IPv4 --ip-proto udp --ip-dport 7721 -j DROP
ebtables-nft -t nat -A PREROUTING -p ARP --arp-ip-dst 100.100.7.77 -j arpreply --arpreply-mac 10:11:12:13:14:15
iptables-nft -A INPUT -p tcp --dport 7761 -j SYNPROXY --mss 1460 --wscale 7 --timestamp --sack-perm
iptables-nft -A INPUT -p udp --dport 7722 -m recent --name tsdt --set -j DROP
{
    echo '*filter'
    for i in {0..14}; do echo ":d$i -"; done
    echo '-A INPUT -p udp --dport 7723 -j d0'
    for i in {0..13}; do
        echo "-A d$i -p udp --dport 9 -j DROP"
        echo "-A d$i -j d$((i + 1))"
    done
    echo '-A d14 -j DROP'
    echo COMMIT
} | iptables-nft-restore --noflush
nft -a monitor trace >"$out/trace" 2>&1 &
monitor=$!

# A flow that has been answered passes by the chains of forward. What it meets is the egress of the other device.
talk() { # NETNS PORT ADDRESS PORT begin|answer PACKETS
    # shellcheck disable=SC2016 # perl's
    ip netns exec "$1" perl -e '
        my ($port, $address, $to, $role, $packets) = @ARGV;
        $SIG{ALRM} = sub { die "no answer" };
        alarm 10;
        socket(my $socket, 2, 2, 17) or die "socket: $!";
        bind($socket, pack("Sna4x8", 2, $port, "\0" x 4)) or die "bind: $!";
        my $peer = pack("Sna4x8", 2, $to, pack("C4", split /\./, $address));
        for (1 .. $packets) {
            recv($socket, my $datagram, 64, 0) if $role eq "answer";
            defined send($socket, "tsdroptrace", 0, $peer) or die "send: $!";
            recv($socket, my $answer, 64, 0) if $role eq "begin";
        }
        sleep 1 if $role eq "answer"; # or the last would be refused' "${@:2}"
}
fast_path() {
    talk client 7744 $dns4 5000 answer 2 &
    pause 0.5
    talk provider 5000 $client4 7744 begin 2
    nft list table inet awake >"$out/forward.before"
    nft add rule netdev early onward udp dport 7744 counter drop
    talk provider 5000 $client4 7744 send 2
}

# One request for each address, not three.
for netns in provider left; do
    ip netns exec $netns sysctl -qw net.ipv4.neigh.eth0.mcast_solicit=1
done
sysctl -qw net.ipv4.neigh.eth0.mcast_solicit=1

launch ranged --dst 10.0.0.77 --json-file "$out/ranged.json"
trace run --all --record "$out/recording"
started ranged ranged.json
{
    ip netns exec left /tests/send 100.100.7.2 2 7701 7702 7705 7707 7708 7721
    ip netns exec left /tests/send 100.100.7.3 2 7703 7704
    /tests/send 100.100.7.1 2 7706
    ip netns exec provider /tests/send $vm4 2 7711 7714 7715 7716 7731 7732 7733 7734 7735 7737 7738 7739 7740 7722 7723 7745
    /tests/send $dns4 2 7713 7717
    ip netns exec provider /tests/send $client4 2 7741 7742 7743
    for port in 7736 7761 7762; do
        ip netns exec provider timeout 2 bash -c "exec 3>/dev/tcp/$vm4/$port" &
    done
    # What asks for an address that nobody has is ARP.
    ip netns exec provider /tests/send 10.0.0.77 1 9
    ip netns exec provider /tests/send 10.0.0.78 1 9
    ip netns exec provider /tests/send 10.0.0.79 1 9
    /tests/send 10.0.0.88 1 9
    ip netns exec left /tests/send 100.100.7.77 1 9
    # shellcheck disable=SC2046 # a list
    wait $(jobs -p | grep -vx "$monitor\|${tracers[run]}\|${tracers[ranged]}") || true
    # The table wakes up, and sleeps again.
    nft add table inet asleep
    ip netns exec provider /tests/send $vm4 2 7745
    nft add table inet asleep '{ flags dormant; }'
    ip netns exec provider /tests/send $vm4 2 7745
    [ -n "$old" ] || fast_path
} >"$out/send.log" 2>&1
pause 0.7
stop run
stop ranged
kill "$monitor" || true
save_rules iptables-nft after
nft list table inet awake >"$out/forward.after"
