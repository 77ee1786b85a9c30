// SPDX-License-Identifier: GPL-2.0-only
// What kernel_compat.h offers, for tsdroptrace_5_10.bpf.c: Linux 5.10, whose modules have no type information. It also
// lacks bpf_loop, global functions that take pointers (5.12, e5069b9c23b3), and atomic operations that return something
// (5.12).
#pragma once

#include "module_types_5_10.h"

#define VERIFIED_ONCE static __noinline
#define CALLED_ONCE static __always_inline // calls may be eight deep, loops included

#define compat_loop(count, limit, callback, context)                                         \
	do {                                                                                 \
		for (u32 index__ = 0; index__ < (limit) && index__ < (count); index__++) \
			if (callback(index__, context))                                      \
				break;                                                       \
	} while (0)

// What lies with other CPUs cannot be read there (5.19, compat_has_percpu_lookup): this one only.
#define compat_search_all_cpus(count, callback, context) callback(bpf_get_smp_processor_id(), context)

// The CPU that a process runs on: in thread_info on arm64, and everywhere from 5.16 (bcf9033e5449).
#define compat_task_cpu(task) \
	(bpf_core_field_exists((task)->thread_info.cpu) ? (task)->thread_info.cpu : (task)->cpu)

// Long loops: each turn is a function with scalar arguments, which is verified once. The context lies in a map, one for
// each program that may interrupt another on this CPU (a softirq's on a process's).
#define LOOP_LEVELS 8
#define LOOP_TURNS 1024 // of the inner loop, and of the outer one: the verifier goes through all of them

#define MAX_CPUS_OF_LOOPS 512 // TSDT_MAX_CPUS
static u32 loop_levels[MAX_CPUS_OF_LOOPS];

static __always_inline u32 *loop_level(void)
{
	return &loop_levels[bpf_get_smp_processor_id() & (MAX_CPUS_OF_LOOPS - 1)];
}

#define COMPAT_LONG_LOOP(callback, context_type)                                                \
	struct {                                                                        \
		__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);                                \
		__uint(max_entries, LOOP_LEVELS);                                       \
		__type(key, u32);                                                       \
		__type(value, context_type);                                                    \
	} callback##_contexts SEC(".maps");                                             \
	__noinline int callback##_turn(u32 level, u32 index)                            \
	{                                                                               \
		context_type *context = bpf_map_lookup_elem(&callback##_contexts, &level);      \
		return context && !callback(index, context) ? 0 : 1;                    \
	}                                                                               \
	__noinline int callback##_turns(u32 level, u32 begin, u32 count)                \
	{                                                                               \
		for (u32 i = 0; i < LOOP_TURNS; i++)                                    \
			if (begin + i >= count || callback##_turn(level, begin + i))    \
				return 1;                                               \
		return 0;                                                               \
	}                                                                               \
	__noinline int callback##_loop(u32 level, u32 count)                            \
	{                                                                               \
		for (u32 i = 0; i < LOOP_TURNS; i++)                                    \
			if (callback##_turns(level, i * LOOP_TURNS, count))             \
				return 1;                                               \
		return 0;                                                               \
	}

#define compat_long_loop(count, callback, context)                                                        \
	do {                                                                                              \
		u32 *loops__ = loop_level(), level__ = (*loops__)++ % LOOP_LEVELS;                        \
		typeof(*(context)) *slot__ = bpf_map_lookup_elem(&callback##_contexts, &level__);         \
		if (slot__) {                                                                             \
			*slot__ = *(context);                                                             \
			callback##_loop(level__, count);                                                  \
			*(context) = *slot__;                                                             \
		}                                                                                         \
		(*loop_level())--;                                                                        \
	} while (0)

// An addition that returns what was there came with 5.12 (5ca419f2864a): ids are counted by each CPU.
static u32 last_ids[MAX_CPUS_OF_LOOPS];

static __always_inline u32 next_id(void)
{
	u32 cpu = bpf_get_smp_processor_id() & (MAX_CPUS_OF_LOOPS - 1);

	return ++last_ids[cpu] * MAX_CPUS_OF_LOOPS + cpu;
}
#define compat_next_id(last_id) next_id()

// Where two at once may get the same.
#define compat_fetch_and_add(number, by)                \
	({                                              \
		u32 before__ = *(volatile u32 *)(number); \
		__sync_fetch_and_add(number, by);       \
		before__;                               \
	})

// Before a variable is compared with a bound: keeps it in one register from there on. What is compared in one and used
// in another, or read again from the stack, has no bound for the verifier of 5.10.
#define compat_bound(variable) barrier_var(variable)

// Modules have no type information here (5.11, 36e68442d1af).
#define MODULE_READ(type, pointer, field)                                                                          \
	({                                                                                                         \
		typeof(((struct type *)0)->field) read__ = 0;                                                      \
		bpf_probe_read_kernel(&read__, sizeof(read__), &((struct type##_5_10 *)(u64)(pointer))->field);    \
		read__;                                                                                            \
	})
#define MODULE_FIELD_OFFSET(type, field) __builtin_offsetof(struct type##_5_10, field)
#define compat_knows_matches() true
#define compat_follows_queues false
