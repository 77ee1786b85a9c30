// SPDX-License-Identifier: GPL-2.0-only
// What a tracer cannot go below: BPF programs that do nothing, attached where another one's programs are.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "util/fd.h"

namespace bench {

struct Place {
    std::uint32_t attach_type; // enum bpf_attach_type
    std::uint32_t btf_object;  // id of the kernel's or the module's types
    std::uint32_t btf_id;      // of the function or tracepoint in them
    std::string section;       // "fentry/nft_do_chain"
};

// Where BPF programs are attached now, anybody's: in a VM that is tsdroptrace alone. Kernel 5.13 and later
// (bpf_link_info.tracing.target_obj_id). Exits when there is none.
std::vector<Place> attached_places();

// The smallest set that can tell a table's verdict: both ends of each function that runs a packet through a table
// (`places` tells which of them there are) and kfree_skb.
std::vector<Place> pair_of(const std::vector<Place>& places);

// Detached when destroyed.
class EmptyPrograms {
public:
    explicit EmptyPrograms(const std::vector<Place>& places); // exits when the kernel does not take one

private:
    std::vector<tsdroptrace::Fd> links_;
};

} // namespace bench
