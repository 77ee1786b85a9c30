# SPDX-License-Identifier: GPL-2.0-only
"""Random rules of arptables and ebtables: no trace tells where a packet has been, but the counters of all rules before
it and after it do."""

import json
import re
from collections import Counter, defaultdict
from dataclasses import dataclass

from .differential import attribution, by_netfilter, compare, counts, is_sent_here, shifted
from .guest import check_lines, key_of
from .oracle import Ruleset, expected_rule
from .report import difference

# Where each packet goes: (family, table, chain, device that it came in by, device that it leaves by). ARP to the bridge
# itself comes to the table of ARP, too.
ARP_IN, ARP_OUT = ("arp", "filter", "INPUT", "eth0", None), ("arp", "filter", "OUTPUT", None, "eth0")


def stations(origin, is_arp):
    sender, _, receiver = origin.partition(">")
    if sender == "provider":
        return [ARP_IN]
    if sender == "out" and is_arp:
        return [ARP_OUT]
    if sender == "out":
        return [("bridge", table, chain, None, "right") for table, chain in
                (("nat", "OUTPUT"), ("filter", "OUTPUT"), ("nat", "POSTROUTING"))]
    first = ("bridge", "nat", "PREROUTING", sender, None)
    if receiver == "bridge":
        return [first, ("bridge", "filter", "INPUT", sender, None)] + [("arp", "filter", "INPUT", "br0", None)] * is_arp
    return [first, ("bridge", "filter", "FORWARD", sender, receiver), ("bridge", "nat", "POSTROUTING", None, receiver)]


@dataclass(frozen=True)
class Met:
    """Rules and policies: how often each has still to be met, and those that have been, in their order."""
    left: Counter
    places: tuple = ()

    def now(self, place):
        return Met(self.left - Counter([place]), self.places + (place,))


class Walk:
    """All ways of one packet through the rules, on none of which a rule is met more often than its counter says."""

    def __init__(self, rules, stops):
        self.rules, self.stops = rules, stops
        self.jumps = defaultdict(list)  # (family, table, chain) -> the rules that lead there
        for (family, table, name), chain in rules.chains.items():
            for number, rule in enumerate(chain.rules, 1):
                self.jumps[family, table, verdict_of(rule)].append((family, table, name, number))

    def ways(self, met):
        """Yields (where it was dropped: (number of the stop, path), or None; whether it was answered; what it met)."""
        return self._station(0, met)

    def _station(self, at, met):
        if at == len(self.stops):
            yield None, False, met
            return
        yield from self._rule(at, [(self.stops[at][2], 1)], met)

    def _decided(self, at, path, verdict, met, answered=False):
        if verdict == "drop":
            yield (at, path), answered, met
        else:
            yield from self._station(at + 1, met)

    def _rule(self, at, way, met):
        """`way`: [(chain, number of the rule that it is at)]"""
        family, table, *_ = self.stops[at]
        chain, number = way[-1]
        there = self.rules.chains[family, table, chain]
        if number > len(there.rules):
            yield from self._end_of_chain(at, way, there, met)
            return
        following = [*way[:-1], (chain, number + 1)]
        here = family, table, chain, number
        # What has counted more often than the packet will come here again has counted now.
        again = sum(met.left[jump] for jump in self.jumps[family, table, chain])
        if met.left[here] <= again:
            yield from self._rule(at, following, met)
        if 0 < met.left[here] <= again + 1:
            yield from self._matched(at, way, following, there.rules[number - 1], met.now(here))

    def _end_of_chain(self, at, way, there, met):
        chain = way[-1][0]
        here = (*self.stops[at][:2], chain, None)
        if len(way) > 1 and there.policy in ("", "return"):
            yield from self._rule(at, after_jump(way), met)
        elif there.packets is None:  # with ebtables, policies are not counted
            yield from self._decided(at, [(chain, None)], there.policy, met)
        elif met.left[here] > 0:
            yield from self._decided(at, [(chain, None)], there.policy, met.now(here))

    def _matched(self, at, way, following, rule, met):
        target = verdict_of(rule)
        if target in ("drop", "accept"):
            yield from self._decided(at, way, target, met, rule.target == "arpreply")
        elif target == "continue":
            yield from self._rule(at, following, met)
        elif target == "return":
            yield from self._rule(at, after_jump(way), met)
        else:
            yield from self._rule(at, [*way, (target, 1)], met)


def after_jump(way):
    return [*way[:-2], (way[-2][0], way[-2][1] + 1)]


def verdict_of(rule):
    """"drop", "accept", "continue", "return", or the name of a chain."""
    target = rule.target
    if target is None:
        return "continue"
    if match := re.search(r"--(?:[a-z]+-)?target (\w+)", rule.text):
        return match.group(1).lower()
    if target in ("mark", "snat", "dnat", "redirect", "mangle"):
        return "accept"
    if target in ("DROP", "ACCEPT", "CONTINUE", "RETURN"):
        return target.lower()
    return "drop" if target == "arpreply" else target


# ---- what the guest left ----

def counts_by_rule(rules, family, table, words):
    """{(family, table, chain, number, or None for the policy): packets}, from what the agent says of one table. The
    tools print built-in chains in the order of the kernel's entries; the others begin with their name in the table of
    ARP, and are in order in those of bridges."""
    found, words = {}, list(words)

    def take(chain, policy):
        for number in range(1, len(rules.chains[family, table, chain].rules) + 1):
            found[family, table, chain, number] = int(words.pop(0))
        if policy:
            found[family, table, chain, None] = int(words.pop(0))

    chains = [name for *place, name in rules.chains if place == [family, table]]
    for chain in chains:
        if family == "bridge" or rules.chains[family, table, chain].hook:
            take(chain, family == "arp")
    while family == "arp" and words[0] != "@ERROR":
        take(words.pop(0)[1:], False)
        words.pop(0)  # the return at its end
    if words not in ([], ["@ERROR"]):
        raise ValueError(f"{family} {table} has more entries than the tool prints: {words}")
    return found


def read_rules(guest, scenario, name):
    rules = Ruleset()
    for path in sorted((guest.directory / scenario).glob(f"{name}.*.list")):
        family, table = path.name.split(".")[1].split(":")
        rules.add_listing(path.read_text(), path.with_suffix(".counters").read_text(), family, table)
    return rules


def tool_counts(rules):
    """{(family, table, chain, number or None): packets}, as the tools print them."""
    found = {}
    for place, chain in rules.chains.items():
        found.update({(*place, number): rule.packets for number, rule in enumerate(chain.rules, 1)})
        if chain.packets is not None and chain.hook:
            found[(*place, None)] = chain.packets
    return found


def read_counts(lines, rules):
    """The same, before all packets and after each, and when each of them was sent."""
    counts_then, times = [{}], []
    for line in lines:
        words = line.split()
        if words[0] in ("packet", "end"):
            times.append(int(words[1]))
            counts_then.append({})
        elif words[0] == "counters":
            counts_then[-1].update(counts_by_rule(rules, *words[1:3], words[3:]))
    return counts_then[:-1], times


class Step:
    """One packet, and all that can have become of it."""

    def __init__(self, origin, key, begin, end, rules, moved):
        self.key, self.begin, self.end, self.rules = key, begin, end, rules
        self.stops = stations(origin, key[0] == "other")
        self.ends = []  # of each: what is expected of its drop lines
        for fate, answered, met in Walk(rules, self.stops).ways(Met(Counter(moved))):
            fates = [self.expected(self.key, self.stops, fate, met.places)] if fate else []
            # The answer leaves by where the request has come from.
            reply = [("arp", "filter", "OUTPUT", None, self.stops[0][3])]
            answer = ["other", "0", key[4], None, key[2], None]
            for its_fate, _, then in Walk(rules, reply).ways(met) if answered else [(None, False, met)]:
                places = then.places[len(met.places):]
                end = fates + ([self.expected(answer, reply, its_fate, places)] if its_fate else [])
                if not +then.left and end not in self.ends:
                    self.ends.append(end)

    def expected(self, key, stops, fate, met):
        at, path = fate
        family, table, chain, in_dev, out_dev = stops[at]
        rule = expected_rule("legacy", self.rules, family, table, path)
        key = list(key)
        for place in met:  # what changes who asks
            change = place[3] and family == "arp" == place[0] and \
                re.search(r"--mangle-ip-s (\S+)", self.rules.rule(*place).text)
            if change:
                key[2] = change.group(1)
        hook = self.rules.chains[family, table, chain].hook
        return {"packet": key, "process": "oracle-agent" if is_sent_here(key, hook) else None,
                "kind": "rule" if path[-1][1] else "policy", "hook": hook, "in_dev": in_dev, "out_dev": out_dev,
                "unknown": None, "rule": rule}


def said(drop):
    one = attribution(drop)
    del one["length"], one["ttl"]
    return {"packet": list(key_of(drop)), **one}


def read_steps(guest, scenario, name, rules):
    """(the steps, the counters at the end)"""
    text = lambda suffix: guest.text(f"{scenario}/{name}.{suffix}")  # noqa: E731
    counted, times = read_counts(text("sent").splitlines(), rules)
    steps = []
    for at, line in enumerate(text("list").splitlines()):
        moved = {place: packets - counted[at][place] for place, packets in counted[at + 1].items()
                 if packets != counted[at][place]}
        steps.append(Step(*json.loads(line), times[at], times[at + 1], rules, moved))
    return steps, counted[-1]


# ---- what is told of it ----

def not_told(guest, rules, got, wanted):
    """Whether this is something that it cannot know, and says so."""
    if got["rule"] is not None:
        return False
    if "several chains" in (got["unknown"] or ""):
        place = wanted["rule"]["family"], wanted["rule"]["table"]
        deadly = [name for (*where, name), chain in rules.chains.items()
                  if tuple(where) == place and chain.policy == "drop"]
        return wanted["kind"] == "policy" and place[0] == "bridge" and len(deadly) > 1
    # 5.10: rules of this target are not watched.
    untold = "an extension target" in (got["unknown"] or "")
    return guest.old and untold and "-j mangle" in (wanted["rule"]["text"] or "")


def counted_rules(group, guest, validator, broken=False):
    scenario = "oracle-counted"
    run = guest.run(scenario)
    check_lines(group, run, validator)
    group.equal(run.exit, 0, "exit code")
    group.equal(run.final["lost"], {}, "nothing was lost")
    places, found, faults = Counter(), Counter(), Counter()
    rounds = sorted(path.stem for path in (guest.directory / scenario).glob("[0-9]*.sent"))
    for name in rounds:
        rules = read_rules(guest, scenario, name.split("-")[0])
        steps, last = read_steps(guest, scenario, name, rules)
        if name == max(other for other in rounds if other.split("-")[0] == name.split("-")[0]):
            group.equal(last, tool_counts(rules), f"{name}: counters at the end, as the tools print them")
        for number, step in enumerate(steps, 1):
            found["sent"] += 1
            what = f"{name}, packet {number}, {step.key}"
            drops = [said(drop) for drop in run.drops if step.begin <= drop["mono_ns"] < step.end and by_netfilter(drop)
                     and drop["netns"]["inode"] == guest.netns and counts(key_of(drop))]
            if not group.true(step.ends, f"{what}: a way on which each rule is met as often as it has counted"):
                continue
            found["several"] += len(step.ends) > 1
            off = [shifted(drop) for drop in drops]
            result = judge(off if broken else drops, step.ends)
            found["dropped"] += bool(drops)
            for kind in ("wrong", "missing", "spurious", "stale", "unread", "unknown", "no_path"):
                for _, one, *wanted in getattr(result, kind):
                    if wanted and not_told(guest, rules, one, wanted[0]):
                        found["untold"] += 1
                    else:
                        group.true(False, f"{what}: {kind}: {'; '.join(difference(one, *wanted)) if wanted else one}")
            for _, one in result.right_ones:
                group.passed += 1
                places[one["rule"]["family"], one["hook"]] += 1
                if one["rule"]["number"]:
                    found["named"] += 1
                    faults["off by one"] += len(judge([shifted(one)], step.ends).wrong) == 1
            if drops and not broken and result.right == len(drops):
                found["right"] += 1
                faults["one less"] += len(judge(drops[1:], step.ends).missing) == 1
                faults["one more"] += len(judge(drops + drops[:1], step.ends).spurious) == 1
    print(f"    counted: {found['sent']} packets, {found['dropped']} of them dropped, {found['untold']} by what is "
          f"said not to be known; {found['several']} may have gone several ways")
    print("    " + ", ".join(f"{' '.join(place)} {count}" for place, count in sorted(places.items())))
    kinds = {name.split("-")[1] for name in rounds}
    group.true("arp" in kinds, "the table of ARP", kinds)
    group.equal("bridge" in kinds, guest.kernel.startswith("6."), "tables of bridges are there, and told of")
    for kind in kinds:
        count = sum(packets for (family, _), packets in places.items() if family == kind)
        group.true(count >= 3, f"packets that were dropped in family {kind}", count)
    group.true(found["several"] <= found["sent"] / 10, "packets that may have gone several ways", found["several"])
    # On 5.10 chance decides how many rules have a target that is not watched.
    group.true(guest.old or found["untold"] <= found["dropped"] / 2, "packets of which it says that it does not know",
               found["untold"])
    # The oracle itself must notice what is off by one, lacking, or told twice.
    group.equal(faults["off by one"], found["named"], "rules whose number is off by one and which the oracle notices")
    for fault in ("one less", "one more"):
        group.equal(faults[fault], found["right"], f"packets of which the oracle notices {fault} line")


def judge(drops, ends):
    """Of several ends that it may have had, the one that comes nearest to what is said."""
    results = [compare([(tuple(drop["packet"]), drop) for drop in drops],
                       [(tuple(fate["packet"]), fate) for fate in end]) for end in ends]
    return max(results, key=lambda result: (result.right, not result.missing and not result.spurious))
