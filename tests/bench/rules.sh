#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# In the VM:  rules.sh nftables|iptables-nft|legacy COUNT
# Puts COUNT rules before all others on INPUT, half of them DROP, of which none matches a packet of the benchmark, and
# after them one that drops what comes from 100.100.2.136. COUNT 0 takes them away.
set -eu

# rules FORMAT: one line for each rule. awk, since a shell's loop takes seconds here.
rules() {
    awk -v count="$count" -v drop="$1" -v accept="$2" 'BEGIN {
        for (i = 0; i < count; i++)
            printf((i % 2 ? drop : accept) "\n", "198.18." int(i / 250) "." i % 250 + 1)
    }'
}

backend=$1 count=$2
case $backend in
nftables)
    nft delete table ip bench 2>/dev/null || true
    [ "$count" -gt 0 ] || exit 0
    {
        echo 'table ip bench {
            chain many {'
        rules 'ip saddr %s counter drop' 'ip saddr %s counter accept'
        echo 'ip saddr 100.100.2.136 counter drop
            }
            chain INPUT {
                type filter hook input priority -10; policy accept;
                jump many
            }
        }'
    } | nft -f -
    ;;
*)
    tool=iptables-nft
    [ "$backend" = iptables-nft ] || tool=iptables-legacy
    if $tool -D INPUT -j many 2>/dev/null; then
        $tool -F many
        $tool -X many
    fi
    [ "$count" -gt 0 ] || exit 0
    {
        echo '*filter
:many - [0:0]
-I INPUT 1 -j many'
        rules '-A many -s %s -j DROP' '-A many -s %s -j ACCEPT'
        echo '-A many -s 100.100.2.136 -j DROP
COMMIT'
    } | $tool-restore --noflush
    ;;
esac
