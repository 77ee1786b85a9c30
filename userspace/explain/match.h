// SPDX-License-Identifier: GPL-2.0-only
// How the catalogue's patterns are matched.
#pragma once

#include <array>
#include <optional>
#include <string>
#include <string_view>

#include "model.h"

namespace tsdroptrace::explain {

// Exact, or a beginning when the pattern ends in *.
bool matches(std::string_view pattern, std::string_view name);

// Whether the pieces between the pattern's stars stand in the text, one after the other, with anything around them.
bool has_pieces(std::string_view pattern, std::string_view text);

struct Network {
    IpFamily family = IpFamily::other;
    std::array<std::uint8_t, 16> bytes{};
    unsigned bits = 0;
};

// Of "100.64.0.0/10", "fd7a:115c:a1e0::/48".
std::optional<Network> network_of(std::string_view cidr);
bool contains(const Network&, const Address&);

bool is_cidr(std::string_view text);

// Whether a CIDR of the catalogue ("100.64.0.0/10") holds the address. False for another family.
bool contains(std::string_view cidr, const Address& address);

// Kernels before 5.17 have no reasons at all: NOT_SPECIFIED there.
std::string_view reason_of(const DropSite&);
// Whether the kernel tells what it calls its reason: of a module without type information there are numbers only.
bool has_name(const DropSite&);

} // namespace tsdroptrace::explain
