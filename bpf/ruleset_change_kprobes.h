// SPDX-License-Identifier: GPL-2.0-only
// ruleset_change.h's programs where kprobes are what is attached. A change whose end was missed (too many calls at once for
// the kernel to follow) leaves `changing` too high, until userspace sets it right: then no rule is believed, which is safe.
// An end is counted only where its beginning was, so that it is not too low.
#pragma once

static __always_inline int call_begins(struct pt_regs *ctx, u32 which)
{
	change_begins(which);
	return begin_call(ctx);
}

// `tells`: which ruleset the function has changed, should it have succeeded.
static __always_inline int call_ends(struct pt_regs *ctx, u32 which, u32 tells)
{
	u64 call[4];
	bool known = end_call(ctx, call);

	if (known && !(s32)call[3]) {
		if (tells == TSDT_RULESET_NF_TABLES) // struct net *, struct sk_buff *
			tell_change(tells, which, (struct net *)call[0]);
		else if ((s32)call[1] == replace_command(tells)) // struct sock *, int command, sockptr_t
			tell_replacement(tells, (struct sock *)call[0], (void *)call[2]);
	}
	__sync_fetch_and_add(&generations[which], 1);
	if (known && is_changing(which)) // userspace may have given up on it
		__sync_fetch_and_add(&changing[which], -1);
	return 0;
}

#define RULESET_CHANGE_ENDS(function, which, tells) \
	EXIT_OF(function) int function##_end(struct pt_regs *ctx) { return call_ends(ctx, which, tells); }
RULESET_CHANGE_ENDS(nf_tables_commit, TSDT_GENERATION_NF_TABLES, TSDT_RULESET_NF_TABLES)
RULESET_CHANGE_ENDS(do_ipt_set_ctl, TSDT_GENERATION_X_TABLES, TSDT_RULESET_IP_TABLES)
RULESET_CHANGE_ENDS(do_ip6t_set_ctl, TSDT_GENERATION_X_TABLES, TSDT_RULESET_IP6_TABLES)
RULESET_CHANGE_ENDS(do_arpt_set_ctl, TSDT_GENERATION_X_TABLES, TSDT_RULESET_ARP_TABLES)

#define RULESET_CHANGE_BEGINS(function, which) \
	ENTRY_OF(function) int function##_begin(struct pt_regs *ctx) { return call_begins(ctx, which); }
RULESET_CHANGE_BEGINS(nf_tables_commit, TSDT_GENERATION_NF_TABLES)
RULESET_CHANGE_BEGINS(do_ipt_set_ctl, TSDT_GENERATION_X_TABLES)
RULESET_CHANGE_BEGINS(do_ip6t_set_ctl, TSDT_GENERATION_X_TABLES)
RULESET_CHANGE_BEGINS(do_arpt_set_ctl, TSDT_GENERATION_X_TABLES)
#ifndef TSDT_LINUX_5_10
RULESET_CHANGE_ENDS(do_ebt_set_ctl, TSDT_GENERATION_X_TABLES, TSDT_RULESET_BRIDGE_FILTER) // or another of its tables
RULESET_CHANGE_BEGINS(do_ebt_set_ctl, TSDT_GENERATION_X_TABLES)
#endif
