// SPDX-License-Identifier: GPL-2.0-only
// Addresses as they are written, for tests.
#pragma once

#include <string>

#include <arpa/inet.h>

#include "catch.h"
#include "model.h"

namespace tsdroptrace {

inline Address address(const std::string& text) {
    Address out;
    const bool ipv6 = text.find(':') != std::string::npos;
    out.family = ipv6 ? IpFamily::ipv6 : IpFamily::ipv4;
    REQUIRE(inet_pton(ipv6 ? AF_INET6 : AF_INET, text.c_str(), out.bytes.data()) == 1);
    return out;
}

} // namespace tsdroptrace
