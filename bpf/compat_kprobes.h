// SPDX-License-Identifier: GPL-2.0-only
// What kernel_compat.h offers where programs are attached by kprobes, since fentry cannot be: on 5.10, whose modules have no
// type information, and on kernels without trampolines for BPF (arm64 before 6.4, for one).
#pragma once

// The kernel runs no kprobe while another one is at work on that CPU, nor while a process reads or writes a BPF map there:
// what a softirq dropped just then, none has seen.
#define COMPAT_UNKNOWN_UNSEEN TSDT_UNKNOWN_NOT_SEEN

#define ENTRY_OF(function) SEC("kprobe/" #function)
#define EXIT_OF(function) SEC("kretprobe/" #function)

#define AT_BEGIN(function, body)                                                                                 \
	ENTRY_OF(function)                                                                                       \
	int function##_begin(struct pt_regs *ctx)                                                                \
	{                                                                                                        \
		const u64 argument[] = {PT_REGS_PARM1(ctx), PT_REGS_PARM2(ctx), PT_REGS_PARM3(ctx),              \
					PT_REGS_PARM4(ctx)};                                                     \
                                                                                                                 \
		return body;                                                                                     \
	}
#define AT_END(function, count, body)                                                                            \
	ENTRY_OF(function) int function##_begin(struct pt_regs *ctx) { return begin_call(ctx); }                 \
	EXIT_OF(function)                                                                                        \
	int function##_end(struct pt_regs *ctx)                                                                  \
	{                                                                                                        \
		u64 argument[4], result __attribute__((unused));                                                 \
                                                                                                                 \
		if (!end_call(ctx, argument))                                                                    \
			return 0;                                                                                \
		result = argument[3];                                                                            \
		return body;                                                                                     \
	}

#define ARGUMENT_READ(pointer, field) BPF_CORE_READ(pointer, field)

// The end of an expression may be missed where its beginning was not.
#define compat_misses_ends true

// ---- calls under way: what a function was called with, for when it returns ----

struct call {
	u64 argument[3];
	u64 step;                 // nf_tables: of the trail, and on which CPU
	u32 cpu;
	u32 pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH); // a return that was missed leaves its entry
	__uint(max_entries, 4096);           // userspace: by the number of CPUs
	__type(key, u64);          // where on the stack the call's frame begins
	__type(value, struct call);
} calls SEC(".maps");

// The stack pointer is the same at a function's entry and after its return, but for the return address on x86.
static __always_inline u64 frame_at_entry(struct pt_regs *regs)
{
	return PT_REGS_SP(regs);
}
static __always_inline u64 frame_at_return(struct pt_regs *regs)
{
#ifdef __TARGET_ARCH_x86
	return PT_REGS_SP(regs) - 8;
#else
	return PT_REGS_SP(regs);
#endif
}

static __always_inline void begin_call_with(struct pt_regs *ctx, const struct call *call)
{
	u64 frame = frame_at_entry(ctx);

	bpf_map_update_elem(&calls, &frame, call, BPF_ANY);
}

static __always_inline int begin_call(struct pt_regs *ctx)
{
	struct call call = {.argument = {PT_REGS_PARM1(ctx), PT_REGS_PARM2(ctx), PT_REGS_PARM3(ctx)}};

	begin_call_with(ctx, &call);
	return 0;
}

// The three arguments, and what the function has returned. False: its begin was missed.
static __always_inline bool end_call(struct pt_regs *ctx, u64 *as_fexit)
{
	u64 frame = frame_at_return(ctx);
	struct call *call = bpf_map_lookup_elem(&calls, &frame);

	if (!call)
		return false;
	__builtin_memcpy(as_fexit, call->argument, sizeof(call->argument));
	as_fexit[3] = (u32)PT_REGS_RC(ctx);
	bpf_map_delete_elem(&calls, &frame);
	return true;
}
