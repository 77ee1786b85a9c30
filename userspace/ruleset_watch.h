// SPDX-License-Identifier: GPL-2.0-only
// Who changed a ruleset, and what that did to the rules that drop. The kernel's records of changes say who and when;
// what changed is told by looking at the ruleset again, once it is quiet.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <optional>
#include <vector>

#include "bpf/event.h"
#include "decode/decode.h"
#include "model.h"
#include "resolve_rule/resolve_rule.h"
#include "resolve_rule/ruleset.h"

namespace tsdroptrace {

// Not thread-safe. Memory is bounded by the limits below and by the snapshots that it holds on to: one for each
// ruleset.
class RulesetWatch {
public:
    using TimePoint = std::chrono::steady_clock::time_point;
    using CurrentGeneration = std::function<resolve_rule::Generation(resolve_rule::SnapshotKind)>;
    using CurrentCounts = std::function<decode::ChangeCounts()>;

    static constexpr std::size_t max_foreign = 16; // rulesets of other namespaces; later ones are not watched
    // A burst has ended when nothing came for so long, or is told of in parts of that length: reading in the midst of
    // it seldom works.
    static constexpr std::chrono::milliseconds quiet{500}, longest{3000};
    static constexpr std::chrono::milliseconds between_looks{1000};
    static constexpr std::chrono::milliseconds patience{15000}; // then a change is told of without what it did

    // `snapshots` must outlive the RulesetWatch. `own_netns`: inode of the namespace that tsdroptrace runs in.
    RulesetWatch(resolve_rule::SnapshotSource& snapshots, CurrentGeneration current_generation,
                 CurrentCounts current_counts, std::uint32_t own_netns)
        : snapshots_(snapshots), current_generation_(std::move(current_generation)),
          current_counts_(std::move(current_counts)), own_netns_(own_netns) {}

    // From now on changes of this ruleset are told. Reads it, unless it is watched already or there are too many.
    // `was_empty`: there were no rules until now, since their kernel module was not there; what it finds is a change.
    void watch(resolve_rule::SnapshotKind kind, std::uint32_t netns, TimePoint now, bool was_empty = false);

    // A record from the kernel, which decode::read_ruleset_change has checked. Of a ruleset that is not watched:
    // forgotten.
    void changed(const tsdt_ruleset_change& record, TimePoint now);

    // What is to be told now. Takes no time when nothing is due; else as long as SnapshotSource::get, for each ruleset
    // that is. `now_ns` is CLOCK_REALTIME; `realtime_minus_mono_ns` as in decode::Machine. `last`: nothing will be told
    // later, so whatever has a record is due.
    std::vector<RulesetChange> look(TimePoint now, std::int64_t now_ns, std::int64_t realtime_minus_mono_ns,
                                    bool last = false);

private:
    struct Pending {
        Changer changer;
        std::uint32_t generation = 0;
    };
    struct Ruleset {
        resolve_rule::SnapshotKind kind;
        std::uint32_t netns;
        std::shared_ptr<const resolve_rule::Snapshot> told; // what the last line led to
        std::vector<Pending> pending;                       // at most RulesetChange::max_changers
        std::uint64_t other_changes = 0;                    // by more processes than that
        std::uint64_t last_mono_ns = 0;                     // of the newest record
        std::optional<TimePoint> first, last;               // when the records of `pending` came
        TimePoint looked{};
        std::uint64_t untold = 0; // as of the last line
    };

    Ruleset* find(resolve_rule::SnapshotKind kind, std::uint32_t netns);
    bool is_due(const Ruleset& ruleset, TimePoint now) const;
    std::uint64_t untold(const Ruleset& ruleset, const decode::ChangeCounts& counts) const;
    std::uint64_t on_their_way(const decode::ChangeCounts& counts) const;
    void tell(Ruleset& ruleset, const std::shared_ptr<const resolve_rule::Snapshot>& snapshot,
              const decode::ChangeCounts& counts, std::int64_t now_ns, std::int64_t realtime_minus_mono_ns,
              std::vector<RulesetChange>& out);

    resolve_rule::SnapshotSource& snapshots_;
    CurrentGeneration current_generation_;
    CurrentCounts current_counts_;
    std::uint32_t own_netns_;
    std::list<Ruleset> rulesets_;
    std::uint64_t received_ = 0;      // records, of all rulesets
    std::optional<TimePoint> behind_; // since when records have been on their way
};

} // namespace tsdroptrace
