// SPDX-License-Identifier: GPL-2.0-only
// Snapshots of the running machine, read when the first drop asks for them and kept while they are true.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <list>
#include <memory>
#include <set>
#include <string>

#include "resolve_rule/resolve_rule.h"
#include "resolve_rule/ruleset.h"
#include "resolve_rule/ruleset_reader.h"
#include "util/result.h"

namespace tsdroptrace::resolve_rule {

// Not thread-safe. get() may take as long as read_ruleset does, and then as often as three times.
class LiveSnapshots : public SnapshotSource {
public:
    using CurrentGeneration = std::function<Generation(SnapshotKind)>;
    using Observer = std::function<void(const Snapshot&)>;
    using Reader = std::function<Result<Snapshot>(SnapshotKind, std::uint32_t netns, std::size_t max_rules)>;

    static constexpr std::size_t max_past =
        15; // snapshots kept beside the newest: records may wait while rulesets change
    static constexpr std::size_t max_rulesets = 64;   // kinds times namespaces; the longest unused one goes first
    static constexpr std::size_t max_rules = 100'000; // in all that is kept, about 25 MB

    // `current_generation`: the counter that the kernel's side moves with every change of a ruleset of that
    // kind, in any network namespace. `on_snapshot` sees each snapshot that is kept, once, before any rule is
    // resolved with it. `reader` is read_ruleset but for tests.
    explicit LiveSnapshots(CurrentGeneration current_generation, Observer on_snapshot = {},
                           Reader reader = read_ruleset);

    // A snapshot carries a generation only if the counter stood there before and after reading, and no change was
    // under way; reading waits for one for up to 3 ms. Reading takes at most a
    // quarter of the time when rulesets change all the while; drops in between get the newest snapshot there
    // is, or, when there is none: an empty one of another generation if the ruleset has changed, null if it has
    // not. Each new problem goes to the log once.
    std::shared_ptr<const Snapshot> get(SnapshotKind kind, std::uint32_t netns, std::uint32_t generation) override;

private:
    using Clock = std::chrono::steady_clock;

    struct Ruleset {
        SnapshotKind kind;
        std::uint32_t netns;
        std::shared_ptr<const Snapshot> newest;
        std::deque<std::shared_ptr<const Snapshot>> past; // newest first
        Clock::time_point not_again_until{};
    };

    Ruleset& find(SnapshotKind kind, std::uint32_t netns);
    Generation quiet_generation(SnapshotKind kind) const;
    std::shared_ptr<const Snapshot> read(Ruleset& ruleset);
    void keep(Ruleset& ruleset, std::shared_ptr<const Snapshot> snapshot);
    void log_once(const std::string& problem);

    CurrentGeneration current_generation_;
    Observer on_snapshot_;
    Reader reader_;
    std::list<Ruleset> rulesets_; // most recently used first
    std::set<std::string> logged_;
};

} // namespace tsdroptrace::resolve_rule
