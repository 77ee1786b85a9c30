// SPDX-License-Identifier: GPL-2.0-only
// Settings of the kernel, by the names that sysctl(8) prints.
#pragma once

#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>

namespace tsdroptrace::evidence {

// Below /proc/sys; empty where that would be no such place.
std::string sysctl_path(std::string_view name);

// The content of such a file as one short line: nullopt when it is something else.
std::optional<std::string> sysctl_value(std::string_view content);

// By name, those that can be read, in the network namespace of the calling thread.
std::map<std::string, std::string> read_sysctls(const std::set<std::string>& names);

} // namespace tsdroptrace::evidence
