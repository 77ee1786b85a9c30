// SPDX-License-Identifier: GPL-2.0-only
// Structures of nf_tables and x_tables as Linux 5.10 lays them out on 64-bit machines. Modules have type information
// from 5.11 only, so there is nothing to relocate against. (struct xt_table and xt_table_info are in vmlinux's.) Every
// field has its offset, after include/net/netfilter/nf_tables.h and include/linux/netfilter/x_tables.h of 5.10.262.
// They are not believed blindly: userspace compares the sizes of vmlinux's types that lie within them
// (attach/kernel_types.cpp), and no rule is named unless chain and table agree with the hook (is_base_chain) and the
// rule holds the expression.
#pragma once

#include <vmlinux.h>

struct nft_pktinfo_5_10 {
	struct sk_buff *skb;                // 0
	u64 tprot;                          // 8
	const void *match, *targinfo;       // 16, 24: struct xt_action_param
	const struct nf_hook_state *state;  // 32
};

struct nft_expr_5_10 {
	const void *ops;       // 0
	unsigned char data[0]; // 8
};

struct nft_expr_ops_5_10 {
	u64 eval, clone;   // 0, 8
	unsigned int size; // 16: of the whole expression
};

struct nft_expr_type_5_10 {
	u64 select_ops, release_ops, ops, list[2]; // 0 to 32
	const char *name;                          // 40
};

struct nft_immediate_expr_5_10 {
	struct {
		struct {
			u32 code;                // 0
			struct nft_chain *chain; // 8
		} verdict;
	} data;
	u8 dreg; // 16
};

struct nft_regs_5_10 {
	struct {
		u32 code;                // 0
		struct nft_chain *chain; // 8
	} verdict;
};

struct nft_rule_5_10 {
	u64 list[2];           // 0
	u64 word;              // 16: handle:42, genmask:2, dlen:12, udata:1
	unsigned char data[0]; // 24
};

struct nft_chain_5_10 {
	u64 rules_gen_0, rules_gen_1; // 0, 8: struct nft_rule **, ends in NULL
	u64 rules[2], list[2];        // 16, 32
	u64 rhlhead[2];               // 48
	struct nft_table *table;      // 64
	u64 handle;                   // 72
	u32 use;                      // 80
	u8 flags;                     // 84
	char *name;                   // 88
};

struct nft_base_chain_5_10 {
	struct {
		u64 hook, dev, priv;  // 0, 8, 16
		u8 pf;                // 24
		unsigned int hooknum; // 28
		int priority;         // 32
	} ops;                        // struct nf_hook_ops
	u64 hook_list[2];             // 40
	const void *type;             // 56
	u8 policy;                    // 64
	u64 stats;                    // 72
	struct nft_chain_5_10 chain;  // 80
};

struct nft_table_5_10 {
	u64 list[2];                                           // 0
	u8 chains_ht[136];                                     // 16: struct rhltable
	u64 chains[2], sets[2], objects[2], flowtables[2];     // 152
	u64 hgenerator;                                        // 216
	u64 handle;                                            // 224
	u32 use;                                               // 232
	u16 family;                                            // 236: family:6, flags:8, genmask:2
	char *name;                                            // 240
};

struct xt_target_5_10 {
	u64 list[2];   // 0
	char name[29]; // 16
};

struct xt_match_5_10 {
	u64 list[2];       // 0
	char name[29];     // 16
	u8 revision;       // 45
	const void *match; // 48
};

struct xt_action_param_5_10 {
	const void *match; // 0
	union {
		const void *matchinfo, *targinfo; // 8
	};
	const struct nf_hook_state *state; // 16
	int fragoff;                       // 24
	unsigned int thoff;                // 28
	bool hotdrop;                      // 32
};

_Static_assert(__builtin_offsetof(struct nft_pktinfo_5_10, state) == 32, "nft_pktinfo");
_Static_assert(__builtin_offsetof(struct nft_chain_5_10, name) == 88, "nft_chain");
_Static_assert(__builtin_offsetof(struct nft_base_chain_5_10, chain) == 80, "nft_base_chain");
_Static_assert(__builtin_offsetof(struct nft_table_5_10, name) == 240, "nft_table");
