// SPDX-License-Identifier: GPL-2.0-only
// The maps that the programs share, and what travels in them between a netfilter program and kfree_skb.
#pragma once

#include "kernel_compat.h"
#include "event.h"

// Which programs are attached beside those on kfree_skb. Where they are not, the kernel may not have their types: every
// global function that needs these asks first, since it is verified whether it is called or not.
const volatile bool traces_nft;    // nft_trail.h
const volatile bool traces_legacy; // ipt_table.h

#ifdef TSDT_LINUX_5_10
#define EMITTERS 4 // one on top of another, on one CPU
#else
// Two programs on kfree_skb (see on_kfree_skb_again): one may run on top of the other.
#define EMITTERS 2
#endif

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
	TRAIL_PENDING = 5,   // struct nft_expr *: kprobes only: an expression has begun, its end was not seen (yet)
	TRAIL_KIND = 7,
};

struct trail_step {
	u64 pkt; // struct nft_pktinfo *
	u64 what;
};

struct trail {
	struct trail_step step[TSDT_TRAIL_STEPS];
	u64 head; // steps ever left, times sizeof(struct trail_step): where the next one goes
	u64 pad[7];
};

// A global array, not a per-CPU map: finding this CPU's part costs half as much, and it is looked for in every
// traversal.
static struct trail trails[TSDT_MAX_CPUS];

static __always_inline struct trail *trail_of(u32 cpu)
{
	return &trails[cpu & (TSDT_MAX_CPUS - 1)];
}

static __always_inline struct trail *this_cpu_trail(void)
{
	return trail_of(bpf_get_smp_processor_id());
}

static __always_inline void trail_add(struct trail *trail, const void *pkt, const void *address, u32 kind)
{
	u64 head = trail->head;
	struct trail_step *step = (void *)(head & (TSDT_TRAIL_STEPS - 1) * sizeof(struct trail_step));

	asm("%0 += %1" : "+r"(step) : "r"(trail)); // the compiler would copy the one to add the other

	step->pkt = (u64)pkt;
	step->what = (u64)address + kind;
	trail->head = head + sizeof(struct trail_step);
}

// How many steps have been left.
static __always_inline u64 trail_end(struct trail *trail)
{
	return trail->head / sizeof(struct trail_step);
}

// A preemptible kernel may move a process to another CPU while it is within netfilter: then what it has left on the
// one ends here, and what it leaves on the other begins there. Only moves within a section that reads under RCU are
// recorded, as every traversal is: they are rare.
struct move {
	u64 end;   // of its steps on `from`
	u64 begin; // of its steps on `to`
	u32 from;
	u32 to;
};
#define TSDT_MOVES 4
#define TSDT_MOVE_MAX_AGE_NS 10000000000ULL // no traversal takes longer

struct moves {
	u64 count; // ever
	u64 last_ns;
	struct move move[TSDT_MOVES];
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, u64); // struct task_struct *
	__type(value, struct moves);
} moves SEC(".maps");

// A verdict on its way from the function that returned NF_DROP to kfree_skb in nf_hook_slow. Kept by packet and not by
// CPU: in between softirqs may drop others, and the process may be moved.
struct verdict {
	u64 fingerprint; // of the packet: the skb may be used again
	u64 mono_ns;
	u64 rule;
	u64 table_address; // legacy: struct xt_table *
	u32 offset;
	u32 generation;
	u32 netns;
	u32 number;
	u32 queue; // tsdt_queue
	u32 gencursor; // nf_tables: which of each chain's two lists of rules packets met at that time
	u8 source;
	u8 unknown;
	u8 hook;
	u8 pf;
	u16 family;
	u8 named;    // chain and number are known
	u8 by_match; // a match of the rule dropped it by itself
	struct net_device *in;
	struct net_device *out;
	char table[TSDT_NAME_LEN];
	char chain[TSDT_NAME_LEN];
	u32 jumpstack[TSDT_JUMPSTACK_MAX];
};
// Other tracers on kfree_skb run in between, and a new cause costs each of them milliseconds.
#define TSDT_VERDICT_MAX_AGE_NS 200000000ULL

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 2048);
	__type(key, u64); // struct sk_buff *
	__type(value, struct verdict);
} verdicts SEC(".maps");

// Of the first bytes of the IP header and of what follows.
static __always_inline u64 fingerprint_of(struct sk_buff *skb)
{
	u64 word[5] = {}, sum = 0;

	bpf_probe_read_kernel(word, sizeof(word), BPF_CORE_READ(skb, head) + BPF_CORE_READ(skb, network_header));
	for (u32 i = 0; i < 5; i++) {
		sum = (sum ^ word[i]) * 0x9e3779b97f4a7c15ULL;
		sum ^= sum >> 32;
	}
	return sum;
}

// nf_tables: which of each chain's two lists of rules packets meet now.
static __always_inline u32 gencursor_of(const struct nf_hook_state *state)
{
	return BPF_CORE_READ(state, net, nft.gencursor);
}

// A verdict on `skb`, with what netfilter's state says of it filled in.
static __always_inline void begin_verdict(struct verdict *verdict, struct sk_buff *skb, const struct nf_hook_state *state)
{
	__builtin_memset(verdict, 0, sizeof(*verdict));
	verdict->fingerprint = fingerprint_of(skb);
	verdict->mono_ns = bpf_ktime_get_ns();
	verdict->hook = BPF_CORE_READ(state, hook);
	verdict->pf = BPF_CORE_READ(state, pf);
	verdict->netns = BPF_CORE_READ(state, net, ns.inum);
	verdict->in = BPF_CORE_READ(state, in);
	verdict->out = BPF_CORE_READ(state, out);
}

// One that nobody took is not about the next packet that has its skb.
static __always_inline bool is_about(const struct verdict *verdict, struct sk_buff *skb)
{
	return bpf_ktime_get_ns() - verdict->mono_ns < TSDT_VERDICT_MAX_AGE_NS &&
	       verdict->fingerprint == fingerprint_of(skb);
}

// How many modules with nf_tables' expressions have been loaded since the start, and how many of them were there when
// userspace last attached to what is there.
__u32 expressions_loaded, expressions_traced;

#ifdef TSDT_LINUX_5_10
// When a module has been loaded, since the start, last. Addresses are named by userspace there, a while after a packet has
// died: something else may be at them by then.
struct module_name {
	char text[56];
};
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, struct module_name);
	__type(value, u64); // bpf_ktime_get_ns()
} module_loads SEC(".maps");
__u32 module_loads_lost; // those that found no room there
#endif

// Whether the matches of iptables-nft are traced (match.h): set by userspace.
__u32 matches_traced;

// What one CPU is queueing now for a program in userspace (queue.h).
struct queueing {
	u64 skb;
	u64 state;  // struct nf_hook_state *
	u32 number; // of the queue
	s32 error;  // of nfnetlink_queue
	u64 queued; // skb that a rule has just handed over; the rest is about the rule
	u64 pkt;    // nf_tables: struct nft_pktinfo *
	u64 target; // legacy: address of the rule's target
	u64 table;  // legacy: struct xt_table *
	u64 private; // its struct xt_table_info *
	u64 jumpstack[TSDT_JUMPSTACK_MAX];
};
static struct queueing queueings[TSDT_MAX_CPUS];

static __always_inline struct queueing *this_cpu_queueing(void)
{
	return &queueings[bpf_get_smp_processor_id() & (TSDT_MAX_CPUS - 1)];
}

// Counts the changes of rulesets, by enum tsdt_generation: one more when a change begins, and one more when it has ended.
__u32 generations[TSDT_GENERATION_MAX];
// How many changes are under way; userspace sets it right when the end of one was missed.
__s32 changing[TSDT_GENERATION_MAX];

// Stands for the generation of a ruleset that had been replaced when the packet died: it is that of no reading.
#define GENERATION_PAST 0xffffffffu

static __always_inline u32 generation(u32 which)
{
	return *(volatile u32 *)&generations[which];
}

static __always_inline bool is_changing(u32 which)
{
	return *(volatile s32 *)&changing[which] > 0;
}
