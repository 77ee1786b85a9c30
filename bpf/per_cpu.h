// SPDX-License-Identifier: GPL-2.0-only
// The kernel's per-CPU memory. To name one of its variables takes the verifier a look through all of the kernel's types, in
// each program that does: so one small program does it, which userspace runs once at the start, and all others read
// what it has found.
#pragma once

#include "event.h"
#include "kernel_compat.h"

#ifdef TSDT_LINUX_5_10
extern const bool nf_skb_duplicated __ksym __weak;

const volatile __u64 per_cpu_offset_at; // the kernel's __per_cpu_offset: 5.10 has no programs that userspace may just run

// What to add to a per-CPU address to get this CPU's copy.
static __always_inline u64 this_cpu_offset(void)
{
	u64 offset = 0;

	bpf_probe_read_kernel(&offset, sizeof(offset), (u64 *)per_cpu_offset_at + bpf_get_smp_processor_id());
	return offset;
}

static __always_inline u64 address_of_duplicated(void)
{
	const bool *address = &nf_skb_duplicated;

	asm volatile("" : "+r"(address)); // loaded once, and not once for each use
	return (u64)address;
}
#else
static u64 per_cpu_offset[TSDT_MAX_CPUS];
static u64 duplicated_at; // nf_skb_duplicated; to 6.15

static long find_offset(u32 cpu, const void **variable)
{
	const void *there = bpf_per_cpu_ptr(*variable, cpu);

	if (!there || cpu >= TSDT_MAX_CPUS)
		return 1;
	per_cpu_offset[cpu] = as_number(there) - as_number(*variable);
	return 0;
}

SEC("syscall") // 5.14, 79a7f8bdb159
int find_per_cpu_memory(void *ctx)
{
	const void *variable; // any one will do
	u64 is_duplicated;

	// Userspace puts the number in, as libbpf would, after it had read all of the kernel's types.
	asm volatile("%0 = %1 ll" : "=r"(variable) : "i"(TSDT_PER_CPU_VARIABLE));
	asm volatile("%0 = %1" : "=r"(is_duplicated) : "i"(TSDT_NF_SKB_DUPLICATED));
	if (is_duplicated)
		duplicated_at = as_number(variable);
	bpf_loop(TSDT_MAX_CPUS, find_offset, &variable, 0);
	return 0;
}

static __always_inline u64 this_cpu_offset(void)
{
	return per_cpu_offset[bpf_get_smp_processor_id() & (TSDT_MAX_CPUS - 1)];
}

static __always_inline u64 address_of_duplicated(void)
{
	return duplicated_at;
}
#endif

// Whether a copy that TEE or dup has made passes the tables now, in the middle of another packet's way: per task from
// 6.16 (a1f1acb9c5db), per CPU before.
__noinline int compat_duplicating(void)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	u64 per_cpu = address_of_duplicated();
	bool duplicating = false;

	if (bpf_core_field_exists(task->in_nf_duplicate))
		return BPF_CORE_READ_BITFIELD_PROBED(task, in_nf_duplicate);
	if (per_cpu)
		bpf_probe_read_kernel(&duplicating, sizeof(duplicating), (void *)(per_cpu + this_cpu_offset()));
	return duplicating;
}
