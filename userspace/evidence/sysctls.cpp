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

constexpr std::size_t max_value = 64;

} // namespace

std::string sysctl_path(std::string_view name) {
    std::string path = "/";
    for (const char c : name)
        path += c == '.' ? '/' : c == '/' ? '.' : c; // "net.ipv4.conf.eth0/7.rp_filter": the dot of a VLAN device
    for (const std::string_view place : {"//", "/./", "/../"})
        if ((path + '/').find(place) != std::string::npos)
            return {};
    return "/proc/sys" + path;
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

std::map<std::string, std::string> read_sysctls(const std::set<std::string>& names) {
    std::map<std::string, std::string> values;
    for (const std::string& name : names) {
        const std::string path = sysctl_path(name);
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
            values.emplace(name, std::move(*value));
    }
    return values;
}

} // namespace tsdroptrace::evidence
