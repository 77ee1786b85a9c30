# SPDX-License-Identifier: GPL-2.0-only
"""Writes, from a seed, what the guest loads and sends."""

import json
import random

from . import churn, counted_rules, family_rules, iptables_rules, nft_rules
from .packets import bridge_packets, lines, list_of, random_packets

BACKENDS = ("legacy", "iptables-nft", "nftables")
KINDS = {**{backend: (backend,) for backend in BACKENDS}, "mixed": ("legacy", "nftables")}


def write_round(directory, kind, seed, number, packets):
    """One ruleset and its packets. The same arguments give the same files."""
    rng = random.Random(f"{seed}/{kind}/{number}")
    level = min(3, number)
    directory.mkdir(parents=True)
    if "nftables" in KINDS[kind]:
        (directory / "rules.nft").write_text(nft_rules.ruleset(rng, level) + nft_rules.TRACE)
    if KINDS[kind] != ("nftables",):
        for family in (4, 6):
            (directory / f"rules.{family}").write_text(
                iptables_rules.ruleset(rng, family, level, "legacy" in KINDS[kind]))
    # Every other round both CPUs send at once. Every fourth one does not wait for anybody.
    (directory / "packets").write_text(
        lines(random_packets(rng, packets, 1 + number % 2), KINDS[kind], number % 4 != 0))


def write_families(directory, seed, number, packets):
    """The same for the families of nf_tables beyond those of IP. What an old kernel does not know is in a file of its
    own."""
    rng = random.Random(f"{seed}/families/{number}")
    directory.mkdir(parents=True)
    rules, new = family_rules.ruleset(rng, min(3, number))
    (directory / "rules.nft").write_text(rules + family_rules.TRACE)
    (directory / "new.nft").write_text(new + family_rules.TRACE_EGRESS)
    (directory / "packets").write_text(lines(bridge_packets(rng, packets, 1 + number % 2), ("families",), True))


def write_counted(directory, seed, number, packets):
    """The same for arptables and ebtables, whose packets are sent one by one. Beside each is where it comes from, and
    what dies if it is dropped."""
    rng = random.Random(f"{seed}/counted/{number}")
    directory.mkdir(parents=True)
    level, few, many = min(3, number), packets * 2 // 5, packets * 3 // 5
    for kind, rules, sent, prime in (
            ("arp", counted_rules.arp_rules(rng, level), counted_rules.arp_packets(rng, few), counted_rules.ARP_PRIME),
            ("bridge", counted_rules.bridge_rules(rng, level), counted_rules.bridge_packets(rng, many),
             counted_rules.BRIDGE_PRIME)):
        (directory / f"{kind}.rules").write_text("\n".join(rules) + "\n")
        (directory / f"{kind}.packets").write_text(list_of(prime + [packet for packet, _ in sent]))
        (directory / f"{kind}.list").write_text("".join(json.dumps([packet.origin, dies.key()]) + "\n"
                                                        for packet, dies in sent))


def write(directory, seeds, rounds, packets, churn_packets):
    """`rounds` rounds for each backend and each seed, directory/BACKEND/NUMBER, one for backends that are there at the
    same time, one less for other families; of the last seed only, two less for arptables and ebtables, and
    directory/churn/BACKEND."""
    for kind in KINDS:
        for at, seed in enumerate(seeds):
            for number in range(rounds) if kind in BACKENDS else [rounds - 1]:
                write_round(directory / kind / f"{at * rounds + number:04}", kind, seed, number, packets)
    for at, seed in enumerate(seeds):
        for number in range(min(1, rounds - 1), rounds):
            write_families(directory / "families" / f"{at * rounds + number:04}", seed, number, packets * 3 // 4)
    for number in range(min(2, rounds - 1), rounds):
        write_counted(directory / "counted" / f"{number:04}", seeds[-1], number, packets * 3 // 4)
    for backend in BACKENDS:
        churn.write(directory / "churn" / backend, backend, random.Random(f"{seeds[-1]}/{backend}/churn"), 36,
                    churn_packets)
    (directory / "trace.nft").write_text(nft_rules.TRACE)
    (directory / "seeds").write_text(" ".join(map(str, seeds)) + "\n")
