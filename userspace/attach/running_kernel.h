// SPDX-License-Identifier: GPL-2.0-only
// The running kernel: its version, what it offers, and the modules that it has now. Read anew each time.
#pragma once

#include <compare>
#include <cstdint>
#include <map>
#include <set>
#include <string>

namespace tsdroptrace::attach {

struct KernelVersion {
    unsigned major = 0, minor = 0;
    auto operator<=>(const KernelVersion&) const = default;
};

// By its release, "6.12.9-amd64"; 0.0 where that says none. Distributions carry changes back: for what a kernel can do,
// its types are to be asked where they tell.
KernelVersion running_kernel();

// Whether the kernel gives its own types (CONFIG_DEBUG_INFO_BTF, 5.4), without which no program can be fitted to it.
bool has_btf();
// Whether probes can be had from perf_event_open() (CONFIG_KPROBE_EVENTS; without a file for each, 4.17).
bool has_kprobes();

// "nf_tables". True also for one that is built in, if it has parameters: only of one that can be loaded this says
// whether it is.
bool module_is_loaded(const char* module);

// The modules that have types of their own, and so functions to attach to; "vmlinux" is among them. None before 5.11.
std::set<std::string> modules_with_btf();

// The modules that are loaded, "[nf_tables]", with what tells one from the same that has been loaded again, perhaps to
// where it was before: its directory is another one. (/sys/module is there for the ones that are built in, too.) Empty
// where there are no modules.
std::map<std::string, std::uint64_t> modules_loaded();

} // namespace tsdroptrace::attach
