// SPDX-License-Identifier: GPL-2.0-only
// The one thing that explain asks the machine, kept out of Explainer so that it stays pure.
#pragma once

#include <optional>
#include <string_view>

#include "model.h"

namespace tsdroptrace::explain {

// Which backend a multi-call binary named like this edits: "xtables-nft-multi", "xtables-legacy-multi".
// "xtables-multi" is legacy: it was the only one when it had that name. nullopt for any other name.
std::optional<Backend> backend_of_binary(std::string_view name);

// Which backend the bare command `iptables` edits, by the file that its link in /usr/sbin or /sbin leads to.
// Runs nothing. nullopt when there is no such command or its file has another name.
std::optional<Backend> plain_iptables();

} // namespace tsdroptrace::explain
