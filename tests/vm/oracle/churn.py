# SPDX-License-Identifier: GPL-2.0-only
"""Rules that change while they drop.

Each rule that drops has ports of its own, and a comment that says them: a packet of those ports can have been dropped
by that rule only, wherever it stood and whatever stood around it. Where each rule has ever been is written down.
"""

import json

from .iptables_rules import empty_table
from .nft_rules import TRACE
from .packets import BEHIND, HERE, PRIME_LEGACY, SENTINEL, TCP, UDP, Packet, far, lines

DPORTS, SPORTS = range(7100, 7108), range(5100, 5103)
CHAINS = {"iptables": ("INPUT", "OUTPUT", "FORWARD", "one", "two"), "nft": ("input", "output", "forward", "one", "two")}


def comment(dport, sport):
    return f"rule-{dport}-{sport}"


class States:
    """A filter table of which only the order of the rules changes."""

    def __init__(self, rng, kind):
        self.rng, self.kind = rng, kind
        self.names = CHAINS[kind]
        self.chains = {name: [] for name in self.names}
        for name in self.names[:3]:
            self.chains[name] = ["jump one", "jump two"]
        for dport in DPORTS:
            for sport in SPORTS:
                if rng.random() < 0.7:
                    self.chains[rng.choice(self.names)].append((dport, sport))
        for rules in self.chains.values():
            rng.shuffle(rules)
        self.places = {}  # comment or jump -> {(chain, number)}
        self.note()

    def note(self):
        for chain, rules in self.chains.items():
            for number, rule in enumerate(rules, 1):
                if rule is not None and not isinstance(rule, str):
                    self.places.setdefault(comment(*rule), set()).add((chain, number))

    def present(self):
        return {rule for rules in self.chains.values() for rule in rules if isinstance(rule, tuple)}

    def change(self, chain):
        """One change: ("I"|"D"|"R", chain, position from 1, rule)."""
        rng = self.rng
        rules = self.chains[chain]
        movable = [at for at, rule in enumerate(rules) if not isinstance(rule, str)]
        absent = [(d, s) for d in DPORTS for s in SPORTS if (d, s) not in self.present()]
        kind = rng.choice("IIDDR")
        if kind == "I" and len(rules) < 14:
            at, rule = rng.randrange(len(rules) + 1), rng.choice(absent) if absent and rng.random() < 0.6 else None
            rules.insert(at, rule)
        elif kind == "R" and movable and absent:
            at, rule = rng.choice(movable), rng.choice(absent)
            rules[at] = rule
        elif kind == "D" and movable:
            at = rng.choice(movable)
            rule = rules.pop(at)
        else:
            return self.change(chain)
        self.note()
        return kind, chain, at + 1, rule


def iptables_rule(chain, rule):
    if rule is None:  # matches nothing that is sent
        return f"{chain} -p udp -m udp --dport 9 -m comment --comment unrelated -j DROP"
    if isinstance(rule, str):
        return f"{chain} -p udp -j {rule.split()[1]}"
    dport, sport = rule
    return f"{chain} -p udp -m udp --sport {sport} --dport {dport} -m comment --comment {comment(dport, sport)} -j DROP"


def nft_rule(rule):
    if rule is None:
        return "udp dport 9 counter drop"
    if isinstance(rule, str):
        return f"meta l4proto udp counter {rule}"
    dport, sport = rule
    return f'udp sport {sport} udp dport {dport} counter drop comment "{comment(dport, sport)}"'


def write_iptables(directory, rng, changes, trace):
    """For each family: the rules at first, and changes, each a transaction that goes on where the last one ended."""
    places = {}
    for family in (4, 6):
        states = States(rng, "iptables")
        first = {chain: list(rules) for chain, rules in states.chains.items()}
        text = ["*raw", ":PREROUTING ACCEPT [0:0]", ":OUTPUT ACCEPT [0:0]",
                 f"-A PREROUTING -p udp -m udp --dport {SENTINEL}:{PRIME_LEGACY} -j DROP"]
        text += ["-A PREROUTING -j TRACE", "-A OUTPUT -j TRACE"] * trace + ["COMMIT"]
        text += [empty_table("mangle").rstrip(), empty_table("security").rstrip()]
        text += ["*filter"] + [f":{chain} DROP [0:0]" for chain in states.names[:3]] + [":one - [0:0]", ":two - [0:0]"]
        text += [f"-A {iptables_rule(chain, rule)}" for chain in states.names for rule in first[chain]] + ["COMMIT", ""]
        (directory / f"rules.{family}").write_text("\n".join(text))
        for number in range(changes):
            block = ["*filter"]
            if number % 6 == 3:  # counters are set to zero; iptables-nft writes the rules anew for it
                block += [f"-Z {name}" for name in rng.sample(states.names, 2)]
                (directory / f"change.{number:03}.{family}").write_text("\n".join(block + ["COMMIT", ""]))
                continue
            # iptables-nft-restore 1.8.9 crashes of a rule that is replaced twice in one transaction.
            for name in rng.sample(states.names, rng.choice((1, 1, 2, 4))):
                kind, chain, at, rule = states.change(name)
                words = iptables_rule(chain, rule).split(" ", 1)[1]
                block.append(f"-D {chain} {at}" if kind == "D" else f"-{kind} {chain} {at} {words}")
            (directory / f"change.{number:03}.{family}").write_text("\n".join(block + ["COMMIT", ""]))
        places["ip6" if family == 6 else "ip"] = {name: sorted(where) for name, where in states.places.items()}
    return places


def write_nft(directory, rng, changes):
    states = States(rng, "nft")
    hooks = "".join(f"    chain {name} {{ type filter hook {name} priority 0; policy drop; }}\n"
                    for name in states.names[:3])
    rules = lambda: "; ".join(f"add rule inet churn {chain} {nft_rule(rule)}"  # noqa: E731
                              for chain in states.names for rule in states.chains[chain])
    (directory / "rules.nft").write_text(f"table inet churn {{\n    chain one {{ }}\n    chain two {{ }}\n{hooks}}}\n" +
                                         rules().replace("; ", "\n") + "\n" + TRACE)
    for number in range(changes):
        for _ in range(rng.choice((1, 3, 6))):
            states.change(rng.choice(states.names))
        # Each line is a transaction. All handles are new.
        text = ["; ".join(f"flush chain inet churn {chain}" for chain in states.names) + "; " + rules()]
        if rng.random() < 0.2:
            text += ["add table ip unrelated; add chain ip unrelated one; add rule ip unrelated one drop",
                     "delete table ip unrelated"]
        (directory / f"change.{number:03}.nft").write_text("\n".join(text) + "\n")
    return {"inet": {name: sorted(where) for name, where in states.places.items()}}


def packets(rng, count):
    found = []
    for number in range(1, count + 1):
        family, cpu = rng.choice((4, 6)), rng.randrange(2)
        other = far(rng, family, number)
        origin, src, dst = rng.choice((("provider", other, HERE[family]), ("provider", other, HERE[family]),
                                       ("out", HERE[family], other), ("provider", other, BEHIND[family])))
        proto = UDP if rng.random() < 0.97 else TCP
        found.append(Packet(origin, cpu, family, proto, src, dst, rng.choice(SPORTS), rng.choice(DPORTS), flags=2))
    return found


def write(directory, backend, rng, changes, count):
    directory.mkdir(parents=True)
    if backend == "nftables":
        places = write_nft(directory, rng, changes)
    else:
        places = write_iptables(directory, rng, changes, backend == "legacy")
    (directory / "places.json").write_text(json.dumps(places))
    # Two lists: the rules begin to change when they have been read.
    (directory / "prime").write_text(lines([], (backend,), True))
    (directory / "packets").write_text(lines(packets(rng, count), (backend,), False))
