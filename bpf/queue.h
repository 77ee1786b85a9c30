// SPDX-License-Identifier: GPL-2.0-only
// Packets that a rule hands to a program in userspace (NFQUEUE, nft's queue), and that die there: nobody listens on the
// queue, it is full, or the program says so. These programs run for packets that are queued, which is a slow road.
#pragma once

#include "ipt_target.h"
#include "nft_trail.h"

// Whether no module that queues has been there since userspace looked: then nobody can listen. Userspace sets it before
// it looks, so that a module which comes meanwhile is not missed.
__u32 queue_handler_absent;

SEC("fentry/nf_register_queue_handler")
int nf_register_queue_handler_begin(void *ctx)
{
	*(volatile __u32 *)&queue_handler_absent = 0;
	return 0;
}

// The verdict holds the number of the queue. A packet that cannot be queued dies before the function ends.
SEC("fentry/nf_queue")
int nf_queue_begin(u64 *ctx) // struct sk_buff *skb, struct nf_hook_state *state, unsigned int index, unsigned int verdict
{
	struct queueing *here = this_cpu_queueing();

	here->state = ctx[1];
	here->number = (u32)ctx[3] >> 16;
	here->error = 0;
	here->skb = ctx[0];
	return 0;
}

SEC("fexit/nfqnl_enqueue_packet")
int BPF_PROG(nfqnl_enqueue_packet_end, struct nf_queue_entry *entry, unsigned int queuenum, int ret)
{
	struct queueing *here = this_cpu_queueing();

	if (here->skb != (u64)entry->skb)
		return 0;
	if (ret < 0)
		here->error = ret;
	else
		here->queued = 0; // what becomes of it later is not the rule's doing
	return 0;
}

// ---- which rule ----

SEC("fexit/nft_queue_eval")
int BPF_PROG(nft_queue_eval_end, struct nft_expr *expr, struct nft_regs *regs, struct nft_pktinfo *pkt)
{
	return nft_queued(expr, pkt);
}

SEC("fexit/nft_queue_sreg_eval")
int BPF_PROG(nft_queue_sreg_eval_end, struct nft_expr *expr, struct nft_regs *regs, struct nft_pktinfo *pkt)
{
	return nft_queued(expr, pkt);
}

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
	here->target = (u64)par->targinfo - __builtin_offsetof(struct xt_entry_target_head, verdict);
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

#define IPT_QUEUE(function)                                                                          \
	SEC("fexit/" #function)                                                                      \
	int BPF_PROG(function##_end, struct sk_buff *skb, const struct xt_action_param *par)         \
	{                                                                                            \
		return legacy_queued(skb, par);                                                      \
	}
IPT_QUEUE(nfqueue_tg)
IPT_QUEUE(nfqueue_tg_v1)
IPT_QUEUE(nfqueue_tg_v2)
IPT_QUEUE(nfqueue_tg_v3)

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

// The queue that a task gives verdicts for now.
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, u64); // struct task_struct *
	__type(value, u32);
} verdict_givers SEC(".maps");

static __always_inline int verdict_comes(const struct nfnl_info *info)
{
	u64 task = bpf_get_current_task();
	u32 number = __builtin_bswap16(BPF_CORE_READ(info, nfmsg, res_id));

	bpf_map_update_elem(&verdict_givers, &task, &number, BPF_ANY);
	return 0;
}

static __always_inline int verdict_ends(void)
{
	u64 task = bpf_get_current_task();

	bpf_map_delete_elem(&verdict_givers, &task);
	return 0;
}

SEC("fentry/nfqnl_recv_verdict")
int BPF_PROG(nfqnl_recv_verdict_begin, struct sk_buff *skb, const struct nfnl_info *info)
{
	return verdict_comes(info);
}
SEC("fexit/nfqnl_recv_verdict")
int BPF_PROG(nfqnl_recv_verdict_end)
{
	return verdict_ends();
}
SEC("fentry/nfqnl_recv_verdict_batch")
int BPF_PROG(nfqnl_recv_verdict_batch_begin, struct sk_buff *skb, const struct nfnl_info *info)
{
	return verdict_comes(info);
}
SEC("fexit/nfqnl_recv_verdict_batch")
int BPF_PROG(nfqnl_recv_verdict_batch_end)
{
	return verdict_ends();
}

// A packet leaves its queue to be dropped: the program said so, or the queue is being closed.
static __always_inline int reinjected(const struct nf_queue_entry *entry, u32 verdict_code)
{
	u64 task = bpf_get_current_task(), key = (u64)entry->skb;
	struct verdict verdict;
	u32 *number;

	if ((verdict_code & NF_VERDICT_MASK) != NF_DROP)
		return 0;
	number = bpf_map_lookup_elem(&verdict_givers, &task);
	begin_verdict(&verdict, entry->skb, &entry->state);
	verdict.source = TSDT_SOURCE_NETFILTER;
	verdict.unknown = TSDT_UNKNOWN_QUEUE;
	verdict.queue = number ? TSDT_QUEUE_VERDICT | TSDT_QUEUE_NUMBERED | *number : TSDT_QUEUE_CLOSED;
	bpf_map_update_elem(&verdicts, &key, &verdict, BPF_ANY);
	return 0;
}

// Userspace attaches one of the two: the first where it has not been inlined, since the kernel may still change its
// mind between them.
SEC("fentry/nf_reinject")
int BPF_PROG(nf_reinject_begin, struct nf_queue_entry *entry, unsigned int verdict)
{
	return reinjected(entry, verdict);
}
SEC("fentry/nfqnl_reinject")
int BPF_PROG(nfqnl_reinject_begin, struct nf_queue_entry *entry, unsigned int verdict)
{
	return reinjected(entry, verdict);
}
