# shellcheck shell=bash source-path=SCRIPTDIR
# SPDX-License-Identifier: GPL-2.0-only
# Commands that are traced while they run.
# shellcheck source=lib.sh
. /tests/lib.sh

# with NAME ARGUMENT...: runs tsdroptrace until it ends.
with() {
    local name=$1 status=0
    shift
    timeout 60 tsdroptrace --dst "$ranges" "$@" >"$out/$name.out" 2>"$out/$name.err" || status=$?
    echo "$status" >"$out/$name.exit"
    mark "$name.ended"
}

network legacy
iptables-legacy -I OUTPUT -p udp --dport 7602 -j DROP
iptables-legacy -I OUTPUT -p udp --dport 7603 -j DROP
save_rules legacy before

# The incident. The very first packet is the one that counts.
# shellcheck disable=SC2016 # for that shell
with incident --json-file "$out/incident.json" --user nobody -- \
    sh -c 'echo "user $(id -u) $HOME $USER"; grep -E "^(Cap(Eff|Prm)|NoNewPrivs)" /proc/self/status; exec "$@"' sh \
    dig -b $vm4#41873 +tries=1 +time=2 @$dns4 baidu.com
# By the environment of sudo; JSON lines stay alone.
SUDO_UID=65534 SUDO_GID=65534 with json --json -- sh -c 'id -u; exit 3'
SUDO_UID=12345 with stranger -- id -u
# It ends at once, and what it has started sends a packet a little later.
with aftermath --json-file "$out/aftermath.json" -- \
    bash -c "{ sleep 0.1; echo late >/dev/udp/$dns4/7602; } & exit 5"
with missing --json-file "$out/missing.json" -- no-such-program
with not-a-program --json-file "$out/not-a-program.json" -- /etc/passwd
with killed --json-file "$out/killed.json" -- sh -c 'kill -KILL $$'
# Tracing ends before it does.
with duration --json-file "$out/duration.json" --duration 500ms -- \
    bash -c "sleep 6; echo after >/dev/udp/$dns4/7603; exit 4"

# SIGTERM is for the command, which takes its time.
launch terminated --dst "$ranges" --json-file "$out/terminated.json" -- \
    sh -c 'trap "sleep 1; echo at last; exit 7" TERM; echo ready; while :; do sleep 0.1; done'
wait_for 30 "$out/terminated.out" ready
stop terminated

# ^C, on a terminal. A command that does something more once it has been interrupted; one that does not listen.
mkdir -p /dev/pts
mountpoint -q /dev/pts || mount -t devpts devpts /dev/pts
interrupted() { # NAME TIMES SCRIPT
    local status=0
    timeout 60 vm_helper terminal "$2" tsdroptrace --dst "$ranges" --json-file "$out/$1.json" -- bash -c "$3" \
        >"$out/$1.out" 2>"$out/$1.err" || status=$?
    echo "$status" >"$out/$1.exit"
}
loop='echo ready; while :; do sleep 0.1; done'
interrupted once 1 "trap 'echo cleaning up; echo >/dev/udp/$dns4/7602; exit 6' INT; $loop"
interrupted twice 2 "trap '' INT TERM; $loop"
save_rules legacy after
