# SPDX-License-Identifier: GPL-2.0-only
"""Every way to be dropped beside the common ones: other families, hook functions without rules, queues."""

import re
from collections import Counter

from .guest import check_lines, check_terminal
from .oracle import Ruleset

SCENARIOS = ["families"]


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
    check_lines(group, run, validator)
    check_terminal(group, run)
    group.equal(run.exit, 0, "exit code")
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
        group.fields(rule, {"confidence": "exact", "stale": False}, "rule")
        block = rule["chain"].startswith("__chain")
        base = rules.chains[rule["family"], rule["table"], rule["path"][0]["chain"]]
        group.equal(drop["drop"]["hook"], base.hook.lower(), f"hook of {rule['chain']}")
        group.equal(packet["family"] == "other", rule["family"] == "arp" or packet["proto"] == "0",
                    f"family of the packet in table {rule['family']} {rule['table']}")
        if drop["drop"]["kind"] == "policy":
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
    group.equal(dict(by_rule), dict(traced), "packets by rule: what the kernel's trace says")

    # Each of them was met, or the comparison says nothing.
    places = Counter()
    for family, table, chain, handle in traced:
        places[family, table, chain] += 1
    for place, count in {("arp", "a", "in"): 1, ("arp", "a", "out"): 1, ("arp", "filter", "INPUT"): 1,
                         ("bridge", "b", "pre"): 2, ("bridge", "b", "in"): 2, ("bridge", "b", "forward"): 1,
                         ("bridge", "b", "out"): 1, ("bridge", "b", "post"): 1, ("bridge", "b", "last"): 1,
                         ("bridge", "filter", "FORWARD"): 1, ("bridge", "nat", "PREROUTING"): 1,
                         ("netdev", "early", "ingress"): 2, ("netdev", "early", "egress"): 1,
                         ("inet", "early", "ingress"): 1, ("inet", "awake", "c14"): 1, ("inet", "awake", "input"): 4,  # 5 where an expectation that clashes is refused
                        
                         ("inet", "awake", "later"): 1, ("inet", "awake", "latest"): 1, ("inet", "awake", "proxy"): 2,
                         ("inet", "awake", "forward"): 3, ("ip", "filter", "INPUT"): 2}.items():
        group.true(places[place] >= count, f"{' '.join(place)}: rules that dropped, by the kernel's trace", places[place])
    group.true(not any(table == "asleep" for _, table, _, _ in traced), "a dormant table drops nothing")
    deep = [d["rule"]["path"] for d in run.drops if d["rule"] and d["rule"]["chain"] == "c14"]
    group.equal([[step["chain"] for step in path] for path in deep],
                [["input"] + [f"c{i}" for i in range(15)]] * 2, "the deepest way that the kernel allows")


# ---- all of it ----

def all_checks(run, guest, validator):
    run("families and expressions of nf_tables", families, guest, validator)
