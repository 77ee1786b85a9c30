# SPDX-License-Identifier: GPL-2.0-only
"""Random packets, each with addresses and ports of its own, so that what two observers say of it can be joined."""

import ipaddress
import struct
from dataclasses import dataclass

UDP, TCP, ICMP, ICMPV6 = 17, 6, 1, 58
# Of the machine that is traced, and of the host behind it; see tests/vm/guest/lib.sh.
HERE = {4: "10.0.0.2", 6: "fd00:a::2"}
BEHIND = {4: "10.1.0.2", 6: "fd00:b::2"}
# Networks that far hosts are in; the lower 16 bits are the packet's own number. Rules name them, or parts of them.
FAR = {4: ("100.100.0.0", "100.64.0.0", "198.18.0.0", "172.20.0.0"),
       6: ("fd7a:115c:a1e0::", "2001:db8:1::", "2001:db8:2:3::", "fd12:3456::")}
DPORTS = range(7000, 7016)
SPORTS = range(5000, 5008)
TTLS = (1, 30, 64, 128)  # 1: not to be forwarded
# Of the hosts at both ends of a bridge, and of the machine that is the bridge; of those behind it; of those that this
# machine asks for.
LEFT, RIGHT, BRIDGE = "100.100.7.1", "100.100.7.2", "100.100.7.3"
BEHIND_BRIDGE = {4: "10.4.0.0", 6: "fd00:d::"}
ASKED = "10.3.0.0"
MACS = {"here": "02:00:00:00:00:01", "bridge": "02:00:00:00:00:10", "right": "02:00:00:00:00:11",
        "left": "02:00:00:00:00:12", "far": "02:00:00:00:00:99"}
ARP = "arp"  # in place of a version of IP
SENTINEL, PRIME_NFT, PRIME_POLICY, PRIME_LEGACY = range(65000, 65004)  # destination ports


@dataclass
class Packet:
    origin: str  # "out", or "provider", "client", "left", "right", perhaps with a MAC address: "left>bridge"
    cpu: int
    family: int
    proto: int
    src: str
    dst: str
    sport: int = 0  # ICMP: type
    dport: int = 0  # ICMP: code
    flags: int = 0  # TCP
    ttl: int = 64
    dscp: int = 0
    payload: int = 12

    def key(self):
        """As checks.guest.packet_key makes it."""
        name = {UDP: "udp", TCP: "tcp", ICMP: "icmp", ICMPV6: "icmpv6"}[self.proto]
        ports = self.proto in (UDP, TCP)
        return ("ipv4" if self.family == 4 else "ipv6", name, self.src, self.sport if ports else None, self.dst,
                self.dport if ports else None)

    def line(self):
        return f"{_origin(self.origin)} {self.cpu} {self._bytes().hex()}"

    def _bytes(self):
        payload = b"tsdroptrace oracle packet"[:self.payload]
        if self.proto == UDP:
            body = struct.pack("!HHHH", self.sport, self.dport, 8 + len(payload), 0) + payload
            checksum_at = 6
        elif self.proto == TCP:
            body = struct.pack("!HHIIBBHHH", self.sport, self.dport, 1000, 2000 if self.flags & 0x10 else 0, 0x50,
                               self.flags, 8192, 0, 0)
            body += b"" if self.flags & 0x07 else payload
            checksum_at = 16
        else:
            body = struct.pack("!BBHHH", self.sport, self.dport, 0, 77, 1) + payload
            checksum_at = 2
        src, dst = ipaddress.ip_address(self.src).packed, ipaddress.ip_address(self.dst).packed
        pseudo = src + dst + struct.pack("!II", len(body), self.proto) if self.proto != ICMP else b""
        checksum = _checksum(pseudo + body) or (0xFFFF if self.proto == UDP else 0)
        body = body[:checksum_at] + struct.pack("!H", checksum) + body[checksum_at + 2:]
        if self.family == 6:
            return struct.pack("!IHBB", 6 << 28 | self.dscp << 22, len(body), self.proto, self.ttl) + src + dst + body
        head = struct.pack("!BBHHHBBH", 0x45, self.dscp << 2, 20 + len(body), 1, 0, self.ttl, self.proto, 0) + src + dst
        return head[:10] + struct.pack("!H", _checksum(head)) + head[12:] + body


@dataclass
class ArpPacket:
    """Who asks (1) or answers (2) whom about an address."""
    origin: str
    cpu: int
    operation: int
    src: str
    dst: str

    def key(self):
        return ("other", "0", self.src, None, self.dst, None)

    def line(self):
        sender, target = (bytes.fromhex(mac.replace(":", "")) for mac in (MACS["far"], MACS["here"]))
        return f"{_origin(self.origin)} {self.cpu} " + (
            struct.pack("!HHBBH", 1, 0x800, 6, 4, self.operation) + sender + ipaddress.ip_address(self.src).packed +
            (target if self.operation == 2 else bytes(6)) + ipaddress.ip_address(self.dst).packed).hex()


def _origin(text):
    """With the last byte of the MAC address in hexadecimal: "left>10"."""
    name, _, to = text.partition(">")
    return f"{name}>{'ff' if to == 'all' else MACS[to][-2:]}" if to else name


def _checksum(data):
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def far(rng, family, number):
    """An address of a far host that no other packet has."""
    return address(rng.choice(FAR[family]), number)


def address(network, number):
    return str(ipaddress.ip_address(int(ipaddress.ip_address(network)) + 256 + number))


def random_packets(rng, count, cpus):
    """Among them answers to others, and more than one of a flow."""
    packets = []
    while len(packets) < count:
        packets += _some(rng, len(packets) + 1, rng.randrange(cpus))
    return packets[:count]


def bridge_packets(rng, count, cpus):
    """The same, and ARP, also through a bridge and to and from the machine that is one."""
    packets = []
    while len(packets) < count:
        number, cpu = len(packets) + 1, rng.randrange(cpus)
        kind = rng.random()
        if kind < 0.3:
            packets.append(_arp(rng, number, cpu))
        elif kind < 0.5:
            packets += _some(rng, number, cpu)
        else:
            packets += [bridged(rng, number, cpu)] * (1 if rng.random() < 0.9 else rng.randrange(2, 4))
    return packets[:count]


def _arp(rng, number, cpu):
    other = far(rng, 4, number)
    kind = rng.randrange(10)
    if kind < 2:  # makes this machine ask
        return Packet("out", cpu, 4, UDP, HERE[4], address(ASKED, number), rng.choice(SPORTS), rng.choice(DPORTS))
    operation = rng.choice((1, 1, 2))
    if kind < 6:
        return ArpPacket(rng.choice(("provider>here", "provider>all")), cpu, operation, other,
                         rng.choice((HERE[4], address(ASKED, rng.randrange(256)))))
    origin = rng.choice(("left>right", "left>bridge", "left>all", "right>left", "right>all"))
    asked = rng.choice((BRIDGE, LEFT, RIGHT, address(ASKED, rng.randrange(256))))
    return ArpPacket(origin, cpu, operation, other, asked)


def bridged(rng, number, cpu):
    family = rng.choice((4, 6))
    other = far(rng, family, number)
    proto = rng.choices((UDP, TCP, ICMPV6 if family == 6 else ICMP), (6, 3, 2))[0]
    if rng.random() < 0.2:
        origin, src, dst = "out", HERE[family], address(BEHIND_BRIDGE[family], number)
    else:
        origin, src = rng.choice(("left>right", "left>right", "left>bridge", "right>left", "right>bridge")), other
        dst = rng.choice((HERE, BEHIND))[family]
    packet = Packet(origin, cpu, family, proto, src, dst, rng.choice(SPORTS), rng.choice(DPORTS),
                    ttl=rng.choice((30, 64, 64, 128)), dscp=rng.choice((0, 0, 10, 46)), payload=rng.choice((0, 12, 25)))
    if proto == TCP:
        packet.flags = rng.choice((0x02, 0x10, 0x04))
    elif proto != UDP:
        packet.sport, packet.dport, packet.payload = (128 if family == 6 else 8), 0, 25
    return packet


def lines(packets, backends, primed):
    """As the agent reads them, with the oracle's own packets, which rules of its own drop. `primed`: the others are
    not sent before the rules have been read, and the modules that came with them are traced."""
    ports = [(4, PRIME_LEGACY), (6, PRIME_LEGACY)] if "legacy" in backends else []
    if backends != ("legacy",):
        ports += [(4, PRIME_NFT), (4, PRIME_POLICY)]
    own = [Packet("prime:provider", 0, family, UDP, FAR[family][0], HERE[family], port, port)
           for family, port in ports if primed]
    return list_of(own + packets)


def list_of(packets):
    """As the agent reads them."""
    last = Packet("provider", 0, 4, UDP, FAR[4][0], HERE[4], SENTINEL, SENTINEL)
    return "\n".join(packet.line() for packet in packets + [last]) + "\n"


def _some(rng, number, cpu):
    family = rng.choice((4, 6))
    other = far(rng, family, number)
    proto = rng.choices((UDP, TCP, ICMPV6 if family == 6 else ICMP), (6, 3, 2))[0]
    origin, src, dst = rng.choice((("provider", other, HERE[family]),) * 2 +
                                  (("out", HERE[family], other), ("provider", other, BEHIND[family]),
                                   ("client", BEHIND[family], other)))
    first = Packet(origin, cpu, family, proto, src, dst, rng.choice(SPORTS), rng.choice(DPORTS),
                   ttl=rng.choices(TTLS, (1, 3, 8, 3))[0], dscp=rng.choice((0, 0, 10, 46)),
                   payload=rng.choice((0, 12, 25)))
    if proto == TCP:
        first.flags = rng.choices((0x02, 0x10, 0x11, 0x04, 0x29), (8, 2, 1, 1, 1))[0]  # SYN, ACK, FIN ACK, RST, xmas
    elif proto != UDP:
        echo, answer = (128, 129) if family == 6 else (8, 0)
        first.sport, first.dport = rng.choice(((echo, 0), (echo, 0), (answer, 0), (1 if family == 6 else 3, 3)))
        first.payload = 25
    kind = rng.random()
    if kind < 0.12:  # the same flow again
        return [first] * rng.randrange(2, 5)
    if kind < 0.25 and proto in (UDP, TCP) and origin != "provider":  # an answer, which conntrack knows
        back = Packet("provider", cpu, family, proto, dst, src, first.dport, first.sport,
                      flags=0x12 if proto == TCP else 0)
        return [first, back]
    return [first]
