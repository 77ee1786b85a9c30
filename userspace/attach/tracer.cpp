// SPDX-License-Identifier: GPL-2.0-only
#include "attach/tracer.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <utility>

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include "attach/bpf_permission.h"
#include "attach/object_maps.h"
#include "attach/program_loading.h"
#include "attach/reason_names.h"
#include "attach/tracer_state.h"
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

std::string why(int error) {
    constexpr int enotsupp = 524; // the kernel's own, which should not come here
    return error == EPERM ? "not permitted" : error == enotsupp ? "not supported" : std::strerror(error);
}

} // namespace

// Another copy of the object, to be fitted to these types.
BpfObject Tracer::State::open(const KernelTypes& types_now) const {
    const auto path = types_now.path();
    return BpfObject::open(kind, path ? path->c_str() : nullptr);
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
    set_sizes(object, cpus);
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

    if (const int error = objects.empty() ? create_variables(object) : share_maps(object, shared()))
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
    } else {
        std::string known = -error == EPERM
                                ? fmt::format("this kernel does not let BPF be attached to functions ({}: not "
                                              "permitted)",
                                              on_kprobes() ? "kprobes" : "fentry")
                                : problem;
        begin_anew(kind); // what is attached counts for maps that nobody will read
        problem = std::move(known);
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

} // namespace tsdroptrace::attach
