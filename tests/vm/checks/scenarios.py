# SPDX-License-Identifier: GPL-2.0-only
"""What each scenario of tests/vm/guest must have seen."""

import os
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

from . import causes, come_and_go, counted, differential, evidence, explanations, hooks, inferred, open_vswitch, selinux
from .guest import Run, check_lines, check_run, check_terminal, key_of, reasons_file, seconds
from .oracle import Ruleset, expected_rule, fates_from_log, fates_from_monitor

BACKENDS = ("legacy", "iptables-nft", "nftables")
DNS4, DNS6, VM4, VM6 = "100.100.2.136", "fd7a:115c:a1e0::53", "10.0.0.2", "fd00:a::2"
CLIENT4, CLIENT6 = "10.1.0.2", "fd00:b::2"


# What the start says of kprobes, and where it does.
LIMITS = {
    "with kprobes, since this kernel's modules have no type information: functions at hooks and queues are not told, nor a "
    "rule whose probe the kernel skips": lambda guest: guest.old,
    "with kprobes, since this kernel lets no fentry be attached: a rule whose probe the kernel skips is not told":
        lambda guest: guest.without_fentry}


def rulesets(guest, scenario, prefix, backend):
    """What the guest saved with save_rules."""
    rules = Ruleset()
    if backend != "nftables":
        rules.add_save(guest.text(f"{scenario}/{prefix}.save4"), "ip")
        rules.add_save(guest.text(f"{scenario}/{prefix}.save6"), "ip6")
    if backend == "iptables-nft":
        rules.add_handles(guest.text(f"{scenario}/{prefix}.nft"))
    elif backend == "nftables":
        rules.add_nft(guest.text(f"{scenario}/{prefix}.nft"), guest.text(f"{scenario}/{prefix}.nft.json"))
    return rules


def reason(guest, name):
    """The name and the number of a reason on this kernel. 5.10 has none: then no reason was specified."""
    return {"reason": name, "reason_code": guest.reasons[name]} if guest.reasons else {
        "reason": "NOT_SPECIFIED", "reason_code": 0}


def location(guest, backend):
    """Who frees the packet: nft_do_chain itself on kernels with reasons here, nf_hook_slow for legacy tables."""
    in_hook = backend == "legacy" or not guest.reasons
    function = r"nf_hook_slow" if in_hook else r"nft_do_chain"
    module = "" if in_hook else r" \[nf_tables\]"
    return lambda text: re.fullmatch(function + r"\+0x[0-9a-f]+/0x[0-9a-f]+" + module, text)


def expected_site(guest, backend, hook, kind="rule"):
    return {"kind": kind, **reason(guest, "NETFILTER_DROP"), "location": location(guest, backend), "hook": hook,
            "unknown": None}


def explained(explanation):
    return (explanation and explanation["id"] and explanation["summary"] and explanation["fixes"] and
            all(fix["do"] and fix["risk"] for fix in explanation["fixes"]))


def packets_of(causes, family, table, chain, number):
    return sum(c["packets"] for c in causes if c["rule"] and (c["rule"]["family"], c["rule"]["table"],
               c["rule"]["chain"], c["rule"]["number"]) == (family, table, chain, number))


# ---- the incident ----

def incident(group, guest, validator, backend):
    scenario = f"incident-{backend}"
    run = guest.run(scenario)
    check_lines(group, run, validator)
    check_terminal(group, run)
    group.equal(run.exit, 0, "exit code after " + ("SIGINT" if backend == "iptables-nft" else "SIGTERM"))

    start = run.lines[0]
    group.fields(start, {"schema_version": 1, "kernel": guest.kernel, "host": guest.host,
                         "filter": "100.100.0.0/16, fd7a:115c:a1e0::/48, both ways",
                         "version": lambda v: v in guest.text("version")}, "start")
    for name in ("iptables-legacy", "iptables-nft", "nftables"):
        group.equal(start["capabilities"][name]["exactness"], "exact", f"start.capabilities.{name}")
    told = " ".join(run.out.split("\n\n")[0].split())
    own = start["capabilities"]["iptables-legacy" if backend == "legacy" else backend]["reason"] or ""
    for limits, holds in LIMITS.items():
        group.equal((told.count(limits), limits in own), (holds(guest), holds(guest)), f"the start says: {limits}")

    rules = rulesets(guest, scenario, "after", backend)
    for family, ip, port, src, dst in (("ip", "ipv4", 41873, DNS4, VM4), ("ip6", "ipv6", 41874, DNS6, VM6)):
        # The rule is the one of ts-input that drops and whose counter moved.
        moved = [(number, rule) for number, rule in enumerate(rules.chains[family, "filter", "ts-input"].rules, 1)
                 if rule.packets and (rule.drops or re.search(r"\bdrop\b", rule.text))]
        if not group.equal(len(moved), 1, f"{ip}: rules of ts-input that dropped, by their counters"):
            continue
        number, rule = moved[0]
        jumps = [n for n, r in enumerate(rules.chains[family, "filter", "INPUT"].rules, 1) if "ts-input" in r.text]
        drops = run.drops_to_port(port, ip)
        group.equal(len(drops), rule.packets, f"{ip}: drop lines")
        for drop in drops:
            group.fields(drop, {
                "schema_version": 1, "type": "drop", "host": guest.host,
                "time": lambda t: seconds(start["time"]) < seconds(t) < seconds(run.final["time"]),
                "mono_ns": lambda n: isinstance(n, int) and n > 0, "cpu": lambda cpu: cpu in (0, 1),
                "netns": {"inode": guest.netns, "name": None},
                "packet": {"family": ip, "proto": "udp", "src": src, "sport": 53, "dst": dst, "dport": port,
                           "length": rule.bytes // rule.packets, "ttl": 64, "tcp_flags": None, "icmp_type": None,
                           "icmp_code": None, "mark": 0, "direction": "from", "in_dev": "eth0", "out_dev": None},
                "drop": expected_site(guest, backend, "input"),
                "rule": {**expected_rule(backend, rules, family, "filter", [("INPUT", jumps[0]), ("ts-input", number)]),
                         "owner": "Tailscale"},
                "process": None,
                "explanation": explained}, f"{ip} drop")
            # Tailscale itself drops nothing over IPv6: the rule is there for these tests, in its chain.
            group.fields(drop["explanation"], {"id": "tailscale-cgnat", "reference": "tailscale/tailscale#21249"}
                         if family == "ip" else {"id": "tailscale-rule", "fixes": lambda fixes:
                                                 fixes[0]["do"] == "tailscale debug prefs"}, f"{ip} explanation")
        causes = [c for c in run.final["causes"] if c["rule"] and c["rule"]["family"] == family]
        if group.equal(len(causes), 1, f"{ip}: causes in the summary"):
            group.fields(causes[0], {
                "packets": rule.packets, "bytes": rule.bytes, "netns": {"inode": guest.netns, "name": None},
                "drop": {"kind": "rule", "reason": reason(guest, "NETFILTER_DROP")["reason"], "hook": "input"},
                "rule": {name: value for name, value in drops[0]["rule"].items() if name != "elements"},
                "first": drops[0]["time"], "last": drops[-1]["time"],
                "flows": [{"proto": "udp", "src": src, "sport": 53, "dst": dst, "dport": port,
                           "packets": rule.packets}],
                "flows_other": {"flows": 0, "packets": 0}}, f"{ip} cause")
            group.true(run.out.count(f"{rule.packets} udp from {src if family == 'ip' else '[' + src + ']'}:53"),
                       f"{ip}: the summary on the terminal says how many came from the resolver", run.out[-600:])
    group.equal(len(run.final["causes"]), 2, "nothing else was dropped")
    group.equal(run.final["lost"], {}, "nothing was lost")
    group.true(sum(not s["final"] for s in run.of_type("summary")) >= 1, "--summary-every gave summaries")


def incident_terminal(group, guest, backend):
    """Within 2 s of the first dropped answer, the terminal shows the cause."""
    scenario = f"incident-{backend}"
    run, marks = guest.run(scenario), guest.marks(scenario)
    first = min(seconds(drop["time"]) for drop in run.drops)
    if group.true("shown" in marks, "the terminal shows the cause before the run ends", run.out):
        # On a real machine within 2 s; three emulated ones share two processors.
        group.true(marks["shown"] - first <= 4.0, "the cause is shown within 4 s", f"{marks['shown'] - first:.2f} s")
    # Who waits is not asked for a packet that died more than 2 s ago: the rules had to be read first.
    too_late = marks.get("shown", first) - first > 2.0
    for drop in {d["packet"]["family"]: d for d in reversed(run.drops)}.values():
        packet, rule = drop["packet"], drop["rule"]
        src, dst = ((f"[{packet[end]}]" if packet["family"] == "ipv6" else packet[end]) for end in ("src", "dst"))
        entries = [entry for entry in re.split(r"\n(?=\d\d:\d\d:\d\d )|\n\n", run.out)
                   if f"{src}:53 > {dst}:{packet['dport']}" in " ".join(entry.split())]
        if group.equal(len(entries), 1, f"{packet['family']}: entries of this cause on the terminal"):
            entry = " ".join(entries[0].split())
            says = ["DROPPED", "an answer, in by eth0", "input hook", "INPUT rule", f"> ts-input rule {rule['number']}",
                    f"rule {rule['text']}", "owner Tailscale, going by chain ts-input"]
            if packet["family"] == "ipv4":
                says += one_minute_answer(rule, packet)
            if drop["evidence"]["socket"] is not None or not too_late:
                says.append(f"waits for it at {VM4}:{packet['dport']}" if packet["family"] == "ipv4" else "waits for it")
            for text in says:
                group.true(text in entry, f"{packet['family']}: the entry says {text!r}", entry)
    group.true(re.search(r"\b\d+ packets? to there left by eth0; \d+ packets? from there arrived on eth0, and (all of "
                         r"them were|it was) dropped here", " ".join(run.out.split())),
               "the summary says that requests left, and that the answers had arrived", run.out[-900:])
    group.true("--accept-dns=false" not in run.out and "disable-ipv4" not in run.out, "and not what does not help")


def one_minute_answer(rule, packet):
    """What an operator needs: why, that it is really this, what to type, and what that costs. (shared/tailscale-facts.md,
    "A one-minute answer says")"""
    accept = {"iptables-legacy": "iptables-legacy -I INPUT 1 -i eth0 -s 100.100.0.0/16 -j ACCEPT",
              "iptables-nft": "iptables -I INPUT 1 -i eth0 -s 100.100.0.0/16 -j ACCEPT",
              "nftables": 'nft insert rule ip filter INPUT iifname "eth0" ip saddr 100.100.0.0/16 accept'}[rule["backend"]]
    return ["drops whatever claims an address from it without coming out of its tunnel",
            "This packet had reached eth0.", f"{DNS4} is Alibaba Cloud's DNS.", f"{DNS4} is not a tailnet peer",
            f"The route to {DNS4} leaves by eth0 via 10.0.0.1 (table main).",
            "The packet is an answer to this machine's own request (conntrack).",
            "fix 1 node attribute disable-linux-cgnat-drop-rule, and rp_filter=1 risk: needs Tailscale 1.98",
            "net.ipv4.conf.eth0.rp_filter=1 keeps the protection that the rule gave", "ts-forward's drop stays",
            f"2 {accept} risk: works at once, and holds until tailscaled restarts",
            "whoever reaches eth0 can claim an address in 100.100.0.0/16",
            "3 tailscale set --netfilter-mode=nodivert risk: Tailscale keeps its chains but nothing jumps to them: its "
            "accepts are lost too",
            "4 tailscale set --netfilter-mode=off risk: loses the protection against spoofed tailnet addresses "
            "(CVE-2019-14899), masquerading for exit nodes, and the accepts for tailscale0 and Tailscale's UDP port",
            f"5 use another resolver than {DNS4} risk: treats the symptom", "see tailscale/tailscale#21249"]


# ---- every kind of rule ----

def explanation_of(chain, fate):
    """Of rules and policies that belong to nobody."""
    if not fate.policy:
        return "unowned-rule"
    return "forward-policy" if (chain.hook, fate.table, fate.path[0][0]) == ("forward", "filter", "FORWARD") else "policy"


def expect_drop(guest, backend, rules, fate, drop, senders, run_netns):
    """What a drop line must say of a packet whose end the kernel's trace tells."""
    chain = rules.chains[fate.family, fate.table, fate.path[0][0]]
    packet = drop["packet"]
    outgoing = chain.hook in ("output", "postrouting") and packet["src"] in (VM4, VM6)
    expected = {
        "netns": {"inode": run_netns, "name": None},
        "packet": {"length": fate.length, "ttl": fate.ttl, "direction": "to" if outgoing else "from",
                   "mark": 0x1234 if packet["dport"] == 7004 else 0, "in_dev": fate.in_dev, "out_dev": fate.out_dev,
                   "tcp_flags": 2 if packet["proto"] == "tcp" else None,
                   "icmp_type": {"icmp": 8, "icmpv6": 128}.get(packet["proto"]),
                   "icmp_code": 0 if packet["proto"].startswith("icmp") else None},
        "drop": expected_site(guest, backend, chain.hook, "policy" if fate.policy else "rule"),
        "rule": {**expected_rule(backend, rules, fate.family, fate.table, fate.path), "owner": None},
        "process": senders[packet["dst"]] if outgoing else None,
        "explanation": lambda e: explained(e) and e["id"] == explanation_of(chain, fate),
    }
    if outgoing and packet["proto"] == "udp":
        sender = senders[packet["dst"]]
        tells = f"{sender['comm']} (pid {sender['pid']}) was sending it and got EPERM (Operation not permitted)."
        expected["explanation"] = lambda e: explained(e) and e["id"] == explanation_of(chain, fate) and (
            tells in e["summary"])
    if fate.mark is not None:
        expected["packet"]["mark"] = fate.mark
    return expected


def exact_fates(guest, backend):
    scenario = f"exact-{backend}"
    trace = guest.text(f"{scenario}/trace")
    rules = rulesets(guest, scenario, "after", backend)
    if backend == "legacy":
        return rules, fates_from_log(trace, rules)
    traced = rules
    if backend == "iptables-nft":  # the trace also passes the chains that switch it on
        traced = Ruleset().add_nft(guest.text(f"{scenario}/after.nft"))
    return rules, fates_from_monitor(trace, traced)


def expected_elements(packet):
    """By the rules that tests/vm/guest/exact.sh gives to nft."""
    of = lambda name, element: {"set": name, "element": element}  # noqa: E731
    ipv4 = packet["family"] == "ipv4"
    return {
        7011: [of(None, "7011")],
        7017: [of(None, "7017 : drop")],
        7021: [of(None, "100.100.2.136 : drop" if ipv4 else "fd7a:115c:a1e0::53 : drop")],
        7022: [of("ports", "7022")],
        7026: [of("verdicts", "7026 : drop")],
        7028: [of("blocked", "100.64.0.0-100.101.0.7") if ipv4 else of("blocked6", "fd7a:115c:a1e0::/48")],
        7029: [of("for-a-while", '"eth0" . 7029 timeout 2h comment "for a while"'), of(None, "udp")],
    }.get(packet["dport"])


def exact_elements(group, guest):
    """The elements of sets and verdict maps that the packets met in the rule that dropped them."""
    run = guest.run("exact-nftables")
    drops = [drop for drop in run.drops if drop["netns"]["inode"] == guest.netns and drop["rule"]]
    for drop in drops:
        group.equal(drop["rule"]["elements"], expected_elements(drop["packet"]),
                    f"elements of {drop['packet']['family']} to port {drop['packet']['dport']}")
    told = {(drop["packet"]["family"], drop["packet"]["dport"]) for drop in drops if drop["rule"]["elements"]}
    group.equal(told, {(ip, port) for ip in ("ipv4", "ipv6") for port in (7011, 7017, 7021, 7022, 7026, 7028, 7029)},
                "packets with an element")
    for text in ("element 7017 : drop (deduced", "element 7022 of @ports (deduced", "element 7026 : drop of @verdicts"):
        group.true(text in run.out, f"the terminal says {text!r}")


def exact(group, guest, validator, backend):
    """Each packet: the rule, its text and the way to it are what the kernel's own trace says."""
    scenario = f"exact-{backend}"
    run = guest.run(scenario)
    check_run(group, run, validator)
    group.equal(run.final["lost"], {}, "nothing was lost")
    group.equal([s["final"] for s in run.of_type("summary")], [True], "without --summary-every: one summary")
    rules, fates = exact_fates(guest, backend)
    pids = [line.split() for line in guest.text(f"{scenario}/senders").splitlines()]
    senders = {dst: {"pid": int(pid), "comm": comm} for dst, (pid, comm) in zip((DNS4, DNS6), pids)}

    incoming = [*range(7001, 7014), 7015, *range(7017, 7030)]
    for ip, vm, client, dns in (("ipv4", VM4, CLIENT4, DNS4), ("ipv6", VM6, CLIENT6, DNS6)):
        wanted = [(vm, port) for port in incoming] + [(client, port) for port in range(7101, 7106)]
        for dst, port in wanted + [(dns, port) for port in range(7201, 7207)]:
            traced = {key: fate for key, fate in fates.items() if (key[0], key[4], key[5]) == (ip, dst, port)}
            drops = [drop for drop in run.drops if key_of(drop) in traced]
            group.equal(len(traced), 2, f"{ip} to {dst} port {port}: packets that the kernel's trace saw dropped")
            group.equal(len(drops), 2, f"{ip} to {dst} port {port}: drop lines")
        for proto, port in (("tcp", 7014), ("tcp", 7016), ("icmp" if ip == "ipv4" else "icmpv6", None)):
            traced = [key for key in fates if (key[0], key[1], key[5]) == (ip, proto, port)]
            group.true(traced, f"{ip}: the kernel's trace saw a drop of {proto} {port}")
            group.true([drop for drop in run.drops if key_of(drop) in traced], f"{ip}: drop lines of {proto} {port}")
    for drop in run.drops:
        key = key_of(drop)
        if key not in fates or (fates[key].policy and guest.may_be_suspects(drop)):
            continue
        group.fields(drop, expect_drop(guest, backend, rules, fates[key], drop, senders, guest.netns),
                     f"{key[0]} {key[1]} to port {key[5]}")
    # A packet that the trace did not see may be dropped in another namespace only, by its stack.
    for drop in run.drops:
        if key_of(drop) not in fates:
            group.true(drop["netns"]["inode"] != guest.netns,
                       "a drop that the kernel's trace does not know of", drop)


def exact_counters(group, guest, backend):
    """Each rule that drops, and each policy: its counter and the summary say the same."""
    scenario = f"exact-{backend}"
    final = guest.run(scenario).final
    rules, _ = exact_fates(guest, backend)
    causes = [c for c in final["causes"] if c["netns"]["inode"] == guest.netns]
    untold = [c for c in causes if not c["rule"] and guest.old and backend == "iptables-nft"]  # see may_be_suspects()
    missing = sum(c["packets"] for c in untold)
    moved = 0
    for (family, table, name), chain in rules.chains.items():
        for number, rule in enumerate(chain.rules, 1):
            if rule.packets is None or not (rule.drops or re.search(r"\b(drop|reject)\b", rule.text)):
                continue
            moved += rule.packets > 0
            mine = [c for c in causes if c["rule"] and (c["rule"]["family"], c["rule"]["table"], c["rule"]["chain"],
                                                        c["rule"]["number"]) == (family, table, name, number)]
            group.equal(sum(c["packets"] for c in mine), rule.packets, f"packets of {family} {table} {rule.text}")
            group.equal(sum(c["bytes"] for c in mine), rule.bytes, f"bytes of {family} {table} {rule.text}")
        if backend != "nftables" and chain.policy == "drop":
            less = chain.packets - packets_of(causes, family, table, name, None) if missing else 0
            missing -= less
            group.equal(packets_of(causes, family, table, name, None), chain.packets - less,
                        f"packets of the policy of {family} {table} {name}")
    # A rule of inet counts for both families.
    group.true(moved >= (30 if backend == "nftables" else 44), "rules whose counter moved", moved)
    group.equal(missing, 0, "packets of policies that are told of no policy, and packets without a rule: the difference")
    group.equal([cause for cause in causes if not cause["rule"]], untold, "causes without a rule")
    for cause in causes:
        ways = [c for c in causes if c["rule"] == cause["rule"]]
        group.equal(len(ways), 1, f"one cause for {cause['rule']}")
    group.true(all(a["packets"] >= b["packets"] for a, b in zip(final["causes"], final["causes"][1:])),
               "most packets first")


def exact_netns(group, guest, backend):
    """A rule in another network namespace, which has a name."""
    scenario = f"exact-{backend}"
    run = guest.run(scenario)
    inode = int(guest.text(f"{scenario}/netns.client"))
    rules = Ruleset()
    if backend != "nftables":
        rules.add_save(guest.text(f"{scenario}/client.save4"), "ip").add_save(guest.text(f"{scenario}/client.save6"), "ip6")
    if backend == "iptables-nft":
        rules.add_handles(guest.text(f"{scenario}/client.nft"))
    if backend == "nftables":
        rules.add_nft(guest.text(f"{scenario}/client.nft"))
    for family, ip in (("ip", "ipv4"), ("ip6", "ipv6")):
        family, table, chain = ("inet", "there", "input") if backend == "nftables" else (family, "filter", "INPUT")
        drops = run.drops_to_port(7401, ip)
        group.equal(len(drops), 2, f"{ip}: drop lines")
        for drop in drops:
            group.fields(drop, {"netns": {"inode": inode, "name": "client"},
                                "packet": {"in_dev": "eth1", "out_dev": None, "direction": "from"},
                                "drop": expected_site(guest, backend, "input"),
                                "rule": expected_rule(backend, rules, family, table, [(chain, 1)]),
                                "process": None}, f"{ip} drop")
    group.true(re.search(rf"netns +client \({inode}\)", run.out), "the terminal names the namespace")


# ---- recordings ----

def replay(group, guest, validator, program, scenario):
    """The recording of a run gives, here and without privileges, the same drop lines and the same summary."""
    live = guest.run(scenario)
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        shutil.copy(guest.directory / scenario / "recording", f"{directory}/recording")
        shutil.copy(program, f"{directory}/tsdroptrace")
        os.chmod(f"{directory}/recording", 0o644)
        done = _unprivileged([f"{directory}/tsdroptrace", "--replay", f"{directory}/recording", "--json"])
        text = _unprivileged([f"{directory}/tsdroptrace", "--replay", f"{directory}/recording"])
    group.equal(done.returncode, 0, "exit code of --replay")
    group.equal(done.stderr, "", "--replay complains of nothing")
    again = Run(guest.directory / scenario, "replay", done.stdout)
    check_lines(group, again, validator)
    group.equal(again.lines[0], live.lines[0], "the start line")
    order = lambda drop: (drop["mono_ns"], drop["cpu"])  # noqa: E731
    before, after = sorted(live.drops, key=order), sorted(again.drops, key=order)
    group.equal(len(after), len(before), "drop lines")
    for one, other in zip(before, after):
        group.equal(other, one, "a drop line replayed")
    group.equal(again.of_type("ruleset"), live.of_type("ruleset"), "lines of changed rulesets replayed")
    group.equal(again.of_type("stopped"), live.of_type("stopped"), "lines of drops that have stopped replayed")
    for name in ("causes", "lost", "hidden", "ways"):
        group.equal(again.final[name], live.final[name], f"summary.{name} replayed")
    entries = lambda out: sorted(re.findall(r"^  rule    .*", out, re.M))  # noqa: E731
    group.equal(entries(text.stdout), entries(live.out), "the rules on the terminal")


def recordings_refused(group, guest, program):
    """Files that are no whole recording of this version."""
    whole = (guest.directory / "incident-legacy/recording").read_bytes()
    newer = bytearray(whole)
    newer[12:16] = (99).to_bytes(4, "little")
    cases = {"foreign": (b"#!/bin/sh\necho this is no recording\n" * 10, "not a tsdroptrace recording"),
             "empty": (b"", "not a tsdroptrace recording"),
             "newer": (bytes(newer), "newer"),
             "header": (whole[:40], "ends"),
             "truncated": (whole[:len(whole) // 2], "ends in the middle"),
             "damaged": (whole[:32] + b"\xff" * 8 + whole[40:], "damaged")}
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        shutil.copy(program, f"{directory}/tsdroptrace")
        for name, (content, says) in cases.items():
            path = f"{directory}/{name}"
            with open(path, "wb") as file:
                file.write(content)
            done = _unprivileged([f"{directory}/tsdroptrace", "--replay", path, "--json"])
            group.equal(done.returncode, 1, f"{name}: exit code")
            group.equal(len(done.stderr.splitlines()), 1, f"{name}: lines on standard error ({done.stderr!r})")
            group.true(says in done.stderr and name in done.stderr, f"{name}: says {says!r} and which file", done.stderr)
        done = _unprivileged([f"{directory}/tsdroptrace", "--replay", f"{directory}/none"])
        group.equal(done.returncode, 1, "no such file: exit code")
        group.true("No such file" in done.stderr, "no such file: says so", done.stderr)


def _unprivileged(command):
    if os.geteuid() == 0:
        command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *command]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


# ---- modules that come later ----

def late_modules(group, guest, validator):
    run = guest.run("late-modules")
    check_lines(group, run, validator)
    netfilter = re.compile(r"^(x_tables|\w*_tables|iptable_\w+|ip6table_\w+|nf_\w+|nft_\w+|xt_\w+) ", re.M)
    group.equal(netfilter.findall(guest.text("late-modules/modules.before")), [], "netfilter modules before the start")
    group.equal(netfilter.findall(guest.text("late-modules/modules.started")), [], "netfilter modules it has loaded")
    legacy = rulesets(guest, "late-modules", "legacy", "legacy")
    xt = rulesets(guest, "late-modules", "nft", "iptables-nft")
    native = Ruleset().add_nft(guest.text("late-modules/nft.nft"))
    cases = [(7301, "ipv4", "legacy", legacy, ("ip", "filter", "INPUT", 1)),
             (7301, "ipv6", "legacy", legacy, ("ip6", "filter", "INPUT", 1)),
             (7302, "ipv4", "legacy", legacy, ("ip", "raw", "PREROUTING", 1)),
             (7303, "ipv4", "iptables-nft", xt, ("ip", "filter", "INPUT", 1)),
             (7303, "ipv6", "iptables-nft", xt, ("ip6", "filter", "INPUT", 1))]
    for ip in ("ipv4", "ipv6"):
        cases += [(7304, ip, "nftables", native, ("inet", "late", "input", 2)),
                  (7305, ip, "nftables", native, ("inet", "late", "input", 1))]
    for port, ip, backend, rules, (family, table, chain, number) in cases:
        drops = run.drops_to_port(port, ip)
        group.equal(len(drops), 2, f"{ip} port {port}: drop lines")
        for drop in drops:
            hook = rules.chains[family, table, chain].hook
            group.fields(drop, {"drop": expected_site(guest, backend, hook),
                                "rule": expected_rule(backend, rules, family, table, [(chain, number)])},
                         f"{ip} port {port}")
    # Some of these have died before their module was traced, which does not keep the others from being named.
    arp = Ruleset().add_listing(guest.text("late-modules/arp.list"), guest.text("late-modules/arp.counters"), "arp",
                                "filter")
    place = ("arp", "filter", "INPUT", 1)
    drops = sorted((d for d in run.drops if d["packet"]["family"] == "other" and d["drop"]["kind"] != "kernel"),
                   key=lambda d: d["mono_ns"])
    group.equal(len(drops), arp.rule(*place).packets, "requests for addresses: the rule's own counter")
    for drop in drops:
        rule = drop["rule"]
        group.true(not rule or (rule["family"], rule["table"], rule["chain"], rule["number"]) == place,
                   "a request for an address: its rule", rule)
    for drop in drops[-1:]:
        group.equal(drop["packet"]["dst"], "100.100.9.99", "the last such request")
        group.fields(drop, {"drop": expected_site(guest, "legacy", "input"),
                            "rule": expected_rule("legacy", arp, *place[:2], [place[2:]])}, "the last such request")
    # Modules are looked for each second. What it takes to attach to them was less than all of the start, in the same VM;
    # the guest looks five times a second.
    marks = guest.marks("late-modules")
    start = marks["run.started"] - marks["run.launch"]
    for what in ("legacy", "nft", "reject"):
        took = marks[f"{what}.traced"] - marks[f"{what}.rules"]
        group.true(took <= 1.5 + 2 * start, f"{what}: seconds until its module was traced (the start took {start:.1f})", took)
    # Rules that came with their module are told as new, if not by whom: nobody was watching yet.
    added = {(rule["family"], rule["table"], rule["chain"], rule["number"])
             for line in run.of_type("ruleset") for rule in line["drops"]["added"]}
    group.equal(added, {case[4] for case in cases} | {place}, "rules that came")


# ---- drops without a rule, and noise ----

def kernel_drops(group, guest, validator):
    run = guest.run("various")
    check_run(group, run, validator)
    no_rule = {"netns": {"inode": guest.netns, "name": None}, "rule": None, "process": None,
               "explanation": lambda e: e and e["id"] and e["summary"]}
    no_socket, rpfilter = (reason(guest, name)["reason"] for name in ("NO_SOCKET", "IP_RPFILTER"))
    cases = [(7511, "ipv4", {"reason": no_socket, "location": lambda l: re.match(r"\w*udp\w*\+0x", l)}, "eth0"),
             (7511, "ipv6", {"reason": no_socket, "location": lambda l: re.match(r"\w*udp\w*\+0x", l)}, "eth0"),
             (7512, "ipv4", {"location": lambda l: re.match(r"ip_error\+0x", l)}, "eth0"),
             (7513, "ipv4", {"reason": rpfilter, "location": lambda l: re.match(r"ip_[\w.]+\+0x", l)}, "eth0")]
    for port, ip, site, device in cases:
        drops = run.drops_to_port(port, ip)
        group.equal(len(drops), 2, f"{ip} port {port}: drop lines")
        for drop in drops:
            group.fields(drop, {**no_rule, "packet": {"direction": "from", "in_dev": device, "out_dev": None},
                                "drop": {"kind": "kernel", "hook": None, **site}}, f"{ip} port {port}")
            group.equal(drop["drop"]["reason_code"], guest.reasons.get(drop["drop"]["reason"]) if guest.reasons else 0,
                        f"{ip} port {port}: code of {drop['drop']['reason']} on this kernel")
            group.true(drop["drop"]["reason"] in run.out, f"the terminal names {drop['drop']['reason']}")
            group.equal(drop["explanation"]["id"], "kernel-not-specified-function" if guest.old and port != 7512 else {
                7511: "kernel-no-socket", 7512: "kernel-route-refuses", 7513: "kernel-ip-rpfilter"}[port],
                        f"{ip} port {port}: the explanation")
            fixes = [fix["do"] for fix in drop["explanation"]["fixes"]]
            if port == 7513 and not guest.old:  # the way back is by eth1, not by the tunnel
                group.equal(fixes, [f"ip route get {DNS4}", "sysctl -w net.ipv4.conf.eth0.rp_filter=2"],
                            "a reverse path: what helps")
            if port == 7512:
                group.equal(fixes[:1], [f"ip route get 10.9.1.1 from {DNS4} iif eth0"], "a route that refuses: what to ask")
    group.true(run.final["hidden"].get(no_socket, 0) >= 2, "the two answered pings are counted as noise",
               run.final["hidden"])
    group.equal([d for d in run.drops if d["drop"]["location"].startswith(("ping_rcv", "icmp_rcv"))], [],
                "noise is not shown")
    group.true(f"{no_socket} (noise" in run.out, "the terminal says that there was noise", run.out[-400:])


# ---- rules that change ----

def changes(group, guest):
    run, marks = guest.run("various"), guest.marks("various")
    cases = ((7501, "legacy", ("ip", "filter", "INPUT")), (7502, "iptables-nft", ("ip", "filter", "INPUT")),
             (7503, "nftables", ("inet", "changing", "input")))
    for port, backend, (family, table, chain) in cases:
        def saved(prefix):
            if backend == "nftables":
                return Ruleset().add_nft(guest.text(f"various/{prefix}-nft.nft"),
                                         guest.text(f"various/{prefix}-nft.nft.json"))
            return rulesets(guest, "various", f"{prefix}-{'legacy' if backend == 'legacy' else 'nft'}", backend)
        second, third = saved("second"), saved("third")
        first_rule = second.rule(family, table, chain, 2)
        drops = sorted(run.drops_to_port(port), key=lambda d: d["mono_ns"])
        if not group.equal(len(drops), 7, f"{backend}: drop lines"):
            continue
        for drop in drops[:2]:
            group.equal(drop["rule_written"], None, f"{backend}: who wrote a rule that was there before")
            group.fields(drop["rule"], {"chain": chain, "number": 1, "text": first_rule.text, "stale": False,
                                        "handle": first_rule.handle if backend != "legacy" else None},
                         f"{backend} before the change")
        new = expected_rule(backend, second, family, table, [(chain, 1)])
        # Right after it the text may be unknown, but never that of another rule.
        rule = drops[2]["rule"]
        known = rule and {name: rule[name] for name in new}
        group.true(rule is None or known == new or (rule["stale"] and rule["text"] is None),
                   f"{backend} right after the change", drops[2])
        for drop in drops[3:5]:
            group.true(seconds(drop["time"]) >= marks["settled"], f"{backend}: order of the packets", drop["time"])
            group.fields(drop["rule"], new, f"{backend} 2 s after the change")
            tool = {"legacy": "iptables-legacy", "iptables-nft": "iptables-nft", "nftables": "nft"}[backend]
            by = [c for c in (drop["rule_written"] or {"changers": []})["changers"] if c["comm"] == tool]
            group.true(by and by[0]["parent"]["comm"] == "bash", f"{backend}: who wrote the rule", drop["rule_written"])
            group.true(seconds((drop["rule_written"] or {"time": "1970-01-01T00:00:00.0Z"})["time"]) >= marks["changed"],
                       f"{backend}: when", drop["rule_written"])
        moved = expected_rule(backend, third, family, table, [(chain, 2)])
        for drop in drops[5:]:
            group.fields(drop["rule"], moved, f"{backend} 2 s after the rule has moved")
        group.true("second" in moved["text"], f"{backend}: it is the second rule", moved)
        counted = sum(c["packets"] for c in run.final["causes"] if any(f["dport"] == port for f in c["flows"]))
        group.equal(counted, 7, f"{backend}: packets in the summary")
        named = sum(c["packets"] for c in run.final["causes"] if c["rule"] and c["rule"]["text"] == moved["text"])
        group.true(named >= 4, f"{backend}: packets of the second rule in the summary, with its text", named)
        group.equal(third.rule(family, table, chain, 2).packets, 5, f"{backend}: the rule's own counter")


# ---- options ----

def options(group, guest, validator):
    to, only_from, six, everything, nothing, unseen, noisy = (
        guest.run("options", name, _json_of(guest, name))
        for name in ("to", "from", "six", "all", "nothing", "unseen", "noisy"))
    for run in (to, only_from, six, everything, nothing, unseen, noisy):
        check_lines(group, run, validator)
        group.equal(run.exit, 0, f"{run.name}: exit code")
    ports = lambda run: Counter((d["packet"]["src"], d["packet"]["dport"]) for d in run.drops)  # noqa: E731

    group.equal(ports(to), {(VM4, 7602): 2}, "--direction to: (source, port)")
    group.true(all(d["packet"]["direction"] == "to" for d in to.drops), "--direction to: packet.direction")
    group.true(sum(not s["final"] for s in to.of_type("summary")) >= 2, "--summary-every: summaries before the last")
    group.equal(len(only_from.drops), 3, "--count 3: drop lines")
    group.true(all(d["packet"]["direction"] == "from" and d["packet"]["src"] == DNS4 for d in only_from.drops),
               "--direction from: packets", ports(only_from))
    group.equal(ports(six), {(DNS6, 7601): 2}, "an IPv6 range: (source, port)")
    group.true(re.match(r"2 dropped in ", six.out), "--quiet: only the summary is on the terminal", six.out)
    wanted = {(DNS4, 7601): 2, ("10.0.0.1", 7601): 2, (DNS6, 7601): 2, (VM4, 7602): 2}
    group.true(wanted.items() <= ports(everything).items(), "--all: (source, port)", str(ports(everything)))
    lasted = seconds(everything.final["until"]) - seconds(everything.final["since"])
    group.true(8 <= lasted < 12, "--duration 8s", f"{lasted:.1f} s")  # on a busy machine its end takes a second or two
    group.equal((nothing.drops, nothing.final["causes"], nothing.final["hidden"]), ([], [], {}),
                "a range that nothing comes from or goes to")
    group.true("nothing was dropped here in " in nothing.out, "the terminal says that nothing was dropped", nothing.out)
    check_terminal(group, nothing)
    group.equal(nothing.final["seen"]["sent"]["packets"], 0, "packets that pass are counted: none did")
    # --no-seen: the same packets are shown, none that passes is counted, and no program is there to do so.
    group.equal((unseen.final["seen"], ports(unseen)), (None, ports(six)), "--no-seen: seen, and drops")
    links = dict(line.split() for line in guest.text("options/links").splitlines())
    group.true(0 < int(links["unseen"]) < int(links["six"]), "--no-seen: programs that are attached", links)
    # What is noise is shown where that is asked for, else it is counted. Others saw it for longer.
    of_noise = {}  # place -> reasons
    for drop in noisy.drops:
        if match := re.match(r"(ping_rcv|icmp_rcv|icmpv6_rcv|skb_queue_purge)(?:_reason)?\b", drop["drop"]["location"]):
            of_noise.setdefault(match.group(1), Counter())[drop["drop"]["reason"]] += 1
    group.true({"icmpv6_rcv", "skb_queue_purge"} <= set(of_noise) and {"ping_rcv", "icmp_rcv"} & set(of_noise),
               "--verbose: noise is shown, by its place", of_noise)
    for place, reasons in of_noise.items():
        group.equal([d["drop"]["location"] for d in everything.drops if d["drop"]["location"].startswith(place)], [],
                    f"noise at {place} is not shown unless asked for")
        for reason_name in reasons:
            group.true(everything.final["hidden"].get(reason_name, 0) > 0, f"noise at {place} is counted",
                       everything.final["hidden"])
    group.equal(sum(of_noise.values(), Counter()), noisy.final["hidden"], "--verbose: what is shown, and what the kernel counted")
    # Several tracers at once do not disturb each other.
    rules = rulesets(guest, "options", "after", "legacy")
    for run in (six, everything):
        for drop in run.drops_to_port(7601, "ipv6"):
            group.fields(drop["rule"], expected_rule("legacy", rules, "ip6", "filter", [("INPUT", 1)]), run.name)


# ---- filters ----

# The packets of tests/vm/guest/frames by their TTL, those of the senders by their port. What is about the ranges: all but
# an IPIP packet from elsewhere with one of ours within (16), an ICMP error about another destination (21), another
# source (25).
RANGE = {10, 11, 12, 13, 14, 15, 17, 18, 19, 20, 22, 23, 24, 26, 30, 31, 32, 33, 34, 35, 36, 37, 40, 41, 50, 51, 52,
         7801, 7802, 7804}
# Their ports are not known: later fragments, an ICMP error that quotes one, too many extension headers.
PORTLESS = {18, 22, 33, 37}
PORT_53 = {10, 11, 14, 17, 20, 26, 30, 31, 32, 35, 40, 41, 50, 51, 52} | PORTLESS
KERNEL = {40, 50, 51, 52}  # dropped by no rule
FILTERS = {
    "dst": RANGE,
    "from": RANGE - {23, 7801, 7804},  # 23 is an error about an answer
    "run": PORT_53,
    "ports": {10, 11, 7801} | PORTLESS,
    "udp": {10, 11, 17, 18, 20, 22, 26, 30, 31, 32, 33, 35, 37, 40, 41, 50, 51, 52, 7801, 7802, 7804},
    "protos": {12, 14, 15, 23, 34, 37},  # what 37 is, is not known
    "icmp": {13, 19, 20, 22, 23, 24, 35, 36, 37},
    "src": RANGE - {26, 7804},
    "src-to": {23, 7801},
    "iface": {7804},
    "netns-name": {7802},
    "netns-path": {7802},
    "netns-inode": RANGE - {7802},
    "reason": RANGE - {50, 51, 52},
    "reason-other": {50, 51, 52},
    "rules": RANGE - KERNEL,
    "all": {25} | PORTLESS,
    "all-src": {10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 41, 7801, 7802},
    "many": PORT_53 - {26},
    "none": set(),
    "every": {10, 11, 17, 18, 20, 22, 41, 7801},
}
FILTERS_OF_OLD = ["dst", "run", "protos", "icmp", "src-to", "iface", "netns-name", "many", "every"]


def packet_id(drop):
    packet = drop["packet"]
    return packet["dport"] if packet["ttl"] > 60 else packet["ttl"]


def filters(group, guest, validator):
    if guest.old:
        refused = guest.run("filters", "reason", "")
        group.equal((refused.exit, refused.out), (3, ""), "--reason on a kernel without reasons")
        group.true("gives no reasons" in refused.err, "--reason: says that there are none", refused.err)
    for name, expected in FILTERS.items():
        if guest.old and name not in FILTERS_OF_OLD:
            continue
        run = guest.run("filters", name)
        check_lines(group, run, validator)
        check_terminal(group, run)
        group.equal(run.exit, 0, f"{name}: exit code")
        seen = Counter(packet_id(drop) for drop in run.drops)
        group.equal(sorted(set(seen) - expected, key=str), [], f"{name}: packets that do not match the filter")
        group.equal(sorted(expected - set(seen)), [], f"{name}: packets that are missing")
        group.equal([packet for packet, times in seen.items() if times != 1], [], f"{name}: packets shown again")
        final = run.final
        group.equal(sum(c["packets"] for c in final["causes"]), len(expected), f"{name}: packets in the summary")
        group.equal(sum(c["bytes"] for c in final["causes"]), sum(d["packet"]["length"] for d in run.drops),
                    f"{name}: bytes in the summary")
        group.equal(sum(f["packets"] for c in final["causes"] for f in c["flows"]) +
                    sum(c["flows_other"]["packets"] for c in final["causes"]), len(expected),
                    f"{name}: packets of the flows in the summary")
        group.equal((final["lost"], final["hidden"]), ({}, {}), f"{name}: what was lost and hidden")


def filtered_packets(group, guest):
    """Each kind of packet is what it was sent as."""
    run = guest.run("filters", "dst")
    provider = int(guest.text("filters/netns.provider"))
    drops = {packet_id(drop): drop for drop in run.drops}
    plain = {"no_ports": None, "quoted": None}
    fragment = {"sport": None, "dport": None, "no_ports": "fragment"}
    error = {"sport": None, "dport": None, "no_ports": None}
    expected = {
        10: {"proto": "udp", "src": DNS4, "sport": 53, "dst": VM4, "dport": 4000, **plain},
        12: {"proto": "tcp", "sport": 443, "dport": 4002, "tcp_flags": 2, **plain},
        13: {"proto": "icmp", "icmp_type": 8, "icmp_code": 0, "sport": None, **plain},
        14: {"proto": "sctp", "sport": 53, "dport": 4003, **plain},
        15: {"proto": "gre", "src": DNS4, "dst": VM4, "sport": None, "dport": None, **plain},
        17: {"proto": "udp", "sport": 53, "dport": 4005, **plain},
        18: {"proto": "udp", **fragment, "quoted": None},
        19: {"proto": "icmp", "icmp_type": None, **plain},
        20: {"proto": "icmp", "icmp_type": 3, "icmp_code": 1, "src": "192.0.2.1", "dst": VM4, "direction": "from", **error,
             "quoted": {"proto": "udp", "src": VM4, "sport": 4006, "dst": DNS4, "dport": 53}},
        22: {"icmp_type": 11, **error, "quoted": {"proto": "udp", "src": VM4, "sport": None, "dst": DNS4, "dport": None}},
        23: {"direction": "to", "quoted": {"proto": "tcp", "src": DNS4, "sport": 443, "dst": VM4, "dport": 4007}},
        24: {"direction": "from", "quoted": {"proto": "tcp", "dst": "198.51.100.7", "dport": 443}},
        31: {"proto": "udp", "src": DNS6, "sport": 53, "dst": VM6, "dport": 4012, "length": 40 + 16 + 16, **plain},
        32: {"proto": "udp", "sport": 53, "dport": 4013, **plain},
        33: {"proto": "udp", **fragment, "quoted": None},
        34: {"proto": "tcp", "sport": 443, "dport": 4014, "tcp_flags": 2, **plain},
        35: {"proto": "icmpv6", "icmp_type": 1, "src": "2001:db8::1", "direction": "from", **error,
             "quoted": {"proto": "udp", "src": VM6, "sport": 4015, "dst": DNS6, "dport": 53}},
        36: {"proto": "icmpv6", "icmp_type": 128, **plain},
        37: {"proto": "60", "sport": None, "dport": None, "no_ports": "unread", "quoted": None},
        50: {"family": "ipv4", "proto": "udp", "src": DNS4, "sport": 53, "dst": VM4, "dport": 4018, "in_dev": "eth0"},
        51: {"family": "ipv4", "proto": "udp", "src": DNS4, "sport": 53, "dst": VM4, "dport": 4019, "in_dev": "eth0"},
        52: {"family": "ipv6", "proto": "udp", "src": DNS6, "sport": 53, "dst": VM6, "dport": 4020, "in_dev": "eth0"},
        7804: {"in_dev": "eth1", "out_dev": "eth0", "direction": "to"},
    }
    for packet, fields in expected.items():
        group.fields(drops.get(packet, {}).get("packet"), fields, f"packet {packet}")
    for packet, (kind, name) in {10: ("rule", "NETFILTER_DROP"), 40: ("kernel", "NO_SOCKET"),
                                   41: ("policy", "NETFILTER_DROP"), 7804: ("rule", "NETFILTER_DROP"),
                                   50: ("kernel", "OTHERHOST"),
                                   51: ("kernel", "UNHANDLED_PROTO"), 52: ("kernel", "UNHANDLED_PROTO"),
                                   7801: ("rule", "NETFILTER_DROP")}.items():
        group.fields(drops.get(packet, {}).get("drop"), {"kind": kind, **reason(guest, name)}, f"packet {packet}")
        explanation = {"rule": "unowned-rule", "policy": "policy"}.get(kind) or (
            "kernel-not-specified-function" if guest.old else "kernel-" + name.lower().replace("_", "-"))
        group.fields(drops.get(packet, {}).get("explanation"), {"id": explanation}, f"packet {packet}: explanation")
    if not guest.old:
        group.true("carries ethertype 0x0800" in drops[51]["explanation"]["summary"], "a VLAN without its device",
                   drops[51]["explanation"])
    for packet, drop in drops.items():
        group.equal(drop["netns"]["inode"], provider if packet == 7802 else guest.netns, f"packet {packet}: netns")
    group.fields(guest.run("filters", "every").lines[0], {
        "filter": f"100.100.0.0/16, fd7a:115c:a1e0::/48, both ways; local side {VM4}; port 53, 7801; proto udp; device "
                  f"eth0; netns {guest.netns}; {'' if guest.old else 'reason NETFILTER_DROP; '}only rules and policies"},
                 "the start line")


def _json_of(guest, name):
    """--json writes to standard output and nothing else comes there; else there is a file."""
    path = guest.directory / f"options/{name}.json"
    return None if path.exists() else guest.text(f"options/{name}.out")


# ---- a command that is traced while it runs ----

def command(group, guest, validator):
    incident, aftermath, killed, duration, terminated, once, twice, missing, no_program = runs = [
        guest.run("command", name) for name in ("incident", "aftermath", "killed", "duration", "terminated", "once",
                                                "twice", "missing", "not-a-program")]
    codes = [9, 5, 128 + 9, 4, 7, 6, 128 + 9, 127, 126]
    for run, code in zip(runs, codes):
        check_lines(group, run, validator)
        group.equal(run.exit, code, f"{run.name}: exit code")
    ports = lambda run: [d["packet"]["dport"] for d in run.drops]  # noqa: E731

    before, after = (rulesets(guest, "command", when, "legacy") for when in ("before", "after"))
    dropped = lambda chain, number: (after.chains["ip", "filter", chain].rules[number - 1].packets  # noqa: E731
                                     - before.chains["ip", "filter", chain].rules[number - 1].packets)
    inputs = range(1, len(after.chains["ip", "filter", "ts-input"].rules) + 1)
    moved = [n for n in inputs if dropped("ts-input", n) and "DROP" in after.chains["ip", "filter", "ts-input"].rules[n - 1].text]
    group.equal([(n, dropped("ts-input", n)) for n in moved], [(moved[0] if moved else 0, 1)],
                "the rule's own counter: one answer to dig was dropped")
    group.equal(ports(incident), [41873], "the answer to the command's first packet is shown")
    for drop in incident.drops:
        group.fields(drop, {"packet": {"src": DNS4, "sport": 53, "dst": VM4},
                            "rule": {"chain": "ts-input", "number": moved[0] if moved else None}}, "incident drop")
    group.true("user 65534 / nobody\n" in incident.out, "--user nobody: who runs it, and its environment", incident.out)
    group.equal(re.findall(r"^(Cap\w+|NoNewPrivs):\t0+$", incident.out, re.M), ["CapPrm", "CapEff", "NoNewPrivs"],
                "the command has no capabilities, and may gain them as ever (set-user-ID)")
    output = [incident.out.find(text) for text in ("tracing ", "user 65534", "timed out", "1 dropped in ")]
    group.true(-1 not in output and output == sorted(output), "start line, what the command writes, summary", incident.out)

    json_run = guest.run("command", "json", guest.text("command/json.out"))
    check_lines(group, json_run, validator)
    group.equal((json_run.exit, json_run.err.splitlines()), (3, ["65534"]),
                "--json: the command, run by who called sudo, writes to standard error")
    stranger = guest.run("command", "stranger", "")
    group.equal((stranger.exit, stranger.out), (2, ""), "a SUDO_UID that nobody has")
    group.true("SUDO_UID=12345" in stranger.err and "--user" in stranger.err, "it says so", stranger.err)

    group.equal(ports(aftermath), [7602], "a packet that is dropped after the command has ended")
    group.equal((ports(duration), dropped("OUTPUT", 1)), ([], 1), "--duration: dropped when tracing had ended")
    lasted = seconds(duration.final["until"]) - seconds(duration.final["since"])
    group.true(lasted < 4, "--duration: the summary does not wait for the command", f"{lasted:.1f} s")
    group.true("at last" in terminated.out, "SIGTERM: the command ends as it likes", terminated.out)
    group.true("cleaning up" in once.out, "^C: the command ends as it likes", once.out)
    group.equal((ports(once), dropped("OUTPUT", 2)), ([7602], 2), "^C: what it does then is traced")
    lasted = seconds(twice.final["until"]) - seconds(twice.final["since"])
    group.true(lasted < 30, "^C, twice: ends all", f"{lasted:.1f} s")
    for run, says in ((missing, "no-such-program: No such file"), (no_program, "/etc/passwd: Permission denied")):
        group.equal(len(run.err.splitlines()), 1, f"{run.name}: lines on standard error ({run.err!r})")
        group.true(says in run.err, f"{run.name}: says {says!r}", run.err)


# ---- tsdroptrace check ----

def check(group, guest, validator):
    run = lambda name: guest.run("check", name)  # noqa: E731
    # name -> exit code, verdict, what the sentence says, packets sent and received, and by how many devices
    cases = {"dns": (10, "dropped_here", "dropped here by ts-input, rule", 3, 3),
             "silent": (11, "lost_elsewhere", "none came back: the loss is not on this machine", 3, 0),
             "routeless": (10, "dropped_here", "could not send", 0, 0),
             "echo": (0, "reachable", "it answered", 1, 1),
             "open": (0, "reachable", "it answered", 1, 1),
             "refused": (0, "reachable", "answered with a reset", 1, 1),
             "output": (10, "dropped_here", "dropped here by OUTPUT, rule 1", 0, 0),
             "vlan": (0, "reachable", "it answered", 1, 1),
             "router": (11, "lost_elsewhere", f"{DNS4} answered with ICMP type 3 code 1", 1, 0),
             "dead": (10, "dropped_here", "", 0, 0),
             "tunnel": (11, "lost_elsewhere", "tailscaled, on this machine, may have dropped them", 3, 0),
             "covered": (11, "lost_elsewhere", "ip rule add to 100.103.7.180 lookup main pref 5200", 3, 0)}
    for name, (code, verdict, says, sent, received) in cases.items():
        one = run(name)
        check_lines(group, one, validator)
        group.equal(one.exit, code, f"{name}: exit code")
        lines = one.of_type("check")
        group.equal([line["verdict"] for line in lines], [verdict], f"{name}: verdict")
        group.true(lines and says in lines[0]["text"], f"{name}: says {says!r}", lines)
        group.true(lines and one.lines.index(lines[0]) == len(one.lines) - 2, f"{name}: before the last summary")
        flat = " ".join(one.out.split())
        group.true(lines and lines[0]["text"] in flat, f"{name}: the same on the terminal", one.out)
        seen = one.final["seen"]
        # By the device that sees it first.
        by = lambda count, dev="eth0": {"packets": count, "by_dev": {dev: count} if count else {}}  # noqa: E731
        if name == "dead":  # what does not go out to a neighbour that does not answer
            group.equal(seen["sent"]["packets"], 0, f"{name}: packets that left")
            continue
        device = {"vlan": "eth0.7", "tunnel": "tailscale0", "covered": "tailscale0"}.get(name, "eth0")
        group.fields(seen["sent"], by(sent, device), f"{name}: packets that left")
        group.fields(seen["received"], by(received), f"{name}: packets that came in")
        started, ended = seconds(one.lines[0]["time"]), seconds(one.final["time"])
        # Within 3 s on a machine that is not emulated: it waits for two.
        group.true(ended - started < 5, f"{name}: the verdict comes soon", f"{ended - started:.1f} s")
    # What left by the tunnel has not left the machine; which route led there, where it need not be the tailnet's.
    for name, covered in (("tunnel", False), ("covered", True)):
        text = run(name).of_type("check")[0]["text"]
        group.true("the loss is not on this machine" not in text and "tailscale metrics print" in text,
                   f"{name}: whose program may have dropped it", text)
        group.equal("Table 52 has 100.103.0.0/16 for it" in text, covered, f"{name}: a route that covers others")
    # And a range for which nothing left.
    unsent = run("unsent")
    group.equal((unsent.drops, unsent.final["seen"]["sent"]["packets"]), ([], 0), "nothing was sent there")
    group.fields(unsent.final["ways"][0], {"range": "100.103.0.0/16", "to": "100.103.0.1", "route": {
        "type": "unicast", "dev": "tailscale0", "table": 52, "matched": "100.103.0.0/16", "rule": 5270}}, "where it would have gone")
    group.true("no packet to there left this machine, and none from there arrived; the route to 100.103.0.1 goes through "
               "tailscale0 (table 52, rule 5270)" in " ".join(unsent.out.split()), "the terminal says so", unsent.out)
    before, after = (rulesets(guest, "check", when, "legacy") for when in ("before", "after"))
    moved = [(n, b.packets - a.packets) for n, (a, b) in
             enumerate(zip(before.chains["ip", "filter", "ts-input"].rules,
                           after.chains["ip", "filter", "ts-input"].rules), 1) if b.packets != a.packets]
    drops = [(d["rule"]["number"], d["packet"]["src"]) for d in run("dns").drops]
    group.equal(drops, [(number, DNS4) for number, count in moved for _ in range(count)],
                "the rule's own counter, and what is shown")
    group.true("3 packets from there arrived on eth0, and all of them were dropped here" in " ".join(run("dns").out.split()),
               "the summary says where the packets got to", run("dns").out)
    group.true("none from there ever reached this machine: the loss is not here" in " ".join(run("silent").out.split()),
               "and where they did not", run("silent").out)


# ---- what is wrong outside ----

def bad_input(group, guest, validator):
    run = lambda name: guest.run("bad-input", name, "")  # noqa: E731
    refused = {"no-dst": "--dst", "bad-cidr": "300.1.2.3", "bad-prefix": "10.0.0.0/33", "host-bits": "10.0.0.0/8",
               "bad-duration": "--duration soon", "bad-count": "--count 0", "bad-direction": "--direction sideways",
               "unknown-option": "--chain", "bad-port": "--port 70000", "bad-proto": "--proto upd",
               "bad-src": "--src 10.0.0.1/8", "bad-iface": "--iface a-name-that-is-too-long",
               "bad-netns": "--netns nosuchnamespace", "netns-path": "--netns /no/such/path",
               "netns-other": "--netns /proc/self/ns/pid", "netns-file": "--netns /etc/protocols",
               "bad-reason": "NETFILTER_DROP" if guest.reasons else "gives no reasons",
               "filter-of-replay": "--port", "no-value": "--dst", "extra": "100.100.2.136"}
    for name, says in refused.items():
        got = run(name)
        group.equal(got.exit, 3 if name == "bad-reason" and not guest.reasons else 2, f"{name}: exit code")
        group.equal(len(got.err.splitlines()), 1, f"{name}: lines on standard error ({got.err!r})")
        group.true(says in got.err, f"{name}: says {says!r}", got.err)
        group.equal(got.out, "", f"{name}: standard output")
    for name in ("json-file-directory", "record-directory"):
        got = run(name)
        group.true(got.exit in (1, 2), f"{name}: exit code", got.exit)
        group.equal(len(got.err.splitlines()), 1, f"{name}: lines on standard error ({got.err!r})")
        group.true("/proc/no/such/place" in got.err, f"{name}: names the path", got.err)
    got = run("nobody")
    group.equal(got.exit, 3, "not root: exit code")
    group.equal(len(got.err.splitlines()), 1, f"not root: lines on standard error ({got.err!r})")
    group.true(re.search(r"root|sudo|CAP_", got.err), "not root: says what is missing", got.err)


def failing_outputs(group, guest, validator):
    pipe = guest.run("bad-input", "pipe", "")
    group.true(pipe.exit in (0, 1), "a reader that went away: exit code", pipe.exit)
    group.true(len(pipe.err.splitlines()) <= 1, "a reader that went away: at most one line", pipe.err)

    full = guest.run("bad-input", "full")
    check_lines(group, full, validator)
    check_terminal(group, full)
    cut = guest.text("bad-input/full.json.cut")
    group.true(cut.endswith("\n"), "the full disk holds whole lines only", cut[-200:])
    shown = re.search(r"^(\d+) dropped in ", full.out, re.M)
    group.true(shown and shown.group(1) == "42", "the terminal goes on and counts all", full.out[-500:])
    lost = sum(line["count"] for line in full.of_type("lost") if line["where"] == "file")
    group.true(lost > 0, "the file says what it lacks once it can", full.lines[-1])
    group.equal(full.final["lost"].get("file"), lost, "summary.lost.file")
    group.equal(sum(c["packets"] for c in full.final["causes"]), 42, "the summary counts all")
    group.true("/tmp/small/json" in full.err or "JSON lines could not be written" in full.out,
               "the user is told that the file lacks something", full.err)
    attached = {when: re.findall(r"^ip6?t_do_table\b", guest.text(f"bad-input/attached.{when}"), re.M)
                for when in ("before", "after")}
    group.true(attached["before"], "the kernel lists what is attached while they trace")
    group.equal(attached["after"], [], "what is attached after kill -9 and the end of all others")
    group.equal(guest.text("bad-input/pins.after"), guest.text("bad-input/pins.before"), "what is pinned in /sys/fs/bpf")


# ---- a flood ----

def flood(group, guest, validator):
    run = guest.run("flood")
    check_lines(group, run, validator)
    group.equal(run.exit, 0, "exit code")
    legacy = rulesets(guest, "flood", "legacy", "legacy")
    native = Ruleset().add_nft(guest.text("flood/nft.nft"), guest.text("flood/nft.nft.json"))
    counters = {}
    for key, ruleset in ((("ip", "filter", "INPUT"), legacy), (("inet", "flooded", "input"), native)):
        for rule in ruleset.chains[key].rules:
            if port := re.search(r"dport (780\d)", rule.text):
                counters[int(port.group(1))] = rule
    group.equal(sorted(counters), [7801, 7802, 7803, 7804], "the rules")
    final = run.final
    for port, rule in counters.items():
        causes = [c for c in final["causes"] if any(f["dport"] == port for f in c["flows"])]
        group.true(rule.packets > {7801: 19000, 7802: 9500}.get(port, 2900), f"port {port}: packets that came", rule.packets)
        group.equal(sum(c["packets"] for c in causes), rule.packets, f"port {port}: packets in the summary")
        group.equal(sum(c["bytes"] for c in causes), rule.bytes, f"port {port}: bytes in the summary")
        if port < 7803:
            unseen = [c for c in causes if guest.old and c["rule"] is None and c["drop"]["kind"] == "hook"]
            group.equal([c["rule"] and c["rule"]["text"] for c in causes if c not in unseen], [rule.text],
                        f"port {port}: causes")
            group.true(sum(c["packets"] for c in unseen) <= rule.packets / 100, f"port {port}: packets that no probe was "
                       "run for", [c["packets"] for c in unseen])
            for drop in run.drops_to_port(port):
                if drop["rule"] is None:
                    group.true(guest.may_be_unseen(drop), f"port {port}: no rule, and why", drop)
        # While rulesets change, a text may be unknown; that of another rule it never is.
        for line in causes + run.drops_to_port(port):
            text = (line["rule"] or {}).get("text")
            if not (text == rule.text or line["rule"] is None or (text is None and line["rule"]["stale"])):
                group.true(False, f"port {port}: another rule is named", line)
        # Which rule dropped is known of nearly every packet all the same: its chain and its number at that moment.
        # (Two packets at once on one CPU, or counters being restored, leave a few without.)
        named = sum(c["packets"] for c in causes if c["rule"] and c["rule"]["chain"].upper() == "INPUT" and c["rule"]["number"])
        group.true(named >= 0.9 * rule.packets, f"port {port}: packets whose rule is named",
                   f"{named} of {rule.packets}: {[(c['drop'], c['rule'], c['packets']) for c in causes]}")
    total = sum(c["packets"] for c in final["causes"])
    lost = sum(count for where, count in final["lost"].items() if where in ("ring", "sampled", "unread"))
    group.equal(len(run.drops) + lost, total, f"drop lines ({len(run.drops)}) and those that were lost ({lost})")
    lines = Counter()
    for line in run.of_type("lost"):
        lines[line["where"]] += line["count"]
    group.equal(dict(lines), final["lost"], "lost lines together are summary.lost")


# ---- more processes than CPUs ----

def preempted(group, guest, backend):
    scenario = f"preempted-{backend}"
    run = guest.run(scenario)
    group.equal(run.exit, 0, "exit code")
    rules = rulesets(guest, scenario, "after", backend)
    port_of = {}  # (family, chain, number) -> port
    counted = 0
    for (family, _, chain), content in rules.chains.items():
        for number, rule in enumerate(content.rules, 1):
            port_of[family, chain, number] = int(re.search(r"dports? (\d+)", rule.text).group(1))
            counted += rule.packets
    named = 0
    for drop in run.drops:
        if drop["rule"] is None:
            continue
        rule, named = drop["rule"], named + 1
        if port_of.get((rule["family"], rule["chain"], rule["number"])) != drop["packet"]["dport"]:
            group.true(False, f"port {drop['packet']['dport']}: the rule of another packet", rule)
    group.true(len(run.drops) > 300, "drop lines", len(run.drops))
    # The kernel does not run a program on top of itself: with very bad luck two packets at once are not told apart.
    group.true(named >= 0.9 * len(run.drops), "drops whose rule is named", f"{named} of {len(run.drops)}")
    # What REJECT answers with matches the filter by the packet that it quotes; its end is no rule's doing.
    total = sum(c["packets"] for c in run.final["causes"]
                if c["drop"]["reason"] == "NETFILTER_DROP" or (guest.old and c["drop"]["kind"] != "kernel"))
    group.equal(total + run.final["lost"].get("recursion", 0), counted, "packets in the summary, and those that it says "
                "are missing, are what the rules' counters say")


# ---- rulesets that change, and by whom ----

# What each step of tests/vm/guest/ruleset.sh does to the rules that drop: chain, number and port of each; of one that
# moves also the number that it had. A step whose name ends in "-untold" does nothing that is to be told. After it, the
# packets that are sent, and the rule that drops each: port, number.
RULESET_STEPS = {
    "legacy": {
        "add": {"added": [("INPUT", 2, 7901)], "packets": [(7900, 1), (7901, 2)]},
        "accept-above": {"moved": [("INPUT", 2, 7900, 1), ("INPUT", 3, 7901, 2)], "packets": [(7900, 2), (7901, 3)]},
        "replace": {"removed": [("INPUT", 2, 7900)], "added": [("INPUT", 2, 7903)], "packets": [(7901, 3), (7903, 2)]},
        "policy": {"added": [("FORWARD", None, None)]},
        "delete-first": {"moved": [("INPUT", 1, 7903, 2), ("INPUT", 2, 7901, 3)], "packets": [(7901, 2), (7903, 1)]},
        "accept-only": {},
        "restore": {"removed": [("INPUT", 1, 7903), ("INPUT", 2, 7901), ("FORWARD", None, None)],
                    "added": [("INPUT", 1, 7905)], "packets": [(7905, 1)]},
        "six": {"family": "ip6", "added": [("INPUT", 2, 7901)]},
        "foreign-unseen-untold": {"packets": [(7920, 1)]},
        "foreign": {"netns": "client", "added": [("INPUT", 1, 7922)],
                    "moved": [("INPUT", 2, 7920, 1), ("INPUT", 3, 7921, 2)], "packets": [(7920, 2), (7922, 1)]},
        "flush": {"removed": [("INPUT", 1, 7905)] + [("INPUT", 1 + i, 7950 + i) for i in range(1, 21)]},
    },
    "nft": {
        "add": {"backend": "iptables-nft", "added": [("INPUT", 2, 7911)], "packets": [(7910, 1), (7911, 2)]},
        "accept-above": {"backend": "iptables-nft", "moved": [("INPUT", 2, 7910, 1), ("INPUT", 3, 7911, 2)],
                         "packets": [(7910, 2), (7911, 3)]},
        "replace": {"backend": "iptables-nft", "removed": [("INPUT", 2, 7910)], "added": [("INPUT", 2, 7913)],
                    "packets": [(7911, 3), (7913, 2)]},
        "policy": {"backend": "iptables-nft", "added": [("FORWARD", None, None)]},
        "flush": {"backend": "iptables-nft", "removed": [("INPUT", 2, 7913), ("INPUT", 3, 7911)]},
        "table": {"family": "inet", "added": [("input", 1, 7931), ("input", 2, 7932), ("input", 3, 7933),
                                              ("input", None, None)],
                  "packets": [(7930, 1), (7931, 1), (7932, 2), (7933, 3)]},
        "insert": {"family": "inet", "moved": [("input", 2, 7931, 1), ("input", 3, 7932, 2), ("input", 4, 7933, 3)],
                   "packets": [(7931, 2)]},
        "same-again": {"family": "inet", "packets": [(7931, 2)]},
        "delete-table": {"family": "inet", "removed": [("input", 2, 7931), ("input", 3, 7932), ("input", 4, 7933),
                                                       ("input", None, None)]},
    },
}


def changed_rules(rules):
    """A list of `drops` in the words of RULESET_STEPS."""
    found = []
    for rule in rules:
        port = re.search(r"\b(79\d\d)\b", rule["text"] or "")
        found.append((rule["chain"], rule["number"], int(port.group(1)) if port else None) +
                     ((rule["was"],) if "was" in rule else ()))
    return sorted(found, key=str)


def ruleset(group, guest, validator, kind):
    scenario = f"ruleset-{kind}"
    run, marks = guest.run(scenario), guest.marks(scenario)
    check_run(group, run, validator)
    pid, comm = guest.text(f"{scenario}/parent").split()
    parent = {"pid": int(pid), "comm": comm}
    steps = [line.split() for line in guest.text(f"{scenario}/changes").splitlines()]
    begins = [float(step[3]) for step in steps] + [marks["burst.begin"], marks["run.stop"] + 10]
    lines = run.of_type("ruleset")
    expected_drops = []
    for name, pid, comm, begin in steps:
        begin, end = float(begin), min(b for b in begins if b > float(begin))
        want = RULESET_STEPS[kind].get(name, {})
        expected_drops += [(port, number) for port, number in want.get("packets", ()) for _ in range(2)]
        if name == "many":
            continue
        told = [line for line in lines if begin <= seconds(line["time"]) < end]
        if name == "owner":
            group.equal([(line["by"], changed_rules(line["drops"]["added"]), changed_rules(line["drops"]["removed"]))
                         for line in told],
                        [({"pid": int(pid), "comm": comm}, *lists)
                         for lists in (([("input", 1, 7936)], []), ([], [("input", 1, 7936)]))],
                        f"{name}: the rule comes, and goes with its process")
            continue
        if name.endswith("-untold"):
            group.equal(told, [], f"{name}: is no change of rules")
            continue
        if not group.equal(len(told), 1, f"{name}: lines"):
            continue
        line, by = told[0], {"pid": int(pid), "comm": comm[:15]}
        group.fields(line, {
            "backend": want.get("backend", "iptables-legacy" if kind == "legacy" else "nftables"),
            "by": by, "changers": [{**by, "parent": parent, "changes": 1}], "other_changes": 0, "unknown": None,
            "netns": {"name": want.get("netns"),
                      "inode": lambda inode, w=want: (inode == guest.netns) == ("netns" not in w)}}, name)
        for what in ("added", "removed", "moved"):
            group.equal(changed_rules(line["drops"][what]), sorted(want.get(what, []), key=str), f"{name}: {what}")
            for rule in line["drops"][what]:
                family = want.get("family", "ip")
                group.fields(rule, {"backend": line["backend"], "family": family, "stale": False,
                                    "verdict": "reject" if "REJECT" in (rule["text"] or "") or
                                    re.search(r"\breject\b", rule["text"] or "") else "drop"}, f"{name}: {what}")
        changes = any(want.get(what) for what in ("added", "removed", "moved"))
        shown = f"ruleset changed by {by['comm']}[{by['pid']}] of {parent['comm']}[{parent['pid']}]"
        group.equal(" ".join(run.out.split()).count(shown), int(changes), f"{name}: on the terminal")

    drops = sorted(run.drops, key=lambda d: d["mono_ns"])
    if group.equal([d["packet"]["dport"] for d in drops], [port for port, _ in expected_drops], "drops, in their order"):
        for drop, (port, number) in zip(drops, expected_drops):
            group.fields(drop["rule"], {"number": number, "stale": False, "text": lambda text, p=port: str(p) in text},
                         f"drop of port {port}")

    # Many changes at once: none is lost, few lines.
    burst = [line for line in lines if marks["burst.begin"] <= seconds(line["time"]) < marks["burst.end"]]
    count = 20 if kind == "legacy" else 300
    group.true(1 <= len(burst) <= 4, "a burst: lines", len(burst))
    group.equal(sum(sum(c["changes"] for c in line["changers"]) + line["other_changes"] for line in burst), count,
                "a burst: changes")
    group.equal(sum(len(line["drops"]["added"]) + line["drops"]["more"]["added"] for line in burst), count,
                "a burst: rules added")
    changers = {(c["pid"], c["comm"]) for line in burst for c in line["changers"]}
    if kind == "nft":
        group.equal(changers, {(int(pid), comm) for name, pid, comm, _ in steps if name == "many"}, "a burst: by whom")
    else:
        group.equal({comm for _, comm in changers}, {"iptables-legacy"}, "a burst: by whom")
    for line in burst:
        one = len(line["changers"]) == 1 and line["other_changes"] == 0
        group.equal(line["by"] is not None, one, "a burst: by is known if it was one process")
    group.equal(run.final["lost"], {}, "nothing was lost")


def ruleset_overlap(group, guest, validator):
    run, marks = guest.run("ruleset-overlap"), guest.marks("ruleset-overlap")
    check_lines(group, run, validator)
    rules = rulesets(guest, "ruleset-overlap", "after", "legacy")
    # No packet is given the rule of another one, whatever is being changed.
    by_rules = [drop for drop in run.drops if drop["drop"]["kind"] != "kernel" or drop["drop"]["unknown"]]
    named = [drop for drop in by_rules if drop["rule"]]
    places = {7945: ("two", 1), 7946: ("two", 2), **{7940 + number: ("INPUT", number) for number in range(1, 5)}}
    for drop in named:
        port, rule = drop["packet"]["dport"], drop["rule"]
        if (rule["chain"], rule["number"]) != places[port] or (rule["text"] and str(port) not in rule["text"]):
            group.true(False, f"port {port}: the rule of another packet", rule)
    for port in (7945, 7946):
        stale = [drop for drop in named if drop["packet"]["dport"] == port and drop["rule"]["stale"]]
        group.true(len(stale) > 10, f"port {port}: drops while rulesets change", len(stale))
    group.true(len(run.drops) > 40, "packets while rulesets change", len(run.drops))
    group.true(len(named) >= 0.9 * len(by_rules), "drops whose rule is named", f"{len(named)} of {len(by_rules)}")
    for number in range(1, 5):
        counted = rules.rule("ip", "filter", "INPUT", number).packets
        group.equal(len(run.drops_to_port(7940 + number)), counted, f"port {7940 + number}: drops and the rule's counter")
    # Once it is quiet, nothing seems to be under way: rulesets are read again, and have their texts.
    last = [drop for drop in run.drops if seconds(drop["time"]) > marks["quiet"]]
    group.equal(len(last), 8, "drops once it is quiet")
    for drop in last:
        number = drop["packet"]["dport"] - 7940
        group.fields(drop["rule"], expected_rule("legacy", rules, "ip", "filter", [("INPUT", number)]), "once it is quiet")
    # Each of the many changes of our own ruleset is in a line, or the last line shows the rules as they were.
    changers = {c["comm"] for line in run.of_type("ruleset") for c in line["changers"]}
    group.equal(changers - {"iptables-legacy"}, set(), "nobody is blamed for what was done in the other namespace")


# ---- a fix that is made while tracing goes on ----

def stopped(group, guest, validator, backend):
    """What does not help is not said to have stopped anything; the second fix, as it is printed, is."""
    scenario = f"stopped-{backend}"
    run, marks = guest.run(scenario), guest.marks(scenario)
    check_run(group, run, validator)
    answered = {name: "39.156.70.37" in guest.text(f"{scenario}/dig.{name}") for name in ("before", "moved", "after")}
    group.equal(answered, {"before": False, "moved": False, "after": True}, "when the resolver is heard")
    fix = guest.text(f"{scenario}/fix").strip()
    group.true("100.100.0.0/16" in fix and "INPUT" in fix, "the second fix that is printed", fix)
    changes = {name: {"pid": int(pid), "comm": comm[:15]} for name, pid, comm in
               map(str.split, guest.text(f"{scenario}/changes").splitlines())}
    told = {name: [line for line in run.of_type("ruleset") if line["by"] == by] for name, by in changes.items()}
    group.equal({name: len(lines) for name, lines in told.items()}, {"moved": 1, "fix": 1}, "lines of changed rulesets")

    rule = {name: value for name, value in run.drops[-1]["rule"].items() if name != "elements"}
    causes = [c for c in run.final["causes"] if c["rule"] and c["rule"]["text"] == rule["text"]]
    group.equal(sorted(c["rule"]["number"] for c in causes), [rule["number"] - 1, rule["number"]],
                "causes of the rule, which has been moved")
    stops = run.of_type("stopped")
    if not group.equal(len(stops), 1, "drops are said to have stopped once") or not told["fix"]:
        return
    line, change = stops[0], told["fix"][0]
    group.true(marks["moved"] < seconds(line["last"]) < marks["fix"] <= seconds(change["time"]), "the order of things", line)
    group.true(3 <= seconds(line["time"]) - seconds(change["time"]), "told once it is sure", line)
    group.fields(line, {
        "netns": {"inode": guest.netns, "name": None},
        "drop": {"kind": "rule", "reason": reason(guest, "NETFILTER_DROP")["reason"], "hook": "input"},
        "rule": rule, "packets": sum(c["packets"] for c in causes), "first": min(c["first"] for c in causes),
        "last": max(c["last"] for c in causes),
        "change": {"time": change["time"], "generation": change["generation"], "by": changes["fix"],
                   "backend": change["backend"],
                   "chain": {"family": "ip", "table": "filter", "chain": "INPUT"}, "changes": 1,
                   "confidence": "inferred"},
        "seen": {"since": lambda since: seconds(change["time"]) <= seconds(since) < seconds(line["time"]),
                 "sent": {"packets": lambda n: n > 0, "by_dev": lambda devices: list(devices) == ["eth0"]},
                 "received": {"packets": lambda n: n > 0, "by_dev": lambda devices: list(devices) == ["eth0"]}}},
        "the stopped line")
    by = changes["fix"]
    for text in (f"STOPPED ts-input rule {rule['number']}", "has dropped nothing since", rule["text"],
                 f"by {by['comm']}[{by['pid']}]", "INPUT in table", "the only change", "inferred"):
        group.true(text in " ".join(run.out.split()), f"the terminal says {text!r}", run.out[-2500:])


# ---- all of it ----

SCENARIOS = ["late-modules", *(f"{kind}-{backend}" for kind in ("incident", "exact") for backend in BACKENDS),
             "various", "evidence", "options", "command", "check", "filters", "bad-input", "flood",
             *come_and_go.SCENARIOS, "preempted-legacy", "preempted-nftables", "ruleset-legacy", "ruleset-nft", "ruleset-overlap",
             *(f"stopped-{backend}" for backend in BACKENDS),
             *(f"oracle-{kind}" for kind in (*BACKENDS, "mixed", "families", "counted")), "explanations", open_vswitch.SCENARIO,
             "causes", *inferred.SCENARIOS, *hooks.SCENARIOS, *selinux.SCENARIOS]

# Those that are not run on every kernel unless everything is asked for: what they look at is the program's own doing
# rather than the kernel's, or differs between the oldest kernel and the others only.
NOT_EVERYWHERE = {
    "various": ["5.10", "6.1"], "evidence": ["6.12"], "options": ["6.1"], "command": ["6.1"],
    "check": ["newest"], "filters": ["5.10", "newest"], "bad-input": ["newest"], "flood": ["newest"],
    "come-and-go": ["5.10", "6.12"], "lockdown": ["5.10", "newest"], "selinux": ["newest"], "preempted-legacy": ["5.10", "newest"], "preempted-nftables": ["5.10", "newest"],
    "ruleset-legacy": ["5.10", "6.12"], "ruleset-nft": ["5.10", "6.12"], "ruleset-overlap": ["6.1"],
    "matches-legacy": ["5.10", "6.12"], "matches-iptables-nft": ["5.10", "6.12"], "legacy-arp": ["5.10", "6.12"],
    "legacy-bridge": ["6.12", "newest"], "stopped-legacy": ["6.12"], "stopped-iptables-nft": ["6.1"],
    "stopped-nftables": ["5.10", "newest"], "oracle-counted": ["6.1"], "late-modules": ["5.10", "6.12", "newest"],
    "legacy-ways": ["5.10", "6.12", "newest"], "queues": ["5.10", "6.12", "newest"],
    "explanations": explanations.KERNELS, "causes": explanations.KERNELS,
    open_vswitch.SCENARIO: ["5.10", "6.12", "newest"], "inferred-legacy": ["6.1"], "inferred-nftables": ["6.1"],
    "inferred-iptables-nft": []}


# Where fentry is forbidden. late-modules: the kernel has nothing yet that could tell whether it is.
BY_KPROBES = {
    "6.1-kprobes": ["late-modules", "ruleset-legacy", "matches-legacy", "matches-iptables-nft",
                    *(name for name in hooks.SCENARIOS if not name.startswith("matches"))],
    "6.12-kprobes": [f"{kind}-{backend}" for kind in ("exact", "oracle") for backend in BACKENDS]}


def scenarios_of(series, everything):
    """The names of the scenarios that are run on a kernel."""
    def applies(name):
        if series in BY_KPROBES:
            return name in BY_KPROBES[series] or (everything and name not in inferred.SCENARIOS)
        if series == "5.10" and name in inferred.SCENARIOS:
            return False  # what is forbidden there are fentry programs, of which 5.10 has none
        if name in ("explanations", "causes") and series not in explanations.KERNELS:
            return False  # 5.10 gives no reasons
        return everything or series in NOT_EVERYWHERE.get(name, [series])
    return [name for name in SCENARIOS if applies(name)]


def all_checks(report, guest, validator, program):
    wanted = guest.text("wanted").split()

    def ran(group):
        for name in wanted:
            status, lasted = guest.scenarios.get(name, ("did not run", 0))
            group.equal(status, 0, f"{name}: how it ended (after {lasted:.0f} s; its log: {guest.directory}/{name}/log)")

    def run(scenario, name, function, *arguments):
        if scenario in wanted:
            report.run(guest.kernel, name, function, guest, *arguments)

    def run_replay(scenario, name):
        run(scenario, name, replay, validator, program, scenario)

    def reasons(group):
        """What the unit tests take for this kernel's reasons holds all that it has."""
        path = reasons_file(guest.kernel)
        if guest.old:
            group.equal((guest.reasons, path.exists()), ({}, False), "5.10 has no reasons")
            return
        known = {line.removeprefix("SKB_DROP_REASON_") for line in path.read_text().split()} | {"MAX"}
        group.true(len(guest.reasons) > 50, "the kernel's own list of reasons", len(guest.reasons))
        group.equal(sorted(set(guest.reasons) - known), [], f"reasons that {path.name} lacks")

    report.run(guest.kernel, "the scenarios ran", ran)
    report.run(guest.kernel, "the kernel's reasons", reasons)
    run("late-modules", "modules loaded after the start", late_modules, validator)
    for backend in BACKENDS:
        scenario = f"incident-{backend}"
        run(scenario, f"the incident, {backend}", incident, validator, backend)
        run(scenario, f"the incident on the terminal, {backend}", incident_terminal, backend)
        run_replay(scenario, f"replay of the incident, {backend}")
        scenario = f"exact-{backend}"
        run(scenario, f"every kind of rule, {backend}", exact, validator, backend)
        run(scenario, f"counters of all rules, {backend}", exact_counters, backend)
        run(scenario, f"another namespace, {backend}", exact_netns, backend)
        if backend == "nftables":
            run(scenario, "elements of sets and verdict maps", exact_elements)
        run_replay(scenario, f"replay of every kind of rule, {backend}")
        scenario = f"oracle-{backend}"
        run(scenario, f"random rules, {backend}", differential.random_rules, validator, backend)
        run(scenario, f"rules that change while they drop, {backend}", differential.churn, validator, backend)
        scenario = f"inferred-{backend}"
        run(scenario, f"rules inferred from their counters, {backend}", inferred.inferred, validator, backend)
        run_replay(scenario, f"replay of inferred rules, {backend}")
        scenario = f"stopped-{backend}"
        run(scenario, f"drops that stop, {backend}", stopped, validator, backend)
        run_replay(scenario, f"replay of drops that stop, {backend}")
    run("oracle-mixed", "random rules of two backends at once", differential.random_rules, validator, "mixed")
    run("oracle-families", "random rules of bridges, devices and ARP", differential.random_rules, validator, "families")
    run("oracle-counted", "random rules of arptables and ebtables", counted.counted_rules, validator)
    run("incident-legacy", "recordings that are none", recordings_refused, program)
    run("various", "drops without a rule", kernel_drops, validator)
    run("various", "rules that change", changes)
    run("evidence", "what the machine itself says", evidence.check, validator)
    run_replay("evidence", "replay of what the machine said")
    for kind in ("legacy", "nft"):
        run(f"ruleset-{kind}", f"who changes rulesets, {kind}", ruleset, validator, kind)
        run_replay(f"ruleset-{kind}", f"replay of changed rulesets, {kind}")
    run("ruleset-overlap", "changes of rulesets that overlap", ruleset_overlap, validator)
    run("options", "options", options, validator)
    run("command", "a command that is traced", command, validator)
    run("check", "tsdroptrace check", check, validator)
    run("filters", "filters", filters, validator)
    run("filters", "filtered packets", filtered_packets)
    run_replay("filters", "replay of a run with filters")
    run("bad-input", "bad input", bad_input, validator)
    run("bad-input", "outputs that fail", failing_outputs, validator)
    run("flood", "a flood", flood, validator)
    for backend in ("legacy", "nftables"):
        run(f"preempted-{backend}", f"more processes than CPUs, {backend}", preempted, backend)
    run("explanations", "explanations of real causes", explanations.explanations, validator)
    run("explanations", "entries of one's own", explanations.own_entries, validator)
    run_replay("explanations", "replay of real causes")
    run(open_vswitch.SCENARIO, "drops by Open vSwitch", open_vswitch.check, validator)
    run_replay(open_vswitch.SCENARIO, "replay of drops by Open vSwitch")
    run("causes", "the kernel's own reasons, by real causes", causes.causes, validator)
    hooks.all_checks(run, validator)
    come_and_go.all_checks(run, validator)
    selinux.all_checks(run, validator)
    run_replay("selinux", "replay: selinux")
    for name in [name for name in hooks.SCENARIOS if name in wanted]:
        if name != "legacy-bridge" or "ebtables" in guest.text("legacy-bridge/modules"):  # 7.2 has none
            run_replay(name, f"replay: {name}")
