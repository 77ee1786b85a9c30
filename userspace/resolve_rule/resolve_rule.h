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
#include "resolve_rule/set_element.h"

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

    // The elements of sets and verdict maps that a packet has met in the rule of nftables that resolve() has given for
    // its cause, as the snapshot of that generation has them. What is read of sets is bounded, and so is what is kept:
    // where it is not there any more, none are known. (See RuleLookups.)
    std::vector<SetElement> elements(const tsdt_cause& cause, const Packet& packet) const;

private:
    using CacheKey = std::pair<std::uint32_t, std::array<std::uint32_t, TSDT_JUMPSTACK_MAX>>;

    struct Resolved {
        std::shared_ptr<const Rule> rule;
        std::uint32_t generation = 0;
        std::shared_ptr<const RuleLookups> lookups; // null: it has none, or they are not kept any more
    };
    static constexpr std::size_t max_lookups_size = 8u << 20; // bytes

    std::shared_ptr<const RuleLookups> lookups_of(const Rule& rule, const tsdt_cause& cause,
                                                  const SnapshotTable& table);
    void forget_lookups(std::uint32_t generation);

    SnapshotSource& source_;
    std::map<CacheKey, Resolved> cache_;
    std::map<std::string, std::shared_ptr<const SetElements>> sets_; // by ruleset, table, name, and what is asked
    std::size_t lookups_size_ = 0;                                   // of these, and of what the rules have
};

} // namespace tsdroptrace::resolve_rule
