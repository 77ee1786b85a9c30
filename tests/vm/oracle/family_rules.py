# SPDX-License-Identifier: GPL-2.0-only
"""Random rulesets for nft in the families bridge, netdev and arp, and at the ingress hook of inet."""

import re

from .iptables_rules import network
from .nft_rules import Table
from .packets import ARP, ASKED, DPORTS, HERE, MACS, PRIME_NFT, PRIME_POLICY, SENTINEL

DEVICES = ("eth0", "eth1", "left", "br0")
BRIDGE_HOOKS = ("prerouting", "input", "forward", "output", "postrouting")

# As nft_rules.TRACE. What comes in is traced from its device on, and so is what is made here, from its first hook on.
TRACE = f"""table netdev oracle {{
    chain in {{
        type filter hook ingress devices = {{ {', '.join(DEVICES + ('right',))} }} priority -450; policy accept;
        udp dport {SENTINEL}-{PRIME_NFT} drop
        meta nftrace set 1
    }}
    chain policy-prime {{
        type filter hook ingress device "eth0" priority -449; policy drop;
        meta protocol != ip accept
        udp dport != {PRIME_POLICY} accept
        meta l4proto != udp accept
    }}
}}
""" + "".join(f"""table {family} oracle {{
    chain in {{
        type filter hook {first} priority -450; policy accept;
        meta nftrace set 1
    }}
    chain out {{
        type filter hook output priority -450; policy accept;
        meta nftrace set 1
    }}
}}
""" for family, first in (("bridge", "prerouting"), ("arp", "input")))
# From Linux 5.16.
TRACE_EGRESS = f"""table netdev oracle {{
    chain out {{
        type filter hook egress devices = {{ {', '.join(DEVICES + ('right',))} }} priority -450; policy accept;
        meta nftrace set 1
    }}
}}
"""


class FamilyTable(Table):
    priorities = ("-300", "-200", "-100", "-1", "0", "10", "200", "300")
    statements = ()

    def __init__(self, rng, family, name, level, hooks):
        self.all_hooks = self.main_hooks = hooks
        super().__init__(rng, family, name, level)
        # Most reach the later hooks.
        if "egress" in hooks:
            self.hooks = list(hooks)
        if family == "bridge":
            self.focus = rng.sample(BRIDGE_HOOKS[1:], 3)
        elif family != "arp" and rng.random() < 0.6:
            self.focus = [hook for hook in hooks if hook == "egress"]
        if family == "netdev" and hooks == ("ingress",):
            self.statements = (('dup to "eth1"', 0.3), ('fwd to "eth1"', 0.1))

    def ips(self):
        return {"arp": [ARP], "inet": [4, 6]}.get(self.family, [4, 6, ARP])

    def set_versions(self):
        return [4, 6]

    def may_reject(self, hooks):
        """Debian's kernels are built without nft_reject_netdev."""
        return self.family == "bridge" and set(hooks) <= {"prerouting", "input"}

    def place(self, hook):
        if self.family not in ("netdev", "inet"):
            return hook
        some = sorted(self.rng.sample(DEVICES, self.rng.choice((1, 1, 2, 3) if hook == "ingress" else (3, 4))))
        return f'{hook} device "{some[0]}"' if len(some) == 1 else f"{hook} devices = {{ {', '.join(some)} }}"

    def kind(self, hook, priority):
        return "filter"

    def reject(self):
        if self.version == ARP:
            return "drop"
        return self.rng.choice(("reject", "reject with icmpx admin-prohibited", "reject with icmpx host-unreachable"))

    # ---- matches ----

    def port_match(self, field="dport", choices=DPORTS):
        return self.arp_match() if self.version == ARP else super().port_match(field, choices)

    def address(self):
        """Of those that ARP is about."""
        rng = self.rng
        return rng.choice((network(rng, 4), HERE[4], f"{ASKED}/{rng.choice((17, 24, 27))}"))

    def arp_match(self):
        rng = self.rng
        end = rng.choice(("saddr", "daddr"))
        negated = rng.choice(("", "!= "))
        return rng.choice((
            lambda: f"arp {end} ip {negated}{self.address()}",
            lambda: f"arp {end} ip {{ {self.address()}, 10.9.0.{rng.randrange(9)} }}",
            lambda: f"arp {end} ip @nets4",
            lambda: f"arp {end} ip & 0.0.0.3 == 0.0.0.{rng.randrange(4)}",
            lambda: f"arp operation {rng.choice(('request', 'reply', '{ request, reply }', '!= reply'))}",
            lambda: f"arp saddr ether {negated}{MACS['far']}",
            lambda: f"update @seen4 {{ arp {end} ip limit rate over 1/hour burst 1 packets }}",
            lambda: "arp htype 1", lambda: "arp plen 4"))()

    def link_match(self):
        rng = self.rng
        negated = rng.choice(("", "!= "))
        return rng.choice((
            lambda: "ether type " + {4: 'ip', 6: 'ip6', ARP: 'arp'}[self.version],
            lambda: f"ether type != {rng.choice(('ip', 'ip6', 'arp'))}",
            lambda: f"ether saddr {negated}{rng.choice(list(MACS.values()))}",
            lambda: f"ether daddr {negated}{rng.choice(list(MACS.values()))}",
            lambda: f"meta pkttype {negated}{rng.choice(('host', 'broadcast', 'other'))}",
            lambda: f"meta protocol != {rng.choice(('ip', 'ip6', 'arp'))}",
            lambda: f"iifname {negated}{rng.choice(DEVICES)}",
            lambda: f"oifname {negated}{rng.choice(('left', 'right', 'eth0', 'br0'))}",
            lambda: f"meta ibrname {negated}br0" if self.family == "bridge" else "meta iiftype ether"))()

    def match(self):
        if self.rng.random() < 0.25 and self.family != "arp":
            return self.link_match()
        if self.version == ARP:
            rng = self.rng
            return rng.choice((
                lambda: f"limit rate {rng.choice(('', 'over '))}1/hour burst {rng.randrange(1, 6)} packets",
                lambda: f"numgen {rng.choice(('inc', 'random'))} mod {rng.randrange(2, 5)} 0",
                lambda: f"meta mark {rng.randrange(4)}", lambda: f"quota over {rng.randrange(60, 400)} bytes",
                lambda: f"meta cpu {rng.randrange(2)}", self.arp_match, self.arp_match))()
        while re.search(r"\bct\b|nfproto", text := super().match()):
            pass  # where nothing is tracked
        return text

    def other_match(self):
        return self.arp_match() if self.version == ARP else super().other_match()

    def map_rule(self, later):
        rng = self.rng
        if self.version != ARP:
            while re.search(r"\bct\b", text := super().map_rule(later)):
                pass
            return text
        verdict = lambda: self.verdict(later)  # noqa: E731
        return rng.choice((
            lambda: f"arp operation vmap {{ request : {verdict()}, reply : {verdict()} }}",
            lambda: f"arp daddr ip vmap {{ {self.address()} : {verdict()} }}",
            lambda: f"arp saddr ip . arp operation vmap {{ {HERE[4]} . reply : {verdict()}, "
                    f"{HERE[4]} . request : {verdict()} }}",
            lambda: f"meta mark vmap {{ 1 : {verdict()}, 2 : {verdict()} }}",
            lambda: f"numgen inc mod 3 vmap {{ 0 : {verdict()}, 1 : {verdict()} }}"))()


def ruleset(rng, level):
    """(for all kernels, for those from 5.16 in addition)"""
    tables = []

    def add(family, hooks):
        name = rng.choice(("t{}", "my-table{}", "filter{}")).format(len(tables))
        tables.append(FamilyTable(rng, family, name, level, hooks).text())

    for _ in range(rng.choice((1, 2))):
        add("bridge", rng.choice((BRIDGE_HOOKS, BRIDGE_HOOKS, ("prerouting", "input"))))
    for _ in range(rng.choice((1, 2))):
        add("arp", ("input", "output"))
    add("netdev", ("ingress",))
    if rng.random() < 0.5:
        add("inet", ("ingress",))
    add("netdev", ("ingress", "egress"))
    return "".join(tables[:-1]), tables[-1]
