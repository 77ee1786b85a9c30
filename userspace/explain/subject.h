// SPDX-License-Identifier: GPL-2.0-only
// One drop as conditions and placeholders look at it.
#pragma once

#include <optional>

#include "explain/catalogue.h"
#include "model.h"

namespace tsdroptrace::explain {

struct Subject {
    const Drop& drop;
    std::optional<Owner> owner;
    std::optional<Backend> plain_iptables; // what the bare command `iptables` edits
    const Service* service = nullptr;      // that lives at the peer; null when none is known
};

// A sysctl's name with its {in_dev} and {out_dev} filled in; empty when the packet has no such device.
std::string sysctl_name(std::string_view pattern, const Drop&);

} // namespace tsdroptrace::explain
