// SPDX-License-Identifier: GPL-2.0-only
#include "aggregate/aggregate.h"

#include <algorithm>
#include <tuple>

namespace tsdroptrace::aggregate {

namespace {

constexpr std::uint32_t unknown_cause = 0; // the kernel's ids begin at 1

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

using FlowKey = std::tuple<Address, std::uint16_t, Address, std::uint16_t, std::uint8_t>;

FlowKey key_of(const Flow& flow) {
    return {flow.src, flow.sport, flow.dst, flow.dport, flow.proto};
}

// The largest flows into the cause, the rest as two numbers. What the kernel could not count by flow is
// among the rest: it is in the cause's packets.
void add_flows(Cause& cause, const std::map<FlowKey, Flow>& flows) {
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
}

} // namespace

bool Aggregator::first_of_cause(const Drop& drop) {
    if (const auto known = merged_.find(drop.cause_id); known != merged_.end()) {
        // The first drop may have come while the ruleset changed: a later one knows the rule's text.
        Drop& example = examples_.at(known->second);
        if (example.rule && !example.rule->text && drop.rule && drop.rule->text)
            example = drop;
        return false;
    }
    if (merged_.size() >= max_causes)
        return false;
    const auto [found, is_new] = by_identity_.try_emplace(identity(drop), drop.cause_id);
    merged_.emplace(drop.cause_id, found->second);
    if (is_new)
        examples_.emplace(drop.cause_id, drop);
    return is_new;
}

Summary Aggregator::summarize(const std::vector<CauseCount>& causes, const std::vector<FlowCount>& flows,
                              std::map<std::string, std::uint64_t> lost, std::int64_t until_ns, bool final) const {
    const auto stands_for = [this](std::uint32_t id) {
        const auto found = merged_.find(id);
        return found == merged_.end() ? unknown_cause : found->second;
    };

    std::map<std::uint32_t, Cause> sums;
    for (const CauseCount& count : causes) {
        if (count.packets == 0)
            continue;
        const std::uint32_t id = stands_for(count.id);
        const auto [found, is_new] = sums.try_emplace(id);
        Cause& cause = found->second;
        if (is_new) {
            cause.id = id;
            cause.first_ns = count.first_ns;
            cause.last_ns = count.last_ns;
            if (id != unknown_cause)
                cause.example = examples_.at(id);
        }
        cause.packets += count.packets;
        cause.bytes += count.bytes;
        cause.first_ns = std::min(cause.first_ns, count.first_ns);
        cause.last_ns = std::max(cause.last_ns, count.last_ns);
    }

    std::map<std::uint32_t, std::map<FlowKey, Flow>> flows_of;
    for (const FlowCount& count : flows) {
        const auto [found, is_new] = flows_of[stands_for(count.cause_id)].try_emplace(key_of(count.flow), count.flow);
        if (!is_new)
            found->second.packets += count.flow.packets;
    }

    Summary summary;
    summary.final = final;
    summary.since_ns = since_ns_;
    summary.until_ns = until_ns;
    summary.lost = std::move(lost);
    for (auto& [id, cause] : sums) {
        if (cause.example.noise) {
            summary.hidden[cause.example.site.reason] += cause.packets;
            continue;
        }
        add_flows(cause, flows_of[id]);
        summary.causes.push_back(std::move(cause));
    }
    std::ranges::sort(summary.causes, [](const Cause& a, const Cause& b) {
        return std::tuple(b.packets, a.first_ns, a.id) < std::tuple(a.packets, b.first_ns, b.id);
    });
    return summary;
}

} // namespace tsdroptrace::aggregate
