// SPDX-License-Identifier: GPL-2.0-only
// Runs where a ruleset changes, never where a packet passes. One line per kernel function.
#pragma once

#include "maps.h"

static __always_inline int bump(u32 which, u32 by)
{
	__sync_fetch_and_add(&generations[which], by);
	return 0;
}

// The ruleset changes while the function runs: its generation is odd for that time.
#define RULESET_CHANGE(function, which)                                                     \
	SEC("fentry/" #function) int function##_begin(void *ctx) { return bump(which, 1); } \
	SEC("fexit/" #function) int function##_end(void *ctx) { return bump(which, 1); }

// A table is there when the function has ended, or gone before it begins.
#define TABLE_COMES(function) \
	SEC("fexit/" #function) int function##_end(void *ctx) { return bump(TSDT_GENERATION_X_TABLES, 2); }
#define TABLE_GOES(function) \
	SEC("fentry/" #function) int function##_begin(void *ctx) { return bump(TSDT_GENERATION_X_TABLES, 2); }

RULESET_CHANGE(nf_tables_commit, TSDT_GENERATION_NF_TABLES)
RULESET_CHANGE(do_ipt_set_ctl, TSDT_GENERATION_X_TABLES) // replaced, or old counters added back
RULESET_CHANGE(do_ip6t_set_ctl, TSDT_GENERATION_X_TABLES)
TABLE_COMES(xt_register_table)           // a table's first use in a namespace
TABLE_GOES(xt_unregister_table)          // to 7.0
TABLE_GOES(xt_unregister_table_pre_exit) // from 7.1
