// SPDX-License-Identifier: GPL-2.0-only
// iptables' own words for rules, from what its -save programs print.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "resolve_rule/ruleset.h"

namespace tsdroptrace::resolve_rule {

// The "-A chain ..." lines of each chain of one table, in order; chains without rules are there too.
using SavedTable = std::map<std::string, std::vector<std::string>, std::less<>>;

// Reads what `iptables-save -t TABLE` prints, as far as it goes: a line may break within quotes.
SavedTable read_iptables_save(std::string_view output);

// The same from what `arptables-legacy -L -n` and `ebtables-legacy -L` print, which their -save programs would only
// prefix with "-A chain": those ask whatever `arptables` and `ebtables` are on this machine, and mostly these are the
// ones for nf_tables.
SavedTable read_legacy_listing(std::string_view output);

// Puts iptables' words on the chains of a table whose rules they fit: as many lines as rules, and each line
// does what the rule does. An nf_tables chain that is printed so becomes Backend::iptables_nft. Chains that
// do not fit stay as they are. Returns how many of those have rules.
std::size_t use_iptables_words(SnapshotTable& table, SavedTable saved);

} // namespace tsdroptrace::resolve_rule
