// SPDX-License-Identifier: GPL-2.0-only
#include "attach/program_loading.h"

#include <cerrno>
#include <cstdint>
#include <iterator>
#include <string>
#include <utility>
#include <vector>

#include <bpf/bpf.h>
#include <bpf/libbpf.h>

#include "attach/attachment.h"
#include "attach/program_kinds.h"
#include "bpf/event.h"

namespace tsdroptrace::attach {
namespace {

// What bpf/seen.h needs to read a header with one load.
constexpr const char* header_types[] = {"iphdr", "ipv6hdr"};

// What prepare() is called for: libbpf hands it nothing else of ours. Set by load_programs() alone, while it loads.
thread_local const KernelTypes* types_for_loading = nullptr;
thread_local std::string_view function_for_loading;

// By enum tsdt_placeholder, from TSDT_RDONLY_CAST.
constexpr struct {
    const char* name;           // in the kernel's BTF
    std::uint8_t src_reg;       // what the number is, to the kernel
    const char* else_name = ""; // where that is not there
} placeholders[] = {{rdonly_cast, BPF_PSEUDO_KFUNC_CALL},
                    {"iphdr", 0},
                    {"ipv6hdr", 0},
                    {"nf_skb_duplicated", BPF_PSEUDO_BTF_ID, "runqueues"}, // to 6.15
                    {"nf_skb_duplicated", 0}};

// The number of a type, a function or a variable of the kernel's own; 0: not there.
std::uint32_t vmlinux_id(const char* name) {
    const auto id = types_for_loading->function(name);
    return id && id->btf_object == 0 ? id->type_id : types_for_loading->vmlinux_type(name);
}

// 0 in the place of what is not there.
void fill_in(std::vector<bpf_insn>& instructions) {
    for (bpf_insn& instruction : instructions) {
        const auto index = static_cast<std::uint32_t>(instruction.imm) - TSDT_RDONLY_CAST;
        if (index >= std::size(placeholders))
            continue;
        const auto& [name, src_reg, else_name] = placeholders[index];
        std::uint32_t number = vmlinux_id(name);
        if (!number)
            number = vmlinux_id(else_name);
        instruction.imm = static_cast<std::int32_t>(number);
        instruction.src_reg = number ? src_reg : 0;
    }
}

// What libbpf does for programs of this kind, with what KernelTypes has found.
int prepare(bpf_program* program, bpf_prog_load_opts* options, long) {
    const bpf_insn* begin = bpf_program__insns(program);
    std::vector<bpf_insn> instructions(begin, begin + bpf_program__insn_cnt(program));
    fill_in(instructions);
    if (const int error = bpf_program__set_insns(program, instructions.data(), instructions.size()))
        return error;
    if (bpf_program__type(program) == BPF_PROG_TYPE_SYSCALL) {
        options->prog_flags |= BPF_F_SLEEPABLE; // there are no others
        return 0;
    }
    std::string name = tracepoint_of(program);
    if (name.empty())
        name = is_template(function_of(program)) ? function_for_loading : function_of(program);
    const auto id = types_for_loading->function(name);
    if (!id)
        return -ESRCH;
    options->attach_btf_id = id->type_id;
    options->attach_btf_obj_fd = static_cast<__u32>(id->btf_object);
    return bpf_program__set_type(program, BPF_PROG_TYPE_TRACING);
}

} // namespace

// libbpf reads the kernel's types once more for programs of this kind, and looks each function up in vmlinux again for
// each module that is loaded: seconds on a machine with many. So these are of another kind until they are loaded.
void register_lookup() {
    static bool done = false;
    if (std::exchange(done, true))
        return;
    LIBBPF_OPTS(libbpf_prog_handler_opts, handler);
    handler.prog_prepare_load_fn = prepare;
    libbpf_register_prog_handler("fentry/", BPF_PROG_TYPE_RAW_TRACEPOINT, BPF_TRACE_FENTRY, &handler);
    libbpf_register_prog_handler("fexit/", BPF_PROG_TYPE_RAW_TRACEPOINT, BPF_TRACE_FEXIT, &handler);
    libbpf_register_prog_handler("tp_btf/", BPF_PROG_TYPE_RAW_TRACEPOINT, BPF_TRACE_RAW_TP, &handler);
    libbpf_register_prog_handler("syscall", BPF_PROG_TYPE_SYSCALL, {}, &handler);
}

void add_placeholders(KernelTypes::Names& functions, KernelTypes::Names& types) {
    types.insert(std::begin(header_types), std::end(header_types));
    for (const auto& placeholder : placeholders) {
        functions.insert(placeholder.name);
        if (*placeholder.else_name)
            functions.insert(placeholder.else_name);
    }
}

int load_programs(const BpfObject& object, const KernelTypes& types, std::string_view template_function) {
    types_for_loading = &types;
    function_for_loading = template_function;
    const int error = object.load();
    types_for_loading = nullptr;
    return error;
}

} // namespace tsdroptrace::attach
