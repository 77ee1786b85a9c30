# SPDX-License-Identifier: GPL-2.0-only
"""What the kernel and its own tools say: rules with positions, handles and counters, and which one dropped a packet.

Nothing here comes from tsdroptrace.
"""

import ipaddress
import json
import re
from dataclasses import dataclass, field
from typing import Optional

from .guest import packet_key

BUILTIN = {"PREROUTING": "prerouting", "INPUT": "input", "FORWARD": "forward", "OUTPUT": "output",
           "POSTROUTING": "postrouting"}


@dataclass
class Rule:
    text: str
    packets: Optional[int] = None
    bytes: Optional[int] = None
    handle: Optional[int] = None

    @property
    def target(self):
        """Of an iptables rule: "DROP", "RETURN", the name of a chain, or nothing."""
        found = re.search(r" -[jg] (\S+)", re.sub(r'"(\\.|[^"\\])*"', "", self.text))
        return found and found.group(1)

    @property
    def drops(self):
        return self.target in ("DROP", "REJECT")


@dataclass
class Chain:
    policy: Optional[str] = None  # "drop", "accept"
    packets: Optional[int] = None  # of the policy
    bytes: Optional[int] = None
    hook: Optional[str] = None
    rules: list = field(default_factory=list)


class Ruleset:
    """chains[(family, table, chain)]; families as in JSON lines."""

    def __init__(self):
        self.chains = {}

    def add_save(self, text, family):
        """The output of iptables-save -c or ip6tables-save -c."""
        table = None
        for line in text.splitlines():
            if line.startswith("*"):
                table = line[1:]
            elif match := re.match(r":(\S+) (\S+) \[(\d+):(\d+)\]", line):
                name, policy, packets, octets = match.groups()
                builtin = policy != "-"
                self.chains[family, table, name] = Chain(policy.lower() if builtin else None, int(packets), int(octets),
                                                         BUILTIN.get(name) if builtin else None)
            elif match := re.match(r"(?:\[(\d+):(\d+)\] )?(-A (\S+).*)", line):
                packets, octets, rule, name = match.groups()
                self.chains[family, table, name].rules.append(
                    Rule(rule, packets and int(packets), octets and int(octets)))
        return self

    def add_listing(self, listing, counters, family, table):
        """What arptables-legacy -L -n or ebtables-legacy -L prints, and the same with counters, in one table."""
        header = r"(?:Chain (\S+) \((?:policy (\S+)|\d+ references)(?: (\d+) packets)?|Bridge chain: (\S+), entries: \d+, policy: (\S+))"
        numbers = []
        for text, counted in ((listing, False), (counters, True)):
            name = None
            for line in text.splitlines():
                if match := re.match(header, line):
                    name = match.group(1) or match.group(4)
                    policy = (match.group(2) or match.group(5) or "").rstrip(")").lower()
                    chain = self.chains.setdefault((family, table, name), Chain(policy, hook=BUILTIN.get(name)))
                    if counted and match.group(3):
                        chain.packets = int(match.group(3))
                    numbers = []
                elif name and line.strip():
                    if counted:
                        numbers.append(int(re.search(r", pcnt ?= ?(\d+) -- bcnt", line).group(1)))
                        self.rule(family, table, name, len(numbers)).packets = numbers[-1]
                    else:
                        self.chains[family, table, name].rules.append(Rule(f"-A {name} {line.rstrip()}"))
        return self

    def add_handles(self, listing):
        """Handles for chains that are known from iptables-nft-save: the nth rule of a chain is the same in both."""
        other = Ruleset().add_nft(listing)
        for key, chain in self.chains.items():
            theirs = other.chains.get(key)
            if theirs is None and not chain.rules:
                continue
            if theirs is None or len(theirs.rules) != len(chain.rules):
                raise ValueError(f"nft and iptables-nft-save do not agree on {key}")
            for mine, their in zip(chain.rules, theirs.rules):
                mine.handle = their.handle
        return self

    def add_nft(self, listing, as_json=None):
        """The output of nft -a -s list ruleset, and the counters of nft -j -a list ruleset."""
        family = table = chain = None
        for line in listing.splitlines():
            line = line.strip()
            if match := re.match(r"table (\S+) (\S+) \{", line):
                family, table = match.groups()
                chain = None
            elif match := re.match(r"(chain|set|map|limit|quota|counter) (\S+) \{", line):
                chain = match.group(2) if match.group(1) == "chain" else None
                if chain is not None:
                    self.chains[family, table, chain] = Chain()
            elif chain is not None and (match := re.match(r"type \S+ hook (\S+) .*policy (\S+);", line)):
                self.chains[family, table, chain].hook, self.chains[family, table, chain].policy = match.groups()
            elif chain is not None and (match := re.match(r"(.*) # handle (\d+)$", line)):
                self.chains[family, table, chain].rules.append(Rule(match.group(1), handle=int(match.group(2))))
        for item in json.loads(as_json)["nftables"] if as_json else []:
            if "rule" not in item:
                continue
            spec = item["rule"]
            counters = [e["counter"] for e in spec["expr"] if isinstance(e.get("counter"), dict)]
            if counters:
                _, rule = self.by_handle(spec["family"], spec["table"], spec["chain"], spec["handle"])
                rule.packets, rule.bytes = counters[0]["packets"], counters[0]["bytes"]
        return self

    def rule(self, family, table, chain, number):
        return self.chains[family, table, chain].rules[number - 1]

    def by_handle(self, family, table, chain, handle):
        """(number, rule)"""
        for number, rule in enumerate(self.chains[family, table, chain].rules, 1):
            if rule.handle == handle:
                return number, rule
        raise KeyError(f"no rule with handle {handle} in {family} {table} {chain}")


@dataclass
class Fate:
    """How the kernel's trace says that a packet ended."""
    family: str
    table: str
    path: list  # [(chain, number)], for a policy [(chain, None)]
    policy: bool
    in_dev: Optional[str]
    out_dev: Optional[str]
    length: Optional[int]
    ttl: Optional[int]
    mark: Optional[int]


class Way:
    """The way of one packet through one table at one hook, from its trace."""

    def __init__(self, table):
        self.table, self.path = table, []

    def at(self, chain, number):
        """A chain calls no chain that it was called from: one that is on the way already was returned to."""
        names = [name for name, _ in self.path]
        if chain in names:
            del self.path[names.index(chain):]
        self.path.append((chain, number))

    def left(self, chain):
        names = [name for name, _ in self.path]
        if chain in names:
            del self.path[names.index(chain):]


def lines_of_log(log):
    """(packet key, family, table, chain, kind, number, the packet's fields) of each line that the TRACE target of
    legacy tables logs."""
    for line in log.splitlines():
        match = re.search(r"TRACE: (\w+):([\w.-]+):(rule|return|policy):(\d+) (.*)", line)
        if not match:
            continue
        table, chain, kind, number, rest = match.groups()
        values = {}
        # The packet that an ICMP error is about comes in brackets.
        for name, value in re.findall(r"(\w+)=(\S*)", rest.split(" [")[0]):
            values.setdefault(name, value)  # LEN of the IP packet comes before that of UDP
        family = "ip6" if ":" in values["SRC"] else "ip"
        proto = {"ICMPv6": "icmpv6"}.get(values["PROTO"], values["PROTO"].lower())
        port = lambda name: int(values[name]) if name in values else None  # noqa: E731
        key = packet_key("ipv6" if family == "ip6" else "ipv4", proto, str(ipaddress.ip_address(values["SRC"])),
                         port("SPT"), str(ipaddress.ip_address(values["DST"])), port("DPT"))
        yield key, family, table, chain, kind, int(number), values


def drops_from_log(log, ruleset):
    """(packet key, Fate) of each dropped packet, from the lines that the TRACE target of legacy tables logs."""
    ways = {}  # packet key -> where it is
    for key, family, table, chain, kind, number, values in lines_of_log(log):
        # The kernel calls any rule without a match that ends the traversal the chain's end, be it a DROP.
        target = None
        if number <= len(ruleset.chains[family, table, chain].rules):
            target = ruleset.rule(family, table, chain, number).target
            kind = "return" if target == "RETURN" else "rule"
        way = ways.get(key)
        if way is None or way.table != table or (chain in BUILTIN and way.path and way.path[0][0] != chain):
            way = ways[key] = Way(table)
        if kind == "return":
            way.left(chain)
            continue
        way.at(chain, number)
        policy = kind == "policy"
        if policy or target in ("DROP", "REJECT", "ACCEPT"):
            del ways[key]
        if ruleset.chains[family, table, chain].policy == "drop" if policy else target in ("DROP", "REJECT"):
            yield key, _logged_fate(family, table, [(chain, None)] if policy else list(way.path), values)


def _logged_fate(family, table, path, values):
    return Fate(family, table, path, path[-1][1] is None, values["IN"] or None, values["OUT"] or None,
                int(values["LEN"]), int(values.get("TTL") or values["HOPLIMIT"]), int(values.get("MARK", "0"), 16))


def last_lines_of_log(log):
    """{packet key: Fate}: how far each packet came. Whoever calls knows that it was dropped there."""
    ways = {}
    for key, family, table, chain, kind, number, values in lines_of_log(log):
        way = ways[key][0] if key in ways else None
        if way is None or way.table != table or (chain in BUILTIN and way.path and way.path[0][0] != chain):
            way = Way(table)
        if kind == "return":
            way.left(chain)
        else:
            way.at(chain, number)
        ways[key] = way, kind, family, values
    return {key: _logged_fate(family, way.table, [(way.path[-1][0], None)] if kind == "policy" else list(way.path),
                              values)
            for key, (way, kind, family, values) in ways.items() if way.path}


def fates_from_log(log, ruleset):
    """The same as {packet key: Fate}."""
    return dict(drops_from_log(log, ruleset))


def drops_from_monitor(trace, ruleset):
    """(packet key, Fate) of each dropped packet, from the output of nft -a monitor trace."""
    packets = {}
    for line in trace.splitlines():
        match = re.match(r"trace id (\w+) (\w+) (\S+) (\S+) (packet:|rule|verdict|policy) ?(.*)", line)
        if not match:
            continue
        identity, family, table, chain, kind, rest = match.groups()
        if kind == "packet:":
            packets[identity] = (*_packet(rest), Way(table))
            continue
        key, rest_of_packet, way = packets[identity]
        policy = kind == "policy"
        if kind == "rule":
            handle = int(re.search(r"# handle (\d+) \(verdict", rest).group(1))
            way.at(chain, ruleset.by_handle(family, table, chain, handle)[0])
        dropped = rest.startswith("drop") if policy else kind == "rule" and rest.endswith("(verdict drop)")
        if dropped and key:
            yield key, Fate(family, table, [(chain, None)] if policy else list(way.path), policy, **rest_of_packet)


def fates_from_monitor(trace, ruleset):
    """The same as {packet key: Fate}."""
    return dict(drops_from_monitor(trace, ruleset))


def _packet(text):
    """(packet key, the rest of Fate) of a "packet:" line of nft's trace."""
    find = lambda pattern: (re.search(pattern, text) or [None, None])[1]  # noqa: E731
    number = lambda pattern: int(find(pattern)) if find(pattern) else None  # noqa: E731
    if match := re.search(r"arp saddr ip (\S+) arp daddr ip (\S+)", text):
        return packet_key("other", "0", match.group(1), None, match.group(2), None), {
            "in_dev": find(r'iif "(\S+)"'), "out_dev": find(r'oif "(\S+)"'), "length": None, "ttl": 0, "mark": None}
    six = "ip6 saddr" in text
    proto = next((p for p in ("udp", "tcp") if f"{p} dport" in text), "icmpv6" if six else "icmp")
    src, dst = find(r"ip6? saddr (\S+)"), find(r"ip6? daddr (\S+)")
    if src is None:
        return None, None
    key = packet_key("ipv6" if six else "ipv4", proto, src, number(rf"{proto} sport (\d+)"), dst,
                     number(rf"{proto} dport (\d+)"))
    length = number(r"ip6? length (\d+)")
    return key, {"in_dev": find(r'iif "(\S+)"'), "out_dev": find(r'oif "(\S+)"'),
                 "length": length + 40 if six and length else length,
                 "ttl": number(r"ip ttl (\d+)") or number(r"ip6 hoplimit (\d+)"), "mark": None}


def backend_name(backend):
    return {"legacy": "iptables-legacy", "families": "nftables"}.get(backend, backend)


def expected_rule(backend, ruleset, family, table, path):
    """`rule` of a drop line, but for the owner; `path` as in Fate."""
    steps = []
    for chain, number in path:
        rule = ruleset.rule(family, table, chain, number) if number else None
        steps.append({"chain": chain, "number": number,
                      "handle": rule.handle if rule and backend != "legacy" else None})
    text = rule.text if rule else None
    return {"backend": backend_name(backend), "family": family, "table": table, "chain": path[-1][0],
            "number": steps[-1]["number"], "handle": steps[-1]["handle"], "text": text, "path": steps,
            "verdict": "reject" if re.search(r"-j REJECT|\breject\b", text or "") else "drop",
            "confidence": "exact", "stale": False}
