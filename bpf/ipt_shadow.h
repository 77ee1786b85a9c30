// SPDX-License-Identifier: GPL-2.0-only
// The shadows of legacy tables (see ipt_table.h): on each CPU, of each table, the counters of the rules that can drop, as they
// were, and where those rules stand; taken by a walk through the table's blob. And what else a CPU keeps of traversals.
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
