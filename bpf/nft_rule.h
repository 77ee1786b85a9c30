// SPDX-License-Identifier: GPL-2.0-only
// From the address of an nf_tables expression to its rule: which chain's blob holds it, and which rule of
// the blob. Runs only where a packet dies, and the slow part only when a rule drops for the first time.
#pragma once

#include "match.h"

struct path_step {
	u64 chain; // struct nft_chain *
	u64 expr;  // struct nft_expr * in that chain: a jump, or the one that dropped (the newest)
	u64 rules; // where it lies: struct nft_rule_blob *. The chain may get others while the packet dies
};

// Steps [begin, end) of the trail of a CPU.
struct segment {
	u64 begin;
	u64 end;
	u32 cpu;
	u32 pad;
};

// The way of one traversal, newest first.
struct path {
	struct segment segment[TSDT_MOVES]; // where its steps may lie
	u32 segments;
	u32 steps;      // where no expression dropped: all chains that it met, and there may be more than there is room for
	u32 complete;   // it reaches back to the base chain
	u32 verdicts;   // steps of the trail that say something, the drop included
	u64 skb;
	u64 pkt;        // of the traversal
	u64 base_chain; // struct nft_chain *, once the beginning is reached
	u64 jump_by;    // the expression of a TRAIL_JUMP_TO that comes next
	u64 dropped_by; // struct nft_expr *, 0 when no expression dropped
	u64 wanted;     // struct nft_expr * whose chain is looked for, 0 until the one that dropped is found
	u64 suspect;    // function of a match of iptables-nft on the way that may have dropped, untraced; 0: there is none
	u64 hash;       // over the expressions
	u32 gencursor;  // as in struct verdict
	u32 outdated;   // a rule on the way belongs to a ruleset that has been replaced since
	u32 owner;      // 5.10: which of this CPU's places to work in has this path
	u32 pending;    // kprobes: an expression whose end was not seen may have had the last word
	struct path_step step[TSDT_PATH_MAX];
};

struct rule_search {
	u64 at; // address of the next rule
	u64 end;
	u64 expr;
	u64 handle;
	u32 number;
	u32 found;
};

#ifdef TSDT_LINUX_5_10
#include "nft_rule_5_10.h"
#else
// The function of a match of iptables-nft that may drop by itself, if the expression with these ops is one; else 0.
static __always_inline u64 dropping_expression(u64 ops_address)
{
	const struct nft_expr_ops *ops = (struct nft_expr_ops *)ops_address;
	u64 name = 0;

	bpf_probe_read_kernel(&name, 6, BPF_CORE_READ(ops, type, name));
	return NAME_IS(name, "match") ? dropping_match((u64)BPF_CORE_READ(ops, data)) : 0;
}

#define compat_with_path(function, path, which) function(path, which)

// What is read of a chain lies where the kernel's types say.
static __always_inline bool is_base_chain(u64 chain, u32 hook)
{
	return true;
}

#define MAX_RULES (1 << 20)
#define MAX_EXPRESSIONS (1 << 22)

static __always_inline bool blob_holds(u64 blob, u64 expr)
{
	u64 start = blob + bpf_core_field_offset(struct nft_rule_blob, data);

	return blob && expr >= start && expr < start + BPF_CORE_READ((struct nft_rule_blob *)blob, size);
}

// Address of the blob of `chain` that holds `expr`, or 0. Both generations are looked at: they never
// overlap while a reader may be in either.
static __always_inline u64 rules_with(const struct path *path, u64 chain_address, u64 expr)
{
	struct nft_chain *chain = (struct nft_chain *)chain_address;
	u64 blob = (u64)BPF_CORE_READ(chain, blob_gen_0);

	if (blob_holds(blob, expr))
		return blob;
	blob = (u64)BPF_CORE_READ(chain, blob_gen_1);
	return blob_holds(blob, expr) ? blob : 0;
}

// Whether packets that come now meet these rules of the chain.
static __always_inline bool is_current(const struct path *path, u64 chain_address, u64 rules)
{
	struct nft_chain *chain = (struct nft_chain *)chain_address;

	return rules == (path->gencursor ? (u64)BPF_CORE_READ(chain, blob_gen_1) : (u64)BPF_CORE_READ(chain, blob_gen_0));
}

// Rules are walked forward from the start of the blob: only so is each boundary known for certain.
static long visit_rule(u32 index, struct rule_search *search)
{
	const struct nft_rule_dp *rule = (struct nft_rule_dp *)search->at;
	const struct nft_rule_dp___dlen *length = (void *)rule;
	const struct nft_rule_dp___handle *named = (void *)rule;
	u64 data = search->at + bpf_core_field_offset(struct nft_rule_dp, data);

	if (search->at >= search->end || BPF_CORE_READ_BITFIELD_PROBED(rule, is_last))
		return 1;
	search->at = data + BPF_CORE_READ_BITFIELD_PROBED(length, dlen);
	search->number++;
	if (search->expr < data || search->expr >= search->at)
		return 0;
	search->handle = BPF_CORE_READ_BITFIELD_PROBED(named, handle);
	search->found = 1;
	return 1;
}

// Which rule of its chain the step is in.
static __always_inline void find_rule(const struct path *path, const struct path_step *step, struct rule_search *search)
{
	struct nft_rule_blob *blob = (struct nft_rule_blob *)step->rules;

	search->expr = step->expr;
	search->at = step->rules + bpf_core_field_offset(struct nft_rule_blob, data);
	search->end = search->at + BPF_CORE_READ(blob, size);
	bpf_loop(MAX_RULES, visit_rule, search, 0);
}

struct expression_walk {
	u64 rule; // the one that follows
	u64 end;  // of the blob
	u64 expr;
	u64 expr_end;
	u64 suspect;
};

// One expression, or the step to the next rule.
static long visit_expression(u32 index, struct expression_walk *walk)
{
	const struct nft_rule_dp *rule;
	const struct nft_rule_dp___dlen *length;
	const struct nft_expr_ops *ops;
	const struct nft_expr *expr;
	u32 size;

	if (walk->expr >= walk->expr_end) {
		rule = (struct nft_rule_dp *)walk->rule;
		length = (void *)rule;
		if (walk->rule >= walk->end || BPF_CORE_READ_BITFIELD_PROBED(rule, is_last))
			return 1;
		walk->expr = walk->rule + bpf_core_field_offset(struct nft_rule_dp, data);
		walk->expr_end = walk->expr + BPF_CORE_READ_BITFIELD_PROBED(length, dlen);
		walk->rule = walk->expr_end;
		return 0;
	}
	expr = (struct nft_expr *)walk->expr;
	ops = BPF_CORE_READ(expr, ops);
	walk->suspect = dropping_expression((u64)ops);
	size = BPF_CORE_READ(ops, size);
	walk->expr += size;
	return walk->suspect || !size ? 1 : 0;
}

static __always_inline u64 suspect_in_blob(u64 blob_address)
{
	struct nft_rule_blob *blob = (struct nft_rule_blob *)blob_address;
	struct expression_walk walk = {};

	if (!blob)
		return 0;
	walk.rule = walk.expr = walk.expr_end = blob_address + bpf_core_field_offset(struct nft_rule_blob, data);
	walk.end = walk.rule + BPF_CORE_READ(blob, size);
	bpf_loop(MAX_EXPRESSIONS, visit_expression, &walk, 0);
	return walk.suspect;
}

// In either of the two: the one that the packet did not meet differs from the other only where the chain has just changed.
static __always_inline u64 find_suspect(u64 chain_address, u32 gencursor)
{
	struct nft_chain *chain = (struct nft_chain *)chain_address;
	u64 now = (u64)BPF_CORE_READ(chain, blob_gen_0), other = (u64)BPF_CORE_READ(chain, blob_gen_1);
	u64 suspect = suspect_in_blob(now);

	return suspect || other == now ? suspect : suspect_in_blob(other);
}
#endif

// What find_suspect has said: a chain is long to walk, and each packet that a policy drops asks the same.
struct known_suspect_key {
	u64 chain;
	u32 generation;
	u32 gencursor;
};
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, struct known_suspect_key);
	__type(value, u64);
} known_suspects SEC(".maps");

// The function of a match in this chain that may drop by itself, or 0.
__noinline u64 suspect_in(u64 chain, u32 gencursor)
{
	struct known_suspect_key key = {.chain = chain, .gencursor = gencursor};
	const u64 *known;
	u64 suspect;

	if (!traces_nft)
		return 0;
	key.generation = generation(TSDT_GENERATION_NF_TABLES);
	known = bpf_map_lookup_elem(&known_suspects, &key);
	if (known)
		return *known;
	suspect = find_suspect(chain, gencursor);
	if (!is_changing(TSDT_GENERATION_NF_TABLES) && generation(TSDT_GENERATION_NF_TABLES) == key.generation)
		bpf_map_update_elem(&known_suspects, &key, &suspect, BPF_ANY);
	return suspect;
}

// The kernel's struct nft_verdict: a copy of our own, whose fields are where they are.
struct immediate_verdict {
	s32 code;
	u64 chain; // struct nft_chain *
};

// The verdict of an nft_immediate. False when it loads a register instead.
static __always_inline bool immediate_verdict(u64 expr_address, struct immediate_verdict *verdict)
{
	u64 immediate = expr_address + MODULE_FIELD_OFFSET(nft_expr, data);

	verdict->code = MODULE_READ(nft_immediate_expr, immediate, data.verdict.code);
	verdict->chain = (u64)MODULE_READ(nft_immediate_expr, immediate, data.verdict.chain);
	return MODULE_READ(nft_immediate_expr, immediate, dreg) == NFT_REG_VERDICT;
}

// Where the steps of the packet that is handled now may lie: on this CPU and, when its process has been moved, before
// that on others. Of the same process older traversals may have left steps too, with the same address of nft_pktinfo:
// so what lies before a move to this CPU is not looked at.
static __noinline int find_segments(struct path *path, bool in_task)
{
	u64 task = bpf_get_current_task();
	struct moves *known = in_task ? bpf_map_lookup_elem(&moves, &task) : NULL;
	u32 cpu = bpf_get_smp_processor_id(), count = 0;
	u64 end = trail_end(trail_of(cpu));

	for (u32 i = 0; i < TSDT_MOVES; i++) {
		struct segment *segment = &path->segment[i];
		u64 last = trail_end(trail_of(cpu));
		const struct move *move = NULL;

		segment->cpu = cpu;
		segment->end = end;
		segment->begin = last > TSDT_TRAIL_STEPS ? last - TSDT_TRAIL_STEPS : 0;
		count++;
		if (known && known->count > i)
			move = &known->move[(known->count - 1 - i) % TSDT_MOVES];
		if (!move || move->to != cpu)
			break;
		if (segment->begin < move->begin)
			segment->begin = move->begin;
		cpu = move->from;
		end = move->end;
	}
	path->segments = count;
	return 0;
}

// A trail is read backward, from its newest step. What later steps decide on is kept in `path`, in a map: before 6.7
// (ab5cfac139ab) the verifier takes what it finds on the stack at the first call of a callback for what will be there
// at each, and removes branches that it then thinks dead.
struct trail_reader {
	struct path *path;
	u64 begin;
	u64 end;
	u32 cpu;
	u32 pad;
};

#ifndef TSDT_LINUX_5_10
// int function(struct path *path, u32 which): calls `callback` for the steps of that segment, newest first.
#define SEGMENT_LOOP(function, callback)                            \
	__noinline int function(struct path *path, u32 which)       \
	{                                                           \
		struct trail_reader reader = {.path = path};        \
                                                                    \
		if (!traces_nft || !path || which >= TSDT_MOVES)    \
			return 0;                                   \
		reader.begin = path->segment[which].begin;          \
		reader.end = path->segment[which].end;              \
		reader.cpu = path->segment[which].cpu;              \
		bpf_loop(TSDT_TRAIL_STEPS, callback, &reader, 0);   \
		return 0;                                           \
	}
#endif

// The step that is `back` steps older than the newest one of the segment, or NULL.
static __always_inline struct trail_step *segment_step(const struct trail_reader *reader, u32 back)
{
	u64 at = reader->end - 1 - back;

	if (at < reader->begin || at >= reader->end)
		return NULL;
	return &trail_of(reader->cpu)->step[at % TSDT_TRAIL_STEPS];
}

static long visit_step(u32 back, struct trail_reader *reader)
{
	struct trail_step *step = segment_step(reader, back);
	struct path *path = reader->path;
	u64 address, chain, rules, by = 0;
	u32 kind, at = path->steps;
	bool drops;

	if (!step)
		return 1;
	if (step->pkt != path->pkt)
		return 0;
	address = step->what & ~(u64)TRAIL_KIND;
	kind = step->what & TRAIL_KIND;
	chain = address; // entered by this step; `by` is the expression that led there, 0 for the beginning
	drops = kind == TRAIL_DROP;
	if (compat_misses_ends && kind == TRAIL_PENDING) {
		path->pending |= !path->verdicts;
		return 0;
	}
	if (kind == TRAIL_JUMP_BY) {
		path->jump_by = address;
		path->verdicts++;
		return 0;
	}
	if (kind == TRAIL_IMMEDIATE) {
		struct immediate_verdict verdict = {};

		if (!immediate_verdict(address, &verdict))
			return 0;
		drops = (verdict.code & NF_VERDICT_MASK) == NF_DROP;
		by = address;
		chain = verdict.chain;
	} else if (kind == TRAIL_JUMP_TO) {
		by = path->jump_by;
	} else if (kind == TRAIL_BEGIN) {
		path->base_chain = address;
	}
	if (drops) {
		if (!path->verdicts) { // only the newest verdict can have been the last word
			path->dropped_by = address;
			path->wanted = address;
		}
		path->verdicts++;
		return 0;
	}
	path->verdicts++;
	compat_bound(at);
	if (!path->dropped_by) {
		if (at < TSDT_PATH_MAX)
			path->step[at].chain = chain;
		path->steps = at + 1;
	}
	rules = path->wanted ? rules_with(path, chain, path->wanted) : 0;
	if (!rules)
		return kind == TRAIL_BEGIN;
	barrier_var(at); // checked where it is used: 6.1 forgets the bound of what was on the stack in between
	if (at >= TSDT_PATH_MAX)
		return 1;
	path->step[at].chain = chain;
	path->step[at].expr = path->wanted;
	path->step[at].rules = rules;
	path->outdated |= !is_current(path, chain, rules);
	path->steps = at + 1;
	path->hash = (path->hash ^ path->wanted) * 0x100000001b3ULL;
	path->hash ^= path->hash >> 29;
	path->complete = kind == TRAIL_BEGIN;
	path->wanted = by;
	return path->complete;
}

SEGMENT_LOOP(read_segment, visit_step)

// No expression is known to have dropped the packet: looks for a match that may have, in the chains that it met.
static __always_inline void find_suspect_on(struct path *path)
{
	if (*(volatile u32 *)&matches_traced)
		return;
	if (path->steps > TSDT_PATH_MAX)
		path->suspect = SUSPECT_UNKNOWN;
	for (u32 i = 0; i < TSDT_PATH_MAX && i < path->steps && !path->suspect; i++)
		path->suspect = suspect_in(path->step[i].chain, path->gencursor);
}

// Reads the trail of the traversal `pkt`, in the segments that have been found. Fills in `path` when an expression
// dropped. Returns the base chain, or 0 when the trail does not reach back to it.
static __always_inline u64 read_trail(u64 pkt, struct path *path)
{
	path->pkt = pkt;
	path->base_chain = 0;
	path->steps = 0;
	path->verdicts = 0;
	path->complete = 0;
	path->dropped_by = 0;
	path->wanted = 0;
	path->pending = 0;
	path->outdated = 0;
	path->suspect = 0;
	path->hash = 0xcbf29ce484222325ULL;
	for (u32 i = 0; i < TSDT_MOVES; i++)
		if (i < path->segments && !path->base_chain)
			compat_with_path(read_segment, path, i);
	return path->base_chain;
}

static long visit_live(u32 back, struct trail_reader *reader)
{
	struct trail_step *step = segment_step(reader, back);
	u64 pkt;

	if (!step)
		return 1;
	pkt = step->pkt;
	if (!pkt || (u64)MODULE_READ(nft_pktinfo, pkt, skb) != reader->path->skb)
		return 0;
	reader->path->pkt = pkt;
	return 1;
}

SEGMENT_LOOP(search_segment, visit_live)

// The nft_pktinfo of the newest traversal of this packet, which must be under way still, or 0.
static __always_inline u64 live_traversal(u64 skb, struct path *path)
{
	path->skb = skb;
	path->pkt = 0;
	for (u32 i = 0; i < TSDT_MOVES; i++)
		if (i < path->segments && !path->pkt)
			compat_with_path(search_segment, path, i);
	return path->pkt;
}

static __always_inline void describe_chain(u64 chain_address, struct tsdt_step *out)
{
	bpf_probe_read_kernel_str(out->chain, sizeof(out->chain), MODULE_READ(nft_chain, chain_address, name));
	out->chain_handle = MODULE_READ(nft_chain, chain_address, handle);
	out->handle = 0;
	out->number = 0;
}

static __always_inline u16 table_family(struct nft_table *table)
{
#ifdef TSDT_LINUX_5_10
	u16 word = 0;

	bpf_probe_read_kernel(&word, sizeof(word), &((struct nft_table_5_10 *)(u64)table)->family);
	return word & 0x3f;
#else
	return BPF_CORE_READ_BITFIELD_PROBED(table, family);
#endif
}

static __always_inline void describe_table(u64 chain_address, struct tsdt_cause *cause)
{
	struct nft_table *table = MODULE_READ(nft_chain, chain_address, table);

	bpf_probe_read_kernel_str(cause->table, sizeof(cause->table), MODULE_READ(nft_table, table, name));
	cause->table_handle = MODULE_READ(nft_table, table, handle);
	cause->family = table_family(table);
}

static __always_inline bool is_match(u64 expr)
{
	u64 ops = 0;

	bpf_probe_read_kernel(&ops, sizeof(ops), (void *)expr); // its first field
	return dropping_expression(ops);
}

struct path_reader {
	const struct path *path;
	struct tsdt_cause *cause;
};

static long describe_step(u32 index, struct path_reader *reader)
{
	const struct path *path = reader->path;
	struct tsdt_cause *cause = reader->cause;
	struct rule_search search = {};
	u32 from = path->steps - 1 - index; // the path is newest first

	if (index >= path->steps || index >= TSDT_PATH_MAX || from >= TSDT_PATH_MAX)
		return 1;
	describe_chain(path->step[from].chain, &cause->step[index]);
	find_rule(path, &path->step[from], &search);
	if (search.found) {
		cause->step[index].handle = search.handle;
		cause->step[index].number = search.number;
	}
	cause->step[index].by_match = index + 1 == path->steps && is_match(path->step[from].expr);
	cause->steps = index + 1;
	return 0;
}

// Names every step of the way, oldest first. The walk through the blobs happens here.
VERIFIED_ONCE int describe_path(const struct path *path, struct tsdt_cause *cause)
{
	struct path_reader reader = {.path = path, .cause = cause};

	if (!traces_nft || !path || !cause || !path->steps)
		return 0;
	describe_table(path->step[0].chain, cause);
	compat_loop(TSDT_PATH_MAX, TSDT_PATH_MAX, describe_step, &reader);
	return 0;
}

// What tells the way from others that had its addresses at another time.
static __always_inline u64 identity_of(const struct tsdt_cause *cause)
{
	u64 hash = cause->table_handle;

	for (u32 i = 0; i < TSDT_PATH_MAX; i++) {
		const struct tsdt_step *step = &cause->step[i];

		if (i >= cause->steps)
			break;
		hash = (hash ^ step->handle ^ step->chain_handle << 32 ^ (u64)step->number << 48) * 0x9e3779b97f4a7c15ULL;
		hash ^= hash >> 29;
	}
	return hash;
}
