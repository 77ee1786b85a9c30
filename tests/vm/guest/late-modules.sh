# shellcheck shell=bash source-path=SCRIPTDIR
# SPDX-License-Identifier: GPL-2.0-only
# No netfilter module is there when tsdroptrace starts; rules of all backends come, and bring their modules, while it
# traces. It must not load any itself.
# shellcheck source=lib.sh
. /tests/lib.sh

# traced NAME FUNCTION...: returns when tsdroptrace has attached to all of them. It looks for new modules once a second, and
# under emulation it may take seconds to attach.
traced() {
    wait_for 20 /sys/kernel/tracing/enabled_functions "${@:2}"
    mark "$1.traced"
    pause 1 # and to what comes after these
}

network none
cat /proc/modules >"$out/modules.before"
trace run --dst "$ranges"
cat /proc/modules >"$out/modules.started"

iptables-legacy -A INPUT -p udp --dport 7301 -j DROP
ip6tables-legacy -A INPUT -p udp --dport 7301 -j REJECT
iptables-legacy -t raw -A PREROUTING -p udp --dport 7302 -j DROP
mark legacy.rules
traced legacy ipt_do_table ip6t_do_table
ip netns exec provider /tests/send "$vm4" 2 7301 7302
ip netns exec provider /tests/send "$vm6" 2 7301

iptables-nft -A INPUT -p udp --dport 7303 -j REJECT
ip6tables-nft -A INPUT -p udp --dport 7303 -j DROP
nft -f - <<'NFT'
table inet late {
    chain input {
        type filter hook input priority 10; policy accept;
        udp dport vmap { 7305 : drop }
    }
}
NFT
mark nft.rules
traced nft nft_do_chain nft_target_eval_xt nft_lookup_eval
# The program that emits knows nf_tables by now: this brings a program on an expression only.
nft add rule inet late input udp dport 7304 counter reject
mark reject.rules
traced reject nft_reject_inet_eval
ip netns exec provider /tests/send "$vm4" 2 7303 7304 7305
ip netns exec provider /tests/send "$vm6" 2 7303 7304 7305

# Packets die before anybody has looked for the module.
ip -netns provider route add 100.100.9.0/24 dev eth0
ip netns exec provider sysctl -qw net.ipv4.neigh.eth0.mcast_solicit=1 # one request for each address, not three
# shellcheck disable=SC2016 # the inner shell's
ip netns exec provider bash -c 'for i in {1..20}; do /tests/send 100.100.9.$i 1 9; sleep 0.05; done' &
asking=$!
arptables-legacy -A INPUT -d 100.100.9.0/24 -j DROP
traced arp arpt_do_table
wait $asking
ip netns exec provider /tests/send 100.100.9.99 1 9
pause 1
stop run
arptables-legacy -L -n >"$out/arp.list"
arptables-legacy -L -n -v -x >"$out/arp.counters"
save_rules legacy legacy
save_rules iptables-nft nft
