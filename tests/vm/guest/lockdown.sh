# shellcheck shell=bash source-path=SCRIPTDIR
# SPDX-License-Identifier: GPL-2.0-only
# A kernel that is locked down, first so that nobody may change it, then so that nobody may read it either: there is no
# way back, so this comes last. (Booting with lockdown=MODE is the same from the start.)
# shellcheck source=lib.sh
. /tests/lib.sh

network none
iptables-legacy -A INPUT -p udp --dport 7401 -j DROP
iptables-nft -A INPUT -p udp --dport 7402 -j DROP
nft add table inet locked
nft add chain inet locked input '{ type filter hook input priority 10; }'
nft add rule inet locked input udp dport 7403 counter drop
[ -e /sys/kernel/security/lockdown ] || mount -t securityfs none /sys/kernel/security
for mode in integrity confidentiality; do
    echo $mode >/sys/kernel/security/lockdown
    cat /sys/kernel/security/lockdown >>"$out/modes"
    launch $mode --json-file "$out/$mode.json" --dst "$ranges"
    if started $mode $mode.json; then
        ip netns exec provider /tests/send $vm4 2 7401 7402 7403
        pause 1
        stop $mode
    else
        ended $mode
    fi
done >"$out/send.log" 2>&1
save_rules legacy legacy
save_rules iptables-nft nft
