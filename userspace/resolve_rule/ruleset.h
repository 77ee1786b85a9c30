// SPDX-License-Identifier: GPL-2.0-only
// A ruleset as userspace reads it, at one generation: what turns a handle or an offset into a rule's text.
// Plain data, so that --record can write it and --replay and the unit tests can read it back.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "model.h"

namespace tsdroptrace::resolve_rule {

struct SnapshotRule {
    std::optional<std::uint64_t> handle; // nf_tables
    std::optional<std::uint32_t> offset; // x_tables: in the blob
    std::string text;                    // nftables: the rule line without its handle; iptables: "-A chain ..."
    std::string verdict;                 // "drop", "reject", ... ; empty when it is something else
    // x_tables: the blob offset of the chain that the rule jumps or goes to
    std::optional<std::uint32_t> jump_offset;
    bool is_goto = false;
};

struct SnapshotChain {
    std::string name;
    std::optional<std::uint64_t> handle;        // nf_tables
    std::optional<std::uint32_t> offset;        // x_tables: of the chain's first entry
    std::optional<Hook> hook;                   // base and built-in chains only
    std::optional<std::uint32_t> policy_offset; // x_tables built-in chains: of the policy's entry
    std::optional<std::string> policy;          // base and built-in chains: "drop", "accept"
    Backend backend = Backend::nftables;        // who can print and edit it
    std::vector<SnapshotRule> rules;            // in order: rules[0] is number 1
};

// Whether another rule of the chain has the same text, so that this one cannot be told by it.
inline bool has_twin(const SnapshotChain& chain, const SnapshotRule& rule) {
    return std::ranges::count(chain.rules, rule.text, &SnapshotRule::text) > 1;
}

// A set or map that has a name.
struct SnapshotSet {
    std::string name;
    bool is_map = false;
    bool may_change = false; // packets add and delete elements, or they have a timeout
    std::string elements;    // nf_tables: what nft prints between the braces; empty where they have not been read
};

struct SnapshotTable {
    RuleFamily family = RuleFamily::ip;
    std::string name;
    std::optional<std::uint64_t> handle; // nf_tables
    std::vector<SnapshotChain> chains;
    std::vector<SnapshotSet> sets = {}; // nf_tables: those of rules that may drop, whose elements are few
};

// ebtables has a kind for each table: to ask for one that is not there would create it.
enum class SnapshotKind { nf_tables, ip_tables, ip6_tables, arp_tables, bridge_filter, bridge_nat };

// Where the kernel's counter of changes stands; one for nf_tables and one for x_tables, whatever the namespace.
struct Generation {
    std::uint32_t number = 0;
    bool changing = false; // a change is under way
};

struct Snapshot {
    SnapshotKind kind = SnapshotKind::nf_tables;
    std::uint32_t netns = 0;      // inode
    std::uint32_t generation = 0; // tsdt_cause_key.generation at which it was read
    std::vector<SnapshotTable> tables;
    std::vector<std::string> problems; // what could not be read and why, for the log
};

} // namespace tsdroptrace::resolve_rule
