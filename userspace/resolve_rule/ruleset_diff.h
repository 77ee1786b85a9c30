// SPDX-License-Identifier: GPL-2.0-only
// What two snapshots of one ruleset have not in common, for the rules that drop. Pure.
#pragma once

#include <map>
#include <optional>

#include "model.h"
#include "resolve_rule/ruleset.h"

namespace tsdroptrace::resolve_rule {

// By backend of the chains that differ, in any rule or in the policy; the lists are in the order of their snapshots,
// base chains in that of their names.
// Empty: all that a snapshot holds is the same, so counters, elements of sets or other namespaces have changed, or
// nothing has. A rule that was taken out and put back where it was, by whatever means, is in no list.
using RulesetDiff = std::map<Backend, DropChanges>;

// Whether packets die by this rule: drop, reject, or a verdict map with a drop in it.
bool can_drop(const SnapshotRule& rule);

// nf_tables' rules are told from each other by handle and text, as long as it is the same table; all others, and those
// that have a new handle, by their text alone. nullopt when the snapshots lack different things, which would look like
// a change.
std::optional<RulesetDiff> compare(const Snapshot& before, const Snapshot& after);

} // namespace tsdroptrace::resolve_rule
