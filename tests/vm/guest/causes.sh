# shellcheck shell=bash source-path=SCRIPTDIR
# SPDX-License-Identifier: GPL-2.0-only
# What else the kernel has reasons for, by real causes, under one tracer: tests/vm/guest/peer sends what a host on the
# network could, and this sets up queues and devices that are in a packet's way (tests/vm/checks/causes.py).
# shellcheck disable=SC2154 # old, out: of lib.sh
# shellcheck source=lib.sh
. /tests/lib.sh

modprobe -qa tun vxlan macvtap bridge openvswitch ipip veth act_gact cls_u32 cls_matchall sch_fq sch_tbf sch_codel \
    sch_netem sch_sfq || true
sysctl -qw net.ipv4.ip_forward=1 net.ipv4.ipfrag_time=1 net.ipv4.ipfrag_max_dist=1 net.ipv6.conf.all.accept_dad=0 \
    net.ipv6.conf.default.accept_dad=0 net.ipv6.conf.all.forwarding=1 net.ipv4.conf.all.drop_unicast_in_l2_multicast=1
mkfifo "/tmp/peer.$$"
exec {go}<>"/tmp/peer.$$"
/tests/peer <&"$go" >"$out/peer.log" 2>&1 &
helpers=($!)
wait_for 10 "$out/peer.log" ready

# Queues: each on a device of its own, whose name tells which.
devices='fqflow fqband fqtime codel pfifo plain loop sfq'
n=0
for device in $devices; do
    n=$((n + 1))
    echo "link add $device type dummy
address add 10.85.$n.1/24 dev $device
link set $device up
neigh add 10.85.$n.2 lladdr 02:00:00:00:00:01 dev $device"
done | ip -batch -
tc -batch - <<'TC'
qdisc add dev fqflow root fq maxrate 8kbit flow_limit 1
qdisc add dev fqband root fq maxrate 8kbit limit 2
qdisc add dev fqtime root fq horizon 1s horizon_drop
qdisc add dev codel root handle 1: tbf rate 80kbit burst 2000 limit 100000
qdisc add dev pfifo root handle 1: tbf rate 80kbit burst 2000 limit 100000
qdisc add dev codel parent 1:1 codel target 1us interval 1us noecn
qdisc add dev pfifo parent 1:1 pfifo limit 2
qdisc add dev loop clsact
qdisc add dev sfq root handle 1: tbf rate 8kbit burst 2000 limit 100000
qdisc add dev sfq parent 1:1 sfq flows 1 limit 20 depth 2
filter add dev loop egress protocol all prio 1 matchall action reclassify
TC

# Devices.
ip -batch - <<'IP'
link add vx7 address 02:00:00:00:00:07 type vxlan id 7 dstport 4789 local 192.0.2.1
link add vx0 type vxlan id 9 dstport 4790 local 192.0.2.1
link add vxe type vxlan external dstport 4791
address add 10.83.0.1/24 dev vx7
address add 10.84.0.1/24 dev vx0
address add 10.84.1.1/24 dev vxe
link set vx7 up
link set vx0 up
link set vxe up
neigh add 10.84.0.2 lladdr 02:00:00:00:00:01 dev vx0
neigh add 10.84.1.2 lladdr 02:00:00:00:00:01 dev vxe
link add ipip1 type ipip local 192.0.2.1 remote 10.86.0.1
link add ipip2 type ipip local 192.0.2.1 remote 10.86.1.1
link set ipip1 up
link set ipip2 up
route add 10.86.1.1/32 dev ipip1
route add 10.86.0.1/32 dev ipip2
route add multicast 198.51.100.9/32 dev plain
route add 2001:db8:1::/64 dev plain
link add port1 address 02:00:00:00:01:01 type veth peer name wire1
link add port2 address 02:00:00:00:01:02 type veth peer name wire2
link add bridge7 type bridge
link set port1 master bridge7
link set port2 master bridge7
link add vtap link wire2 type macvtap
link add ovsport type veth peer name ovswire
link set bridge7 up
link set port1 up
link set port2 up
link set wire1 up
link set wire2 up
link set vtap up
link set ovsport up
link set ovswire up
IP
# Nothing that the kernel sends by itself, perhaps before its own trace is on.
sysctl -qw net.ipv6.conf.vx0.disable_ipv6=1 net.ipv6.conf.vxe.disable_ipv6=1
# (bridge is a function of lib.sh as well.)
command bridge fdb add 02:00:00:00:00:09 dev vx7 dst 192.0.2.99
mkdir -p /tmp/cgroup
mount -t cgroup2 none /tmp/cgroup
mkdir -p /tmp/cgroup/denied
vm_helper bpf-ingress /tmp/cgroup/denied >"$out/cgroup.ready" &
helpers+=($!)
wait_for 10 "$out/cgroup.ready" ready

trace run --all --verbose
events=/sys/kernel/tracing/events
echo mono >/sys/kernel/tracing/trace_clock # which empties the trace, too
echo 1 >$events/skb/kfree_skb/enable
told=$events/qdisc/qdisc_drop/enable # where the kernel tells what a queue refused
[ ! -e $told ] || echo 1 >$told
{
    echo go >&"$go"
    wait_for 30 "$out/peer.log" "done"
    [ ! -e $told ] || trace maxflows --all --no-seen --reason QDISC_DROP_MAXFLOWS
    n=0
    for device in $devices; do
        n=$((n + 1))
        # Three connections, of four packets each.
        for ((port = 7600; port < 7603; port++)); do
            for length in 500 501 502 503; do printf "%0${length}d" 0 || true; done >"/dev/udp/10.85.$n.2/$port"
        done
    done
    echo >/dev/udp/10.84.0.2/7621 || true
    echo >/dev/udp/10.84.1.2/7622 || true
    echo >/dev/udp/10.86.1.1/7623 || true
    vm_helper lsm socket_sock_rcv_skb >"$out/lsm.ready" &
    lsm=$!
    wait_for 10 "$out/lsm.ready" ready
    echo >/dev/udp/192.0.2.1/7579 || true
    kill $lsm
} >"$out/send.log" 2>&1
pause 2
stop run
[ ! -e $told ] || { stop maxflows && echo 0 >$told; }
echo 0 >$events/skb/kfree_skb/enable
cat /sys/kernel/tracing/trace >"$out/trace"
echo local >/sys/kernel/tracing/trace_clock
for device in /sys/class/net/*; do echo "$(<"$device/ifindex") ${device##*/}"; done >"$out/devices"
kill "${helpers[@]}"
sysctl -qw net.ipv4.ipfrag_time=30 net.ipv4.ipfrag_max_dist=64 net.ipv4.tcp_fastopen=1 \
    net.ipv4.conf.all.drop_unicast_in_l2_multicast=0
for device in $devices vx7 vx0 vxe ipip1 ipip2 port1 port2 bridge7 ovswire; do echo "link del $device"; done |
    ip -force -batch - || true
umount -l /tmp/cgroup
