// SPDX-License-Identifier: GPL-2.0-only
// Kernel types for x86-64: what all architectures share, and the registers that a kprobe sees.
#pragma once

#define __VMLINUX_H__ // for bpf_tracing.h: names of registers as the kernel has them
#include "../kernel_types.h"

// As the entry code saves them; the same since x86-64 began.
struct pt_regs {
	unsigned long r15, r14, r13, r12, bp, bx, r11, r10, r9, r8, ax, cx, dx, si, di, orig_ax, ip, cs, flags, sp, ss;
};
