# shellcheck shell=bash source-path=SCRIPTDIR
# SPDX-License-Identifier: GPL-2.0-only
# Rulesets and packets that the host has made up (tests/vm/oracle) are in /oracle/BACKEND/NUMBER. One tsdroptrace sees
# all of them; kept beside what it says are the kernel's own trace and the rules as the user's own tool prints them.
# shellcheck source=lib.sh
. /tests/lib.sh
# "families" are those of nf_tables beyond IP's: the machine is a bridge, too. "counted" are arptables and ebtables, which
# no trace tells of: their packets are sent one by one, and all counters are read after each.
backend=$1
backends=${backend/mixed/legacy nftables}

# Nobody asks for anybody's address: the packets of the list, and what they cause, are all there is.
quiet_network() {
    network none
    forwarding
    ip -batch - <<'IP'
link set eth0 address 02:00:00:00:00:01
link set eth1 address 02:00:00:00:00:03
neigh replace 10.0.0.1 lladdr 02:00:00:00:00:02 dev eth0 nud permanent
neigh replace fd00:a::1 lladdr 02:00:00:00:00:02 dev eth0 nud permanent
neigh replace 10.1.0.2 lladdr 02:00:00:00:00:04 dev eth1 nud permanent
neigh replace fd00:b::2 lladdr 02:00:00:00:00:04 dev eth1 nud permanent
IP
    ip -netns provider -batch - <<'IP'
link set eth0 address 02:00:00:00:00:02
IP
    ip -netns client -batch - <<'IP'
link set eth1 address 02:00:00:00:00:04
neigh replace 10.1.0.1 lladdr 02:00:00:00:00:03 dev eth1 nud permanent
neigh replace fd00:b::1 lladdr 02:00:00:00:00:03 dev eth1 nud permanent
IP
}

# The same of the bridge, and of ARP: one request for each address, not three.
quiet_bridge() {
    bridge
    ip -batch - <<'IP'
link set br0 address 02:00:00:00:00:10
address add fd00:c::3/64 dev br0 nodad
neigh replace 100.100.7.1 lladdr 02:00:00:00:00:12 dev br0 nud permanent
neigh replace 100.100.7.2 lladdr 02:00:00:00:00:11 dev br0 nud permanent
neigh replace fd00:c::2 lladdr 02:00:00:00:00:11 dev br0 nud permanent
route add 10.4.0.0/16 via 100.100.7.2 dev br0
route add fd00:d::/64 via fd00:c::2 dev br0
route add 10.3.0.0/16 dev eth0
IP
    # Nobody there says anything by himself.
    for side in left right; do
        ip netns exec $side sysctl -qw net.ipv6.conf.all.disable_ipv6=1
        sysctl -qw net.ipv6.conf.$side.disable_ipv6=1
    done
    uses families || sysctl -qw net.ipv6.conf.br0.disable_ipv6=1
    ip -netns right -batch - <<'IP'
link set eth0 address 02:00:00:00:00:11
neigh replace 100.100.7.3 lladdr 02:00:00:00:00:10 dev eth0 nud permanent
IP
    ip -netns left -batch - <<'IP'
link set eth0 address 02:00:00:00:00:12
neigh replace 100.100.7.3 lladdr 02:00:00:00:00:10 dev eth0 nud permanent
IP
    sysctl -qw net.ipv4.neigh.eth0.mcast_solicit=1
    # The bridge knows where they are.
    for side in left right; do
        ip netns exec $side ping -q -c 1 -W 5 100.100.7.3
    done >"$out/ping.log"
}

uses() { [[ " $backends " == *" $1 "* ]]; }

# Which of the tables of arptables and ebtables are there, and told of.
counted_tables() {
    tables=arp:filter
    [ -n "$old" ] || ! modprobe -q ebtable_nat || ! modprobe -q ebtable_filter || tables+=,bridge:nat,bridge:filter
}

# list_counted PREFIX: as the tools print them, without counters and with them.
list_counted() {
    local table
    for table in ${tables//,/ }; do
        case $table in
        arp:*)
            arptables-legacy -L -n >"$1.$table.list"
            arptables-legacy -L -n -v -x >"$1.$table.counters"
            ;;
        *)
            ebtables-legacy -t "${table#*:}" -L >"$1.$table.list"
            ebtables-legacy -t "${table#*:}" -L --Lc >"$1.$table.counters"
            ;;
        esac
    done
}

# counted NAME DIRECTORY
counted() {
    local kinds=arp kind rule table
    while read -r rule; do
        # shellcheck disable=SC2086 # words
        arptables-legacy $rule
    done <"$2/arp.rules"
    if [[ $tables == *bridge* ]]; then
        kinds='arp bridge'
        ebtables-legacy-restore <"$2/bridge.rules"
    fi
    for kind in $kinds; do
        cp "$2/$kind.list" "$out/$1-$kind.list"
        oracle-agent "$2/$kind.packets" "$out/run.json" - 15 "$tables" >"$out/$1-$kind.sent"
    done
    list_counted "$out/$1"
    arptables-legacy -F
    arptables-legacy -X
    for kind in INPUT OUTPUT; do arptables-legacy -P $kind ACCEPT; done
    [[ $tables != *bridge* ]] || for table in filter nat; do ebtables-legacy -t $table --init-table; done
}

# load DIRECTORY
load() {
    if uses legacy; then
        iptables-legacy-restore <"$1/rules.4"
        ip6tables-legacy-restore <"$1/rules.6"
    fi
    if uses iptables-nft; then
        nft flush ruleset
        iptables-nft-restore <"$1/rules.4"
        ip6tables-nft-restore <"$1/rules.6"
        nft -f /oracle/trace.nft
    fi
    if uses nftables; then
        { echo flush ruleset && cat "$1/rules.nft"; } | nft -f -
    fi
    if uses families; then
        local new=$1/new.nft
        [ -z "$old" ] || new=/dev/null
        { echo flush ruleset && cat "$1/rules.nft" "$new"; } | nft -f -
    fi
}

# save PREFIX
save() {
    local kind
    for kind in legacy nft; do
        if uses "$kind" || uses "iptables-$kind"; then
            "iptables-$kind-save" -c >"$1.save4"
            "ip6tables-$kind-save" -c >"$1.save6"
        fi
    done
    [ "$backend" = legacy ] || nft -a -s list ruleset >"$1.nft"
}

# round NAME DIRECTORY [PAUSE]: sends the packets of a directory whose rules have been loaded.
round() {
    local trace=$out/$1.trace
    [ "$backend" != legacy ] || trace=-
    oracle-agent "$2/packets" "$out/run.json" "$trace" "${@:3}" >"$out/$1.sent"
    ! uses legacy || dmesg >"$out/$1.log"
}

# changes DIRECTORY SUFFIX [COMMAND...]: many at once, then none for a while, in which the rules can be read. Writes
# them out, or gives each to a command.
changes() {
    local file number=0
    for file in "$1"/change.*."$2"; do
        [ -e "$out/changing" ] || break
        if [ $# -gt 2 ]; then
            "${@:3}" <"$file"
        else
            echo "$(<"$file")"
        fi
        number=$((number + 1))
        if [ $((number % 12)) -eq 0 ]; then
            pause 1.5
        else
            pause 0.05
        fi
    done
}

quiet_network
case $backend in families | counted) quiet_bridge ;; esac
! uses legacy || modprobe nf_log_syslog || true
trace run --all
cp /oracle/seeds "$out/"
if uses counted; then
    iptables-legacy -t raw -A PREROUTING -p udp --dport 65000 -j DROP
    counted_tables
fi
for directory in "/oracle/$backend"/*/; do
    name=$(basename "$directory")
    if uses counted; then
        counted "$name" "$directory"
        continue
    fi
    load "$directory"
    round "$name" "$directory"
    save "$out/$name"
done

# Rules that change while they drop.
directory=/oracle/churn/$backend
if [ -d "$directory" ]; then
    cp "$directory/places.json" "$out/"
    load "$directory"
    oracle-agent "$directory/prime" "$out/run.json" - >"$out/prime.sent"
    : >"$out/changing"
    {
        case $backend in
        legacy)
            changes "$directory" 4 | iptables-legacy-restore --noflush &
            changes "$directory" 6 | ip6tables-legacy-restore --noflush &
            ;;
        iptables-nft)
            changes "$directory" 4 iptables-nft-restore --noflush &
            changes "$directory" 6 ip6tables-nft-restore --noflush &
            ;;
        nftables) changes "$directory" nft | nft -i & ;;
        esac
    } >"$out/changes.log" 2>&1
    round churn "$directory" 60
    rm "$out/changing"
    # shellcheck disable=SC2046 # a list
    wait $(jobs -p | grep -vx "${tracers[run]}")
fi
stop run
