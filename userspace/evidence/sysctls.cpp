// SPDX-License-Identifier: GPL-2.0-only
#include "evidence/sysctls.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include <fcntl.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include "util/fd.h"

namespace tsdroptrace::evidence {
namespace {

constexpr WantedSysctl wanted[] = {
    {IpFamily::ipv4, "net.ipv4.ip_forward"},
    {IpFamily::ipv4, "net.ipv4.conf.{in_dev}.forwarding"},
    {IpFamily::ipv4, "net.ipv4.conf.all.rp_filter"},
    {IpFamily::ipv4, "net.ipv4.conf.{in_dev}.rp_filter"},
    {IpFamily::ipv4, "net.ipv4.conf.all.src_valid_mark"},
    {IpFamily::ipv4, "net.ipv4.conf.{in_dev}.src_valid_mark"},
    {IpFamily::ipv4, "net.ipv4.conf.all.accept_local"},
    {IpFamily::ipv4, "net.ipv4.conf.{in_dev}.accept_local"},
    {IpFamily::ipv4, "net.ipv4.conf.{in_dev}.route_localnet"},
    {IpFamily::ipv6, "net.ipv6.conf.all.forwarding"},
    {IpFamily::ipv6, "net.ipv6.conf.all.disable_ipv6"},
    {IpFamily::ipv6, "net.ipv6.conf.{in_dev}.disable_ipv6"},
    {IpFamily::other, "net.netfilter.nf_conntrack_count"},
    {IpFamily::other, "net.netfilter.nf_conntrack_max"},
};

constexpr std::string_view device = "{in_dev}";
constexpr std::size_t max_value = 64;

std::string with_device(std::string_view name, std::string_view in_dev, char separator) {
    std::string out;
    for (;;) {
        const std::size_t place = name.find(device);
        std::string part(name.substr(0, place));
        if (separator == '/')
            std::ranges::replace(part, '.', '/');
        out += part;
        if (place == std::string_view::npos)
            return out;
        std::string shown(in_dev);
        if (separator == '.')
            std::ranges::replace(shown, '.', '/');
        out += shown;
        name.remove_prefix(place + device.size());
    }
}

} // namespace

std::span<const WantedSysctl> wanted_sysctls() {
    return wanted;
}

std::string sysctl_name(std::string_view name, std::string_view in_dev) {
    return with_device(name, in_dev, '.');
}

std::string sysctl_path(std::string_view name, std::string_view in_dev) {
    const bool needed = name.find(device) != std::string_view::npos;
    if (needed && (in_dev.empty() || in_dev == "." || in_dev == ".." || in_dev.find('/') != std::string_view::npos))
        return {};
    return "/proc/sys/" + with_device(name, in_dev, '/');
}

std::optional<std::string> sysctl_value(std::string_view content) {
    if (content.ends_with('\n'))
        content.remove_suffix(1);
    if (content.empty() || content.size() > max_value)
        return std::nullopt;
    std::string value(content);
    std::ranges::replace(value, '\t', ' '); // between the numbers of a list
    const bool printable = std::ranges::all_of(value, [](char c) { return c >= ' ' && c <= '~'; });
    return printable ? std::optional(std::move(value)) : std::nullopt;
}

std::map<std::string, std::string> read_sysctls(const Packet& packet) {
    const std::string in_dev = packet.in_dev.value_or("");
    std::map<std::string, std::string> values;
    for (const WantedSysctl& sysctl : wanted) {
        if (sysctl.family != IpFamily::other && sysctl.family != packet.family)
            continue;
        const std::string path = sysctl_path(sysctl.name, in_dev);
        if (path.empty())
            continue;
        const Fd file(open(path.c_str(), O_RDONLY | O_CLOEXEC));
        std::array<char, max_value + 2> buffer; // one byte more than the longest that is taken
        const ssize_t size = file ? read(file.get(), buffer.data(), buffer.size()) : -1;
        if (size < 0) {
            spdlog::debug("cannot read {}: {}", path, std::strerror(errno));
            continue;
        }
        if (auto value = sysctl_value({buffer.data(), static_cast<std::size_t>(size)}))
            values.emplace(sysctl_name(sysctl.name, in_dev), std::move(*value));
    }
    return values;
}

} // namespace tsdroptrace::evidence
