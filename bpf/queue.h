// SPDX-License-Identifier: GPL-2.0-only
// Packets that a rule hands to a program in userspace (NFQUEUE, nft's queue), and that die there: nobody listens on the
// queue, it is full, or the program says so. These programs run for packets that are queued, which is a slow road.
#pragma once

#include "ipt_target.h"
#include "nft_trail.h"
#include "verdict_giver.h"

// Whether no module that queues has been there since userspace looked: then nobody can listen. Userspace sets it before
// it looks, so that a module which comes meanwhile is not missed.
__u32 queue_handler_absent;

ENTRY_OF(nf_register_queue_handler)
int nf_register_queue_handler_begin(void *ctx)
{
	*(volatile __u32 *)&queue_handler_absent = 0;
	return 0;
}

// The verdict holds the number of the queue. A packet that cannot be queued dies before the function ends.
static __always_inline int queue_begins(u64 skb, u64 state, u32 verdict)
{
	struct queueing *here = this_cpu_queueing();

	here->state = state;
	here->number = verdict >> 16;
	here->error = 0;
	here->skb = skb;
	return 0;
}
AT_BEGIN(nf_queue, queue_begins(argument[0], argument[1], argument[3])) // the third one is its place among the hook's

static __always_inline int enqueued(const struct nf_queue_entry *entry, int error)
{
	struct queueing *here = this_cpu_queueing();

	if (here->skb != (u64)ARGUMENT_READ(entry, skb))
		return 0;
	if (error < 0) {
		here->error = error;
	} else { // what becomes of it later is neither the rule's doing nor the queue's
		here->queued = 0;
		here->skb = 0;
	}
	return 0;
}
AT_END(nfqnl_enqueue_packet, 2, enqueued((void *)argument[0], result))

// ---- which rule ----

// const struct nft_expr *expr, struct nft_regs *regs, const struct nft_pktinfo *pkt
AT_END(nft_queue_eval, 3, nft_queued((void *)argument[0], (void *)argument[2]))
AT_END(nft_queue_sreg_eval, 3, nft_queued((void *)argument[0], (void *)argument[2]))

// Called with the rule's own data, as those of ipt_target.h.
static __always_inline int legacy_queued(struct sk_buff *skb, const struct xt_action_param *par)
{
	struct traversals *traversal = traversals_of(bpf_get_smp_processor_id());
	struct queueing *here = this_cpu_queueing();
	struct xt_table *table = (struct xt_table *)traversal->table;
	void ***jumpstacks, **jumpstack = NULL;
	struct xt_table_info *private;

	if (traversal->skb != (u64)skb)
		return 0;
	private = BPF_CORE_READ(table, private);
	here->pkt = 0;
	here->target = (u64)ARGUMENT_READ(par, targinfo) - __builtin_offsetof(struct xt_entry_target_head, verdict);
	here->table = (u64)table;
	here->private = (u64)private;
	here->queued = (u64)skb;
	__builtin_memset(here->jumpstack, 0, sizeof(here->jumpstack));
	jumpstacks = BPF_CORE_READ(private, jumpstack);
	if (jumpstacks)
		bpf_probe_read_kernel(&jumpstack, sizeof(jumpstack), &jumpstacks[bpf_get_smp_processor_id()]);
	if (jumpstack && compat_duplicating())
		jumpstack += BPF_CORE_READ(private, stacksize);
	if (jumpstack)
		bpf_probe_read_kernel(here->jumpstack, sizeof(here->jumpstack), jumpstack);
	return 0;
}

AT_END(nfqueue_tg, 2, legacy_queued((void *)argument[0], (void *)argument[1]))
AT_END(nfqueue_tg_v1, 2, legacy_queued((void *)argument[0], (void *)argument[1]))
AT_END(nfqueue_tg_v2, 2, legacy_queued((void *)argument[0], (void *)argument[1]))
AT_END(nfqueue_tg_v3, 2, legacy_queued((void *)argument[0], (void *)argument[1]))

static __always_inline struct draft *queue_draft(const struct nf_hook_state *state, u32 *family)
{
	u32 key;

	*family = BPF_CORE_READ(state, pf) == NFPROTO_IPV6 ? FAMILY_IPV6 : FAMILY_IPV4;
	key = DRAFT_TARGET + *family;
	return bpf_map_lookup_elem(&drafts, &key);
}

// Whether it was a legacy rule that handed over the packet, which could not be queued: then its claim is in the draft.
// (Two functions, for the sake of the stack.)
static __noinline bool find_queue_rule(u64 skb)
{
	struct queueing *here = this_cpu_queueing();
	struct nf_hook_state *state = (struct nf_hook_state *)here->state;
	struct draft *draft;
	u32 family;

	if (here->queued != skb || !here->target)
		return false;
	here->queued = 0;
	draft = queue_draft(state, &family);
	if (!draft || !find_target_rule(draft, here->target, here->table, family) ||
	    draft->claim.private != here->private)
		return false;
	for (u32 i = 0; i < TSDT_JUMPSTACK_MAX; i++)
		draft->claim.jumpstack[i] = here->jumpstack[i];
	draft->claim.has_jumpstack = 1;
	return true;
}

// Leaves the verdict that says so. `queue`: tsdt_queue.
static __noinline int leave_queue_verdict(u64 skb, u32 queue)
{
	struct queueing *here = this_cpu_queueing();
	struct nf_hook_state *state = (struct nf_hook_state *)here->state;
	struct draft *draft;
	u32 family;

	draft = queue_draft(state, &family);
	if (!draft)
		return 0;
	table_verdict(DRAFT_TARGET + family, skb, (u64)state, family);
	draft->verdict.queue = queue;
	bpf_map_update_elem(&verdicts, &skb, &draft->verdict, BPF_ANY);
	return 0;
}

// ---- the program's own word ----

static __always_inline u32 queue_of(const struct nfnl_info *info)
{
	return __builtin_bswap16(BPF_CORE_READ(info, nfmsg, res_id));
}

// struct sk_buff *skb, const struct nfnl_info *info
AT_BEGIN(nfqnl_recv_verdict, verdict_comes(queue_of((void *)argument[1])))
AT_BEGIN(nfqnl_recv_verdict_batch, verdict_comes(queue_of((void *)argument[1])))

// A packet leaves its queue to be dropped: the program said so, or the queue is being closed.
static __always_inline int reinjected(const struct nf_queue_entry *entry, u32 verdict_code)
{
	struct sk_buff *skb = ARGUMENT_READ(entry, skb);
	u64 task = bpf_get_current_task(), key = (u64)skb;
	struct verdict verdict;
	u32 *number;

	if ((verdict_code & NF_VERDICT_MASK) != NF_DROP)
		return 0;
	number = bpf_map_lookup_elem(&verdict_givers, &task);
	begin_verdict(&verdict, skb, &entry->state);
	verdict.source = TSDT_SOURCE_NETFILTER;
	verdict.unknown = TSDT_UNKNOWN_QUEUE;
	verdict.queue = number ? TSDT_QUEUE_VERDICT | TSDT_QUEUE_NUMBERED | *number : TSDT_QUEUE_CLOSED;
	bpf_map_update_elem(&verdicts, &key, &verdict, BPF_ANY);
	return 0;
}

// Userspace attaches one of the two: the first where it has not been inlined, since the kernel may still change its
// mind between them.
// struct nf_queue_entry *entry, unsigned int verdict
AT_BEGIN(nf_reinject, reinjected((void *)argument[0], argument[1]))
AT_BEGIN(nfqnl_reinject, reinjected((void *)argument[0], argument[1]))
