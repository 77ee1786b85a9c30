# SPDX-License-Identifier: GPL-2.0-only
"""Network namespaces, modules and processors that come and go under way; and what a kernel that is locked down allows."""

import re

from .guest import check_lines
from .oracle import Ruleset

SCENARIOS = ["come-and-go", "lockdown"]


def namespaces(group, guest, validator):
    run = guest.run("come-and-go")
    check_lines(group, run, validator)
    group.equal(run.exit, 0, "exit code")
    inodes = {int(number): int(inode) for number, inode in
              map(str.split, guest.text("come-and-go/inodes").splitlines())}
    group.equal(sorted(inodes), list(range(1, 8)), "the namespaces")
    group.true(len(set(inodes.values())) < 6, "some have got the number of one before", inodes)
    nameless = guest.text("come-and-go/nameless").strip()
    for number, inode in inodes.items():
        what, port = f"namespace {number}", 7350 + number
        drops = run.drops_to_port(port)
        group.equal(len(drops), 2 if number == 7 else 1, f"{what}: drop lines")
        gone_at_once = number in (5, 6)
        own = f"sleep[{nameless}]" if number == 7 else f"brief{number}"
        text = f"-A INPUT -p udp -m udp --dport {port} -j DROP"
        for drop in drops:
            group.fields(drop["netns"], {"inode": inode}, what)
            # Once it is gone, neither its name nor its rules can be read. Those of another one are never taken for them.
            names = [own, None] if gone_at_once else [own]
            group.true(drop["netns"]["name"] in names, f"{what}: name", drop["netns"])
            rule = drop["rule"] or {}
            group.fields(rule, {"table": "filter", "chain": "INPUT", "confidence": "exact",
                                "text": lambda it, gone=gone_at_once, own=text: it == own or (gone and it is None)}, what)
            if number % 2 or rule.get("text"):  # in nf_tables the number is read with the text
                group.fields(rule, {"number": number, "backend": "iptables-legacy" if number % 2 else "iptables-nft"}, what)


def modules(group, guest, _):
    run = guest.run("come-and-go")
    for first in (7361, 7363):  # before they were unloaded, and after
        for drop in run.drops_to_port(first) + run.drops_to_port(first + 1):
            native = drop["packet"]["dport"] == first
            group.fields(drop["rule"] or {}, {
                "backend": "nftables" if native else "iptables-legacy", "confidence": "exact", "number": 2 if native else 1,
                "text": lambda text, port=drop["packet"]["dport"]: f"dport {port} " in (text or "")},
                         f"port {drop['packet']['dport']}")
        group.equal([len(run.drops_to_port(port)) for port in (first, first + 1)], [2, 2], f"ports {first}, {first + 1}")


    unloaded = {when: dict(map(str.split, guest.text(f"come-and-go/unloaded.{when}").splitlines()))
                for when in ("traced", "stopped")}
    group.equal(set(unloaded["stopped"].values()), {"gone"}, "modules that nobody traces any more can be unloaded")
    # The kernel keeps a module whose function is traced by fentry; kprobes are taken out of it.
    group.equal(unloaded["traced"], {"nft_reject_inet": "gone" if guest.old else "held", "iptable_filter": "gone"},
                "modules unloaded while they are traced")


def processors(group, guest, _):
    run = guest.run("come-and-go")
    states = guest.text("come-and-go/online").split("\n")
    group.equal(states[:2], ["0 0", "1 0-1"], "processors that were online")
    group.equal(guest.text("come-and-go/online.jobs").count("flood $port"), 4, "packets that were being sent meanwhile")
    legacy = Ruleset().add_save(guest.text("come-and-go/after.save4"), "ip")
    native = Ruleset().add_nft(guest.text("come-and-go/after.nft"), guest.text("come-and-go/after.nft.json"))
    for port, rule in ((7371, legacy.rule("ip", "filter", "INPUT", 1)), (7372, native.rule("inet", "flooded", "input", 1))):
        group.true(f"dport {port} " in rule.text and rule.packets >= 1900, f"port {port}: packets that came", rule)
        causes = [c for c in run.final["causes"] if any(f["dport"] == port for f in c["flows"])]
        group.equal(sum(c["packets"] for c in causes), rule.packets, f"port {port}: packets in the summary")
        named = [c for c in causes if c["rule"]]
        group.equal({c["rule"]["text"] for c in named}, {rule.text}, f"port {port}: rules that are named")
        unnamed = sum(c["packets"] for c in causes if not c["rule"])
        group.true(unnamed <= rule.packets / 100, f"port {port}: packets without a rule", f"{unnamed} of {rule.packets}")


def lockdown(group, guest, validator):
    modes = [re.search(r"\[(\w+)\]", line).group(1) for line in guest.text("lockdown/modes").splitlines()]
    group.equal(modes, ["integrity", "confidentiality"], "how the kernel was locked down, by its own word")
    legacy = Ruleset().add_save(guest.text("lockdown/legacy.save4"), "ip")
    nft = Ruleset().add_nft(guest.text("lockdown/nft.nft"))
    xt = Ruleset().add_save(guest.text("lockdown/nft.save4"), "ip")
    # Nobody may write to it: that is not needed.
    run = guest.run("lockdown", "integrity")
    check_lines(group, run, validator)
    group.equal(run.exit, 0, "integrity: exit code")
    for port, text, rules in ((7401, "-A INPUT -p udp -m udp --dport 7401 -j DROP", legacy),
                              (7402, "-A INPUT -p udp -m udp --dport 7402 -j DROP", xt),
                              (7403, "udp dport 7403 counter drop", nft)):
        drops = run.drops_to_port(port)
        group.equal(len(drops), 2, f"integrity: port {port}: drop lines")
        for drop in drops:
            group.fields(drop["rule"] or {}, {"text": text, "confidence": "exact"}, f"integrity: port {port}")
        group.true(any(rule.text == text for chain in rules.chains.values() for rule in chain.rules), f"{text}: is there")
    # Nobody may read it, and a BPF program could: one sentence, and how to get further.
    run = guest.run("lockdown", "confidentiality")
    group.equal((run.exit, run.lines, run.out), (3, [], ""), "confidentiality: exit code, and nothing else")
    group.true("locked down (confidentiality)" in run.err and len(run.err.splitlines()) == 1,
               "confidentiality: says so", run.err)


def all_checks(run, validator):
    run("come-and-go", "network namespaces that come and go", namespaces, validator)
    run("come-and-go", "modules that are unloaded and come back", modules, validator)
    run("come-and-go", "processors that go offline", processors, validator)
    run("lockdown", "a kernel that is locked down", lockdown, validator)
