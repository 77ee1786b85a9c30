// SPDX-License-Identifier: GPL-2.0-only
#include "attach/running_kernel.h"

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <system_error>

#include <fmt/format.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <unistd.h>

namespace tsdroptrace::attach {
namespace {

bool readable(const std::string& path) {
    return access(path.c_str(), R_OK) == 0;
}

} // namespace

KernelVersion running_kernel() {
    utsname name{};
    KernelVersion version;
    if (uname(&name) == 0)
        (void)std::sscanf(name.release, "%u.%u", &version.major, &version.minor);
    return version;
}

bool has_btf() {
    return readable("/sys/kernel/btf/vmlinux");
}

bool has_kprobes() {
    return readable("/sys/bus/event_source/devices/kprobe/type");
}

bool module_is_loaded(const char* module) {
    return readable(std::string("/sys/module/") + module);
}

std::set<std::string> modules_with_btf() {
    std::set<std::string> modules;
    std::error_code ignored;
    for (const auto& entry : std::filesystem::directory_iterator("/sys/kernel/btf", ignored))
        modules.insert(entry.path().filename());
    return modules;
}

std::map<std::string, std::uint64_t> modules_loaded() {
    std::map<std::string, std::uint64_t> modules;
    std::ifstream file("/proc/modules"); // "nf_tables 249856 0 - Live 0xffffffffc0a1b000"
    for (std::string line; std::getline(file, line);) {
        const std::string name = line.substr(0, line.find(' '));
        struct stat directory {};
        if (stat(("/sys/module/" + name).c_str(), &directory) == 0)
            modules.emplace(fmt::format("[{}]", name), directory.st_ino);
    }
    return modules;
}

} // namespace tsdroptrace::attach
