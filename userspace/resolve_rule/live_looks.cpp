// SPDX-License-Identifier: GPL-2.0-only
#include "resolve_rule/live_looks.h"

#include <algorithm>
#include <ctime>
#include <map>

#include <fmt/format.h>
#include <linux/netfilter.h>

#include "resolve_rule/nft_counters.h"
#include "util/netns.h"

namespace tsdroptrace::resolve_rule {
namespace {

constexpr int max_attempts = 3;

std::int64_t monotonic_ns() {
    timespec now{};
    clock_gettime(CLOCK_MONOTONIC, &now);
    return static_cast<std::int64_t>(now.tv_sec) * 1'000'000'000 + now.tv_nsec;
}

std::uint8_t nfproto(RuleFamily family) {
    switch (family) {
    case RuleFamily::ip:
        return NFPROTO_IPV4;
    case RuleFamily::ip6:
        return NFPROTO_IPV6;
    case RuleFamily::inet:
        return NFPROTO_INET;
    case RuleFamily::arp:
        return NFPROTO_ARP;
    case RuleFamily::bridge:
        return NFPROTO_BRIDGE;
    case RuleFamily::netdev:
        return NFPROTO_NETDEV;
    }
    return NFPROTO_UNSPEC;
}

RuleFamily family_of(SnapshotKind kind) {
    return kind == SnapshotKind::ip6_tables ? RuleFamily::ip6 : RuleFamily::ip;
}

} // namespace

// As they came from the kernel.
struct LiveLooks::Counters {
    std::int64_t begin_ns = 0, end_ns = 0;
    bool absent = false; // the kernel has no such rules
    NftCounters nft;
    std::vector<LegacyTable> tables;                     // without their counters
    std::vector<std::map<std::uint32_t, Counts>> legacy; // by offset, for each of them
};

LiveLooks::Ruleset& LiveLooks::find(SnapshotKind kind, std::uint32_t netns) {
    const auto found = std::ranges::find_if(
        rulesets_, [&](const Ruleset& ruleset) { return ruleset.kind == kind && ruleset.netns == netns; });
    if (found != rulesets_.end()) {
        rulesets_.splice(rulesets_.begin(), rulesets_, found);
    } else {
        if (rulesets_.size() >= max_rulesets)
            rulesets_.pop_back();
        rulesets_.push_front({kind, netns, nullptr, 0, 0, {}, {}, {}});
    }
    return rulesets_.front();
}

bool LiveLooks::may_look(SnapshotKind kind, std::uint32_t netns) const {
    const auto found = std::ranges::find_if(
        rulesets_, [&](const Ruleset& ruleset) { return ruleset.kind == kind && ruleset.netns == netns; });
    return found == rulesets_.end() || Clock::now() >= found->not_again_until;
}

std::vector<std::pair<SnapshotKind, std::uint32_t>> LiveLooks::outdated() const {
    std::vector<std::pair<SnapshotKind, std::uint32_t>> found;
    const auto now = Clock::now();
    for (const Ruleset& ruleset : rulesets_)
        if (now >= ruleset.outdated_from)
            found.emplace_back(ruleset.kind, ruleset.netns);
    return found;
}

// What went wrong, if anything.
std::optional<std::string> LiveLooks::read(const Ruleset& ruleset, Counters& counters) const {
    counters.absent = ruleset.kind == SnapshotKind::nf_tables && !has_nf_tables_();
    if (counters.absent) {
        counters.begin_ns = counters.end_ns = monotonic_ns();
        return std::nullopt;
    }
    std::optional<std::string> problem;
    const Status entered = run_in_netns(ruleset.netns, [&] {
        counters.begin_ns = monotonic_ns();
        if (ruleset.kind == SnapshotKind::nf_tables) {
            if (auto nft = read_nft_counters())
                counters.nft = std::move(*nft);
            else
                problem = nft.error().message;
        } else if (auto tables = read_legacy_tables(family_of(ruleset.kind))) {
            counters.tables = std::move(*tables);
        } else {
            problem = tables.error().message;
        }
        counters.end_ns = monotonic_ns();
    });
    if (!entered)
        return entered.error().message;
    counters.legacy.clear();
    for (LegacyTable& table : counters.tables)
        counters.legacy.push_back(take_counters(family_of(ruleset.kind), table.entries));
    return problem;
}

Result<Snapshot> LiveLooks::read_rules(const Ruleset& ruleset, const Counters& counters) const {
    if (!counters.absent)
        return read_ruleset(ruleset.kind, ruleset.netns, max_rules);
    Snapshot none;
    none.kind = ruleset.kind;
    none.netns = ruleset.netns;
    return none;
}

bool LiveLooks::same_rules(const Ruleset& ruleset, const Counters& counters) {
    if (ruleset.kind == SnapshotKind::nf_tables)
        return ruleset.nft_generation == counters.nft.generation;
    return ruleset.legacy_tables == counters.tables;
}

// What went wrong, if anything.
std::optional<std::string> LiveLooks::look(Ruleset& ruleset, Look& look) {
    Counters counters;
    if (auto problem = read(ruleset, counters))
        return problem;
    for (int attempt = 0; !ruleset.snapshot || !same_rules(ruleset, counters); attempt++) {
        if (attempt == max_attempts) {
            ruleset.snapshot = nullptr;
            return "the rules kept changing while they were read";
        }
        // The snapshot is of these rules if they are still the same after it has been read.
        ruleset.nft_generation = counters.nft.generation;
        ruleset.legacy_tables = counters.tables;
        auto snapshot = read_rules(ruleset, counters);
        if (!snapshot)
            return snapshot.error().message;
        snapshot->generation = ruleset.generation = ++generations_;
        ruleset.snapshot = std::make_shared<const Snapshot>(std::move(*snapshot));
        if (auto problem = read(ruleset, counters)) {
            ruleset.snapshot = nullptr;
            return problem;
        }
    }

    look.begin_ns = counters.begin_ns;
    look.end_ns = counters.end_ns;
    look.generation = ruleset.generation;
    look.snapshot = ruleset.snapshot;
    look.packets.reserve(places(*look.snapshot));
    look.bytes.reserve(places(*look.snapshot));
    const auto add = [&look](const Counts& counts) {
        look.packets.push_back(counts.packets);
        look.bytes.push_back(counts.bytes);
    };
    constexpr Counts none{Look::no_counter, Look::no_counter};
    std::size_t found = 0;
    for (const SnapshotTable& table : look.snapshot->tables) {
        const auto legacy = std::ranges::find(counters.tables, table.name, &LegacyTable::name);
        const auto at = [&](std::optional<std::uint32_t> offset) {
            const auto& of_table = counters.legacy[static_cast<std::size_t>(legacy - counters.tables.begin())];
            const auto counter = offset ? of_table.find(*offset) : of_table.end();
            return counter == of_table.end() ? none : counter->second;
        };
        found += legacy != counters.tables.end();
        for (const SnapshotChain& chain : table.chains) {
            for (const SnapshotRule& rule : chain.rules) {
                if (legacy != counters.tables.end()) {
                    add(at(rule.offset));
                    continue;
                }
                const auto counter =
                    counters.nft.rules.find({nfproto(table.family), table.name, rule.handle.value_or(0)});
                found += counter != counters.nft.rules.end();
                add(counter == counters.nft.rules.end() ? none : counter->second);
            }
            add(legacy != counters.tables.end() ? at(chain.policy_offset) : none);
        }
    }
    const bool all =
        found == (ruleset.kind == SnapshotKind::nf_tables ? counters.nft.rules.size() : counters.tables.size());
    return all ? std::nullopt : std::optional<std::string>("not all of the rules could be read");
}

Look LiveLooks::look(SnapshotKind kind, std::uint32_t netns) {
    Ruleset& ruleset = find(kind, netns);
    Look result;
    result.kind = kind;
    result.netns = netns;
    result.begin_ns = monotonic_ns();
    if (auto problem = look(ruleset, result)) {
        result.problem = "the counters of its rules cannot be used: " + *problem;
        result.packets.clear();
        result.bytes.clear();
        result.snapshot = nullptr;
        result.end_ns = monotonic_ns();
    }
    const auto took = std::chrono::nanoseconds(monotonic_ns() - result.begin_ns);
    const auto now = Clock::now();
    ruleset.not_again_until = now + std::clamp<Clock::duration>(3 * took, shortest_pause, longest_pause);
    ruleset.outdated_from =
        now + std::max<Clock::duration>(refresh_times * took, result.problem.empty() ? refresh_pause : problem_pause);
    return result;
}

} // namespace tsdroptrace::resolve_rule
