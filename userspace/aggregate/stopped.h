// SPDX-License-Identifier: GPL-2.0-only
// Which rules drop no more since a ruleset changed. Pure: changes and counts in, verdicts out.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "model.h"

namespace tsdroptrace::aggregate {

// A rule has stopped dropping when it dropped until shortly before a change of a chain on its packets' way, nothing
// since, and so many packets of the filter came meanwhile that it would have dropped one of them. That it has dropped
// nothing is counted by the kernel; that the change is why is inferred from the times.
//
// A rule is the same one whatever its number or handle: changes move rules, and what goes on dropping has not stopped.
class Stops {
public:
    static constexpr std::int64_t second_ns = 1'000'000'000;
    static constexpr std::uint64_t least_packets = 2;              // of a rule, before it may be said to have stopped
    static constexpr std::int64_t most_before_ns = 30 * second_ns; // between its last drop and the change
    // Without a drop after the change: thrice the time that lay between two drops so far, within these bounds.
    static constexpr std::int64_t least_settled_ns = 3 * second_ns, most_settled_ns = 60 * second_ns;
    static constexpr std::int64_t kept_ns = 600 * second_ns;        // so long packets that come may speak for a change
    static constexpr std::size_t max_changes = 64, max_counts = 32; // the oldest make room

    // As it is told, so some seconds after it came about.
    void change(const RulesetChange& change);

    // Whether judge() may have something to say, now or when more has been counted.
    bool open() const { return open_; }

    // The counts, once a second while open(), and as soon as it is known that a ruleset is changing. Each rule is
    // returned once, until it drops again. `settled`: all packets that the counts hold have their rule; otherwise
    // nothing is returned. Without Summary::seen nothing ever is.
    std::vector<Stopped> judge(const Summary& now, bool settled);

private:
    struct Counts {
        std::int64_t time_ns = 0;
        Seen seen;
        std::uint64_t dropped_to = 0, dropped_from = 0;
        std::uint64_t lost_causes = 0; // drops that are in no count
    };
    struct Change {
        RulesetChange change;
        std::optional<Counts> after; // the first counts after it
    };

    static Counts counts_of(const Summary& summary);
    static bool would_have_dropped(const Cause& cause, const Counts& before, const Counts& now);
    std::optional<Stopped> judge(const Cause& cause, const Summary& now, const Counts& counts, bool settled);

    std::deque<Change> changes_;
    // The newest of those that are not kept any more: a rule that has not dropped since is not judged.
    std::int64_t forgotten_ns_ = 0;
    std::deque<Counts> counts_;
    std::map<std::string, std::int64_t> told_; // by rule: its last drop then; Aggregator bounds how many
    bool open_ = false;
};

} // namespace tsdroptrace::aggregate
