// SPDX-License-Identifier: GPL-2.0-only
// nft_rule.h's part for 5.10: a chain's rules lie in a blob from 5.17 (2c865a8a28a1); before that each has its own piece
// of memory, and the chain two lists of their addresses.
#pragma once

// A loop over the steps of a segment. Each turn is verified once, so it is told whose path it is, and which segment.
static __always_inline struct path *path_of(u32 owner);

#define SEGMENT_LOOP(function, callback)                                                   \
	__noinline int callback##_at(u32 owner, u32 which, u32 back)                       \
	{                                                                                  \
		struct path *path = path_of(owner);                                        \
		struct trail_reader reader = {.path = path};                               \
                                                                                           \
		compat_bound(which);                                                       \
		if (!path || which >= TSDT_MOVES)                                          \
			return 1;                                                          \
		reader.begin = path->segment[which].begin;                                 \
		reader.end = path->segment[which].end;                                     \
		reader.cpu = path->segment[which].cpu;                                     \
		return callback(back, &reader) ? 1 : 0;                                    \
	}                                                                                  \
	__noinline int function##_of(u32 owner, u32 which)                                 \
	{                                                                                  \
		for (u32 i = 0; i < TSDT_TRAIL_STEPS && !callback##_at(owner, which, i);)  \
			i++;                                                               \
		return 0;                                                                  \
	}
#define compat_with_path(function, path, which) function##_of((path)->owner, which)

// `at` is the address of the place in the list that has the address of the next rule.
static long visit_rule(u32 index, struct rule_search *search)
{
	struct nft_rule_5_10 *rule = NULL;
	u64 word = 0, data;

	if (bpf_probe_read_kernel(&rule, sizeof(rule), (void *)search->at) || !rule ||
	    bpf_probe_read_kernel(&word, sizeof(word), &rule->word))
		return 1;
	data = (u64)&rule->data[0];
	search->at += sizeof(rule);
	search->number++;
	if (search->expr < data || search->expr >= data + (word >> 44 & 0xfff))
		return 0;
	search->handle = word & ((1ULL << 42) - 1);
	search->found = 1;
	return 1;
}
COMPAT_LONG_LOOP(visit_rule, struct rule_search)

// Searches are remembered: a list is long to walk, and each packet that a rule drops asks the same.
struct known_rule_key {
	u64 chain;
	u64 expr;
	u32 generation;
	u32 gencursor;
};
struct known_rule {
	u64 handle;
	u32 number; // 0: the chain does not hold it
	u32 pad;
};
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct known_rule_key);
	__type(value, struct known_rule);
} known_rules SEC(".maps");

static __always_inline void find_rule(const struct path *path, const struct path_step *step, struct rule_search *search)
{
	struct known_rule_key key = {.chain = step->chain, .expr = step->expr, .gencursor = path->gencursor};
	const struct known_rule *known;
	struct nft_chain_5_10 *own = (struct nft_chain_5_10 *)step->chain;
	struct known_rule found = {};

	key.generation = generation(TSDT_GENERATION_NF_TABLES);
	known = bpf_map_lookup_elem(&known_rules, &key);
	if (known) {
		search->handle = known->handle;
		search->number = known->number;
		search->found = known->number != 0;
		return;
	}
	search->expr = step->expr;
	// The other list may hold rules that are gone: it is freed only after the next change.
	bpf_probe_read_kernel(&search->at, sizeof(search->at), path->gencursor ? &own->rules_gen_1 : &own->rules_gen_0);
	if (search->at)
		compat_long_loop(~0u, visit_rule, search);
	if (search->found) {
		found.handle = search->handle;
		found.number = search->number;
	}
	if (!is_changing(TSDT_GENERATION_NF_TABLES))
		bpf_map_update_elem(&known_rules, &key, &found, BPF_ANY);
}

// Not 0 when the chain's list of that time holds `expr`.
static __always_inline u64 rules_with(const struct path *path, u64 chain, u64 expr)
{
	struct path_step step = {.chain = chain, .expr = expr};
	struct rule_search search = {};

	find_rule(path, &step, &search);
	return search.found;
}

// Only the list that packets met when this one was dropped has been looked at.
static __always_inline bool is_current(const struct path *path, u64 chain, u64 rules)
{
	return true;
}

// Where these ops have their type: the data of nft_compat follows it. 5.10's updates have added fields before it. Its name,
// in the first eight bytes, goes to `name`. 0: not found.
static __noinline u64 find_type(u64 ops, u64 *name)
{
	const u32 first = 104, last = 120;

	for (u32 at = first; at <= last; at += sizeof(u64)) {
		struct nft_expr_type_5_10 *type = NULL;
		const char *text = NULL;

		*name = 0;
		if (!bpf_probe_read_kernel(&type, sizeof(type), (void *)ops + at) &&
		    !bpf_probe_read_kernel(&text, sizeof(text), &type->name) &&
		    bpf_probe_read_kernel_str(name, sizeof(*name), text) > 1 && (u8)*name >= 'a' && (u8)*name <= 'z')
			return ops + at;
	}
	return 0;
}

// As in nft_rule.h. An expression that cannot be made sense of may drop, too.
static __always_inline u64 dropping_expression(u64 ops)
{
	u64 name = 0, match = 0, type = find_type(ops, &name);

	if (!type)
		return SUSPECT_UNKNOWN;
	if (!NAME_IS(name, "match"))
		return 0;
	bpf_probe_read_kernel(&match, sizeof(match), (void *)type + sizeof(u64));
	return dropping_match(match);
}

struct expression_walk {
	u64 at; // as in struct rule_search
	u64 expr;
	u64 expr_end;
	u64 suspect;
};

// One expression, or the step to the next rule.
static long visit_expression(u32 index, struct expression_walk *walk)
{
	struct nft_rule_5_10 *rule = NULL;
	struct nft_expr_ops_5_10 *ops = NULL;
	u64 word = 0;
	u32 size = 0;

	if (walk->expr >= walk->expr_end) {
		if (bpf_probe_read_kernel(&rule, sizeof(rule), (void *)walk->at) || !rule ||
		    bpf_probe_read_kernel(&word, sizeof(word), &rule->word))
			return 1;
		walk->at += sizeof(rule);
		walk->expr = (u64)&rule->data[0];
		walk->expr_end = walk->expr + (word >> 44 & 0xfff);
		return 0;
	}
	bpf_probe_read_kernel(&ops, sizeof(ops), (void *)walk->expr);
	bpf_probe_read_kernel(&size, sizeof(size), &ops->size);
	walk->suspect = dropping_expression((u64)ops);
	walk->expr += size;
	return walk->suspect || !size ? 1 : 0;
}
COMPAT_LONG_LOOP(visit_expression, struct expression_walk)

static __always_inline u64 find_suspect(u64 chain, u32 gencursor)
{
	struct nft_chain_5_10 *own = (struct nft_chain_5_10 *)chain;
	struct expression_walk walk = {};

	bpf_probe_read_kernel(&walk.at, sizeof(walk.at), gencursor ? &own->rules_gen_1 : &own->rules_gen_0);
	if (walk.at)
		compat_long_loop(~0u, visit_expression, &walk);
	return walk.suspect;
}

// Whether this is a base chain: what is read of it must agree with what netfilter says of its hook.
static __noinline bool is_base_chain(u64 chain, u32 hook)
{
	u64 base = chain - MODULE_FIELD_OFFSET(nft_base_chain, chain);
	struct nft_table *table = MODULE_READ(nft_chain, chain, table);
	u64 priv = 0;
	char name[2] = {};

	bpf_probe_read_kernel(&priv, sizeof(priv), &((struct nft_base_chain_5_10 *)base)->ops.priv);
	if (priv && priv != chain) // the hook's argument is the chain; those of devices have it elsewhere
		return false;
	if (MODULE_READ(nft_base_chain, base, ops.hooknum) != hook || MODULE_READ(nft_base_chain, base, policy) > 1)
		return false;
	return bpf_probe_read_kernel_str(name, sizeof(name), MODULE_READ(nft_chain, chain, name)) > 1 &&
	       bpf_probe_read_kernel_str(name, sizeof(name), MODULE_READ(nft_table, table, name)) > 1;
}
