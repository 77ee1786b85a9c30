// SPDX-License-Identifier: GPL-2.0-only
// Extension targets of legacy rules that drop when they fail. Their functions are called with the rule's own data, so which rule it
// is needs no counter. (iptables-nft calls the same functions: then the data lies in no legacy table.)
#pragma once

#include "ipt_table.h"

static __always_inline bool is_at(const struct candidate *candidate, u32 target)
{
	return (candidate->target & ~TARGET_COUNTS) == target;
}

// The rule has counted the packet that its target drops: whoever looks for the counter of another one is not to find it.
static __always_inline void note_counter(struct candidate *candidate)
{
	bpf_probe_read_kernel(&candidate->pcnt, sizeof(candidate->pcnt), (void *)candidate->counter);
}

#ifdef TSDT_LINUX_5_10
// Looks for the candidate whose target this is.
__noinline int target_in_chunk(u32 key, u32 count, u32 target)
{
	struct chunk *chunk = bpf_map_lookup_elem(&pool, &key);
	struct claiming *here = claiming_here();

	if (!chunk)
		return 0;
	for (u32 i = 0; i < CHUNK && i < count; i++) {
		if (is_at(&chunk->candidate[i], target)) {
			here->moved++;
			here->key = key;
			here->index = i;
		}
	}
	return 0;
}

__noinline int target_in_chunks(u32 first, u32 count, u32 target)
{
	for (u32 i = 0; i < MAX_CHUNKS && i * CHUNK < count; i++)
		target_in_chunk(first + i, count - i * CHUNK, target);
	return 0;
}

// Fills in which rule it is that has the target at this offset of the blob.
static __always_inline bool find_target(struct table_slot *slot, struct claim *claim, u32 target)
{
	struct claiming *here = claiming_here();
	struct candidate *watched;

	if (here->busy)
		return false;
	here->busy = 1;
	here->moved = 0;
	target_in_chunks(slot->first, slot->count, target);
	watched = here->moved ? candidate(here->key, here->index & (CHUNK - 1)) : NULL;
	here->busy = 0;
	if (!watched)
		return false;
	note_counter(watched);
	claim->offset = watched->offset;
	claim->chain = watched->chain;
	claim->number = watched->number;
	return true;
}
#else
struct target_search {
	u32 first;
	u32 count;
	u32 target; // offset of the target in the blob
	u32 found;
	struct claim *claim;
	struct chunk *chunk;
};

// On its own, so that it is verified once.
VERIFIED_ONCE int is_target(struct candidate *candidate, struct claim *claim, u32 target)
{
	if (!candidate || !claim || !is_at(candidate, target))
		return 0;
	note_counter(candidate);
	claim->offset = candidate->offset;
	claim->chain = candidate->chain;
	claim->number = candidate->number;
	return 1;
}

static long compare_target(u32 index, struct target_search *search)
{
	if (index < CHUNK)
		search->found += is_target(&search->chunk->candidate[index], search->claim, search->target);
	return 0;
}

static long find_target_in(u32 index, struct target_search *search)
{
	u32 key = search->first + index, left = search->count - index * CHUNK;

	search->chunk = bpf_map_lookup_elem(&pool, &key);
	if (!search->chunk)
		return 1;
	bpf_loop(left < CHUNK ? left : CHUNK, compare_target, search, 0);
	return 0;
}

static __always_inline bool find_target(struct table_slot *slot, struct claim *claim, u32 target)
{
	struct target_search search = {};

	search.first = slot->first;
	search.count = slot->count;
	search.target = target;
	search.claim = claim;
	bpf_loop((slot->count + CHUNK - 1) / CHUNK, find_target_in, &search, 0);
	return search.found;
}
#endif

// Fills in the claim of `draft` with the rule whose target lies at `target`. False when it is not in that table.
static __noinline bool find_target_rule(struct draft *draft, u64 target, u64 table, u32 family)
{
	struct tables *tables = bpf_map_lookup_elem(&shadows, &family);
	struct table_slot *slot;
	u64 blob;

	if (!tables)
		return false;
	slot = table_slot(tables, table);
	blob = entries_of(table, slot->private);
	if (slot->table != table || target < blob || target >= blob + slot->size)
		return false;
	draft->claim.table = slot->table;
	draft->claim.private = slot->private;
	draft->claim.generation = slot->generation;
	draft->claim.as_of = slot->as_of;
	draft->claim.unknown = TSDT_UNKNOWN_NONE;
	return find_target(slot, &draft->claim, target - blob);
}

// A target may send something itself before it drops the packet, as REJECT and arpreply do: if that passes a table, it
// has interrupted this traversal, and uses its jump stack.
// The table of that traversal, whose claim this takes; or 0.
static __noinline u64 take_interrupted(struct claim *claim, u64 skb)
{
	struct traversals *here = traversals_of(bpf_get_smp_processor_id());
	u32 found = INTERRUPTED;

	for (u32 i = 0; i < INTERRUPTED; i++)
		if (here->interrupted[i].skb == skb)
			found = i;
	if (found >= INTERRUPTED)
		return 0;
	*claim = here->interrupted[found];
	here->interrupted[found].skb = 0;
	return claim->table;
}

static __noinline int target_dropped(struct sk_buff *skb, const struct xt_action_param *par, u32 family)
{
	struct traversals *here = traversals_of(bpf_get_smp_processor_id());
	u64 target = (u64)MODULE_READ(xt_action_param, par, targinfo) -
		     (family == FAMILY_BRIDGE ? __builtin_offsetof(struct ebt_entry_target_head, verdict) :
						__builtin_offsetof(struct xt_entry_target_head, verdict));
	u32 key = DRAFT_TARGET + family;
	struct draft *draft = bpf_map_lookup_elem(&drafts, &key);
	u64 table;

	if (!draft)
		return 0;
	table = here->skb == (u64)skb ? here->table : take_interrupted(&draft->claim, as_number(skb));
	if (!find_target_rule(draft, target, table, family))
		return 0;
	if (here->skb == (u64)skb) {
		here->skb = no_mark(here);
		read_jumpstack(&draft->claim, bpf_get_smp_processor_id());
	}
	return table_verdict(key, as_number(skb), (u64)MODULE_READ(xt_action_param, par, state), family);
}

#ifdef TSDT_KPROBES
enum { FAMILY_OF_STATE = FAMILIES };

static __always_inline int target_done(struct pt_regs *ctx, u32 family)
{
	struct xt_action_param *par;
	u64 call[4];

	if (!end_call(ctx, call))
		return 0;
	par = (struct xt_action_param *)call[1];
	if (family == FAMILY_BRIDGE ? (int)call[3] != EBT_DROP || to_broute(MODULE_READ(xt_action_param, par, state)) :
				      call[3] != NF_DROP)
		return 0;
	if (family == FAMILY_OF_STATE) {
		const struct nf_hook_state *state = MODULE_READ(xt_action_param, par, state);
		u8 pf = BPF_CORE_READ(state, pf);

		family = pf == NFPROTO_IPV6 ? FAMILY_IPV6 : FAMILY_IPV4;
	}
	return target_dropped((struct sk_buff *)call[0], par, family);
}

#define IPT_TARGET(function, family)                                                                    \
	ENTRY_OF(function) int function##_begin(struct pt_regs *ctx) { return begin_call(ctx); }        \
	EXIT_OF(function) int function##_end(struct pt_regs *ctx) { return target_done(ctx, family); }
#define IPT_TARGET_ANY(function) IPT_TARGET(function, FAMILY_OF_STATE)
#define EBT_TARGET(function) IPT_TARGET(function, FAMILY_BRIDGE)
#else
#define IPT_TARGET(function, family)                                                                            \
	SEC("fexit/" #function)                                                                                 \
	int BPF_PROG(function##_end, struct sk_buff *skb, const struct xt_action_param *par, unsigned int ret)  \
	{                                                                                                       \
		return ret == NF_DROP ? target_dropped(skb, par, family) : 0;                                   \
	}

// Those of xt_* modules that serve both families.
#define IPT_TARGET_ANY(function)                                                                                \
	SEC("fexit/" #function)                                                                                 \
	int BPF_PROG(function##_end, struct sk_buff *skb, const struct xt_action_param *par, unsigned int ret)  \
	{                                                                                                       \
		if (ret != NF_DROP)                                                                             \
			return 0;                                                                               \
		return target_dropped(skb, par, par->state->pf == NFPROTO_IPV6 ? FAMILY_IPV6 : FAMILY_IPV4);    \
	}

#define EBT_TARGET(function)                                                                                   \
	SEC("fexit/" #function)                                                                                \
	int BPF_PROG(function##_end, struct sk_buff *skb, const struct xt_action_param *par, unsigned int ret) \
	{                                                                                                      \
		if ((int)ret != EBT_DROP || to_broute(par->state))                                             \
			return 0;                                                                              \
		return target_dropped(skb, par, FAMILY_BRIDGE);                                                \
	}
#endif

#ifndef TSDT_LINUX_5_10
EBT_TARGET(ebt_arpreply_tg)
EBT_TARGET(ebt_dnat_tg)
EBT_TARGET(ebt_snat_tg)
EBT_TARGET(ebt_redirect_tg)
EBT_TARGET(ebt_mark_tg)
#endif

IPT_TARGET(reject_tg, FAMILY_IPV4)
IPT_TARGET(reject_tg6, FAMILY_IPV6)
IPT_TARGET(tproxy_tg4_v0, FAMILY_IPV4)
IPT_TARGET(tproxy_tg4_v1, FAMILY_IPV4)
IPT_TARGET(tproxy_tg6_v1, FAMILY_IPV6)
IPT_TARGET(synproxy_tg4, FAMILY_IPV4)
IPT_TARGET(synproxy_tg6, FAMILY_IPV6)
IPT_TARGET(xt_snat_target_v0, FAMILY_IPV4)
IPT_TARGET(xt_dnat_target_v0, FAMILY_IPV4)
IPT_TARGET_ANY(xt_snat_target_v1)
IPT_TARGET_ANY(xt_dnat_target_v1)
IPT_TARGET_ANY(xt_snat_target_v2)
IPT_TARGET_ANY(xt_dnat_target_v2)
IPT_TARGET(masquerade_tg, FAMILY_IPV4)
IPT_TARGET(masquerade_tg6, FAMILY_IPV6)
IPT_TARGET(redirect_tg4, FAMILY_IPV4)
IPT_TARGET(redirect_tg6, FAMILY_IPV6)
IPT_TARGET(netmap_tg4, FAMILY_IPV4)
IPT_TARGET(netmap_tg6, FAMILY_IPV6)
IPT_TARGET(tcpmss_tg4, FAMILY_IPV4)
IPT_TARGET(tcpmss_tg6, FAMILY_IPV6)
IPT_TARGET(tcpoptstrip_tg4, FAMILY_IPV4)
IPT_TARGET(tcpoptstrip_tg6, FAMILY_IPV6)
IPT_TARGET(ecn_tg, FAMILY_IPV4)
IPT_TARGET(ip6t_snpt_tg, FAMILY_IPV6)
IPT_TARGET(ip6t_dnpt_tg, FAMILY_IPV6)
IPT_TARGET(clusterip_tg, FAMILY_IPV4)
