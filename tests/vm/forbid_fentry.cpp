// SPDX-License-Identifier: GPL-2.0-only
// Preloaded into tsdroptrace, makes the kernel refuse programs on functions, as some kernels do by themselves, and leaves
// all else to the kernel. FORBID says which:
//   (unset)  fentry and kprobes; to load them is not permitted, as on kernels of some hosters
//   fentry   fentry alone; it can be loaded, and not attached, as where there are no trampolines (arm64 before 6.4)
#include <cerrno>
#include <cstdarg>
#include <cstdlib>

#include <dlfcn.h>
#include <linux/bpf.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace {

constexpr int enotsupp = 524; // of the kernel's own

bool is_fentry(unsigned attach_type) {
    return attach_type == BPF_TRACE_FENTRY || attach_type == BPF_TRACE_FEXIT;
}

// An errno, or 0.
int forbidden(long command, const bpf_attr& attributes) {
    if (std::getenv("FORBID"))
        return command == BPF_LINK_CREATE && is_fentry(attributes.link_create.attach_type) ? enotsupp : 0;
    if (command != BPF_PROG_LOAD)
        return 0;
    return attributes.prog_type == BPF_PROG_TYPE_KPROBE ||
                   (attributes.prog_type == BPF_PROG_TYPE_TRACING && is_fentry(attributes.expected_attach_type))
               ? EPERM
               : 0;
}

} // namespace

extern "C" long syscall(long number, ...) noexcept {
    long arguments[6];
    va_list list;
    va_start(list, number);
    for (long& argument : arguments)
        argument = va_arg(list, long);
    va_end(list);
    if (number == SYS_bpf) {
        if (const int error = forbidden(arguments[0], *reinterpret_cast<const bpf_attr*>(arguments[1]))) {
            errno = error;
            return -1;
        }
    }
    static const auto real = reinterpret_cast<long (*)(long, ...)>(dlsym(RTLD_NEXT, "syscall"));
    return real(number, arguments[0], arguments[1], arguments[2], arguments[3], arguments[4], arguments[5]);
}
