// SPDX-License-Identifier: GPL-2.0-only
// Settings that explanations want to know.
#pragma once

#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "model.h"

namespace tsdroptrace::evidence {

struct WantedSysctl {
    IpFamily family;       // of the packets that it concerns; other: of all
    std::string_view name; // as sysctl prints it; {in_dev} is the device by which the packet came in
};

// To have another one as evidence, add a line.
std::span<const WantedSysctl> wanted_sysctls();

// As sysctl prints it: a dot in the device's name becomes a slash.
std::string sysctl_name(std::string_view name, std::string_view in_dev);

// Below /proc/sys; empty where the device's name cannot be one, or is not known and needed.
std::string sysctl_path(std::string_view name, std::string_view in_dev);

// The content of such a file as one short line: nullopt when it is something else.
std::optional<std::string> sysctl_value(std::string_view content);

// By name, those that can be read, in the network namespace of the calling thread.
std::map<std::string, std::string> read_sysctls(const Packet&);

} // namespace tsdroptrace::evidence
