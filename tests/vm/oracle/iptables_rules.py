# SPDX-License-Identifier: GPL-2.0-only
"""Random rulesets for iptables-restore and ip6tables-restore, of both backends."""

import ipaddress

from .packets import BEHIND, DPORTS, FAR, HERE, PRIME_LEGACY, SENTINEL, SPORTS

HOOKS = {"raw": ("PREROUTING", "OUTPUT"),
         "mangle": ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"),
         "filter": ("INPUT", "FORWARD", "OUTPUT"),
         "security": ("INPUT", "FORWARD", "OUTPUT")}
REJECTS = {4: ("icmp-port-unreachable", "icmp-host-prohibited", "icmp-net-unreachable", "icmp-admin-prohibited"),
           6: ("icmp6-port-unreachable", "icmp6-adm-prohibited", "icmp6-no-route", "icmp6-addr-unreachable")}
STATES = ("NEW", "ESTABLISHED", "INVALID", "NEW,ESTABLISHED", "RELATED,ESTABLISHED", "UNTRACKED")
NAMES = ("{}", "chain-{}", "to.{}", "LOG_{}", "a-name-of-28-letters-is-ma{:02}", "DROP-{}", "ts-input{}")


def network(rng, family):
    """A network of far hosts, or one that covers half of them or more."""
    base = int(ipaddress.ip_address(rng.choice(FAR[family])))
    width = 128 if family == 6 else 32
    prefix = width - rng.choice((16, 16, 8, 6, 5, 20))
    return str(ipaddress.ip_network((base + 256 + rng.randrange(256), prefix), strict=False))


def address_range(rng, family):
    first = ipaddress.ip_address(int(ipaddress.ip_address(rng.choice(FAR[family]))) + 256 + rng.randrange(64))
    return f"{first}-{first + rng.randrange(1, 512)}"


def ports(rng, choices, most=4):
    """"7000", "7000:7003": as --dport takes them."""
    first = rng.randrange(choices[0], choices[-1])
    return rng.choice((str(first), f"{first}:{first + rng.randrange(1, most)}"))


class Writer:
    def __init__(self, rng, family, level):
        self.rng, self.family, self.level = rng, family, level
        self.comments = 0
        # The table that drops most; the others let most packets by.
        self.focus = rng.choices(("filter", "mangle", "raw", "security"), (5, 3, 1, 1.5))[0]

    # ---- matches ----

    def protocol(self):
        rng, icmp = self.rng, "icmpv6" if self.family == 6 else "icmp"
        proto = rng.choice(("udp", "udp", "tcp"))
        kind = rng.randrange(13)
        if kind < 4:
            return f"-p {proto} --dport {ports(rng, DPORTS)}"
        if kind == 4:
            return f"-p {proto} ! --dport {ports(rng, DPORTS, 12)}"
        if kind == 5:
            return f"-p {proto} --sport {ports(rng, SPORTS, 3)}"
        if kind == 6:
            some = sorted(rng.sample(DPORTS, rng.randrange(2, 6)))
            return f"-p {proto} -m multiport --{rng.choice(('dports', 'ports'))} {','.join(map(str, some))}"
        if kind == 7:
            return rng.choice(("-p tcp --syn", "-p tcp ! --syn", "-p tcp --tcp-flags FIN,ACK FIN,ACK",
                               "-p tcp --tcp-flags ALL FIN,PSH,URG", "-p tcp --tcp-flags RST RST"))
        if kind == 8:
            names = ("echo-request", "echo-reply", "destination-unreachable")
            return f"-p {icmp} --{icmp}-type {rng.choice(names)}" if self.family == 4 else \
                f"-p {icmp} --icmpv6-type {rng.choice(names)}"
        if kind == 9:
            return f"-p {icmp}"
        return rng.choice((f"-p {proto}", "! -p tcp", "", ""))

    def extra(self, chain):
        rng, family = self.rng, self.family
        outward, inward = chain in ("OUTPUT", "POSTROUTING"), chain in ("PREROUTING", "INPUT")
        kinds = [lambda: f"{rng.choice(('', '! '))}-s {network(rng, family)}",
                 lambda: f"{rng.choice(('', '! '))}-d {network(rng, family)}",
                 lambda: f"-d {rng.choice((HERE, BEHIND))[family]}",
                 lambda: f"-m mark {rng.choice(('', '! '))}--mark 0x{rng.randrange(0, 4):x}",
                 lambda: f"-m conntrack --ctstate {rng.choice(STATES)}",
                 lambda: f"-m limit --limit 1/hour --limit-burst {rng.randrange(1, 6)}",
                 lambda: f"-m statistic --mode nth --every {rng.randrange(2, 5)} --packet 0",
                 lambda: f"-m statistic --mode random --probability 0.{rng.randrange(2, 9)}",
                 lambda: f"-m length --length {rng.choice(('0:52', '53:65', '20:60', '61:'))}",
                 lambda: f"-m ttl --ttl-{rng.choice(('eq', 'lt', 'gt'))} 64" if family == 4 else
                 f"-m hl --hl-{rng.choice(('eq', 'lt', 'gt'))} 64",
                 lambda: f"-m dscp --dscp {rng.choice((0, 10, 46))}",
                 lambda: f"-m addrtype --dst-type {rng.choice(('LOCAL', 'UNICAST'))}"
                 if chain != "PREROUTING" or family == 4 else "",
                 lambda: "-m pkttype --pkt-type unicast",
                 lambda: f"-m cpu --cpu {rng.randrange(2)}",
                 lambda: '-m string --algo bm --string "tsdroptrace oracle"',
                 lambda: f"-m connmark {rng.choice(('', '! '))}--mark 0x1",
                 lambda: "-m state --state NEW",
                 lambda: '-m u32 --u32 "0>>22&0x3C@0>>16&0x1=1"' if family == 4 else "",
                 lambda: f"-m iprange --{rng.choice(('src', 'dst'))}-range {address_range(rng, family)}",
                 self.comment]
        if not outward:
            kinds += [lambda: f"{rng.choice(('', '! '))}-i {rng.choice(('eth0', 'eth1', 'eth+', 'lo'))}"] * 2
        if not inward:
            kinds += [lambda: f"{rng.choice(('', '! '))}-o {rng.choice(('eth0', 'eth1', 'eth+'))}"] * 2
        return rng.choice(kinds)()

    def comment(self):
        self.comments += 1
        words = (f"rule {self.comments}", f"it's {self.comments} \\\"quoted\\\"", f"a back\\\\slash {self.comments}",
                 f"-j ACCEPT {self.comments}", f"naïve {self.comments}")
        return f'-m comment --comment "{self.rng.choice(words)}"'

    def matches(self, chain):
        rng = self.rng
        extras = rng.choices((0, 1, 2, 3), (6, 4, 1 + self.level, self.level))[0]
        found = []
        for words in [self.protocol()] + [self.extra(chain) for _ in range(extras)]:
            # Options that may be given once only.
            options = {word for word in words.split() if word[0] == "-" and word != "-m"}
            if not any(options & set(text.split()) for text in found):
                found.append(words)
        return " ".join(words for words in found if words)

    # ---- rules ----

    def target(self, table, later, builtin):
        rng = self.rng
        kinds = [("-j DROP", 3 if table == self.focus else 1), ("-j ACCEPT", 1.5), ("-j RETURN", 1.5), ("", 1),
                 ("-j NFLOG --nflog-group 9", 0.3)]
        if table == "mangle":
            kinds += [(f"-j MARK --set-mark {rng.randrange(0, 4)}", 1), ("-j CONNMARK --set-mark 1", 0.5),
                      ("-j DSCP --set-dscp 10", 0.5)]
        if later:
            kinds += [(f"-j {rng.choice(later[:4])}", 12 if builtin else 6), (f"-g {rng.choice(later[:4])}", 2)]
        if table == "filter":
            kinds.append((f"-j REJECT --reject-with {rng.choice(REJECTS[self.family])}", 1))
        if table == "raw":
            kinds.append(("-j CT --notrack", 0.6))
        return rng.choices([text for text, _ in kinds], [weight for _, weight in kinds])[0]

    def rule(self, table, chain, later):
        rng, builtin = self.rng, chain in HOOKS[table]
        target = self.target(table, later, builtin)
        matches = self.matches(chain)
        if target.split()[-1:] and target.split()[-1] in later:  # many packets into the chains, so that ways are long
            matches = rng.choice((matches, "", "-p udp", "! -p tcp", self.extra(chain)))
        elif target and not builtin and rng.random() < 0.15:
            matches = ""
        if rng.random() < 0.04 and table == "filter":
            matches, target = f"-p tcp --dport {ports(rng, DPORTS)}", "-j REJECT --reject-with tcp-reset"
        # Rules that take every packet early leave nothing for those after them.
        if target in ("-j DROP", "-j ACCEPT") and builtin:
            matches = matches or self.protocol()
        return " ".join(word for word in (f"-A {chain}", matches, target) if word)

    def table(self, table, trace):
        rng, level = self.rng, self.level
        hooks, main = HOOKS[table], table == self.focus
        most = 4 + 2 * level if main else 2 + level
        chains = [rng.choice(NAMES).format(n) for n in range(rng.randrange(most // 2, most))]
        policy = lambda: "DROP" if rng.random() < (0.07 if main else 0.03) else "ACCEPT"  # noqa: E731
        lines = [f"*{table}"] + [f":{hook} {policy()} [0:0]" for hook in hooks]
        lines += [f":{name} - [0:0]" for name in chains]
        rules = []
        for hook in hooks:
            count = rng.randrange(3, 7 + 2 * level) if main else rng.randrange(0, 3 + level)
            rules += [self.rule(table, hook, chains) for _ in range(count)]
        for at, name in enumerate(chains):
            # Some are empty; a chain that jumps calls only those after it, so that nothing loops.
            rules += [self.rule(table, name, chains[at + 1:]) for _ in range(rng.choice((0, 2, 3, 4, 5, 6)))]
        rng.shuffle(rules)
        if table == "raw":
            lines.append(f"-A PREROUTING -p udp --dport {SENTINEL}:{PRIME_LEGACY} -j DROP")
            if trace:
                lines += ["-A PREROUTING -j TRACE", "-A OUTPUT -j TRACE"]
        return "\n".join(lines + rules + ["COMMIT", ""])

    def ruleset(self, trace):
        likely = {"raw": 1, "mangle": 0.7, "security": 0.4, "filter": 1, self.focus: 1}
        return "".join(self.table(table, trace) if self.rng.random() < likely[table] else empty_table(table)
                       for table in HOOKS)


def empty_table(table):
    return "\n".join([f"*{table}"] + [f":{hook} ACCEPT [0:0]" for hook in HOOKS[table]] + ["COMMIT", ""])


def ruleset(rng, family, level, trace):
    """`trace`: by the TRACE target, for legacy tables."""
    return Writer(rng, family, level).ruleset(trace)
