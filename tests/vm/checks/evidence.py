# SPDX-License-Identifier: GPL-2.0-only
"""What the machine itself says about a drop, held against iproute2, sysctl and the pids of the programs."""

import json
import re

from .guest import check_lines, check_terminal

TABLES = {"default": 253, "main": 254, "local": 255}


def route_told(guest, name):
    """As `ip route get` told it, without the matching entry, which it does not tell."""
    said = json.loads(guest.text(f"evidence/{name}.route"))[0]
    table = str(said.get("table", "main"))
    return {"type": said.get("type", "unicast"), "dev": said["dev"], "gateway": said.get("gateway"),
            "table": TABLES.get(table) or int(table)}


def check(group, guest, validator):
    run = guest.run("evidence")
    check_lines(group, run, validator)
    check_terminal(group, run)
    waiting = dict(line.split() for line in guest.text("evidence/waiting").splitlines())

    def of(port, what, family=None):
        drops = run.drops_to_port(port, family)
        return drops[0]["evidence"] if group.true(drops, f"{what}: a drop line") else None

    nothing = {"type": None, "dev": None, "gateway": None, "table": None, "matched": None}
    named = 0
    for name, port, told in (("dig4", 41873, "dig4"), ("dig6", 41874, "dig6"), ("diag4", 41875, "dig4"),
                             ("diag6", 41876, "dig6"), ("tcp4", 41877, "dig4")):
        evidence = of(port, name)
        group.fields(evidence, {
            "route": {**route_told(guest, told), "matched": "default"},
            "tailnet_peer": False, "sysctls": {}, "socket": {"waits": True}}, name)
        process = evidence and evidence["socket"]["process"]
        if process:
            named += 1
            group.true((process["pid"], process["comm"]) in ((int(waiting[name]), comm) for comm in ("dig", "isc-net-0000")),
                       f"{name}: the process that waits", process)
    # It is looked for within 20 ms, for which a VM may stand still.
    group.true(named >= 4, "processes that are named, of five that wait", named)
    # The explanation asks for a sysctl. (5.10 gives no reason: then it cannot know that it should.)
    not_forwarded = run.drops_to_port(7920)
    if group.true(not_forwarded, "a packet that is not forwarded: a drop line"):
        told = guest.text("evidence/not-forwarded.sysctl").strip()
        known = not guest.old
        group.equal(told, "0", "this machine did not forward")
        group.equal(not_forwarded[0]["evidence"]["sysctls"], {"net.ipv4.ip_forward": told} if known else {},
                    "a packet that is not forwarded: sysctls")
        if known:
            group.equal(not_forwarded[0]["explanation"]["id"], "kernel-forwarding-off", "why it is not forwarded")
            group.equal([fix["do"] for fix in not_forwarded[0]["explanation"]["fixes"]],
                        ["sysctl -w net.ipv4.ip_forward=1"], "what helps, with forwarding off everywhere")
    group.fields(of(7901, "a peer of the tailnet, IPv6", "ipv6"), {
        "route": {**route_told(guest, "peer6"), "matched": "fd7a:115c:a1e0::104/128"},
        "tailnet_peer": True, "socket": None}, "a peer of the tailnet, IPv6")
    group.equal(route_told(guest, "peer6")["table"], 52, "its route is in table 52, too")
    group.fields(of(7901, "a peer of the tailnet", "ipv4"), {
        "route": {**route_told(guest, "peer"), "matched": "100.101.102.104/32"},
        "tailnet_peer": True, "socket": None}, "a peer of the tailnet")
    group.equal(route_told(guest, "peer")["table"], 52, "the peer's route is in table 52")
    group.fields(of(7911, "nobody waits"), {
        "route": route_told(guest, "dig4"), "socket": {"waits": False, "process": None}}, "nobody waits")
    group.fields(of(7921, "a forwarded packet"), {
        "route": {**route_told(guest, "forward"), "matched": "default"}, "tailnet_peer": False, "socket": None},
        "a forwarded packet")
    group.equal(route_told(guest, "forward")["table"], 77, "the client's packets have a table of their own")
    # Which ip rule led there; that of a VRF names no table.
    for port, family, rule in ((41873, "ipv4", 32766), (41874, "ipv6", 32766), (7901, "ipv4", 5270), (7901, "ipv6", 5270),
                               (7921, "ipv4", 5255), (7922, "ipv4", None)):
        group.equal(of(port, "a rule", family)["route"]["rule"], rule, f"{family} port {port}: the ip rule")
    group.fields(of(7922, "a VRF"), {"route": {**route_told(guest, "vrf"), "matched": "default"}}, "a VRF")
    group.equal(route_told(guest, "vrf")["table"], 88, "so have those of the VRF")
    group.fields(of(7912, "a rule"), {
        "route": {**nothing, "type": "none"}, "tailnet_peer": False, "sysctls": {}}, "a rule")
    for port, kind in ((7913, "unreachable"), (7914, "prohibit"), (7915, "blackhole")):
        group.fields(of(port, kind), {"route": {**nothing, "type": kind}}, kind)

    told = " ".join(run.out.split())
    for line in ("The route to 100.100.2.136 leaves by eth0 via 10.0.0.1 (table main).",
                 "The route to 100.101.102.104 leaves by tailscale0 (table 52, Tailscale's, rule 5270)."):
        group.true(line in told, f"the terminal says {line!r}", run.out)
    for when in ("before", "after"):
        group.equal(re.findall(r"^\w+_diag\b", guest.text(f"evidence/modules.{when}"), re.M), [],
                    f"no module for looking up sockets {when} that was asked")
    loaded = re.findall(r"^\w+_diag\b", guest.text("evidence/modules.loaded"), re.M)
    group.true({"udp_diag", "tcp_diag"} <= set(loaded), "and then they were there", loaded)
