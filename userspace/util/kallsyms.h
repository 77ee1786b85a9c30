// SPDX-License-Identifier: GPL-2.0-only
// The kernel's own list of its symbols, /proc/kallsyms: read line by line when it is asked, and not kept.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <string_view>

namespace tsdroptrace {

struct Symbol {
    std::uint64_t address = 0;
    std::uint64_t size = 0; // up to the next symbol; 0 when that is not known
    std::string module;     // "[nf_tables]"; empty for what is vmlinux's own
};

// Where `names` are: those that the kernel and the modules loaded now have, and that stand for one symbol only. Empty
// where addresses are hidden (kptr_restrict, without CAP_SYSLOG). `size` holds for vmlinux's own only.
std::map<std::string, Symbol, std::less<>> find_symbols(const std::set<std::string, std::less<>>& names,
                                                        const char* path = "/proc/kallsyms");

// A code address as the kernel's %pS prints it, "symbol+0x1/0x2 [module]"; empty when it lies in no function, such as one
// of a module that is gone.
std::string describe_address(std::uint64_t address, const char* path = "/proc/kallsyms",
                             const char* modules_path = "/proc/modules");

// The function of such a description: "ip_rcv_finish_core.isra.0+0x12/0x340 [mod]" is "ip_rcv_finish_core", because
// compilers append what they did to a function. Empty for an empty or purely numeric one. A part of `description`.
std::string_view symbol_of(std::string_view description);
// Its module, "mod"; empty for what is vmlinux's own. A part of `description`.
std::string_view module_of(std::string_view description);
// Whether the address lies in that module, as it is loaded now.
bool lies_in_module(std::uint64_t address, std::string_view module, const char* path = "/proc/modules");

} // namespace tsdroptrace
