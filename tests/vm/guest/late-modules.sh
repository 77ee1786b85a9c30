# shellcheck shell=bash source-path=SCRIPTDIR
# SPDX-License-Identifier: GPL-2.0-only
# No netfilter module is there when tsdroptrace starts; rules of all backends come, and bring their modules, while it
# traces. It must not load any itself.
# shellcheck source=lib.sh
. /tests/lib.sh

network none
cat /proc/modules >"$out/modules.before"
trace run --dst "$ranges"
cat /proc/modules >"$out/modules.started"

# traced N: when it has said N times that it traces a module that has come, and 2 s after the rules at the earliest. It
# looks once a second; on 5.10 under emulation it then takes its time.
traced() {
    local said=0 i
    pause 2
    for ((i = 0; i < 20; i++)); do
        said=$(grep -c 'it is traced from now on' "$out/run.err") || true
        [ "$said" -lt "$1" ] || return 0
        pause 0.2
    done
    echo "after 6 s it had said $said times that it traces a module" >&2
}

iptables-legacy -A INPUT -p udp --dport 7301 -j DROP
ip6tables-legacy -A INPUT -p udp --dport 7301 -j REJECT
iptables-legacy -t raw -A PREROUTING -p udp --dport 7302 -j DROP
mark legacy.rules
traced 1
ip netns exec provider /tests/send "$vm4" 2 7301 7302
ip netns exec provider /tests/send "$vm6" 2 7301

iptables-nft -A INPUT -p udp --dport 7303 -j REJECT
ip6tables-nft -A INPUT -p udp --dport 7303 -j DROP
nft -f - <<'NFT'
table inet late {
    chain input {
        type filter hook input priority 10; policy accept;
        udp dport 7304 counter reject
        udp dport vmap { 7305 : drop }
    }
}
NFT
mark nft.rules
traced 2
ip netns exec provider /tests/send "$vm4" 2 7303 7304 7305
ip netns exec provider /tests/send "$vm6" 2 7303 7304 7305
pause 1
stop run
save_rules legacy legacy
save_rules iptables-nft nft
