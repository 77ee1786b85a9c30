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

bool leaves_this_machine(const Drop&);

// Where the packet comes from, for what enters; where it goes, for what leaves. In between, on the
// forwarding path, the end that the user asked about.
bool peer_is_source(const Drop&);
const Address& peer(const Drop&);

// In the path of a sysctl a dot separates, so the dot of a VLAN device is written as a slash, as sysctl(8) has it.
std::string sysctl_device(std::string_view device);

// A sysctl's name with its {in_dev} and {out_dev} filled in; empty when the packet has no such device.
std::string sysctl_name(std::string_view pattern, const Drop&);

} // namespace tsdroptrace::explain
