# shellcheck shell=bash source-path=SCRIPTDIR
# SPDX-License-Identifier: GPL-2.0-only
# What comes and goes under way: network namespaces, of which each next one gets the number of the last one, one that has
# no name but a process, modules that are unloaded and loaded again, and a processor that goes offline in a flood.
# shellcheck source=lib.sh
. /tests/lib.sh

network none
# Their modules are there from the start.
iptables-legacy -A INPUT -p udp --dport 9 -j DROP
iptables-nft -A INPUT -p udp --dport 9 -j DROP
trace run --dst "$ranges",100.101.0.0/16
# Each namespace has an address, rules of its own, and a packet that one of them drops: the one with number $1.
inside() { # NUMBER COMMAND...: with the namespace's rules, and its device "eth0"; COMMAND enters it
    local i number=$1
    shift
    "$@" ip -batch - <<IP
address add 100.101.$number.2/24 dev eth0
link set lo up
link set eth0 up
IP
    {
        echo '*filter'
        for ((i = 1; i < number; i++)); do echo "-A INPUT -p udp -m udp --dport $((9000 + i)) -j DROP"; done
        echo "-A INPUT -p udp -m udp --dport $((7350 + number)) -j DROP"
        echo COMMIT
    } | "$@" "iptables-$([ $((number % 2)) = 0 ] && echo nft || echo legacy)-restore"
    ip address add "100.101.$number.1/24" dev outer
    ip link set outer up
}
{
    for number in 1 2 3 4 5 6; do
        netns=brief$number
        ip netns add $netns
        echo "$number $(stat -Lc %i /run/netns/$netns)" >>"$out/inodes"
        ip link add outer type veth peer name eth0 netns $netns
        inside $number ip netns exec $netns
        /tests/send 100.101.$number.2 1 $((7350 + number))
        # So that it is read while the namespace is there; the last ones are gone at once.
        [ $number -gt 4 ] || wait_for 10 "$out/run.json" "\"dport\":$((7350 + number))"
        ip netns del $netns
        ip link del outer || true # it may have gone with the other end
    done
    unshare --net sleep 1000 &
    nameless=$!
    until [ "$(readlink /proc/$nameless/ns/net)" != "$(readlink /proc/self/ns/net)" ]; do pause 0.1; done
    echo "7 $(stat -Lc %i /proc/$nameless/ns/net)" >>"$out/inodes"
    echo $nameless >"$out/nameless"
    ip link add outer type veth peer name eth0 netns $nameless
    inside 7 nsenter -t $nameless -n
    pause 2 # its number was one that had no name: that is asked once a second
    /tests/send 100.101.7.2 2 7357
    wait_for 10 "$out/run.json" '"dport":7357'
    kill $nameless
    ip link del outer || true
} >"$out/netns.log" 2>&1

# Modules, twice: what holds them while they are traced, and that they come back.
unload() { # WHEN: what of them goes
    local module
    nft flush ruleset
    iptables-legacy -F
    lsmod >"$out/modules.$1"
    for module in nft_reject_inet iptable_filter; do
        if rmmod $module; then
            echo "$module gone"
        else
            echo "$module held"
        fi
    done >"$out/unloaded.$1"
}
rejecting() { # PORT
    nft -f - <<NFT
table inet rejects {
    chain input {
        type filter hook input priority 10; policy accept;
        udp dport 9 counter drop
        udp dport $1 counter reject
    }
}
NFT
    iptables-legacy -I INPUT -p udp -m udp --dport $(($1 + 1)) -j DROP
    pause 3 # modules are looked for once a second, and it takes time to attach
    ip netns exec provider /tests/send $vm4 2 "$1" $(($1 + 1))
}
{
    rejecting 7361
    pause 1
    unload traced
    rejecting 7363
    pause 1
} >"$out/modules.log" 2>&1

# A processor goes offline, and comes back, while both are busy with packets that die.
online=/sys/devices/system/cpu/cpu1/online
flood() { # PORT
    ip netns exec provider bash -c "exec 3>/dev/udp/$vm4/$1; for ((i = 0; i < 2000; i++)); do echo datagram >&3; done"
}
{
    nft flush ruleset
    iptables-legacy -F
    iptables-legacy -A INPUT -p udp -m udp --dport 7371 -j DROP
    nft -f - <<'NFT'
table inet flooded {
    chain input {
        type filter hook input priority 10; policy accept;
        udp dport 7372 counter drop
    }
}
NFT
    pause 1.5
    floods=()
    for port in 7371 7372; do
        flood $port &
        floods+=($!)
    done
    pause 0.3
    for state in 0 1; do
        echo $state >$online
        echo "$state $(</sys/devices/system/cpu/online)" >>"$out/online"
        pause 0.3
        jobs >>"$out/online.jobs"
    done
    wait "${floods[@]}"
} >"$out/cpus.log" 2>&1
pause 1.5
stop run
save_rules legacy after
nft -a -s list ruleset >"$out/after.nft"
nft -j -a list ruleset >"$out/after.nft.json"
unload stopped
