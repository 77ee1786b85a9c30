// SPDX-License-Identifier: GPL-2.0-only
// Preloaded into tsdroptrace, makes the kernel refuse programs on functions, as some kernels do by themselves
// (BPF_PROG_LOAD of fentry and fexit: EPERM), and leaves all else to the kernel.
#include <cerrno>
#include <cstdarg>

#include <dlfcn.h>
#include <linux/bpf.h>
#include <sys/syscall.h>
#include <unistd.h>

extern "C" long syscall(long number, ...) noexcept {
    long arguments[6];
    va_list list;
    va_start(list, number);
    for (long& argument : arguments)
        argument = va_arg(list, long);
    va_end(list);
    if (number == SYS_bpf && static_cast<int>(arguments[0]) == BPF_PROG_LOAD) {
        const auto* load = reinterpret_cast<const bpf_attr*>(arguments[1]);
        if (load->prog_type == BPF_PROG_TYPE_TRACING &&
            (load->expected_attach_type == BPF_TRACE_FENTRY || load->expected_attach_type == BPF_TRACE_FEXIT)) {
            errno = EPERM;
            return -1;
        }
    }
    static const auto real = reinterpret_cast<long (*)(long, ...)>(dlsym(RTLD_NEXT, "syscall"));
    return real(number, arguments[0], arguments[1], arguments[2], arguments[3], arguments[4], arguments[5]);
}
