// SPDX-License-Identifier: GPL-2.0-only
// Runs where a ruleset changes, never where a packet passes. One line per kernel function.
#pragma once

#include "maps.h"

static __always_inline int bump(u32 which, u32 by)
{
	__sync_fetch_and_add(&generations[which], by);
	return 0;
}

#ifdef TSDT_KPROBES
// A kretprobe may be missed: then the next change's end makes the generation even again.
static __always_inline int change_begins(u32 which)
{
	return bump(which, generation(which) & 1 ? 2 : 1);
}
static __always_inline int change_ends(u32 which)
{
	return bump(which, generation(which) & 1 ? 1 : 2);
}
#else
#define change_begins(which) bump(which, 1)
#define change_ends(which) bump(which, 1)
#endif

// The ruleset changes while the function runs: its generation is odd for that time.
#define RULESET_CHANGE(function, which)                                                    \
	ENTRY_OF(function) int function##_begin(void *ctx) { return change_begins(which); } \
	EXIT_OF(function) int function##_end(void *ctx) { return change_ends(which); }

// A table is there when the function has ended, or gone before it begins.
#define TABLE_COMES(function) \
	EXIT_OF(function) int function##_end(void *ctx) { return bump(TSDT_GENERATION_X_TABLES, 2); }
#define TABLE_GOES(function) \
	ENTRY_OF(function) int function##_begin(void *ctx) { return bump(TSDT_GENERATION_X_TABLES, 2); }

RULESET_CHANGE(nf_tables_commit, TSDT_GENERATION_NF_TABLES)
RULESET_CHANGE(do_ipt_set_ctl, TSDT_GENERATION_X_TABLES) // replaced, or old counters added back
RULESET_CHANGE(do_ip6t_set_ctl, TSDT_GENERATION_X_TABLES)
TABLE_COMES(xt_register_table)           // a table's first use in a namespace
TABLE_GOES(xt_unregister_table)          // to 7.0
TABLE_GOES(xt_unregister_table_pre_exit) // from 7.1
