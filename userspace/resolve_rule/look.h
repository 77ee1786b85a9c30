// SPDX-License-Identifier: GPL-2.0-only
// The counters of a ruleset's rules at one moment. Plain data, so that a recording can hold it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "resolve_rule/ruleset.h"

namespace tsdroptrace::resolve_rule {

struct Counts {
    std::uint64_t packets = 0, bytes = 0;
};

// One look at the counters of a ruleset. They are in the order of its snapshot: of each chain the rules, then one place
// for its policy.
struct Look {
    static constexpr std::uint64_t no_counter = UINT64_MAX; // in `packets` and `bytes` of what has none

    SnapshotKind kind = SnapshotKind::nf_tables;
    std::uint32_t netns = 0;                       // inode
    std::uint32_t generation = 0;                  // of the snapshot: the same number, the same rules
    std::int64_t begin_ns = 0, end_ns = 0;         // CLOCK_MONOTONIC: the counters were read in between
    std::vector<std::uint64_t> packets, bytes;     // as many as the snapshot has places
    std::string problem;                           // why it shows nothing, or not all rules; empty when it shows all
    std::shared_ptr<const Snapshot> snapshot = {}; // null with some problems; not part of a recording
};

// How many counters a look at this ruleset has.
inline std::size_t places(const Snapshot& snapshot) {
    std::size_t count = 0;
    for (const SnapshotTable& table : snapshot.tables)
        for (const SnapshotChain& chain : table.chains)
            count += chain.rules.size() + 1;
    return count;
}

} // namespace tsdroptrace::resolve_rule
