# SPDX-License-Identifier: GPL-2.0-only
"""Drops by Open vSwitch, held against the counters of its flows and the kernel's trace of kfree_skb."""

import re
from collections import Counter

from .guest import check_run, reasons_file, version

SCENARIO = "open-vswitch"
VM, PROVIDER, THROUGH_DP0 = "10.0.0.2", "100.100.2.136", "100.100.7.9"
FLOWS, SHOW = "ovs-appctl dpctl/dump-flows", "ovs-dpctl show"

# port -> reason, or none where the kernel has no name of its own for it; the function; a fix
DROPS = {7951: ("OVS_DROP_LAST_ACTION", r"do_execute_actions", FLOWS),
         7952: ("OVS_DROP_EXPLICIT", r"do_execute_actions", FLOWS),
         7953: ("OVS_DROP_EXPLICIT_WITH_ERROR", r"do_execute_actions", FLOWS),
         7954: ("OVS_DROP_METER", r"do_execute_actions", FLOWS),
         7955: ("OVS_DROP_DEFERRED_LIMIT", r"clone_execute", FLOWS),
         7956: ("OVS_DROP_IP_TTL", r"do_execute_actions", FLOWS),
         7961: ("OVS_DROP_LAST_ACTION", r"do_execute_actions", FLOWS),
         7971: ("OVS_DROP_LAST_ACTION", r"do_execute_actions", FLOWS),  # the module has been loaded again
         7972: ("OVS_DROP_EXPLICIT", r"do_execute_actions", FLOWS)}


def number_of(guest, name):
    """By the kernel's own type information, as bpftool has printed it: numbers of a subsystem follow each other."""
    _, names = reasons_file(guest.kernel).read_text().split("# enum ovs_drop_reason (openvswitch)\n")
    return names.split().index(name)


def counters(guest, which):
    lines = [line.split() for line in guest.text(f"{SCENARIO}/{which}").splitlines()]
    return {int(words[2]): int(words[3]) for words in lines if words[0] == "flow"}, {
        words[0]: int(words[1]) for words in lines if words[0] != "flow"}


def with_reasons(guest):
    """From 6.7."""
    return version(guest.kernel) >= (6, 7)


def by_open_vswitch(drop):
    return drop["drop"]["location"].endswith("[openvswitch]")


def expect(group, guest, drops, port, reason, fields):
    for drop in drops:
        group.fields(drop, {"rule": None, "drop": {"kind": "kernel", "hook": None, "unknown": None, **reason},
                            "packet": {"proto": "udp", "dst": THROUGH_DP0 if port == 7961 else VM}, **fields},
                     f"port {port}")


def named(group, guest, run):
    """Each drop by the name of the module's own reason."""
    flows, counts = counters(guest, "counts")
    again, _ = counters(guest, "counts.again")
    trace = Counter(re.findall(r"location=\S+ \[openvswitch\] reason: (0x[0-9a-f]+)", guest.text(f"{SCENARIO}/trace")))
    told = Counter()
    for port, (name, function, fix) in DROPS.items():
        drops = [d for d in run.drops_to_port(port) if by_open_vswitch(d)]
        counted = counts["meter"] if port == 7954 else 2 if port in (7955, 7956) else {**flows, **again}[port]
        group.true(counted >= 2, f"port {port}: packets that the kernel counts", counted)
        group.equal(len(drops), counted, f"port {port}: drop lines, and what the kernel counts")
        code = drops[0]["drop"]["reason_code"] if drops else 0
        group.equal(code & 0xffff, number_of(guest, name), f"port {port}: the number of {name} among Open vSwitch's")
        own = port == 7961  # sent by this machine
        expect(group, guest, drops, port, {"reason": name, "reason_code": code,
                                           "location": lambda text, f=function: re.match(f + r"[\w.]*\+0x", text)}, {
            "process": lambda process, own=own: bool(process) == own,
            "explanation": {"id": "kernel-" + name.lower().replace("_", "-"),
                            "fixes": lambda fixes, fix=fix: [f["do"] for f in fixes] == [fix]}})
        if port < 7970:
            told[hex(code)] += len(drops)
        group.true(f"{name} at " in run.out, f"the terminal names {name}")
    group.equal(told, trace, "numbers of reasons, and the kernel's own trace")
    group.equal(len({code >> 16 for code in (d["drop"]["reason_code"] for d in run.drops) if code > 0xffff}), 1,
                "all are one subsystem's")
    # What flows forward is not theirs to answer for.
    for port in (7956, 7957):
        received = [d for d in run.drops_to_port(port) if not by_open_vswitch(d)]
        group.equal(len(received), 2, f"port {port}: received through dp0, where nobody listens")
        for drop in received:
            group.fields(drop, {"drop": {"reason": "NO_SOCKET"}, "packet": {"in_dev": "dp0"}}, f"port {port}")
    for drop in run.drops_to_port(7958):  # a port that is not there
        group.fields(drop, {"rule": None, "drop": {"kind": "kernel", "reason": "DEV_READY"}, "explanation": {
            "id": "kernel-ovs-no-port", "summary": lambda text: "eth0, by which" not in text}}, "port 7958")
    group.equal(len(run.drops_to_port(7958)), flows[7958], "port 7958: drop lines")


def chosen(group, guest, validator):
    """--reason, once the module is there: in the kernel."""
    ran = guest.run(SCENARIO, "chosen")
    check_run(group, ran, validator)
    wanted = {7952: 2, 7954: counters(guest, "counts")[1]["meter"]}
    group.equal(Counter(d["packet"]["dport"] for d in ran.drops), Counter(wanted), "--reason: packets that are shown")
    group.equal(sum(c["packets"] for c in ran.final["causes"]), sum(wanted.values()), "--reason: packets that are counted")


def located(group, guest, drops):
    """Those of which it is known who has freed them. On 5.10 that is looked up later, and the module is loaded again here:
    it may be too late then, and what lies there by now is not to be named."""
    known = [d for d in drops if not d["drop"]["location"].startswith("0x")]
    for drop in drops:
        if drop not in known:
            group.true(guest.old, "an address that has no name", drop)
            group.equal(drop["explanation"]["id"], "kernel-not-specified", "an address that has no name: explanation")
    return known


def unnamed(group, guest, run):
    """Before 6.7 the kernel has no reasons of Open vSwitch, and does not call it a drop what a flow does on purpose."""
    flows, counts = counters(guest, "counts")
    for port in (7951, 7954, 7961):
        group.true(flows[port] >= 2, f"port {port}: packets that the kernel counts", flows)
        group.equal([d for d in run.drops_to_port(port) if by_open_vswitch(d)], [],
                    f"port {port}: the kernel has consumed them, as it says")
    group.true(counts["meter"] > 0, "packets that the meter has dropped", counts)
    for port, function in ((7955, "clone_execute"), (7958, "do_execute_actions|do_output")):  # a circle, no such port
        drops = run.drops_to_port(port)
        group.equal(len(drops), 2, f"port {port}: drop lines")
        expect(group, guest, located(group, guest, drops), port,
               {"reason": "NOT_SPECIFIED", "location": lambda text, f=function: re.match(rf"({f})[\w.]*\+0x", text)},
               {"explanation": {"id": "kernel-ovs-action"}})
    group.equal({d["drop"]["reason"] for d in run.drops if by_open_vswitch(d)}, {"NOT_SPECIFIED"}, "reasons")


def check(group, guest, validator):
    run = guest.run(SCENARIO)
    check_run(group, run, validator)
    group.equal(run.final["lost"], {}, "nothing was lost")
    loaded = {when: "openvswitch " in guest.text(f"{SCENARIO}/modules.{when}") for when in ("before", "traced", "unloaded")}
    group.equal(loaded, {"before": False, "traced": True, "unloaded": False}, "when the module was there")
    # Where no flow takes a packet, nobody can be asked what to do with it.
    missed = run.drops_to_port(7959)
    group.equal(len(missed), 2, "port 7959: drop lines")
    expect(group, guest, located(group, guest, missed), 7959, {"reason": "NOT_SPECIFIED", "location": lambda text: re.match(
        r"ovs_dp_process_packet\+0x\S+ \[openvswitch\]", text)}, {"explanation": {"id": "kernel-ovs-upcall"}})
    group.true(counters(guest, "counts")[1]["lost"] >= 2, "packets that the kernel counts as lost")
    if guest.old:
        late = run.drops_to_port(7973)  # where the module lay before at the same address, it is known by then
        group.equal(len(late), 2, "port 7973: drop lines")
        expect(group, guest, located(group, guest, late), 7973, {"location": lambda text: text.startswith("clone_execute+")}, {
            "explanation": {"id": "kernel-ovs-action"}})
    early = guest.run(SCENARIO, "early", "")
    reasons = with_reasons(guest)
    group.equal((early.exit, early.out), (3 if guest.old else 2, ""), "--reason, before the module is there: refused")
    group.true(guest.old or "OVS_DROP_METER: this kernel has no such drop reason" in early.err and
               "known once it is loaded" in early.err, "it says why", early.err)
    if reasons:
        named(group, guest, run)
        chosen(group, guest, validator)
    else:
        unnamed(group, guest, run)
        refused = guest.run(SCENARIO, "chosen", "")
        group.equal((refused.exit, refused.out), (3 if guest.old else 2, ""), "--reason, where the kernel has none such")
