// SPDX-License-Identifier: GPL-2.0-only
// The functions of the kernel that are there, those that are traced, and what that makes of each backend.
#include <algorithm>
#include <atomic>
#include <initializer_list>
#include <iterator>
#include <utility>

#include <bpf/libbpf.h>
#include <fmt/format.h>

#include "attach/program_kinds.h"
#include "attach/tracer_state.h"
#include "kprobe_limits.h"

namespace tsdroptrace::attach {

bool Tracer::State::traces(std::string_view function) const {
    return std::ranges::any_of(function_sections, [&](std::string_view prefix) {
        return links.contains(fmt::format("{}{}", prefix, function));
    });
}

bool Tracer::State::traces_functions() const {
    return std::ranges::any_of(links, [](const auto& link) {
        return std::ranges::any_of(function_sections,
                                   [&](std::string_view prefix) { return link.first.starts_with(prefix); });
    });
}

bool Tracer::traces(std::string_view function) const {
    return state_->traces(function);
}

// A module that has come back is another one to kprobes: they do not hold it.
std::set<std::string> Tracer::State::modules_now() const {
    std::set<std::string> modules;
    if (modules_have_types())
        modules.merge(modules_with_btf());
    if (on_kprobes())
        for (const auto& [module, load] : modules_loaded())
            modules.insert(fmt::format("{} {}", module, load));
    return modules;
}

// Where the functions are now. A probe on one that has gone, with its module, is of no use any more, also where it has
// come back.
void Tracer::State::find_symbols(const BpfObject& object) {
    const auto functions = object.functions();
    std::set<std::string, std::less<>> wanted{"nf_hook_slow", "nf_queue", "nf_reinject", "__per_cpu_offset"};
    wanted.insert(functions.begin(), functions.end());
    wanted.insert(late_functions.begin(), late_functions.end());
    auto now = tsdroptrace::find_symbols(wanted);
    auto loads_now = modules_loaded();
    std::erase_if(links, [&](const auto& link) {
        const std::string_view section = link.first;
        const auto before = symbols.find(section.substr(section.find('/') + 1));
        if (before == symbols.end()) // a tracepoint
            return false;
        const auto after = now.find(before->first);
        const bool gone = after == now.end() || after->second.address != before->second.address ||
                          loads[before->second.module] != loads_now[before->second.module];
        if (const auto late = late_functions.find(before->first); gone && late != late_functions.end())
            late_functions.erase(late); // to be asked for again
        if (gone && before->first == "nft_do_chain")
            for (std::uint64_t* site : {counts.rule_site, counts.policy_site})
                std::atomic_ref(*site).store(0);
        return gone;
    });
    symbols = std::move(now);
    loads = std::move(loads_now);
}

std::uint64_t Tracer::State::address_of(const bpf_program* program) const {
    const auto symbol = symbols.find(function_of(program));
    return symbol == symbols.end() ? 0 : symbol->second.address;
}

// Whether this kernel has the function now, and it can be made sense of.
bool Tracer::State::is_there(std::string_view function, const KernelTypes& types_now) const {
    if (on_kprobes() && (!symbols.contains(function) || (!nft_problem.empty() && function.starts_with("nf"))))
        return false;
    return !modules_have_types() || types_now.function(function).has_value();
}

// Turns off the programs of functions that this kernel does not have (now), or that are traced already. True when
// any is left.
bool Tracer::State::choose_functions(const BpfObject& object, const KernelTypes& types_now) const {
    bool any = false;
    bpf_program* program;
    bpf_object__for_each_program (program, object.get()) {
        const std::string_view function = function_of(program);
        if (function.empty())
            continue; // on_kfree_skb and its like: add() knows
        const bool needed = program != object.program("nft_do_chain_end") || !chain_frees();
        const bool load =
            needed && !is_late_program(function) && (!is_queue_program(function) || rules_may_queue(types_now)) &&
            (!is_bridge_target(function) || types_now.function("ebt_do_table")) &&
            !links.contains(std::string_view(bpf_program__section_name(program))) && is_there(function, types_now);
        bpf_program__set_autoload(program, load);
        any |= load;
    }
    return any;
}

// Set first, then looked: a module that comes in between takes it back itself.
void Tracer::State::watch_queue_handler() const {
    std::uint32_t* absent = counts.queue_handler_absent;
    if (!absent || !traces("nf_register_queue_handler") || __atomic_load_n(absent, __ATOMIC_SEQ_CST))
        return;
    __atomic_store_n(absent, 1, __ATOMIC_SEQ_CST);
    if (module_is_loaded("nfnetlink_queue") || traces("nfqnl_enqueue_packet")) // or built in
        __atomic_store_n(absent, 0, __ATOMIC_SEQ_CST);
}

void Tracer::State::tell_bridge_targets() const {
    std::uint32_t traced = 0;
    for (std::size_t i = 0; i < std::size(bridge_targets); ++i)
        traced |= traces(bridge_targets[i]) ? 1u << i : 0;
    __atomic_store_n(counts.bridge_targets_traced, traced, __ATOMIC_RELEASE);
}

// Whether nothing can drop as a match of iptables-nft without being seen.
bool Tracer::State::traces_matches() const {
    return std::ranges::all_of(nft_matches, [&](std::string_view function) { return traces(function); });
}

Capabilities Tracer::capabilities() const {
    const std::string_view limits = state_->kind == ObjectKind::fentry   ? ""
                                    : state_->kind == ObjectKind::kprobe ? limits_of_kprobes
                                                                         : limits_on_5_10;
    // What cannot be seen shows in the counters of the rules, which userspace reads.
    const auto backend = [&](const char* module, const std::string& problem, const char* inferred,
                             std::initializer_list<const char*> needed) -> Capability {
        const auto by_counters = [inferred](const std::string& why) -> Capability {
            return {Exactness::inferred, fmt::format("{}; {}", inferred, why)};
        };
        if (!problem.empty())
            return by_counters(problem);
        if (std::ranges::all_of(needed, [&](const char* function) { return state_->traces(function); }))
            return {Exactness::exact, std::string(limits)};
        if (!state_->problem.empty())
            return by_counters(state_->problem);
        if (!module_is_loaded(module))
            return {Exactness::exact, fmt::format("{} is not loaded: no rules yet; watched for", module)};
        for (const char* function : needed)
            if (!state_->traces(function))
                return by_counters(fmt::format("this kernel does not let {} be traced", function));
        return {};
    };
    Capabilities capabilities;
    const auto nf_tables = [&](const char* inferred) {
        return backend("nf_tables", state_->nft_problem, inferred,
                       {"nft_do_chain", "nft_immediate_eval", "nf_tables_commit"});
    };
    capabilities.nftables = nf_tables("only rules with a counter, by reading it before and after a packet has died");
    capabilities.iptables_nft = nf_tables("rules, not policies, by reading their counters before and after a packet "
                                          "has died");
    capabilities.iptables_legacy =
        backend("ip_tables", "", "by reading the counters of rules and policies before and after a packet has died",
                {"ipt_do_table", "do_ipt_set_ctl", "xt_register_table"});
    return capabilities;
}

} // namespace tsdroptrace::attach
