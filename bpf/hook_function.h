// SPDX-License-Identifier: GPL-2.0-only
// Drops by hook functions that have no rules: conntrack, nat, ipvs, SELinux, BPF programs, whatever is registered. The
// first packet that dies so tells at which hook, and which functions are registered there. Then, and only then,
// userspace has hook_function_end attached to these: from the next packet on the one that dropped is known.
#pragma once

#include "maps.h"
#include "text.h"

// Which hook a function calls nf_hook_slow for: nothing else says so when a hook function has dropped. By name, as it
// comes before the '+' or the '.' of its symbol; filled in by userspace.
#define HOOK_CALLER_LEN 24
struct hook_caller {
	char name[HOOK_CALLER_LEN];
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 128);
	__type(key, struct hook_caller);
	__type(value, u32); // NFPROTO_* << 8 | hook
} hook_callers SEC(".maps");

// The same by address, of callers that have been met. 0: not known.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 256);
	__type(key, u64);
	__type(value, u32);
} hook_calls SEC(".maps");

#define STACK_DEPTH 24

// Where a hook is looked for, and what is found. In a map, one for each program on kfree_skb: it is too large for the
// stack, and holds keys of other maps.
struct hook_search {
	u64 frames[STACK_DEPTH];
	u64 caller;
	struct hook_caller name;
	char symbol[TSDT_SYMBOL_LEN];
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 2);
	__type(key, u32);
	__type(value, struct hook_search);
} hook_searches SEC(".maps");

// Whom nf_hook_slow, which `location` lies in, returns to: that is the next frame of the stack. One further on where
// it handles a list of packets.
static __always_inline u64 caller_of(const struct hook_search *search, u64 location, u32 further)
{
	for (u32 i = 0; i + 2 < STACK_DEPTH; i++)
		if (search->frames[i] == location)
			return search->frames[i + 1 + further];
	return 0;
}

// NFPROTO_* << 8 | hook for which search->caller calls nf_hook_slow, 0 when that is not known.
__noinline int hook_of_caller(u32 which)
{
	struct hook_search *search = bpf_map_lookup_elem(&hook_searches, &which);
	u32 *known, hook = 0;
	u64 *address;

	if (!search)
		return 0;
	address = &search->caller;
	known = bpf_map_lookup_elem(&hook_calls, address);
	if (known)
		return *known;
	__builtin_memset(&search->name, 0, sizeof(search->name));
	compat_symbol(search->symbol, sizeof(search->symbol), search->caller);
	for (u32 i = 0; i < HOOK_CALLER_LEN - 1; i++) {
		if (search->symbol[i] == '+' || search->symbol[i] == '.')
			break;
		search->name.name[i] = search->symbol[i];
	}
	known = bpf_map_lookup_elem(&hook_callers, &search->name);
	if (known)
		hook = *known;
	bpf_map_update_elem(&hook_calls, address, &hook, BPF_ANY);
	return hook;
}

// NFPROTO_* << 8 | hook for which nf_hook_slow was called, 0 when that is not known. The frames have been filled in.
// `below`: how many functions of a hook lie between nf_hook_slow and the location.
__noinline int find_hook(u32 which, u64 location, u32 below)
{
	struct hook_search *search = bpf_map_lookup_elem(&hook_searches, &which);
	u32 hook;

	if (!search)
		return 0;
	if (below) {
		search->caller = caller_of(search, location, 1);
		compat_symbol(search->symbol, sizeof(search->symbol), search->caller);
		if (!begins_with(search->symbol, "nf_hook_slow+", 13))
			return 0;
		location = search->caller;
	}
	search->caller = caller_of(search, location, 0);
	hook = hook_of_caller(which);
	if (!hook) {
		search->caller = caller_of(search, location, 1);
		if (begins_with(search->symbol, "nf_hook_slow_list+", 18))
			hook = hook_of_caller(which);
	}
	return hook;
}

static __always_inline struct net *net_of(const struct sk_buff *skb)
{
	struct net_device *dev = BPF_CORE_READ(skb, dev);
	struct sock *sk = BPF_CORE_READ(skb, sk);
	u64 dst = BPF_CORE_READ(skb, _skb_refdst) & ~1UL; // SKB_DST_NOREF

	if (dev)
		return BPF_CORE_READ(dev, nd_net.net);
	if (sk)
		return BPF_CORE_READ(sk, __sk_common.skc_net.net);
	if (dst)
		return BPF_CORE_READ((struct dst_entry *)dst, dev, nd_net.net);
	return NULL;
}

#define HOOK_ENTRIES(net, field, index)                                                                       \
	({                                                                                                    \
		struct nf_hook_entries *entries__ = NULL;                                                     \
		if (bpf_core_field_exists(struct netns_nf, field))                                            \
			bpf_probe_read_kernel(&entries__, sizeof(entries__),                                  \
					      (void *)(net) + bpf_core_field_offset(struct net, nf) +         \
						      bpf_core_field_offset(struct netns_nf, field) +         \
						      (index) * sizeof(entries__));                           \
		entries__;                                                                                    \
	})

// What is registered at a hook, as nf_hook_slow was given it.
static __always_inline struct nf_hook_entries *hook_entries(const struct sk_buff *skb, u8 pf, u8 hook)
{
	struct net_device *dev = BPF_CORE_READ(skb, dev);
	struct net *net = net_of(skb);

	if (pf == NFPROTO_NETDEV) {
		if (!dev)
			return NULL;
		if (hook == NF_NETDEV_EGRESS)
			return bpf_core_field_exists(dev->nf_hooks_egress) ? BPF_CORE_READ(dev, nf_hooks_egress) : NULL;
		return bpf_core_field_exists(dev->nf_hooks_ingress) ? BPF_CORE_READ(dev, nf_hooks_ingress) : NULL;
	}
	if (!net || hook >= NF_INET_NUMHOOKS || !bpf_core_field_exists(net->nf))
		return NULL;
	if (pf == NFPROTO_IPV4)
		return HOOK_ENTRIES(net, hooks_ipv4, hook);
	if (pf == NFPROTO_IPV6)
		return HOOK_ENTRIES(net, hooks_ipv6, hook);
	if (pf == NFPROTO_BRIDGE)
		return HOOK_ENTRIES(net, hooks_bridge, hook);
	if (pf == NFPROTO_ARP && hook < NF_ARP_NUMHOOKS)
		return HOOK_ENTRIES(net, hooks_arp, hook);
	return NULL;
}

struct function_lister {
	struct nf_hook_entries *entries;
	struct tsdt_cause *cause;
	u32 count;
};

static long list_function(u32 index, struct function_lister *lister)
{
	struct nf_hook_entries *entries = lister->entries;
	u64 function = 0;

	if (index >= lister->count || index >= TSDT_PATH_MAX)
		return 1;
	bpf_probe_read_kernel(&function, sizeof(function),
			      (void *)entries + bpf_core_field_offset(struct nf_hook_entries, hooks) +
				      index * bpf_core_type_size(struct nf_hook_entry));
	compat_symbol(lister->cause->step[index].chain, TSDT_NAME_LEN, function);
	return 0;
}

// Names the functions that are registered at the hook: one of them has dropped the packet.
__noinline int list_hook_functions(struct tsdt_cause *cause, u64 skb_address)
{
	struct function_lister lister = {.cause = cause};
	struct nf_hook_entries *entries;

	if (!cause)
		return 0;
	entries = hook_entries((struct sk_buff *)skb_address, cause->key.pf, cause->key.hook);
	if (!entries)
		return 0;
	lister.entries = entries;
	lister.count = BPF_CORE_READ(entries, num_hook_entries);
	bpf_loop(TSDT_PATH_MAX, list_function, &lister, 0);
	cause->steps = lister.count < TSDT_PATH_MAX ? lister.count : TSDT_PATH_MAX;
	return 0;
}

// void *priv, struct sk_buff *skb, const struct nf_hook_state *state
static __always_inline int hook_function_dropped(void *ctx, const u64 *argument, u32 result, bool is_program)
{
	struct sk_buff *skb = (void *)argument[1];
	u64 key = (u64)skb;
	struct verdict *waiting, verdict;

	if ((result & NF_VERDICT_MASK) != NF_DROP)
		return 0;
	waiting = bpf_map_lookup_elem(&verdicts, &key);
	if (waiting && is_about(waiting, skb)) // a rule of this function
		return 0;
	begin_verdict(&verdict, skb, (void *)argument[2]);
	verdict.source = TSDT_SOURCE_HOOK_FUNCTION;
	verdict.rule = bpf_get_func_ip(ctx);
	if (is_program) {
		struct bpf_prog_aux *aux = BPF_CORE_READ((struct bpf_prog *)argument[0], aux);

		verdict.offset = BPF_CORE_READ(aux, id);
		bpf_core_read_str(verdict.table, sizeof(aux->name), &aux->name);
	}
	bpf_map_update_elem(&verdicts, &key, &verdict, BPF_ANY);
	return 0;
}

// A template: userspace says to which functions it is attached. All have the arguments of nf_hookfn.
AT_END(hook_function, 3, hook_function_dropped(ctx, argument, result, false))

// BPF programs at netfilter's hooks (6.4): `priv` is the program.
AT_END(nf_hook_run_bpf, 3, hook_function_dropped(ctx, argument, result, true))
