// SPDX-License-Identifier: GPL-2.0-only
// The way that a packet took through the chains of an x_tables table.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "model.h"
#include "resolve_rule/ruleset.h"

namespace tsdroptrace::resolve_rule {

// Where an entry of the blob is: indices into table.chains and chain.rules.
struct LegacyPosition {
    std::size_t chain, rule;
};

// The rule at that offset; nullopt when no rule begins there.
std::optional<LegacyPosition> find_rule(const SnapshotTable& table, std::uint32_t offset);

// The steps from the hook's built-in chain to the rule at `offset`, that rule last; empty when the way is not
// certain. `jumpstack` holds the offsets of the jumps that the kernel pushed, oldest first, then leftovers of
// other packets, at most TSDT_JUMPSTACK_MAX in all; empty where the stack is not known.
//
// The kernel pushes jumps, not gotos, and how many entries are live is not known. Both are searched for: a way
// follows the stack wherever it jumps, may take a goto at any point, and past the end of a full stack may take
// any jump. Since chains cannot loop, a way that has reached the rule's chain ends there. Only if exactly one
// way fits is it the answer.
std::vector<PathStep> legacy_path(const SnapshotTable& table, Hook hook, std::uint32_t offset,
                                  std::span<const std::uint32_t> jumpstack);

// The jump stack of ebtables holds what comes after each jump: the rule that ends there is the jump. Offsets of these;
// UINT32_MAX stays what it is.
std::vector<std::uint32_t> rules_before(const SnapshotTable& table, std::span<const std::uint32_t> offsets);

} // namespace tsdroptrace::resolve_rule
