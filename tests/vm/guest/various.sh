# shellcheck shell=bash source-path=SCRIPTDIR
# SPDX-License-Identifier: GPL-2.0-only
# Under one tracer: drops without a rule, noise, and rules that change between the packets that they drop.
# shellcheck source=lib.sh
. /tests/lib.sh

network none
forwarding
iptables-legacy -A INPUT -p udp --dport 7501 -j DROP
iptables-nft -A INPUT -p udp --dport 7502 -j DROP
nft -f - <<'NFT'
table inet changing {
    chain input {
        type filter hook input priority 10; policy accept;
        udp dport 7503 counter drop
    }
}
NFT
trace run --dst "$ranges"

{
    # Nobody listens; nobody knows the way; the way back is another one. And what is noise: an answered ping.
    ip netns exec provider /tests/send "$vm4" 2 7511
    ip netns exec provider /tests/send "$vm6" 2 7511
    ip route add unreachable 10.9.0.0/16
    ip netns exec provider /tests/send 10.9.1.1 2 7512
    sysctl -qw net.ipv4.conf.eth0.rp_filter=1
    ip route add 100.100.2.136/32 dev eth1
    ip netns exec provider /tests/send "$vm4" 2 7513
    ip route del 100.100.2.136/32 dev eth1
    sysctl -qw net.ipv4.conf.eth0.rp_filter=0
    ping -c 2 -i 0.2 -W 2 "$dns4"

    ip netns exec provider /tests/send "$vm4" 2 7501 7502 7503
    pause 0.5
    mark changed
    iptables-legacy -I INPUT 1 -s "$dns4" -p udp --dport 7501 -m comment --comment second -j DROP
    iptables-nft -I INPUT 1 -s "$dns4" -p udp --dport 7502 -m comment --comment second -j DROP
    nft insert rule inet changing input udp dport 7503 counter drop comment '"second"'
    ip netns exec provider /tests/send "$vm4" 1 7501 7502 7503
    pause 2
    mark settled
    ip netns exec provider /tests/send "$vm4" 2 7501 7502 7503
    save_rules legacy second-legacy
    save_rules iptables-nft second-nft

    # The same rule in another place.
    iptables-legacy -I INPUT 1 -p udp --dport 9 -j ACCEPT
    iptables-nft -I INPUT 1 -p udp --dport 9 -j ACCEPT
    nft insert rule inet changing input udp dport 9 accept
    pause 2
    mark moved
    ip netns exec provider /tests/send "$vm4" 2 7501 7502 7503
    save_rules legacy third-legacy
    save_rules iptables-nft third-nft
} >"$out/send.log" 2>&1
pause 1
stop run
