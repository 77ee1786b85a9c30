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
#pragma once

#include "match.h"
#include "packet.h"
#include "ebt_table.h"
#include "per_cpu.h"

const volatile bool percpu_counters; // false where the kernel has room for one CPU only: counters are in place
const volatile __u32 cpus;           // that the kernel has room for
const volatile __u32 pool_chunks;    // of candidates, for IPv4 and again for IPv6
const volatile __u32 pool_chunks_small; // for ARP, and again for bridges

#define TABLE_SLOTS 32
#define CHUNK 32

// A rule that can drop: DROP, REJECT or a built-in chain's policy, whose counters are compared, or an extension target
// that drops when it fails, and says so itself (ipt_target.h). REJECT does both.
struct candidate {
	u64 counter; // address of this CPU's packet counter
	u64 pcnt;    // the shadow
	u32 offset;  // of the entry in the blob
	u32 chain;   // offset of the entry that begins the user chain, or CHAIN_BUILTIN | hook
	u32 number;  // 1-based position in the chain, 0 for the policy
	u32 target;  // offset of an extension target in the blob, 0 where there is none; TARGET_COUNTS
};
#define CHAIN_BUILTIN 0x80000000u
#define TARGET_COUNTS 0x80000000u // whenever the rule's counter moves, it drops

// Whether the rule's counter may move though it does not drop the packet.
static __always_inline bool counts_others(const struct candidate *candidate)
{
	return (s32)candidate->target > 0;
}

struct chunk {
	struct candidate candidate[CHUNK];
};

struct table_slot {
	u64 table;      // struct xt_table *, or struct ebt_table * with BRIDGE_TABLE
	u64 private;    // its struct xt_table_info * or struct ebt_table_info * when the shadow was taken
	u32 generation; // for which the shadow holds
	u32 first;      // chunk
	u32 count;      // candidates
	u32 complete;   // none was left out for want of room
	u32 size;       // of the blob
	// Bridges:
	u32 needs;       // enum bridge_target: those that its rules have
	u32 drop_chains; // user chains whose policy is DROP
	u32 drop_chain;  // offset of the last one of them
	u32 doubts;      // struct traversals: as of the shadow
	u32 as_of;       // the generation when the shadow was begun
};

struct tables {
	struct table_slot slot[TABLE_SLOTS];
	u32 generation; // of the slots and of this family's part of the pool
	u32 used;       // chunks
	u64 restarted_ns; // when the pool was last begun anew for want of room
};
enum { FAMILY_IPV4 = 0, FAMILY_IPV6 = 1, FAMILY_ARP = 2, FAMILY_BRIDGE = 3, FAMILIES = 4 };

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, FAMILIES);
	__type(key, u32);
	__type(value, struct tables);
} shadows SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, FAMILIES); // userspace: all chunks
	__type(key, u32);
	__type(value, struct chunk);
} pool SEC(".maps");

// What is known of the rule that dropped a packet.
struct claim {
	u64 skb; // 0: none
	u64 fingerprint;
	u64 table;   // struct xt_table *
	u64 state;   // struct nf_hook_state *
	u64 private; // its struct xt_table_info *
	u32 offset;  // as in struct candidate
	u32 chain;
	u32 number;
	u32 moved;   // counters
	u32 unknown; // enum tsdt_unknown: why there is no rule
	u32 has_jumpstack;
	u32 generation; // of the ruleset that offset, number and private are about
	u32 needs, drop_chains, drop_chain; // bridges: as in struct table_slot
	u32 doubtful;
	u32 by_match; // a match of the rule dropped it by itself
	u32 as_of;    // as in struct table_slot
	u32 pad;
	u64 interrupted_ns;
	u64 jumpstack[TSDT_JUMPSTACK_MAX]; // addresses of the jumps' entries; beyond those of this packet, older ones
};

// What every packet that begins or ends a table looks at, of one CPU.
#define TAKEN 64
#define INTERRUPTED 8
struct traversals {
	// The newest traversal under way.
	u64 skb;   // 0: none, MARK_ENDING: none, and a dropped packet's end is being looked at
	u64 table; // struct xt_table *
	u64 state; // struct nf_hook_state *
	u64 interruptions; // ever
	// While table_end is at work for one packet, the kernel does not run it for another one on this CPU. By family.
	union {
		u8 ending[4];
		u32 any_ending;
	};
	u32 doubts; // ebt_table.h: how often the shadows of bridges' tables have become doubtful
	u32 interrupting; // interrupt() is at work: the traversal is neither the newest nor among the interrupted ones
	u32 pad;
	u64 unended; // skb of the newest traversal, if it is a softirq's that has begun meanwhile: it ends first
	u64 strayed_ns; // when there last came to be traversals of which this CPU knows nothing: see is_any_open()
	// The tables whose shadow holds, each in the place that its address gives.
	struct {
		u64 table;
		u64 generation; // for which it holds
	} taken[TAKEN];
	// The traversals under way that the newest one interrupts.
	struct claim interrupted[INTERRUPTED];
};
#define MARK_ENDING 1
// A global array for the same reason as the trails of nf_tables.
static struct traversals traversals[TSDT_MAX_CPUS];

static __always_inline struct traversals *traversals_of(u32 cpu)
{
	return &traversals[cpu & (TSDT_MAX_CPUS - 1)];
}

// What stands where no traversal is under way.
static __always_inline u64 no_mark(const struct traversals *here)
{
	return here->any_ending ? MARK_ENDING : 0;
}

_Static_assert(FAMILIES <= sizeof(((struct traversals *)0)->ending), "room for each family");

static __always_inline u32 family_of(u64 table_address)
{
	struct xt_table *table = (struct xt_table *)table_address;
	u8 af;

	if (table_address & BRIDGE_TABLE)
		return FAMILY_BRIDGE;
	af = BPF_CORE_READ(table, af);
	return af == NFPROTO_IPV6 ? FAMILY_IPV6 : af == NFPROTO_ARP ? FAMILY_ARP : FAMILY_IPV4;
}

// Its struct xt_table_info * or struct ebt_table_info *; 0 where that type is not known.
static __always_inline u64 private_of(u64 table_address)
{
	struct xt_table *table = (struct xt_table *)table_address;

	if (table_address & BRIDGE_TABLE)
		return is_bridge_table(table_address) ? (u64)bridge_private(table_address) : 0;
	return (u64)BPF_CORE_READ(table, private);
}

static __always_inline u64 entries_of(u64 table, u64 private)
{
	return is_bridge_table(table) ? bridge_entries(private) : private + bpf_core_field_offset(struct xt_table_info, entries);
}

static __always_inline u32 taken_place(u64 table)
{
	return table >> 8 & (TAKEN - 1); // struct xt_table is allocated, and some 200 bytes large
}

static __always_inline void shadow_holds(struct traversals *here, u64 table, u32 generation)
{
	here->taken[taken_place(table)].generation = generation;
	here->taken[taken_place(table)].table = table;
}

static __always_inline void shadow_is_gone(struct traversals *here, u64 table)
{
	if (here->taken[taken_place(table)].table == table)
		here->taken[taken_place(table)].table = 0;
}

static __always_inline u32 first_slot(u64 table)
{
	return table * 0x9e3779b97f4a7c15ULL >> 59; // TABLE_SLOTS is 1 << (64 - 59)
}

// The slot of a table, or the free one where it belongs, or (all taken) the first one of its places. Tables that share
// a first slot must not drive each other out: REJECT sends a packet through the others before it drops.
#define SLOT_PLACES 8

// On its own, as are others below, so that it is verified once.
VERIFIED_ONCE int slot_index(struct tables *tables, u64 table)
{
	u32 first = first_slot(table), free = first;

	if (!tables)
		return 0;
	for (u32 i = SLOT_PLACES; i-- > 0;) {
		u32 at = (first + i) % TABLE_SLOTS;

		if (tables->slot[at].table == table)
			return at;
		if (!tables->slot[at].table)
			free = at;
	}
	return free % TABLE_SLOTS;
}

static __always_inline struct table_slot *table_slot(struct tables *tables, u64 table)
{
	return &tables->slot[(u32)slot_index(tables, table) % TABLE_SLOTS];
}

static struct candidate *candidate(u32 first, u32 index)
{
	u32 key = first + index / CHUNK;
	struct chunk *chunk = bpf_map_lookup_elem(&pool, &key);

	return chunk ? &chunk->candidate[index % CHUNK] : NULL;
}

#define OF_FAMILY(family, ip, ip6, arp) ((family) == FAMILY_IPV6 ? (ip6) : (family) == FAMILY_ARP ? (arp) : (ip))
#define ENTRY(family, field)                                                                              \
	OF_FAMILY(family, __builtin_offsetof(struct ipt_entry, field), __builtin_offsetof(struct ip6t_entry, field), \
		  __builtin_offsetof(struct arpt_entry, field))
#define ENTRY_SIZE(family) OF_FAMILY(family, sizeof(struct ipt_entry), sizeof(struct ip6t_entry), sizeof(struct arpt_entry))

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
	u16 head_size, target_at, counters_at; // of an entry of this family
	u16 found;
	u32 wanted; // offset: the entry that it lies in is looked for, and no candidate; 0: none is
#ifndef TSDT_LINUX_5_10
	// Bridges:
	u64 counters; // of this CPU
	u32 rules;    // so far
	u32 needs, drop_chains, drop_chain; // as in struct table_slot
#endif
};

// Extension targets that drop when they fail. Each has its functions in ipt_target.h.
static __always_inline bool target_may_fail(u64 name)
{
	return NAME_IS(name, "TPROXY") || NAME_IS(name, "SYNPROXY") || NAME_IS(name, "SNAT") ||
	       NAME_IS(name, "DNAT") || NAME_IS(name, "MASQUERADE") || NAME_IS(name, "REDIRECT") ||
	       NAME_IS(name, "NETMAP") || NAME_IS(name, "TCPMSS") || NAME_IS(name, "CLUSTERIP") ||
	       NAME_IS(name, "TCPOPTSTRIP") || NAME_IS(name, "ECN") || NAME_IS(name, "SNPT") || NAME_IS(name, "DNPT") ||
	       NAME_IS(name, "NFQUEUE"); // its program in userspace may (queue.h)
}

// arp_tables' mangle ends with the verdict that the rule says. With another one than DROP it could only drop a packet
// which is not ARP over Ethernet: then no rule is named.
static __always_inline __attribute__((unused)) bool mangle_drops(u64 address, struct xt_entry_target_head *target)
{
	const struct arpt_mangle *mangle = (void *)(address + __builtin_offsetof(struct xt_entry_target_head, verdict));

	target->verdict = -1;
	bpf_probe_read_kernel(&target->verdict, sizeof(target->verdict), &mangle->target);
	return target->verdict == NF_DROP;
}

// The rule where the walk stands. False: there is no room.
static __always_inline bool add_candidate(struct walk *walk, u64 counter, u32 target)
{
	struct candidate *found = walk->count < walk->limit ? candidate(walk->first, walk->count) : NULL;

	if (!found)
		return false;
	found->counter = counter;
	bpf_probe_read_kernel(&found->pcnt, sizeof(found->pcnt), (void *)counter);
	found->offset = walk->at;
	found->chain = walk->chain;
	found->number = walk->at == walk->policy ? 0 : walk->number;
	found->target = target;
	walk->count++;
	return true;
}

// Looks at the entry where the walk stands. 1: the walk has ended.
VERIFIED_ONCE int look_at_entry(struct walk *walk)
{
	struct xt_entry_target_head target = {};
	struct {
		u16 target, next;
	} offset = {};
	bool drops = false, extension = false, standard = false;
	u64 entry;

	if (!traces_legacy || !walk || walk->at >= walk->size)
		return 1;
	entry = walk->entries + walk->at;
	bpf_probe_read_kernel(&offset, sizeof(offset), (void *)(entry + walk->target_at));
	if (offset.target < walk->head_size || offset.next < offset.target + sizeof(struct xt_counters))
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
		standard = true;
		drops = target.verdict == -NF_DROP - 1;
	} else {
		struct xt_target *kind = target.target;
		u64 name = 0;

		bpf_probe_read_kernel(&name, sizeof(name), (void *)kind + MODULE_FIELD_OFFSET(xt_target, name));
		if (!(name & 0xff)) {
			standard = true;
			walk->standard = (u64)target.target;
			drops = target.verdict == -NF_DROP - 1;
		} else if (NAME_IS(name, "ERROR")) {
			walk->chain = walk->at;
			walk->policy = ~0u;
			walk->number = 0;
			goto next;
		} else {
			extension = target_may_fail(name);
			drops = extension || NAME_IS(name, "REJECT");
#ifndef TSDT_LINUX_5_10 // there the stack has no room for it: no rule is named
			if (NAME_IS(name, "mangle"))
				drops = mangle_drops(entry + offset.target, &target);
#endif
		}
	}
	walk->number++;
	if (walk->wanted) {
		if (walk->wanted >= walk->at + offset.next)
			goto next;
		walk->found = 1;
		return 1;
	}
	if (drops) {
		u64 counter = entry + walk->counters_at;

		if (percpu_counters) {
			bpf_probe_read_kernel(&counter, sizeof(counter), (void *)counter);
			counter += walk->cpu_offset;
		}
		if (!add_candidate(walk, counter, standard ? 0 : walk->at + offset.target | (extension ? 0 : TARGET_COUNTS)))
			goto broken;
	}
next:
	walk->at += offset.next;
	return 0;
broken:
	walk->complete = 0;
	return 1;
}

static long visit_entry(u32 index, struct walk *walk)
{
	return look_at_entry(walk) != 0;
}

COMPAT_LONG_LOOP(visit_entry, struct walk)

#ifndef TSDT_LINUX_5_10
static __always_inline u32 bridge_target(u64 name)
{
	return NAME_IS(name, "arpreply") ? BRIDGE_ARPREPLY :
	       NAME_IS(name, "dnat")     ? BRIDGE_DNAT :
	       NAME_IS(name, "snat")     ? BRIDGE_SNAT :
	       NAME_IS(name, "redirect") ? BRIDGE_REDIRECT :
	       NAME_IS(name, "mark")     ? BRIDGE_MARK :
	       NAME_IS(name, "AUDIT")    ? 0 : // always goes on
					   BRIDGE_OTHER;
}

// The same for the blob of ebtables.
VERIFIED_ONCE int look_at_bridge_entry(struct walk *walk)
{
	struct ebt_entry_target_head target = {};
	u32 bitmask = 0, extension = 0, offset[2] = {}; // of the target, and of the next entry
	bool drops;
	u64 entry;

	if (!traces_bridge || !walk || walk->at >= walk->size)
		return 1;
	entry = walk->entries + walk->at;
	bpf_probe_read_kernel(&bitmask, sizeof(bitmask), (void *)entry);
	if (!(bitmask & EBT_ENTRY_OR_ENTRIES)) {
		int policy = 0;

		bpf_probe_read_kernel(&policy, sizeof(policy), (void *)entry + __builtin_offsetof(struct ebt_entries, policy));
		walk->chain = walk->at;
		walk->number = 0;
		for (u32 hook = 0; hook < NF_INET_NUMHOOKS; hook++)
			if (walk->at == walk->hook_entry[hook])
				walk->chain = CHAIN_BUILTIN | hook;
		if (policy == EBT_DROP && !(walk->chain & CHAIN_BUILTIN)) {
			walk->drop_chains++;
			walk->drop_chain = walk->at;
		}
		walk->at += sizeof(struct ebt_entries);
		return 0;
	}
	bpf_probe_read_kernel(offset, sizeof(offset), (void *)entry + __builtin_offsetof(struct ebt_entry, target_offset));
	if (offset[0] < sizeof(struct ebt_entry) || offset[1] <= offset[0])
		goto broken;
	bpf_probe_read_kernel(&target, sizeof(target), (void *)(entry + offset[0]));
	if (!walk->standard || (u64)target.target != walk->standard) {
		struct xt_target *kind = target.target;
		u64 name = 0;

		bpf_probe_read_kernel(&name, sizeof(name), (void *)kind + MODULE_FIELD_OFFSET(xt_target, name));
		if (NAME_IS(name, "standard"))
			walk->standard = (u64)target.target;
		else
			extension = bridge_target(name) ?: ~0u;
	}
	walk->number++;
	walk->rules++;
	if (extension != ~0u)
		walk->needs |= extension;
	drops = extension ? extension != ~0u && extension != BRIDGE_OTHER : target.verdict == EBT_DROP;
	if (drops && !add_candidate(walk, walk->counters + (walk->rules - 1) * sizeof(struct xt_counters),
				    extension ? walk->at + offset[0] : 0))
		goto broken;
	walk->at += offset[1];
	return 0;
broken:
	walk->complete = 0;
	return 1;
}

static long visit_bridge_entry(u32 index, struct walk *walk)
{
	return look_at_bridge_entry(walk) != 0;
}

static __noinline int walk_bridge_table(struct walk *walk, u64 private)
{
	walk->entries = bridge_entries(private);
	walk->size = bridge_size(private);
	walk->counters = bridge_counters(private, bpf_get_smp_processor_id());
	walk->policy = ~0u; // has no entry
	for (u32 hook = 0; hook < NF_INET_NUMHOOKS; hook++) {
		u64 head = bridge_hook_entry(private, hook);

		walk->hook_entry[hook] = head ? head - walk->entries : ~0u;
	}
	if (compat_has_such_cache_lines())
		bpf_loop(walk->size / sizeof(struct ebt_entries), visit_bridge_entry, walk, 0);
	else
		walk->complete = 0;
	return 0;
}
#else
static __always_inline int walk_bridge_table(struct walk *walk, u64 private) { return 0; }
#endif

static __always_inline void begin_walk(struct walk *walk, u64 address, u32 family)
{
	struct xt_table_info *private = (struct xt_table_info *)address;

	walk->entries = address + bpf_core_field_offset(private->entries);
	walk->size = BPF_CORE_READ(private, size);
	BPF_CORE_READ_INTO(&walk->hook_entry, private, hook_entry);
	BPF_CORE_READ_INTO(&walk->underflow, private, underflow);
	walk->head_size = ENTRY_SIZE(family);
	walk->target_at = ENTRY(family, target_offset);
	walk->counters_at = ENTRY(family, counters);
	if (family == FAMILY_ARP) // has three hooks; the rest is not filled in
		walk->hook_entry[3] = walk->hook_entry[4] = ~0u;
}

static __always_inline void walk_table(struct walk *walk, u64 address, u32 family)
{
	struct xt_table_info *private = (struct xt_table_info *)address;

	begin_walk(walk, address, family);
	walk->cpu_offset = this_cpu_offset();
	compat_long_loop(BPF_CORE_READ(private, number), visit_entry, walk);
}

// Each family's part of the pool.
static __always_inline u32 pool_part(u32 family)
{
	return family == FAMILY_BRIDGE ? FAMILY_ARP * pool_chunks + pool_chunks_small : family * pool_chunks;
}

static __always_inline u32 pool_size(u32 family)
{
	return family >= FAMILY_ARP ? pool_chunks_small : pool_chunks;
}

// Where the rules that drop are simply too many, beginning anew with each packet would cost a walk through the tables each
// time, and help nobody: what has no room stays out, and a drop by it says so.
static __always_inline bool may_restart(struct tables *tables)
{
	const u64 interval_ns = 1000000000;
	u64 now = bpf_ktime_get_ns();

	if (!is_changing(TSDT_GENERATION_X_TABLES) && now - tables->restarted_ns < interval_ns)
		return false;
	tables->restarted_ns = now;
	return true;
}

static __always_inline bool is_doubtful(const struct table_slot *slot, const struct traversals *here, u64 table)
{
	return is_bridge_table(table) && slot->doubts != *(volatile u32 *)&here->doubts;
}

// Takes the shadow of a table for this CPU. Not inlined: the way of a packet that passes stays short.
__noinline int take_shadow(u64 table_address, u32 family)
{
	struct traversals *here = traversals_of(bpf_get_smp_processor_id());
	struct tables *tables = bpf_map_lookup_elem(&shadows, &family);
	struct table_slot *slot;
	u64 private;
	struct walk walk = {.complete = 1};
	u32 now = generation(TSDT_GENERATION_X_TABLES), doubts = here->doubts;

	if (!traces_legacy || !tables)
		return 0;
	slot = table_slot(tables, table_address);
	if (slot->table == table_address && slot->generation == now && !is_doubtful(slot, here, table_address)) { // its place in `taken` was another table's
		shadow_holds(here, table_address, now);
		return 0;
	}
	shadow_is_gone(here, slot->table);
	slot->table = 0; // a softirq that comes now must not trust it
	if (tables->generation != now) {
		for (u32 i = 0; i < TABLE_SLOTS; i++)
			tables->slot[i].table = 0;
		__builtin_memset(here->taken, 0, sizeof(here->taken)); // the other family's will be found again
		tables->generation = now;
		tables->used = 0;
	}
	private = private_of(table_address);
	walk.first = pool_part(family) + tables->used;
	walk.limit = (pool_size(family) - tables->used) * CHUNK;
	if (is_bridge_table(table_address))
		walk_bridge_table(&walk, private);
	else
		walk_table(&walk, private, family);

	if (!walk.complete && tables->used && may_restart(tables)) {
		// The pool is used up, by tables that share a slot or by a change that takes long: next time from its start.
		tables->generation = now - 1;
		return 0;
	}
	slot->private = private;
#ifndef TSDT_LINUX_5_10
	slot->needs = walk.needs;
	slot->drop_chains = walk.drop_chains;
	slot->drop_chain = walk.drop_chain;
#endif
	slot->doubts = here->any_ending ? doubts - 1 : doubts; // what is ending now may be another bridge's packet
	slot->first = walk.first;
	slot->count = walk.count;
	slot->complete = walk.complete;
	slot->size = walk.size;
	slot->as_of = now;
	// While a change is under way, every traversal takes its own: counters are being restored. Of which generation the
	// rules are cannot be told then, nor if it has changed since `now` was read.
	slot->generation = is_changing(TSDT_GENERATION_X_TABLES) || generation(TSDT_GENERATION_X_TABLES) != now ? ~0u : now;
	tables->used += (walk.count + CHUNK - 1) / CHUNK;
	slot->table = table_address;
	if (slot->generation == now)
		shadow_holds(here, table_address, now);
	return 0;
}

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

static __always_inline void name_chain(struct verdict *verdict, u64 entries, u32 chain, u32 family)
{
	static const char builtin[NF_INET_NUMHOOKS][16] = {"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"};
	static const char builtin_arp[NF_INET_NUMHOOKS][16] = {"INPUT", "OUTPUT", "FORWARD"};

	if (chain & CHAIN_BUILTIN) {
		u32 hook = chain & 0xff;

		if (hook < NF_INET_NUMHOOKS)
			bpf_probe_read_kernel_str(verdict->chain, sizeof(verdict->chain),
						  family == FAMILY_ARP ? builtin_arp[hook] : builtin[hook]);
	} else if (family == FAMILY_BRIDGE) {
		bpf_probe_read_kernel_str(verdict->chain, 32,
					  (void *)(entries + chain + __builtin_offsetof(struct ebt_entries, name)));
	} else {
		bpf_probe_read_kernel_str(verdict->chain, 30,
					  (void *)(entries + chain + ENTRY_SIZE(family) + __builtin_offsetof(struct xt_entry_target_head, errorname)));
	}
}

// Another CPU may replace a table as soon as the packet has left it, and free what the claim is about; or even before, when
// the packet has only just begun. What has been read of it is sound if it was still in use afterwards, and if nothing has
// changed meanwhile: a table that is replaced twice lies in the memory where it was before.
static __always_inline bool was_replaced(const struct claim *claim)
{
	return private_of(claim->table) != claim->private || generation(TSDT_GENERATION_X_TABLES) != claim->as_of;
}

// Leaves what the claim in that draft says for kfree_skb.
__noinline int table_verdict(u32 which, u64 skb, u64 state, u32 family)
{
	struct draft *draft = bpf_map_lookup_elem(&drafts, &which); // its own: before 6.2 map values come out of maps
	struct xt_table_info *private;
	struct verdict *verdict;
	struct xt_table *table;
	struct claim *claim;
	u64 entries;
	u32 size;
	bool bridge;

	if (!traces_legacy || !draft)
		return 0;
	verdict = &draft->verdict;
	claim = &draft->claim;
	table = (struct xt_table *)claim->table;
	private = (struct xt_table_info *)claim->private;
	bridge = is_bridge_table(claim->table);
	entries = entries_of(claim->table, claim->private);
	size = bridge ? bridge_size(claim->private) : BPF_CORE_READ(private, size);
	begin_verdict(verdict, (struct sk_buff *)skb, (struct nf_hook_state *)state);
	verdict->table_address = claim->table;
	verdict->rule = claim->private;
	// Not that of now: another CPU may have replaced the table meanwhile.
	verdict->generation = claim->unknown ? generation(TSDT_GENERATION_X_TABLES) : claim->generation;
	verdict->family = bridge ? NFPROTO_BRIDGE : BPF_CORE_READ(table, af);
	bpf_probe_read_kernel_str(verdict->table, 32, bridge ? bridge_table_name(claim->table) : table->name);
	if (claim->unknown) {
		verdict->source = TSDT_SOURCE_NETFILTER;
		verdict->unknown = claim->unknown;
	} else {
		verdict->source = claim->number ? TSDT_SOURCE_LEGACY_RULE : TSDT_SOURCE_LEGACY_POLICY;
		verdict->offset = claim->offset;
		verdict->number = claim->number;
		verdict->named = 1;
		verdict->by_match = claim->by_match;
		name_chain(verdict, entries, claim->chain, family);
		for (u32 i = 0; i < TSDT_JUMPSTACK_MAX; i++) {
			u64 offset = claim->jumpstack[i] - entries;

			verdict->jumpstack[i] = offset <= size ? offset : ~0u; // ebtables: of what comes after the jump
		}
		if (!claim->has_jumpstack)
			verdict->jumpstack[0] = TSDT_JUMPSTACK_UNKNOWN;
		if (was_replaced(claim)) {
			verdict->source = TSDT_SOURCE_NETFILTER;
			verdict->unknown = TSDT_UNKNOWN_NO_BASELINE;
			verdict->named = 0;
		}
	}
	bpf_map_update_elem(&verdicts, &skb, verdict, BPF_ANY);
	return 0;
}

// ---- matches that drop by themselves (match.h) ----

// What such a match has said of a packet that is still in its table.
struct hotdrop {
	u64 info; // address of the match's own data, in the table's blob
	u64 fingerprint;
	u64 mono_ns;
};
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, u64); // struct sk_buff *
	__type(value, struct hotdrop);
} hotdrops SEC(".maps");

#ifndef TSDT_LINUX_5_10
static long visit_entry_of(u32 index, struct walk **walk)
{
	return look_at_entry(*walk) != 0;
}
#endif

// Those of ARP's and of bridges' tables are not traced.
static __always_inline bool has_traced_matches(u32 family)
{
	return family == FAMILY_IPV4 || family == FAMILY_IPV6;
}

// No counter has moved: does a match say that it was the one? Then fills in the claim with its rule.
VERIFIED_ONCE int claim_match(struct draft *draft, u32 family)
{
	struct claim *claim;
	struct hotdrop *said;
	struct walk *walk;
	struct xt_table_info *private;
	u64 skb;

	if (!traces_legacy || !draft)
		return 0;
	claim = &draft->claim;
	private = (struct xt_table_info *)claim->private;
	skb = claim->skb;
	walk = &draft->walk;
	__builtin_memset(walk, 0, sizeof(*walk));
	said = bpf_map_lookup_elem(&hotdrops, &skb);
	if (!said)
		return 0;
	if (bpf_ktime_get_ns() - said->mono_ns < TSDT_VERDICT_MAX_AGE_NS &&
	    said->fingerprint == fingerprint_of((struct sk_buff *)skb)) {
		begin_walk(walk, claim->private, family);
		if (said->info > walk->entries && said->info < walk->entries + walk->size)
			walk->wanted = said->info - walk->entries;
	}
	bpf_map_delete_elem(&hotdrops, &skb);
	if (!walk->wanted)
		return 0;
#ifdef TSDT_LINUX_5_10
	compat_long_loop(BPF_CORE_READ(private, number), visit_entry, walk);
#else
	bpf_loop(BPF_CORE_READ(private, number), visit_entry_of, &walk, 0); // whose context is to lie on the stack
#endif
	if (!walk->found)
		return 0;
	claim->offset = walk->at;
	claim->chain = walk->chain;
	claim->number = walk->number;
	claim->by_match = 1;
	claim->unknown = TSDT_UNKNOWN_NONE;
	return 0;
}

#define MATCHES 8

// Whether the rule's udp or tcp match allows these ports. Other matches are not asked.
__noinline int match_allows(u64 match_address, u16 sport, u16 dport)
{
	struct xt_entry_match_head match = {};
	struct xt_match *kind;
	u64 name = 0;
	u8 inverted;

	if (!traces_legacy)
		return 1;
	bpf_probe_read_kernel(&match, sizeof(match), (void *)match_address);
	kind = match.match;
	bpf_probe_read_kernel(&name, sizeof(name), (void *)kind + MODULE_FIELD_OFFSET(xt_match, name));
	if (NAME_IS(name, "udp"))
		inverted = match.udp_invflags;
	else if (NAME_IS(name, "tcp"))
		inverted = match.tcp_invflags;
	else
		return 1;
	return (sport >= match.spts[0] && sport <= match.spts[1]) != !!(inverted & XT_INV_SRCPT) &&
	       (dport >= match.dpts[0] && dport <= match.dpts[1]) != !!(inverted & XT_INV_DSTPT);
}

static __always_inline bool ports_allowed(u64 entry, const void *l4, u32 family)
{
	u32 at = ENTRY_SIZE(family), matches = 0;
	u16 ports[2] = {}, target = 0, size;

	if (bpf_probe_read_kernel(ports, sizeof(ports), l4))
		return true;
	bpf_probe_read_kernel(&target, sizeof(target), (void *)(entry + ENTRY(family, target_offset)));
	while (at < target && matches++ < MATCHES) {
		if (!match_allows(entry + at, bpf_ntohs(ports[0]), bpf_ntohs(ports[1])))
			return false;
		size = 0;
		bpf_probe_read_kernel(&size, sizeof(size), (void *)(entry + at));
		if (!size)
			break;
		at += size;
	}
	return true;
}

// Whether the rule's operation and addresses allow what is asked or answered.
static __always_inline bool arp_allowed(struct draft *draft, u64 entry, const void *header)
{
	const struct arpt_arp *rule = &draft->rule_arp.arp;
	struct arp_over_ethernet arp = {};

	bpf_probe_read_kernel(&draft->rule_arp, sizeof(draft->rule_arp), (void *)entry);
	bpf_probe_read_kernel(&arp, sizeof(arp), header);
	if (((arp.operation & rule->arpop_mask) == rule->arpop) == !!(rule->invflags & ARPT_INV_ARPOP))
		return false;
	// The target mangle has written other addresses into the packet.
	if (arp.hardware_length != sizeof(arp.sender_hardware) ||
	    draft->rule_arp.next_offset - draft->rule_arp.target_offset > sizeof(struct arpt_mangle))
		return true;
	return ((arp.sender & rule->smsk) == rule->src) != !!(rule->invflags & ARPT_INV_SRCIP) &&
	       ((arp.target & rule->tmsk) == rule->tgt) != !!(rule->invflags & ARPT_INV_TGTIP);
}

static __always_inline bool mac_allowed(const u8 *mac, const u8 *address, const u8 *mask, bool inverted)
{
	u8 differs = 0;

	for (u32 i = 0; i < 6; i++)
		differs |= (mac[i] ^ address[i]) & mask[i];
	return !differs != inverted;
}

// Whether the rule's protocol and addresses allow this frame. What it says of VLANs and lengths is not asked.
static __always_inline bool bridge_allowed(struct draft *draft, u64 entry, const void *header)
{
	const struct ebt_entry *rule = &draft->rule_bridge;
	struct ethhdr frame = {};

	bpf_probe_read_kernel(&draft->rule_bridge, sizeof(draft->rule_bridge), (void *)entry);
	bpf_probe_read_kernel(&frame, sizeof(frame), header);
	if (!(rule->bitmask & (EBT_NOPROTO | EBT_802_3)) && !(rule->invflags & EBT_IPROTO) &&
	    rule->ethproto != bpf_htons(ETH_P_8021Q) && rule->ethproto != frame.h_proto)
		return false;
	return (!(rule->bitmask & EBT_SOURCEMAC) ||
		mac_allowed(frame.h_source, rule->sourcemac, rule->sourcemsk, rule->invflags & EBT_ISOURCE)) &&
	       (!(rule->bitmask & EBT_DESTMAC) ||
		mac_allowed(frame.h_dest, rule->destmac, rule->destmsk, rule->invflags & EBT_IDEST));
}

// Whether the rule's addresses, protocol and ports allow this packet: a second look, since what moved must not be
// another's.
VERIFIED_ONCE int rule_allows(struct draft *draft, u64 skb_address, u32 hook, u32 family)
{
	struct sk_buff *skb = (struct sk_buff *)skb_address;
	const struct claim *claim;
	void *header;
	u64 entry;

	if (!traces_legacy || !draft)
		return 0;
	claim = &draft->claim;
	entry = entries_of(claim->table, claim->private) + claim->offset;
	header = BPF_CORE_READ(skb, head) + BPF_CORE_READ(skb, network_header);
	if (claim->chain & CHAIN_BUILTIN && (claim->chain & 0xff) != hook)
		return false;
	if (is_bridge_table(claim->table))
		return !claim->number || bridge_allowed(draft, entry, BPF_CORE_READ(skb, head) + BPF_CORE_READ(skb, mac_header));
	if (family == FAMILY_ARP)
		return arp_allowed(draft, entry, header);
	if (family == FAMILY_IPV4) {
		const struct ipt_ip *rule = &draft->rule4;
		struct iphdr ip = {};

		bpf_probe_read_kernel(&draft->rule4, sizeof(draft->rule4), (void *)entry);
		bpf_probe_read_kernel(&ip, sizeof(ip), header);
		if (((ip.saddr & rule->smsk) == rule->src) == !!(rule->invflags & XT_INV_SRCIP) ||
		    ((ip.daddr & rule->dmsk) == rule->dst) == !!(rule->invflags & XT_INV_DSTIP) ||
		    (rule->proto && (rule->proto == ip.protocol) == !!(rule->invflags & XT_INV_PROTO)))
			return false;
		if (ip.frag_off & bpf_htons(IP_OFFSET_MASK))
			return true;
		return ports_allowed(entry, header + ip.ihl * 4, family);
	} else {
		const struct ip6t_ip6 *rule = &draft->rule6;
		struct ipv6hdr ip = {};
		u64 differs_src = 0, differs_dst = 0;

		bpf_probe_read_kernel(&draft->rule6, sizeof(draft->rule6), (void *)entry);
		bpf_probe_read_kernel(&ip, sizeof(ip), header);
		for (u32 i = 0; i < 2; i++) {
			differs_src |= (((u64 *)ip.saddr)[i] & rule->smsk[i]) ^ rule->src[i];
			differs_dst |= (((u64 *)ip.daddr)[i] & rule->dmsk[i]) ^ rule->dst[i];
		}
		if (!differs_src == !!(rule->invflags & XT_INV_SRCIP) || !differs_dst == !!(rule->invflags & XT_INV_DSTIP))
			return false;
		if (ip.nexthdr != IPPROTO_TCP && ip.nexthdr != IPPROTO_UDP)
			return true; // the ports are further on
		return ports_allowed(entry, header + sizeof(ip), family);
	}
}

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
