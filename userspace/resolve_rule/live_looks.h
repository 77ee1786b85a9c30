// SPDX-License-Identifier: GPL-2.0-only
// Looks at the counters of the running machine's rules.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "resolve_rule/look.h"
#include "resolve_rule/ruleset_reader.h"

namespace tsdroptrace::resolve_rule {

// Not thread-safe. A look takes as long as the kernel needs to hand out the counters; as long as read_ruleset, up to
// three times, when the rules are others than at the look before.
class LiveLooks {
public:
    using Clock = std::chrono::steady_clock;

    static constexpr std::size_t max_rulesets = 64;  // kinds times namespaces; the longest unused one goes first
    static constexpr std::size_t max_rules = 50'000; // of one ruleset
    // Between two looks at one ruleset: three times as long as the look took, within these limits.
    static constexpr std::chrono::milliseconds shortest_pause{50}, longest_pause{3000};

    // `has_nf_tables`: whether the kernel has it now. Where it has not, there are no rules, and asking would load it.
    explicit LiveLooks(std::function<bool()> has_nf_tables) : has_nf_tables_(std::move(has_nf_tables)) {}

    // For who looks only to have looked lately.
    static constexpr std::chrono::seconds refresh_pause{1}, problem_pause{60};
    static constexpr int refresh_times = 50;

    // Whether the pause after the last look at it is over.
    bool may_look(SnapshotKind kind, std::uint32_t netns) const;

    // Of the rulesets that have been looked at, those whose last look is so old that another one costs little.
    std::vector<std::pair<SnapshotKind, std::uint32_t>> outdated() const;

    // Always a look: what went wrong is its problem.
    Look look(SnapshotKind kind, std::uint32_t netns);

private:
    struct Ruleset {
        SnapshotKind kind;
        std::uint32_t netns;
        std::shared_ptr<const Snapshot> snapshot;
        std::uint32_t generation = 0;           // ours: counts the snapshots
        std::uint32_t nft_generation = 0;       // the kernel's, of the snapshot
        std::vector<LegacyTable> legacy_tables; // of the snapshot, without counters
        Clock::time_point not_again_until{}, outdated_from{};
    };
    struct Counters;

    Ruleset& find(SnapshotKind kind, std::uint32_t netns);
    std::optional<std::string> read(const Ruleset& ruleset, Counters& counters) const;
    Result<Snapshot> read_rules(const Ruleset& ruleset, const Counters& counters) const;
    static bool same_rules(const Ruleset& ruleset, const Counters& counters);
    std::optional<std::string> look(Ruleset& ruleset, Look& look);

    std::function<bool()> has_nf_tables_;
    std::list<Ruleset> rulesets_; // most recently used first
    // Beyond the rulesets that are kept: one that is forgotten and comes back must not count from the start.
    std::uint32_t generations_ = 0;
};

} // namespace tsdroptrace::resolve_rule
