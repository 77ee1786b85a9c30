// SPDX-License-Identifier: GPL-2.0-only
// What is different with ebtables. Its rules count as those of the other legacy tables do, so ipt_table.h does the rest.
//
// No match of its own drops by itself. But a policy has no counter here: where a packet was dropped and no counter has
// moved, it was a policy, if all else that could have dropped it is known not to have, and only one chain that may have
// been its last one has that policy. And while a counter that was left over from a packet which was not seen shows
// elsewhere, since the packet's own has moved too, here it may be the only one. So whatever may leave one over, or take
// one note of too early, makes this CPU's shadow doubtful, and no conclusion is drawn from it until it has been taken
// anew.
#pragma once

#include "maps.h"

#ifndef TSDT_LINUX_5_10
const volatile bool traces_bridge; // ebt_do_table
#else
#define traces_bridge false
#endif

// A table's address has this bit set where it is a struct ebt_table, not a struct xt_table.
#define BRIDGE_TABLE 1

static __always_inline bool is_bridge_table(u64 table)
{
	return traces_bridge && table & BRIDGE_TABLE;
}

// To the table broute, DROP means that the packet is routed and not bridged.
static __always_inline bool to_broute(const struct nf_hook_state *state)
{
	return ARGUMENT_READ(state, hook) == NF_BR_BROUTING;
}

// Targets that may drop. Their functions say so themselves (ipt_target.h), if they are traced.
enum bridge_target {
	BRIDGE_ARPREPLY = 1,
	BRIDGE_DNAT = 2,
	BRIDGE_SNAT = 4,
	BRIDGE_REDIRECT = 8,
	BRIDGE_MARK = 16,
	BRIDGE_OTHER = 32, // is not known
};
__u32 bridge_targets_traced; // userspace: bits

#ifndef TSDT_LINUX_5_10
static __always_inline struct ebt_table_info *bridge_private(u64 table_address)
{
	struct ebt_table *table = (struct ebt_table *)(table_address & ~(u64)BRIDGE_TABLE);

	return BPF_CORE_READ(table, private);
}

static __always_inline const char *bridge_table_name(u64 table_address)
{
	struct ebt_table *table = (struct ebt_table *)(table_address & ~(u64)BRIDGE_TABLE);

	return (const char *)table + bpf_core_field_offset(table->name);
}

static __always_inline u64 bridge_entries(u64 private)
{
	struct ebt_table_info *info = (struct ebt_table_info *)private;

	return (u64)BPF_CORE_READ(info, entries);
}

static __always_inline u32 bridge_size(u64 private)
{
	struct ebt_table_info *info = (struct ebt_table_info *)private;

	return BPF_CORE_READ(info, entries_size);
}

// SMP_CACHE_BYTES: 64 on arm64, and on x86 unless the kernel was built for a Pentium 4, when it is 128. Those that the size
// of this structure does not tell apart are not traced.
#define CACHE_LINE 64
#define compat_has_such_cache_lines() (bpf_core_type_size(struct dst_ops) % (2 * CACHE_LINE) != 0)

// The counters of one CPU. All rules of a table are numbered through.
static __always_inline u64 bridge_counters(u64 private, u32 cpu)
{
	const u64 line = CACHE_LINE;
	struct ebt_table_info *info = (struct ebt_table_info *)private;
	u64 size = (u64)BPF_CORE_READ(info, nentries) * sizeof(struct xt_counters);

	return private + bpf_core_field_offset(info->counters) + ((size + line - 1) & ~(line - 1)) * cpu;
}

static __always_inline u64 bridge_hook_entry(u64 private, u32 hook)
{
	struct ebt_table_info *info = (struct ebt_table_info *)private;
	u64 address = 0;

	if (hook < NF_BR_BROUTING)
		bpf_probe_read_kernel(&address, sizeof(address),
				      (void *)(private + bpf_core_field_offset(info->hook_entry) + hook * sizeof(address)));
	return address;
}

// What comes after each jump, in the chain stack of that CPU.
static __always_inline void read_bridge_stack(u64 private, u32 cpu, u64 *stack)
{
	struct ebt_table_info *info = (struct ebt_table_info *)private;
	struct ebt_chainstack **stacks = BPF_CORE_READ(info, chainstack), *level = NULL;

	if (stacks)
		bpf_probe_read_kernel(&level, sizeof(level), &stacks[cpu]);
	for (u32 i = 0; i < TSDT_JUMPSTACK_MAX && level; i++)
		bpf_probe_read_kernel(&stack[i], sizeof(stack[i]),
				      (void *)level + i * bpf_core_type_size(struct ebt_chainstack) +
					      bpf_core_field_offset(level->e));
}
#else
static __always_inline struct ebt_table_info *bridge_private(u64 table) { return NULL; }
static __always_inline const char *bridge_table_name(u64 table) { return NULL; }
static __always_inline u64 bridge_entries(u64 private) { return 0; }
static __always_inline u32 bridge_size(u64 private) { return 0; }
#endif
