# shellcheck shell=bash source-path=SCRIPTDIR
# SPDX-License-Identifier: GPL-2.0-only
# The incident, and what is done about it while tracing goes on: first what does not help, although it moves the rule that
# drops; then the second fix that tsdroptrace itself prints, as it is printed. Answers over IPv6 come all the time.
# shellcheck source=lib.sh
. /tests/lib.sh
backend=$1
case $backend in
legacy | iptables-nft) tool=iptables-${backend#iptables-} ;;
nftables) tool=nft ;;
esac

# change NAME COMMAND...: as one process, whose name and number are kept.
change() {
    local name=$1 pid
    shift
    mark "$name"
    "$@" &
    pid=$!
    wait "$pid"
    echo "$name $pid ${1##*/}" >>"$out/changes"
}
asks() { dig +tries=2 +time=1 "@$1" baidu.com >>"$out/dig.$2" || true; }

network "$backend"
trace run --dst "$ranges" --record "$out/recording"
asks "$dns4" before
wait_for 10 "$out/run.json" '"type":"drop"'

if [ "$tool" = nft ]; then
    change moved nft insert rule ip filter ts-input udp dport 7999 accept
else
    change moved "$tool" -I ts-input 1 -p udp --dport 7999 -j ACCEPT
fi
wait_for 15 "$out/run.json" '"type":"ruleset"' # read again: what drops now has its text
asks "$dns4" moved
asks "$dns6" moved6
pause 2

# Of the fixes that the line of the drop has, the second; in JSON a quotation mark has a backslash.
fix=$(grep -m 1 '"type":"drop"' "$out/run.json")
fix=${fix#*\"do\":\"}
fix=${fix#*\"do\":\"}
fix=${fix%%\",\"risk\":*}
fix=${fix//\\\"/\"}
echo "$fix" >"$out/fix"
eval "change fix $fix"
for _ in 1 2 3 4 5 6; do
    asks "$dns4" after
    ! grep -q '"type":"stopped"' "$out/run.json" || break
    pause 1.5
done
mark told
stop run
