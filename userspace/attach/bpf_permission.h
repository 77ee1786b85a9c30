// SPDX-License-Identifier: GPL-2.0-only
// What the kernel lets BPF do here and, where it refuses, why.
#pragma once

#include <string>

#include "attach/kernel_types.h"
#include "util/fd.h"
#include "util/result.h"

namespace tsdroptrace::attach {

// Why the programs could not be loaded, and what to do about it, in one line; ErrorKind::unsupported. `error`: the
// errno of loading. What is missing or in the way is looked for in this order: capabilities (CAP_BPF, 5.8), SELinux,
// lockdown (5.4); where it is none of these, the line has the error itself.
Error explain_load_failure(int error);

// The mode of lockdown that is active, "none", "integrity" or "confidentiality"; "" where the kernel has none, or
// securityfs is not mounted.
std::string lockdown_mode(const char* path = "/sys/kernel/security/lockdown");

// A function of the kernel's that is there for tests, and that nothing else calls (5.5). KernelTypes has to look for
// it, for try_fentry().
inline constexpr const char* function_for_tests = "bpf_fentry_test1";

// Whether fentry can be attached here at all: 0, or an errno. Kernels without trampolines for BPF (arm64 before 6.4,
// for one) load such programs, and then do not attach them. What was attached goes to `kept`, to stay for as long as
// the tracer does: the kernel takes its time to take it away. 0 also where `types` have no function to try it with.
int try_fentry(const KernelTypes& types, Fd& kept);

} // namespace tsdroptrace::attach
