// SPDX-License-Identifier: GPL-2.0-only
#include "resolve_rule/live_snapshots.h"

#include <algorithm>
#include <chrono>
#include <thread>

#include <spdlog/spdlog.h>

#include "util/text.h"

namespace tsdroptrace::resolve_rule {
namespace {

constexpr int max_attempts = 3;
constexpr std::size_t max_logged = 256;
constexpr std::chrono::seconds longest_pause{3};

// The elements of sets count for as many rules as take that much memory.
std::size_t count_rules(const std::shared_ptr<const Snapshot>& snapshot) {
    constexpr std::size_t bytes_of_rule = 256;
    std::size_t count = 0, bytes = 0;
    if (snapshot) {
        for (const SnapshotTable& table : snapshot->tables) {
            for (const SnapshotChain& chain : table.chains)
                count += chain.rules.size();
            for (const SnapshotSet& set : table.sets)
                bytes += set.elements.size();
        }
    }
    return count + bytes / bytes_of_rule;
}

} // namespace

LiveSnapshots::LiveSnapshots(CurrentGeneration current_generation, Observer on_snapshot, Reader reader)
    : current_generation_(std::move(current_generation)), on_snapshot_(std::move(on_snapshot)),
      reader_(std::move(reader)) {}

std::shared_ptr<const Snapshot> LiveSnapshots::get(SnapshotKind kind, std::uint32_t netns, std::uint32_t generation) {
    Ruleset& ruleset = find(kind, netns);
    if (ruleset.newest && ruleset.newest->generation == generation)
        return ruleset.newest;
    for (const auto& kept : ruleset.past)
        if (kept->generation == generation)
            return kept;
    // A ruleset of the past cannot be read any more. Reading today's only tells that it is another one, and is
    // worth it once.
    bool past = current_generation_(kind).number != generation;
    bool readable = !(past && ruleset.newest) && Clock::now() >= ruleset.not_again_until;
    if (auto answer = readable ? read(ruleset) : ruleset.newest)
        return answer;

    // Nothing to show, but whether it has changed is known: then an empty snapshot of another generation.
    const Generation now = current_generation_(kind);
    if (now.number == generation && !now.changing)
        return nullptr;
    auto changed = std::make_shared<Snapshot>();
    changed->kind = kind;
    changed->netns = netns;
    changed->generation = generation + 1;
    changed->problems = {"the ruleset kept changing while it was read"};
    return changed;
}

LiveSnapshots::Ruleset& LiveSnapshots::find(SnapshotKind kind, std::uint32_t netns) {
    auto found = std::find_if(rulesets_.begin(), rulesets_.end(),
                              [&](const Ruleset& ruleset) { return ruleset.kind == kind && ruleset.netns == netns; });
    if (found != rulesets_.end()) {
        rulesets_.splice(rulesets_.begin(), rulesets_, found);
    } else {
        if (rulesets_.size() >= max_rulesets)
            rulesets_.pop_back();
        rulesets_.push_front({kind, netns, nullptr, {}, {}});
    }
    return rulesets_.front();
}

Generation LiveSnapshots::quiet_generation(SnapshotKind kind) const {
    Generation generation = current_generation_(kind);
    for (int wait = 0; wait < 3 && generation.changing; wait++) {
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
        generation = current_generation_(kind);
    }
    return generation;
}

std::shared_ptr<const Snapshot> LiveSnapshots::read(Ruleset& ruleset) {
    auto begin = Clock::now();
    bool quiet = false;
    for (int attempt = 0; attempt < max_attempts && !quiet; attempt++) {
        Generation before = quiet_generation(ruleset.kind);
        // What would be read while a change is under way may be the ruleset before or after it.
        auto snapshot =
            before.changing ? Result<Snapshot>(Snapshot{}) : reader_(ruleset.kind, ruleset.netns, max_rules);
        if (!snapshot) {
            log_once(snapshot.error().message);
            break;
        }
        Generation after = current_generation_(ruleset.kind);
        quiet = before.number == after.number && !before.changing;
        if (quiet) {
            snapshot->generation = after.number;
            keep(ruleset, std::make_shared<Snapshot>(std::move(*snapshot)));
        }
    }
    auto end = Clock::now();
    ruleset.not_again_until = end + std::min<Clock::duration>(3 * (end - begin), longest_pause);
    return ruleset.newest;
}

void LiveSnapshots::keep(Ruleset& ruleset, std::shared_ptr<const Snapshot> snapshot) {
    if (ruleset.newest)
        ruleset.past.push_front(std::move(ruleset.newest));
    if (ruleset.past.size() > max_past)
        ruleset.past.pop_back();
    ruleset.newest = std::move(snapshot);
    for (const std::string& problem : ruleset.newest->problems)
        log_once(problem);

    // Older ones make room: first those of the past, then whole rulesets, the longest unused first.
    std::size_t rules = 0;
    for (const Ruleset& other : rulesets_) {
        rules += count_rules(other.newest);
        for (const auto& past : other.past)
            rules += count_rules(past);
    }
    for (auto other = rulesets_.rbegin(); other != rulesets_.rend(); ++other) {
        while (rules > max_rules && !other->past.empty()) {
            rules -= count_rules(other->past.back());
            other->past.pop_back();
        }
    }
    while (rules > max_rules && rulesets_.size() > 1) { // the front is `ruleset`
        rules -= count_rules(rulesets_.back().newest);
        rulesets_.pop_back();
    }

    if (on_snapshot_)
        on_snapshot_(*ruleset.newest);
}

void LiveSnapshots::log_once(const std::string& problem) {
    if (logged_.size() < max_logged && logged_.insert(problem).second)
        spdlog::warn("rules cannot be shown in full: {}", printable(problem));
}

} // namespace tsdroptrace::resolve_rule
