// SPDX-License-Identifier: GPL-2.0-only
// Functions that are traced only when something has died that they can explain: each packet that they let pass costs
// something then.
#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <iterator>
#include <utility>

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <fmt/format.h>
#include <linux/membarrier.h>
#include <spdlog/spdlog.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "attach/object_maps.h"
#include "attach/program_kinds.h"
#include "attach/program_loading.h"
#include "attach/tracer_state.h"

namespace tsdroptrace::attach {
namespace {

// How many functions may be traced so in one run.
constexpr std::size_t max_late_functions = 48;

} // namespace

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

void Tracer::State::trace_late(const std::string& function, std::string_view programs, const KernelTypes& types_now) {
    const int error = is_there(function, types_now) ? add_late(function, programs, types_now) : -ESRCH;
    if (error)
        spdlog::debug("the function {} cannot be traced: {}", function, std::strerror(-error));
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
        set_sizes(object, cpus);
        if (const int error = share_maps(object, shared()))
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

} // namespace tsdroptrace::attach
