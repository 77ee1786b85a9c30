// SPDX-License-Identifier: GPL-2.0-only
#include "explain/match.h"

#include <algorithm>
#include <arpa/inet.h>
#include <cctype>
#include <charconv>
#include <optional>

namespace tsdroptrace::explain {

bool matches(std::string_view pattern, std::string_view name) {
    if (pattern.ends_with('*'))
        return name.starts_with(pattern.substr(0, pattern.size() - 1));
    return pattern == name;
}

bool has_pieces(std::string_view pattern, std::string_view text) {
    for (;;) {
        const std::size_t star = pattern.find('*');
        const std::string_view piece = pattern.substr(0, star);
        const std::size_t at = text.find(piece);
        if (at == std::string_view::npos)
            return false;
        if (star == std::string_view::npos)
            return true;
        text.remove_prefix(at + piece.size());
        pattern.remove_prefix(star + 1);
    }
}

std::optional<Network> network_of(std::string_view cidr) {
    const bool ipv6 = cidr.find(':') != std::string_view::npos;
    const std::size_t slash = cidr.find('/');
    if (slash == std::string_view::npos)
        return std::nullopt;
    Network network{ipv6 ? IpFamily::ipv6 : IpFamily::ipv4, {}, 0};
    const auto [end, error] = std::from_chars(cidr.data() + slash + 1, cidr.data() + cidr.size(), network.bits);
    if (error != std::errc{} || end != cidr.data() + cidr.size() || network.bits > (ipv6 ? 128U : 32U) ||
        inet_pton(ipv6 ? AF_INET6 : AF_INET, std::string(cidr.substr(0, slash)).c_str(), network.bytes.data()) != 1)
        return std::nullopt;
    return network;
}

bool is_cidr(std::string_view text) {
    return network_of(text).has_value();
}

bool contains(const Network& network, const Address& address) {
    if (network.family != address.family)
        return false;
    const std::size_t whole = network.bits / 8;
    if (!std::equal(network.bytes.begin(), network.bytes.begin() + static_cast<std::ptrdiff_t>(whole),
                    address.bytes.begin()))
        return false;
    const unsigned rest = network.bits % 8;
    return rest == 0 || ((network.bytes[whole] ^ address.bytes[whole]) >> (8 - rest)) == 0;
}

bool contains(std::string_view cidr, const Address& address) {
    const auto network = network_of(cidr);
    return network && contains(*network, address);
}

std::string_view reason_of(const DropSite& site) {
    return site.reason.empty() || site.reason == "0" ? "NOT_SPECIFIED" : std::string_view(site.reason);
}

bool has_name(const DropSite& site) {
    return std::isdigit(static_cast<unsigned char>(reason_of(site).front())) == 0;
}

} // namespace tsdroptrace::explain
