# SPDX-License-Identifier: GPL-2.0-only
"""What SELinux refuses, packet by packet as it says itself in the kernel's log; and a tracer that it does not let use BPF."""

import re
from collections import Counter

from .guest import check_run, seconds

SCENARIOS = ["selinux"]

# The permission that a packet lacked -> the hook and the function there.
HOOKS = {"send": ("postrouting", "selinux_ip_postroute"), "forward_out": ("postrouting", "selinux_ip_postroute"),
         "forward_in": ("forward", "selinux_ip_forward"), "label": ("output", "selinux_ip_output")}


def refusals(log):
    """{(source, port, destination, port): permission} of packets."""
    return {(src, int(sport), dst, int(dport)): permission for permission, src, sport, dst, dport in re.findall(
        r"avc: +denied +{ (\w+) } .* saddr=(\S+) src=(\d+) daddr=(\S+) dest=(\d+) .*tclass=packet", log)}


def flow_of(drop):
    packet = drop["packet"]
    return packet["src"], packet["sport"], packet["dst"], packet["dport"]


def before_a_socket(group, guest, drop):
    tcp = drop["packet"]["proto"] == "tcp"
    reason = "NOT_SPECIFIED" if guest.old else "SOCKET_FILTER" if guest.kernel.startswith(("6.1.", "6.12.")) else "SECURITY_HOOK"
    function = "tcp_v4_rcv" if tcp else "udp_queue_rcv_one_skb"
    what = f"recv, {drop['packet']['proto']}"
    group.fields(drop, {"rule": None, "process": None, "drop": {
        "kind": "kernel", "reason": reason, "hook": None, "hook_function": None,
        "location": lambda text: text.startswith(f"{function}+")}}, what)
    waiting = ((drop["evidence"] or {}).get("socket") or {}).get("process")  # where there was time to look for it
    if not guest.old:
        group.fields(drop["explanation"], {
            "id": {"SOCKET_FILTER": "kernel-socket-filter", "SECURITY_HOOK": "kernel-security-hook"}[reason],
            # Up to 6.12 it may have been others: it says so.
            "summary": lambda text: "SELinux" in text and ("the kernel does not say" in text) == (reason == "SOCKET_FILTER") and (
                not waiting or f"That socket is perl (pid {waiting['pid']})'s." in text),
            "fixes": lambda fixes: "ausearch -m avc -ts recent" in [fix["do"] for fix in fixes]}, what)


def at_a_hook(group, guest, drop, permission, late):
    """Whether its function is named."""
    hook, name = HOOKS[permission]
    what, told = f"{permission}, {drop['packet']['proto']}", drop["explanation"]["summary"]
    local = permission in ("send", "label")
    group.fields(drop, {"rule": None, "process": (lambda process: process["comm"] in ("bash", "perl")) if local else None, "drop": {
        "kind": "hook", "reason": "NOT_SPECIFIED" if guest.old else "NETFILTER_DROP", "hook": None if guest.old else hook,
        "queue": None, "location": lambda text: text.startswith("nf_hook_slow+")}}, what)
    function = drop["drop"]["hook_function"]
    if not function and not (late and not guest.old and not guest.without_fentry):
        group.true(guest.old or name in drop["drop"]["unknown"], f"{what}: it is among those that may have dropped it", drop["drop"])
        group.equal(drop["explanation"]["id"], "hook-without-rule", f"{what}: the explanation at first")
        # What the sender was told depends on who it was.
        group.true("EPERM" not in told and "ECONNREFUSED" not in told, f"{what}: nothing is said of an error", told)
        return False
    group.fields(function, {"name": name, "module": None, "bpf_program": None}, what)
    group.fields(drop["explanation"], {
        "id": "selinux-hook", "summary": lambda text: text.startswith(f"SELinux refused it: {name}."),
        "fixes": lambda fixes: fixes[0]["do"] == ("netlabelctl -p map list" if permission == "label" else
                                                  "ausearch -m avc -ts recent")}, what)
    errors = {"label": ["EPERM"], "send": ["ECONNREFUSED"]}.get(permission, [])
    group.equal([error for error in ("EPERM", "ECONNREFUSED") if error in told], errors, f"{what}: the sender's error, as told")
    group.equal("connect()" in told, permission == "send" and drop["packet"]["proto"] == "tcp", f"{what}: a connection")
    return True


def refused(group, guest, validator):
    run, known = guest.run("selinux"), guest.marks("selinux")["known"]
    check_run(group, run, validator)
    group.equal(run.final["lost"], {}, "nothing was lost")
    group.true("selinux" in guest.text("selinux/lsm").strip().split(","), "SELinux is there", guest.text("selinux/lsm"))
    group.equal(guest.text("selinux/enforce"), "1", "it enforces its policy")
    log = guest.text("selinux/dmesg")
    permissions = refusals(log)
    group.equal(Counter(permissions.values()), {"send": 9, "forward_in": 6, "forward_out": 6, "recv": 6},
                "packets that it says it has refused")
    # It says nothing of a packet that could not be labelled; the sender does.
    unlabelled = run.drops_to_port(7907)
    group.equal(len(unlabelled), 3, "packets without a label: drop lines")
    permissions.update({flow_of(drop): "label" for drop in unlabelled})
    group.equal(sorted(map(flow_of, run.drops)), sorted(permissions), "the packets that died, and those that it has refused")
    named = Counter()
    for drop in run.drops:
        permission = permissions.get(flow_of(drop))
        if permission == "recv":
            before_a_socket(group, guest, drop)
        elif permission:
            named[permission] += at_a_hook(group, guest, drop, permission, seconds(drop["time"]) >= known)
    if not guest.old and not guest.without_fentry:
        for permission, packets in (("send", 6), ("forward_in", 4), ("forward_out", 4), ("label", 2)):
            group.true(named[permission] >= packets, f"{permission}: packets whose function is named", named)
    group.equal(sum(cause["packets"] for cause in run.final["causes"]), len(permissions), "packets in the summary")
    # What the programs that sent these were told by the kernel.
    told = guest.text("selinux/errors")
    for text, times in (("write error: Connection refused", 6), ("7902: Connection refused", 3), ("7907: Operation not permitted", 3)):
        group.equal(told.count(text), times, f"senders: {text}")


def confined(group, guest):
    """A process that SELinux does not let use BPF: one sentence, which says what it knows."""
    log, err = guest.text("selinux/dmesg"), guest.text("selinux/confined.err")
    refused_bpf = [line for line in log.splitlines() if "tclass=bpf" in line]
    group.true(refused_bpf and all("scontext=u:r:confined" in line for line in refused_bpf), "SELinux says so itself", refused_bpf)
    group.equal((guest.text("selinux/confined.exit").strip(), guest.text("selinux/confined.out")), ("3", ""), "exit code and output")
    group.true(len(err.splitlines()) == 1 and "SELinux is enforcing" in err and "context u:r:confined." in err and "ausearch" in err,
               "the sentence", err)


def all_checks(run, validator):
    run("selinux", "packets that SELinux refuses", refused, validator)
    run("selinux", "a tracer that SELinux confines", confined)
