# SPDX-License-Identifier: GPL-2.0-only
"""What the catalogue says of the kernel's own reasons, each by a real cause (tests/vm/guest/causes.sh and peer): the entry
of that reason, of these packets and of no others. Which packet is which says its port, or an address or a device; how many
of each reason there are says the kernel's own trace."""

import re
from collections import Counter

from .guest import check_run, reasons_file, version

PLAIN = "NOT_SPECIFIED"


class Cause:
    """`where`: fields of the packet that tell it. `reasons`: what it dies of, the newest kernel's name first: an older one
    says the first of these that it has, from the version on that may stand behind it ("NAME 7.0"; "NAME <6.2": before
    that), or nothing that is known here. `says`, `fix`: what is told of the first of these. `entry`: that of the first,
    where it is not called like the reason. `fields`: what else the packet must have."""

    def __init__(self, where, *reasons, says=(), fix=None, entry=None, fields=None):
        self.where, self.says, self.fix, self.own_entry, self.fields = where, says, fix, entry, fields or {}
        self.reasons = [(name, range_.startswith("<"), version(range_)) for name, _, range_ in
                        (reason.partition(" ") for reason in reasons)]

    def reason(self, kernel, reasons):
        """What it dies of on that kernel, which has these reasons."""
        return next((name for name, before, than in self.reasons if name in reasons and
                     (version(kernel) < than) == before), None)

    def entry(self, reason):
        if self.own_entry and reason == self.reasons[0][0]:
            return self.own_entry
        return "kernel-" + ("not-specified-function" if reason == PLAIN else reason.lower().replace("_", "-"))


def reasons_of(kernel):
    """All that a kernel has, those of its modules and queues too."""
    return {name.removeprefix("SKB_DROP_REASON_") for name in reasons_file(kernel).read_text().split()
            if not name.startswith("#")}


def port(number, *reasons, **more):
    return Cause({"dport": number}, *reasons, **more)


def source(address, *reasons, **more):
    return Cause({"src": address}, *reasons, **more)


def leaves(device, *reasons, **more):
    return Cause({"out_dev": device}, *reasons, **more)


QDISC = "tc -s qdisc show dev {}"
CAUSES = [
    # TCP.
    port(7501, "TCP_OLD_DATA"), port(7502, "TCP_OLD_SEQUENCE", "TCP_INVALID_SEQUENCE"), port(7503, "TCP_INVALID_SEQUENCE"),
    port(7504, "TCP_OFO_DROP", says=["once more in order"]), port(7505, "TCP_OFOMERGE"), port(7506, "TCP_TOO_OLD_ACK"),
    port(7507, "TCP_ACK_UNSENT_DATA"), port(7508, "TCP_RFC7323_PAWS"),
    port(7509, "TCP_RFC7323_PAWS_ACK", "TCP_RFC7323_PAWS"), port(7510, "TCP_INVALID_SYN"),
    port(7511, "TCP_RESET", says=["ended nothing"]), port(7512, "TCP_FLAGS"), port(7513, "TCP_ABORT_ON_DATA", PLAIN),
    port(7514, "TCP_INVALID_END_SEQUENCE", "TCP_ZEROWINDOW", says=["reads too slowly"]), port(7515, "TCP_OVERWINDOW"),
    # These lie in a tree, whose pointers stand where that to the device stood.
    port(7516, "TCP_OFO_QUEUE_PRUNE", fix="nstat -az | grep -i tcp", fields={"in_dev": None, "out_dev": None}),
    port(7517, "TCP_MINTTL", PLAIN), port(7518, "TCP_MD5NOTFOUND"), port(7519, "TCP_MD5UNEXPECTED"),
    port(7520, "TCP_MD5FAILURE"), port(7521, "TCP_AUTH_HDR", "TCP_MD5UNEXPECTED"),
    # Debian's kernels know TCP-AO since then.
    port(7522, "TCP_AOUNEXPECTED 7.0"), port(7523, "TCP_AONOTFOUND 7.0"),
    port(7524, "TCP_AOKEYNOTFOUND 7.0"), port(7525, "TCP_AOFAILURE 7.0"),
    port(7526, "TCP_LISTEN_OVERFLOW", PLAIN), port(7527, "TCP_RFC7323_TW_PAWS"),
    port(7528, "TCP_RFC7323_TSECR"), port(7530, "TCP_INVALID_ACK_SEQUENCE", PLAIN), port(7532, "TCP_FASTOPEN"),
    # Sockets.
    Cause({"family": "other"}, "IP_OUTNOROUTES", says=["no route any more"]), port(7540, "SOCKET_FILTER"),
    port(7580, "SOCKET_FILTER", says=["control group"], fix="bpftool cgroup tree"),
    port(7553, "PACKET_SOCK_ERROR", PLAIN), port(7554, "QUEUE_PURGE", PLAIN),
    port(7579, "SECURITY_HOOK 7.0", "SOCKET_FILTER"),
    Cause({"family": "other"}, "SOCKET_CLOSE", says=["A Unix socket was closed"]),
    Cause({"family": "other"}, "UNIX_SKIP_OOB"),
    Cause({"family": "other"}, "UNIX_DISCONNECT"),
    # Addresses, fragments, extension headers, neighbours.
    Cause({"family": "other", "in_dev": "peer0"}, "IP_INHDR"), port(7556, "IP_INVALID_DEST", PLAIN),
    source("192.0.2.8", "INVALID_PROTO"), port(7557, "IP_INADDRERRORS", entry="kernel-not-forwardable"),
    port(7541, "DUP_FRAG", PLAIN), port(7542, "FRAG_REASM_TIMEOUT", PLAIN), port(7543, "FRAG_TOO_FAR", PLAIN),
    source("2001:db8::11", "IPV6_NDISC_HOP_LIMIT"), source("2001:db8::12", "IPV6_NDISC_BAD_CODE"),
    source("2001:db8::13", "IPV6_NDISC_BAD_OPTIONS"), source("2001:db8::14", "IPV6_NDISC_NS_OTHERHOST"),
    source("2001:db8::15", "IPV6_NDISC_FRAG"), source("2001:db8::17", "IPV6_BAD_EXTHDR", says=["ICMPv6 error"]),
    source("2001:db8::21", "UNHANDLED_PROTO", entry="kernel-ipv6-option"),
    source("2001:db8::22", "IP_INHDR"), source("2001:db8::24", "IPV6_TOO_MANY_EXTHDRS", "NO_SOCKET"),
    source("2001:db8::31", "SKB_CSUM 6.2", fix="ethtool -K peer0 rx off"),
    # Devices, and the programs behind them.
    port(7550, "DEV_READY", says=["The device peer1, by which it came in"], fix="ip -s link show dev peer1",
         fields={"in_dev": "peer1", "out_dev": None}),
    Cause({"family": "other"}, "SKB_UCOPY_FAULT"),
    Cause({"out_dev": "tap1", "dport": 7551}, "SOCKET_FILTER", says=["the program behind tap1"]),
    Cause({"out_dev": "tap2", "dport": 7552}, "TAP_TXFILTER", says=["The address filter of tap2"]),
    Cause({"out_dev": "tap3", "dport": 7553}, "TAP_FILTER", says=["attached to tap3"]),
    port(7558, "UNICAST_IN_L2_MULTICAST"), port(7559, "OTHERHOST"),
    port(7560, "UNHANDLED_PROTO", says=["VLAN"], fix="ip -d link show"),
    port(7571, "MAC_IEEE_MAC_CONTROL", PLAIN), port(7572, "MAC_INVALID_SOURCE 7.0", PLAIN),
    port(7574, "CPU_BACKLOG", fix="sysctl net.core.netdev_max_backlog", fields={"in_dev": "port1", "out_dev": None}),
    port(7575, "BRIDGE_INGRESS_STP_STATE", says=["bridge port port1"]), port(7577, "SKB_BAD_GSO", PLAIN),
    port(7578, "DEV_HDR", says=["virtio"]),
    source("192.0.2.33", "VXLAN_INVALID_HDR", PLAIN), source("192.0.2.34", "VXLAN_VNI_NOT_FOUND", PLAIN),
    source("192.0.2.35", "LOCAL_MAC", PLAIN, fields={"in_dev": "vx7", "out_dev": None}),
    source("192.0.2.36", "MAC_INVALID_SOURCE", PLAIN), source("192.0.2.37", "VXLAN_ENTRY_EXISTS", PLAIN),
    port(7566, "IP_TUNNEL_ECN", PLAIN, fields={"in_dev": "vx7"}),
    port(7621, "NO_TX_TARGET", PLAIN), port(7622, "TUNNEL_TXINFO", PLAIN),
    leaves("ipip2", "RECURSION_LIMIT"),
    leaves("ipip2", f"{PLAIN} <6.2", entry="kernel-device-down", says=["routed into itself"]),
    # Queues. What one refuses, the kernel tells in another trace point from 7.0, and to kfree_skb as QDISC_DROP; what a queue
    # throws away later has its own reason.
    leaves("fqflow", "QDISC_DROP_FLOW_LIMIT", "FQ_FLOW_LIMIT", "QDISC_DROP", fix=QDISC.format("fqflow")),
    leaves("fqband", "QDISC_DROP_BAND_LIMIT", "FQ_BAND_LIMIT", "QDISC_DROP"),
    leaves("fqtime", "QDISC_DROP_HORIZON_LIMIT", "FQ_HORIZON_LIMIT", "QDISC_DROP"),
    leaves("codel", "QDISC_DROP_CONGESTED", PLAIN),
    leaves("pfifo", "QDISC_DROP_GENERIC", "QDISC_DROP", fix=QDISC.format("pfifo")),
    leaves("sfq", "QDISC_DROP_MAXFLOWS", "QDISC_DROP"), leaves("sfq", "QDISC_DROP_OVERLIMIT", "QDISC_DROP"),
    leaves("loop", "TC_RECLASSIFY_LOOP", "TC_EGRESS",
           fix="tc filter show dev loop egress; tc filter show dev loop"),
    # Open vSwitch.
    port(7581, "OVS_DROP_LAST_ACTION"), port(7582, "OVS_DROP_EXPLICIT", fix="ovs-appctl dpctl/dump-flows"),
    port(7583, "OVS_DROP_EXPLICIT_WITH_ERROR"), port(7584, "OVS_DROP_METER"), port(7585, "OVS_DROP_IP_TTL"),
    port(7586, "OVS_DROP_CONNTRACK"), source("10.87.2.1", "OVS_DROP_ACTION_ERROR"),
]


def drops_of(run, cause, reason):
    return [d for d in run.drops if d["drop"]["reason"] == reason and
            all(d["packet"][name] == value for name, value in cause.where.items())]


def causes(group, guest, validator):
    run = guest.run("causes")
    check_run(group, run, validator)
    group.equal(run.final["lost"], {}, "nothing was lost")
    known = reasons_of(guest.kernel)
    entries = {}
    for cause in CAUSES:
        reason = cause.reason(guest.kernel, known)
        if not reason:
            continue
        entry, what = cause.entry(reason), f"{cause.where}, {reason}"
        entries.setdefault(entry, set()).add(reason)
        drops = drops_of(run, cause, reason)
        if not group.true(drops, f"{what}: drop lines"):
            continue
        for drop in drops[:3]:
            explanation = drop["explanation"] or {"id": "", "summary": "", "fixes": []}
            group.equal(explanation["id"], entry, f"{what}: the entry")
            first = reason == cause.reasons[0][0]
            for piece in cause.says if first else ():
                group.true(piece in explanation["summary"], f"{what}: says {piece!r}", explanation["summary"])
            if cause.fix and first:
                group.equal([fix["do"] for fix in explanation["fixes"]][:1], [cause.fix], f"{what}: the first fix")
            group.true(all(fix["risk"] for fix in explanation["fixes"]), f"{what}: each fix has its price")
        for drop in drops:
            group.fields(drop["packet"], cause.fields, what)
    # No entry is met where its reason is not.
    for drop in run.drops:
        entry, reason = drop["explanation"]["id"], drop["drop"]["reason"]
        if entry in entries:
            group.true(reason in entries[entry], f"{entry} is about another reason", drop)
    # Whatever a device is said to be is one.
    devices = dict(line.split() for line in guest.text("causes/devices").splitlines())
    told = {drop["packet"][way] for drop in run.drops for way in ("in_dev", "out_dev")} - {None}
    group.equal(told - set(devices.values()), set(), "names of devices that there are")
    # The kernel's own trace: reason by reason, as many, from the first packet that was sent to die until the last one: that
    # trace and tsdroptrace do not begin and end at the same moment.
    first = min(drop["mono_ns"] for drop in run.drops_to_port(7501)) - 1_000_000
    last = max(drop["mono_ns"] for drop in run.drops_to_port(7579)) + 50_000_000
    within = [drop for drop in run.drops if first <= drop["mono_ns"] <= last]
    trace = "\n".join(line for line in guest.text("causes/trace").splitlines()
                      if (at := re.search(r" (\d+)\.(\d{6}): ", line)) and first <= int(at[1] + at[2]) * 1000 <= last)
    traced = Counter(re.findall(r"kfree_skb: .* reason: ([A-Z0-9_]+)", trace))
    refused = re.findall(r"qdisc_drop: drop ifindex=(\d+) .* reason=([A-Z0-9_]+)", trace)
    traced["QDISC_DROP"] -= len(refused)
    counted = Counter(drop["drop"]["reason"] for drop in within)
    alone = {PLAIN, "QUEUE_PURGE", "IP_OUTNOROUTES"}
    for reason in sorted({reason for reasons in entries.values() for reason in reasons} - alone):
        if reason in guest.reasons:
            group.equal(counted[reason], traced[reason], f"{reason}: packets, and lines of the kernel's trace")
    if "QDISC_DROP_GENERIC" not in known:
        return
    # What queues refused, device by device; CONGESTED is also what they threw away later, which is told to kfree_skb.
    counted = Counter((drop["packet"]["out_dev"], drop["drop"]["reason"]) for drop in within)
    expected = Counter((devices[index], f"QDISC_DROP_{reason}") for index, reason in refused)
    for (device, reason), packets in sorted(expected.items()):
        if reason != "QDISC_DROP_CONGESTED":
            group.equal(counted[device, reason], packets, f"{device}, {reason}: packets, and lines of the kernel's trace")
    of_queues = {key for key in counted if key[1].startswith("QDISC_DROP") and key[1] != "QDISC_DROP_CONGESTED"}
    group.equal(of_queues - set(expected), set(), "what queues refused, and nothing that the kernel does not tell")
    # The filter, in the kernel.
    chosen = guest.run("causes", "maxflows")
    check_run(group, chosen, validator)
    group.equal(Counter((drop["packet"]["out_dev"], drop["drop"]["reason"]) for drop in chosen.drops),
                Counter({("sfq", "QDISC_DROP_MAXFLOWS"): expected["sfq", "QDISC_DROP_MAXFLOWS"]}), "--reason QDISC_DROP_MAXFLOWS")
