# shellcheck shell=bash source-path=SCRIPTDIR
# SPDX-License-Identifier: GPL-2.0-only
# The same packets under several tracers at once, each with other options.
# shellcheck source=lib.sh
. /tests/lib.sh

network none
iptables-legacy -A INPUT -p udp --dport 7601 -j DROP
ip6tables-legacy -A INPUT -p udp --dport 7601 -j DROP
iptables-legacy -A OUTPUT -p udp --dport 7602 -j DROP
iptables-legacy -A INPUT -p udp --dport 7603 -j DROP

# Started together, stopped together.
launch to --dst 100.100.2.136 --dst 192.0.2.0/24,fd7a:115c:a1e0::/48 --direction to --json --summary-every 700ms
launch from --dst $dns4 --direction from --json --count 3
launch six --dst fd7a:115c:a1e0::/48 --quiet --json-file "$out/six.json"
launch unseen --dst fd7a:115c:a1e0::/48 --no-seen --quiet --json-file "$out/unseen.json"
launch nothing --dst 192.0.2.0/24,2001:db8::/32 --json-file "$out/nothing.json"
launch noisy --all --verbose --json-file "$out/noisy.json"
for name in to from; do started $name $name.out; done
for name in six nothing unseen noisy; do started $name $name.json; done
for name in six unseen; do
    links=("/proc/${tracers[$name]}"/fdinfo/*)
    echo "$name $(grep -ls '^link_id:' "${links[@]}" | wc -l)" >>"$out/links"
done
launch all --all --json --quiet --duration 8s
started all all.out

{
    # Noise: answered pings, and what a socket that listens to all packets has not read when it is closed.
    perl -e 'socket(my $all, 17, 3, 0x0300) or die; sleep 1' &
    listener=$!
    pause 0.2
    ping -q -c 1 -W 5 10.0.0.1
    ping -q -c 1 -W 5 fd00:a::1
    wait $listener
    ip netns exec provider /tests/send "$vm4" 2 7601
    ip netns exec provider /tests/send "$vm6" 2 7601
    /tests/send "$dns4" 2 7602
    ip netns exec provider /tests/send 10.0.0.2 1 7603
    # From an address that is in no range.
    ip -n provider route replace 10.0.0.2/32 dev eth0 src 10.0.0.1
    ip netns exec provider /tests/send "$vm4" 2 7601
    ip -n provider route replace 10.0.0.2/32 dev eth0 src $dns4
    ip netns exec provider /tests/send "$vm4" 4 7603
} >"$out/send.log" 2>&1
ended from
mark from-ended
pause 0.7
for name in to six nothing unseen noisy; do kill -TERM "${tracers[$name]}"; done
for name in to six nothing unseen noisy; do ended $name; done
ended all
mark all-ended
save_rules legacy after
