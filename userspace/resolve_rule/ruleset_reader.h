// SPDX-License-Identifier: GPL-2.0-only
// Reads rulesets of the running machine, and only reads: nothing here loads a module, creates a table or
// begins a transaction.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "resolve_rule/legacy_blob.h"
#include "resolve_rule/ruleset.h"
#include "util/result.h"

namespace tsdroptrace::resolve_rule {

// The ruleset of that kind in the network namespace with that inode; its generation is left 0. Needs
// CAP_NET_ADMIN, and CAP_SYS_ADMIN for another namespace. At most `max_rules` rules. Fails when nothing could
// be read; what is missing is told in Snapshot::problems, and a table is there as a whole or not at all.
// Takes some 10 ms for a small ruleset; each program that it asks has two seconds.
//
// nf_tables: libnftables lists, in a forked child, since it keeps its memory and may abort() on what it does
// not know; iptables-nft-save gives iptables' words for tables that have its names. `iptables-nft -S` would
// print single chains where -save gives up on a table, but it ends in a (mostly empty) transaction, and
// before iptables 1.8.9 creates missing base chains: it is not used.
// ip_tables, ip6_tables, arp_tables: the tables in /proc/net/ip_tables_names and its likes, by getsockopt, with
// iptables-legacy-save's or arptables-legacy's words.
// bridge_filter, bridge_nat: the table of ebtables, by getsockopt, with ebtables-legacy's words. Nothing tells which of
// these a namespace has, and to ask creates them: to be called only once the table has dropped something there.
//
// The elements of those sets and maps are read, one set after the other, that are looked up by rules which may drop: at
// most `max_read_sets`, for a second of the processor and three by the clock; those of a set that takes more than
// `max_set_size` bytes, or with which there would be more than `max_sets_size`, are left out. That is no problem to be
// told. A set that took too long or was too large is not read again by this process.
inline constexpr std::size_t max_read_sets = 32, max_set_size = 64u << 10, max_sets_size = 512u << 10;
Result<Snapshot> read_ruleset(SnapshotKind kind, std::uint32_t netns, std::size_t max_rules);

// A table of ip_tables or ip6_tables as the kernel hands it out.
struct LegacyTable {
    std::string name;
    BlobInfo info;
    std::vector<std::byte> entries;
    bool operator==(const LegacyTable&) const = default;
};

// All tables of that family in the calling thread's network namespace. Takes some 10 us for each hundred rules.
Result<std::vector<LegacyTable>> read_legacy_tables(RuleFamily family);

} // namespace tsdroptrace::resolve_rule
