# shellcheck shell=bash source-path=SCRIPTDIR
# SPDX-License-Identifier: GPL-2.0-only
# Drops by Open vSwitch, whose reasons (from 6.7) are its module's own: it is loaded after the tracer has started, unloaded,
# and loaded again. What the kernel itself says: the counters of its flows, and a trace of kfree_skb.
# shellcheck source=lib.sh
. /tests/lib.sh

readonly tracing=/sys/kernel/tracing
# The packets come from provider by eth0, port 1; what goes to port 0 is received by the VM, through dp0.
datapath() { # FLOW...
    vm_helper ovs add dp0 eth0 "$@"
    ip -batch - <<'IP'
link set dp0 up
route add 100.100.7.0/24 dev dp0
neigh add 100.100.7.9 lladdr 02:00:00:00:07:09 dev dp0
IP
    ip -netns provider neigh replace 10.0.0.2 lladdr "$(</sys/class/net/dp0/address)" dev eth0
}
send() { ip netns exec provider /tests/send $vm4 "$@"; }

network none
lsmod >"$out/modules.before"
# A name that only the module could tell.
launch early --dst "$ranges" --reason OVS_DROP_METER
ended early
trace run --dst "$ranges" --record "$out/recording"
{
    modprobe openvswitch
    lsmod >"$out/modules.traced"
    datapath 1:7951 1:7952:drop=0 1:7953:drop=13 1:7954:meter=1:out=0 1:7955:recirc=1 1:7956:ttl:out=0 1:7957:out=0 \
        1:7958:out=9 0:7961 0:7962:out=1
    trace chosen --dst "$ranges" --reason ovs_drop_explicit,OVS_DROP_METER || true # refused where there are no reasons
    echo >$tracing/trace
    echo 1 >$tracing/events/skb/kfree_skb/enable
    send 2 7951 7952 7953 7955 7956 7957 7958 7959 # of the last one no flow knows
    send 6 7954
    # shellcheck disable=SC2016 # perl's
    ip netns exec provider perl -e '
        socket(my $socket, 2, 2, 0) or die; # UDP
        setsockopt($socket, 0, 2, pack("i", 1)) or die; # IP_TTL
        for (1 .. 2) { send($socket, "last hop", 0, pack("SnC4x8", 2, 7956, split /[.]/, $ARGV[0])) or die; }' $vm4
    /tests/send 100.100.7.9 2 7961 7962
    pause 0.5
    echo 0 >$tracing/events/skb/kfree_skb/enable
    cp $tracing/trace "$out/trace"
    vm_helper ovs show dp0 >"$out/counts"
    stop chosen

    vm_helper ovs del dp0
    rmmod openvswitch
    lsmod >"$out/modules.unloaded"
    modprobe openvswitch
    datapath 1:7971 1:7972:drop=0 1:7973:recirc=1
    send 2 7971 7972
    pause 0.5
    vm_helper ovs show dp0 >"$out/counts.again"
    # There it is tsdroptrace that looks up who has freed a packet, after the packet has died.
    [ -z "$old" ] || { kill -STOP "${tracers[run]}" && send 2 7973; }
    vm_helper ovs del dp0
    if [ -n "$old" ]; then
        rmmod openvswitch
        modprobe openvswitch
        kill -CONT "${tracers[run]}"
        pause 1
    fi
} >"$out/send.log" 2>&1
stop run
rmmod openvswitch
