# SPDX-License-Identifier: GPL-2.0-only
"""Random rulesets: what tsdroptrace says of each dropped packet against what the kernel's own trace says."""

import copy
import json
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field

from .guest import Guest, check_lines, key_of
from .oracle import Ruleset, backend_name, drops_from_log, drops_from_monitor, expected_rule, last_lines_of_log
from .report import difference

VM4, VM6 = "10.0.0.2", "fd00:a::2"
SENT_FROM = range(5000, 5008)  # source ports of the packets of the lists
ASKED = "10.3."  # where the addresses are that packets of the lists make this machine ask for
OWN_PORTS = range(65000, 65004)  # of the oracle's own packets, see tests/vm/oracle/packets.py


@dataclass
class Round:
    """One ruleset and its packets."""
    fates: list  # [(packet key, what is expected of its drop line)]
    begin: int  # CLOCK_MONOTONIC, ns
    end: int
    primed: bool  # the packets were sent after the rules had been read
    untold: list = field(default_factory=list)  # of the fates, those that this kernel does not let anybody see


@dataclass
class Result:
    right_ones: list = field(default_factory=list)
    # Not known, and said so.
    stale: list = field(default_factory=list)
    unread: list = field(default_factory=list)
    no_path: list = field(default_factory=list)
    unknown: list = field(default_factory=list)
    # Never to be.
    wrong: list = field(default_factory=list)
    missing: list = field(default_factory=list)
    spurious: list = field(default_factory=list)

    @property
    def right(self):
        return len(self.right_ones)

    def add(self, other):
        for name in ("right_ones", "stale", "unread", "no_path", "unknown", "wrong", "missing", "spurious"):
            getattr(self, name).extend(getattr(other, name))


def read_round(guest, scenario, backends, name):
    text = lambda suffix: guest.text(f"{scenario}/{name}.{suffix}")  # noqa: E731
    fates = []
    for backend in backends:
        rules = Ruleset()
        if backend in ("legacy", "iptables-nft"):
            rules.add_save(text("save4"), "ip").add_save(text("save6"), "ip6")
        traced = rules
        if backend == "iptables-nft":
            rules.add_handles(text("nft"))
            traced = Ruleset().add_nft(text("nft"))  # the trace also passes the chains that switch it on
        elif backend in ("nftables", "families"):
            rules.add_nft(text("nft"))
        drops = drops_from_log(text("log"), rules) if backend == "legacy" else drops_from_monitor(text("trace"), traced)
        fates += [(key, expected(backend, rules, key, fate)) for key, fate in drops if counts(key)]
    begin, end = times_of(guest, scenario, name)
    untold = [one for one in fates if guest.old and in_bridge_prerouting(one[1])]
    return Round([one for one in fates if one not in untold], begin, end, "primed" in text("sent"), untold)


def times_of(guest, scenario, name):
    sent = [line.split() for line in guest.text(f"{scenario}/{name}.sent").splitlines()]
    times = {words[0]: int(words[1]) for words in sent if len(words) > 1}
    return times["begin"], times["end"]


def drops_between(guest, run, begin, end):
    """[(packet key, drop line)] of what netfilter dropped in the guest's own namespace."""
    return [(key_of(drop), drop) for drop in run.drops
            if drop["netns"]["inode"] == guest.netns and begin <= drop["mono_ns"] <= end and by_netfilter(drop)
            and counts(key_of(drop))]


def in_bridge_prerouting(one):
    """5.10: br_handle_frame frees what is dropped before it, and nobody says that it was netfilter."""
    return one["rule"]["family"] == "bridge" and one["hook"] == "prerouting"


def is_sent_here(key, hook):
    """A packet of the list that leaves this machine, or what asks for its neighbour. (Of TCP, an RST may look the
    same.)"""
    listed = key[1] == "udp" and key[3] in SENT_FROM or key[0] == "other" and key[4].startswith(ASKED)
    return listed and key[2] in (VM4, VM6) and hook in ("output", "postrouting", "egress")


def attribution(drop):
    """What is compared of a drop line."""
    packet, rule, hook = drop["packet"], drop["rule"], drop["drop"]["hook"]
    process = drop["process"] and drop["process"]["comm"] if is_sent_here(key_of(drop), hook) else None
    return {"process": process, "kind": drop["drop"]["kind"], "hook": hook, "in_dev": packet["in_dev"],
            "out_dev": packet["out_dev"], "length": packet["length"] if packet["family"] != "other" else None,
            "ttl": packet["ttl"], "unknown": drop["drop"]["unknown"],
            "rule": {name: value for name, value in rule.items() if name not in ("owner", "evidence", "elements")}
            if rule else None}


def expected(backend, rules, key, fate):
    hook = rules.chains[fate.family, fate.table, fate.path[0][0]].hook
    return {"process": "oracle-agent" if is_sent_here(key, hook) else None,
            "kind": "policy" if fate.policy else "rule", "hook": hook, "in_dev": fate.in_dev,
            "out_dev": fate.out_dev, "length": fate.length, "ttl": fate.ttl, "unknown": None,
            "rule": expected_rule(backend, rules, fate.family, fate.table, fate.path)}


def counts(key):
    """Not the oracle's own packets, and not what machines say by themselves at any time: neighbour and router
    discovery, multicast listeners."""
    chatter = key[1] == "icmpv6" and (key[2].startswith(("fe80:", "::")) or key[4].startswith(("fe80:", "ff02:")))
    return key[5] not in OWN_PORTS and not chatter


def by_netfilter(drop):
    return drop["drop"]["kind"] != "kernel" or drop["drop"]["unknown"] is not None


def verdict(got, wanted):
    """Of a drop line that is not what it should be: the name of the list of Result that it belongs to."""
    rule = got["rule"]
    if rule is None:
        return "unknown"
    known = copy.deepcopy(wanted)
    if rule["stale"] or (rule["text"] is None and wanted["rule"]["text"] is not None):
        # Not read, so without its text and what else comes from reading; what the kernel's side says stays.
        last = rule["path"][-1:]
        known["rule"].update(stale=rule["stale"], text=None, verdict=rule["verdict"])
        if rule["backend"] == "iptables-legacy":
            known["rule"]["path"] = last
        if wanted["rule"]["backend"] == "iptables-nft":
            known["rule"]["backend"] = "nftables"
        return "wrong" if got != known else "stale" if rule["stale"] else "unread"
    if rule["backend"] == "iptables-legacy" and len(rule["path"]) == 1 < len(wanted["rule"]["path"]):
        known["rule"]["path"] = known["rule"]["path"][-1:]
        return "no_path" if got == known else "wrong"
    return "wrong"


def compare(drops, fates):
    """`drops`: [(packet key, attribution)] that tsdroptrace says, `fates` those that the kernel says. Packets with the
    same key are told apart by what is said of them."""
    result = Result()
    said, true = defaultdict(list), defaultdict(list)
    for key, one in drops:
        said[key].append(one)
    for key, one in fates:
        true[key].append(one)
    for key in {**said, **true}:
        left = []
        for one in said[key]:
            if one in true[key]:
                true[key].remove(one)
                result.right_ones.append((key, one))
            else:
                left.append(one)
        # Of those that are left, one that is not known must not take another's place.
        for one in sorted(left, key=lambda drop: drop["rule"] is None):
            kinds = [(verdict(one, wanted), wanted) for wanted in true[key]]
            if not kinds:
                result.spurious.append((key, one))
                continue
            kind, wanted = min(kinds, key=lambda pair: pair[0] == "wrong")
            true[key].remove(wanted)
            getattr(result, kind).append((key, one, wanted))
        result.missing += [(key, wanted) for wanted in true[key]]
    return result


def shifted(one):
    """A deliberately broken attribution: the rule before, or the handle after."""
    broken = copy.deepcopy(one)
    if broken["rule"]:
        for step in [broken["rule"], *broken["rule"]["path"][-1:]]:
            for name in ("number", "handle"):
                if step[name] is not None:
                    step[name] += 1
    return broken


def rounds_of(guest, scenario):
    return sorted(path.name.split(".")[0] for path in (guest.directory / scenario).glob("[0-9]*.sent"))


def compare_run(guest, scenario, backend, broken=False):
    """(the run, {whether the round was primed: Result}, Results of deliberate faults, rounds in which packets died,
    [(packet key, lines that name the kernel)] of what cannot be told)"""
    run = guest.run(scenario)
    totals = {False: Result(), True: Result()}
    faults = {"shifted": Result(), "one less": Result(), "one more": Result()}
    deadly, untold = 0, []
    for name in rounds_of(guest, scenario):
        one = read_round(guest, scenario, ("legacy", "nftables") if backend == "mixed" else (backend,), name)
        drops = [(key, attribution(drop)) for key, drop in drops_between(guest, run, one.begin, one.end)]
        deadly += bool(one.fates)  # chance makes rulesets, too, that accept everything at once
        off = [(key, shifted(drop)) for key, drop in drops]
        totals[one.primed].add(compare(off if broken else drops, one.fates))
        for fault, faulty in (("shifted", off), ("one less", drops[1:]), ("one more", drops + drops[:1])):
            faults[fault].add(compare(faulty, one.fates))
        for key in Counter(key for key, _ in one.untold):
            untold.append((key, [drop for drop in run.drops if key_of(drop) == key
                                 and one.begin <= drop["mono_ns"] <= one.end and not by_netfilter(drop)]))
    return run, totals, faults, deadly, untold


# Why a drop may be told without its rule: whether that holds for it, and of how many drops it may be one.
EXCUSES = {"unseen": (Guest.may_be_unseen, 50, "drops that the kernel ran no probe for"),
           "suspects": (Guest.may_be_suspects, 50, "drops by a policy, or else by a match"),
           "doubted": (Guest.may_be_doubted, 50, "drops that nothing is said of, since a task had been moved")}


def random_rules(group, guest, validator, backend, broken=False):
    scenario = f"oracle-{backend}"
    run, totals, faults, rounds, untold = compare_run(guest, scenario, backend, broken)
    check_lines(group, run, validator)
    group.equal(run.exit, 0, "exit code")
    # While rules change, a packet's programs may meet those of another one on their CPU, and say so.
    lost = {where: count for where, count in run.final["lost"].items() if where != "recursion"}
    group.equal(lost, {}, "nothing was lost")
    dropped, unknown = 0, Counter()
    for primed, result in totals.items():
        group.passed += result.right
        dropped += result.right
        for kind in ("wrong", "missing", "spurious"):
            for key, *rest in getattr(result, kind):
                group.true(False, f"{kind}: {key}: {'; '.join(difference(*rest))}" if len(rest) == 2 else
                           f"{kind}: {key}", None if len(rest) == 2 else rest[0])
        # Right after the rules have come, and their modules with them, it may say that it does not know, or have no text:
        # rules that change while they are read are not read again at once.
        for kind in ("stale", "unread", "unknown", "no_path"):
            for key, got, wanted in getattr(result, kind):
                unknown[kind] += 1
                dropped += 1
                excuse = primed and next((name for name, (holds, *_) in EXCUSES.items()
                                          if holds(guest, {"rule": got["rule"], "drop": got})), None)
                if excuse:
                    unknown[excuse] += 1
                elif primed and kind in ("stale", "unknown"):
                    group.true(False, f"{kind}: {key}: {'; '.join(difference(got, wanted))}")
    sent = sum(int(re.search(r"^sent (\d+)$", guest.text(f"{scenario}/{name}.sent"), re.M).group(1))
               for name in rounds_of(guest, scenario))
    seeds = len(guest.text(f"{scenario}/seeds").split())
    least_sent, least_dropped = {"mixed": (150, 30), "families": (250, 60)}.get(backend, (500, 100))
    group.true(sent >= least_sent * seeds, f"packets that were sent, for {seeds} seeds", sent)
    print(f"    {backend}: {sent} packets, and {dropped} drops by a rule or a policy; not fully known: {dict(unknown)}")
    group.true(dropped >= least_dropped, "packets that rules and policies dropped", dropped)
    if backend == "families":
        places = Counter((one["rule"]["family"], one["hook"]) for result in totals.values()
                         for _, one in result.right_ones)
        families = Counter()
        for (family, _), count in places.items():
            families[family] += count
        print("    " + ", ".join(f"{' '.join(place)} {count}" for place, count in sorted(places.items())))
        for family in ("bridge", "netdev", "arp"):
            group.true(families[family] >= 3, f"packets dropped in {family}", families[family])
    for key, lines in untold:
        group.true(lines, f"said to have been dropped by the kernel, where no more can be known: {key}")
    not_known = sum(unknown[kind] for kind in ("stale", "unknown")) - sum(unknown[excuse] for excuse in EXCUSES)
    group.true(not_known <= dropped * 2 / 5, "drops whose rule is not known, or stale, right after the rules have come", not_known)
    group.true(unknown["unread"] <= dropped / 4, "drops whose rule had not been read", unknown["unread"])
    # Gotos may lead to a chain in more ways than one: chance decides how often.
    group.true(unknown["no_path"] <= dropped / 2, "drops without the whole path", unknown["no_path"])
    for excuse, (_, share, what) in EXCUSES.items():
        group.true(unknown[excuse] <= dropped / share, what, unknown[excuse])
    # The oracle itself must notice what is off by one (only policies have neither number nor handle), lacking, or told
    # twice.
    named = [one for _, one in faults["shifted"].right_ones if one["rule"]["number"] or one["rule"]["handle"]]
    group.equal(named, [], "rules whose number and handle are off by one and which the oracle takes for right")
    group.true(len(faults["shifted"].wrong) >= dropped / 5,
               "rules whose number and handle are off by one and which the oracle notices",
               f"{len(faults['shifted'].wrong)} of {dropped}")
    if not broken and not any(result.missing or result.spurious for result in totals.values()):
        group.equal(len(faults["one less"].missing), rounds, "lines taken away, one for each ruleset that drops")
        group.equal(len(faults["one more"].spurious), rounds, "lines told twice, one for each ruleset that drops")


# ---- rules that change while they drop ----

class Handles:
    """Stands in for a Ruleset: rules are told by their handles."""

    @staticmethod
    def by_handle(_family, _table, _chain, handle):
        return handle, None


def churn_fates(guest, scenario, backend):
    if backend == "legacy":  # all policies are drop, and so is every rule that a trace can end with
        return list(last_lines_of_log(guest.text(f"{scenario}/churn.log")).items())
    return list(drops_from_monitor(guest.text(f"{scenario}/churn.trace"), Handles))


def churn_text(backend, chain, key):
    """The one rule that can drop a packet with these ports, as the user's own tool prints it."""
    name = f"rule-{key[5]}-{key[3]}"
    if backend == "nftables":
        return f'udp sport {key[3]} udp dport {key[5]} counter drop comment "{name}"', name
    return (f"-A {chain} -p udp -m udp --sport {key[3]} --dport {key[5]} -m comment --comment {name} -j DROP", name)


def judge_churn(backend, key, drop, fate, places):
    """What is wrong with a drop line, or nothing."""
    rule, last = drop["rule"], fate.path[-1]
    chain, text = last[0], rule["text"]
    wanted, name = churn_text(backend, chain, key)
    if (rule["family"], rule["table"], rule["chain"]) != (fate.family, fate.table, chain):
        return "another chain"
    if (drop["drop"]["kind"], drop["drop"]["hook"]) != ("policy" if fate.policy else "rule", fate.path[0][0].lower()):
        return "another kind of drop"
    if text is not None and rule["stale"]:
        return "stale, and has a text"
    if text is None and not fate.policy and not rule["stale"]:
        return "no text, and not stale"
    if text is not None and rule["backend"] != backend_name(backend):
        return "another backend"
    if fate.policy:
        return None if rule["number"] is None and rule["handle"] is None and text is None else "a rule for a policy"
    if text is not None and text != wanted:
        return "another text"
    if backend == "legacy":
        path = [(step["chain"], step["number"]) for step in rule["path"]]
        if rule["number"] != last[1] or path not in (fate.path, fate.path[-1:]):
            return "another number or path"
    else:
        if rule["handle"] != last[1] or [(step["chain"], step["handle"]) for step in rule["path"]] != fate.path:
            return "another handle or path"
    if [chain, rule["number"]] not in places[fate.family].get(name, []):
        return "a place where that rule has never been"
    return None


def churn(group, guest, validator, backend, broken=False):
    scenario = f"oracle-{backend}"
    run = guest.run(scenario)
    places = json.loads(guest.text(f"{scenario}/places.json"))
    drops = drops_between(guest, run, *times_of(guest, scenario, "churn"))
    fates = defaultdict(list)
    for key, fate in churn_fates(guest, scenario, backend):
        if counts(key):
            fates[key].append(fate)
    said = Counter(key for key, _ in drops)
    unknown = stale = texts = named = noticed = 0
    seen = defaultdict(set)  # ports of a rule -> where it was when it dropped
    for key, drop in drops:
        if not group.true(key in fates, f"spurious: {key}", drop):
            continue
        if drop["rule"] is None:
            unknown += 1
            continue
        off = shifted(drop)
        judge = lambda one: [judge_churn(backend, key, one, fate, places) for fate in fates[key]]  # noqa: E731
        found = judge(off if broken else drop)
        if drop["rule"]["number"] or drop["rule"]["handle"]:
            named += 1
            seen[drop["rule"]["family"], key[3], key[5]].add(
                (drop["rule"]["chain"], drop["rule"]["number"], drop["rule"]["handle"]))
            noticed += None not in judge(off)
        said_of = {name: drop["rule"][name] for name in ("chain", "number", "handle", "stale", "text", "path")}
        group.true(None in found, f"{found[0]}: {key} {said_of}, the trace says {fates[key]}", drop)
        stale += drop["rule"]["stale"]
        texts += drop["rule"]["text"] is not None
    for key, ends in fates.items():
        group.equal(said[key], len(ends), f"drop lines of {key}")
    print(f"    {backend}: {len(drops)} drops, {unknown} of them without a rule, {stale} stale, {texts} with a text")
    group.true(len(drops) >= 100, "packets that were dropped", len(drops))
    group.true(unknown <= len(drops) / 10, "drops without a rule", f"{unknown} of {len(drops)}")
    moved = sum(len(where) > 1 for where in seen.values())
    group.true(moved >= 3, "rules that dropped at more than one place, or with more than one handle", moved)
    # It takes longest to read the rules of iptables-nft: under emulation they may not stand still for that long.
    group.true(texts or backend == "iptables-nft", "rules that had a text", texts)
    group.equal(noticed, named, "rules whose number and handle are off by one and which the oracle notices")
    group.true(named >= len(drops) / 10, "drops by rules", f"{named} of {len(drops)}")
    handles = {drop["rule"]["handle"] for _, drop in drops if drop["rule"]}
    group.true(backend == "legacy" or len(handles) >= 10, "rules that dropped", len(handles))
