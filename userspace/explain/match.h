// SPDX-License-Identifier: GPL-2.0-only
// How the tables' patterns are matched.
#pragma once

#include <string>
#include <string_view>

#include "model.h"

namespace tsdroptrace::explain {

// Exact, or a beginning when the pattern ends in *.
bool matches(std::string_view pattern, std::string_view name);

// Whether a CIDR of the tables ("100.64.0.0/10") holds the address. False for another family.
bool contains(std::string_view cidr, const Address& address);

// The function of a kernel location: "ip_rcv_finish_core.isra.0+0x12/0x340 [mod]" is "ip_rcv_finish_core",
// because compilers append what they did to a function. Empty for an empty or purely numeric location.
std::string_view symbol_of(std::string_view location);

} // namespace tsdroptrace::explain
