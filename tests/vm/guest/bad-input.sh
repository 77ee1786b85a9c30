# shellcheck shell=bash source-path=SCRIPTDIR
# SPDX-License-Identifier: GPL-2.0-only
# Wrong command lines, missing privileges, disks and readers that fail. Exit codes are in NAME.exit.
# shellcheck source=lib.sh
. /tests/lib.sh

# refused NAME ARGUMENT...
refused() {
    local name=$1 status=0
    shift
    timeout 20 tsdroptrace "$@" >"$out/$name.out" 2>"$out/$name.err" || status=$?
    echo "$status" >"$out/$name.exit"
}

refused no-dst
refused bad-cidr --dst 300.1.2.3
refused bad-prefix --dst 10.0.0.0/33
refused host-bits --dst 10.0.0.1/8
refused bad-duration --dst 10.0.0.0/8 --duration soon
refused bad-count --dst 10.0.0.0/8 --count 0
refused bad-direction --dst 10.0.0.0/8 --direction sideways
refused unknown-option --dst 10.0.0.0/8 --chain INPUT
refused bad-port --dst 10.0.0.0/8 --port 53,70000
refused bad-proto --dst 10.0.0.0/8 --proto upd
refused bad-src --dst 10.0.0.0/8 --src 10.0.0.1/8
refused bad-iface --dst 10.0.0.0/8 --iface a-name-that-is-too-long
refused bad-netns --dst 10.0.0.0/8 --netns nosuchnamespace
refused netns-path --dst 10.0.0.0/8 --netns /no/such/path
refused netns-other --dst 10.0.0.0/8 --netns /proc/self/ns/pid
refused netns-file --dst 10.0.0.0/8 --netns /etc/protocols
refused bad-reason --dst 10.0.0.0/8 --reason NETFILTER_DORP
refused filter-of-replay --replay /no/such/recording --port 53
refused no-value --dst
refused extra 100.100.2.136
refused json-file-directory --dst 10.0.0.0/8 --json-file /proc/no/such/place
refused record-directory --dst 10.0.0.0/8 --record /proc/no/such/place

status=0
setpriv --reuid=65534 --regid=65534 --clear-groups tsdroptrace --dst 10.0.0.0/8 >"$out/nobody.out" 2>"$out/nobody.err" ||
    status=$?
echo $status >"$out/nobody.exit"

network none
iptables-legacy -A INPUT -p udp --dport 7701 -j DROP
ls /sys/fs/bpf >"$out/pins.before"

# A reader that goes away after the first line.
{
    status=0
    timeout 30 tsdroptrace --dst "$ranges" --json 2>"$out/pipe.err" || status=$?
    echo "$status" >"$out/pipe.exit"
} | head -n 1 >"$out/pipe.out" &
# A disk with room for little more than the first lines.
mkdir /tmp/small
mount -t tmpfs -o size=16k small /tmp/small
launch full --dst "$ranges" --json-file /tmp/small/json --summary-every 1s
launch killed --dst "$ranges" --json
started full full.out
started killed killed.out
wait_for 30 "$out/pipe.out" '"type":"start"'
{
    for ((i = 0; i < 5; i++)); do
        ip netns exec provider /tests/send "$vm4" 8 7701
        pause 0.2
    done
} >"$out/send.log" 2>&1
pause 1
cat /sys/kernel/tracing/enabled_functions >"$out/attached.before"
kill -KILL "${tracers[killed]}"
wait "${tracers[killed]}" || true
cp /tmp/small/json "$out/full.json.cut"
# Room again: what comes now can be written.
mount -o remount,size=1m /tmp/small
ip netns exec provider /tests/send "$vm4" 2 7701 >>"$out/send.log" 2>&1
pause 1
stop full
cp /tmp/small/json "$out/full.json"
umount /tmp/small
for ((i = 0; i < 100; i++)); do
    [ ! -e "$out/pipe.exit" ] || break
    pause 0.1
done
ls /sys/fs/bpf >"$out/pins.after"
# Programs go when their last descriptor does; functions with something attached are listed here.
pause 1
cat /sys/kernel/tracing/enabled_functions >"$out/attached.after"
save_rules legacy after
