// SPDX-License-Identifier: GPL-2.0-only
#include "pipeline.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

#include <arpa/inet.h>
#include <spdlog/spdlog.h>

#include "check/verdict.h"

namespace tsdroptrace {
namespace {

Address address_of(const __u8 (&bytes)[16], __u8 family) {
    Address address;
    address.family = family == 4 ? IpFamily::ipv4 : family == 6 ? IpFamily::ipv6 : IpFamily::other;
    std::memcpy(address.bytes.data(), bytes, family == 4 ? 4 : 16);
    return address;
}

// Tells a rule from all others that may have been there, wherever it stands; iptables-legacy's have no handle.
std::string identity(std::uint32_t netns, const Rule& rule) {
    const std::string which = !rule.number  ? "policy " + rule.verdict
                              : rule.handle ? "handle " + std::to_string(*rule.handle)
                                            : rule.text.value_or("");
    std::string key;
    for (const std::string& piece : {std::to_string(netns), std::to_string(static_cast<int>(rule.backend)),
                                     std::to_string(static_cast<int>(rule.family)), rule.table, rule.chain, which})
        key.append(piece) += '\0';
    return key;
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

void Pipeline::complete(Drop& drop) {
    if (drop.rule)
        drop.owner = explainer_.owner(*drop.rule);
    drop.noise = explainer_.is_noise(drop);
    if (!drop.noise)
        drop.evidence = evidence_.get(drop, [this](const Drop& of) { return explainer_.wanted_sysctls(of); });
    drop.written = written(drop);
    drop.explanation = explainer_.explain(drop);
}

void Pipeline::remember_writers(const RulesetChange& change) {
    // What is not listed may be any rule that has been written before, or one that stands in its place.
    if (!change.unknown.empty() || change.more_added != 0 || change.more_removed != 0)
        written_.clear();
    std::shared_ptr<RulesetChange> by;
    for (const ChangedRule& changed : change.removed)
        written_.erase(identity(change.netns.inode, changed.rule));
    for (const ChangedRule& changed : change.added) {
        if (written_.size() >= max_written)
            written_.clear();
        if (!by) {
            by = std::make_shared<RulesetChange>(change);
            static_cast<DropChanges&>(*by) = {};
        }
        written_.insert_or_assign(identity(change.netns.inode, changed.rule), by);
    }
}

std::shared_ptr<const RulesetChange> Pipeline::written(const Drop& drop) const {
    if (!drop.rule ||
        (drop.site.kind == DropKind::rule && !drop.rule->handle && (!drop.rule->text || drop.rule->has_twin)))
        return nullptr;
    const auto found = written_.find(identity(drop.netns.inode, *drop.rule));
    // Of a burst only the time of its last change is known.
    return found == written_.end() || drop.time_ns < found->second->time_ns ? nullptr : found->second;
}

bool Pipeline::drop(const tsdt_drop& record, const tsdt_cause& cause) {
    Drop drop = decode::decode_drop(record, cause, machine_);
    if (auto question = resolve_rule::question_of(drop, cause, machine_.kernel, inferred_)) {
        if (waiting_.size() < max_waiting) {
            waiting_.push_back({std::move(drop), std::move(*question)});
            return true;
        }
        settle(drop, {nullptr, false, "more packets died at once than can wait for a look at the counters"});
    } else {
        drop.rule = resolver_.resolve(cause, record);
        if (drop.rule && !drop.site.queue) // a program may have changed a packet that it was handed
            drop.elements = resolver_.elements(cause, drop.packet);
        if (cannot_have_matched(drop))
            disown(drop);
    }
    show(drop);
    return !drop.noise;
}

// The rule of a legacy table is known by its counter. When processes are preempted within tables, one packet in many
// thousands gets the counter of another: mostly that rule cannot have matched it.
bool Pipeline::cannot_have_matched(const Drop& drop) {
    const Rule* rule = drop.rule.get();
    if (!rule || rule->backend != Backend::iptables_legacy || drop.site.kind != DropKind::rule || !rule->text ||
        rule->verdict == verdict_of_match)
        return false;
    // Other targets say themselves that they have dropped the packet, and may have changed it before that.
    if (rule->text->find(" -j DROP") == std::string::npos && rule->text->find(" -j REJECT") == std::string::npos)
        return false;
    if (rule->family != RuleFamily::ip && rule->family != RuleFamily::ip6)
        return false;
    auto found = matches_.find(drop.rule);
    if (found == matches_.end()) {
        if (matches_.size() >= max_matches)
            matches_.clear();
        found = matches_.try_emplace(drop.rule, *rule->text, rule->backend).first;
    }
    return !found->second.may_match(drop.packet, false);
}

void Pipeline::disown(Drop& drop) {
    drop.rule = nullptr;
    drop.site.kind = DropKind::hook;
    drop.site.unknown = "the counter of a rule of iptables-legacy moved that cannot have matched it: packets met the "
                        "table at once";
    count_apart(drop);
}

void Pipeline::show(Drop& drop) {
    complete(drop);
    known_causes_.insert(drop.cause_id);
    if (drop.rule)
        last_by_rule_ns_ = std::max(last_by_rule_ns_, drop.time_ns);
    const bool new_cause = aggregator_.first_of_cause(drop);
    for (const auto& output : outputs_)
        check(output->drop(drop, new_cause));
}

// ---- rules that are inferred from their counters ----

void Pipeline::settle(Drop& drop, resolve_rule::Answer answer) {
    if (!answer.rule) {
        drop.site.unknown = "it was not seen, and the counters of the rules do not tell: " + answer.unknown;
        return;
    }
    drop.rule = std::move(answer.rule);
    drop.site.kind = answer.policy ? DropKind::policy : DropKind::rule;
    drop.site.unknown.clear();
    count_apart(drop);
}

// Takes the packet out of the kernel's cause, into that of its rule, or of those without.
void Pipeline::count_apart(Drop& drop) {
    Part* part = part_of(drop);
    if (!part)
        return;
    const Packet& packet = drop.packet;
    if (part->packets++ == 0)
        part->first_ns = drop.time_ns;
    part->last_ns = drop.time_ns;
    part->bytes += packet.length;
    const FlowKey key{packet.src, packet.sport.value_or(0), packet.dst, packet.dport.value_or(0), packet.proto};
    if (const auto flow = part->flows.find(key); flow != part->flows.end()) {
        ++flow->second;
    } else if (part_flows_ < max_part_flows) {
        part->flows.emplace(key, 1);
        ++part_flows_;
    }
    drop.cause_id = part->id;
}

// Null when there are too many: then its packets stay where the kernel has counted them.
Pipeline::Part* Pipeline::part_of(const Drop& drop) {
    static const Rule none;
    const Rule& rule = drop.rule ? *drop.rule : none;
    std::string key;
    for (const std::string& piece :
         {std::to_string(drop.cause_id), std::to_string(static_cast<int>(rule.backend)),
          std::to_string(static_cast<int>(rule.family)), rule.table, rule.chain,
          std::to_string(rule.number.value_or(0)), std::to_string(rule.handle.value_or(0)), rule.text.value_or("")})
        key.append(piece) += '\0';
    const auto found = parts_.find(key);
    if (found != parts_.end())
        return &found->second;
    if (parts_.size() >= max_parts)
        return nullptr;
    Part part;
    part.id = first_part + static_cast<std::uint32_t>(parts_.size());
    part.of = drop.cause_id;
    return &parts_.emplace(std::move(key), std::move(part)).first->second;
}

std::map<std::pair<resolve_rule::SnapshotKind, std::uint32_t>, std::uint64_t> Pipeline::waiting() const {
    std::map<std::pair<resolve_rule::SnapshotKind, std::uint32_t>, std::uint64_t> rulesets;
    for (const Waiting& one : waiting_) {
        for (const resolve_rule::SnapshotKind kind : one.question.kinds) {
            const auto [first, fresh] = rulesets.try_emplace({kind, one.question.netns}, one.drop.mono_ns);
            first->second = std::min(first->second, one.drop.mono_ns);
        }
    }
    return rulesets;
}

void Pipeline::look(resolve_rule::Look look) {
    inference_.add(std::move(look));
    std::deque<Waiting> ready, later;
    for (Waiting& one : waiting_)
        (inference_.ready(one.question) ? ready : later).push_back(std::move(one));
    waiting_ = std::move(later);
    std::vector<const resolve_rule::Question*> questions;
    for (const Waiting& one : ready)
        questions.push_back(&one.question);
    auto answers = inference_.answer(questions);
    for (std::size_t i = 0; i < ready.size(); i++) {
        settle(ready[i].drop, std::move(answers[i]));
        show(ready[i].drop);
    }
}

void Pipeline::stop_waiting() {
    for (Waiting& one : std::exchange(waiting_, {})) {
        settle(one.drop, resolve_rule::Inference::not_looked());
        show(one.drop);
    }
}

// Takes the parts out of what the kernel has counted, and, until the end, what is still waiting.
void Pipeline::split(std::vector<aggregate::CauseCount>& causes, std::vector<aggregate::FlowCount>& flows,
                     bool final) const {
    const auto less = [](std::uint64_t& from, std::uint64_t by) { from -= std::min(from, by); };
    std::map<std::uint32_t, aggregate::CauseCount*> by_id;
    for (aggregate::CauseCount& cause : causes)
        by_id.emplace(cause.id, &cause);
    std::map<std::pair<std::uint32_t, FlowKey>, std::uint64_t> taken;
    const auto take = [&](std::uint32_t id, std::uint64_t packets, std::uint64_t bytes) {
        if (const auto cause = by_id.find(id); cause != by_id.end()) {
            less(cause->second->packets, packets);
            less(cause->second->bytes, bytes);
        }
    };
    std::vector<aggregate::CauseCount> parts;
    std::vector<aggregate::FlowCount> part_flows;
    for (const auto& [key, part] : parts_) {
        take(part.of, part.packets, part.bytes);
        parts.push_back({part.id, part.packets, part.bytes, part.first_ns, part.last_ns});
        for (const auto& [flow, packets] : part.flows) {
            const auto& [src, sport, dst, dport, proto] = flow;
            taken[{part.of, flow}] += packets;
            part_flows.push_back({part.id, {proto, src, dst, sport, dport, packets}});
        }
    }
    if (!final)
        for (const Waiting& one : waiting_)
            take(one.drop.cause_id, 1, one.drop.packet.length);
    for (aggregate::FlowCount& count : flows) {
        const Flow& flow = count.flow;
        const auto found = taken.find({count.cause_id, {flow.src, flow.sport, flow.dst, flow.dport, flow.proto}});
        if (found != taken.end())
            less(count.flow.packets, found->second);
    }
    std::erase_if(flows, [](const aggregate::FlowCount& count) { return count.flow.packets == 0; });
    causes.insert(causes.end(), parts.begin(), parts.end());
    flows.insert(flows.end(), part_flows.begin(), part_flows.end());
}

Pipeline::Counts Pipeline::decode_counts(const KernelCounts& counts) const {
    Counts out;
    for (const tsdt_cause& cause : counts.causes)
        out.causes.push_back({cause.id, cause.packets, cause.bytes,
                              static_cast<std::int64_t>(cause.first_ns) + machine_.realtime_minus_mono_ns,
                              static_cast<std::int64_t>(cause.last_ns) + machine_.realtime_minus_mono_ns});
    for (const auto& [key, packets] : counts.flows)
        out.flows.push_back({key.cause_id,
                             {key.proto, address_of(key.saddr, key.family), address_of(key.daddr, key.family),
                              ntohs(key.sport), ntohs(key.dport), packets}});
    return out;
}

// Causes of which no packet's record got through: what the kernel says of the cause itself. While tracing goes on
// (`final` is not set), the record of a new one may still be on its way, for seconds where a large ruleset is being
// read: then it is left out.
void Pipeline::introduce(const KernelCounts& counts, std::vector<aggregate::CauseCount>& causes, bool final) {
    constexpr std::uint64_t disorder_ns =
        2'000'000'000; // CPUs hand theirs over in an order that is nearly that of time
    for (std::size_t i = 0; i < counts.causes.size(); i++) {
        const tsdt_cause& cause = counts.causes[i];
        if (known_causes_.contains(cause.id) || causes[i].packets == 0)
            continue;
        if (!final && cause.first_ns + disorder_ns >= counts.handled_until_ns) {
            causes[i].packets = 0;
            continue;
        }
        known_causes_.insert(cause.id);
        Drop drop = decode::decode_cause(cause, machine_);
        tsdt_drop no_packet{};
        no_packet.jumpstack[0] = TSDT_JUMPSTACK_UNKNOWN;
        drop.rule = resolver_.resolve(cause, no_packet);
        complete(drop);
        aggregator_.first_of_cause(drop);
    }
}

void Pipeline::retire(const KernelCounts& counts) {
    Counts last = decode_counts(counts);
    introduce(counts, last.causes, true);
    aggregator_.retire(last.causes, last.flows);
    for (const tsdt_cause& cause : counts.causes)
        known_causes_.erase(cause.id);
}

Summary Pipeline::summarize(const KernelCounts& counts, std::int64_t now_ns, bool final) {
    Counts now = decode_counts(counts);
    if (!parts_.empty() || !waiting_.empty())
        split(now.causes, now.flows, final);
    introduce(counts, now.causes, final);
    Summary summary = aggregator_.summarize(now.causes, now.flows, counts.lost, now_ns, final);
    if (counts.seen)
        summary.seen = decode::decode_seen(*counts.seen, machine_);
    if (final)
        summary.ways = counts.ways;
    return summary;
}

void Pipeline::start(const Start& start) {
    const auto is_inferred = [](const Capability& of) { return of.exactness == Exactness::inferred; };
    inferred_ = {is_inferred(start.capabilities.iptables_legacy), is_inferred(start.capabilities.nftables)};
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
    remember_writers(change);
    for (const auto& output : outputs_)
        check(output->ruleset(change));
    stops_.change(std::move(change));
}

std::vector<Stopped> Pipeline::judge(const KernelCounts& counts, std::int64_t now_ns) {
    const Summary now = summarize(counts, now_ns, false);
    // A drop whose rule is not known yet may be one by the rule in question.
    const bool settled = waiting_.empty() && std::ranges::all_of(counts.causes, [&](const tsdt_cause& cause) {
                             return cause.packets == 0 || known_causes_.contains(cause.id);
                         });
    return stops_.judge(now, settled);
}

void Pipeline::stopped(Stopped stopped) {
    Drop& drop = stopped.cause.example;
    drop.netns = stopped.change.netns = decode::decode_netns(drop.netns.inode, machine_);
    drop.owner = explainer_.owner(*drop.rule);
    for (const auto& output : outputs_)
        check(output->stopped(stopped));
}

CheckVerdict Pipeline::check(const check::Target& target, const check::Answer& answer, const KernelCounts& counts,
                             std::int64_t now_ns) {
    CheckVerdict verdict = check::verdict(target, answer, summarize(counts, now_ns, true));
    for (const auto& output : outputs_)
        check(output->check(verdict, now_ns));
    return verdict;
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
