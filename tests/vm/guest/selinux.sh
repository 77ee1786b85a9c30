# shellcheck shell=bash source-path=SCRIPTDIR
# SPDX-License-Identifier: GPL-2.0-only
# Packets that SELinux refuses: at netfilter's hooks, and before a socket. Its policy (selinux.cil, compiled by the host)
# allows all but these, and that processes of one label use BPF; it says itself in the kernel's log what it refuses. Needs
# security=selinux at boot. A policy cannot be taken back, so this is one of the last.
# shellcheck source=lib.sh
. /tests/lib.sh

network none
forwarding
sysctl -qw kernel.printk_ratelimit=0 # all of what it says
dmesg -c >"$out/dmesg.before"
[ -e /sys/kernel/security/lsm ] || mount -t securityfs none /sys/kernel/security
cat /sys/kernel/security/lsm >"$out/lsm"
mount -t selinuxfs none /sys/fs/selinux
dd if=/selinux/policy of=/sys/fs/selinux/load bs=1M # in one piece
cat /sys/fs/selinux/enforce >"$out/enforce"
for tool in iptables-legacy-restore ip6tables-legacy-restore; do
    $tool --noflush <<'IPTABLES'
*mangle
-A PREROUTING -p udp --dport 7903 -j SECMARK --selctx u:r:refused
-A OUTPUT -p udp --dport 7901 -j SECMARK --selctx u:r:refused
-A OUTPUT -p tcp --dport 7902 -j SECMARK --selctx u:r:refused
COMMIT
*security
-A INPUT -p udp --dport 7905 -j SECMARK --selctx u:r:refused
-A INPUT -p tcp --dport 7906 -j SECMARK --selctx u:r:refused
-A FORWARD -p udp --dport 7904 -j SECMARK --selctx u:r:refused
COMMIT
IPTABLES
done
# NetLabel labels what goes to 10.66.0.0/16, so each packet is looked at; and once it has no map, none can be labelled.
netlabelctl cipsov4 add pass doi:1 tags:1
netlabelctl map del default
netlabelctl map add default address:10.66.0.0/16 protocol:cipsov4,1
netlabelctl map add default address:0.0.0.0/0 protocol:unlbl
netlabelctl map add default address:::/0 protocol:unlbl
# shellcheck disable=SC2016 # perl's
perl -e '
    my @open;
    for ([2, 7905], [1, 7906]) {
        socket(my $socket, 2, $_->[0], 0) or die;
        bind($socket, pack("SnNx8", 2, $_->[1], 0)) or die;
        $_->[0] == 2 or listen($socket, 5) or die;
        push @open, $socket;
    }
    syswrite(STDOUT, "ready\n");
    sleep' >"$out/sockets.ready" &
wait_for 10 "$out/sockets.ready" ready
trace run --dst $ranges --record "$out/recording"

# from_here PROTOCOL ADDRESS PORT PACKETS: what the sender is told is kept.
from_here() {
    local i
    for ((i = 0; i < $4; i++)); do
        printf tsdroptrace >"/dev/$1/$2/$3" || true
    done
} 2>>"$out/errors"
unlabelled() { # PACKETS
    # shellcheck disable=SC2016 # perl's
    perl -e '
        for (1 .. $ARGV[0]) { socket($open[$_], 2, 2, 0) or die "socket: $!"; }
        system("netlabelctl map del default");
        for (1 .. $ARGV[0]) {
            send($open[$_], "tsdroptrace", 0, pack("SnC4x8", 2, 7907, 100, 100, 2, 136)) or print STDERR "7907: $!\n";
        }
        system("netlabelctl map add default address:10.66.0.0/16 protocol:cipsov4,1");
        system("netlabelctl map add default address:0.0.0.0/0 protocol:unlbl");
        system("netlabelctl map add default address:::/0 protocol:unlbl");' "$1" 2>>"$out/errors"
}
packets() { # PACKETS: of each kind
    from_here udp $dns4 7901 "$1"
    from_here udp $dns6 7901 "$1"
    from_here tcp $dns4 7902 "$1"
    unlabelled "$1"
    ip netns exec provider /tests/send $client4 "$1" 7903 7904
    ip netns exec provider /tests/send $client6 "$1" 7903 7904
    ip netns exec provider /tests/send $vm4 "$1" 7905
    # One SYN each: who sends it does not wait for an answer.
    # shellcheck disable=SC2016 # perl's
    ip netns exec provider perl -e '
        for (1 .. $ARGV[0]) {
            socket(my $socket, 2, 1, 0) or die;
            fcntl($socket, 4, 2048) or die; # O_NONBLOCK
            connect($socket, pack("SnC4x8", 2, 7906, 10, 0, 0, 2));
        }' "$1"
}
{
    packets 1
    [ -n "$old" ] || wait_for 20 /sys/kernel/tracing/enabled_functions selinux_ip_postroute selinux_ip_forward selinux_ip_output
    pause 0.2
    mark known
    packets 2
} >"$out/send.log" 2>&1
pause 0.5
stop run
# A process of this label may not use BPF. (A write of a label that ends with a newline would be two.)
(
    printf u:r:confined >/proc/self/attr/exec
    exec tsdroptrace --dst 0.0.0.0/0
) >"$out/confined.out" 2>"$out/confined.err" || echo $? >"$out/confined.exit"
dmesg >"$out/dmesg"
