// SPDX-License-Identifier: GPL-2.0-only
// From what the kernel knows of the rule (handles, offsets, names) to what a person calls it: its number,
// its text as the user's own tool prints it, and the way through the chains that led to it.
//
// Pure but for the SnapshotSource: with recorded snapshots it resolves recorded drops.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bpf/event.h"
#include "model.h"
#include "resolve_rule/ruleset.h"

namespace tsdroptrace::resolve_rule {

class SnapshotSource {
public:
    virtual ~SnapshotSource() = default;
    // The ruleset of that kind in that network namespace (inode) at that generation. When it cannot be had
    // any more, the newest one, whose generation then differs; null when none could be read at all.
    virtual std::shared_ptr<const Snapshot> get(SnapshotKind kind, std::uint32_t netns, std::uint32_t generation) = 0;
};

// The ruleset that the rule or policy of a cause is in; nullopt when it names neither, or it is one that is not read.
std::optional<SnapshotKind> snapshot_kind(const tsdt_cause& cause);

// The chains of the table that the chain's rules hand packets to, each once: they tell who is at home there.
std::vector<std::string> jumps_of(const SnapshotChain& from, const SnapshotTable& table);

// Not thread-safe: one Resolver belongs to one thread.
class Resolver {
public:
    static constexpr std::size_t max_cached = 4096;

    // `source` must outlive the Resolver.
    explicit Resolver(SnapshotSource& source) : source_(source) {}

    // The rule or policy of a cause; null when the cause names neither. `drop` is one of its packets: its
    // jump stack decides the path in x_tables.
    //
    // What the kernel said (table, chain, number, handle, the nf_tables path) is always there. Text, the
    // owner tool and the x_tables path come from the snapshot of the cause's own generation, and only if the
    // snapshot agrees with the kernel about that rule; otherwise the rule is stale and has no text. Without
    // any snapshot, or where the rule's table could not be read, there is no text either, but nothing is
    // known to have changed: not stale.
    std::shared_ptr<const Rule> resolve(const tsdt_cause& cause, const tsdt_drop& drop);

private:
    using CacheKey = std::pair<std::uint32_t, std::array<std::uint32_t, TSDT_JUMPSTACK_MAX>>;

    SnapshotSource& source_;
    std::map<CacheKey, std::shared_ptr<const Rule>> cache_;
};

} // namespace tsdroptrace::resolve_rule
