# SPDX-License-Identifier: GPL-2.0-only
"""Where nothing can be attached to functions: rules that are inferred from their counters, and never called exact."""

import re

from .guest import check_run
from .oracle import Ruleset

BACKENDS = ["legacy", "iptables-nft", "nftables"]
SCENARIOS = [f"inferred-{backend}" for backend in BACKENDS]
FAMILIES = {"ipv4": "ip", "ipv6": "ip6"}


def rules_after(guest, backend):
    where = f"inferred-{backend}/after"
    if backend == "nftables":
        return Ruleset().add_nft(guest.text(f"{where}.nft"), guest.text(f"{where}.nft.json"))
    rules = Ruleset()
    for family, suffix in (("ip", "4"), ("ip6", "6")):
        rules.add_save(guest.text(f"{where}.save{suffix}"), family)
    return rules.add_handles(guest.text(f"{where}.nft")) if backend == "iptables-nft" else rules


def inferred(group, guest, validator, backend):
    run = guest.run(f"inferred-{backend}")
    check_run(group, run, validator)
    for name, capability in run.lines[0]["capabilities"].items():
        group.equal(capability["exactness"], "inferred", f"what holds of {name}")
        group.true("not permitted" in capability["reason"] and "counter" in capability["reason"],
                   f"{name}: why, and how", capability)

    rules = rules_after(guest, backend)
    tool = "nftables" if backend == "nftables" else "iptables-" + backend.split("-")[-1]
    table, top = ("fw", "input") if backend == "nftables" else ("filter", "INPUT")
    # port -> (chain, number, packets sent to each family); the rules' own counters agree.
    expected = {7801: (top, 1, 5), 7802: (top, 2, 3), 7803: ("deep", 2, 3)}
    for packet_family, rule_family in FAMILIES.items():
        family = "inet" if backend == "nftables" else rule_family
        for port, (chain, number, packets) in expected.items():
            what = f"{packet_family}, port {port}"
            rule = rules.rule(family, table, chain, number)
            group.equal(rule.packets, packets * (2 if family == "inet" else 1), f"{what}: the rule's own counter")
            drops = run.drops_to_port(port, packet_family)
            group.equal(len(drops), packets, f"{what}: drop lines")
            for drop in drops:
                group.fields(drop["drop"], {"kind": "rule", "reason": "NETFILTER_DROP", "hook": "input", "unknown": None},
                             what)
                group.fields(drop["rule"] or {}, {
                    "backend": tool, "family": family, "table": table, "chain": chain, "number": number,
                    "handle": rule.handle, "text": rule.text, "confidence": "inferred", "stale": False,
                    "verdict": "reject" if port == 7802 else "drop",
                    "evidence": lambda text: "its counter rose by" in (text or "")}, what)
                path = [{k: step[k] for k in ("chain", "number")} for step in (drop["rule"] or {}).get("path", [])]
                group.equal(path, ([{"chain": top, "number": 3}] if chain == "deep" else []) +
                            [{"chain": chain, "number": number}], f"{what}: path")
        # Two rules, the first for the first packet: unless a look came in between, both could have done either.
        both = run.drops_to_port(7805, packet_family)
        group.equal(len(both), 2, f"{packet_family}: packets that either of two rules drops")
        for nth, drop in enumerate(sorted(both, key=lambda d: d["mono_ns"])):
            if drop["rule"]:
                group.fields(drop["rule"], {"number": 4 + nth, "confidence": "inferred"}, "one of two rules")
                continue
            group.fields(drop, { "drop": {"kind": "hook", "unknown": lambda text: re.search(
                rf"2 rules could have done it: {top} rule 4.*{top} rule 5", text or "")}}, "two rules")

    forwarded = run.drops_to_port(7807)
    group.equal(len(forwarded), 2, "packets that a policy drops")
    for drop in forwarded:
        group.equal(drop["drop"]["hook"], "forward", "hook of the policy")
        if backend == "legacy":  # it has a counter
            group.fields(drop, {"drop": {"kind": "policy"}, "rule": {
                "chain": "FORWARD", "number": None, "text": None, "confidence": "inferred"}}, "policy")
        else:
            group.fields(drop, {"rule": None, "drop": {"unknown": lambda text: "the policy of " in (text or "") and
                                                       "has no counter" in text}}, "policy without a counter")
    for drop in run.drops_to_port(7806):
        group.fields(drop, {"rule": None, "drop": {"unknown": lambda text: "has no counter" in (text or "")}},
                     "rule without a counter")
    changed = run.drops_to_port(7808)
    group.equal(len(changed), 1, "packets whose rules changed")
    for drop in changed:
        # A look may have come before the change.
        if drop["rule"] is None:
            group.true("the rules changed" in drop["drop"]["unknown"], "says that they have changed", drop["drop"])
        else:
            group.true("7809" in drop["rule"]["text"], "the rule that it met", drop["rule"])

    for drop in run.drops:
        group.true(drop["rule"] is None or drop["rule"]["confidence"] == "inferred", "nothing is called exact", drop)
    causes = run.final["causes"]
    group.equal(sum(cause["packets"] for cause in causes), len(run.drops), "the summary counts every packet once")
    for cause in causes:
        mine = [d for d in run.drops if (d["rule"] and d["rule"]["text"], d["rule"] and d["rule"]["family"],
                                         d["drop"]["kind"], d["drop"]["hook"]) ==
                (cause["rule"] and cause["rule"]["text"], cause["rule"] and cause["rule"]["family"],
                 cause["drop"]["kind"], cause["drop"]["hook"])]
        if cause["rule"]:
            group.equal(cause["packets"], len(mine), f"packets of {cause['rule']['text']}")
            group.equal(sum(f["packets"] for f in cause["flows"]) + cause["flows_other"]["packets"], len(mine),
                        f"flows of {cause['rule']['text']}")
    # On the terminal each line that names a rule says what it is; wrapped lines are put together first.
    text = re.sub(r"\n {10}(?! )", " ", run.out)
    for line in text.splitlines():
        if re.match(r"  (where|rule|owner) ", line) and "not known" not in line and "NETFILTER_DROP" not in line:
            group.true("inferred" in line, "a line on the terminal says that it is inferred", line)
    group.true("by " + ("input" if backend == "nftables" else "INPUT") + " rule 1" in run.out and "(inferred)" in run.out,
               "the summary on the terminal names the rule as inferred", run.out[-600:])
