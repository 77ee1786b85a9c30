// SPDX-License-Identifier: GPL-2.0-only
// The maps that the programs share, and what travels in them between a netfilter program and kfree_skb.
#pragma once

#include "kernel_compat.h"
#include "event.h"

// ---- the stash: what netfilter programs know of the packets in flight on one CPU ----

// nf_tables. Every traversal of a base chain leaves a trail: its beginning, the jumps and gotos taken, and the
// expression that dropped. A traversal is told from the others on this CPU (a softirq that interrupts a process, a
// packet sent from within a rule: reject, dup) by the address of its nft_pktinfo, which lies on the stack of
// nft_do_chain's caller. Old steps are overwritten: a traversal that cannot be followed back to its beginning has
// lost its trail, and says so.
#define TSDT_TRAIL_STEPS 256

// What a step says, in the low bits of `what`; the rest is an address (of at least 8 bytes' alignment).
enum trail_kind {
	TRAIL_BEGIN = 0,     // struct nft_chain *: a traversal of this base chain begins
	TRAIL_IMMEDIATE = 1, // struct nft_expr *: an nft_immediate drops, or jumps or goes to a chain: it says itself which
	TRAIL_DROP = 2,      // struct nft_expr *: another expression has dropped
	TRAIL_JUMP_TO = 3,   // struct nft_chain *: another expression jumps or goes there; the expression follows
	TRAIL_JUMP_BY = 4,   // struct nft_expr *: that expression
	TRAIL_KIND = 7,
};

struct trail_step {
	u64 pkt; // struct nft_pktinfo *
	u64 what;
};

struct trail {
	struct trail_step step[TSDT_TRAIL_STEPS];
	u64 head; // where the next step goes, in bytes
	u64 pad[7];
};

// A global array, not a per-CPU map: finding this CPU's part costs half as much, and it is looked for in every
// traversal.
static struct trail trails[TSDT_MAX_CPUS];

static __always_inline struct trail *this_cpu_trail(void)
{
	return &trails[bpf_get_smp_processor_id() & (TSDT_MAX_CPUS - 1)];
}

static __always_inline void trail_add(struct trail *trail, const void *pkt, const void *address, u32 kind)
{
	u64 head = trail->head & (TSDT_TRAIL_STEPS - 1) * sizeof(struct trail_step);
	struct trail_step *step = (void *)trail + head;

	step->pkt = (u64)pkt;
	step->what = (u64)address + kind;
	trail->head = head + sizeof(struct trail_step);
}

// The step that is `back` steps older than the newest one.
static __always_inline struct trail_step *trail_step(struct trail *trail, u32 back)
{
	return &trail->step[(trail->head / sizeof(struct trail_step) - 1 - back) % TSDT_TRAIL_STEPS];
}

// A verdict on its way from the function that returned NF_DROP to kfree_skb in nf_hook_slow.
struct verdict {
	u64 skb;
	u64 mono_ns;
	u64 rule;
	u32 offset;
	u32 generation;
	u32 netns;
	u32 number;
	u8 source;
	u8 unknown;
	u8 hook;
	u8 pf;
	u16 family;
	u16 named; // chain and number are known
	struct net_device *in;
	struct net_device *out;
	char table[TSDT_NAME_LEN];
	char chain[TSDT_NAME_LEN];
	u32 jumpstack[TSDT_JUMPSTACK_MAX];
};
#define TSDT_VERDICTS 4
// Other tracers on kfree_skb run in between, and a new cause costs each of them milliseconds.
#define TSDT_VERDICT_MAX_AGE_NS 200000000ULL

struct stash {
	u64 verdicts; // ever written
	u64 pending;  // some may be waiting to be taken
	struct verdict verdict[TSDT_VERDICTS];
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct stash);
} stash SEC(".maps");

// The slot for a verdict on `skb`, with what netfilter's state says of it filled in.
static __always_inline struct verdict *new_verdict(struct stash *stash, struct sk_buff *skb,
						   const struct nf_hook_state *state)
{
	struct verdict *verdict = &stash->verdict[stash->verdicts++ % TSDT_VERDICTS];

	// One that nobody took (the kernel does not run a program on top of itself) is not this packet's.
	for (u32 i = 0; i < TSDT_VERDICTS; i++) {
		if (stash->verdict[i].skb == (u64)skb)
			stash->verdict[i].skb = 0;
	}
	stash->pending = 1;
	verdict->skb = (u64)skb;
	verdict->mono_ns = bpf_ktime_get_ns();
	verdict->unknown = TSDT_UNKNOWN_NONE;
	verdict->offset = 0;
	verdict->number = 0;
	verdict->named = 0;
	verdict->hook = BPF_CORE_READ(state, hook);
	verdict->pf = BPF_CORE_READ(state, pf);
	verdict->netns = BPF_CORE_READ(state, net, ns.inum);
	verdict->in = BPF_CORE_READ(state, in);
	verdict->out = BPF_CORE_READ(state, out);
	return verdict;
}

static __always_inline struct stash *this_cpu_stash(void)
{
	u32 zero = 0;

	return bpf_map_lookup_elem(&stash, &zero);
}

// Counts the changes of rulesets, by enum tsdt_generation.
__u32 generations[TSDT_GENERATION_MAX];

static __always_inline u32 generation(u32 which)
{
	return *(volatile u32 *)&generations[which];
}
