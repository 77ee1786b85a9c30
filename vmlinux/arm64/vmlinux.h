// SPDX-License-Identifier: GPL-2.0-only
// Kernel types for arm64: what all architectures share, and the registers that a kprobe sees.
#pragma once

#define __VMLINUX_H__ // for bpf_tracing.h
#include "../kernel_types.h"

// UAPI: include/uapi/asm/ptrace.h
struct user_pt_regs {
	__u64 regs[31];
	__u64 sp;
	__u64 pc;
	__u64 pstate;
};
struct pt_regs;
