// SPDX-License-Identifier: GPL-2.0-only
#include "aggregate/aggregate.h"

#include <algorithm>
#include <tuple>

namespace tsdroptrace::aggregate {

namespace {

constexpr std::uint32_t unknown_cause = 0; // the others' ids begin at 1

// What makes two of the kernel's causes one for a person. Each part ends in NUL, which no name holds.
std::string identity(const Drop& drop) {
    std::string key;
    const auto add = [&key](std::string_view part) { key.append(part) += '\0'; };
    const auto add_number = [&add](auto number) { add(number ? std::to_string(*number) : "-"); };
    const DropSite& site = drop.site;
    add(std::to_string(drop.netns.inode));
    add(to_string(site.kind));
    add(site.reason);
    add(std::string_view(site.location).substr(0, site.location.find('+')));
    add(site.hook ? to_string(*site.hook) : "-");
    add(site.hook_function ? site.hook_function->text() : "-");
    add(site.queue ? to_string(site.queue->fate) : "-");
    add_number(site.queue ? site.queue->number : std::nullopt);
    if (const Rule* rule = drop.rule.get()) {
        add(to_string(rule->backend));
        add(to_string(rule->family));
        add(rule->table);
        add(rule->chain);
        add_number(rule->number);
        add_number(rule->handle);
        add(rule->text.value_or("-"));
    }
    return key;
}

bool have_other_names(const Netns& one, const Netns& other) {
    return one.name && other.name && *one.name != *other.name;
}

} // namespace

bool Aggregator::first_of_cause(const Drop& drop) {
    const auto met = merged_.find(drop.cause_id);
    // The number of a namespace that is gone is given to the next one, and the kernel counts both as one cause: whose
    // name these packets have is not known then.
    if (met != merged_.end() && have_other_names(examples_.at(met->second).netns, drop.netns))
        examples_.at(met->second).netns.name = std::nullopt;
    const auto learns_text = [&](const Drop& example) {
        return example.rule && !example.rule->text && drop.rule && drop.rule->text;
    };
    // The first drop may have come while the ruleset changed: a later one knows the rule's text. It is told apart from
    // then on, since those that had no text either may have been another rule, at the same number.
    if (met != merged_.end() && !learns_text(examples_.at(met->second)))
        return false;
    std::string same = identity(drop);
    auto known = by_identity_.find(same);
    if (known != by_identity_.end() && have_other_names(examples_.at(known->second).netns, drop.netns)) {
        same.append(*drop.netns.name) += '\0';
        known = by_identity_.find(same);
    }
    const bool is_new = known == by_identity_.end();
    if ((met == merged_.end() && merged_.size() >= max_merged) || (is_new && examples_.size() >= max_causes))
        return false;
    if (is_new) {
        known = by_identity_.emplace(same, ++last_id_).first;
        examples_.emplace(last_id_, drop);
    }
    merged_.insert_or_assign(drop.cause_id, known->second);
    return is_new;
}

Aggregator::FlowKey Aggregator::key_of(const Flow& flow) {
    return {flow.src, flow.sport, flow.dst, flow.dport, flow.proto};
}

void Aggregator::add(Flows& flows, const Flow& flow) {
    const auto [found, is_new] = flows.try_emplace(key_of(flow), flow);
    if (!is_new)
        found->second.packets += flow.packets;
}

void Aggregator::add(CauseCount& sum, const CauseCount& count) {
    const bool first = sum.packets == 0;
    sum.packets += count.packets;
    sum.bytes += count.bytes;
    sum.first_ns = first ? count.first_ns : std::min(sum.first_ns, count.first_ns);
    sum.last_ns = first ? count.last_ns : std::max(sum.last_ns, count.last_ns);
}

std::uint32_t Aggregator::stands_for(std::uint32_t cause_id) const {
    const auto found = merged_.find(cause_id);
    return found == merged_.end() ? unknown_cause : found->second;
}

void Aggregator::retire(const std::vector<CauseCount>& causes, const std::vector<FlowCount>& flows) {
    for (const FlowCount& count : flows) {
        Flows& kept = retired_flows_[stands_for(count.cause_id)];
        if (retired_flow_count_ < max_retired_flows || kept.contains(key_of(count.flow))) {
            const std::size_t before = kept.size();
            add(kept, count.flow);
            retired_flow_count_ += kept.size() - before;
        }
    }
    for (const CauseCount& count : causes) {
        if (count.packets)
            add(retired_[stands_for(count.id)], count);
        merged_.erase(count.id);
    }
}

// The largest flows are shown, the rest as two numbers. What the kernel could not count by flow is among the rest: it
// is in the cause's packets.
Cause Aggregator::cause_of(const CauseCount& sum, const Flows& flows) const {
    Cause cause;
    cause.id = sum.id;
    if (sum.id != unknown_cause)
        cause.example = examples_.at(sum.id);
    cause.packets = sum.packets;
    cause.bytes = sum.bytes;
    cause.first_ns = sum.first_ns;
    cause.last_ns = sum.last_ns;
    for (const auto& [key, flow] : flows)
        cause.flows.push_back(flow);
    // Stable over a sorted map: ties come out in the order of their addresses.
    std::ranges::stable_sort(cause.flows, std::ranges::greater{}, &Flow::packets);
    if (cause.flows.size() > Summary::max_flows) {
        cause.other_flows = cause.flows.size() - Summary::max_flows;
        cause.flows.resize(Summary::max_flows);
    }
    std::uint64_t shown = 0;
    for (const Flow& flow : cause.flows)
        shown += flow.packets;
    // Flows are read after causes, so while packets are still dropped they may be ahead.
    cause.other_packets = cause.packets > shown ? cause.packets - shown : 0;
    return cause;
}

Summary Aggregator::summarize(const std::vector<CauseCount>& causes, const std::vector<FlowCount>& flows,
                              std::map<std::string, std::uint64_t> lost, std::int64_t until_ns, bool final) const {
    std::map<std::uint32_t, CauseCount> sums = retired_;
    for (const CauseCount& count : causes)
        if (count.packets)
            add(sums[stands_for(count.id)], count);
    std::map<std::uint32_t, Flows> flows_of = retired_flows_;
    for (const FlowCount& count : flows)
        add(flows_of[stands_for(count.cause_id)], count.flow);

    Summary summary;
    summary.final = final;
    summary.since_ns = since_ns_;
    summary.until_ns = until_ns;
    summary.lost = std::move(lost);
    for (auto& [id, sum] : sums) {
        sum.id = id;
        Cause cause = cause_of(sum, flows_of[id]);
        if (cause.example.noise)
            summary.hidden[cause.example.site.reason] += cause.packets;
        else
            summary.causes.push_back(std::move(cause));
    }
    std::ranges::sort(summary.causes, [](const Cause& a, const Cause& b) {
        return std::tuple(b.packets, a.first_ns, a.id) < std::tuple(a.packets, b.first_ns, b.id);
    });
    return summary;
}

} // namespace tsdroptrace::aggregate
