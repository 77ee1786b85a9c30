# shellcheck shell=bash
# SPDX-License-Identifier: GPL-2.0-only
# What the scenarios share. A scenario runs in the VM as a process of its own, leaves what it saw in $out, and judges
# nothing: that is done on the host, by tests/vm/checks.
set -eum # m: jobs of their own process group, so that SIGINT is not ignored in them

out=/out/$SCENARIO
# Linux 5.10, where tsdroptrace uses kprobes, and does not follow everything.
# shellcheck disable=SC2034
case $(uname -r) in 5.10.*) old=yes ;; *) old='' ;; esac
mkdir -p "$out"
# What was done when, for whoever looks into a failure.
exec {BASH_XTRACEFD}>"$out/steps"
PS4='+ $EPOCHREALTIME '
set -x
# shellcheck disable=SC2034 # for the scenarios
readonly ranges=100.100.0.0/16,fd7a:115c:a1e0::/48
# shellcheck disable=SC2034
readonly dns4=100.100.2.136 dns6=fd7a:115c:a1e0::53 vm4=10.0.0.2 vm6=fd00:a::2 client4=10.1.0.2 client6=fd00:b::2

# mark NAME: remembers when something happened, by the guest's clock.
mark() { echo "$1 $EPOCHREALTIME" >>"$out/marks"; }

# pause SECONDS: without starting a process, which would take from what it waits for.
mkfifo "/tmp/never.$$"
exec {never}<>"/tmp/never.$$"
pause() { read -rt "$1" -u "$never" || true; }

# wait_for SECONDS FILE TEXT...: until FILE holds every TEXT.
wait_for() {
    local end=$((${EPOCHREALTIME/./} + $1 * 1000000)) file=$2 content text
    shift 2
    while :; do
        content=''
        [ ! -e "$file" ] || content=$(<"$file")
        for text; do
            [[ $content == *"$text"* ]] || break
            [ "$text" != "${!#}" ] || return 0
        done
        if [ "${EPOCHREALTIME/./}" -gt "$end" ]; then
            echo "waited in vain for '$text' in $file" >&2
            return 1
        fi
        pause 0.2
    done
}

# What tsdroptrace is started with. (See tests/vm/forbid_fentry.cpp.)
preload=()
case "$SCENARIO $(</proc/cmdline)" in
inferred-*) preload=(env LD_PRELOAD=/usr/lib/forbid_fentry.so) ;;
*forbid=fentry*) preload=(env FORBID=fentry LD_PRELOAD=/usr/lib/forbid_fentry.so) ;;
esac

declare -A tracers # NAME -> pid

# launch NAME ARGUMENT...: tsdroptrace, its standard output in NAME.out, diagnostics in NAME.err.
launch() {
    local name=$1
    shift
    "${preload[@]}" tsdroptrace "$@" >"$out/$name.out" 2>"$out/$name.err" &
    tracers[$name]=$!
    mark "$name.launch"
}

# started NAME FILE: returns when the tracer says in FILE that it traces; fails when it ends before.
started() {
    until [[ -e $out/$2 && $(<"$out/$2") =~ ^(tracing|\{.*\"type\":\"start\") ]]; do
        kill -0 "${tracers[$1]}" || { cat "$out/$1.err" && return 1; }
        pause 0.2
    done
    mark "$1.started"
}

# trace NAME ARGUMENT...: launch, with JSON lines in NAME.json as well, and returns when it traces.
trace() {
    local name=$1
    shift
    launch "$name" --json-file "$out/$name.json" "$@"
    started "$name" "$name.json"
}

# ended NAME: waits for it, and keeps its exit code.
ended() {
    local status=0
    wait "${tracers[$1]}" || status=$?
    echo "$status" >"$out/$1.exit"
}

# stop NAME [SIGNAL]
stop() {
    mark "$1.stop"
    kill "-${2:-TERM}" "${tracers[$1]}" || true
    ended "$1"
}

# The network of scripts/vm/guest/incident with the rules of BACKEND, and behind the VM another host, "client". What
# comes from "provider" has an address of the traced ranges as its source.
network() {
    /guest/incident "$@"
    ip -netns provider -batch - <<'IP'
route add 10.0.0.2/32 dev eth0 src 100.100.2.136
route add 10.1.0.0/24 via 10.0.0.2 dev eth0 src 100.100.2.136
route add 10.9.0.0/16 via 10.0.0.2 dev eth0 src 100.100.2.136
route add fd00:a::2/128 dev eth0 src fd7a:115c:a1e0::53
route add fd00:b::/64 via fd00:a::2 dev eth0 src fd7a:115c:a1e0::53
IP
}

forwarding() {
    ip netns add client
    ip netns exec client sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0
    ip -batch - <<'IP'
link add eth1 type veth peer name eth1 netns client
address add 10.1.0.1/24 dev eth1
address add fd00:b::1/64 dev eth1 nodad
link set eth1 up
IP
    ip -netns client -batch - <<'IP'
link set lo up
address add 10.1.0.2/24 dev eth1
address add fd00:b::2/64 dev eth1 nodad
link set eth1 up
route add default via 10.1.0.1
route add ::/0 via fd00:b::1
IP
    sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
}

# The VM is also a bridge, between "left" and "right".
bridge() {
    local side
    for side in left right; do
        ip netns add $side
        ip link add $side type veth peer name eth0 netns $side
        ip link set $side up
    done
    ip link add br0 type bridge
    ip -batch - <<'IP'
link set left master br0
link set right master br0
address add 100.100.7.3/24 dev br0
link set br0 up
IP
    for side in left right; do
        ip -netns $side -batch - <<IP
address add 100.100.7.$([ $side = left ] && echo 1 || echo 2)/24 dev eth0
link set lo up
link set eth0 up
IP
    done
}

# Everything that network, forwarding and the scenarios set up, gone again.
reset_machine() {
    set +e
    # shellcheck disable=SC2046 # a list
    kill -KILL $(jobs -p)
    kill "$(</run/dnsmasq.pid)"
    ip -force -batch - <<'IP'
link del eth0
link del eth1
link del tailscale0
link del left
link del right
link del br0
netns del provider
netns del client
netns del left
netns del right
netns del bare
netns del asker
rule del pref 5210
rule del pref 5230
rule del pref 5250
rule del pref 5270
route flush table 52
IP
    sysctl -qw net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0
    nft flush ruleset
    # Restoring a table without naming its chains would leave their policies.
    local tables='' table chain
    for table in raw:PREROUTING,OUTPUT mangle:PREROUTING,INPUT,FORWARD,OUTPUT,POSTROUTING nat: \
        filter:INPUT,FORWARD,OUTPUT security:INPUT,FORWARD,OUTPUT; do
        tables+="*${table%:*}"$'\n'
        chain=${table#*:}
        tables+=${chain:+":${chain//,/ ACCEPT$'\n':} ACCEPT"$'\n'}COMMIT$'\n'
    done
    for tool in iptables-legacy-restore ip6tables-legacy-restore; do
        $tool <<<"$tables"
    done
    for table in filter nat broute; do
        [ -d /sys/module/ebtable_$table ] || continue
        ebtables-legacy -t $table --init-table
    done
    if [ -d /sys/module/arptable_filter ]; then # else the tool would load it
        arptables-legacy -F
        arptables-legacy -X
        for chain in INPUT OUTPUT FORWARD; do arptables-legacy -P $chain ACCEPT; done
    fi
} >"$out/reset.log" 2>&1
# The next scenario finds the machine as this one did, however this one ends.
trap 'status=$?; reset_machine; exit $status' EXIT

# rules BACKEND PREFIX: the rulesets as the user's own tools print them, with counters.
save_rules() {
    case $1 in
    legacy | iptables-nft)
        local kind=${1#iptables-}
        "iptables-$kind-save" -c >"$out/$2.save4"
        "ip6tables-$kind-save" -c >"$out/$2.save6"
        ;;
    esac
    case $1 in
    iptables-nft | nftables)
        nft -a -s list ruleset >"$out/$2.nft"
        nft -j -a list ruleset >"$out/$2.nft.json"
        ;;
    esac
}
