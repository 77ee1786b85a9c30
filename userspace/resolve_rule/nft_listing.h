// SPDX-License-Identifier: GPL-2.0-only
#pragma once

#include <cstddef>
#include <string_view>

#include "resolve_rule/ruleset.h"

namespace tsdroptrace::resolve_rule {

// Reads what `nft -a -s -t list ruleset` prints (handles; neither counters nor the elements of named sets) into
// snapshot.tables. Every chain counts as nft's own. The table with which there would be more than `max_rules` is
// left out, and all after it: snapshot.problems says so. Text that is not a listing gives no tables.
//
// Rules end with "# handle N", which tells them from everything else in a chain; a rule may span lines: in the
// `jump { ... }` form, which is put on one line, and where a comment has a line break, which is kept. Names are
// whatever a program wrote into the kernel, so a listing can lie about its structure: the Resolver believes
// it only where it agrees with the kernel.
// The sets and maps of a table, at most `max_sets` in all, have no elements yet.
inline constexpr std::size_t max_sets = 1024;
void read_nft_listing(std::string_view listing, std::size_t max_rules, Snapshot& snapshot);

// The elements in what `nft -s list set FAMILY TABLE NAME` (or list map) prints, as they stand between the braces.
// Empty when there are none, when the text is not such a listing or a part of one, or longer than `max_size`.
std::string read_set_elements(std::string_view listing, std::size_t max_size);

} // namespace tsdroptrace::resolve_rule
