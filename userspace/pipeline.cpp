// SPDX-License-Identifier: GPL-2.0-only
#include "pipeline.h"

#include <cerrno>
#include <cstring>

#include <arpa/inet.h>
#include <spdlog/spdlog.h>

namespace tsdroptrace {
namespace {

Address address_of(const __u8 (&bytes)[16], __u8 family) {
    Address address;
    address.family = family == 4 ? IpFamily::ipv4 : family == 6 ? IpFamily::ipv6 : IpFamily::other;
    std::memcpy(address.bytes.data(), bytes, family == 4 ? 4 : 16);
    return address;
}

} // namespace

void Pipeline::check(const Status& status) {
    if (status)
        return;
    reader_gone_ |= status.error().error_number == EPIPE;
    if (output_error_)
        return;
    output_error_ = status.error();
    spdlog::error("{}", output_error_->message);
}

void Pipeline::complete(Drop& drop, const tsdt_cause& cause, const tsdt_drop& record) {
    drop.rule = resolver_.resolve(cause, record);
    if (drop.rule)
        drop.owner = explainer_.owner(*drop.rule);
    drop.noise = explainer_.is_noise(drop);
    if (!drop.noise)
        drop.evidence = evidence_.get(drop);
    drop.explanation = explainer_.explain(drop);
}

bool Pipeline::drop(const tsdt_drop& record, const tsdt_cause& cause) {
    Drop drop = decode::decode_drop(record, cause, machine_);
    complete(drop, cause, record);
    known_causes_.insert(cause.id);
    const bool new_cause = aggregator_.first_of_cause(drop);
    for (const auto& output : outputs_)
        check(output->drop(drop, new_cause));
    return !drop.noise;
}

// `final`: no record of a packet is on its way any more.
Pipeline::Counts Pipeline::decode_counts(const KernelCounts& counts, std::int64_t now_ns, bool final) {
    Counts out;
    for (const tsdt_cause& cause : counts.causes) {
        // A cause of which no packet's record got through: what the kernel says of the cause itself. While tracing
        // goes on, the record of a new one may still be on its way.
        if (!known_causes_.contains(cause.id)) {
            constexpr std::int64_t on_its_way_ns = 2'000'000'000;
            const auto first_ns = static_cast<std::int64_t>(cause.first_ns) + machine_.realtime_minus_mono_ns;
            if (!final && now_ns - first_ns < on_its_way_ns)
                continue;
            known_causes_.insert(cause.id);
            Drop drop = decode::decode_cause(cause, machine_);
            complete(drop, cause, tsdt_drop{});
            aggregator_.first_of_cause(drop);
        }
        out.causes.push_back({cause.id, cause.packets, cause.bytes,
                              static_cast<std::int64_t>(cause.first_ns) + machine_.realtime_minus_mono_ns,
                              static_cast<std::int64_t>(cause.last_ns) + machine_.realtime_minus_mono_ns});
    }
    for (const auto& [key, packets] : counts.flows)
        out.flows.push_back({key.cause_id,
                             {key.proto, address_of(key.saddr, key.family), address_of(key.daddr, key.family),
                              ntohs(key.sport), ntohs(key.dport), packets}});
    return out;
}

void Pipeline::retire(const KernelCounts& counts, std::int64_t now_ns) {
    const Counts last = decode_counts(counts, now_ns, true);
    aggregator_.retire(last.causes, last.flows);
    for (const tsdt_cause& cause : counts.causes)
        known_causes_.erase(cause.id);
}

Summary Pipeline::summarize(const KernelCounts& counts, std::int64_t now_ns, bool final) {
    const Counts now = decode_counts(counts, now_ns, final);
    return aggregator_.summarize(now.causes, now.flows, counts.lost, now_ns, final);
}

void Pipeline::start(const Start& start) {
    for (const auto& output : outputs_)
        check(output->start(start));
}

void Pipeline::lost(const Lost& lost) {
    for (const auto& output : outputs_)
        check(output->lost(lost));
}

void Pipeline::ruleset(RulesetChange change) {
    change.netns = decode::decode_netns(change.netns.inode, machine_);
    for (auto* rules : {&change.added, &change.removed, &change.moved})
        for (ChangedRule& changed : *rules)
            changed.owner = explainer_.owner(changed.rule);
    for (const auto& output : outputs_)
        check(output->ruleset(change));
}

void Pipeline::progress(const KernelCounts& counts, std::int64_t now_ns) {
    const Summary so_far = summarize(counts, now_ns, false);
    for (const auto& output : outputs_)
        check(output->progress(so_far));
}

void Pipeline::summary(const KernelCounts& counts, std::int64_t now_ns, bool final) {
    const Summary so_far = summarize(counts, now_ns, final);
    for (const auto& output : outputs_)
        check(output->summary(so_far));
}

} // namespace tsdroptrace
