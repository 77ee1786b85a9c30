// SPDX-License-Identifier: GPL-2.0-only
#include "aggregate/stopped.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace tsdroptrace::aggregate {
namespace {

bool is_by_rule(const Cause& cause) {
    const DropKind kind = cause.example.site.kind;
    return cause.example.rule && (kind == DropKind::rule || kind == DropKind::policy);
}

bool is_legacy(Backend backend) {
    return backend == Backend::iptables_legacy;
}

// The same rule, as far as is known, perhaps at another number.
bool same_rule(const Cause& one, const Cause& other) {
    if (!is_by_rule(other) || one.example.netns.inode != other.example.netns.inode ||
        one.example.site.kind != other.example.site.kind)
        return false;
    const Rule &a = *one.example.rule, &b = *other.example.rule;
    return is_legacy(a.backend) == is_legacy(b.backend) && a.family == b.family && a.table == b.table &&
           a.chain == b.chain &&
           (!a.text || !b.text || *a.text == *b.text || (a.handle && a.handle == b.handle)); // nft's words, iptables'
}

std::string name_of(const Cause& cause) {
    const Rule& rule = *cause.example.rule;
    std::string name;
    for (const std::string& part :
         {std::to_string(cause.example.netns.inode), std::string(to_string(cause.example.site.kind)),
          std::string(to_string(rule.backend)), std::string(to_string(rule.family)), rule.table, rule.chain,
          rule.text.value_or("")})
        name.append(part) += '\0';
    return name;
}

// Drops of which it is not known whether the rule did them.
bool may_be_by(const Cause& unknown, const Cause& cause) {
    const Drop& drop = unknown.example;
    if (unknown.id == 0)
        return true; // the details of all its packets are lost
    return drop.netns.inode == cause.example.netns.inode && !drop.rule && drop.site.kind != DropKind::kernel &&
           !drop.site.hook_function;
}

// Whether the change is of something that the rule's packets may have met on their way. An accept in another table
// keeps no rule from dropping.
bool is_on_the_way(const RulesetChange& change, const Drop& drop, std::optional<ChainName>* chain = nullptr) {
    const Rule& rule = *drop.rule;
    if (change.netns.inode != drop.netns.inode || is_legacy(change.backend) != is_legacy(rule.backend))
        return false;
    const auto found = std::ranges::find_if(change.chains, [&](const ChainName& changed) {
        return changed.family == rule.family && changed.table == rule.table &&
               (rule.path.empty() || rule.path[0].chain == changed.name);
    });
    if (found == change.chains.end())
        return !change.unknown.empty() || change.more_chains;
    if (chain)
        *chain = *found;
    return true;
}

SeenWay difference(const SeenWay& before, const SeenWay& now) {
    SeenWay since;
    since.packets = now.packets - std::min(now.packets, before.packets);
    for (const auto& [dev, packets] : now.by_dev) {
        const auto earlier = before.by_dev.find(dev);
        const std::uint64_t known = earlier == before.by_dev.end() ? 0 : earlier->second;
        if (packets > known)
            since.by_dev[dev] = packets - known;
    }
    return since;
}

} // namespace

void Stops::change(const RulesetChange& change) {
    if (changes_.size() >= max_changes) {
        forgotten_ns_ = std::max(forgotten_ns_, changes_.front().change.time_ns);
        changes_.pop_front();
    }
    Change& kept = changes_.emplace_back(Change{change, std::nullopt});
    kept.change.added.clear(), kept.change.removed.clear(), kept.change.moved.clear();
    const auto after =
        std::ranges::find_if(counts_, [&](const Counts& counts) { return counts.time_ns >= change.time_ns; });
    if (after != counts_.end())
        kept.after = *after;
    open_ = true;
}

Stops::Counts Stops::counts_of(const Summary& summary) {
    Counts counts;
    counts.time_ns = summary.until_ns;
    counts.seen = *summary.seen;
    for (const Cause& cause : summary.causes)
        (cause.example.packet.direction == Direction::to ? counts.dropped_to : counts.dropped_from) += cause.packets;
    const auto lost = summary.lost.find("causes");
    counts.lost_causes = lost == summary.lost.end() ? 0 : lost->second;
    return counts;
}

// Of the packets that went the rule's way before, it dropped a share. If it still did: is it unlikely that it let all
// of those pass that have come since? (What was dropped by something else since does not count: the rule may not have
// seen it.)
bool Stops::would_have_dropped(const Cause& cause, const Counts& before, const Counts& now) {
    constexpr double unlikely = 0.05;
    const bool to = cause.example.packet.direction == Direction::to;
    // Toward the range, packets are counted after netfilter; from there, before it.
    const auto passed = [to](const Counts& counts) {
        return to ? counts.seen.sent.packets
                  : counts.seen.received.packets - std::min(counts.seen.received.packets, counts.dropped_from);
    };
    const auto dropped = [to](const Counts& counts) { return to ? counts.dropped_to : counts.dropped_from; };
    const std::uint64_t passed_since = passed(now) - std::min(passed(now), passed(before));
    if (passed_since == 0)
        return false;
    const std::uint64_t all_before = std::max(passed(before) + dropped(before), cause.packets);
    const double share = static_cast<double>(cause.packets) / static_cast<double>(all_before);
    return std::pow(1 - share, static_cast<double>(passed_since)) <= unlikely;
}

std::optional<Stopped> Stops::judge(const Cause& cause, const Summary& now, const Counts& counts, bool settled) {
    // The one that was met last speaks for all causes of its rule.
    Stopped stopped;
    stopped.cause.id = cause.id;
    stopped.cause.example = cause.example;
    stopped.cause.first_ns = cause.first_ns;
    stopped.cause.last_ns = cause.last_ns;
    for (const Cause& other : now.causes) {
        if (!same_rule(cause, other))
            continue;
        if (std::pair(other.last_ns, other.id) > std::pair(cause.last_ns, cause.id))
            return std::nullopt;
        stopped.cause.packets += other.packets;
        stopped.cause.bytes += other.bytes;
        stopped.cause.first_ns = std::min(stopped.cause.first_ns, other.first_ns);
    }
    if (stopped.cause.packets < least_packets || cause.last_ns < forgotten_ns_)
        return std::nullopt;

    const Change* first = nullptr;
    stopped.changes = 0;
    for (const Change& change : changes_) {
        if (change.change.time_ns <= cause.last_ns || !is_on_the_way(change.change, cause.example))
            continue;
        ++stopped.changes;
        if (!first || change.change.time_ns < first->change.time_ns)
            first = &change;
    }
    if (!first || first->change.time_ns - cause.last_ns > most_before_ns)
        return std::nullopt;
    const auto told = told_.find(name_of(cause));
    if (told != told_.end() && told->second >= cause.last_ns)
        return std::nullopt;
    const bool may_drop_on = std::ranges::any_of(now.causes, [&](const Cause& other) {
        return other.last_ns >= first->change.time_ns && may_be_by(other, cause);
    });
    if (may_drop_on)
        return std::nullopt;

    open_ = true; // from here on it is a question of time, and of packets that come
    const auto between =
        (cause.last_ns - stopped.cause.first_ns) / static_cast<std::int64_t>(stopped.cause.packets - 1);
    const std::int64_t needed = std::clamp(3 * between, least_settled_ns, most_settled_ns);
    if (!settled || now.until_ns - first->change.time_ns < needed || counts.lost_causes > first->after->lost_causes ||
        !would_have_dropped(stopped.cause, *first->after, counts))
        return std::nullopt;

    stopped.time_ns = now.until_ns;
    stopped.change = first->change;
    (void)is_on_the_way(first->change, cause.example, &stopped.chain);
    stopped.seen_since_ns = first->after->time_ns;
    stopped.seen.sent = difference(first->after->seen.sent, counts.seen.sent);
    stopped.seen.received = difference(first->after->seen.received, counts.seen.received);
    told_[name_of(cause)] = cause.last_ns;
    return stopped;
}

std::vector<Stopped> Stops::judge(const Summary& now, bool settled) {
    std::vector<Stopped> out;
    open_ = false;
    if (!now.seen)
        return out;
    const Counts counts = counts_of(now);
    if (counts_.size() >= max_counts)
        counts_.pop_front();
    counts_.push_back(counts);
    std::erase_if(changes_, [&](const Change& one) {
        const bool old = now.until_ns - one.change.time_ns > kept_ns;
        if (old)
            forgotten_ns_ = std::max(forgotten_ns_, one.change.time_ns);
        return old;
    });
    for (Change& change : changes_)
        if (!change.after)
            change.after = counts;
    for (const Cause& cause : now.causes)
        if (is_by_rule(cause))
            if (auto stopped = judge(cause, now, counts, settled))
                out.push_back(std::move(*stopped));
    return out;
}

} // namespace tsdroptrace::aggregate
