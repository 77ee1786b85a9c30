// SPDX-License-Identifier: GPL-2.0-only
// Templates of the catalogue, filled in with what one drop holds.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "explain/subject.h"

namespace tsdroptrace::explain {

enum class Use { sentence, command };

// The template with its placeholders replaced; nullopt when one of them has no value. In a command each value is
// one word for a shell. Values are not looked at again, so a brace in a chain's name stays what it is.
std::optional<std::string> fill(std::string_view text, const Subject&, Use);

// Names that may stand in braces.
std::vector<std::string_view> placeholder_names();
bool is_placeholder(std::string_view name);

// The legacy tables of ARP and of bridges have tools of their own; empty for any other rule.
std::string_view other_legacy_tool(const Rule&);

// What keeps a command that accepts the packet from helping, in one sentence without a full stop: it stands below
// the rule that drops, or in a chain that has no say over that rule's. Empty when nothing does, or when the command
// accepts nothing.
std::string shadow_warning(std::string_view command, const Drop&);

} // namespace tsdroptrace::explain
