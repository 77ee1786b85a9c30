// SPDX-License-Identifier: GPL-2.0-only
// Reads what the programs count: in maps, and in variables that all copies of the object share.
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <limits>
#include <numeric>

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include "attach/tracer_state.h"

namespace tsdroptrace::attach {
namespace {

// Entries that come or go meanwhile may be passed over, or met twice.
template <typename Key>
void for_each_key(int map, const auto& visit) {
    Key key{};
    for (int more = bpf_map_get_next_key(map, nullptr, &key); more == 0; more = bpf_map_get_next_key(map, &key, &key))
        visit(key);
}

} // namespace

void Tracer::State::keep_counts(const BpfObject& object) {
    const auto keep = [&]<typename T>(T*& place, const char* name) { place = object.variable<T>(name); };
    keep(counts.generations, "generations");
    keep(counts.changing, "changing");
    keep(counts.changes_told, "changes_told");
    keep(counts.changes_untold, "changes_untold");
    keep(counts.expressions_loaded, "expressions_loaded");
    keep(counts.expressions_traced, "expressions_traced");
    keep(counts.matches_traced, "matches_traced");
    keep(counts.module_loads_lost, "module_loads_lost");
    keep(counts.queue_handler_absent, "queue_handler_absent");
    keep(counts.unseen, "unseen");
    keep(counts.bridge_targets_traced, "bridge_targets_traced");
    keep(counts.rule_site, "rule_site");
    keep(counts.policy_site, "policy_site");
    keep(counts.stood_in, "stood_in");
}

// The kernel does not run a program on top of itself on one CPU, but counts these.
std::uint64_t Tracer::State::missed() const {
    bpf_prog_info info{};
    std::uint32_t size = sizeof(info);
    if (bpf_obj_get_info_by_fd(bpf_program__fd(emitter), &info, &size))
        return 0;
    return info.recursion_misses;
}

// When the module was loaded (CLOCK_MONOTONIC); 0: before the start, or it is vmlinux; the end of all time: that was
// not kept.
std::uint64_t Tracer::State::loaded_ns(std::string_view module) const {
    char name[56] = "";
    std::uint64_t loaded = 0;
    module.copy(name, sizeof(name) - 1);
    const bool kept = bpf_map_lookup_elem(shared().fd("module_loads"), name, &loaded) == 0;
    const bool any_lost = counts.module_loads_lost && std::atomic_ref(*counts.module_loads_lost).load() != 0;
    if (!kept && !module.empty() && any_lost)
        return std::numeric_limits<std::uint64_t>::max();
    return loaded;
}

void Tracer::State::forget_lost_changes() {
    for (std::size_t which = 0; which < lost_changes.size(); ++which) {
        const std::uint32_t generation = __atomic_load_n(&(*counts.generations)[which], __ATOMIC_ACQUIRE);
        auto& changing = (*counts.changing)[which];
        auto under_way = __atomic_load_n(&changing, __ATOMIC_ACQUIRE);
        if (lost_changes[which].are_there(generation, under_way, std::chrono::steady_clock::now()) &&
            __atomic_compare_exchange_n(&changing, &under_way, 0, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
            spdlog::debug("the end of {} changes of a ruleset was missed", under_way);
    }
}

std::optional<tsdt_cause> Tracer::cause(const tsdt_cause_key& key) const {
    tsdt_cause cause{};
    if (bpf_map_lookup_elem(state_->shared().fd("causes"), &key, &cause))
        return std::nullopt;
    // What the kernel could not print from BPF (bpf_snprintf, 5.13).
    const auto print = [&](std::uint64_t address, auto& text) {
        if (!address || text[0] || state_->modules_have_types())
            return;
        state_->locations.locate(address, cause.first_ns).copy(text, sizeof(text) - 1);
    };
    print(cause.key.location, cause.location);
    if (cause.key.source == TSDT_SOURCE_NETFILTER)
        for (tsdt_step& step : cause.step)
            print(step.handle, step.chain);
    return cause;
}

std::vector<tsdt_cause> Tracer::causes() const {
    std::vector<tsdt_cause> all;
    for_each_key<tsdt_cause_key>(state_->shared().fd("causes"), [&](const tsdt_cause_key& key) {
        if (auto value = cause(key))
            all.push_back(*value);
    });
    return all;
}

std::vector<FlowCount> Tracer::flows() const {
    std::vector<FlowCount> all;
    const int map = state_->shared().fd("flows");
    for_each_key<tsdt_flow_key>(map, [&](const tsdt_flow_key& key) {
        FlowCount flow{key, 0};
        if (bpf_map_lookup_elem(map, &key, &flow.packets) == 0)
            all.push_back(flow);
    });
    return all;
}

Retired Tracer::retire_causes(std::uint64_t before_ns) {
    constexpr std::size_t few = 256; // the map holds four times as many
    Retired retired;
    const std::vector<tsdt_cause> all = causes();
    if (all.size() <= few)
        return retired;
    const std::uint32_t nf_tables = generation(RulesetKind::nf_tables).number,
                        x_tables = generation(RulesetKind::x_tables).number;
    const auto is_over = [&](const tsdt_cause& cause) {
        const tsdt_cause_key& key = cause.key;
        const bool of_rule = key.source >= TSDT_SOURCE_NFT_RULE && key.source <= TSDT_SOURCE_LEGACY_POLICY;
        return (of_rule || key.generation) && key.generation != nf_tables && key.generation != x_tables &&
               cause.last_ns < before_ns;
    };
    std::set<std::uint32_t> ids;
    for (const tsdt_cause& cause : all) {
        if (!is_over(cause) || bpf_map_delete_elem(state_->shared().fd("causes"), &cause.key))
            continue;
        ids.insert(cause.id);
        retired.causes.push_back(cause);
    }
    for (const FlowCount& flow : flows())
        if (ids.contains(flow.key.cause_id) && bpf_map_delete_elem(state_->shared().fd("flows"), &flow.key) == 0)
            retired.flows.push_back(flow);
    return retired;
}

std::optional<std::vector<tsdt_seen_count>> Tracer::seen() const {
    if (!state_->filter.seen)
        return std::nullopt;
    std::vector<tsdt_seen_count> all;
    const int map = state_->shared().fd("seen");
    for_each_key<tsdt_seen_key>(map, [&](const tsdt_seen_key& key) {
        tsdt_seen_count count{key, {}};
        if (bpf_map_lookup_elem(map, &key, &count.value) == 0)
            all.push_back(count);
    });
    return all;
}

std::array<std::uint64_t, TSDT_LOST_MAX> Tracer::lost_by_place() const {
    std::array<std::uint64_t, TSDT_LOST_MAX> lost{};
    std::vector<std::uint64_t> per_cpu(static_cast<std::size_t>(state_->cpus));
    const int map = state_->shared().fd("lost");
    for (std::uint32_t place = 0; place < TSDT_LOST_MAX; ++place)
        if (bpf_map_lookup_elem(map, &place, per_cpu.data()) == 0)
            lost[place] = std::accumulate(per_cpu.begin(), per_cpu.end(), std::uint64_t{0});
    return lost;
}

std::map<std::string, std::uint64_t> Tracer::lost() const {
    std::map<std::string, std::uint64_t> lost;
    const auto by_place = lost_by_place();
    for (std::size_t place = 0; place < by_place.size(); ++place)
        if (by_place[place])
            lost.emplace(decode::lost_place_name(place), by_place[place]);
    if (const std::uint64_t unseen = __atomic_load_n(state_->counts.unseen, __ATOMIC_ACQUIRE))
        lost.emplace("seen", unseen);
    // on_kfree_skb_again stands in for on_kfree_skb where it can.
    const std::uint64_t missed = state_->missed_before + state_->missed();
    const std::uint64_t* counted = state_->counts.stood_in;
    const std::uint64_t stood_in = counted ? __atomic_load_n(counted, __ATOMIC_ACQUIRE) : 0;
    if (missed > stood_in)
        lost["recursion"] = missed - stood_in;
    return lost;
}

resolve_rule::Generation Tracer::generation(RulesetKind kind) const {
    const State::Counts& counts = state_->counts;
    const auto which = static_cast<std::size_t>(kind);
    // In this order: a change that begins in between shows.
    const std::uint32_t number = __atomic_load_n(&(*counts.generations)[which], __ATOMIC_ACQUIRE);
    return {number, __atomic_load_n(&(*counts.changing)[which], __ATOMIC_ACQUIRE) > 0};
}

decode::ChangeCounts Tracer::change_counts() const {
    decode::ChangeCounts counts;
    counts.told = __atomic_load_n(state_->counts.changes_told, __ATOMIC_ACQUIRE);
    for (std::size_t i = 0; i < counts.untold.size(); ++i)
        counts.untold[i] = __atomic_load_n(&(*state_->counts.changes_untold)[i], __ATOMIC_ACQUIRE);
    return counts;
}

std::uint64_t Tracer::map_memory() const {
    std::uint64_t sum = 0;
    const bpf_map* map;
    bpf_object__for_each_map (map, state_->shared().get()) {
        std::ifstream fdinfo(fmt::format("/proc/self/fdinfo/{}", bpf_map__fd(map)));
        for (std::string line; std::getline(fdinfo, line);)
            if (line.starts_with("memlock:"))
                sum += std::strtoull(line.c_str() + 8, nullptr, 10);
    }
    return sum;
}

} // namespace tsdroptrace::attach
