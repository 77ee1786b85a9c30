// SPDX-License-Identifier: GPL-2.0-only
#include "check/target.h"

#include <algorithm>
#include <charconv>
#include <iterator>
#include <optional>

#include <arpa/inet.h>
#include <fmt/format.h>

#include "util/text.h"

namespace tsdroptrace::check {
namespace {

constexpr struct {
    std::string_view name;
    Kind kind;
} kinds[] = {{"udp", Kind::udp}, {"tcp", Kind::tcp}, {"icmp", Kind::icmp}};

constexpr std::string_view examples = "100.100.2.136:53/udp, [fd7a::53]:443/tcp or 100.100.2.136/icmp";

Error wrong(std::string_view text, std::string_view what) {
    return {ErrorKind::command_line, fmt::format("{}: {}", text.empty() ? "\"\"" : printable(text), what)};
}

std::string_view name_of(Kind kind) {
    return std::find_if(std::begin(kinds), std::end(kinds), [&](auto& entry) { return entry.kind == kind; })->name;
}

std::optional<Address> parse_address(std::string_view text) {
    const std::string typed(text);
    Address address;
    if (typed.find('\0') != std::string::npos) // inet_pton would stop there
        return std::nullopt;
    if (inet_pton(AF_INET, typed.c_str(), address.bytes.data()) == 1)
        address.family = IpFamily::ipv4;
    else if (inet_pton(AF_INET6, typed.c_str(), address.bytes.data()) == 1)
        address.family = IpFamily::ipv6;
    else
        return std::nullopt;
    return address;
}

// Addresses to which nothing is sent, or not to one host.
bool is_host(const Address& address) {
    const auto& bytes = address.bytes;
    const bool unspecified = std::ranges::all_of(bytes, [](std::uint8_t byte) { return byte == 0; });
    if (address.family == IpFamily::ipv4)
        return !unspecified && bytes[0] < 224;
    const bool mapped = std::all_of(bytes.begin(), bytes.begin() + 10, [](std::uint8_t byte) { return byte == 0; }) &&
                        bytes[10] == 0xff && bytes[11] == 0xff;
    return !unspecified && !mapped && bytes[0] != 0xff;
}

std::optional<std::uint16_t> parse_port(std::string_view text) {
    std::uint16_t port = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), port);
    return error == std::errc{} && end == text.data() + text.size() && port != 0 ? std::optional(port) : std::nullopt;
}

struct Host {
    std::string_view address;
    std::optional<std::string_view> port;
};

// nullopt: brackets that do not fit.
std::optional<Host> split(std::string_view text) {
    if (text.starts_with('[')) {
        const auto end = text.find(']');
        if (end == std::string_view::npos)
            return std::nullopt;
        const Host host{text.substr(1, end - 1), std::nullopt};
        if (end + 1 == text.size())
            return host;
        return text[end + 1] == ':' ? std::optional(Host{host.address, text.substr(end + 2)}) : std::nullopt;
    }
    const auto colon = text.find(':');
    if (colon == std::string_view::npos || text.find(':', colon + 1) != std::string_view::npos)
        return Host{text, std::nullopt};
    return Host{text.substr(0, colon), text.substr(colon + 1)};
}

} // namespace

std::string Target::text() const {
    if (kind == Kind::icmp)
        return fmt::format("{}/{}", address.text(), name_of(kind));
    const bool brackets = address.family == IpFamily::ipv6;
    return fmt::format("{}{}{}:{}/{}", brackets ? "[" : "", address.text(), brackets ? "]" : "", port, name_of(kind));
}

Result<Target> parse_target(std::string_view text) {
    const auto slash = text.rfind('/');
    const std::string_view protocol = slash == std::string_view::npos ? "" : text.substr(slash + 1);
    const auto known =
        std::find_if(std::begin(kinds), std::end(kinds), [&](auto& kind) { return kind.name == protocol; });
    if (known == std::end(kinds))
        return wrong(text, fmt::format("expected /udp, /tcp or /icmp at its end, as in {}", examples));

    const auto host = split(text.substr(0, slash));
    const auto address = host ? parse_address(host->address) : std::nullopt;
    if (!address)
        return wrong(text, fmt::format("expected an address, as in {} (names are not looked up)", examples));
    if (!is_host(*address))
        return wrong(text,
                     fmt::format("{} is not the address of one host that packets can be sent to", address->text()));

    Target target{*address, known->kind, 0};
    if (target.kind == Kind::icmp)
        return host->port ? Result<Target>(wrong(text, fmt::format("ICMP has no ports: type {}", target.text())))
                          : Result<Target>(target);
    const auto port = host->port ? parse_port(*host->port) : std::nullopt;
    target.port = port.value_or(53);
    if (!port)
        return wrong(text, fmt::format("expected a port from 1 to 65535, as in {}", target.text()));
    return target;
}

} // namespace tsdroptrace::check
