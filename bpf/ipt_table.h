// SPDX-License-Identifier: GPL-2.0-only
// Legacy tables: which rule dropped is told by the counter that moved. ipt_do_table calls nothing when a
// rule drops, but every rule that matches first adds one to its own counter of this CPU. So per CPU and
// table a shadow of the counters of all rules that can drop is kept: compared, and brought up to date,
// only when the table has returned NF_DROP. A packet that passes costs two comparisons: whether the shadow
// still belongs to this table and to this generation of it, and whether it interrupts another packet.
//
// The counter moves while softirqs are off, but ipt_do_table returns after they are on again: in between other
// packets may run on this CPU, or (where the kernel is preemptible) the process may be moved to another one. So
// each traversal leaves a mark at its begin. The next one that finds it claims, for the one that it interrupts,
// the counter that has moved by then: what moves later is its own.
//
// What makes this exact: the counter of the rule that dropped a packet has moved on the CPU where its traversal ran.
// So if just one has, on all CPUs where it may have run, that is the one, as long as no claim was made for another
// packet in the wrong. Where that cannot be told, there is no rule.
//
// Walk: ipt_shadow.h takes the shadow, ipt_claim.h compares, ipt_traversal.h has a packet's begin, this file its end,
// ipt_verdict.h what is left of it for kfree_skb, ipt_allows.h a second look at the rule.
#pragma once

#include "ipt_allows.h"

// Takes the claim that was made for the packet when it was interrupted, if it is the one at `index`.
VERIFIED_ONCE int find_interrupted(struct draft *draft, u32 cpu, u32 index)
{
	struct claim *other = &traversals_of(cpu)->interrupted[index % INTERRUPTED];
	struct claim *claim;

	if (!draft)
		return 0;
	claim = &draft->claim;
	if (other->skb != claim->skb || other->fingerprint != claim->fingerprint ||
	    (claim->table && other->table != claim->table))
		return 0;
	if (!draft->search.found++) {
		*claim = *other;
		draft->search.cpu = cpu;
	}
	other->skb = 0;
	return 0;
}

// Looks for the packet's traversal on one CPU.
VERIFIED_ONCE int find_traversal(struct draft *draft, u32 cpu)
{
	struct traversals *there = traversals_of(cpu);
	struct traversal_search *search;
	struct claim *claim;

	if (!draft)
		return 0;
	search = &draft->search;
	claim = &draft->claim;
	for (u32 i = 0; i < INTERRUPTED; i++)
		find_interrupted(draft, cpu, i);
	if (there->skb != claim->skb || (claim->table && there->table != claim->table))
		return 0;
	there->skb = no_mark(there);
	if (!search->found++) {
		begin_claim(claim, there->table, there->state);
		search->cpu = cpu;
	}
	return 0;
}

static long find_traversal_on(u32 cpu, struct draft **draft)
{
	find_traversal(*draft, cpu);
	return 0;
}

// The packet has ended its traversal on this CPU without a mark there: it was interrupted or moved, or the kernel had
// not run table_begin for it.
VERIFIED_ONCE int claim_late(struct draft *draft, u64 skb, u32 cpu, u32 reader, u32 none_begun)
{
	struct traversals *here = traversals_of(cpu);
	struct traversal_search *search;
	struct claim *claim;
	bool strayed = true;
	u64 table;

	if (!draft)
		return 0;
	search = &draft->search;
	claim = &draft->claim;
	table = claim->table;
	claim->fingerprint = fingerprint_of((struct sk_buff *)skb);
	search->found = 0;
	compat_search_all_cpus(cpus, find_traversal_on, &draft);
	if (!search->found && none_begun && here->skb <= MARK_ENDING && !is_any_open(cpu) && !may_have_moved()) {
		begin_claim(claim, table, 0);
		claim_counter(claim, cpu, reader);
		return 0;
	}
	if (search->found == 1 && claim->unknown != TSDT_UNKNOWN_NO_COUNTER && claim->unknown != TSDT_UNKNOWN_TRAVERSAL_LOST)
		return 0;
	// Its counter has moved since, there or here. Whether it is the one that is found or not, note is taken of it.
	if (search->found != 1)
		begin_claim(claim, table, 0);
	else if (claim->unknown == TSDT_UNKNOWN_NO_COUNTER)
		strayed = is_any_open(cpu) || is_any_open(search->cpu);
	claim->has_jumpstack = 0;
	if (search->found == 1 && search->cpu != cpu)
		claim_counter(claim, search->cpu, reader);
	claim_counter(claim, cpu, reader);
	if (strayed)
		claim->unknown = TSDT_UNKNOWN_TRAVERSAL_LOST;
	return 0;
}

// It is not known which of the counters that have moved on this CPU is that of a packet, and note is taken of all of them
// now: one of them may be that of a packet which is under way here, or what it has claimed may not be its own.
static __noinline int doubt_all(u32 cpu)
{
	struct traversals *here = traversals_of(cpu);
	struct claim *newest = &here->interrupted[here->interruptions % INTERRUPTED];

	if (here->skb > MARK_ENDING) {
		make_room(here, newest, bpf_ktime_get_ns());
		begin_claim(newest, here->table, here->state);
		newest->fingerprint = fingerprint_of((struct sk_buff *)here->skb);
		newest->skb = here->skb;
		here->skb = no_mark(here);
		here->interruptions++;
	}
	for (u32 i = 0; i < INTERRUPTED; i++)
		here->interrupted[i].unknown = TSDT_UNKNOWN_TRAVERSAL_LOST;
	return 0;
}

#ifndef TSDT_LINUX_5_10
// What the counters say of a packet that a bridge's table has dropped, see ebt_table.h. `certain`: nothing interrupted the
// packet's traversal, and it ran on this CPU.
static __noinline int judge_bridge(struct claim *claim, u32 hook, bool certain)
{
	struct traversals *here = traversals_of(bpf_get_smp_processor_id());
	u64 base = bridge_hook_entry(claim->private, hook);
	int policy = 0;
	bool base_drops;
	u32 endings;

	if (claim->doubtful)
		shadow_is_gone(here, claim->table);
	if (claim->unknown && claim->unknown != TSDT_UNKNOWN_NO_COUNTER)
		return 0;
	bpf_probe_read_kernel(&policy, sizeof(policy), (void *)base + __builtin_offsetof(struct ebt_entries, policy));
	base_drops = base && policy == EBT_DROP;
	endings = claim->drop_chains + base_drops;
	if (claim->doubtful || (endings && !certain)) {
		claim->unknown = TSDT_UNKNOWN_TRAVERSAL_LOST;
		return 0;
	}
	if (!claim->unknown || !endings || claim->needs & ~*(volatile u32 *)&bridge_targets_traced)
		return 0;
	claim->unknown = endings > 1 ? TSDT_UNKNOWN_MANY_POLICIES : TSDT_UNKNOWN_NONE;
	claim->number = 0;
	claim->offset = base_drops ? base - bridge_entries(claim->private) : claim->drop_chain;
	claim->chain = base_drops ? CHAIN_BUILTIN | hook : claim->drop_chain;
	return 0;
}
#else
static __always_inline int judge_bridge(struct claim *claim, u32 hook, bool certain) { return 0; }
#endif

static __always_inline int table_dropped_here(u64 table_address, u64 address, u64 state_address, u32 family, u64 mark)
{
	u32 cpu = bpf_get_smp_processor_id(), key = DRAFT_TABLE + family;
	struct sk_buff *skb = (struct sk_buff *)address;
	struct verdict *waiting = bpf_map_lookup_elem(&verdicts, &address);
	struct draft *draft = bpf_map_lookup_elem(&drafts, &key);
	struct nf_hook_state *state = (struct nf_hook_state *)state_address;
	struct claim *claim;

	// An extension target may have said so itself.
	if (!draft || (waiting && waiting->table_address == table_address && is_about(waiting, skb)))
		return 0;
	claim = &draft->claim;
	claim->skb = address;
	begin_claim(claim, table_address, state_address);
	if (mark == address) {
		claim_counter(claim, cpu, READER_END + family);
		read_jumpstack(claim, cpu);
	} else {
		claim_late(draft, address, cpu, READER_END + family, mark <= MARK_ENDING);
	}
	if (is_bridge_table(table_address))
		judge_bridge(claim, BPF_CORE_READ(state, hook), mark == address && !may_have_moved());
	if (!claim->unknown && !rule_allows(draft, address, BPF_CORE_READ(state, hook), family))
		claim->unknown = was_replaced(claim) ? TSDT_UNKNOWN_NO_BASELINE : TSDT_UNKNOWN_NO_COUNTER;
	if (claim->unknown == TSDT_UNKNOWN_NO_COUNTER && has_traced_matches(family))
		claim_match(draft, family);
	if (claim->unknown)
		doubt_all(cpu);
	return table_verdict(key, address, state_address, family);
}

__noinline int table_dropped(u64 table, u64 skb, u64 state, u32 family)
{
	struct traversals *here = traversals_of(bpf_get_smp_processor_id());
	u64 mark = here->skb;

	if (!traces_legacy || family >= FAMILIES)
		return 0;
	here->ending[family] = 1;
	if (mark == skb || !mark)
		here->skb = MARK_ENDING;
	table_dropped_here(table, skb, state, family, mark);
	here->ending[family] = 0;
	if (here->skb == MARK_ENDING || here->skb == here->unended)
		here->skb = no_mark(here);
	here->unended = 0;
	return 0;
}

// The packet dies as one that a table has dropped does, but table_end has left no verdict: the kernel had not run it,
// since it was at work for another packet. The mark is still there.
__noinline int table_dropped_unseen(u64 skb, u32 emitter)
{
	u32 cpu = bpf_get_smp_processor_id(), key = DRAFT_UNSEEN + emitter;
	struct draft *draft = bpf_map_lookup_elem(&drafts, &key);
	struct claim *claim;
	struct xt_table *table;
	struct nf_hook_state *state;
	u32 family;
	u8 pf;

	if (!traces_legacy || !draft)
		return 0;
	claim = &draft->claim;
	claim->skb = skb;
	claim->fingerprint = fingerprint_of((struct sk_buff *)skb);
	claim->table = 0;
	draft->search.found = 0;
	find_traversal(draft, cpu);
	if (draft->search.found != 1)
		return 0;
	if (claim->unknown == TSDT_UNKNOWN_NO_COUNTER) {
		claim_counter(claim, cpu, READER_EMIT + emitter);
		read_jumpstack(claim, cpu);
	}
	table = (struct xt_table *)claim->table;
	state = (struct nf_hook_state *)claim->state;
	family = family_of(claim->table);
	pf = family == FAMILY_BRIDGE ? NFPROTO_BRIDGE : BPF_CORE_READ(table, af);
	if (is_bridge_table(claim->table))
		judge_bridge(claim, BPF_CORE_READ(state, hook), false);
	traversals_of(cpu)->doubts++; // the end of another one may have been missed as well
	// The mark may be that of an earlier table, whose state is gone.
	if (claim->unknown || BPF_CORE_READ(state, pf) != pf ||
	    BPF_CORE_READ(state, hook) >= NF_INET_NUMHOOKS ||
	    !rule_allows(draft, skb, BPF_CORE_READ(state, hook), family))
		return 0;
	table_verdict(key, skb, claim->state, family);
	return 1;
}

// Not inlined, so that the way of most packets stays short.
static __noinline int end_dropped(u64 *ctx, u32 family)
{
	return table_dropped(ctx[0], as_number((void *)ctx[1]), as_number((void *)ctx[2]), family);
}

static __noinline int end_interrupted(u64 *ctx)
{
	return forget(as_number((void *)ctx[1]));
}

static __always_inline int table_end(u64 *ctx, u32 family) // as table_begin, and what ipt_do_table returned
{
	struct traversals *here;

	if ((ctx[3] & NF_VERDICT_MASK) == NF_DROP)
		return end_dropped(ctx, family);
	here = traversals_of(this_cpu_keeping(&ctx));
	if (here->skb != ctx[1])
		return end_interrupted(ctx);
	here->skb = 0;
	return 0;
}

#ifdef TSDT_KPROBES
const volatile bool table_is_first; // of the arguments: from 5.16 (9dd43a5f4b11)

static __always_inline int table_entry(struct pt_regs *ctx, u32 family)
{
	u64 first = PT_REGS_PARM1(ctx), second = PT_REGS_PARM2(ctx), third = PT_REGS_PARM3(ctx);
	struct call call = {};

	// All three are read before one is chosen: the verifier knows registers by fixed offsets only.
	barrier_var(first);
	barrier_var(second);
	barrier_var(third);
	call.argument[0] = table_is_first ? first : third;
	call.argument[1] = table_is_first ? second : first;
	call.argument[2] = table_is_first ? third : second;
	if (family == FAMILY_BRIDGE)
		call.argument[0] |= BRIDGE_TABLE;
	begin_call_with(ctx, &call);
	return table_begin(ctx, call.argument, bpf_get_smp_processor_id(), family);
}

static __always_inline int table_return(struct pt_regs *ctx, u32 family)
{
	u64 call[4];

	if (!end_call(ctx, call))
		return 0;
	if (family == FAMILY_BRIDGE && to_broute((struct nf_hook_state *)call[2]))
		call[3] = NF_VERDICT_MASK;
	return table_end(call, family);
}

#define IPT_TABLE(function, family)                                                                       \
	ENTRY_OF(function) int function##_begin(struct pt_regs *ctx) { return table_entry(ctx, family); } \
	EXIT_OF(function) int function##_end(struct pt_regs *ctx) { return table_return(ctx, family); }

#ifndef TSDT_LINUX_5_10
IPT_TABLE(ebt_do_table, FAMILY_BRIDGE)
#endif
#else
// The argument order is that of 5.16 and later (9dd43a5f4b11).
#define IPT_TABLE(function, family)                                                                               \
	SEC("fentry/" #function)                                                                                  \
	int function##_begin(u64 *ctx)                                                                            \
	{                                                                                                         \
		u32 cpu = this_cpu_keeping(&ctx);                                                                 \
                                                                                                                  \
		return table_begin(ctx, ctx, cpu, family);                                                        \
	}                                                                                                         \
	SEC("fexit/" #function)                                                                                   \
	int function##_end(u64 *ctx)                                                                              \
	{                                                                                                         \
		return table_end(ctx, family);                                                                    \
	}

SEC("fentry/ebt_do_table")
int ebt_do_table_begin(u64 *ctx)
{
	u64 argument[3] = {ctx[0] | BRIDGE_TABLE, ctx[1], ctx[2]};

	return table_begin(ctx, argument, bpf_get_smp_processor_id(), FAMILY_BRIDGE);
}

SEC("fexit/ebt_do_table")
int ebt_do_table_end(u64 *ctx)
{
	const struct nf_hook_state *state = (void *)ctx[2];
	u64 call[4] = {ctx[0] | BRIDGE_TABLE, ctx[1], ctx[2], ctx[3]};

	if (to_broute(state))
		call[3] = NF_VERDICT_MASK;
	return table_end(call, FAMILY_BRIDGE);
}
#endif

IPT_TABLE(ipt_do_table, FAMILY_IPV4)
IPT_TABLE(ip6t_do_table, FAMILY_IPV6)
IPT_TABLE(arpt_do_table, FAMILY_ARP)
