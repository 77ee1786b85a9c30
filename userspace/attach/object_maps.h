// SPDX-License-Identifier: GPL-2.0-only
// The maps of an object, before it is loaded and just after: their sizes, which ones it shares with the objects that
// are loaded already, and what lies in them from the start.
#pragma once

#include <cstdint>

#include "attach/bpf_object.h"

namespace tsdroptrace::attach {

// How many chunks of candidate rules each CPU gets, for IPv4 and again for IPv6: 4 MB in all, 8192 rules at most.
std::uint32_t pool_chunks(int cpus);

// The same for ARP, and for bridges: few have many rules there.
std::uint32_t pool_chunks_small(int cpus);

// Gives the maps that are a part for each CPU their sizes, before loading.
void set_sizes(const BpfObject& object, int cpus);

// Creates the map of an object's variables, which are all zero: libbpf would copy these megabytes of zeros into it. For
// the first object, before loading. Returns 0 or a negative error. Needs maps that can be mapped (BPF_F_MMAPABLE, 5.5).
int create_variables(const BpfObject& object);

// Has an object that is to be loaded use the maps of `shared`, which is loaded, but for those that each has of its own:
// constants, and the program that emits. Returns 0 or a negative error.
int share_maps(const BpfObject& object, const BpfObject& shared);

// Puts in which hook is called by which function (attach/hook_callers.h), after loading. Returns 0 or a negative error;
// 0 also on 5.10, whose object has no use for it.
int fill_hook_callers(const BpfObject& object);

} // namespace tsdroptrace::attach
