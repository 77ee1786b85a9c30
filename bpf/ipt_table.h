// SPDX-License-Identifier: GPL-2.0-only
// Legacy tables: which rule dropped is told by the counter that moved. ipt_do_table calls nothing when a
// rule drops, but every rule that matches first adds one to its own counter of this CPU. So per CPU and
// table a shadow of the counters of all rules that can drop is kept: compared, and brought up to date,
// only when the table has returned NF_DROP. A packet that passes costs one comparison: whether the shadow
// still belongs to this table and to this generation of it.
#pragma once

#include "maps.h"

const volatile bool percpu_counters; // false where the kernel has room for one CPU only: counters are in place
const volatile __u32 pool_chunks;    // of candidates, for IPv4 and again for IPv6

#define TABLE_SLOTS 32
#define CHUNK 64

// A rule that drops whatever reaches its target: plain DROP, REJECT, or a built-in chain's policy.
struct candidate {
	u64 counter; // address of this CPU's packet counter
	u64 pcnt;    // the shadow
	u32 offset;  // of the entry in the blob
	u32 chain;   // offset of the entry that begins the user chain, or CHAIN_BUILTIN | hook
	u32 number;  // 1-based position in the chain, 0 for the policy
	u32 pad;
};
#define CHAIN_BUILTIN 0x80000000u

struct chunk {
	struct candidate candidate[CHUNK];
};

struct table_slot {
	u64 table;      // struct xt_table *
	u64 private;    // its struct xt_table_info * when the shadow was taken
	u32 generation; // for which the shadow holds
	u32 first;      // chunk
	u32 count;      // candidates
	u32 complete;   // none was left out for want of room
};

struct tables {
	struct table_slot slot[TABLE_SLOTS];
	u32 generation; // of the slots and of this family's part of the pool
	u32 used;       // chunks
};
enum { FAMILY_IPV4 = 0, FAMILY_IPV6 = 1, FAMILIES = 2 };

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, FAMILIES);
	__type(key, u32);
	__type(value, struct tables);
} shadows SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, FAMILIES); // userspace: FAMILIES * pool_chunks
	__type(key, u32);
	__type(value, struct chunk);
} pool SEC(".maps");

extern const struct rq runqueues __ksym; // any per-CPU variable will do

// What to add to a per-CPU address to get this CPU's copy.
static __always_inline u64 this_cpu_offset(void)
{
	return (u64)bpf_this_cpu_ptr(&runqueues) - (u64)&runqueues;
}

static __always_inline u32 first_slot(u64 table)
{
	return table * 0x9e3779b97f4a7c15ULL >> 59; // TABLE_SLOTS is 1 << (64 - 59)
}

// The slot of a table, or the free one where it belongs, or (all taken) the first one of its places. Tables that share
// a first slot must not drive each other out: REJECT sends a packet through the others before it drops.
#define SLOT_PLACES 8

static __always_inline struct table_slot *table_slot(struct tables *tables, u64 table)
{
	u32 first = first_slot(table), free = first;

	for (u32 i = SLOT_PLACES; i-- > 0;) {
		u32 at = (first + i) % TABLE_SLOTS;

		if (tables->slot[at].table == table)
			return &tables->slot[at];
		if (!tables->slot[at].table)
			free = at;
	}
	return &tables->slot[free % TABLE_SLOTS];
}

static struct candidate *candidate(u32 first, u32 index)
{
	u32 key = first + index / CHUNK;
	struct chunk *chunk = bpf_map_lookup_elem(&pool, &key);

	return chunk ? &chunk->candidate[index % CHUNK] : NULL;
}

#define ENTRY(family, field)                                                     \
	((family) == FAMILY_IPV6 ? __builtin_offsetof(struct ip6t_entry, field) \
				 : __builtin_offsetof(struct ipt_entry, field))
#define ENTRY_SIZE(family) ((family) == FAMILY_IPV6 ? sizeof(struct ip6t_entry) : sizeof(struct ipt_entry))

struct walk {
	u64 entries; // address of the blob
	u32 size;
	u32 at; // offset
	u32 hook_entry[NF_INET_NUMHOOKS];
	u32 underflow[NF_INET_NUMHOOKS];
	u64 standard; // the standard target, once it has been met
	u64 cpu_offset;
	u32 chain;
	u32 number;
	u32 policy; // offset of the policy's entry in the current built-in chain
	u32 first;
	u32 count;
	u32 limit; // candidates there is room for
	u32 complete;
	u32 family;
};

// The first eight bytes of a name as one number: the verifier follows every branch of a loop over them.
#define NAME8(name) \
	((u64)sizeof(name) > 8 ? 0 : *(const u64 *)(const char[8]){name})

static long visit_entry(u32 index, struct walk *walk)
{
	struct xt_entry_target_head target = {};
	struct {
		u16 target, next;
	} offset = {};
	bool drops = false;
	u64 entry = walk->entries + walk->at;

	if (walk->at >= walk->size)
		return 1;
	bpf_probe_read_kernel(&offset, sizeof(offset), (void *)(entry + ENTRY(walk->family, target_offset)));
	if (offset.target < ENTRY_SIZE(walk->family) || offset.next < offset.target + sizeof(struct xt_counters))
		goto broken;
	bpf_probe_read_kernel(&target, __builtin_offsetof(struct xt_entry_target_head, errorname) + 4,
			      (void *)(entry + offset.target));

	for (u32 hook = 0; hook < NF_INET_NUMHOOKS; hook++) {
		if (walk->at == walk->hook_entry[hook]) {
			walk->chain = CHAIN_BUILTIN | hook;
			walk->policy = walk->underflow[hook];
			walk->number = 0;
		}
	}
	if (walk->standard && (u64)target.target == walk->standard) {
		drops = target.verdict == -NF_DROP - 1;
	} else {
		struct xt_target *kind = target.target;
		u64 name = 0;

		bpf_core_read(&name, sizeof(name), &kind->name);
		if (!(name & 0xff)) {
			walk->standard = (u64)target.target;
			drops = target.verdict == -NF_DROP - 1;
		} else if (name << 16 == NAME8("ERROR") << 16) {
			walk->chain = walk->at;
			walk->policy = ~0u;
			walk->number = 0;
			goto next;
		} else {
			drops = name << 8 == NAME8("REJECT") << 8;
		}
	}
	walk->number++;
	if (drops) {
		struct candidate *found = walk->count < walk->limit ? candidate(walk->first, walk->count) : NULL;
		u64 counter = entry + ENTRY(walk->family, counters);

		if (!found)
			goto broken;
		if (percpu_counters) {
			bpf_probe_read_kernel(&counter, sizeof(counter), (void *)counter);
			counter += walk->cpu_offset;
		}
		found->counter = counter;
		bpf_probe_read_kernel(&found->pcnt, sizeof(found->pcnt), (void *)counter);
		found->offset = walk->at;
		found->chain = walk->chain;
		found->number = walk->at == walk->policy ? 0 : walk->number;
		walk->count++;
	}
next:
	walk->at += offset.next;
	return 0;
broken:
	walk->complete = 0;
	return 1;
}

// Takes the shadow of a table for this CPU. Not inlined: the way of a packet that passes stays short.
static __noinline int take_shadow(struct tables *tables, u64 table_address, u32 family)
{
	struct xt_table *table = (struct xt_table *)table_address;
	struct table_slot *slot;
	struct xt_table_info *private;
	struct walk walk = {.complete = 1, .family = family};
	u32 now = generation(TSDT_GENERATION_X_TABLES);

	if (!tables)
		return 0;
	slot = table_slot(tables, table_address);
	if (slot->table == table_address && slot->generation == now)
		return 0; // it was not in its first place
	slot->table = 0; // a softirq that comes now must not trust it
	if (tables->generation != now) {
		for (u32 i = 0; i < TABLE_SLOTS; i++)
			tables->slot[i].table = 0;
		tables->generation = now;
		tables->used = 0;
	}
	private = BPF_CORE_READ(table, private);
	walk.entries = (u64)private + bpf_core_field_offset(private->entries);
	walk.size = BPF_CORE_READ(private, size);
	BPF_CORE_READ_INTO(&walk.hook_entry, private, hook_entry);
	BPF_CORE_READ_INTO(&walk.underflow, private, underflow);
	walk.cpu_offset = this_cpu_offset();
	walk.first = family * pool_chunks + tables->used;
	walk.limit = (pool_chunks - tables->used) * CHUNK;
	bpf_loop(BPF_CORE_READ(private, number), visit_entry, &walk, 0);

	if (!walk.complete && tables->used) {
		// The pool is used up, by tables that share a slot or by a change that takes long: next time from its start.
		tables->generation = now - 1;
		return 0;
	}
	slot->private = (u64)private;
	slot->first = walk.first;
	slot->count = walk.count;
	slot->complete = walk.complete;
	// While a change is under way (odd), every traversal takes its own: counters are being restored.
	slot->generation = now & 1 ? ~0u : now;
	tables->used += (walk.count + CHUNK - 1) / CHUNK;
	slot->table = table_address;
	return 0;
}

static __always_inline int table_begin(void *table, u32 family)
{
	struct tables *tables = bpf_map_lookup_elem(&shadows, &family);
	struct table_slot *slot;

	if (!tables)
		return 0;
	slot = &tables->slot[first_slot((u64)table)];
	if (slot->table == (u64)table && slot->generation == generation(TSDT_GENERATION_X_TABLES))
		return 0;
	return take_shadow(tables, (u64)table, family);
}

struct comparison {
	u32 first;
	u32 moved;
	u32 last; // index of the last one that moved
	u32 pad;
};

static long compare_counter(u32 index, struct comparison *comparison)
{
	struct candidate *watched = candidate(comparison->first, index);
	u64 now = 0;

	if (!watched)
		return 1;
	bpf_probe_read_kernel(&now, sizeof(now), (void *)watched->counter);
	if (now != watched->pcnt) {
		watched->pcnt = now;
		comparison->moved++;
		comparison->last = index;
	}
	return 0;
}

static __always_inline void name_chain(struct verdict *verdict, struct xt_table_info *private, u32 chain,
				       u32 family)
{
	static const char builtin[NF_INET_NUMHOOKS][16] = {"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"};

	if (chain & CHAIN_BUILTIN) {
		u32 hook = chain & 0xff;

		if (hook < NF_INET_NUMHOOKS)
			bpf_probe_read_kernel_str(verdict->chain, sizeof(verdict->chain), builtin[hook]);
	} else {
		u64 entry = (u64)private + bpf_core_field_offset(private->entries) + chain;

		bpf_probe_read_kernel_str(verdict->chain, 30,
					  (void *)(entry + ENTRY_SIZE(family) + __builtin_offsetof(struct xt_entry_target_head, errorname)));
	}
}

static __always_inline void read_jumpstack(struct verdict *verdict, struct xt_table_info *private)
{
	u64 entries = (u64)private + bpf_core_field_offset(private->entries);
	u32 size = BPF_CORE_READ(private, size);
	void ***jumpstacks = BPF_CORE_READ(private, jumpstack);
	u64 jump[TSDT_JUMPSTACK_MAX] = {};
	void **jumpstack = NULL;

	if (jumpstacks)
		bpf_probe_read_kernel(&jumpstack, sizeof(jumpstack), &jumpstacks[bpf_get_smp_processor_id()]);
	if (jumpstack)
		bpf_probe_read_kernel(jump, sizeof(jump), jumpstack);
	for (u32 i = 0; i < TSDT_JUMPSTACK_MAX; i++)
		verdict->jumpstack[i] = jump[i] >= entries && jump[i] < entries + size ? jump[i] - entries : ~0u;
}

static __noinline int table_dropped(u64 table_address, struct sk_buff *skb, const struct nf_hook_state *state, u32 family)
{
	struct xt_table *table = (struct xt_table *)table_address;
	struct xt_table_info *private = BPF_CORE_READ(table, private);
	struct tables *tables = bpf_map_lookup_elem(&shadows, &family);
	struct stash *stash = this_cpu_stash();
	struct comparison comparison = {};
	struct candidate *rule = NULL;
	struct table_slot *slot;
	struct verdict *verdict;
	bool shadowed;

	if (!stash || !tables)
		return 0;
	slot = table_slot(tables, table_address);
	shadowed = slot->table == table_address && slot->private == (u64)private;
	if (shadowed) {
		comparison.first = slot->first;
		bpf_loop(slot->count, compare_counter, &comparison, 0);
	}

	verdict = new_verdict(stash, skb, state);
	verdict->rule = (u64)private;
	verdict->generation = generation(TSDT_GENERATION_X_TABLES);
	verdict->family = BPF_CORE_READ(table, af);
	bpf_probe_read_kernel_str(verdict->table, 32, table->name);

	if (shadowed && comparison.moved == 1)
		rule = candidate(comparison.first, comparison.last);
	if (rule) {
		verdict->source = rule->number ? TSDT_SOURCE_LEGACY_RULE : TSDT_SOURCE_LEGACY_POLICY;
		verdict->offset = rule->offset;
		verdict->number = rule->number;
		verdict->named = 1;
		name_chain(verdict, private, rule->chain, family);
		read_jumpstack(verdict, private);
	} else {
		verdict->source = TSDT_SOURCE_NETFILTER;
		verdict->unknown = !shadowed || !slot->complete ? TSDT_UNKNOWN_NO_BASELINE :
				   comparison.moved ? TSDT_UNKNOWN_MANY_COUNTERS : TSDT_UNKNOWN_NO_COUNTER;
	}
	return 0;
}

static __always_inline int table_end(void *table, struct sk_buff *skb, const struct nf_hook_state *state, u32 ret,
				     u32 family)
{
	if ((ret & NF_VERDICT_MASK) != NF_DROP)
		return 0;
	return table_dropped((u64)table, skb, state, family);
}

// The argument order is that of 5.16 and later (9dd43a5f4b11).
#define IPT_TABLE(function, family)                                                                                \
	SEC("fentry/" #function) int BPF_PROG(function##_begin, void *table) { return table_begin(table, family); } \
	SEC("fexit/" #function)                                                                                    \
	int BPF_PROG(function##_end, void *table, struct sk_buff *skb, const struct nf_hook_state *state,         \
		     unsigned int ret)                                                                             \
	{                                                                                                          \
		return table_end(table, skb, state, ret, family);                                                  \
	}

IPT_TABLE(ipt_do_table, FAMILY_IPV4)
IPT_TABLE(ip6t_do_table, FAMILY_IPV6)
