// SPDX-License-Identifier: GPL-2.0-only
// Legacy tables: matches that drop by themselves (match.h). The first packet that dies so, without a counter that moves,
// tells which functions the matches of its table have. Then, and only then, userspace has match_function_end attached to
// these: from the next packet on the one that dropped says so, with the address of its rule's own data.
#pragma once

#include "ipt_table.h"

// Of one table: those beyond are not traced.
#ifdef TSDT_LINUX_5_10
#define MATCH_FUNCTIONS 6 // the list lies on the stack
#else
#define MATCH_FUNCTIONS 12
#endif

struct match_list {
	u64 entries; // address of the blob
	u32 size;
	u32 at; // offset
	u32 family;
	u32 pad;
	u64 function[MATCH_FUNCTIONS]; // each once; 0 from the first that is free
};

VERIFIED_ONCE int add_function(struct match_list *list, u64 function)
{
	if (!list)
		return 0;
	for (u32 i = 0; i < MATCH_FUNCTIONS; i++) {
		if (!list->function[i])
			list->function[i] = function;
		if (list->function[i] == function)
			return 0;
	}
	return 0;
}

// Looks at the matches of the entry where the list stands. 1: there are no more entries.
VERIFIED_ONCE int list_matches_of_entry(struct match_list *list)
{
	struct {
		u16 target, next;
	} offset = {};
	struct {
		u16 size;
		u64 kind; // struct xt_match *
	} match;
	u64 entry, function;
	u32 at;

	if (!traces_legacy || !list || list->at >= list->size)
		return 1;
	entry = list->entries + list->at;
	bpf_probe_read_kernel(&offset, sizeof(offset), (void *)(entry + ENTRY(list->family, target_offset)));
	if (offset.next <= offset.target)
		return 1;
	at = ENTRY_SIZE(list->family);
	for (u32 i = 0; i < MATCHES && at < offset.target; i++) {
		if (bpf_probe_read_kernel(&match, sizeof(match), (void *)(entry + at)) || !match.size)
			break;
		function = dropping_match(match.kind);
		if (function)
			add_function(list, function);
		at += match.size;
	}
	list->at += offset.next;
	return 0;
}

static long visit_matches(u32 index, struct match_list *list)
{
	return list_matches_of_entry(list) != 0;
}

COMPAT_LONG_LOOP(visit_matches, struct match_list)

// Names the functions of the matches in the verdict's table that may drop by themselves.
CALLED_ONCE int list_matches(struct tsdt_cause *cause, const struct verdict *verdict)
{
	struct match_list list = {};
	struct xt_table_info *private;
	struct xt_table *table;

	if (!traces_legacy || !cause || !verdict || (verdict->family != NFPROTO_IPV4 && verdict->family != NFPROTO_IPV6))
		return 0;
	table = (struct xt_table *)verdict->table_address;
	private = (struct xt_table_info *)verdict->rule;
	list.entries = (u64)private + bpf_core_field_offset(private->entries);
	list.size = BPF_CORE_READ(private, size);
	list.family = verdict->family == NFPROTO_IPV6 ? FAMILY_IPV6 : FAMILY_IPV4;
	compat_long_loop(BPF_CORE_READ(private, number), visit_matches, &list);
	if ((u64)BPF_CORE_READ(table, private) != verdict->rule) // replaced, and perhaps freed
		return 0;
	for (u32 i = 0; i < MATCH_FUNCTIONS && list.function[i]; i++) {
		name_function(&cause->step[i], list.function[i]);
		cause->steps = i + 1;
	}
	return 0;
}

// const struct sk_buff *skb, struct xt_action_param *par
static __always_inline int match_done(const u64 *argument)
{
	const struct xt_action_param *par = (void *)argument[1];
	struct sk_buff *skb = (void *)argument[0];
	struct hotdrop hotdrop = {};
	u64 key = (u64)skb;

	if (!MODULE_READ(xt_action_param, par, hotdrop))
		return 0;
	hotdrop.info = (u64)MODULE_READ(xt_action_param, par, matchinfo);
	hotdrop.fingerprint = fingerprint_of(skb);
	hotdrop.mono_ns = bpf_ktime_get_ns();
	bpf_map_update_elem(&hotdrops, &key, &hotdrop, BPF_ANY);
	return 0;
}

// A template, as hook_function_end is.
AT_END(match_function, 2, match_done(argument))
