// SPDX-License-Identifier: GPL-2.0-only
// A table of ebtables as the kernel hands it out: what EBT_SO_GET_ENTRIES of linux/netfilter_bridge/ebtables.h returns.
#pragma once

#include <cstddef>
#include <span>
#include <string_view>

#include "resolve_rule/ruleset.h"
#include "util/result.h"

namespace tsdroptrace::resolve_rule {

// The chains of the table, its rules and policies at the offsets by which the kernel's side names them; a chain's own
// offset, to which rules jump, and that of its policy are those of its head. Text is a plain "-A chain ..." line with
// what every rule has; details that only a match or a target knows are shown as "[...]". Fails, with what was wrong,
// when the bytes are not such a blob; never reads past them.
Result<SnapshotTable> parse_ebt_blob(std::string_view name, std::span<const std::byte> bytes);

} // namespace tsdroptrace::resolve_rule
