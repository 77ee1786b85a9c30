# shellcheck shell=bash source-path=SCRIPTDIR
# SPDX-License-Identifier: GPL-2.0-only
# The incident itself: an answer of the provider's resolver, and one over IPv6, meet Tailscale's rules.
# shellcheck source=lib.sh
. /tests/lib.sh
backend=$1

network "$backend" ip6-drop
save_rules "$backend" before
cat /proc/modules >"$out/modules.before"
trace run --dst "$ranges" --summary-every 500ms --record "$out/recording"

dig -b "$vm4#41873" +tries=2 +time=1 "@$dns4" baidu.com >"$out/dig4" &
dig -b "$vm6#41874" +tries=2 +time=1 "@$dns6" baidu.com AAAA >"$out/dig6" &
wait_for 10 "$out/run.out" DROPPED 'Tailscale' 100.64.0.0/10 && mark shown
wait %2 %3 || true
pause 0.6 # one more periodic summary

# Each of the two ways to stop it from outside is used.
case $backend in
iptables-nft) stop run INT ;;
*) stop run TERM ;;
esac
save_rules "$backend" after
cat /proc/modules >"$out/modules.after"
