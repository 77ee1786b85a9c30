# SPDX-License-Identifier: GPL-2.0-only
"""Every way to be dropped beside the common ones: other families, hook functions without rules, queues."""

import re
from collections import Counter

from .guest import check_lines, check_run, seconds
from .oracle import Ruleset

VM, PROVIDER = "10.0.0.2", "10.0.0.1"
SCENARIOS = ["families", "hook-functions", "queues", "legacy-ways", "targets", "matches-legacy",
             "matches-iptables-nft", "legacy-arp", "legacy-bridge"]


# ---- nf_tables: families, expressions ----

def traced_drops(trace):
    """{(family, table, chain, handle or None for the policy): packets}, from the output of nft -a monitor trace."""
    drops = Counter()
    for line in trace.splitlines():
        match = re.match(r"trace id \w+ (\w+) (\S+) (\S+) (?:unknown )?(rule|policy) (.*)", line)
        if not match:
            continue
        family, table, chain, kind, rest = match.groups()
        if kind == "policy" and rest.startswith("drop"):
            drops[family, table, chain, None] += 1
        elif handle := re.search(r"handle (\d+) \(verdict drop\)$", rest):
            drops[family, table, chain, int(handle.group(1))] += 1
    return drops


def families(group, guest, validator):
    run = guest.run("families")
    check_run(group, run, validator)
    group.equal(run.final["lost"], {}, "nothing was lost")
    rules = Ruleset().add_nft(guest.text("families/after.nft"))
    saved = Ruleset().add_save(guest.text("families/after.save4"), "ip")
    by_rule = Counter()
    for drop in run.drops:
        if drop["drop"]["kind"] not in ("rule", "policy"):
            group.equal(drop["drop"]["kind"], "kernel", "netfilter dropped it, but no rule is named")
            continue
        rule, packet = drop["rule"], drop["packet"]
        if not group.true(rule, "a rule is named", drop):
            continue
        by_rule[rule["family"], rule["table"], rule["chain"], rule["handle"]] += 1
        # What has changed a moment ago may not have been read yet: then nothing of it is told but what the kernel has said.
        unread = rule["stale"] and (rule["table"], rule["chain"]) in (("early", "onward"), ("asleep", "input"))
        group.fields(rule, {"confidence": "exact", "stale": unread}, "rule")
        block = rule["chain"].startswith("__chain")
        if rule["family"] == "arp" and rule["text"]:
            asked = re.search(r"daddr ip (\S+)", rule["text"]).group(1)
            group.equal((packet["dst"], packet["src"]), (asked, VM if asked.endswith(".88") else PROVIDER),
                        f"who asks for {asked}")
        base = rules.chains[rule["family"], rule["table"], rule["path"][0]["chain"]]
        group.equal(drop["drop"]["hook"], base.hook.lower(), f"hook of {rule['chain']}")
        group.equal(packet["family"] == "other", rule["family"] == "arp" or packet["proto"] == "0",
                    f"family of the packet in table {rule['family']} {rule['table']}")
        if drop["drop"]["kind"] == "policy" or unread:
            group.equal(rule["text"], None, "a policy, or a rule that has not been read: text")
            continue
        if block:  # its listing is part of the rule that jumps there
            text = "udp dport 7732 jump { udp dport 9 counter drop; counter drop }"
        else:
            number, expected = rules.by_handle(rule["family"], rule["table"], rule["chain"], rule["handle"])
            group.equal(rule["number"], number, f"number of {expected.text}")
            text = expected.text
            if rule["family"] == "ip":
                text = saved.rule("ip", rule["table"], rule["chain"], number).text
        group.equal(rule["text"], text, "text")
        port = re.search(r"dport (?:7700-7799|(77\d\d))|ip-dport (77\d\d)", rule["text"])
        if port and (port.group(1) or port.group(2)):
            group.equal(packet["dport"], int(port.group(1) or port.group(2)), f"the packet of {rule['text']}")
    traced = traced_drops(guest.text("families/trace"))
    if guest.old:  # br_handle_frame frees what is dropped before it, and nobody says that it was netfilter
        for port in (7701, 7702):
            group.equal([(d["drop"]["kind"], d["rule"]) for d in run.drops_to_port(port)], [("kernel", None)] * 2,
                        f"5.10, bridge prerouting: drops to port {port}")
        for rule in [rule for rule in traced if rule[0] == "bridge" and rule[2] in ("pre", "PREROUTING")]:
            del traced[rule]
    group.equal(dict(by_rule), dict(traced), "packets by rule: what the kernel's trace says")

    # A range holds ARP as well: by its sender or its target.
    ranged = guest.run("families", "ranged")
    group.equal({(d["packet"]["dst"], d["packet"]["direction"]) for d in ranged.drops},
                {("10.0.0.77", "to")}, "--dst 10.0.0.77")
    # Each of them was met, or the comparison says nothing.
    places = Counter()
    for family, table, chain, handle in traced:
        places[family, table, chain] += 1
    for place, count in {("arp", "a", "in"): 1, ("arp", "a", "out"): 1, ("arp", "filter", "INPUT"): 1,
                         ("arp", "a", "strict"): 1, ("netdev", "early", "late"): 1,
                         ("netdev", "early", "leaving"): int(not guest.old),
                         ("netdev", "early", "onward"): int(not guest.old), ("ip", "filter", "d14"): 1,
                         ("inet", "asleep", "input"): 1,
                         ("bridge", "b", "pre"): 2 * (not guest.old), ("bridge", "b", "in"): 2, ("bridge", "b", "forward"): 1,
                         ("bridge", "b", "out"): 1, ("bridge", "b", "post"): 1, ("bridge", "b", "last"): 1,
                         ("bridge", "filter", "FORWARD"): 1, ("bridge", "nat", "PREROUTING"): int(not guest.old),
                         ("netdev", "early", "ingress"): 2, ("netdev", "early", "egress"): int(not guest.old),
                         ("inet", "early", "ingress"): 1, ("inet", "awake", "c14"): 1,
                         # One more where an expectation that clashes is refused.
                         ("inet", "awake", "input"): 4,
                         ("inet", "awake", "later"): 1, ("inet", "awake", "latest"): 1, ("inet", "awake", "proxy"): 2,
                         ("inet", "awake", "forward"): 3, ("ip", "filter", "INPUT"): 2}.items():
        group.true(places[place] >= count, f"{' '.join(place)}: rules that dropped, by the kernel's trace",
                   places[place])
    policies = [place for place in traced if place[3] is None]
    for place in [("arp", "a", "strict"), ("netdev", "early", "late"), ("bridge", "b", "last"), ("inet", "awake", "latest")] + \
            [("netdev", "early", "leaving")] * (not guest.old):
        group.true((*place, None) in policies, f"{' '.join(place)}: it was the policy, by the kernel's trace")
    block = [place for place in traced if place[:2] == ("inet", "awake") and place[2].startswith("__chain")]
    group.equal(len(block), 1, "chains without a name whose rules dropped, by the kernel's trace")
    # Each kind of rule in that chain, by what it says; an expectation is refused only where it clashes.
    by_text = {rule.text: rule.handle for rule in rules.chains["inet", "awake", "input"].rules}
    met = {handle for family, table, chain, handle in traced if (family, table, chain) == ("inet", "awake", "input")}
    for words in ("7733 limit rate over", "7734 quota over", "7735 ct count over", "7738 counter"):
        handle = [handle for text, handle in by_text.items() if words in text]
        group.true(len(handle) == 1 and handle[0] in met, f"{words}: it dropped, by the kernel's trace", met)
    # Asleep, awake, asleep: what is not dropped dies where nobody listens.
    group.equal(traced["inet", "asleep", "input", rules.chains["inet", "asleep", "input"].rules[0].handle], 2,
                "a dormant table drops while it is awake only")
    group.equal([d["drop"]["kind"] for d in sorted(run.drops_to_port(7745), key=lambda d: d["mono_ns"])], ["kernel"] * 2 + ["rule"] * 2 + ["kernel"] * 2,
                "packets for a table that sleeps, is awake, and sleeps")
    for port, base, prefix in ((7731, "input", "c"), (7723, "INPUT", "d")):
        deep = [d["rule"]["path"] for d in run.drops_to_port(port) if d["rule"]]
        group.equal([[step["chain"] for step in path] for path in deep],
                    [[base] + [f"{prefix}{i}" for i in range(15)]] * 2, f"the deepest way that the kernel allows, port {port}")
    if not guest.old:
        before, after = (re.search(r"dport 7744 counter packets (\d+)", guest.text(f"families/{name}")).group(1)
                         for name in ("forward.before", "forward.after"))
        group.equal(after, before, "packets of a flow on the fast path that have come through the chain of forward")
        fast = run.drops_to_port(7744)
        group.equal([(d["drop"]["hook"], d["packet"]["out_dev"]) for d in fast], [("egress", "eth1")] * 2,
                    "packets of a flow on the fast path")


# ---- functions at hooks ----

def expect_untold(group, drops, function, says, what):
    """5.10: netfilter dropped it, in this function; which rule, program or function at a hook is not told."""
    for drop in drops:
        group.fields(drop, {"rule": None, "process": None, "drop": {
            "kind": "hook", "reason": "NOT_SPECIFIED", "hook": None, "hook_function": None, "queue": None,
            "location": lambda text: re.match(function + r"\+0x", text), "unknown": lambda text: says in (text or "")},
            "explanation": {"id": "hook-without-rule"}}, what)


QUEUE_EXPLAINED = {"nobody": "queue-nobody", "full": "queue-full"}
EXPLAINED = {"nf_confirm": "conntrack-confirm", "ipv4_confirm": "conntrack-confirm", "ipv4_conntrack_in": "conntrack-in",
             "ipv6_conntrack_in": "conntrack-in", "ip_vs_in_hook": "ipvs", "nf_hook_run_bpf": "bpf-netfilter",
             "nf_nat_ipv4_local_fn": "hook-function", "nf_nat_ipv6_local_fn": "hook-function"}


def hook_functions_untold(group, guest, run, counters):
    ours = [d for d in run.drops if d["drop"]["kind"] == "hook" and d["netns"]["inode"] == guest.netns]
    # The sender is a process of the VM itself where the packet goes out.
    expect_untold(group, [d for d in ours if d["packet"]["dport"] not in (7751, 7755, 7756)], "nf_hook_slow", "a hook function", "a drop")
    clashes, full, ipvs, nat = ([d for d in ours if d["packet"]["dport"] in ports]
                                for ports in ((7751, 7756), (7752,), (7754,), (7755,)))
    group.equal([d["rule"] for d in nat], [None] * 6, "drops by nat's own function")
    group.true(len(ipvs) >= 3, "drops by IPVS", len(ipvs))
    dropped, failed = (end - start for start, end in zip(counters["start"], counters["end"]))
    group.true(clashes and full, "drops by conntrack", (len(clashes), len(full)))
    group.equal(len(clashes), failed, "connections that conntrack counts as not inserted")
    group.equal(len(clashes) + len(full), dropped, "packets that conntrack counts as dropped")


def hook_functions(group, guest, validator):
    scenario = "hook-functions"
    run, marks = guest.run(scenario), guest.marks(scenario)
    check_run(group, run, validator)
    counters = {name: (int(drop), int(failed)) for name, drop, failed in
                map(str.split, guest.text(f"{scenario}/counters").splitlines())}
    if guest.old:
        return hook_functions_untold(group, guest, run, counters)
    # What conntrack's own source calls them; one function for both families since 6.3.
    confirm = "ipv4_confirm" if guest.kernel.startswith("6.1.") else "nf_confirm"
    cases = [(7751, "ipv4", "postrouting", confirm, "nf_conntrack"),
             (7756, "ipv4", "postrouting", confirm, "nf_conntrack"),  # MASQUERADE has one port, and that is taken
             (7755, "ipv4", "output", "nf_nat_ipv4_local_fn", "nf_nat"),
             (7755, "ipv6", "output", "nf_nat_ipv6_local_fn", "nf_nat"),
             (7752, "ipv4", "prerouting", "ipv4_conntrack_in", "nf_conntrack"),
             (7752, "ipv6", "prerouting", "ipv6_conntrack_in", "nf_conntrack"),
             (7754, "ipv4", "input", "ip_vs_in_hook", "ip_vs")]
    if not guest.kernel.startswith("6.1."):  # from 6.4
        cases.append((7753, "ipv4", "input", "nf_hook_run_bpf", None))
    for port, family, hook, name, module in cases:
        what = f"{family} port {port}"
        # The BPF program drops everything that comes to the other namespace.
        drops = [d for d in run.drops_to_port(port, family)
                 if d["drop"]["kind"] != "kernel" and (d["netns"]["inode"] == guest.netns) == (port != 7753)]
        early = [d for d in drops if seconds(d["time"]) < marks["known"]]
        late = [d for d in drops if seconds(d["time"]) >= marks["known"]]
        group.true(early and len(late) >= 2, f"{what}: drops, before and after the first was read",
                   (len(early), len(late)))
        for drop in drops:
            group.fields(drop["drop"], {"kind": "hook", "reason": "NETFILTER_DROP", "hook": hook, "queue": None}, what)
            group.equal(drop["rule"], None, f"{what}: rule")
        for drop in early[:1]:
            group.equal(drop["drop"]["hook_function"], None, f"{what}: the function at first")
            group.true(name in drop["drop"]["unknown"], f"{what}: {name} is among those that may have dropped it",
                       drop["drop"]["unknown"])
            group.equal(drop["explanation"]["id"], "hook-without-rule", f"{what}: the explanation at first")
        for drop in late:
            group.equal(drop["explanation"]["id"], EXPLAINED[name], f"{what}: the explanation")
            function = drop["drop"]["hook_function"]
            group.fields(function, {"name": name, "module": module}, f"{what}: hook_function")
            group.equal(drop["drop"]["unknown"], None, f"{what}: unknown")
            if name == "nf_hook_run_bpf":
                group.equal((function or {}).get("bpf_program"),
                            {"id": int(guest.text(f"{scenario}/bpf")), "name": "drops_all"}, "the BPF program")
            else:
                group.equal((function or {}).get("bpf_program"), None, f"{what}: BPF program")
        group.true(name in run.out, f"{what}: the terminal names {name}", run.out[-800:])
    clashes, full = run.drops_to_port(7751) + run.drops_to_port(7756), run.drops_to_port(7752)
    dropped, failed = (end - start for start, end in zip(counters["start"], counters["end"]))
    clashes, full = (sum(d["drop"]["kind"] == "hook" and d["netns"]["inode"] == guest.netns for d in drops)
                     for drops in (clashes, full))
    group.equal(clashes, failed, "connections that conntrack counts as not inserted")
    group.equal(clashes + full, dropped, "packets that conntrack counts as dropped")
    # br_netfilter looks at the IPv4 headers of what is bridged, and says itself, from 6.9, that it has dropped one.
    broken = run.drops_to_port(7757)
    function = "br_handle_frame" if guest.kernel.startswith("6.1.") else "br_nf_pre_routing"
    group.equal(len(broken), 4, "bridged packets with a broken header: drop lines")
    for drop in broken:
        group.fields(drop, {"rule": None, "drop": {
            "kind": "kernel", "location": lambda text: (text or "").startswith(function + "+")}},
            "bridged packets with a broken header")
    # Packets that pass pay for none of this until something has died.
    attached = {when: set(re.findall(r"^(\S+)", guest.text(f"{scenario}/attached.{when}"), re.M))
                for when in ("before", "after")}
    for name in {case[3] for case in cases}:
        group.true(name not in attached["before"], f"{name} is not traced at the start")
        group.true(name in attached["after"], f"{name} is traced once it has dropped something")


def legacy_rules(guest, prefix):
    return Ruleset().add_save(guest.text(f"{prefix}.save4"), "ip").add_save(guest.text(f"{prefix}.save6"), "ip6")


# ---- queues ----

def queues_untold(group, run, legacy, nft):
    """On 5.10 all of these are counted, but not followed."""
    says = "handed it to a program in userspace"
    for port, family, packets in ((7771, "ipv4", 4), (7771, "ipv6", 2), (7774, "ipv4", 4), (7774, "ipv6", 2),
                                  (7776, "ipv4", 4)):
        drops = run.drops_to_port(port, family)
        group.equal(len(drops), packets, f"{family} port {port}: drop lines")
        expect_untold(group, drops, "nf_queue", says, f"{family} port {port}")
    for port in (7772, 7775):  # the program's own word
        drops = run.drops_to_port(port)
        group.equal(len(drops), 4, f"port {port}: drop lines")
        expect_untold(group, drops, "nf_reinject", "no rule was seen", f"port {port}")
    full = run.drops_to_port(7773)  # one more waited when its program ended
    group.equal(Counter(d["drop"]["location"].split("+")[0] for d in full), {"nf_queue": 2, "nf_reinject": 1},
                "port 7773: where they were dropped")
    expect_untold(group, full, "nf_(queue|reinject)", "", "port 7773")
    counted = Counter(d["packet"]["dport"] for d in run.drops)
    group.equal(counted[7771], legacy.rule("ip", "filter", "queued", 2).packets +
                legacy.rule("ip6", "filter", "queued", 2).packets, "port 7771: the rule's own counter")
    group.equal(counted[7774], nft.rule("inet", "q", "queued", 2).packets, "port 7774: the rule's own counter")


def queues(group, guest, validator):
    run, marks = guest.run("queues"), guest.marks("queues")
    check_run(group, run, validator)
    group.equal(run.final["lost"], {}, "nothing was lost")
    group.true("nfnetlink_queue" not in guest.text("queues/modules.before"), "no program had ever listened")
    listeners = {int(number): int(pid) for number, pid in
                 map(str.split, guest.text("queues/listeners").splitlines())}
    legacy = legacy_rules(guest, "queues/legacy")
    nft = Ruleset().add_nft(guest.text("queues/nft.nft"), guest.text("queues/nft.nft.json"))
    saved = Ruleset().add_save(guest.text("queues/nft.save4"), "ip")
    if guest.old:
        queues_untold(group, run, legacy, nft)
        return queued_and_passed(group, run, legacy)

    # port -> family of the packet -> (packets that died, where the rule is, way to it, queue, fate)
    def legacy_way(chain, number):
        return [["INPUT", 1], ["queued", 2]] if chain == "queued" else [["INPUT", number]]
    cases = [
        (7771, "ipv4", 4, legacy, ("ip", "filter", "queued", 2), legacy_way("queued", 2), 71, "nobody"),
        (7771, "ipv6", 2, legacy, ("ip6", "filter", "queued", 2), legacy_way("queued", 2), 71, "nobody"),
        (7773, "ipv4", 2, legacy, ("ip", "filter", "INPUT", 3), legacy_way("INPUT", 3), 73, "full"),
        (7774, "ipv4", 4, nft, ("inet", "q", "queued", 2), [["input", 1], ["queued", 2]], 74, "nobody"),
        (7774, "ipv6", 2, nft, ("inet", "q", "queued", 2), [["input", 1], ["queued", 2]], 74, "nobody"),
        (7776, "ipv4", 4, saved, ("ip", "filter", "INPUT", 1), [["INPUT", 1]], 76, "nobody"),
    ]
    for port, family, packets, ruleset, where, path, number, fate in cases:
        what = f"{family} port {port}"
        rule = ruleset.rule(*where)
        drops = [d for d in run.drops_to_port(port, family) if (d["drop"]["queue"] or {}).get("fate") == fate]
        group.equal(len(drops), packets, f"{what}: drop lines, {fate}")
        for drop in drops:
            group.fields(drop["drop"], {"kind": "rule", "hook": "input", "hook_function": None,
                                        "queue": {"number": number, "fate": fate, "process": None}}, what)
            named = drop["rule"] or {"path": []}
            group.fields(named, {"family": where[0], "table": where[1], "chain": where[2], "number": where[3],
                                 "text": rule.text, "verdict": "queue", "confidence": "exact", "stale": False}, what)
            group.equal([[step["chain"], step["number"]] for step in named["path"]], path, f"{what}: path")
            group.equal(drop["packet"]["in_dev"], "eth0", f"{what}: in_dev")
            group.equal(drop["process"], None, f"{what}: nobody here sent it")
            group.fields(drop["explanation"], {"id": QUEUE_EXPLAINED[fate], "summary": lambda text, n=number: f"queue {n}" in text,
                                               "fixes": lambda fixes: len(fixes) == 2}, f"{what}: explanation")
    counted = {port: sum(c["packets"] for c in run.final["causes"] if any(f["dport"] == port for f in c["flows"]))
               for port in range(7771, 7779)}
    group.equal(counted[7771], legacy.rule("ip", "filter", "queued", 2).packets +
                legacy.rule("ip6", "filter", "queued", 2).packets, "port 7771: the rule's own counter")
    group.equal(counted[7774], nft.rule("inet", "q", "queued", 2).packets, "port 7774: the rule's own counter")
    # queue, port id, waiting, mode, range, dropped for want of room, dropped by the socket, last id
    full = [line.split() for line in guest.text("queues/nfnetlink_queue").splitlines() if line.split()[0] == "73"]
    group.equal([int(line[5]) for line in full], [2], "packets that the kernel counts as dropped by the full queue")

    # The program's own word.
    for port, number, packets in ((7772, 72, 4), (7775, 75, 4)):
        drops = run.drops_to_port(port)
        group.equal(len(drops), packets, f"port {port}: drop lines")
        for drop in drops:
            group.fields(drop["drop"], {"kind": "hook", "hook": "input", "unknown": lambda text: "vm_helper" in text,
                                        "queue": {"number": number, "fate": "verdict",
                                                  "process": {"pid": listeners[number], "comm": "vm_helper"}}},
                         f"port {port}")
            group.equal((drop["rule"], drop["process"]), (None, None), f"port {port}: rule and sender")
            group.fields(drop["explanation"], {"id": "queue-verdict", "summary": lambda text, pid=listeners[number]:
                                               f"vm_helper (pid {pid})" in text}, f"port {port}: explanation")
    # One packet still waited when its program ended.
    closed = [d for d in run.drops_to_port(7773) if d["drop"]["queue"] and d["drop"]["queue"]["fate"] == "closed"]
    group.equal(len(closed), 1, "packets whose program went away")
    for drop in closed:
        group.true(seconds(drop["time"]) >= marks["closing"], "it went away when it was killed", drop)
        group.equal((drop["drop"]["kind"], drop["drop"]["hook"], drop["process"]), ("hook", "input", None), "closed")
    queued_and_passed(group, run, legacy)


def queued_and_passed(group, run, legacy):
    # Accepted by the program, dropped by a table behind it.
    passed = run.drops_to_port(7777)
    group.equal(len(passed), 2, "port 7777: drop lines")
    for drop in passed:
        group.fields(drop["rule"] or {}, {"backend": "iptables-legacy", "chain": "INPUT", "number": 4,
                                          "verdict": "drop", "text": legacy.rule("ip", "filter", "INPUT", 4).text},
                     "port 7777")
        group.equal((drop["drop"]["queue"], drop["process"]), (None, None), "port 7777: no queue dropped it")
    # The same with packets of this machine: they die in the name of the program, which has not sent them.
    own = run.drops_to_port(7779)
    group.equal(len(own), 2, "port 7779: drop lines")
    for drop in own:
        group.equal((drop["rule"] or {}).get("chain"), "postrouting", "port 7779: chain")
        group.equal((drop["drop"]["queue"], drop["process"]), (None, None), "port 7779: neither a queue nor its program")
    # With bypass, it passes when nobody listens.
    group.equal([d["drop"]["kind"] for d in run.drops_to_port(7778)], ["kernel"] * 4, "port 7778: what dropped it")


# ---- legacy tables: ways that are not straight ----

def legacy_ways(group, guest, validator):
    run = guest.run("legacy-ways")
    check_lines(group, run, validator)
    group.equal(run.exit, 0, "exit code")
    rules = legacy_rules(guest, "legacy-ways/after")

    # `paths`: one of them. Whether others have passed the tables in the middle of a packet's way, and have overwritten
    # it, is not always known: then only the chain itself is.
    def expect(family, drops, packets, table, path, what, paths=None):
        group.equal(len(drops), packets, f"{what}: drop lines")
        rule = rules.rule({"ipv4": "ip", "ipv6": "ip6"}[family], table, *path[-1])
        group.equal(rule.packets, packets, f"{what}: the rule's own counter, {rule.text}")
        for drop in drops:
            if guest.may_be_doubted(drop):
                continue
            named = drop["rule"] or {"path": []}
            group.fields(named, {"backend": "iptables-legacy", "table": table, "chain": path[-1][0],
                                 "number": path[-1][1], "text": rule.text, "confidence": "exact"}, what)
            group.true([(s["chain"], s["number"]) for s in named["path"]] in (paths or [path]), f"{what}: path",
                       named["path"])

    for family in ("ipv4", "ipv6"):
        teed = run.drops_to_port(7781, family)
        for hook, path in (("prerouting", [("PREROUTING", 2), ("outer", 2), ("inner", 2)]),
                           ("output", [("OUTPUT", 2), ("copied", 1)])):
            expect(family, [d for d in teed if d["drop"]["hook"] == hook], 2, "mangle", path,
                   f"{family}: {'the copy of ' if hook == 'output' else ''}a packet that TEE copies",
                   [path, path[-1:]] if hook == "prerouting" or guest.old else None)
        group.equal(len(teed), 4, f"{family}: nothing else was dropped of what TEE copies")
        group.equal([d["drop"]["kind"] for d in run.drops_to_port(7782, family)], ["kernel"] * 2,
                    f"{family}: empty chains drop nothing")
        for number in (3, 4):
            mine = [d for d in run.drops_to_port(7783, family) if (d["rule"] or {}).get("number") == number]
            expect(family, mine, 1, "filter", [("INPUT", number)], f"{family}: packets that two rules share")
        ladder = [("INPUT", 5)] + [(f"d{i}", 2) for i in range(14)] + [("d14", 1)]
        expect(family, run.drops_to_port(7785, family), 2, "filter", ladder, f"{family}: a ladder of chains")
    # No rule has counted these, since it is the match that drops them: so none is named, before it is traced.
    full = sorted(run.drops_to_port(7784), key=lambda d: d["mono_ns"])
    group.equal(len(full), 3, "packets that a match or its rule drops: drop lines")
    expect("ipv4", full[:1], 1, "filter", [("INPUT", 6)], "the one that the match has room for")
    for drop in full[1:]:
        if drop["rule"]:
            group.fields(drop["rule"], {"chain": "INPUT", "number": 6, "verdict": "hotdrop"}, "a match that drops")
            continue
        group.fields(drop, {"rule": None, "drop": {"kind": "hook", "hook": "input",
                                                   "unknown": lambda text: "a match" in text}}, "a match that drops")

    # Thousands of rules: the nth is for port 19999 + n. Where not all of them can be watched, none is named: the counter
    # that has moved might be another packet's.
    many = legacy_rules(guest, "legacy-ways/many")
    for family, ip, ports, beyond in (("ipv4", "ip", (20000, 25000, 29998), ()),
                                      ("ipv6", "ip6", (), (20000, 25000, 36000, 36998))):
        for port in ports + beyond:
            what = f"{family}: rule {port - 19999} of {len(many.chains[ip, 'raw', 'PREROUTING'].rules)}"
            rule = many.rule(ip, "raw", "PREROUTING", port - 19999)
            drops = run.drops_to_port(port, family)
            group.equal((len(drops), rule.packets), (2, 2), f"{what}: drop lines, and its counter")
            for drop in drops:
                named = drop["rule"]
                if port in beyond:
                    group.equal((named, drop["explanation"]["id"]), (None, "hook-without-rule"), f"{what}: rule")
                    group.true("more dropping rules than are watched" in (drop["drop"]["unknown"] or ""),
                               f"{what}: says why", drop["drop"])
                    continue
                group.fields(named or {}, {"chain": "PREROUTING", "number": port - 19999, "table": "raw",
                                           "text": lambda text, it=rule: text in (None, it.text)}, what)


# ---- targets and expressions that drop when they fail, and sets ----

def targets(group, guest, validator):
    run = guest.run("targets")
    check_run(group, run, validator)
    group.equal(run.final["lost"], {}, "nothing was lost")
    nft = Ruleset().add_nft(guest.text("targets/after.nft"), guest.text("targets/after.nft.json"))
    saved = {kind: legacy_rules(guest, f"targets/{kind}") for kind in ("nft", "legacy")}
    saved["nft"].add_handles(guest.text("targets/after.nft"))
    # where the rule is, what is written in it, the port of its packets (or where they go, without one)
    places = []
    for family in ("ip", "ip6"):
        places += [("nftables", family, "fails", "pre", "dport 7601", 7601, "prerouting"),
                   ("nftables", family, "fails", "post", "dport 7602", 7602, "postrouting"),
                   ("nftables", family, "fails", "forward", "udp dport 7604", 7604, "forward"),
                   ("nftables", family, "fails", "strict", "dport 7605", 7605, "prerouting"),
                   ("nftables", family, "fails", "forward", "tcp dport 7607 counter drop", 7607, "forward"),
                   ("nftables", family, "fails", "forward", "udp dport 7609 counter drop", 7609, "forward")]
        for backend, first in (("iptables-nft", 7611), ("iptables-legacy", 7621)):
            cases = [("nat", "PREROUTING"), ("nat", "POSTROUTING"), ("mangle", "PREROUTING"), ("filter", "FORWARD"),
                     ("filter", "FORWARD"), ("mangle", "FORWARD"), ("mangle", "FORWARD")]
            places += [(backend, family, table, chain, f"dport {first + i}", first + i, chain.lower())
                       for i, (table, chain) in enumerate(cases)]
            if family == "ip":
                places.append((backend, family, "mangle", "PREROUTING", "-j ECN", f"10.8.0.{first % 100}", "prerouting"))
            else:
                places += [(backend, family, "mangle", "PREROUTING", "-j DNPT", first + 8, "prerouting"),
                           (backend, family, "mangle", "POSTROUTING", "-j SNPT", first + 7, "postrouting")]
    if guest.kernel.startswith(("5.10.", "6.1.")):
        places.append(("iptables-legacy", "ip", "filter", "INPUT", "-j CLUSTERIP", 7630, "input"))
    for backend, family, table, chain, words, packet, hook in places:
        rules = nft if backend == "nftables" else saved[backend.split("-")[1]]
        number, rule = [(n, rule) for n, rule in enumerate(rules.chains[family, table, chain].rules, 1)
                        if re.search(rf"{words}\b", rule.text)][0]
        what = f"{backend}, {family}: {rule.text}"
        drops = [d for d in run.drops if packet in (d["packet"]["dport"], d["packet"]["dst"])
                 and d["packet"]["family"] == {"ip": "ipv4", "ip6": "ipv6"}[family]]
        group.equal((len(drops), rule.packets), (2, 2), f"{what}: drop lines, and the rule's counter")
        for drop in drops:
            group.fields(drop, {"netns": {"name": "bare"}, "drop": {"kind": "rule", "hook": hook, "unknown": None}}, what)
            group.fields(drop["rule"] or {}, {
                "backend": backend, "family": family, "table": table, "chain": chain, "number": number,
                "handle": rule.handle, "text": rule.text, "confidence": "exact", "stale": False}, what)
    if not guest.old:
        for family in ("ip", "ip6"):
            what = f"{family}: an option of TCP that cannot be taken out"
            drops = run.drops_to_port(7608, {"ip": "ipv4", "ip6": "ipv6"}[family])
            rule = nft.rule(family, "fails", "forward", 2)
            group.true("reset tcp option maxseg" in rule.text, f"{what}: the rule", rule)
            group.equal((len(drops), rule.packets), (2, 4), f"{what}: drop lines, and packets that have met the rule")
            for drop in drops:
                group.fields(drop["drop"], {"kind": "rule", "hook": "forward", "unknown": None}, what)
                group.fields(drop["rule"] or {}, {"family": family, "table": "fails", "chain": "forward", "number": 2,
                                                  "handle": rule.handle, "text": rule.text, "confidence": "exact"}, what)
    # The policy of a chain of nat: its last rule but one to look at these packets counts them.
    for family in ("ip", "ip6"):
        what = f"{family}: policy of a chain of nat"
        drops = run.drops_to_port(7606, {"ip": "ipv4", "ip6": "ipv6"}[family])
        group.equal((len(drops), nft.rule(family, "fails", "strict", 2).packets), (2, 2), f"{what}: drop lines, and packets")
        for drop in drops:
            group.fields(drop["drop"], {"kind": "policy", "hook": "prerouting", "unknown": None}, what)
            group.fields(drop["rule"] or {}, {"backend": "nftables", "family": family, "table": "fails", "chain": "strict",
                                              "number": None, "confidence": "exact", "stale": False}, what)


# ---- matches that drop by themselves ----

def matches(group, guest, validator, backend):
    scenario = f"matches-{backend}"
    legacy = backend == "legacy"
    run, known = guest.run(scenario), guest.marks(scenario)["known"]
    check_run(group, run, validator)
    group.equal(run.final["lost"], {}, "nothing was lost")
    rules = legacy_rules(guest, f"{scenario}/after")
    if not legacy:
        rules.add_handles(guest.text(f"{scenario}/after.nft"))

    # The oracle: the rules' own counters, and how many datagrams came as far as UDP.
    def input_rule(number, chain="INPUT", family="ip"):
        return rules.rule(family, "filter", chain, number)
    group.equal([input_rule(n).packets for n in (1, 2, 3, 4)], [1, 0, 2, 1], "what the rules of INPUT counted")
    group.equal([input_rule(n, "short").packets for n in (1, 2)], [0, 0], "what the rules of short counted")
    group.equal([input_rule(n, family="ip6").packets for n in (1, 2)], [1, 0], "IPv6: what the rules counted")
    policy = rules.chains["ip", "filter", "INPUT"]
    group.equal((policy.policy, policy.packets), ("drop", 2 if legacy else 3), "what the policy counted")
    names, before = (guest.text(f"{scenario}/udp.before").splitlines()[i].split() for i in (0, 1))
    after = guest.text(f"{scenario}/udp.after").splitlines()[1].split()
    no_ports = names.index("NoPorts")
    group.equal(int(after[no_ports]) - int(before[no_ports]), 2, "datagrams that no rule, match or policy dropped")
    for port in (7791, 7793):  # the controls
        passed = [d for d in run.drops_to_port(port, "ipv4") if d["drop"]["kind"] == "kernel"]
        group.equal(len(passed), 1, f"port {port}: the one that passed died where nobody listens")

    def expect_match(drops, count, path, what, family="ip", ruleset=rules):
        group.equal(len(drops), count, f"{what}: drop lines")
        rule = ruleset.rule(family, "filter", *path[-1])
        for drop in drops:
            group.fields(drop, {"drop": {"kind": "rule", "hook": "input", "unknown": None},
                                "explanation": {"summary": lambda text: "match of this rule" in text,
                                                "id": "match-no-room" if "-m hashlimit" in rule.text else "match-dropped"}},
                         what)
            group.fields(drop["rule"] or {}, {
                "backend": "iptables-legacy" if legacy else "iptables-nft", "family": family, "table": "filter",
                "chain": path[-1][0], "number": path[-1][1], "handle": rule.handle, "text": rule.text,
                "verdict": "hotdrop", "confidence": "exact", "stale": False}, what)
            group.equal([(s["chain"], s["number"]) for s in (drop["rule"] or {"path": []})["path"]], path, f"{what}: path")

    def of_netfilter(drops):
        return [d for d in drops if d["drop"]["kind"] != "kernel"]

    def unknown(drops, function, what):
        group.equal(len(drops), 1, f"{what}: drop lines before anything is known")
        for drop in drops:
            group.fields(drop, {"rule": None, "drop": {
                "kind": "hook", "hook": "input", "unknown": lambda text: "by itself" in text and function in text}}, what)

    full = of_netfilter(run.drops_to_port(7791, "ipv4"))
    first = [d for d in full if seconds(d["time"]) < known]
    if legacy:
        unknown(first, "hashlimit_mt", "the first packet that a match drops")
    else:
        group.equal(first, [], "no packet was dropped by a match yet")
    expect_match([d for d in full if d not in first], 3, [("INPUT", 1)], "hashlimit without room")
    six = of_netfilter(run.drops_to_port(7791, "ipv6"))
    expect_match(six, 2, [("INPUT", 1)], "IPv6: hashlimit without room", "ip6")
    short = [d for d in run.drops if d["packet"]["proto"] == "tcp"]
    expect_match(short, 2, [("INPUT", 3), ("short", 1)], "a header of two bytes")

    def expect_policy(drops, count, what):
        group.equal(len(drops), count, f"{what}: drop lines")
        for drop in drops:
            group.fields(drop, {"drop": {"kind": "policy", "unknown": None}, "explanation": {"id": "policy"}}, what)
            group.fields(drop["rule"] or {}, {"table": "filter", "chain": "INPUT", "confidence": "exact"}, what)

    by_policy = run.drops_to_port(7794)
    early = [d for d in by_policy if seconds(d["time"]) < known]
    if not legacy:
        unknown(early, "hashlimit_mt", "a policy's first packet, behind matches that may drop")
    expect_policy([d for d in by_policy if d not in early], 2, "what the policy drops")
    if not guest.old:
        attached = {when: set(re.findall(r"^(\S+)", guest.text(f"{scenario}/attached.{when}"), re.M))
                    for when in ("before", "after")}
        for name in ("hashlimit_mt", "multiport_mt") if legacy else ("nft_match_eval", "nft_match_large_eval"):
            group.equal((name in attached["before"], name in attached["after"]), (False, True),
                        f"{name} is traced once a packet has died that it may have dropped")
        group.true("conntrack_mt_v3" not in attached["after"], "a match that cannot drop is not traced")
    if legacy:
        return

    run, known = guest.run(scenario, "again"), guest.marks(scenario)["known.again"]
    check_lines(group, run, validator)
    again = Ruleset().add_save(guest.text(f"{scenario}/again.save4"), "ip")
    again.add_handles(guest.text(f"{scenario}/again.nft"))
    group.equal([again.rule("ip", "filter", "INPUT", n).packets for n in (1, 2, 5)], [1, 0, 1], "again: what rules counted")
    group.equal(again.chains["ip", "filter", "INPUT"].packets, 5, "again: what the policy counted")
    for drop in run.drops_to_port(7795):
        group.fields(drop["rule"] or {}, {"chain": "INPUT", "number": 5, "verdict": "drop"}, "again: a plain rule")
    full = run.drops_to_port(7791)
    first = [d for d in full if seconds(d["time"]) < known]
    unknown(first, "hashlimit_mt", "again: the first packet that a match drops")
    expect_match([d for d in full if d not in first], 2, [("INPUT", 1)], "again: hashlimit without room", ruleset=again)
    by_policy = run.drops_to_port(7794)
    if first and "nf_hook_slow" in first[0]["drop"]["location"]:  # one place for all: the policy is not known yet
        early = [d for d in by_policy if seconds(d["time"]) < known]
        unknown(early, "hashlimit_mt", "again: a policy's first packet")
        by_policy = [d for d in by_policy if d not in early]
        expect_policy(by_policy, 1, "again: what the policy drops")
    else:
        expect_policy(by_policy, 2, "again: what the policy drops, elsewhere than a rule")


# ---- legacy tables of ARP ----

def legacy_arp(group, guest, validator):
    run = guest.run("legacy-arp")
    check_run(group, run, validator)
    group.equal(run.final["lost"], {}, "nothing was lost")
    rules = Ruleset().add_listing(guest.text("legacy-arp/after.list"), guest.text("legacy-arp/after.counters"),
                                  "arp", "filter")
    # who is asked for -> hook, way to the rule, who asks (the target mangle has changed it)
    cases = {"10.0.0.81": ("input", [("INPUT", 1)], PROVIDER),
             "10.0.0.82": ("input", [("INPUT", 2), ("outer", 2), ("inner", 2)], PROVIDER),
             "10.0.0.83": ("input", [("INPUT", 3)], "10.0.0.99"),
             "10.0.0.84": ("input", [("INPUT", 5)], "10.0.0.98"),
             "10.0.0.85": ("output", [("OUTPUT", 1)], VM),
             "10.0.0.86": ("output", [("OUTPUT", 2), ("outer", 2), ("inner", 2)], VM),
             "10.0.0.87": ("input", [("INPUT", None)], PROVIDER)}
    arp = [d for d in run.drops if d["packet"]["family"] == "other" and d["drop"]["kind"] != "kernel"]
    by_rule = Counter()
    for asked, (hook, path, asks) in cases.items():
        drops = [d for d in arp if d["packet"]["dst"] == asked]
        # The last round's copy makes one more request.
        group.equal(len(drops), 4 if asked == "10.0.0.86" else 3, f"requests for {asked} that were dropped")
        chain, number = path[-1]
        text = rules.rule("arp", "filter", chain, number).text if number else None
        if guest.old and asked == "10.0.0.83":  # rules of that target are not watched
            for drop in drops:
                group.fields(drop, {"rule": None, "drop": {
                    "kind": "hook", "unknown": lambda text: "an extension target" in (text or "")}}, f"5.10: {asked}")
            by_rule[chain, number] += len(drops)
            continue
        for drop in drops:
            what = f"request for {asked}"
            group.fields(drop, {"drop": {"kind": "rule" if number else "policy", "hook": hook, "unknown": None,
                                         "hook_function": None}, "packet": {"src": asks}, "explanation": {
                "id": "unowned-rule" if number else "policy", "fixes": lambda fixes, c=chain: [f["do"] for f in fixes] ==
                [f"arptables-legacy -t filter -L {c} -n -v --line-numbers"]}}, what)
            group.fields(drop["rule"] or {}, {
                "backend": "iptables-legacy", "family": "arp", "table": "filter", "chain": chain, "number": number,
                "handle": None, "text": text, "verdict": "drop", "confidence": "exact", "stale": False}, what)
            group.equal([(s["chain"], s["number"]) for s in (drop["rule"] or {"path": []})["path"]], path,
                        f"{what}: path")
            by_rule[chain, number] += 1
    group.equal(len(arp), sum(by_rule.values()), "nothing else that netfilter dropped was ARP")
    for (chain, number), packets in by_rule.items():
        counted = rules.rule("arp", "filter", chain, number).packets if number \
            else rules.chains["arp", "filter", chain].packets
        group.equal(packets, counted, f"{chain} {number or 'policy'}: the rule's own counter")
    group.equal(rules.rule("arp", "filter", "inner", 1).packets, 0, "a rule that met nothing")
    group.true("arptables-legacy" in run.out, "the terminal names the tool", run.out[-800:])
    # Rules that drop were added, one after the other.
    changes = [c for c in run.of_type("ruleset") if any(r["family"] == "arp" for r in c["drops"]["added"])]
    added = sorted(r["text"] for c in changes for r in c["drops"]["added"])
    group.equal(added, sorted(f"-A {chain} -j DROP -d 10.0.1.{i}" for chain in ("INPUT", "OUTPUT") for i in (1, 2, 3)),
                "rules that were added")
    group.true(all(c["backend"] == "iptables-legacy" for c in changes), "their backend")


# ---- legacy tables of bridges ----

BRIDGE_VM, LEFT = "100.100.7.3", "100.100.7.1"


def legacy_bridge(group, guest, validator):
    if "ebtables" not in guest.text("legacy-bridge/modules"):  # from 7.2
        return group.true(guest.kernel.split(".")[0] not in ("5", "6"), "a kernel that has no ebtables any more")
    run = guest.run("legacy-bridge")
    check_run(group, run, validator)
    group.equal(run.final["lost"], {}, "nothing was lost")
    rules = Ruleset()
    for table in ("filter", "nat"):
        rules.add_listing(guest.text(f"legacy-bridge/{table}.list"), guest.text(f"legacy-bridge/{table}.counters"),
                          "bridge", table)
    # port -> hook, table, way to the rule; a number of None is a policy
    cases = {7821: ("forward", "filter", [("FORWARD", 1)]),
             7822: ("forward", "filter", [("FORWARD", 2), ("outer", 2), ("inner", 2)]),
             7823: ("input", "filter", [("INPUT", 1)]),
             7824: ("output", "filter", [("OUTPUT", 1)]),
             7825: ("output", "filter", [("OUTPUT", 2), ("outer", 2), ("inner", 2)]),
             7826: ("forward", "filter", [("strict", None)]),
             7827: ("prerouting", "nat", [("PREROUTING", 1)]),
             7828: ("postrouting", "nat", [("POSTROUTING", 1)]),
             7829: ("prerouting", "nat", [("PREROUTING", 3)]),
             7830: ("prerouting", "nat", [("PREROUTING", 4), ("changes", 1)]),
             7831: ("prerouting", "nat", [("PREROUTING", 5)]),
             7833: ("input", "filter", [("INPUT", None)])}
    if guest.old:  # neither the rule nor the hook is told there
        for port, (hook, _, _) in cases.items():
            drops = run.drops_to_port(port)
            group.equal((len(drops), [d["rule"] for d in drops]), (4, [None] * 4), f"5.10: drops to port {port}")
            if hook in ("forward", "input", "postrouting"):
                expect_untold(group, drops, "nf_hook_slow", "no rule was seen", f"5.10: port {port}")
        return
    counted = Counter()
    for port, (hook, table, path) in cases.items():
        drops, (chain, number) = run.drops_to_port(port), path[-1]
        rule = rules.rule("bridge", table, chain, number) if number else None
        what = f"port {port}"
        group.equal(len(drops), 4, f"{what}: drop lines")
        for drop in drops:
            group.fields(drop, {"process": lambda process, own=hook == "output": bool(process) == own, "drop": {
                "kind": "rule" if number else "policy", "hook": hook, "unknown": None, "hook_function": None},
                "explanation": {"id": "unowned-rule" if number else "policy", "fixes": lambda fixes, t=table, c=chain: [
                    f["do"] for f in fixes] == [f"ebtables-legacy -t {t} -L {c} --Ln --Lc"]}}, what)
            group.fields(drop["rule"] or {}, {
                "backend": "iptables-legacy", "family": "bridge", "table": table, "chain": chain, "number": number,
                "handle": None, "text": rule and rule.text, "verdict": "drop", "confidence": "exact", "stale": False},
                what)
            group.equal([(s["chain"], s["number"]) for s in (drop["rule"] or {"path": []})["path"]], path,
                        f"{what}: path")
        if number:
            counted[table, chain, number] += len(drops)
    for (table, chain, number), packets in counted.items():
        rule = rules.rule("bridge", table, chain, number)
        group.equal(packets, rule.packets, f"{chain} {number}: the rule's own counter, {rule.text}")
    # Answers to requests, which are dropped once they have been answered.
    answered = [d for d in run.drops if d["packet"]["dst"] == "100.100.7.77" and d["drop"]["kind"] == "rule"]
    rule = rules.rule("bridge", "nat", "PREROUTING", 2)
    group.equal(len(answered), rule.packets, "requests that arpreply has answered")
    group.true(answered, "there were some")
    for drop in answered:
        group.fields(drop["rule"], {"family": "bridge", "table": "nat", "chain": "PREROUTING", "number": 2,
                                    "text": rule.text}, "arpreply")
        group.equal(drop["drop"]["hook"], "prerouting", "arpreply: hook")
    # What broute "drops" is routed: here a rule of iptables drops it.
    routed = run.drops_to_port(7832)
    group.equal(len(routed), 4, "packets that broute has routed: drop lines")
    for drop in routed:
        group.fields(drop["rule"] or {}, {"family": "ip", "table": "filter", "chain": "INPUT", "number": 1},
                     "what broute has routed")
    # Two chains that it may have ended in have the policy: which one it was is not known.
    both = run.drops_to_port(7834)
    group.equal(len(both), 4, "two policies: drop lines")
    for drop in both:
        group.fields(drop, {"rule": None, "drop": {"kind": "hook", "hook": "input",
                                                   "unknown": lambda text: "several chains" in (text or "")}}, "two policies")
    group.true("ebtables-legacy" in run.out, "the terminal names the tool", run.out[-800:])
    changes = [c for c in run.of_type("ruleset") if any(r["family"] == "bridge" for r in c["drops"]["added"])]
    texts = [r["text"] or f"{r['chain']} policy" for c in changes for r in c["drops"]["added"]]
    group.equal(texts, ["-A FORWARD -p IPv4 --ip-proto udp --ip-dport 7899 -j DROP", "INPUT policy"], "what was added")


# ---- all of it ----

def all_checks(run, validator):
    run("families", "families and expressions of nf_tables", families, validator)
    run("hook-functions", "functions at hooks", hook_functions, validator)
    run("queues", "queues", queues, validator)
    run("legacy-ways", "ways through legacy tables", legacy_ways, validator)
    run("targets", "targets that fail, and sets", targets, validator)
    for backend in ("legacy", "iptables-nft"):
        run(f"matches-{backend}", f"{backend}: matches that drop by themselves", matches, validator, backend)
    run("legacy-arp", "legacy tables of ARP", legacy_arp, validator)
    run("legacy-bridge", "legacy tables of bridges", legacy_bridge, validator)
