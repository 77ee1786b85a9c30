// SPDX-License-Identifier: GPL-2.0-only
// What `tsdroptrace check` asks about.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "model.h"
#include "util/result.h"

namespace tsdroptrace::check {

enum class Kind { udp, tcp, icmp }; // icmp: an echo request, of ICMPv6 for an IPv6 address

struct Target {
    Address address; // of one host: not 0.0.0.0, no multicast
    Kind kind = Kind::udp;
    std::uint16_t port = 0;   // 0 for icmp
    std::string text() const; // as it is typed: "100.100.2.136:53/udp"
    bool operator==(const Target&) const = default;
};

// "100.100.2.136:53/udp", "[fd7a::53]:443/tcp", "100.100.2.136/icmp". Fails, as parse_cidr does, with one sentence that
// quotes `text` and says what to type instead.
Result<Target> parse_target(std::string_view text);

} // namespace tsdroptrace::check
