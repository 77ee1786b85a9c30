// SPDX-License-Identifier: GPL-2.0-only
// What was at an address of the kernel's code when a packet died, from when to when: a module that is loaded again may
// lie elsewhere. For 5.10, whose programs cannot print an address themselves (bpf_snprintf, 5.13): here it is looked up
// later.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace tsdroptrace::attach {

class Locations {
public:
    // When the module was loaded (CLOCK_MONOTONIC); 0: before the start, or it is vmlinux (""); the end of all time:
    // that was not kept. Must hold for as long as this lives.
    using LoadedNs = std::function<std::uint64_t(std::string_view module)>;

    explicit Locations(LoadedNs loaded_ns, const char* kallsyms = "/proc/kallsyms",
                       const char* modules = "/proc/modules")
        : loaded_ns_(std::move(loaded_ns)), kallsyms_(kallsyms), modules_(modules) {}

    // What was at that address when a packet died (CLOCK_MONOTONIC), "symbol+0x1/0x2 [module]"; empty where that is not
    // known any more. Reads /proc/kallsyms for an address that is new, or whose module may have gone.
    std::string locate(std::uint64_t address, std::uint64_t died_ns);

private:
    struct Location {
        std::uint64_t from_ns, until_ns;
        std::string text;
    };

    LoadedNs loaded_ns_;
    const char *kallsyms_, *modules_;
    std::map<std::uint64_t, std::vector<Location>> locations_;
};

} // namespace tsdroptrace::attach
