// SPDX-License-Identifier: GPL-2.0-only
// A packet begins a legacy table, interrupts another one there, or is moved to another CPU (see ipt_table.h).
#pragma once

#include "ipt_claim.h"

// Whether a traversal was interrupted on that CPU before its own counter had moved, and has not ended. The end of one in some
// millions is not seen: that must not stay for ever.
static __always_inline bool is_interrupted_one_open(const struct traversals *there, u64 now)
{
	for (u32 i = 0; i < INTERRUPTED; i++)
		if (there->interrupted[i].skb && there->interrupted[i].unknown == TSDT_UNKNOWN_NO_COUNTER &&
		    now - there->interrupted[i].interrupted_ns < TSDT_MOVE_MAX_AGE_NS)
			return true;
	return false;
}

// Whether a counter that moves on this CPU now may be that of such a traversal; or of one that this CPU knows nothing of: that
// came here with its process, or left for another CPU, or of too many interrupted ones.
__noinline int is_any_open(u32 cpu)
{
	const struct traversals *here = traversals_of(cpu);
	u64 now = bpf_ktime_get_ns();

	return now - here->strayed_ns < TSDT_MOVE_MAX_AGE_NS || is_interrupted_one_open(here, now);
}

// A task that is moved takes a traversal along, if one is under way where it was.
__noinline int stray(u32 from, u32 to)
{
	struct traversals *left = traversals_of(from), *reached = traversals_of(to);
	u64 now = bpf_ktime_get_ns();

	if (left->skb > MARK_ENDING || left->interrupting || is_interrupted_one_open(left, now))
		left->strayed_ns = reached->strayed_ns = now;
	else if (left->strayed_ns > reached->strayed_ns) // it may have come there with one
		reached->strayed_ns = left->strayed_ns;
	return 0;
}

// For a traversal that is interrupted now.
static __always_inline void make_room(struct traversals *here, struct claim *claim, u64 now)
{
	if (claim->skb && now - claim->interrupted_ns < TSDT_MOVE_MAX_AGE_NS)
		here->strayed_ns = now;
	claim->skb = 0;
	claim->interrupted_ns = now;
}

// A packet begins a table while another one has not ended its own on this CPU: what has moved by now is the other's,
// unless that is not the only one.
__noinline int interrupt(u32 cpu, u32 reader)
{
	struct traversals *here = traversals_of(cpu);
	struct claim *other = &here->interrupted[here->interruptions % INTERRUPTED];
	u64 skb = here->skb;
	bool any_open;

	barrier_var(reader); // on 5.10 it is of no use, so the callers would not pass it
	if (!traces_legacy)
		return 0;
	__sync_fetch_and_add(&here->interrupting, 1);
	here->skb = no_mark(here);
	make_room(here, other, bpf_ktime_get_ns());
	any_open = is_any_open(cpu);
	other->fingerprint = fingerprint_of((struct sk_buff *)skb);
	begin_claim(other, here->table, here->state);
	claim_counter(other, cpu, reader);
	read_jumpstack(other, cpu);
	if (compat_duplicating()) // whether `other` is the copy or what is copied, is not known
		other->has_jumpstack = 0;
	if (other->moved && any_open)
		other->unknown = TSDT_UNKNOWN_MANY_COUNTERS;
	if (skb != here->unended || other->moved) { // else it has ended
		other->skb = skb;
		here->interruptions++;
	}
	__sync_fetch_and_add(&here->interrupting, -1);
	return 0;
}

static __noinline long forget_on(u32 cpu, u64 *skb)
{
	struct traversals *there = traversals_of(cpu);

	for (u32 i = 0; i < INTERRUPTED; i++)
		if (there->interrupted[i].skb == *skb)
			there->interrupted[i].skb = 0;
	if (there->skb == *skb)
		there->skb = no_mark(there);
	return 0;
}

// Whether the current task may have been moved to this CPU within the traversal.
static __always_inline bool may_have_moved(void)
{
	u64 task = bpf_get_current_task();
	struct moves *known = bpf_map_lookup_elem(&moves, &task);

	return known && bpf_ktime_get_ns() - known->last_ns < TSDT_MOVE_MAX_AGE_NS;
}

// It was interrupted or moved, and has ended without being dropped.
__noinline int forget(u64 skb)
{
	if (may_have_moved())
		compat_search_all_cpus(cpus, forget_on, &skb);
	else
		forget_on(bpf_get_smp_processor_id(), &skb);
	return 0;
}

// Not inlined, so that the way of most packets stays short.
static __noinline int begin_interrupting(void *ctx, u64 *argument, u32 family)
{
	u32 cpu = bpf_get_smp_processor_id();
	struct traversals *here = traversals_of(cpu);
	u64 table = argument[0], skb = argument[1], state = argument[2];

	if (here->skb != skb && here->skb != MARK_ENDING)
		interrupt(cpu, READER_BEGIN + family);
	if (here->any_ending) // the end of this one may be missed
		here->doubts++;
	here->unended = no_mark(here) && !compat_in_task(ctx) ? skb : 0;
	here->skb = skb;
	here->table = table;
	here->state = state;
	return take_shadow(table, family);
}

static __always_inline int table_begin(void *ctx, u64 *argument, u32 cpu, u32 family) // struct xt_table *table, skb, state
{
	struct traversals *here = traversals_of(cpu);
	u64 table = argument[0];

	if (here->skb)
		return begin_interrupting(ctx, argument, family);
	here->skb = argument[1];
	here->table = table;
	here->state = argument[2];
	if (here->taken[taken_place(table)].table == table &&
	    here->taken[taken_place(table)].generation == generation(TSDT_GENERATION_X_TABLES))
		return 0;
	return take_shadow(table, family);
}
