// SPDX-License-Identifier: GPL-2.0-only
// What is left for kfree_skb of a packet that a legacy table has dropped: the rule or policy that was found, or the match that
// says it was the one (see ipt_table.h).
#pragma once

#include "ipt_traversal.h"

static __always_inline void name_chain(struct verdict *verdict, u64 entries, u32 chain, u32 family)
{
	static const char builtin[NF_INET_NUMHOOKS][16] = {"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"};
	static const char builtin_arp[NF_INET_NUMHOOKS][16] = {"INPUT", "OUTPUT", "FORWARD"};

	if (chain & CHAIN_BUILTIN) {
		u32 hook = chain & 0xff;

		if (hook < NF_INET_NUMHOOKS)
			bpf_probe_read_kernel_str(verdict->chain, sizeof(verdict->chain),
						  family == FAMILY_ARP ? builtin_arp[hook] : builtin[hook]);
	} else if (family == FAMILY_BRIDGE) {
		bpf_probe_read_kernel_str(verdict->chain, 32,
					  (void *)(entries + chain + __builtin_offsetof(struct ebt_entries, name)));
	} else {
		bpf_probe_read_kernel_str(verdict->chain, 30,
					  (void *)(entries + chain + ENTRY_SIZE(family) + __builtin_offsetof(struct xt_entry_target_head, errorname)));
	}
}

// Another CPU may replace a table as soon as the packet has left it, and free what the claim is about; or even before, when
// the packet has only just begun. What has been read of it is sound if it was still in use afterwards, and if nothing has
// changed meanwhile: a table that is replaced twice lies in the memory where it was before.
static __always_inline bool was_replaced(const struct claim *claim)
{
	return private_of(claim->table) != claim->private || generation(TSDT_GENERATION_X_TABLES) != claim->as_of;
}

// Leaves what the claim in that draft says for kfree_skb.
__noinline int table_verdict(u32 which, u64 skb, u64 state, u32 family)
{
	struct draft *draft = bpf_map_lookup_elem(&drafts, &which); // its own: before 6.2 map values come out of maps
	struct xt_table_info *private;
	struct verdict *verdict;
	struct xt_table *table;
	struct claim *claim;
	u64 entries;
	u32 size;
	bool bridge;

	if (!traces_legacy || !draft)
		return 0;
	verdict = &draft->verdict;
	claim = &draft->claim;
	table = (struct xt_table *)claim->table;
	private = (struct xt_table_info *)claim->private;
	bridge = is_bridge_table(claim->table);
	entries = entries_of(claim->table, claim->private);
	size = bridge ? bridge_size(claim->private) : BPF_CORE_READ(private, size);
	begin_verdict(verdict, (struct sk_buff *)skb, (struct nf_hook_state *)state);
	verdict->table_address = claim->table;
	verdict->rule = claim->private;
	// Not that of now: another CPU may have replaced the table meanwhile.
	verdict->generation = claim->unknown ? generation(TSDT_GENERATION_X_TABLES) : claim->generation;
	verdict->family = bridge ? NFPROTO_BRIDGE : BPF_CORE_READ(table, af);
	bpf_probe_read_kernel_str(verdict->table, 32, bridge ? bridge_table_name(claim->table) : table->name);
	if (claim->unknown) {
		verdict->source = TSDT_SOURCE_NETFILTER;
		verdict->unknown = claim->unknown;
	} else {
		verdict->source = claim->number ? TSDT_SOURCE_LEGACY_RULE : TSDT_SOURCE_LEGACY_POLICY;
		verdict->offset = claim->offset;
		verdict->number = claim->number;
		verdict->named = 1;
		verdict->by_match = claim->by_match;
		name_chain(verdict, entries, claim->chain, family);
		for (u32 i = 0; i < TSDT_JUMPSTACK_MAX; i++) {
			u64 offset = claim->jumpstack[i] - entries;

			verdict->jumpstack[i] = offset <= size ? offset : ~0u; // ebtables: of what comes after the jump
		}
		if (!claim->has_jumpstack)
			verdict->jumpstack[0] = TSDT_JUMPSTACK_UNKNOWN;
		if (was_replaced(claim)) {
			verdict->source = TSDT_SOURCE_NETFILTER;
			verdict->unknown = TSDT_UNKNOWN_NO_BASELINE;
			verdict->named = 0;
		}
	}
	bpf_map_update_elem(&verdicts, &skb, verdict, BPF_ANY);
	return 0;
}

// ---- matches that drop by themselves (match.h) ----

// What such a match has said of a packet that is still in its table.
struct hotdrop {
	u64 info; // address of the match's own data, in the table's blob
	u64 fingerprint;
	u64 mono_ns;
};
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, u64); // struct sk_buff *
	__type(value, struct hotdrop);
} hotdrops SEC(".maps");

#ifndef TSDT_LINUX_5_10
static long visit_entry_of(u32 index, struct walk **walk)
{
	return look_at_entry(*walk) != 0;
}
#endif

// Those of ARP's and of bridges' tables are not traced.
static __always_inline bool has_traced_matches(u32 family)
{
	return family == FAMILY_IPV4 || family == FAMILY_IPV6;
}

// No counter has moved: does a match say that it was the one? Then fills in the claim with its rule.
VERIFIED_ONCE int claim_match(struct draft *draft, u32 family)
{
	struct claim *claim;
	struct hotdrop *said;
	struct walk *walk;
	struct xt_table_info *private;
	u64 skb;

	if (!traces_legacy || !draft)
		return 0;
	claim = &draft->claim;
	private = (struct xt_table_info *)claim->private;
	skb = claim->skb;
	walk = &draft->walk;
	__builtin_memset(walk, 0, sizeof(*walk));
	said = bpf_map_lookup_elem(&hotdrops, &skb);
	if (!said)
		return 0;
	if (bpf_ktime_get_ns() - said->mono_ns < TSDT_VERDICT_MAX_AGE_NS &&
	    said->fingerprint == fingerprint_of((struct sk_buff *)skb)) {
		begin_walk(walk, claim->private, family);
		if (said->info > walk->entries && said->info < walk->entries + walk->size)
			walk->wanted = said->info - walk->entries;
	}
	bpf_map_delete_elem(&hotdrops, &skb);
	if (!walk->wanted)
		return 0;
#ifdef TSDT_LINUX_5_10
	compat_long_loop(BPF_CORE_READ(private, number), visit_entry, walk);
#else
	bpf_loop(BPF_CORE_READ(private, number), visit_entry_of, &walk, 0); // whose context is to lie on the stack
#endif
	if (!walk->found)
		return 0;
	claim->offset = walk->at;
	claim->chain = walk->chain;
	claim->number = walk->number;
	claim->by_match = 1;
	claim->unknown = TSDT_UNKNOWN_NONE;
	return 0;
}
