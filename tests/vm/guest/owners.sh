# shellcheck shell=bash source-path=SCRIPTDIR
# SPDX-License-Identifier: GPL-2.0-only
# The rules of a program that writes them, written by the program itself, as Debian packages it (scripts/vm/owners-root),
# and packets that die by them. What is set up here is what its user would: its configuration, and its commands.
# shellcheck source=lib.sh
. /tests/lib.sh
program=$1
root=/owners
nft=$root/usr/sbin/nft
provider=/run/netns/provider left=/run/netns/left

in_root() { chroot $root env -i PATH=/usr/sbin:/usr/bin HOME=/root LANG=C "$@"; }

# The programs end first, so that none of them writes its rules again while the machine is reset.
stop_programs() {
    set +e
    local signal pid
    for signal in TERM KILL; do
        for pid in /proc/[0-9]*; do
            [ ! "$pid/root" -ef $root ] || kill -$signal "${pid#/proc/}"
        done
        pause 1
    done
    [ ! -e $nft.away ] || mv -f $nft.away $nft
    local type device
    for type in bridge wireguard; do
        ip -o link show type $type | while read -r _ device _; do ip link del "${device%:}"; done
    done
} >"$out/stop.log" 2>&1
trap 'status=$?; stop_programs; reset_machine; exit $status' EXIT

# until_ok SECONDS COMMAND...: again and again, until it succeeds.
until_ok() {
    local end=$((${EPOCHREALTIME/./} + $1 * 1000000))
    shift
    until "$@"; do
        [ "${EPOCHREALTIME/./}" -lt "$end" ] || { echo "in vain: $*" >&2 && return 1; }
        pause 0.5
    done
}

# A root is a mount of its own: who starts containers makes another one of it.
if [ ! $root/proc/self -ef /proc/self ]; then
    mount --bind $root $root
    for directory in dev proc sys run tmp; do mount --rbind /$directory $root/$directory; done
    ln -s /proc/self/fd /dev/fd
fi

/guest/incident none
forwarding
ip -netns provider route add default via 10.0.0.2

# begin: the program has written its rules. They are kept as its own Debian prints them.
begin() {
    mark ready
    in_root nft -s list ruleset >"$out/rules.nft"
    in_root iptables-save >"$out/rules.save"
    trace run --dst 10.0.0.0/8,172.16.0.0/12,192.168.0.0/16 --record "$out/recording"
}
# from NETNS ADDRESS PORT...: one packet to each.
from() {
    nsenter --net="$1" /tests/send "$2" 1 "${@:3}" >>"$out/send.log" 2>&1
}
# invalid NETNS ADDRESS PORT: a TCP packet with RST that belongs to no connection. Only what perl itself has: the guest
# holds no modules.
invalid() {
    # shellcheck disable=SC2016 # perl's
    nsenter --net="$1" perl -e 'my ($to, $port) = @ARGV;
        socket(my $raw, 2, 3, 6) or die $!;
        send($raw, pack("nnNNCCnnn", 4000, $port, 0, 0, 0x50, 4, 0, 0, 0), 0, pack("SnC4x8", 2, 0, split /[.]/, $to))
            or die $!;' "$2" "$3"
}
# guest BRIDGE ADDRESS/LENGTH GATEWAY: the namespace "left" is a machine on a bridge that the program made.
guest() {
    ip netns add left
    ip link add left type veth peer name eth0 netns left
    ip link set left up master "$1"
    ip -netns left -batch - <<IP
link set lo up
address add $2 dev eth0
link set eth0 up
route add default via $3 dev eth0 onlink
IP
    until_ok 20 grep -q 3 /sys/class/net/left/brport/state # forwarding
}

case $program in
ufw)
    in_root ufw deny 7301/udp
    in_root ufw reject 7302/udp
    in_root ufw route deny proto udp to any port 7303
    in_root ufw --force enable
    begin
    from $provider $vm4 7301 7302 7304 137
    from $provider $client4 7303 7305
    invalid $provider $vm4 7306
    ;;
firewalld)
    cat >$root/etc/firewalld/zones/public.xml <<'XML'
<?xml version="1.0" encoding="utf-8"?>
<zone>
  <short>Public</short>
  <service name="ssh"/>
  <rule family="ipv4"><source address="10.0.0.0/24"/><port port="7311" protocol="udp"/><drop/></rule>
</zone>
XML
    mkdir -p /run/dbus
    in_root dbus-daemon --system --fork
    in_root firewalld --nofork --nopid >"$out/firewalld.log" 2>&1 &
    running() {
        in_root dbus-send --system --print-reply --dest=org.fedoraproject.FirewallD1 /org/fedoraproject/FirewallD1 \
            org.freedesktop.DBus.Properties.Get string:org.fedoraproject.FirewallD1 string:state 2>&1 | grep -q RUNNING
    }
    until_ok 90 running
    begin
    from $provider $vm4 7311 7312
    from $provider $client4 7313
    ;;
fail2ban)
    : >$root/var/log/auth.log
    cat >$root/etc/fail2ban/jail.local <<'INI'
[sshd]
enabled = false
[DEFAULT]
backend = polling
filter = sshd
logpath = /var/log/auth.log
protocol = udp
[new]
enabled = true
port = 7321
[old]
enabled = true
port = 7322
banaction = iptables-multiport
[ipset]
enabled = true
port = 7323
banaction = iptables-ipset
INI
    # A machine has one nft. This one is what reads the rules for tsdroptrace, too; that of Debian 12 crashes on sets that
    # nft 1.1 has made.
    mv $nft $nft.away
    cp /usr/bin/busybox $root/tmp/
    printf '%s\n' '#!/bin/sh' 'exec /tmp/busybox nsenter -t 1 -r nft "$@"' >$nft
    chmod 755 $nft
    mkdir -p /run/fail2ban
    in_root fail2ban-server -xf start >"$out/fail2ban.log" 2>&1 &
    until_ok 60 test -S /run/fail2ban/fail2ban.sock
    for jail in new old ipset; do in_root fail2ban-client set $jail banip 10.0.0.1; done
    banned() { # it answers before it has done so
        in_root nft list set inet f2b-table addr-set-new && in_root iptables-save | grep -e '-A f2b-old -s' &&
            in_root iptables-save | grep f2b-ipset && in_root ipset list f2b-ipset | grep 10.0.0.1
    }
    until_ok 30 banned
    begin
    from $provider $vm4 7321 7322 7323
    ;;
libvirt-*)
    echo "firewall_backend = \"${program#libvirt-}\"" >$root/etc/libvirt/network.conf
    in_root libvirtd >"$out/libvirtd.log" 2>&1 &
    until_ok 60 test -S /run/libvirt/libvirt-sock
    [ -e $root/etc/libvirt/qemu/networks/default.xml ] ||
        in_root virsh -c network:///system net-define /usr/share/libvirt/networks/default.xml
    in_root virsh -c network:///system net-start default
    guest virbr0 10.99.0.2/24 192.168.122.1
    begin
    from $provider 192.168.122.77 7331
    from $left $client4 7332
    ;;
podman)
    mkdir -p $root/small/{bin,dev,proc,sys,etc,run,tmp}
    cp /usr/bin/busybox $root/small/bin/
    podman() { in_root podman --cgroup-manager=cgroupfs --storage-driver=vfs --events-backend=none "$@"; }
    for network in one two; do
        podman network create --opt isolate=true $network
        podman run -d --name $network --network $network --log-driver=none --rootfs /small /bin/busybox sleep 300
    done
    # The namespaces of the two, by their addresses.
    for netns in "$root"/run/netns/netns-*; do
        case $(nsenter --net="$netns" ip -4 address show) in
        *10.89.0.2*) one=$netns ;;
        *10.89.1.2*) two=$netns ;;
        esac
    done
    begin
    from "$one" 10.89.1.2 7341
    from "$two" 10.89.0.2 7342
    invalid $provider 10.89.0.2 7343
    ;;
wg-quick-*)
    key=$(in_root wg genkey)
    cat >$root/etc/wireguard/wg0.conf <<INI
[Interface]
PrivateKey = $key
Address = 10.9.0.2/24
[Peer]
PublicKey = $(in_root wg genkey | in_root wg pubkey)
AllowedIPs = 0.0.0.0/0
Endpoint = 10.0.0.1:51820
INI
    # It takes nft where there is one.
    [ "$program" = wg-quick-nftables ] || mv $nft $nft.away
    in_root wg-quick up wg0
    [ "$program" = wg-quick-nftables ] || mv $nft.away $nft
    begin
    from $provider 10.9.0.2 7351
    ;;
docker)
    sysctl -qw net.ipv4.ip_forward=0 # Docker sets the policy only when it switches this on
    in_root containerd >"$out/containerd.log" 2>&1 &
    until_ok 60 test -S /run/containerd/containerd.sock
    in_root dockerd --containerd=/run/containerd/containerd.sock --storage-driver=vfs >"$out/dockerd.log" 2>&1 &
    wait_for 100 "$out/dockerd.log" 'API listen on'
    # docker network create, which is in a package of its own.
    in_root python3 - <<'PYTHON'
import socket
body = '{"Name": "other"}'
with socket.socket(socket.AF_UNIX) as docker:
    docker.connect("/run/docker.sock")
    docker.sendall(f"POST /networks/create HTTP/1.0\r\nContent-Type: application/json\r\n"
                   f"Content-Length: {len(body)}\r\n\r\n{body}".encode())
    print(docker.makefile().read())
PYTHON
    guest docker0 172.17.0.2/16 172.17.0.1
    begin
    sysctl net.ipv4.ip_forward >"$out/forwarding"
    from $provider $client4 7361
    from $provider 172.17.0.2 7362
    from $left 172.18.0.2 7363
    ;;
esac
pause 2
stop run
