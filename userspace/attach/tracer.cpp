// SPDX-License-Identifier: GPL-2.0-only
#include "attach/tracer.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <limits>
#include <numeric>
#include <set>
#include <utility>

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <fmt/format.h>
#include <spdlog/spdlog.h>
#include <linux/membarrier.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "attach/attachment.h"
#include "attach/bpf_object.h"
#include "attach/bpf_permission.h"
#include "attach/hook_callers.h"
#include "attach/kernel_types.h"
#include "attach/locations.h"
#include "attach/lost_changes.h"
#include "attach/program_kinds.h"
#include "attach/program_loading.h"
#include "attach/reason_names.h"
#include "attach/running_kernel.h"
#include "kprobe_limits.h"
#include "util/fd.h"
#include "util/kallsyms.h"
#include "util/netns.h"

namespace tsdroptrace::attach {
namespace {

int to_log(libbpf_print_level level, const char* format, va_list arguments) {
    // What libbpf warns of is often expected here (a function that this kernel does not have).
    if (level == LIBBPF_DEBUG || !spdlog::should_log(spdlog::level::debug))
        return 0;
    va_list again;
    va_copy(again, arguments);
    std::string text(static_cast<std::size_t>(std::max(std::vsnprintf(nullptr, 0, format, again), 0)), '\0');
    va_end(again);
    const int length = std::vsnprintf(text.data(), text.size() + 1, format, arguments);
    std::string_view line = text;
    while (line.ends_with('\n'))
        line.remove_suffix(1);
    spdlog::debug("{}", line);
    return length;
}

constexpr std::size_t candidate_bytes = 32, chunk_candidates = 32;

// How many chunks of candidate rules each CPU gets, for IPv4 and again for IPv6: 4 MB in all, 8192 rules at most.
std::uint32_t pool_chunks(int cpus) {
    constexpr std::size_t budget = 4 << 20, chunk = candidate_bytes * chunk_candidates;
    return static_cast<std::uint32_t>(
        std::clamp<std::size_t>(budget / (chunk * static_cast<std::size_t>(cpus)), 8, 256));
}

// Few have many rules for ARP, or for bridges.
std::uint32_t pool_chunks_small(int cpus) {
    return std::max(pool_chunks(cpus) / 8, 2u);
}

// How many functions may be traced late in one run.
constexpr std::size_t max_late_functions = 48;

} // namespace

// The programs are loaded as one object. When a module appears later, its programs come with another copy of the
// object, which shares the maps of the first.
struct Tracer::State {
    // What the programs count in variables, which all copies of the object share.
    struct Counts {
        std::array<std::uint32_t, TSDT_GENERATION_MAX>* generations = nullptr;
        std::array<std::int32_t, TSDT_GENERATION_MAX>* changing = nullptr;
        std::uint64_t* changes_told = nullptr;
        std::array<std::uint64_t, TSDT_NETNS_CLASSES>* changes_untold = nullptr;
        std::uint32_t *expressions_loaded = nullptr, *expressions_traced = nullptr;
        std::uint32_t* matches_traced = nullptr;
        std::uint32_t* module_loads_lost = nullptr;    // on 5.10 alone
        std::uint32_t* queue_handler_absent = nullptr; // not on 5.10
        std::uint64_t* unseen = nullptr;
        std::uint32_t* bridge_targets_traced = nullptr;
        std::uint64_t* stood_in = nullptr; // not where a program is run on top of itself: on 5.10
    };

    Filter filter;
    std::vector<std::uint32_t> reasons; // of the filter
    int cpus = 1;
    KernelVersion kernel;

    ObjectKind kind = ObjectKind::fentry;
    std::vector<BpfObject> objects; // the first one owns the maps
    Counts counts;
    const bpf_program* emitter = nullptr; // the program on kfree_skb that is active
    std::vector<Link> emitter_links;
    std::map<std::string, Link, std::less<>> links; // by section: "fentry/nft_do_chain"
    std::uint64_t missed_before = 0;                // by earlier emitters
    bool without_functions = false;                 // none can be traced
    std::string problem;                            // why functions cannot be traced, once that is known
    std::set<std::string> modules;
    std::unique_ptr<const KernelTypes> types; // while starting; on 5.10 always: no module brings types there
    decode::KernelNames names;
    std::optional<std::set<std::string>> reasons_of; // the modules that have been asked for names of reasons; none: few

    std::map<std::string, Symbol, std::less<>> symbols; // kprobes: of the functions, as of the last look
    std::map<std::string, std::uint64_t> loads;         // kprobes: of the modules, then
    std::uint64_t loaded_ns(std::string_view module) const;
    Locations locations{[this](std::string_view module) { return loaded_ns(module); }}; // 5.10
    bool nf_tables_at_start = false;
    std::string nft_problem; // 5.11 to 5.16: why nf_tables cannot be traced

    std::set<std::string, std::less<>> late_functions;          // asked for so far, attached or not
    std::map<std::string, BpfObject, std::less<>> late_objects; // their programs, by what those are written for
    Fd fentry_link;                                             // of try_fentry()
    std::vector<Fd> late_links;                                 // of copies of templates; the others are in `links`

    struct RingDeleter {
        void operator()(ring_buffer* ring) const { ring_buffer__free(ring); }
    };
    std::unique_ptr<ring_buffer, RingDeleter> ring, changes_ring;
    const std::function<bool(std::span<const std::byte>)>* sink = nullptr;
    const std::function<void(std::span<const std::byte>)>* changes_sink = nullptr;

    bool traces(std::string_view function) const {
        return std::ranges::any_of(function_sections, [&](std::string_view prefix) {
            return links.contains(fmt::format("{}{}", prefix, function));
        });
    }
    bool traces_functions() const {
        return std::ranges::any_of(links, [](const auto& link) {
            return std::ranges::any_of(function_sections,
                                       [&](std::string_view prefix) { return link.first.starts_with(prefix); });
        });
    }
    const BpfObject& shared() const { return objects.front(); }
    // From 6.7 nft_do_chain frees what it drops itself: nothing is to be learnt at its end.
    bool chain_frees() const { return kernel >= KernelVersion{6, 7}; }
    bool on_kprobes() const { return kind != ObjectKind::fentry; }
    bool modules_have_types() const { return kind != ObjectKind::linux_5_10; }
    std::set<std::string> modules_now() const;
    std::uint64_t missed() const; // how often the emitter could not be run
    void forget_lost_changes();
    void tell_bridge_targets() const;

    std::array<LostChanges, TSDT_GENERATION_MAX> lost_changes;

    int start();
    void begin_anew(ObjectKind with);
    int add(bool with_functions, bool with_emitter);
    BpfObject open(const KernelTypes& types_now) const;
    void find_symbols(const BpfObject& object);
    std::uint64_t address_of(const bpf_program* program) const; // kprobes; else 0
    bool is_there(std::string_view function, const KernelTypes& types_now) const;
    bool choose_functions(const BpfObject& object, const KernelTypes& types_now) const;
    void set_constants(const BpfObject& object, const KernelTypes& types_now, std::uint32_t instance);
    std::uint32_t reason_told_elsewhere(const KernelTypes& types_now) const;
    void set_sizes(const BpfObject& object) const;
    int share_maps(const BpfObject& object) const;
    void keep_counts(const BpfObject& object);
    int fill_hook_callers(const BpfObject& object) const;
    void trace_late(const std::string& function, std::string_view programs, const KernelTypes& types_now);
    int add_late(const std::string& function, std::string_view programs, const KernelTypes& types_now);
    int copy_template(const BpfObject& object, const std::string& function, const KernelTypes& types_now);
    bool traces_matches() const;
    void watch_queue_handler() const;
};

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

// Another copy of the object, to be fitted to these types.
BpfObject Tracer::State::open(const KernelTypes& types_now) const {
    const auto path = types_now.path();
    return BpfObject::open(kind, path ? path->c_str() : nullptr);
}

// Creates the map of an object's variables, which are all zero: libbpf would copy these megabytes of zeros into it.
int create_variables(const BpfObject& object) {
    bpf_map* variables = object.map(".bss");
    LIBBPF_OPTS(bpf_map_create_opts, options);
    options.map_flags = BPF_F_MMAPABLE;
    const Fd map(bpf_map_create(BPF_MAP_TYPE_ARRAY, "tsdroptr.bss", sizeof(std::uint32_t),
                                bpf_map__value_size(variables), 1, &options));
    return map ? bpf_map__reuse_fd(variables, map.get()) : -errno; // which keeps a descriptor of its own
}

int Tracer::State::share_maps(const BpfObject& object) const {
    const bpf_map *bss = object.map(".bss"), *emit_call = object.map("emit_call");
    bpf_map* map;
    bpf_object__for_each_map (map, object.get()) {
        if ((bpf_map__is_internal(map) && map != bss) || map == emit_call)
            continue; // constants, and the program that emits: each object has its own
        if (const int error = bpf_map__reuse_fd(map, shared().fd(map == bss ? ".bss" : bpf_map__name(map))))
            return error;
    }
    return 0;
}

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
    keep(counts.stood_in, "stood_in");
}

int Tracer::State::fill_hook_callers(const BpfObject& object) const {
    const int map = object.fd("hook_callers");
    if (map < 0)
        return 0;
    for (const HookCaller& caller : hook_callers) {
        char key[24] = ""; // struct hook_caller
        std::strncpy(key, caller.name, sizeof(key) - 1);
        const std::uint32_t hook = static_cast<std::uint32_t>(caller.pf << 8 | caller.hook);
        if (const int error = bpf_map_update_elem(map, key, &hook, BPF_ANY))
            return error;
    }
    return 0;
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

// Of an object that has been loaded for another function: to load it again for each one would take long.
int Tracer::State::copy_template(const BpfObject& object, const std::string& function, const KernelTypes& types_now) {
    const auto id = types_now.function(function);
    if (!id)
        return -ESRCH;
    bpf_program* original;
    bpf_object__for_each_program (original, object.get())
        if (bpf_program__autoload(original))
            break;
    LIBBPF_OPTS(bpf_prog_load_opts, options);
    options.expected_attach_type = BPF_TRACE_FEXIT;
    options.attach_btf_id = id->type_id;
    options.attach_btf_obj_fd = static_cast<__u32>(id->btf_object);
    const Fd program(bpf_prog_load(BPF_PROG_TYPE_TRACING, bpf_program__name(original), "GPL",
                                   bpf_program__insns(original), bpf_program__insn_cnt(original), &options));
    if (!program)
        return -errno;
    Fd link(bpf_link_create(program.get(), 0, BPF_TRACE_FEXIT, nullptr));
    if (!link)
        return -errno;
    late_links.push_back(std::move(link));
    return 0;
}

// Attaches to one function the programs that are written for `programs`: that function, or a template. Returns 0 or a
// negative error.
int Tracer::State::add_late(const std::string& function, std::string_view programs, const KernelTypes& types_now) {
    auto known = late_objects.find(programs);
    if (known != late_objects.end() && !on_kprobes())
        return copy_template(known->second, function, types_now);
    if (known == late_objects.end()) {
        BpfObject object = open(types_now);
        if (!object)
            return -errno;
        bpf_program* program;
        bpf_object__for_each_program (program, object.get())
            bpf_program__set_autoload(program, function_of(program) == programs);
        set_sizes(object);
        if (const int error = share_maps(object))
            return error;
        if (const int error = load_programs(object, types_now, function))
            return error;
        known = late_objects.emplace(programs, std::move(object)).first;
    }
    std::vector<Attachment> attachments;
    bpf_program* program;
    bpf_object__for_each_program (program, known->second.get())
        if (bpf_program__autoload(program))
            attachments.push_back({.program = program, .address = on_kprobes() ? symbols[function].address : 0});
    attach_all(attachments);
    for (const Attachment& attachment : attachments)
        if (!attachment.link)
            return -attachment.error;
    for (Attachment& attachment : attachments) {
        const std::string_view section = bpf_program__section_name(attachment.program);
        links[fmt::format("{}/{}", section.substr(0, section.find('/')), function)] = std::move(attachment.link);
    }
    return 0;
}

void Tracer::State::trace_late(const std::string& function, std::string_view programs, const KernelTypes& types_now) {
    const int error = is_there(function, types_now) ? add_late(function, programs, types_now) : -ESRCH;
    if (error)
        spdlog::debug("the function {} cannot be traced: {}", function, std::strerror(-error));
}

// Whether nothing can drop as a match of iptables-nft without being seen.
bool Tracer::State::traces_matches() const {
    return std::ranges::all_of(nft_matches, [&](std::string_view function) { return traces(function); });
}

// The kernel does not run a program on top of itself on one CPU, but counts these.
std::uint64_t Tracer::State::missed() const {
    bpf_prog_info info{};
    std::uint32_t size = sizeof(info);
    if (bpf_obj_get_info_by_fd(bpf_program__fd(emitter), &info, &size))
        return 0;
    return info.recursion_misses;
}

void Tracer::State::tell_bridge_targets() const {
    std::uint32_t traced = 0;
    for (std::size_t i = 0; i < std::size(bridge_targets); ++i)
        traced |= traces(bridge_targets[i]) ? 1u << i : 0;
    __atomic_store_n(counts.bridge_targets_traced, traced, __ATOMIC_RELEASE);
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

void Tracer::State::set_sizes(const BpfObject& object) const {
    object.set_max_entries("pool", 2 * (pool_chunks(cpus) + pool_chunks_small(cpus)));
    object.set_max_entries("verdicts", 1024 + 256 * static_cast<std::uint32_t>(cpus));
    object.set_max_entries("calls", 1024 + 256 * static_cast<std::uint32_t>(cpus));
}

// The reason that stands for all that a queue refuses, where the kernel tells the queue's own at a trace point; else 0.
std::uint32_t Tracer::State::reason_told_elsewhere(const KernelTypes& types_now) const {
    const bool can_be_had = cpus <= TSDT_MAX_CPUS && types_now.function("btf_trace_qdisc_drop");
    const auto told =
        std::ranges::find_if(names.reasons, [](const auto& reason) { return reason.second == decode::queue_refused; });
    return can_be_had && told != names.reasons.end() ? told->first : 0;
}

void Tracer::State::set_constants(const BpfObject& object, const KernelTypes& types_now, std::uint32_t instance) {
    object.set_constant("instance", instance);
    set_filter_constants(object, filter);
    object.set_constant("inferred", without_functions);
    object.set_constant("own_netns", current_netns());
    object.set_constant("percpu_counters", cpus > 1);
    object.set_constant("cpus", static_cast<std::uint32_t>(cpus));
    object.set_constant("pool_chunks", pool_chunks(cpus));
    object.set_constant("pool_chunks_small", pool_chunks_small(cpus));
    if (modules_have_types())
        object.set_constant("queue_refused", reason_told_elsewhere(types_now));
    if (!on_kprobes())
        return;
    const Symbol nf_hook_slow = symbols["nf_hook_slow"], per_cpu_offset = symbols["__per_cpu_offset"];
    object.set_constant("table_is_first", kernel >= KernelVersion{5, 16});
    object.set_constant("chain_frees", chain_frees());
    if (!nf_hook_slow.size)
        problem = "/proc/kallsyms does not say where functions are: needs CAP_SYSLOG";
    if (modules_have_types())
        return;
    for (const std::string_view function : {"nf_hook_slow", "nf_queue", "nf_reinject"}) {
        const auto symbol = symbols.find(function);
        if (symbol != symbols.end())
            object.set_constant(fmt::format("code_of_{}", function),
                                std::array<std::uint64_t, 2>{symbol->second.address, symbol->second.size});
    }
    object.set_constant("per_cpu_offset_at", per_cpu_offset.address);
    if (problem.empty() && cpus > 1 && !per_cpu_offset.address)
        problem = "/proc/kallsyms does not say where __per_cpu_offset is";
}

// Loads and attaches one more object: the programs on functions that are not traced yet, the program on kfree_skb,
// or both. Returns 0 or a negative error.
int Tracer::State::add(bool with_functions, bool with_emitter) {
    std::optional<KernelTypes> read_now;
    if (!types) // read at the start; later anew, since modules have come
        read_now.emplace(shared().functions(), shared().types());
    const KernelTypes& types_now = types ? *types : *read_now;
    BpfObject object = open(types_now);
    if (!object)
        return -errno;
    if (on_kprobes())
        find_symbols(object);
    bool any = false;
    if (with_functions) {
        any = choose_functions(object, types_now);
    } else {
        bpf_program* program;
        bpf_object__for_each_program (program, object.get())
            bpf_program__set_autoload(program, false);
    }
    if (!any && !with_emitter)
        return 0;
    const auto instance = static_cast<std::uint32_t>(objects.size());
    set_constants(object, types_now, instance);
    const bool adds_seen = filter.seen && objects.empty();
    choose_seen(object, filter, types_now, adds_seen);
    if (adds_seen)
        set_seen_constants(object, filter);
    set_sizes(object);
    const bool adds_nft = object.autoload("nft_do_chain_begin");
    constexpr std::string_view legacy_functions[] = {"ipt_do_table", "ip6t_do_table", "arpt_do_table", "ebt_do_table"};
    const bool adds_legacy = std::ranges::any_of(legacy_functions, [&](std::string_view function) {
        return object.autoload(fmt::format("{}_begin", function).c_str());
    });
    const bool had_legacy =
        std::ranges::any_of(legacy_functions, [&](std::string_view function) { return traces(function); });
    const bool adds_bridge = object.autoload("ebt_do_table_begin"), had_bridge = traces("ebt_do_table");
    if (!modules_have_types()) {
        // The first program on kfree_skb knows all there is to know.
        object.set_constant("traces_nft", with_functions && nft_problem.empty());
        object.set_constant("traces_legacy", with_functions);
    } else {
        object.set_constant("traces_nft", adds_nft || traces("nft_do_chain"));
        object.set_constant("traces_legacy", adds_legacy || had_legacy);
        object.set_constant("traces_bridge", adds_bridge || had_bridge);
        // One that did not know a backend's types, or those of x_tables' matches, makes room for one that does.
        with_emitter |= adds_nft || (adds_legacy && !had_legacy) || (adds_bridge && !had_bridge) ||
                        object.autoload("xt_register_table_end");
    }
    const bpf_program *on_kfree_skb = object.program("on_kfree_skb"), *again = object.program("on_kfree_skb_again"),
                      *emit = object.program("emit"); // 5.10 has the first one only
    object.set_autoload("emit", with_emitter);
    object.set_autoload("on_kfree_skb", with_emitter);
    object.set_autoload("on_kfree_skb_again", with_emitter && cpus <= TSDT_MAX_CPUS);
    const std::string_view migrate = bpf_program__section_name(object.program("on_sched_migrate_task"));
    object.set_autoload("on_sched_migrate_task", (adds_nft || adds_legacy) && !links.contains(migrate));
    object.set_autoload("on_module_load", objects.empty()); // not there: no module can come
    object.set_autoload("on_qdisc_drop", objects.empty() && reason_told_elsewhere(types_now));
    const bool is_first = objects.empty() && with_functions;
    const bpf_program* find_per_cpu_memory = object.program("find_per_cpu_memory"); // not on 5.10
    object.set_autoload("find_per_cpu_memory", is_first);

    if (const int error = objects.empty() ? create_variables(object) : share_maps(object))
        return error;
    if (const int error = load_programs(object, types_now))
        return error;
    if (objects.empty()) {
        if (const int error = fill_filter(object, filter, reasons); error || fill_hook_callers(object))
            return error ? error : -errno;
        keep_counts(object);
    }
    if (is_first && find_per_cpu_memory) {
        LIBBPF_OPTS(bpf_test_run_opts, run);
        if (const int error = bpf_prog_test_run_opts(bpf_program__fd(find_per_cpu_memory), &run))
            return error;
    }

    if (with_emitter && emit) {
        const std::uint32_t zero = 0;
        const int fd = bpf_program__fd(emit);
        if (const int error = bpf_map_update_elem(object.fd("emit_call"), &zero, &fd, BPF_ANY))
            return error;
    }

    std::vector<Attachment> attachments;
    bpf_program* program;
    bpf_object__for_each_program (program, object.get())
        if (bpf_program__autoload(program) && program != emit && program != find_per_cpu_memory)
            attachments.push_back({.program = program, .address = address_of(program)});
    attach_all(attachments);
    std::vector<Link> new_emitter_links;
    int failed = 0;
    for (Attachment& attachment : attachments) {
        if (!attachment.link) {
            const char* why = std::strerror(attachment.error);
            spdlog::debug("{}: not attached: {}", bpf_program__name(attachment.program), why);
            if (attachment.program == on_kfree_skb)
                failed = -attachment.error;
            if (const std::string_view function = function_of(attachment.program); !function.empty())
                problem = fmt::format("{} cannot be traced: {}", function, why);
        } else if (attachment.program == on_kfree_skb || attachment.program == again) {
            new_emitter_links.push_back(std::move(attachment.link));
        } else {
            links[bpf_program__section_name(attachment.program)] = std::move(attachment.link);
        }
    }
    if (failed)
        return failed;
    if (with_emitter) {
        const std::uint32_t zero = 0;
        if (const int error = bpf_map_update_elem(object.fd("control"), &zero, &instance, BPF_ANY))
            return error;
        if (emitter)
            missed_before += missed();
        emitter_links = std::move(new_emitter_links);
        emitter = on_kfree_skb;
    }
    objects.push_back(std::move(object));
    tell_bridge_targets();
    // Packets that were dropped when only the begin of their table was traced have left counters that no one took note
    // of.
    if (adds_bridge)
        __atomic_fetch_add(&(*counts.generations)[TSDT_GENERATION_X_TABLES], 1, __ATOMIC_ACQ_REL);
    return 0;
}

// With other programs, which look at the same of the kernel's types. What has been attached before is gone.
void Tracer::State::begin_anew(ObjectKind with) {
    emitter_links.clear();
    links.clear();
    emitter = nullptr;
    objects.clear();
    counts = {};
    problem.clear();
    kind = with;
    modules = modules_now();
}

std::string why(int error) {
    constexpr int enotsupp = 524; // the kernel's own, which should not come here
    return error == EPERM ? "not permitted" : error == enotsupp ? "not supported" : std::strerror(error);
}

// Attaches all that can be: where fentry cannot, kprobes. Where no function can be traced, `problem` says why, and
// there are still the drops themselves. Returns 0 or a negative error.
int Tracer::State::start() {
    without_functions = !problem.empty();
    if (without_functions)
        return add(false, true);
    int error = add(true, true);
    if (kind == ObjectKind::fentry && !traces_functions()) {
        const int refused = try_fentry(*types, fentry_link);
        if (!refused && !error)
            return 0;
        std::string kprobes = "there are none";
        if (refused && has_kprobes()) {
            begin_anew(ObjectKind::kprobe);
            error = add(true, true);
            if (!error && (problem.empty() || traces_functions()))
                return 0;
            kprobes = error ? why(-error) : problem;
        }
        begin_anew(ObjectKind::fentry);
        if (refused)
            problem = fmt::format("this kernel does not let BPF be attached to functions (fentry: {}; kprobes: {})",
                                  why(refused), kprobes);
    } else if (!error) {
        return 0;
    } else if (-error == EPERM) {
        problem = "this kernel does not let BPF be attached to functions (kprobes: not permitted)";
    }
    if (problem.empty())
        problem = fmt::format("the programs on netfilter's functions cannot be loaded: {}", std::strerror(-error));
    without_functions = true;
    return add(false, true);
}

Tracer::Tracer(std::unique_ptr<State> state) : state_(std::move(state)) {}
Tracer::~Tracer() = default;

Result<std::unique_ptr<Tracer>> Tracer::start(const Filter& filter) {
    libbpf_set_print(to_log);
    if (!has_btf())
        return Error{ErrorKind::unsupported,
                     "this kernel has no type information (/sys/kernel/btf/vmlinux is missing): needs a kernel built "
                     "with CONFIG_DEBUG_INFO_BTF=y, as the distributions' own are"};

    auto state = std::make_unique<State>();
    state->filter = filter;
    state->cpus = std::max(libbpf_num_possible_cpus(), 1);
    state->kernel = running_kernel();
    register_lookup();
    const BpfObject fentry = BpfObject::open(ObjectKind::fentry, nullptr);
    if (!fentry)
        return Error{ErrorKind::other, fmt::format("cannot open the BPF programs: {}", std::strerror(errno))};
    auto types = fentry.types();
    if (state->kernel < KernelVersion{5, 17}) // may be one without types of modules: see below
        if (const BpfObject old = BpfObject::open(ObjectKind::linux_5_10, nullptr))
            types.merge(old.types());
    auto functions = fentry.functions();
    add_placeholders(functions, types);
    functions.insert(function_for_tests);
    state->types = std::make_unique<const KernelTypes>(functions, types);
    // A kernel without bpf_loop has no type information of modules either (or is one of 5.11 to 5.16, which nothing
    // here is written for): there kprobes do it.
    if (!state->types->has_bpf_loop()) {
        state->kind = ObjectKind::linux_5_10;
        if (state->kernel != KernelVersion{5, 10} || !state->types->lays_out_like_5_10())
            state->nft_problem = "this kernel's modules have no type information (5.11), and it does not lay out "
                                 "nf_tables' structures as 5.10 does";
    }
    state->nf_tables_at_start = state->types->function("nft_do_chain").has_value();
    state->modules = state->modules_now();
    state->names = state->types->names();
    auto reasons = decode::reason_codes(filter.reasons, state->names);
    if (!reasons)
        return reasons.error();
    state->reasons = std::move(*reasons);
    if (state->cpus > TSDT_MAX_CPUS)
        state->problem = fmt::format("this kernel has room for more than {} CPUs", TSDT_MAX_CPUS);
    if (const int error = state->start())
        return explain_load_failure(-error);

    if (state->modules_have_types())
        state->types.reset();
    state->watch_queue_handler();

    const auto on_record = [](void* context, void* data, std::size_t size) -> int {
        const auto* self = static_cast<State*>(context);
        return (*self->sink)({static_cast<const std::byte*>(data), size}) ? 0 : -ECANCELED;
    };
    state->ring.reset(ring_buffer__new(state->shared().fd("events"), on_record, state.get(), nullptr));
    const auto on_change = [](void* context, void* data, std::size_t size) -> int {
        (*static_cast<State*>(context)->changes_sink)({static_cast<const std::byte*>(data), size});
        return 0;
    };
    state->changes_ring.reset(ring_buffer__new(state->shared().fd("changes"), on_change, state.get(), nullptr));
    if (!state->ring || !state->changes_ring)
        return Error{ErrorKind::other, fmt::format("cannot map the ring buffer: {}", std::strerror(errno))};
    return std::unique_ptr<Tracer>(new Tracer(std::move(state)));
}

void Tracer::stop() {
    const std::uint32_t zero = 0, nobody = ~0u;
    bpf_map_update_elem(state_->shared().fd("control"), &zero, &nobody, BPF_ANY);
}

void Tracer::refresh() {
    state_->forget_lost_changes();
    if (!state_->problem.empty())
        return;
    const Tracer::State::Counts& counts = state_->counts;
    const auto loaded = std::atomic_ref(*counts.expressions_loaded).load(); // a module is listed before it is counted
    auto modules = state_->modules_now();
    if (modules != state_->modules) {
        state_->modules = std::move(modules);
        const auto before = state_->links.size();
        if (const int error = state_->add(true, false)) {
            spdlog::warn("a netfilter module has been loaded, but its rules cannot be named: {}",
                         std::strerror(-error));
            return;
        }
        if (state_->links.size() > before) {
            state_->watch_queue_handler();
            spdlog::info("a netfilter module has been loaded: it is traced from now on");
        }
    }
    if (!state_->traces_matches())
        std::atomic_ref(*counts.matches_traced).store(0);
    std::atomic_ref(*counts.expressions_traced).store(loaded);
}

void Tracer::trace_suspects(const decode::Suspects& suspects) {
    using Kind = decode::Suspects::Kind;
    if (!state_->problem.empty() || (!state_->modules_have_types() && suspects.kind == Kind::hook_functions))
        return;
    std::vector<HookFunction> functions = suspects.functions;
    if (suspects.kind == Kind::nft_matches) {
        functions.clear();
        for (const std::string_view function : nft_matches)
            functions.push_back({std::string(function), "nft_compat", {}, {}});
    }
    // A module may have come a moment ago, and have dropped a packet at once. Its tables are to be traced as tables:
    // taken for a function without rules, one would be that for good.
    if (state_->late_functions.size() < max_late_functions &&
        std::ranges::any_of(functions, [&](const HookFunction& function) {
            return !state_->traces(function.name) && !state_->late_functions.contains(function.name);
        }))
        refresh();
    KernelTypes::Names names, modules;
    for (const HookFunction& function : functions) {
        // nf_tables' own: of its rules the probe of one may have been skipped.
        if (state_->on_kprobes() && function.name.find("do_chain") != std::string::npos)
            continue;
        if (state_->late_functions.size() >= max_late_functions || state_->traces(function.name) ||
            !state_->late_functions.insert(function.name).second)
            continue;
        names.insert(function.name);
        if (function.module)
            modules.insert(*function.module);
    }
    if (names.empty())
        return;
    std::optional<KernelTypes> types;
    if (state_->on_kprobes())
        state_->find_symbols(state_->shared());
    if (state_->modules_have_types())
        types.emplace(names, state_->shared().types(), modules);
    const KernelTypes& types_now = types ? *types : *state_->types;
    for (const std::string& name : names) {
        const std::string_view any = suspects.kind == Kind::legacy_matches ? match_template : hook_function_template;
        state_->trace_late(name, is_late_program(name) ? std::string_view(name) : any, types_now);
    }
    if (suspects.kind == Kind::nft_matches && state_->traces_matches()) {
        // A packet that was past such a match when it began to be traced must not be taken for one that met none.
        syscall(SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0); // the kernel's synchronize_rcu()
        std::atomic_ref(*state_->counts.matches_traced).store(1);
    }
}

Status Tracer::poll(std::chrono::milliseconds timeout, const std::function<bool(std::span<const std::byte>)>& sink) {
    state_->sink = &sink;
    const int got = ring_buffer__poll(state_->ring.get(), static_cast<int>(timeout.count()));
    state_->sink = nullptr;
    if (got < 0 && got != -EINTR && got != -ECANCELED)
        return Error{ErrorKind::other, fmt::format("cannot read the ring buffer: {}", std::strerror(-got))};
    return Ok{};
}

Status Tracer::poll_changes(const std::function<void(std::span<const std::byte>)>& sink) {
    state_->changes_sink = &sink;
    const int got = ring_buffer__consume(state_->changes_ring.get());
    state_->changes_sink = nullptr;
    if (got < 0)
        return Error{ErrorKind::other, fmt::format("cannot read the ring buffer of changes: {}", std::strerror(-got))};
    return Ok{};
}

bool Tracer::traces(std::string_view function) const {
    return state_->traces(function);
}

bool Tracer::has_nf_tables() const {
    return state_->nf_tables_at_start || module_is_loaded("nf_tables");
}

const decode::KernelNames& Tracer::names() const {
    return state_->names;
}

bool Tracer::learn_reasons() {
    if (state_->names.reasons.empty()) // the kernel gives none
        return false;
    auto modules = modules_with_btf();
    if (state_->reasons_of == modules)
        return false;
    state_->reasons_of = std::move(modules);
    const auto before = state_->names.reasons.size();
    state_->names.reasons.merge(read_reasons().reasons);
    return state_->names.reasons.size() > before;
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
    const int map = state_->shared().fd("causes");
    tsdt_cause_key key{};
    for (int more = bpf_map_get_next_key(map, nullptr, &key); more == 0; more = bpf_map_get_next_key(map, &key, &key))
        if (auto value = cause(key))
            all.push_back(*value);
    return all;
}

std::vector<FlowCount> Tracer::flows() const {
    std::vector<FlowCount> all;
    const int map = state_->shared().fd("flows");
    FlowCount flow{};
    for (int more = bpf_map_get_next_key(map, nullptr, &flow.key); more == 0;
         more = bpf_map_get_next_key(map, &flow.key, &flow.key))
        if (bpf_map_lookup_elem(map, &flow.key, &flow.packets) == 0)
            all.push_back(flow);
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
    tsdt_seen_count count{};
    for (int more = bpf_map_get_next_key(map, nullptr, &count.key); more == 0;
         more = bpf_map_get_next_key(map, &count.key, &count.key))
        if (bpf_map_lookup_elem(map, &count.key, &count.value) == 0)
            all.push_back(count);
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
