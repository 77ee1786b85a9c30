// SPDX-License-Identifier: GPL-2.0-only
#include "ruleset_watch.h"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <set>

#include "decode/decode.h"
#include "resolve_rule/ruleset_diff.h"

namespace tsdroptrace {

using resolve_rule::Snapshot;
using resolve_rule::SnapshotKind;

namespace {

// By tsdt_ruleset.
constexpr SnapshotKind kinds[] = {SnapshotKind::nf_tables,  SnapshotKind::ip_tables,     SnapshotKind::ip6_tables,
                                  SnapshotKind::arp_tables, SnapshotKind::bridge_filter, SnapshotKind::bridge_nat};
static_assert(std::size(kinds) == TSDT_RULESET_MAX);

// A snapshot that could not be read in full, or is none at all.
bool is_usable(const std::shared_ptr<const Snapshot>& snapshot) {
    return snapshot && !(snapshot->tables.empty() && !snapshot->problems.empty());
}

// Counters of generations may wrap.
bool is_newer(std::uint32_t generation, std::uint32_t than) {
    return static_cast<std::int32_t>(generation - than) > 0;
}

} // namespace

RulesetWatch::Ruleset* RulesetWatch::find(SnapshotKind kind, std::uint32_t netns) {
    const auto found = std::ranges::find_if(
        rulesets_, [&](const Ruleset& ruleset) { return ruleset.kind == kind && ruleset.netns == netns; });
    return found == rulesets_.end() ? nullptr : &*found;
}

void RulesetWatch::watch(SnapshotKind kind, std::uint32_t netns, TimePoint now, bool was_empty) {
    if (netns == 0 || find(kind, netns))
        return;
    const auto foreign =
        std::ranges::count_if(rulesets_, [&](const Ruleset& ruleset) { return ruleset.netns != own_netns_; });
    if (netns != own_netns_ && static_cast<std::size_t>(foreign) >= max_foreign)
        return;
    Ruleset& ruleset = rulesets_.emplace_back(Ruleset{kind, netns, nullptr, {}, 0, 0, {}, {}, now, 0});
    ruleset.untold = untold(ruleset, current_counts_());
    if (was_empty) {
        Snapshot nothing;
        nothing.generation = current_generation_(kind).number - 1;
        ruleset.told = std::make_shared<const Snapshot>(std::move(nothing));
        ruleset.looked = now - between_looks;
    } else if (auto snapshot = snapshots_.get(kind, netns, current_generation_(kind).number); is_usable(snapshot)) {
        ruleset.told = std::move(snapshot);
    }
}

void RulesetWatch::changed(const tsdt_ruleset_change& record, TimePoint now) {
    ++received_;
    Ruleset* ruleset = find(kinds[record.ruleset], record.netns);
    if (!ruleset || (ruleset->told && !is_newer(record.generation, ruleset->told->generation)))
        return;
    if (!ruleset->first)
        ruleset->first = now;
    ruleset->last = now;
    ruleset->last_mono_ns = std::max<std::uint64_t>(ruleset->last_mono_ns, record.mono_ns);
    Changer changer = decode::decode_changer(record);
    const auto known = std::ranges::find_if(ruleset->pending, [&](const Pending& pending) {
        const Process& process = pending.changer.process;
        return process.pid == changer.process.pid && process.comm == changer.process.comm;
    });
    if (known != ruleset->pending.end()) {
        known->changer.changes++;
        known->generation = record.generation;
    } else if (ruleset->pending.size() < RulesetChange::max_changers) {
        ruleset->pending.push_back({std::move(changer), record.generation});
    } else {
        ruleset->other_changes++;
    }
}

std::uint64_t RulesetWatch::untold(const Ruleset& ruleset, const decode::ChangeCounts& counts) const {
    return counts.untold[ruleset.netns == own_netns_ ? TSDT_NETNS_OWN : TSDT_NETNS_OTHER];
}

std::uint64_t RulesetWatch::on_their_way(const decode::ChangeCounts& counts) const {
    return counts.told - std::min(counts.told, received_);
}

bool RulesetWatch::is_due(const Ruleset& ruleset, TimePoint now) const {
    if (now - ruleset.looked < between_looks)
        return false;
    if (ruleset.first && (now - *ruleset.last >= quiet || now - *ruleset.first >= longest))
        return true;
    // Our own ruleset is looked at whenever it may have changed: it may have without a record, and what it says is
    // wanted before it drops something. (The generation is that of all namespaces together.)
    return ruleset.netns == own_netns_ && !ruleset.first &&
           (!ruleset.told || current_generation_(ruleset.kind).number != ruleset.told->generation);
}

std::vector<RulesetChange> RulesetWatch::look(TimePoint now, std::int64_t now_ns, std::int64_t realtime_minus_mono_ns,
                                              bool last) {
    std::vector<RulesetChange> out;
    // While records have not been received, it is not known who has changed what would be read.
    if (on_their_way(current_counts_()) == 0)
        behind_ = std::nullopt;
    else if (!behind_)
        behind_ = now;
    const bool waited = last || (behind_ && now - *behind_ >= patience);
    if (behind_ && !waited)
        return out;
    for (Ruleset& ruleset : rulesets_) {
        if (last ? !ruleset.first : !is_due(ruleset, now))
            continue;
        ruleset.looked = now;
        const std::uint32_t generation = current_generation_(ruleset.kind).number;
        auto snapshot = snapshots_.get(ruleset.kind, ruleset.netns, generation);
        const decode::ChangeCounts counts = current_counts_(); // of all changes that the snapshot may hold
        if (on_their_way(counts) != 0 && !waited)
            continue;
        if (is_usable(snapshot) && !is_newer(generation, snapshot->generation))
            tell(ruleset, snapshot, counts, now_ns, realtime_minus_mono_ns, out);
        else if (last || (ruleset.first && now - *ruleset.first >= patience))
            tell(ruleset, nullptr, counts, now_ns, realtime_minus_mono_ns, out);
    }
    return out;
}

void RulesetWatch::tell(Ruleset& ruleset, const std::shared_ptr<const Snapshot>& snapshot,
                        const decode::ChangeCounts& counts, std::int64_t now_ns, std::int64_t realtime_minus_mono_ns,
                        std::vector<RulesetChange>& out) {
    RulesetChange change;
    change.netns.inode = ruleset.netns;
    change.backend = ruleset.kind == SnapshotKind::nf_tables ? Backend::nftables : Backend::iptables_legacy;
    change.time_ns = ruleset.first ? static_cast<std::int64_t>(ruleset.last_mono_ns) + realtime_minus_mono_ns : now_ns;
    change.generation = snapshot ? snapshot->generation : current_generation_(ruleset.kind).number;
    change.other_changes = ruleset.other_changes;
    std::vector<Pending> later;
    for (Pending& pending : ruleset.pending) {
        if (snapshot && is_newer(pending.generation, snapshot->generation))
            later.push_back(std::move(pending));
        else
            change.changers.push_back(std::move(pending.changer));
    }
    const std::uint64_t now_untold = untold(ruleset, counts);
    change.other_changes += now_untold - ruleset.untold + on_their_way(counts);

    std::optional<resolve_rule::RulesetDiff> diff;
    if (!snapshot)
        change.unknown = "the ruleset could not be read after the change";
    else if (!ruleset.told)
        change.unknown = "the ruleset could not be read before the change";
    else if (!(diff = resolve_rule::compare(*ruleset.told, *snapshot)))
        change.unknown = "the ruleset could not be read in full both times";
    const bool first_look = snapshot && !ruleset.told && !ruleset.first;
    if (snapshot)
        ruleset.told = snapshot;
    ruleset.untold = now_untold;
    ruleset.other_changes = 0;
    ruleset.pending = std::move(later);
    if (ruleset.pending.empty())
        ruleset.first = ruleset.last = std::nullopt;
    else
        ruleset.first = ruleset.last;

    if (first_look || (!diff && change.changers.empty() && change.other_changes == 0))
        return; // nothing is known to have changed
    if (!diff) {
        out.push_back(std::move(change));
        return;
    }
    for (auto& [backend, drops] : *diff) {
        static_cast<DropChanges&>(change) = std::move(drops);
        change.backend = backend;
        out.push_back(change);
    }
}

} // namespace tsdroptrace
