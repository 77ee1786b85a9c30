// SPDX-License-Identifier: GPL-2.0-only
#include "explain/match.h"

#include <algorithm>
#include <arpa/inet.h>
#include <array>
#include <cctype>
#include <charconv>

namespace tsdroptrace::explain {

bool matches(std::string_view pattern, std::string_view name) {
    if (pattern.ends_with('*'))
        return name.starts_with(pattern.substr(0, pattern.size() - 1));
    return pattern == name;
}

bool contains(std::string_view cidr, const Address& address) {
    const bool ipv6 = cidr.find(':') != std::string_view::npos;
    if (address.family != (ipv6 ? IpFamily::ipv6 : IpFamily::ipv4))
        return false;
    const std::size_t slash = cidr.find('/');
    if (slash == std::string_view::npos)
        return false;
    unsigned bits = 0;
    std::from_chars(cidr.data() + slash + 1, cidr.data() + cidr.size(), bits);
    std::array<std::uint8_t, 16> network{};
    if (inet_pton(ipv6 ? AF_INET6 : AF_INET, std::string(cidr.substr(0, slash)).c_str(), network.data()) != 1 ||
        bits > (ipv6 ? 128U : 32U))
        return false;
    const std::size_t whole = bits / 8;
    if (!std::equal(network.begin(), network.begin() + static_cast<std::ptrdiff_t>(whole), address.bytes.begin()))
        return false;
    const unsigned rest = bits % 8;
    return rest == 0 || ((network[whole] ^ address.bytes[whole]) >> (8 - rest)) == 0;
}

std::string_view symbol_of(std::string_view location) {
    location = location.substr(0, location.find_first_of("+ "));
    location = location.substr(0, location.find('.'));
    const bool is_name = !location.empty() && std::isdigit(static_cast<unsigned char>(location.front())) == 0;
    return is_name ? location : std::string_view{};
}

} // namespace tsdroptrace::explain
