# SPDX-License-Identifier: GPL-2.0-only
"""Random rulesets for nft."""

from .iptables_rules import network
from .packets import BEHIND, DPORTS, HERE, PRIME_NFT, PRIME_POLICY, SENTINEL, SPORTS

HOOKS = ("prerouting", "input", "forward", "output", "postrouting")
MAIN_HOOKS = ("input", "forward", "output")
STATES = ("new", "established", "invalid", "{ new, established }", "established,related", "untracked")
PRIORITIES = ("-300", "-200", "-150", "-1", "0", "10", "50", "200")

# Before every other table: the kernel's trace of all packets, and the drops of the oracle's own.
TRACE = f"""table inet oracle {{
    chain pre {{
        type filter hook prerouting priority -450; policy accept;
        udp dport {SENTINEL}-{PRIME_NFT} drop
        meta nftrace set 1
    }}
    chain policy-prime {{
        type filter hook prerouting priority -449; policy drop;
        udp dport != {PRIME_POLICY} accept
        meta l4proto != udp accept
    }}
    chain leaving {{
        type filter hook output priority -450; policy accept;
        meta nftrace set 1
    }}
}}
"""


class Table:
    all_hooks, main_hooks, priorities = HOOKS, MAIN_HOOKS, PRIORITIES
    statements = (("ct mark set 1", 0.3),)  # that any rule may end with

    def __init__(self, rng, family, name, level):
        self.rng, self.family, self.name, self.level = rng, family, name, level
        self.comments = 0
        self.version, self.proto = 4, "udp"  # of the rule that is written
        self.hooks = [hook for hook in self.all_hooks if rng.random() < (0.75 if hook in self.main_hooks else 0.3)]
        self.hooks = self.hooks or [self.main_hooks[0]]
        self.focus = rng.sample(self.all_hooks, min(3, len(self.all_hooks)))  # the hooks that drop most
        self.chains = [rng.choice(("c{}", "to-{}", "a_rather_long_name_for_a_chain_{}", "x.{}", "D/{}")).format(n)
                       for n in range(rng.randrange(3, 5 + 2 * level))]
        # The kernel refuses jumps to `reject` from where it cannot be.
        self.rejects = self.may_reject(self.hooks)

    def may_reject(self, hooks):
        return "postrouting" not in hooks

    def ips(self):
        return {"ip": [4], "ip6": [6], "inet": [4, 6]}[self.family]

    def set_versions(self):
        """The addresses that sets are made for."""
        return self.ips()

    def place(self, hook):
        """Between "hook" and "priority"."""
        return hook

    def kind(self, hook, priority):
        kind = "route" if hook == "output" and self.rng.random() < 0.2 else "filter"
        # The chains of nat are called by another function, for the first packet of each connection.
        return "nat" if hook != "forward" and int(priority) > -200 and self.rng.random() < 0.3 else kind

    # ---- matches ----

    def port_match(self, field="dport", choices=DPORTS):
        rng, proto = self.rng, self.proto
        first = rng.randrange(choices[0], choices[-1])
        some = ", ".join(map(str, sorted(rng.sample(choices, rng.randrange(2, 6)))))
        return rng.choice((f"{proto} {field} {first}", f"{proto} {field} {first}-{first + rng.randrange(1, 5)}",
                           f"{proto} {field} {{ {some} }}", f"{proto} {field} != {{ {some} }}",
                           f"meta l4proto {{ tcp, udp }} th {field} {first}",
                           f"{proto} {field} @{rng.choice(('ports', 'ranges'))}"))

    def match(self):
        rng, version = self.rng, self.version
        ip, ttl = ("ip6", "ip6 hoplimit") if version == 6 else ("ip", "ip ttl")
        bit, none = ("::1", "::") if version == 6 else ("0.0.0.1", "0.0.0.0")
        end = rng.choice(("saddr", "daddr"))
        negated = lambda: rng.choice(("", "!= "))  # noqa: E731
        kinds = [lambda: f"{ip} {end} {negated()}{network(rng, version)}",
                 lambda: f"{ip} {end} {{ {network(rng, version)}, {rng.choice((HERE, BEHIND))[version]} }}",
                 lambda: f"{ip} {end} @nets{version}",
                 lambda: f"meta mark {negated()}{rng.randrange(0, 4)}",
                 lambda: f"ct state {rng.choice(STATES)}",
                 lambda: f"limit rate {rng.choice(('', 'over '))}1/hour burst {rng.randrange(1, 6)} packets",
                 lambda: f"numgen {rng.choice(('inc', 'random'))} mod {rng.randrange(2, 5)} {negated()}0",
                 lambda: f"meta length {rng.choice(('< 53', '> 60', '40-64'))}",
                 lambda: f"{ttl} {rng.choice(('64', '< 64', '> 64'))}",
                 lambda: f"{ip} dscp {rng.choice(('af11', 'ef', 'cs0'))}",
                 lambda: "iifname " + negated() + rng.choice(("eth0", "eth1", '"eth*"', "{ eth0, lo }")),
                 lambda: f"oifname {negated()}{rng.choice(('eth0', 'eth1'))}",
                 lambda: f"quota {rng.choice(('', 'over '))}{rng.randrange(60, 400)} bytes",
                 lambda: f"jhash {ip} {end} mod {rng.randrange(2, 4)} seed 0x{rng.randrange(1, 99):x} 0",
                 lambda: f"meta cpu {rng.randrange(2)}",
                 lambda: f"{ip} {end} & {bit} == {none}",
                 lambda: f"ct count over {rng.randrange(1, 30)}",
                 lambda: 'limit name "few"',
                 lambda: f"update @seen{version} {{ {ip} {end} limit rate over 1/hour "
                         f"burst {rng.randrange(1, 3)} packets }}",
                 lambda: f"add @seen{version} {{ {ip} {end} }}",
                 lambda: f"meta nfproto {'ipv6' if version == 6 else 'ipv4'}" if self.family == "inet" else "",
                 lambda: f"{ip} {end} . {self.proto} dport {{ {HERE[version]} . {rng.choice(DPORTS)}, "
                         f"{BEHIND[version]} . {rng.choice(DPORTS)} }}"]
        if self.proto == "tcp":
            kinds += [lambda: "tcp flags & (fin | syn | rst | ack) == syn", lambda: "tcp flags { fin | psh | urg }"]
        return rng.choice(kinds)()

    def other_match(self):
        """One that does not go with ports."""
        icmp = "icmpv6" if self.version == 6 else "icmp"
        return self.rng.choice((f"{icmp} type {{ echo-request, echo-reply }}", f"{icmp} type != echo-request",
                                "meta l4proto { icmp, ipv6-icmp }", "meta l4proto udp", "meta l4proto != tcp"))

    def matches(self):
        rng = self.rng
        kind = rng.random()
        if kind < 0.1:
            return [self.other_match()]
        found = [self.port_match()] if kind < 0.65 else [self.port_match("sport", SPORTS)] if kind < 0.8 else []
        if found and "{ tcp, udp }" in found[0]:
            return found
        found += [self.match() for _ in range(rng.choices((0, 1, 2), (5, 4, 1 + self.level))[0])]
        return [match for match in found if match]

    # ---- rules ----

    def reject(self):
        rng = self.rng
        kinds = {"inet": ["reject", "reject with icmpx admin-prohibited", "reject with icmpx host-unreachable"],
                 "ip": ["reject", "reject with icmp admin-prohibited", "reject with icmp net-unreachable"],
                 "ip6": ["reject", "reject with icmpv6 admin-prohibited", "reject with icmpv6 no-route"]}[self.family]
        return rng.choice(kinds)

    def verdict(self, later):
        """A verdict that may stand in a map."""
        rng = self.rng
        kinds = ["drop", "drop", "accept", "return"]
        if later:
            kinds += [f"jump {rng.choice(later[:4])}", f"jump {rng.choice(later[:4])}", f"goto {rng.choice(later[:4])}"]
        return rng.choice(kinds)

    def map_rule(self, later):
        rng, version = self.rng, self.version
        ip = "ip6" if version == 6 else "ip"
        verdict = lambda: self.verdict(later)  # noqa: E731
        chosen = sorted(rng.sample(DPORTS, rng.randrange(2, 7)))
        first = rng.randrange(DPORTS[0], DPORTS[-4])
        return rng.choice((
            lambda: f"{self.proto} dport vmap {{ {', '.join(f'{port} : {verdict()}' for port in chosen)} }}",
            lambda: f"{self.proto} dport vmap {{ {first}-{first + 2} : {verdict()}, "
                    f"{first + 3}-{first + 9} : {verdict()} }}",
            lambda: f"{self.proto} dport vmap @verdicts",
            lambda: f"ct state vmap {{ established : accept, new : {verdict()}, invalid : {verdict()} }}",
            lambda: f"meta l4proto vmap {{ tcp : {verdict()}, udp : {verdict()} }}",
            lambda: f"meta mark vmap {{ 1 : {verdict()}, 2 : {verdict()}, 3 : {verdict()} }}",
            lambda: f"iifname vmap {{ eth0 : {verdict()}, eth1 : {verdict()} }}",
            lambda: f"numgen inc mod 3 vmap {{ 0 : {verdict()}, 1 : {verdict()} }}",
            lambda: f"{ip} saddr vmap {{ {network(rng, version)} : {verdict()} }}",
            lambda: f"{ip} daddr . {self.proto} dport vmap {{ {HERE[version]} . {rng.choice(DPORTS)} : {verdict()}, "
                    f"{BEHIND[version]} . {rng.choice(DPORTS)} : {verdict()} }}"))()

    def rule(self, later, base, mild):
        rng = self.rng
        self.version, self.proto = rng.choice(self.ips()), rng.choice(("udp", "udp", "tcp"))
        if rng.random() < (0.08 if mild else 0.15):
            return self.map_rule(later)
        kinds = [("drop", 1 if mild else 3), ("accept", 1.5), ("return", 1), ("", 1), ("continue", 0.3),
                 *self.statements, (f"meta mark set {rng.randrange(0, 4)}", 0.7)]
        if later:
            kinds += [(f"jump {rng.choice(later[:4])}", 12 if base and not mild else 6),
                      (f"goto {rng.choice(later[:4])}", 2)]
        if self.rejects:
            kinds.append((self.reject(), 0.3 if mild else 1))
        verdict = rng.choices([text for text, _ in kinds], [weight for _, weight in kinds])[0]
        matches = self.matches()
        if verdict.split()[-1:] and verdict.split()[-1] in later:  # many packets into the chains: long ways
            matches = rng.choice((matches, [], ["meta l4proto udp"], [self.match()]))
        if self.rejects and rng.random() < 0.04:
            matches, verdict = [f"tcp dport {rng.choice(DPORTS)}"], "reject with tcp reset"
        if base and not matches and verdict in ("drop", "accept"):
            matches = [self.port_match()]
        counter = ["counter"] if rng.random() < 0.5 or not (matches or verdict) else []
        comment = []
        if rng.random() < 0.15:
            self.comments += 1
            words = ("rule {}", "it's {} # handle 3", "drop {{ {} }}", "naïve {}", "a }} {}")
            comment = ['comment "' + rng.choice(words).format(self.comments) + '"']
        return " ".join(matches + counter + ([verdict] if verdict else []) + comment)

    # ---- chains ----

    def text(self):
        rng, level = self.rng, self.level
        lines = [f"table {self.family} {self.name} {{"]
        some = lambda count: ", ".join(map(str, sorted(rng.sample(DPORTS, count))))  # noqa: E731
        first = rng.randrange(DPORTS[0], DPORTS[-6])
        lines += ["set ports {", "type inet_service", f"elements = {{ {some(4)} }}", "}",
                  "set ranges {", "type inet_service", "flags interval",
                  f"elements = {{ {first}-{first + 2}, {first + 4}-{first + 5} }}", "}"]
        lines += ["limit few {", f"rate over 1/hour burst {rng.randrange(1, 9)} packets", "}"]
        for version in self.set_versions():
            lines += [f"set seen{version} {{", f"type ipv{version}_addr", "flags dynamic", "size 65535", "}"]
            lines += [f"set nets{version} {{", f"type ipv{version}_addr", "flags interval", "auto-merge",
                      f"elements = {{ {network(rng, version)}, {network(rng, version)} }}", "}"]
        # The chains that a map leads to: only base chains use it, so that nothing loops.
        chosen = sorted(rng.sample(DPORTS, 5))
        lines += ["map verdicts {", "type inet_service : verdict",
                  f"elements = {{ {', '.join(f'{port} : {self.verdict(self.chains)}' for port in chosen)} }}", "}"]
        blocks = []
        for at, chain in enumerate(self.chains):
            rules = [self.rule(self.chains[at + 1:], False, False) for _ in range(rng.choice((0, 2, 3, 4, 5, 6)))]
            rules = [rule for rule in rules if "@verdicts" not in rule]
            blocks.append([f"chain {chain} {{", *rules, "}"])
        number = 0
        for hook in self.hooks:
            for priority in rng.sample(self.priorities, rng.choice((1, 1, 2, 3)) if level else 1):
                number += 1
                main = hook in self.focus
                # Few: packets that a policy drops say nothing of rules.
                policy = "drop" if rng.random() < (0.05 if main else 0.02) else "accept"
                kind = self.kind(hook, priority)
                rules = [self.rule(self.chains, True, not main)
                         for _ in range(rng.randrange(1, 5 + 2 * level) if main else rng.randrange(0, 3 + level))]
                where = f"type {kind} hook {self.place(hook)} priority {priority}; policy {policy};"
                blocks.append([f"chain {hook}{number} {{", where, *rules, "}"])
        rng.shuffle(blocks)
        for block in blocks:
            lines += block
        return "\n".join(lines + ["}", ""])


def ruleset(rng, level):
    families = rng.choice((["inet"], ["ip", "ip6"], ["inet", "ip"], ["inet", "inet"], ["ip", "ip6", "inet"],
                           ["inet", "ip6", "ip", "inet"]))
    return "".join(Table(rng, family, rng.choice(("t{}", "my-table{}", "filter{}")).format(n), level).text()
                   for n, family in enumerate(families))
