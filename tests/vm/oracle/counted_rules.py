# SPDX-License-Identifier: GPL-2.0-only
"""Random rules for arptables-legacy and ebtables-legacy-restore, of which the kernel has no trace."""

from .iptables_rules import network
from .packets import (ASKED, BEHIND, DPORTS, FAR, HERE, MACS, PRIME_LEGACY, PRIME_NFT, SPORTS, UDP, ArpPacket, Packet,
                      address, bridged, far)

PRIME_ASKED = "10.9.9.9"
# The oracle's own packets, which rules drop that come first in each table.
ARP_PRIME = [ArpPacket("prime:provider", 0, 1, FAR[4][0], PRIME_ASKED)]
BRIDGE_PRIME = [Packet("prime:left>right", 0, 4, UDP, FAR[4][0], BEHIND[4], port, port)
                for port in (PRIME_NFT, PRIME_LEGACY)]
ARP_HOOKS = ("INPUT", "OUTPUT")
TABLES = {"filter": ("INPUT", "FORWARD", "OUTPUT"), "nat": ("PREROUTING", "OUTPUT", "POSTROUTING")}
NAMES = ("one", "to-{}", "x.{}", "a_long_name_of_a_chain{}", "D_{}", "last")
INWARD, OUTWARD = ("PREROUTING", "INPUT"), ("OUTPUT", "POSTROUTING")


class Writer:
    """One table."""
    deadly = 1.0
    nothing = "CONTINUE"  # a target that leaves the packet to the next rule

    def __init__(self, rng, level, hooks):
        self.rng, self.level, self.hooks = rng, level, hooks
        self.chains = [name.format(n) for n, name in enumerate(NAMES)][:rng.randrange(2, 4 + level)]

    def negated(self):
        return self.rng.choice(("", "", "! "))

    def verdict(self, chain, later, extensions):
        rng = self.rng
        kinds = [("DROP", 3 * self.deadly), ("ACCEPT", 1), (rng.choice(extensions), 2 * self.deadly),
                 (self.nothing, 0.7)]
        if chain not in self.hooks:
            kinds.append(("RETURN", 1))
        if later:
            kinds.append((rng.choice(later[:3]), 8 if chain in self.hooks else 4))
        return rng.choices([text for text, _ in kinds], [weight for _, weight in kinds])[0]

    def rule(self, chain, later):
        target = self.verdict(chain, later, self.extensions(chain))
        matches = self.matches(chain)
        if target in later:
            if self.rng.random() < 0.6:  # many packets into the chains: long ways
                matches = ""
        else:
            # A rule that takes every packet leaves nothing for those after it.
            while not matches and (chain in self.hooks or self.rng.random() < 0.8):
                matches = self.matches(chain)
        return " ".join(f"-A {chain} {matches} {target and '-j ' + target}".split())

    def rules(self):
        rng = self.rng
        rules = [self.rule(hook, self.chains) for hook in self.hooks for _ in range(rng.randrange(2, 5 + self.level))]
        for at, chain in enumerate(self.chains):
            rules += [self.rule(chain, self.chains[at + 1:]) for _ in range(rng.choice((1, 2, 3, 4, 5)))]
        rng.shuffle(rules)  # those of one chain do not come together
        return rules

    def policies(self, chains):
        """Of some chains. Where more than one drops, nobody knows with ebtables which one it was."""
        drops = self.rng.sample(chains, min(len(chains), self.rng.choices((0, 1, 2), (5, 4, 1))[0]))
        return {chain: "DROP" for chain in drops}


class ArpWriter(Writer):
    nothing = ""

    def __init__(self, rng, level):
        super().__init__(rng, level, ARP_HOOKS)

    @staticmethod
    def extensions(chain):
        return tuple(f"mangle --mangle-ip-s 10.0.0.{last} --mangle-target {target}"
                     for last, target in ((99, "DROP"), (98, "CONTINUE"), (97, "ACCEPT")))

    def commands(self):
        return [f"-N {chain}" for chain in self.chains] + self.rules() + \
            [f"-P {hook} {policy}" for hook, policy in self.policies(self.hooks).items()]

    def addresses(self):
        rng = self.rng
        return rng.choice((network(rng, 4), f"{ASKED}/{rng.choice((16, 24, 25))}", HERE[4], f"{ASKED[:-3]}0.0/15"))

    def matches(self, chain):
        rng = self.rng
        kinds = [lambda: f"{self.negated()}-s {self.addresses()}", lambda: f"{self.negated()}-d {self.addresses()}",
                 lambda: f"--opcode {rng.choice((1, 2))}", lambda: f"--source-mac {MACS['far']}",
                 lambda: "-s 100.64.0.0/255.192.0.1", lambda: "--h-type 1", lambda: "-d 0.0.0.1/0.0.0.1"]
        if chain in INWARD:
            kinds.append(lambda: f"-i {rng.choice(('eth0', 'br0', 'eth+'))}")
        if chain in OUTWARD:
            kinds.append(lambda: f"-o {rng.choice(('eth0', 'br0', 'eth+'))}")
        found = {}
        for text in [rng.choice(kinds)() for _ in range(rng.choice((0, 1, 1, 2)))]:
            found[text.replace("! ", "")[:2]] = text  # each option once
        return " ".join(found.values())


class BridgeWriter(Writer):
    def __init__(self, rng, level, table):
        super().__init__(rng, level, TABLES[table])
        self.table = table
        if table == "nat":  # comes first
            self.deadly = 0.4

    def extensions(self, chain):
        verdict = self.rng.choice(("DROP", "CONTINUE", "ACCEPT"))
        kinds = [f"mark --mark-set 0x{self.rng.randrange(1, 4)} --mark-target {verdict}"]
        if chain == "PREROUTING":
            kinds += [f"dnat --to-destination {MACS['right']} --dnat-target DROP", "redirect --redirect-target DROP"]
        if chain == "POSTROUTING":
            kinds.append(f"snat --to-source {MACS['here']} --snat-target {verdict}")
        return kinds

    def lines(self, first):
        """As ebtables-legacy-restore reads them; `first`: rules before the others."""
        policies = {**{hook: "ACCEPT" for hook in self.hooks},
                    **{chain: self.rng.choices(("RETURN", "ACCEPT"), (10, 1))[0] for chain in self.chains}}
        policies.update(self.policies(list(policies)))
        return [f"*{self.table}"] + [f":{chain} {policy}" for chain, policy in policies.items()] + first + self.rules()

    def rule(self, chain, later):
        if chain == "PREROUTING" and self.rng.random() < 0.1:
            return f"-A PREROUTING -p ARP --arp-op Request -j arpreply --arpreply-mac {MACS['here']}"
        return super().rule(chain, later)

    def protocol(self):
        rng = self.rng
        first = rng.randrange(DPORTS[0], DPORTS[-1])
        ports = rng.choice((f"{first}", f"{first}:{first + rng.randrange(1, 8)}"))
        proto = rng.choice(("udp", "udp", "tcp"))
        return rng.choice((
            lambda: f"-p IPv4 --ip-proto {proto} --ip-dport {self.negated()}{ports}",
            lambda: f"-p IPv4 --ip-proto {proto} --ip-sport {SPORTS[0]}:{rng.choice(SPORTS)}",
            lambda: f"-p IPv4 --ip-src {self.negated()}{network(rng, 4)}",
            lambda: f"-p IPv4 --ip-dst {rng.choice((HERE, BEHIND))[4]}",
            lambda: f"-p IPv4 --ip-tos 0x{rng.choice((0, 10, 46)) << 2:02x}",
            lambda: f"-p IPv6 --ip6-proto {proto} --ip6-dport {ports}",
            lambda: f"-p IPv6 --ip6-src {self.negated()}{network(rng, 6)}",
            lambda: "-p IPv6 --ip6-proto ipv6-icmp",
            lambda: f"-p ARP --arp-op {rng.choice(('Request', 'Reply'))}",
            lambda: f"-p ARP --arp-ip-src {self.negated()}{network(rng, 4)}",
            lambda: f"-p ARP --arp-ip-dst {ASKED}/{rng.choice((24, 25))}",
            lambda: f"-p {rng.choice(('ARP', 'IPv4', 'IPv6', '! IPv4', '! ARP'))}", lambda: ""))()

    def extra(self, chain):
        rng = self.rng
        kinds = [lambda: f"-s {self.negated()}{rng.choice(list(MACS.values()))}",
                 lambda: f"-d {self.negated()}{rng.choice(list(MACS.values()))}",
                 lambda: f"--mark {self.negated()}0x{rng.randrange(4)}",
                 lambda: f"--limit 1/hour --limit-burst {rng.randrange(1, 6)}",
                 lambda: f"--pkttype-type {self.negated()}{rng.choice(('host', 'otherhost'))}"]
        if chain in INWARD + ("FORWARD",):
            kinds += [lambda: f"-i {self.negated()}{rng.choice(('left', 'right'))}"] * 2 + [lambda: "--logical-in br0"]
        if chain in OUTWARD + ("FORWARD",):
            kinds += [lambda: f"-o {self.negated()}{rng.choice(('left', 'right'))}"] * 2 + [lambda: "--logical-out br0"]
        return rng.choice(kinds)()

    def matches(self, chain):
        rng = self.rng
        extras = rng.choices((0, 1), (3, 2 + self.level))[0]
        return " ".join([self.protocol()] + [self.extra(chain) for _ in range(extras)]).strip()


# Beside the oracle's own, the first rules see to it that something dies, whatever chance makes of the others.
def arp_rules(rng, level):
    return [f"-A INPUT -d {PRIME_ASKED} -j DROP", *(f"-A {chain} -d 0.0.0.3/0.0.0.3 -j DROP" for chain in ARP_HOOKS),
            *ArpWriter(rng, level).commands()]


def bridge_rules(rng, level):
    prime = "-A {} -p IPv4 --ip-proto udp --ip-dport {} -j {}"
    return BridgeWriter(rng, level, "nat").lines([prime.format("PREROUTING", PRIME_NFT, "DROP"),
                                                  prime.format("PREROUTING", PRIME_LEGACY, "ACCEPT")]) + \
        BridgeWriter(rng, level, "filter").lines([prime.format("FORWARD", PRIME_LEGACY, "DROP"),
                                                  "-A FORWARD -p IPv4 --ip-src 0.0.0.3/0.0.0.3 -j DROP"])


def arp_packets(rng, count):
    """[(packet, the packet that is to die)]"""
    found = []
    for number in range(1, count + 1):
        if rng.random() < 0.35:
            packet = Packet("out", 0, 4, UDP, HERE[4], address(ASKED, number), rng.choice(SPORTS), rng.choice(DPORTS))
            found.append((packet, ArpPacket("out", 0, 1, HERE[4], packet.dst)))
        else:
            packet = ArpPacket(rng.choice(("provider>here", "provider>all")), 0, rng.choice((1, 1, 2)),
                               far(rng, 4, number), address(ASKED, rng.randrange(256)))
            found.append((packet, packet))
    return found


def bridge_packets(rng, count):
    """The same. None is sent to all: each packet passes each hook once."""
    found = []
    for number in range(1, count + 1):
        packet = bridged(rng, number, 0)
        if rng.random() < 0.2 or (packet.origin, packet.family) == ("out", 6):  # that bridge has no address of IPv6
            packet = ArpPacket(rng.choice(("left>right", "left>bridge", "right>left")), 0, rng.choice((1, 1, 2)),
                               far(rng, 4, number), address(ASKED, rng.randrange(256)))
        found.append((packet, packet))
    return found
