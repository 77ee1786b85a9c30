#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# In the VM:  guest.sh bench nftables|iptables-nft|legacy PACKETS ROUNDS FLOOD
#             guest.sh compare nftables|iptables-nft|legacy PACKETS ROUNDS
set -eu

what=$1 backend=$2
shift 2
/guest/incident "$backend"
[ "$what" = bench ] || exec /guest/compare "$backend" "$backend" "$@"

# How much a packet outside the filter may cost over nothing attached, in per cent, and how to read the counter of
# the rule that drops.
case $backend in
legacy)
    limit=10
    counter="iptables-legacy-save -c -t filter | sed -n 's/^\[\([0-9]*\):.*-A ts-input .*-j DROP$/\1/p'"
    ;;
*)
    limit=6
    counter="nft list chain ip filter ts-input | sed -n 's/.*counter packets \([0-9]*\) .*drop.*/\1/p'"
    ;;
esac
exec /guest/bench "$backend" "$limit" "$@" "$counter"
