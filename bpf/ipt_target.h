// SPDX-License-Identifier: GPL-2.0-only
// Extension targets of legacy rules that drop when they fail. Their functions are called with the rule's own data, so which rule it
// is needs no counter. (iptables-nft calls the same functions: then the data lies in no legacy table.)
#pragma once

#include "ipt_table.h"

struct target_search {
	u32 first;
	u32 count;
	u32 target; // offset of the target in the blob
	u32 found;
	struct claim *claim;
	struct chunk *chunk;
};

// On its own, so that it is verified once.
__noinline int is_target(const struct candidate *candidate, struct claim *claim, u32 target)
{
	if (!candidate || !claim || candidate->target != target)
		return 0;
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

static long find_target(u32 index, struct target_search *search)
{
	u32 key = search->first + index, left = search->count - index * CHUNK;

	search->chunk = bpf_map_lookup_elem(&pool, &key);
	if (!search->chunk)
		return 1;
	bpf_loop(left < CHUNK ? left : CHUNK, compare_target, search, 0);
	return 0;
}

// Fills in the claim of `draft` with the rule whose target lies at `target`. False when it is not in that table.
static __noinline bool find_target_rule(struct draft *draft, u64 target, u64 table, u32 family)
{
	struct tables *tables = bpf_map_lookup_elem(&shadows, &family);
	struct target_search search = {};
	struct table_slot *slot;
	u64 blob;

	if (!tables)
		return false;
	slot = table_slot(tables, table);
	blob = slot->private + bpf_core_field_offset(struct xt_table_info, entries);
	if (slot->table != table || target < blob || target >= blob + slot->size)
		return false;
	draft->claim.table = slot->table;
	draft->claim.private = slot->private;
	draft->claim.unknown = TSDT_UNKNOWN_NONE;
	search.first = slot->first;
	search.count = slot->count;
	search.target = target - blob;
	search.claim = &draft->claim;
	bpf_loop((slot->count + CHUNK - 1) / CHUNK, find_target, &search, 0);
	return search.found;
}

static __noinline int target_dropped(struct sk_buff *skb, const struct xt_action_param *par, u32 family)
{
	struct traversals *here = traversals_of(bpf_get_smp_processor_id());
	u64 target = (u64)BPF_CORE_READ(par, targinfo) - __builtin_offsetof(struct xt_entry_target_head, verdict);
	u32 key = DRAFT_TARGET + family;
	struct draft *draft = bpf_map_lookup_elem(&drafts, &key);

	if (!draft || here->skb != (u64)skb || !find_target_rule(draft, target, here->table, family))
		return 0;
	here->skb = 0;
	read_jumpstack(&draft->claim, bpf_get_smp_processor_id());
	return table_verdict(key, as_number(skb), (u64)BPF_CORE_READ(par, state), family);
}

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
IPT_TARGET(clusterip_tg, FAMILY_IPV4)
