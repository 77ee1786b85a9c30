// SPDX-License-Identifier: GPL-2.0-only
// What is asked for, and how the programs learn it: constants before they are loaded, maps afterwards.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "attach/bpf_object.h"
#include "attach/kernel_types.h"
#include "options.h"

namespace tsdroptrace::attach {

// What is counted and handed on; decided in the kernel. Lists that are empty do not narrow it.
struct Filter {
    bool all = false; // every remote side; `ranges` is then ignored
    bool to = true, from = true;
    std::vector<Cidr> ranges;         // the remote side
    std::vector<Cidr> locals;         // the other one
    std::vector<std::uint16_t> ports; // host order
    std::vector<std::uint8_t> protos; // IPPROTO_*
    std::vector<std::string> devices; // names
    std::vector<std::uint32_t> netns; // inodes
    std::vector<std::string> reasons; // names, with SKB_DROP_REASON_ or without, in whatever case
    bool rules_only = false;
    bool seen = true; // count the packets that pass
};

// Sets the constants that say what is to be looked at, before loading.
void set_filter_constants(const BpfObject& object, const Filter& filter);

// By the first 16 bits of an address, as they lie in memory: whether a range may hold it. 65536 values, 0 or 1.
std::vector<std::uint8_t> first_bits(const Filter& filter, IpFamily family);

// Sets the same for the programs that see every packet, before loading.
void set_seen_constants(const BpfObject& object, const Filter& filter);

// Of the programs that see every packet, those that cost least where they can be loaded: with bpf_rdonly_cast (6.2),
// which `types` must have been looked through for. All others are not to be loaded; none is unless `any`.
void choose_seen(const BpfObject& object, const Filter& filter, const KernelTypes& types, bool any);

// Puts the lists of the filter into the maps, after loading. `reasons`: the numbers of its reasons on this kernel.
// Returns 0 or a negative error, the kernel's own: that of a list which is longer than its map, too.
int fill_filter(const BpfObject& object, const Filter& filter, const std::vector<std::uint32_t>& reasons);

} // namespace tsdroptrace::attach
