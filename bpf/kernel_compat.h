// SPDX-License-Identifier: GPL-2.0-only
// Every difference between kernels, each behind one accessor that names the version or the change it
// answers. The programs themselves never look at a version.
#pragma once

#include <vmlinux.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

#ifdef TSDT_LINUX_5_10
#include "compat_5_10.h"
#else
// A function that is verified on its own, once, and not again for every way that leads to it. (One with scalars only
// needs no such word: it is that on every kernel.)
#define VERIFIED_ONCE __noinline
#define CALLED_ONCE __noinline

// bpf_loop (5.17, e6f2dd0f8067), with how often `callback` is called at most.
#define compat_loop(count, limit, callback, context) bpf_loop(count, callback, context, 0)
#define compat_search_all_cpus(count, callback, context) bpf_loop(count, callback, context, 0)
// The same for loops of any length, whose context holds no pointers into maps.
#define compat_long_loop(count, callback, context) bpf_loop(count, callback, context, 0)
#define COMPAT_LONG_LOOP(callback, type)

#define compat_bound(variable) (void)0
#define compat_task_cpu(task) (task)->thread_info.cpu
#define compat_next_id(last_id) (compat_fetch_and_add(last_id, 1) + 1)
// What was there before: 5.12 (5ca419f2864a).
#define compat_fetch_and_add(number, by) __sync_fetch_and_add(number, by)

// A field of a structure that is netfilter's modules' own.
#define MODULE_READ(type, pointer, field) BPF_CORE_READ((struct type *)(pointer), field)
#define MODULE_FIELD_OFFSET(type, field) bpf_core_field_offset(struct type, field)
// Whether x_tables was there when this program was loaded.
#define compat_knows_matches() bpf_core_type_exists(struct xt_match)
// Packets for programs in userspace (queue.h).
#define compat_follows_queues true
#endif

#ifdef TSDT_KPROBES
#include "compat_kprobes.h"
#else
// What it means that no program has seen who dropped a packet.
#define COMPAT_UNKNOWN_UNSEEN TSDT_UNKNOWN_NOT_TRACED

// Where a program is entered and left.
#define ENTRY_OF(function) SEC("fentry/" #function)
#define EXIT_OF(function) SEC("fexit/" #function)

// A program at the beginning of a function, or at its end: `body` may use the function's `argument`s, of which there are
// `count`, and its `result`.
#define AT_BEGIN(function, body)                        \
	ENTRY_OF(function)                              \
	int function##_begin(u64 *ctx)                  \
	{                                               \
		const u64 *argument = ctx;              \
                                                        \
		return body;                            \
	}
#define AT_END(function, count, body)                                   \
	EXIT_OF(function)                                               \
	int function##_end(u64 *ctx)                                    \
	{                                                               \
		const u64 *argument = ctx;                              \
		u64 result __attribute__((unused)) = ctx[count];        \
                                                                        \
		return body;                                            \
	}

// A field of what such an argument points to: here the verifier knows its type.
#define ARGUMENT_READ(pointer, field) (pointer)->field

#define compat_misses_ends false
#endif

// The number of this CPU, for programs that every packet meets: their context lies in `ctx`, which would need a register of
// its own across the call, to be saved first. Left on the stack, as the verifier expects it, it costs nothing from 6.12 on:
// where it puts instructions in place of the call, it takes these two away. Only for functions with nothing else on the
// stack at that time.
static __always_inline u32 this_cpu_keeping(u64 **ctx)
{
#ifdef TSDT_KPROBES
	return bpf_get_smp_processor_id();
#else
	enum { GET_SMP_PROCESSOR_ID = 8 }; // enum bpf_func_id
	register u64 cpu asm("r0");
	register u64 *kept asm("r1") = *ctx;

	asm volatile("*(u64 *)(r10 - 8) = %[kept]; call %[function]; %[kept] = *(u64 *)(r10 - 8)"
		     : "=r"(cpu), [kept] "+r"(kept)
		     : [function] "i"(GET_SMP_PROCESSOR_ID)
		     : "r2", "r3", "r4", "r5");
	*ctx = kept;
	return cpu;
#endif
}

// The tracepoint kfree_skb has had a reason since 5.17 (c504e5c2f964).
#define compat_kfree_skb_reason(ctx) \
	(bpf_core_type_exists(enum skb_drop_reason) ? (u32)((ctx)[2]) : 0)

// The verifier minds what is done with a pointer to a kernel object, and does not let it go to a global function: as a
// number it may.
static __always_inline u64 as_number(const void *pointer)
{
	u64 number = 0;

	bpf_probe_read_kernel(&number, sizeof(number), &pointer);
	return number;
}

// Whether this is the current task's own doing, rather than that of an interrupt or a softirq on top of it. `ctx` is
// the program's context, which lies on the stack that is in use. x86 has no counter that BPF can read on every kernel,
// but runs interrupts and softirqs on stacks of their own.
static __always_inline bool compat_in_task(void *ctx)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
#ifdef __TARGET_ARCH_x86
	const u64 thread_size = 16384; // without KASAN
	u64 stack = (u64)BPF_CORE_READ(task, stack), here = as_number(ctx);

	return here >= stack && here < stack + thread_size;
#else
	const u32 interrupted = 0x00ff0100; // NMI_MASK | HARDIRQ_MASK | SOFTIRQ_OFFSET

	return !((u32)BPF_CORE_READ(task, thread_info.preempt_count) & interrupted);
#endif
}

// Whether it is a process's doing: what ksoftirqd and other kernel threads do is not.
static __always_inline bool compat_in_process(void *ctx)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	const u32 kernel_thread = 0x00200000; // PF_KTHREAD

	return !(BPF_CORE_READ(task, flags) & kernel_thread) && compat_in_task(ctx);
}

enum bpf_attach_type___compat { BPF_TCX_INGRESS___compat };

// Whether a program may read past the end of a kernel struct that ends in a byte array, as in its expressions'
// private data: then this is one load, before it is a call. The verifier allows it since 6.5 (2569c7b8726f); the
// first release whose BTF tells is 6.6.
#define compat_reads_trailing_bytes() bpf_core_enum_value_exists(enum bpf_attach_type___compat, BPF_TCX_INGRESS___compat)

// A field of the private data of an expression, given as the type of that data. `ctx`, the program's context, is taken
// through the call on the stack, so that the load does not have to save a register for it.
#define compat_expr_read(ctx, expr, type, field)                          \
	({                                                                \
		type *private__ = (type *)&(expr)->data[0];               \
		typeof(private__->field) value__;                         \
		if (compat_reads_trailing_bytes()) {                      \
			value__ = private__->field;                       \
		} else {                                                  \
			typeof(ctx) volatile kept__ = ctx;                \
			value__ = BPF_CORE_READ(private__, field);        \
			ctx = kept__;                                     \
		}                                                         \
		value__;                                                  \
	})

enum bpf_func_id___compat { BPF_FUNC_snprintf___compat, BPF_FUNC_map_lookup_percpu_elem___compat };

// A per-CPU map's value of another CPU, since 5.19 (07343110b293).
#define compat_has_percpu_lookup() \
	bpf_core_enum_value_exists(enum bpf_func_id___compat, BPF_FUNC_map_lookup_percpu_elem___compat)

// The code address as the kernel prints it, "symbol+0x1/0x2 [module]"; empty before 5.13 (bpf_snprintf).
static __always_inline void compat_symbol(char *out, u32 size, u64 address)
{
	if (bpf_core_enum_value_exists(enum bpf_func_id___compat, BPF_FUNC_snprintf___compat)) {
		static const char format[] = "%pS";

		bpf_snprintf(out, size, format, &address, sizeof(address));
	}
}
