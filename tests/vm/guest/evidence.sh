# shellcheck shell=bash source-path=SCRIPTDIR
# SPDX-License-Identifier: GPL-2.0-only
# What the machine itself says about a drop: routes of every kind to the far end, who waits for the packet, sysctls. The
# oracle is iproute2, sysctl, and the pids of the programs that are started here.
# shellcheck source=lib.sh
. /tests/lib.sh

network legacy ip6-drop
forwarding
sysctl -qw net.ipv4.ip_forward=0
peer=100.101.102.104
iptables-legacy -A OUTPUT -d $peer -p udp --dport 7901 -j DROP
peer6=fd7a:115c:a1e0::104
ip -6 route add $peer6/128 dev tailscale0 table 52
ip -6 rule add pref 5270 lookup 52
ip6tables-legacy -A OUTPUT -d $peer6 -p udp --dport 7901 -j DROP
ip rule add pref 5260 to 100.100.9.9 unreachable
ip -batch - <<'IP'
route add unreachable 100.100.9.10/32
route add prohibit 100.100.9.11/32
route add blackhole 100.100.9.12/32
IP
# What the client behind the VM sends has a way of its own, and a VRF has its own routes to the same addresses.
iptables-legacy -A FORWARD -p udp --dport 7921 -j DROP
ip link add vrf0 type vrf table 88
ip -batch - <<'IP'
rule add pref 5255 from 10.1.0.2 lookup 77
route add default via 10.0.0.1 dev eth0 table 77
link add eth9 type veth peer name eth9 netns client
link set eth9 master vrf0
address add 10.2.0.1/24 dev eth9
link set vrf0 up
link set eth9 up
IP
ip -netns client -batch - <<'IP'
address add 100.100.77.1/32 dev lo
address add 10.2.0.2/24 dev eth9
link set eth9 up
route replace 10.2.0.1/32 dev eth9 src 100.100.77.1
IP
ip route add default via 10.2.0.2 dev eth9 table 88
for i in 9 10 11 12; do ip -netns provider address add 100.100.9.$i/32 dev lo; done

lsmod >"$out/modules.before"
trace run --dst "$ranges,$peer" --record "$out/recording"

# ask NAME PORT SERVER OPTION...: a question that nobody answers here; keeps the pid of who waits.
ask() {
    local name=$1 local=$vm4#$2
    [[ $3 != *:* ]] || local=$vm6#$2
    dig -b "$local" +tries=1 +time=2 "@$3" baidu.com "${@:4}" >"$out/$name.dig" 2>&1 &
    echo "$name $!" >>"$out/waiting"
    pause 3
    wait $! || true
}
# told NAME ADDRESS [from ADDRESS]: what iproute2 says.
told() { ip -j route get "${@:2}" >"$out/$1.route" 2>"$out/$1.route-error" || true; }
# from ADDRESS PORT: provider sends from there.
from() {
    ip -netns provider route replace 10.0.0.2/32 dev eth0 src "$1"
    ip netns exec provider /tests/send "$vm4" 1 "$2"
    pause 1.2
}

told dig4 $dns4 from $vm4
told dig6 $dns6 from $vm6
ask dig4 41873 $dns4
ask dig6 41874 $dns6
lsmod >"$out/modules.after"
# From here on the kernel is asked for sockets.
modprobe -a udp_diag tcp_diag
lsmod >"$out/modules.loaded"
ask diag4 41875 $dns4
ask diag6 41876 $dns6
ask tcp4 41877 $dns4 +tcp
{
    told peer $peer
    /tests/send $peer 1 7901
    told peer6 $peer6
    /tests/send $peer6 1 7901
    pause 1.2
    from $dns4 7911 # nobody waits
    ip -netns provider route replace 10.1.0.0/24 via 10.0.0.2 dev eth0 src $dns4
    ip netns exec provider /tests/send $client4 1 7920 # not forwarded
    pause 1.2
    sysctl -n net.ipv4.ip_forward >"$out/not-forwarded.sysctl"
    sysctl -w net.ipv4.ip_forward=1
    told forward $dns4 from $client4 iif eth1
    ip netns exec provider /tests/send $client4 1 7921
    pause 1.2
    told vrf 100.100.77.1 vrf vrf0
    ip netns exec client /tests/send 10.2.0.1 1 7922
    pause 1.2
    from 100.100.9.9 7912
    from 100.100.9.10 7913
    from 100.100.9.11 7914
    from 100.100.9.12 7915
} >"$out/send.log" 2>&1
stop run
ip -6 rule del pref 5270
ip -6 route flush table 52
ip rule del pref 5255
ip rule del pref 5260
ip link del eth9
ip link del vrf0
ip rule del pref 1000
ip -6 rule del pref 1000
ip route flush table 77
for kind in unreachable/10 prohibit/11 blackhole/12; do ip route del "${kind%/*}" "100.100.9.${kind#*/}/32"; done
