// SPDX-License-Identifier: GPL-2.0-only
// Which counter of a legacy table has moved since its shadow was taken: what is claimed for a packet (see ipt_table.h).
#pragma once

#include "ipt_shadow.h"

// The programs that compare: one may run on top of another, but none on top of itself.
enum { READER_BEGIN = 0, READER_END = FAMILIES, READER_EMIT = 2 * FAMILIES, READERS = READER_EMIT + EMITTERS };

struct comparison {
	u32 first;
	u32 count;
	u32 cpu;
	bool elsewhere; // not the CPU that this runs on
	u32 moved;
	struct claim *claim;
	struct span *span;
};

static __always_inline void *map_lookup_on(void *map, u32 key, u32 cpu, bool elsewhere)
{
	if (!elsewhere)
		return bpf_map_lookup_elem(map, &key);
	return compat_has_percpu_lookup() ? bpf_map_lookup_percpu_elem(map, &key, cpu) : NULL;
}

#ifdef TSDT_LINUX_5_10
#define MAX_CHUNKS 256 // userspace: pool_chunks()

// Before 5.12 (5ffa25502b5a) BPF has no compare-and-swap. All who look at these counters run on their CPU, one on top
// of another: the one below is left alone.
struct claiming {
	u32 busy;
	u32 moved; // counters
	u32 key;   // chunk of the last one of them
	u32 index; // in that chunk
};
static struct claiming claiming[TSDT_MAX_CPUS];

static __always_inline struct claiming *claiming_here(void)
{
	return &claiming[bpf_get_smp_processor_id() & (TSDT_MAX_CPUS - 1)];
}

// Takes note of all counters of a chunk that have moved.
__noinline int moved_in_chunk(u32 key, u32 count)
{
	struct chunk *chunk = bpf_map_lookup_elem(&pool, &key);
	struct claiming *here = claiming_here();

	if (!chunk)
		return 0;
	for (u32 i = 0; i < CHUNK && i < count; i++) {
		struct candidate *watched = &chunk->candidate[i];
		u64 now = watched->pcnt;

		if (counts_others(watched))
			continue;
		bpf_probe_read_kernel(&now, sizeof(now), (void *)watched->counter);
		if (now != watched->pcnt) {
			watched->pcnt = now;
			here->moved++;
			here->key = key;
			here->index = i;
		}
	}
	return 0;
}

__noinline int moved_in_chunks(u32 first, u32 count)
{
	for (u32 i = 0; i < MAX_CHUNKS && i * CHUNK < count; i++)
		moved_in_chunk(first + i, count - i * CHUNK);
	return 0;
}

static __always_inline void compare_chunks(struct comparison *comparison, u32 limit, u32 reader)
{
	struct claiming *here = claiming_here();
	struct candidate *watched;

	barrier_var(reader); // else the callers of interrupt() would not pass it, which the verifier takes for a mistake
	comparison->moved = 2; // nothing is known for certain
	if (here->busy)
		return;
	here->busy = 1;
	here->moved = 0;
	moved_in_chunks(comparison->first, comparison->count);
	comparison->moved = here->moved;
	watched = here->moved ? candidate(here->key, here->index & (CHUNK - 1)) : NULL;
	if (watched) {
		comparison->claim->offset = watched->offset;
		comparison->claim->chain = watched->chain;
		comparison->claim->number = watched->number;
	}
	here->busy = 0;
}
#else
// The kernel takes the counters of a table's rules, in their order, from pages of per-CPU memory: those of a chunk mostly
// lie so close together that they are read at once.
#define SPAN 1024 // bytes
struct span {
	u64 counter[SPAN / sizeof(u64)];
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, READERS);
	__type(key, u32);
	__type(value, struct span);
} spans SEC(".maps");

// A candidate whose counter seems to have moved.
struct second_look {
	struct chunk *chunk;
	struct claim *claim;
	u32 differ; // bits of the candidates
	u32 moved;
};

static long claim_candidate(u32 index, struct second_look *look)
{
	struct candidate *watched;
	u64 before, now;

	if (index >= CHUNK || !(look->differ >> index & 1))
		return 0;
	watched = &look->chunk->candidate[index];
	if (counts_others(watched))
		return 0;
	before = now = watched->pcnt;
	bpf_probe_read_kernel(&now, sizeof(now), (void *)watched->counter);
	// Whoever is first to take note of it has it.
	if (now == before || __sync_val_compare_and_swap(&watched->pcnt, before, now) != before)
		return 0;
	look->claim->offset = watched->offset;
	look->claim->chain = watched->chain;
	look->claim->number = watched->number;
	look->moved++;
	return 0;
}

// Without branches: the verifier would follow each of them for each candidate.
VERIFIED_ONCE int compare_in_chunk(struct chunk *chunk, u32 count, struct span *span, struct claim *claim)
{
	struct second_look look = {.chunk = chunk, .claim = claim};
	u64 base, size, differ = 0;

	if (!chunk || !span || !claim || !count)
		return 0;
	if (count > CHUNK)
		count = CHUNK;
	base = chunk->candidate[0].counter;
	size = chunk->candidate[(count - 1) % CHUNK].counter - base + sizeof(u64);
	if (size > SPAN)
		size = SPAN;
	if (bpf_probe_read_kernel(span, size, (void *)base))
		size = 0;
#pragma clang loop unroll(disable)
	for (u32 i = 0; i < CHUNK; i++) {
		const struct candidate *watched = &chunk->candidate[i];
		u64 at = watched->counter - base;
		u64 difference = span->counter[at / sizeof(u64) % (SPAN / sizeof(u64))] ^ watched->pcnt;
		u64 differs = difference | -difference | (size - 1 - at) | at; // its highest bit: also where at >= size

		differ = differ >> 1 | (differs & 1ULL << 63);
	}
	look.differ = differ >> (64 - CHUNK) & (1ULL << count) - 1;
	if (look.differ)
		bpf_loop(count, claim_candidate, &look, 0);
	return look.moved;
}

static long compare_chunk(u32 index, struct comparison *comparison)
{
	struct chunk *chunk = map_lookup_on(&pool, comparison->first + index, comparison->cpu, comparison->elsewhere);

	if (!chunk)
		return 1;
	comparison->moved += compare_in_chunk(chunk, comparison->count - index * CHUNK, comparison->span, comparison->claim);
	return 0;
}

static __always_inline void compare_chunks(struct comparison *comparison, u32 limit, u32 reader)
{
	comparison->span = bpf_map_lookup_elem(&spans, &reader);
	if (comparison->span)
		bpf_loop(limit, compare_chunk, comparison, 0);
}
#endif

// The jumps that led to the chain are still in the table's jump stack of that CPU, until the next traversal.
VERIFIED_ONCE int read_jumpstack(struct claim *claim, u32 cpu)
{
	struct xt_table_info *private;
	void ***jumpstacks;
	void **jumpstack = NULL;

	if (!traces_legacy || !claim)
		return 0;
	__builtin_memset(claim->jumpstack, 0, sizeof(claim->jumpstack));
	claim->has_jumpstack = 1;
#ifndef TSDT_LINUX_5_10
	if (is_bridge_table(claim->table)) {
		read_bridge_stack(claim->private, cpu, claim->jumpstack);
		return 0;
	}
#endif
	private = (struct xt_table_info *)claim->private;
	jumpstacks = BPF_CORE_READ(private, jumpstack);
	if (jumpstacks)
		bpf_probe_read_kernel(&jumpstack, sizeof(jumpstack), &jumpstacks[cpu]);
	if (jumpstack && compat_duplicating() && family_of(claim->table) != FAMILY_ARP) // the copy uses the other half
		jumpstack += BPF_CORE_READ(private, stacksize);
	if (jumpstack)
		bpf_probe_read_kernel(claim->jumpstack, sizeof(claim->jumpstack), jumpstack);
	return 0;
}

static __always_inline void begin_claim(struct claim *claim, u64 table, u64 state)
{
	claim->table = table;
	claim->state = state;
	claim->private = 0;
	claim->moved = 0;
	claim->doubtful = 0;
	claim->unknown = TSDT_UNKNOWN_NO_COUNTER;
	claim->has_jumpstack = 0;
	claim->by_match = 0;
}

// Looks for the counter that has moved on `cpu`, in the table of `claim`, since the last time, and takes note of all
// that have. May be called for several CPUs in turn.
VERIFIED_ONCE int claim_counter(struct claim *claim, u32 cpu, u32 reader)
{
	struct comparison comparison = {.cpu = cpu, .claim = claim};
	struct traversals *there = traversals_of(cpu);
	struct table_slot *slot;
	struct tables *tables;
	u32 family;

	if (!claim || !traces_legacy)
		return 0;
	family = family_of(claim->table);
	claim->private = private_of(claim->table);
	comparison.elsewhere = cpu != bpf_get_smp_processor_id();
	if (comparison.elsewhere) // takes note of what may be that of a packet there
		__sync_fetch_and_add(&there->doubts, 1);
	tables = map_lookup_on(&shadows, family, cpu, comparison.elsewhere);
	slot = tables ? table_slot(tables, claim->table) : NULL;
	if (!slot || slot->table != claim->table || slot->private != claim->private) {
		claim->unknown = TSDT_UNKNOWN_NO_BASELINE;
		return 0;
	}
	claim->generation = slot->generation;
	claim->as_of = slot->as_of;
	claim->needs = slot->needs;
	claim->drop_chains = slot->drop_chains;
	claim->drop_chain = slot->drop_chain;
	comparison.first = slot->first;
	comparison.count = slot->count;
	compare_chunks(&comparison, (slot->count + CHUNK - 1) / CHUNK, reader);
	claim->moved += comparison.moved;
	claim->doubtful |= is_doubtful(slot, there, claim->table);
	if (!slot->complete || claim->unknown == TSDT_UNKNOWN_NO_BASELINE)
		claim->unknown = TSDT_UNKNOWN_NO_BASELINE;
	else if (claim->moved)
		claim->unknown = claim->moved == 1 ? TSDT_UNKNOWN_NONE : TSDT_UNKNOWN_MANY_COUNTERS;
	return 0;
}

// What is known of a packet: looked for by its skb, its fingerprint, and its table unless that is 0.
struct traversal_search {
	u32 found; // how many; the first one is in the draft's claim
	u32 cpu;   // where it was
};

// Where a verdict is put together: the stack is too small. One for each program that may interrupt another one.
struct draft {
	struct claim claim;
	struct traversal_search search;
	struct verdict verdict;
	union { // one after the other
		struct ipt_ip rule4;
		struct ip6t_ip6 rule6;
		struct arpt_entry rule_arp;
		struct ebt_entry rule_bridge;
		struct walk walk;
	};
};
enum { DRAFT_TABLE = 0, DRAFT_TARGET = FAMILIES, DRAFT_UNSEEN = 2 * FAMILIES, DRAFTS = DRAFT_UNSEEN + EMITTERS };

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, DRAFTS);
	__type(key, u32);
	__type(value, struct draft);
} drafts SEC(".maps");
