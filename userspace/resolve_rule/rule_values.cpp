// SPDX-License-Identifier: GPL-2.0-only
#include "resolve_rule/rule_values.h"

#include <charconv>
#include <string>

#include <arpa/inet.h>
#include <netinet/in.h>

namespace tsdroptrace::resolve_rule {
namespace {

struct ParsedAddress {
    IpFamily family = IpFamily::other;
    ValueBytes bytes{};
};

std::optional<ParsedAddress> address(std::string_view text) {
    ParsedAddress parsed;
    const std::string terminated(text);
    if (inet_pton(AF_INET, terminated.c_str(), parsed.bytes.data()) == 1)
        parsed.family = IpFamily::ipv4;
    else if (inet_pton(AF_INET6, terminated.c_str(), parsed.bytes.data()) == 1)
        parsed.family = IpFamily::ipv6;
    return parsed.family == IpFamily::other ? std::nullopt : std::optional(parsed);
}

} // namespace

ValueBytes as_bytes(std::uint32_t value) {
    ValueBytes bytes{};
    for (std::size_t i = 0; i < sizeof value; i++)
        bytes[bytes.size() - 1 - i] = static_cast<std::uint8_t>(value >> 8 * i);
    return bytes;
}

std::optional<std::uint16_t> number(std::string_view text) {
    std::uint16_t value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    return error == std::errc() && end == text.data() + text.size() ? std::optional(value) : std::nullopt;
}

std::optional<std::uint16_t> protocol(std::string_view text) {
    constexpr std::pair<std::string_view, std::uint16_t> names[] = {
        {"tcp", IPPROTO_TCP},          {"udp", IPPROTO_UDP},       {"udplite", IPPROTO_UDPLITE}, {"icmp", IPPROTO_ICMP},
        {"ipv6-icmp", IPPROTO_ICMPV6}, {"icmpv6", IPPROTO_ICMPV6}, {"esp", IPPROTO_ESP},         {"ah", IPPROTO_AH},
        {"sctp", IPPROTO_SCTP},        {"dccp", IPPROTO_DCCP},     {"gre", IPPROTO_GRE},
    };
    for (const auto& [name, value] : names)
        if (name == text)
            return value;
    return number(text);
}

std::optional<AddressRange> address_range(std::string_view text) {
    if (const auto dash = text.find('-'); dash != text.npos) {
        const auto low = address(text.substr(0, dash)), high = address(text.substr(dash + 1));
        if (!low || !high || low->family != high->family)
            return std::nullopt;
        return AddressRange{low->family, low->bytes, high->bytes};
    }
    const auto slash = text.find('/');
    const auto base = address(text.substr(0, slash));
    if (!base)
        return std::nullopt;
    const std::uint16_t whole = base->family == IpFamily::ipv4 ? 32 : 128;
    const auto prefix = slash == text.npos ? std::optional(whole) : number(text.substr(slash + 1));
    if (!prefix || *prefix > whole) // a mask of another form
        return std::nullopt;
    AddressRange range{base->family, base->bytes, base->bytes};
    for (std::size_t bit = *prefix; bit < whole; bit++) {
        const auto mask = static_cast<std::uint8_t>(0x80 >> bit % 8);
        range.low[bit / 8] = static_cast<std::uint8_t>(range.low[bit / 8] & ~mask);
        range.high[bit / 8] |= mask;
    }
    return range;
}

std::string_view unquote(std::string_view word) {
    return word.size() >= 2 && word.starts_with('"') && word.ends_with('"') ? word.substr(1, word.size() - 2) : word;
}

} // namespace tsdroptrace::resolve_rule
