// SPDX-License-Identifier: GPL-2.0-only
#include "attach/bpf_permission.h"

#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <optional>

#include <bpf/bpf.h>
#include <fmt/format.h>

namespace tsdroptrace::attach {
namespace {

std::optional<std::uint64_t> effective_capabilities() {
    std::ifstream status("/proc/self/status");
    for (std::string line; std::getline(status, line);) {
        if (line.starts_with("CapEff:"))
            return std::strtoull(line.c_str() + 7, nullptr, 16);
    }
    return std::nullopt;
}

// The least of programs.
constexpr bpf_insn return_zero[] = {
    {.code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = 0, .src_reg = 0, .off = 0, .imm = 0},
    {.code = BPF_JMP | BPF_EXIT, .dst_reg = 0, .src_reg = 0, .off = 0, .imm = 0}};

// The SELinux context of this process, where its policy is enforced; "" elsewhere.
std::string enforced_context() {
    char enforces = '0';
    if (!std::ifstream("/sys/fs/selinux/enforce").get(enforces) || enforces != '1')
        return "";
    std::ifstream file("/proc/self/attr/current");
    std::string context;
    std::getline(file, context);
    return context.c_str(); // what comes after a zero is no part of it
}

// Whether even the least of maps and programs is refused. The verifier gives the same error for a program that it does
// not take, and has nothing to say against this one.
bool refuses_all_bpf() {
    const Fd map(
        bpf_map_create(BPF_MAP_TYPE_ARRAY, "try_map", sizeof(std::uint32_t), sizeof(std::uint32_t), 1, nullptr));
    if (!map)
        return errno == EPERM || errno == EACCES;
    const Fd program(
        bpf_prog_load(BPF_PROG_TYPE_TRACEPOINT, "try_program", "GPL", return_zero, std::size(return_zero), nullptr));
    return !program && (errno == EPERM || errno == EACCES);
}

} // namespace

// All modes, with the active one in brackets.
std::string lockdown_mode(const char* path) {
    std::ifstream file(path);
    std::string line;
    std::getline(file, line);
    const auto open = line.find('['), close = line.find(']');
    if (open == std::string::npos || close == std::string::npos || close < open)
        return "";
    return line.substr(open + 1, close - open - 1);
}

Error explain_load_failure(int error) {
    constexpr std::uint64_t cap_sys_admin = 1ULL << 21, cap_perfmon = 1ULL << 38, cap_bpf = 1ULL << 39;
    const std::uint64_t capabilities = effective_capabilities().value_or(0);
    const bool privileged =
        (capabilities & cap_sys_admin) || ((capabilities & cap_bpf) && (capabilities & cap_perfmon));
    const bool denied = error == EPERM || error == EACCES;

    if (denied && !privileged)
        return {ErrorKind::unsupported,
                "not allowed to load BPF programs: needs root, or CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN; "
                "run it with sudo"};
    const std::string context = denied ? enforced_context() : "";
    if (!context.empty() && refuses_all_bpf())
        return {
            ErrorKind::unsupported,
            fmt::format("not allowed to use BPF, although it has the capabilities for it: SELinux is enforcing, and "
                        "this process has the context {}. `ausearch -m avc -c tsdroptrace` shows whether that is why "
                        "(without auditd: journalctl -k --grep=avc:); run it from another context",
                        context)};
    if (lockdown_mode() == "confidentiality") // EPERM, or EINVAL: the kernel then says that it has no such function
        return {ErrorKind::unsupported, "this kernel is locked down (confidentiality): BPF may not read kernel memory; "
                                        "boot with lockdown=integrity or without lockdown"};
    return {ErrorKind::unsupported,
            fmt::format("cannot load the BPF program for the tracepoint kfree_skb: {} (error {}); needs a kernel "
                        "from 5.10 with BPF and BTF; --verbose shows the kernel's own words",
                        std::strerror(error), error)};
}

int try_fentry(const KernelTypes& types, Fd& kept) {
    const auto id = types.function(function_for_tests);
    if (!id)
        return 0; // other functions will tell
    LIBBPF_OPTS(bpf_prog_load_opts, options);
    options.expected_attach_type = BPF_TRACE_FENTRY;
    options.attach_btf_id = id->type_id;
    const Fd program(
        bpf_prog_load(BPF_PROG_TYPE_TRACING, "try_fentry", "GPL", return_zero, std::size(return_zero), &options));
    if (!program)
        return errno;
    kept = Fd(bpf_link_create(program.get(), 0, BPF_TRACE_FENTRY, nullptr));
    return kept ? 0 : errno;
}

} // namespace tsdroptrace::attach
