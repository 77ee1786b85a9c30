# shellcheck shell=bash source-path=SCRIPTDIR
# SPDX-License-Identifier: GPL-2.0-only
# Rulesets change while one tracer runs: each step by a process whose name and number are kept in $out/changes. What each
# step does to the rules that drop is written down in tests/vm/checks/scenarios.py (RULESET_STEPS), step by step.
# shellcheck source=lib.sh
. /tests/lib.sh
backend=$1

network none
forwarding
echo "$$ $(</proc/$$/comm)" >"$out/parent"
cp "$(command -v nft)" /tmp/rulewriter # a name that only this scenario has

# step NAME COMMAND...: as one process, standard input from the file $input; then waits until it has been told, or (NAME
# ends in -untold) for long enough to be told.
input=/dev/null
step() {
    local name=$1 before after=0 begin=$EPOCHREALTIME end command=$2 pid
    shift 2
    before=$(grep -c '"type":"ruleset"' "$out/run.json") || true
    "$command" "$@" <"$input" >>"$out/step.log" 2>&1 &
    pid=$!
    [ "$command" != ip ] || command=$4 # ip netns exec NAME COMMAND
    echo "$name $pid ${command##*/} $begin" >>"$out/changes"
    wait "$pid"
    if [[ $name == *-untold ]]; then
        pause 1.9
        return
    fi
    # Reading may be put off: it takes no more than a quarter of the time, and a busy host makes it slow.
    end=$((${EPOCHREALTIME/./} + 10000000))
    while [ "$after" -le "$before" ] && [ "${EPOCHREALTIME/./}" -lt "$end" ]; do
        pause 0.2
        after=$(grep -c '"type":"ruleset"' "$out/run.json") || true
    done
}
packets() { ip netns exec provider /tests/send "$vm4" 2 "$@"; }

# file NAME: what nft -f or iptables-restore reads.
file() { cat >"/tmp/$1"; }

legacy() {
    iptables-legacy -A INPUT -p udp --dport 7900 -j DROP
    ip6tables-legacy -A INPUT -p udp --dport 7900 -j DROP
    ip netns exec client iptables-legacy -A INPUT -p udp --dport 7920 -j DROP
    trace run --dst "$ranges" --record "$out/recording"

    pause 2 # reads the rulesets itself meanwhile, which is no change
    step nothing-untold true
    step add iptables-legacy -A INPUT -p udp --dport 7901 -j DROP
    packets 7900 7901
    step accept-above iptables-legacy -I INPUT 1 -p udp --dport 7902 -j ACCEPT
    packets 7900 7901
    step zero-untold iptables-legacy -Z
    iptables-legacy-save -c >/tmp/saved
    input=/tmp/saved step same-again-untold iptables-legacy-restore -c
    step list-untold iptables-legacy -L -n -v
    step replace iptables-legacy -R INPUT 2 -p udp --dport 7903 -j REJECT
    packets 7901 7903
    step policy iptables-legacy -P FORWARD DROP
    step delete-first iptables-legacy -D INPUT 1
    packets 7901 7903
    step accept-only iptables-legacy -A INPUT -p udp --dport 7904 -j ACCEPT
    file flush <<'RULES'
*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
-A INPUT -p udp --dport 7905 -j DROP
COMMIT
RULES
    input=/tmp/flush step restore iptables-legacy-restore
    packets 7905
    step six ip6tables-legacy -A INPUT -p udp --dport 7901 -j DROP

    # Another namespace: told once it has been seen dropping what was asked for.
    step foreign-unseen-untold ip netns exec client iptables-legacy -A INPUT -p udp --dport 7921 -j DROP
    ip netns exec provider /tests/send "$client4" 2 7920
    pause 0.5
    step foreign ip netns exec client iptables-legacy -I INPUT 1 -p udp --dport 7922 -j DROP
    ip netns exec provider /tests/send "$client4" 2 7920 7922

    # Many processes at once, each with a change of its own.
    mark burst.begin
    for i in {1..20}; do
        iptables-legacy -A INPUT -p udp --dport $((7950 + i)) -j DROP
    done
    # A machine this slow may have tried to read the rules in the midst of it, and then waits.
    wait_for 10 "$out/run.json" '--dport 7970 '
    pause 1
    mark burst.end
    step flush iptables-legacy -F INPUT
}

nft_backends() {
    iptables-nft -A INPUT -p udp --dport 7910 -j DROP
    nft -f - <<'NFT'
table inet changing {
    set blocked { type ipv4_addr; }
    chain input {
        type filter hook input priority 10; policy accept;
        udp dport 7930 drop
        udp dport 7937 reject
    }
}
NFT
    # Its module is there from now on: for a second after it has come, nobody would see what reject does.
    nft flush chain inet changing input
    nft add rule inet changing input udp dport 7930 drop
    trace run --dst "$ranges" --record "$out/recording"

    pause 2
    step nothing-untold true
    step add iptables-nft -A INPUT -p udp --dport 7911 -j DROP
    packets 7910 7911
    step accept-above iptables-nft -I INPUT 1 -p udp --dport 7912 -j ACCEPT
    packets 7910 7911
    step zero-untold iptables-nft -Z
    step list-untold iptables-nft -L -n -v
    step replace iptables-nft -R INPUT 2 -p udp --dport 7913 -j REJECT
    packets 7911 7913
    step policy iptables-nft -P FORWARD DROP
    step flush iptables-nft -F INPUT

    file rules <<'NFT'
table inet written {
    chain input {
        type filter hook input priority 20; policy drop;
        udp dport 7931 drop
        udp dport 7932 counter reject
        udp dport vmap { 7933 : drop, 7934 : accept }
        accept
    }
}
NFT
    step table /tmp/rulewriter -f /tmp/rules
    packets 7930 7931 7932 7933
    step element-untold /tmp/rulewriter add element inet changing blocked '{ 192.0.2.1 }'
    step reset-untold /tmp/rulewriter reset counters
    step empty-untold /tmp/rulewriter list ruleset
    step insert /tmp/rulewriter insert rule inet written input udp dport 7935 accept
    packets 7931
    file again <<NFT
flush table inet written
$(nft -s list table inet written)
NFT
    step same-again /tmp/rulewriter -f /tmp/again
    packets 7931
    step delete-table /tmp/rulewriter delete table inet written

    if [ -z "$old" ]; then # A table that goes with the process that owns it (5.12).
        mkfifo /tmp/commands
        {
            echo 'add table inet owned { flags owner; }'
            echo 'add chain inet owned input { type filter hook input priority 30; }'
            echo 'add rule inet owned input udp dport 7936 drop'
            pause 3
        } >/tmp/commands &
        input=/tmp/commands step owner /tmp/rulewriter -i
        pause 2
    fi

    # One process, many changes, one after the other.
    mark burst.begin
    for i in {1..300}; do
        echo "add rule inet changing input udp dport $((8000 + i)) drop"
    done >/tmp/many
    input=/tmp/many step many /tmp/rulewriter -i
    pause 2.5
    mark burst.end
    nft -a list table inet changing >"$out/many.nft"
}

# /tmp/version-0 and -1 are of the same size, and what -0 has at the place of the rule that drops port 7945, the first one
# of its chain, is in -1 the one for port 7946, the second one. The kernel puts them in the same memory, in turn.
versions() {
    local rule='-p udp -m udp --dport'
    printf '%s\n' '*filter' ':two - [0:0]' '-A INPUT -j two' "-A INPUT $rule 7947 -j DROP" \
        "-A two $rule 7945 -j DROP" COMMIT >/tmp/version-0
    printf '%s\n' '*filter' ':two - [0:0]' '-A INPUT -j two' \
        "-A two $rule 7947 -j DROP" "-A two $rule 7946 -j DROP" COMMIT >/tmp/version-1
}

# Until the file "changing" is gone, the ruleset of another namespace is being changed nearly all the time: it takes the kernel
# a while to copy that many counters, before it sees that the table has not got as many rules.
changing() {
    : >/tmp/changing
    # Level IPPROTO_IPV6, command IP6T_SO_SET_ADD_COUNTERS.
    ip netns exec client perl -e 'socket(my $raw, 10, 3, 255) or die; my $count = 1 << 21;
        my $counters = pack("Z32Ix4", "filter", $count) . "\0" x (16 * $count);
        setsockopt($raw, 41, 65, $counters) while -e "/tmp/changing"'
}

# Changes that overlap, in two namespaces and for both IP versions, while packets are dropped.
overlap() {
    local port end
    {
        echo '*filter'
        for port in {1..1500}; do
            echo "-A INPUT -p udp --dport $port -j DROP"
        done
        echo COMMIT
    } >/tmp/large
    trace run --dst "$ranges" --record "$out/recording"

    versions
    iptables-legacy-restore </tmp/version-1
    ip netns exec client ip6tables-legacy-restore </tmp/large
    pause 2 # the tables' modules are traced
    changing &
    end=$((EPOCHSECONDS + 6))
    while [ $EPOCHSECONDS -lt $end ]; do
        for version in 0 1 1; do
            echo "$(</tmp/version-$version)"
            pause 0.02
        done
    done | iptables-legacy-restore >>"$out/step.log" 2>&1 &
    while [ $EPOCHSECONDS -lt $end ]; do
        ip netns exec provider /tests/send "$vm4" 20 7945 7946
    done >>"$out/step.log" 2>&1
    rm /tmp/changing
    iptables-legacy -F INPUT
    for port in 7941 7942 7943 7944; do
        iptables-legacy -A INPUT -p udp --dport $port -j DROP
    done

    end=$((EPOCHSECONDS + 6))
    while [ $EPOCHSECONDS -lt $end ]; do
        iptables-legacy -A INPUT -p udp --dport 7949 -j DROP
        iptables-legacy -D INPUT -p udp --dport 7949 -j DROP
    done >>"$out/step.log" 2>&1 &
    while [ $EPOCHSECONDS -lt $end ]; do
        ip netns exec client ip6tables-legacy-restore </tmp/large
    done >>"$out/step.log" 2>&1 &
    while [ $EPOCHSECONDS -lt $end ]; do
        packets 7941 7942 7943 7944
    done >>"$out/step.log" 2>&1
    pause 4
    mark quiet
    packets 7941 7942 7943 7944
    pause 0.5
    save_rules legacy after
}

case $backend in
legacy) legacy ;;
overlap) overlap ;;
*) nft_backends ;;
esac
stop run
