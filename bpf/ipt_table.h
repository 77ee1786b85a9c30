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
#pragma once

#include "maps.h"

const volatile bool percpu_counters; // false where the kernel has room for one CPU only: counters are in place
const volatile __u32 pool_chunks;    // of candidates, for IPv4 and again for IPv6

#define TABLE_SLOTS 32
#define CHUNK 64

// A rule that can drop: DROP, REJECT or a built-in chain's policy, whose counters are compared, or an extension target
// that drops when it fails, and says so itself (ipt_target.h).
struct candidate {
	u64 counter; // address of this CPU's packet counter
	u64 pcnt;    // the shadow
	u32 offset;  // of the entry in the blob
	u32 chain;   // offset of the entry that begins the user chain, or CHAIN_BUILTIN | hook
	u32 number;  // 1-based position in the chain, 0 for the policy
	u32 target;  // offset of such an extension target in the blob, 0 where there is none
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
	u32 size;       // of the blob
	u32 pad;
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

// What is known of the rule that dropped a packet.
struct claim {
	u64 skb;
	u64 table;   // struct xt_table *
	u64 state;   // struct nf_hook_state *
	u64 private; // its struct xt_table_info *
	u32 offset;  // as in struct candidate
	u32 chain;
	u32 number;
	u32 unknown; // enum tsdt_unknown: why there is no rule
	u64 jumpstack[TSDT_JUMPSTACK_MAX]; // addresses of the jumps' entries; beyond those of this packet, older ones
};

// The traversals under way on one CPU: the newest one, and those that it interrupts.
#define INTERRUPTED 4
struct traversals {
	u64 skb;   // 0: none
	u64 table; // struct xt_table *
	u64 state; // struct nf_hook_state *
	struct claim interrupted[INTERRUPTED];
	u64 interruptions; // ever
};
// A global array for the same reason as the trails of nf_tables.
static struct traversals traversals[TSDT_MAX_CPUS];

static __always_inline struct traversals *traversals_of(u32 cpu)
{
	return &traversals[cpu & (TSDT_MAX_CPUS - 1)];
}

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

// The first eight bytes of a name as one number: the verifier follows every branch of a loop over them. Of a name that
// is shorter, its end counts as well.
#define NAME8(name) (*(const u64 *)(const char[16]){name})
#define NAME_IS(name8, name) \
	(((name8) ^ NAME8(name)) << (sizeof(name) > 8 ? 0 : 64 - 8 * sizeof(name)) == 0)

// Extension targets that drop when they fail. Each has its functions in ipt_target.h.
static __always_inline bool target_may_fail(u64 name)
{
	return NAME_IS(name, "TPROXY") || NAME_IS(name, "SYNPROXY") || NAME_IS(name, "SNAT") ||
	       NAME_IS(name, "DNAT") || NAME_IS(name, "MASQUERADE") || NAME_IS(name, "REDIRECT") ||
	       NAME_IS(name, "NETMAP") || NAME_IS(name, "TCPMSS") || NAME_IS(name, "CLUSTERIP");
}

static long visit_entry(u32 index, struct walk *walk)
{
	struct xt_entry_target_head target = {};
	struct {
		u16 target, next;
	} offset = {};
	bool drops = false, extension = false;
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
		} else if (NAME_IS(name, "ERROR")) {
			walk->chain = walk->at;
			walk->policy = ~0u;
			walk->number = 0;
			goto next;
		} else {
			extension = target_may_fail(name);
			drops = extension || NAME_IS(name, "REJECT");
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
		found->target = extension ? walk->at + offset.target : 0;
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
	slot->size = walk.size;
	// While a change is under way, every traversal takes its own: counters are being restored. (A change that has begun
	// since `now` was read has moved the generation on; one that has ended since will.)
	slot->generation = is_changing(TSDT_GENERATION_X_TABLES) ? ~0u : now;
	tables->used += (walk.count + CHUNK - 1) / CHUNK;
	slot->table = table_address;
	return 0;
}

struct comparison {
	u32 first;
	u32 count;
	u32 cpu;
	bool elsewhere; // not the CPU that this runs on
	u32 moved;
	struct claim *claim;
};

static __always_inline void *map_lookup_on(void *map, u32 key, u32 cpu, bool elsewhere)
{
	if (!elsewhere)
		return bpf_map_lookup_elem(map, &key);
	return compat_has_percpu_lookup() ? bpf_map_lookup_percpu_elem(map, &key, cpu) : NULL;
}

// 1 when the counter has moved, which is then taken note of. On its own, so that it is verified once.
__noinline int claim_candidate(struct candidate *watched, struct claim *claim)
{
	u64 before, now;

	if (!watched || !claim || watched->target)
		return 0;
	before = now = watched->pcnt;
	bpf_probe_read_kernel(&now, sizeof(now), (void *)watched->counter);
	// Whoever is first to take note of it has it.
	if (now == before || __sync_val_compare_and_swap(&watched->pcnt, before, now) != before)
		return 0;
	claim->offset = watched->offset;
	claim->chain = watched->chain;
	claim->number = watched->number;
	return 1;
}

static long compare_chunk(u32 index, struct comparison *comparison)
{
	struct chunk *chunk = map_lookup_on(&pool, comparison->first + index, comparison->cpu, comparison->elsewhere);

	if (!chunk)
		return 1;
	for (u32 i = 0; i < CHUNK && index * CHUNK + i < comparison->count; i++)
		comparison->moved += claim_candidate(&chunk->candidate[i], comparison->claim);
	return 0;
}

// The jumps that led to the chain are still in the table's jump stack of that CPU.
static __always_inline void read_jumpstack(struct claim *claim, u32 cpu)
{
	struct xt_table_info *private = (struct xt_table_info *)claim->private;
	void ***jumpstacks = BPF_CORE_READ(private, jumpstack);
	void **jumpstack = NULL;

	__builtin_memset(claim->jumpstack, 0, sizeof(claim->jumpstack));
	if (jumpstacks)
		bpf_probe_read_kernel(&jumpstack, sizeof(jumpstack), &jumpstacks[cpu]);
	if (jumpstack)
		bpf_probe_read_kernel(claim->jumpstack, sizeof(claim->jumpstack), jumpstack);
}

// Looks for the counter that has moved on `cpu`, in the table of `claim`, since the last time, and fills in the rest
// of `claim`. All that have moved are taken note of.
__noinline int claim_counter(struct claim *claim, u32 cpu)
{
	struct comparison comparison = {.cpu = cpu, .claim = claim};
	struct table_slot *slot;
	struct tables *tables;
	struct xt_table *table;
	u32 family;

	if (!claim || !traces_legacy)
		return 0;
	table = (struct xt_table *)claim->table;
	family = BPF_CORE_READ(table, af) == NFPROTO_IPV6 ? FAMILY_IPV6 : FAMILY_IPV4;
	claim->private = (u64)BPF_CORE_READ(table, private);
	claim->unknown = TSDT_UNKNOWN_NO_BASELINE;
	comparison.elsewhere = cpu != bpf_get_smp_processor_id();
	tables = map_lookup_on(&shadows, family, cpu, comparison.elsewhere);
	if (!tables)
		return 0;
	slot = table_slot(tables, claim->table);
	if (slot->table != claim->table || slot->private != claim->private)
		return 0;
	comparison.first = slot->first;
	comparison.count = slot->count;
	bpf_loop((slot->count + CHUNK - 1) / CHUNK, compare_chunk, &comparison, 0);
	read_jumpstack(claim, cpu);
	if (comparison.moved == 1)
		claim->unknown = TSDT_UNKNOWN_NONE;
	else if (comparison.moved)
		claim->unknown = TSDT_UNKNOWN_MANY_COUNTERS;
	else if (slot->complete)
		claim->unknown = TSDT_UNKNOWN_NO_COUNTER;
	return 0;
}

// Where a verdict is put together: the stack is too small. One for each program that may interrupt another one.
struct draft {
	struct claim claim;
	struct verdict verdict;
};
enum { DRAFT_TABLE = 0, DRAFT_TARGET = FAMILIES, DRAFT_UNSEEN = 2 * FAMILIES, DRAFTS };

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, DRAFTS);
	__type(key, u32);
	__type(value, struct draft);
} drafts SEC(".maps");

// A packet begins a table while another one has not ended its own on this CPU: what has moved by now is the other's.
static __noinline int interrupt(u32 cpu)
{
	struct traversals *here = traversals_of(cpu);
	struct claim *other = &here->interrupted[here->interruptions++ % INTERRUPTED];
	u64 skb = here->skb;

	here->skb = 0;
	other->skb = 0;
	other->table = here->table;
	other->state = here->state;
	claim_counter(other, cpu);
	other->skb = skb;
	return 0;
}

static __always_inline int table_begin(void *table, void *skb, void *state, u32 family)
{
	struct tables *tables = bpf_map_lookup_elem(&shadows, &family);
	u32 cpu = bpf_get_smp_processor_id();
	struct traversals *here = traversals_of(cpu);
	struct table_slot *slot;

	if (!tables)
		return 0;
	if (here->skb)
		interrupt(cpu);
	here->skb = (u64)skb;
	here->table = (u64)table;
	here->state = (u64)state;
	slot = &tables->slot[first_slot((u64)table)];
	if (slot->table == (u64)table && slot->generation == generation(TSDT_GENERATION_X_TABLES))
		return 0;
	return take_shadow(tables, (u64)table, family);
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

// Leaves what the claim says for kfree_skb.
static __always_inline void table_verdict(struct draft *draft, struct sk_buff *skb, const struct nf_hook_state *state,
					  u32 family)
{
	struct verdict *verdict = &draft->verdict;
	struct claim *claim = &draft->claim;
	struct xt_table *table = (struct xt_table *)claim->table;
	struct xt_table_info *private = (struct xt_table_info *)claim->private;
	u64 entries = (u64)private + bpf_core_field_offset(private->entries);
	u32 size = BPF_CORE_READ(private, size);
	u64 key = (u64)skb;

	begin_verdict(verdict, skb, state);
	verdict->table_address = claim->table;
	verdict->rule = claim->private;
	verdict->generation = generation(TSDT_GENERATION_X_TABLES);
	verdict->family = BPF_CORE_READ(table, af);
	bpf_probe_read_kernel_str(verdict->table, 32, table->name);
	if (claim->unknown) {
		verdict->source = TSDT_SOURCE_NETFILTER;
		verdict->unknown = claim->unknown;
	} else {
		verdict->source = claim->number ? TSDT_SOURCE_LEGACY_RULE : TSDT_SOURCE_LEGACY_POLICY;
		verdict->offset = claim->offset;
		verdict->number = claim->number;
		verdict->named = 1;
		name_chain(verdict, private, claim->chain, family);
		for (u32 i = 0; i < TSDT_JUMPSTACK_MAX; i++) {
			u64 offset = claim->jumpstack[i] - entries;

			verdict->jumpstack[i] = offset < size ? offset : ~0u;
		}
	}
	bpf_map_update_elem(&verdicts, &key, verdict, BPF_ANY);
}

// Whether the rule's addresses allow this packet: what moved must not be another's.
static __noinline bool rule_allows(const struct claim *claim, struct sk_buff *skb, u32 hook, u32 family)
{
	u64 entry = claim->private + bpf_core_field_offset(struct xt_table_info, entries) + claim->offset;
	void *header = BPF_CORE_READ(skb, head) + BPF_CORE_READ(skb, network_header);

	if (claim->chain & CHAIN_BUILTIN && (claim->chain & 0xff) != hook)
		return false;
	if (family == FAMILY_IPV4) {
		struct ipt_ip rule = {};
		struct iphdr ip = {};

		bpf_probe_read_kernel(&rule, sizeof(rule), (void *)entry);
		bpf_probe_read_kernel(&ip, sizeof(ip), header);
		return ((ip.saddr & rule.smsk) == rule.src) != !!(rule.invflags & XT_INV_SRCIP) &&
		       ((ip.daddr & rule.dmsk) == rule.dst) != !!(rule.invflags & XT_INV_DSTIP) &&
		       (!rule.proto || (rule.proto == ip.protocol) != !!(rule.invflags & XT_INV_PROTO));
	} else {
		struct ip6t_ip6 rule = {};
		struct ipv6hdr ip = {};
		u64 differs_src = 0, differs_dst = 0;

		bpf_probe_read_kernel(&rule, sizeof(rule), (void *)entry);
		bpf_probe_read_kernel(&ip, sizeof(ip), header);
		for (u32 i = 0; i < 2; i++) {
			differs_src |= (((u64 *)ip.saddr)[i] & rule.smsk[i]) ^ rule.src[i];
			differs_dst |= (((u64 *)ip.daddr)[i] & rule.dmsk[i]) ^ rule.dst[i];
		}
		return !differs_src != !!(rule.invflags & XT_INV_SRCIP) && !differs_dst != !!(rule.invflags & XT_INV_DSTIP);
	}
}

static long find_traversal(u32 cpu, struct claim **context)
{
	struct traversals *there = traversals_of(cpu);
	struct claim *claim = *context;

	for (u32 i = 0; i < INTERRUPTED; i++) {
		struct claim *other = &there->interrupted[i];

		if (other->skb != claim->skb || (claim->table && other->table != claim->table))
			continue;
		*claim = *other;
		other->skb = 0;
		// It was interrupted before its counter moved: that has happened since, on this CPU or on that one.
		if (claim->unknown == TSDT_UNKNOWN_NO_COUNTER)
			claim_counter(claim, cpu);
		return 1;
	}
	if (there->skb != claim->skb || (claim->table && there->table != claim->table))
		return 0;
	there->skb = 0;
	claim->table = there->table;
	claim->state = there->state;
	claim_counter(claim, cpu);
	return 1;
}

static __noinline int table_dropped(u64 table_address, struct sk_buff *skb, u64 state_address, u32 family)
{
	u32 cpu = bpf_get_smp_processor_id(), key = DRAFT_TABLE + family;
	struct traversals *here = traversals_of(cpu);
	u64 address = (u64)skb;
	struct verdict *waiting = bpf_map_lookup_elem(&verdicts, &address);
	struct draft *draft = bpf_map_lookup_elem(&drafts, &key);
	struct nf_hook_state *state = (struct nf_hook_state *)state_address;
	struct claim *claim;
	bool ends_here = here->skb == address;

	if (ends_here)
		here->skb = 0;
	// An extension target may have said so itself.
	if (!draft || (waiting && waiting->table_address == table_address && is_about(waiting, skb)))
		return 0;
	claim = &draft->claim;
	claim->skb = address;
	claim->table = table_address;
	claim->unknown = TSDT_UNKNOWN_NO_COUNTER;
	if (!ends_here && !find_traversal(cpu, &claim))
		bpf_loop(TSDT_MAX_CPUS, find_traversal, &claim, 0);
	if (claim->unknown == TSDT_UNKNOWN_NO_COUNTER)
		claim_counter(claim, cpu);
	if (!claim->unknown && !rule_allows(claim, skb, BPF_CORE_READ(state, hook), family))
		claim->unknown = TSDT_UNKNOWN_NO_COUNTER;
	table_verdict(draft, skb, state, family);
	return 0;
}

// The packet dies as one that a table has dropped does, but table_end has left no verdict: the kernel had not run it,
// since it was at work for another packet. The mark is still there.
static __noinline bool table_dropped_unseen(struct sk_buff *skb)
{
	u32 cpu = bpf_get_smp_processor_id(), key = DRAFT_UNSEEN;
	struct draft *draft = bpf_map_lookup_elem(&drafts, &key);
	struct claim *claim;
	struct xt_table *table;
	struct nf_hook_state *state;
	u32 family;

	if (!draft)
		return false;
	claim = &draft->claim;
	claim->skb = (u64)skb;
	claim->table = 0;
	if (!find_traversal(cpu, &claim))
		return false;
	table = (struct xt_table *)claim->table;
	state = (struct nf_hook_state *)claim->state;
	family = BPF_CORE_READ(table, af) == NFPROTO_IPV6 ? FAMILY_IPV6 : FAMILY_IPV4;
	if (claim->unknown || !rule_allows(claim, skb, BPF_CORE_READ(state, hook), family))
		return false;
	table_verdict(draft, skb, state, family);
	return true;
}

static __always_inline int table_end(void *table, struct sk_buff *skb, const struct nf_hook_state *state, u32 ret,
				     u32 family)
{
	struct traversals *here;

	if ((ret & NF_VERDICT_MASK) == NF_DROP)
		return table_dropped((u64)table, skb, (u64)state, family);
	here = traversals_of(bpf_get_smp_processor_id());
	if (here->skb == (u64)skb)
		here->skb = 0;
	return 0;
}

// The argument order is that of 5.16 and later (9dd43a5f4b11).
#define IPT_TABLE(function, family)                                                                               \
	SEC("fentry/" #function)                                                                                  \
	int BPF_PROG(function##_begin, void *table, void *skb, void *state)                                       \
	{                                                                                                         \
		return table_begin(table, skb, state, family);                                                    \
	}                                                                                                         \
	SEC("fexit/" #function)                                                                                   \
	int BPF_PROG(function##_end, void *table, struct sk_buff *skb, const struct nf_hook_state *state,         \
		     unsigned int ret)                                                                            \
	{                                                                                                         \
		return table_end(table, skb, state, ret, family);                                                 \
	}

IPT_TABLE(ipt_do_table, FAMILY_IPV4)
IPT_TABLE(ip6t_do_table, FAMILY_IPV6)
