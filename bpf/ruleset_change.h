// SPDX-License-Identifier: GPL-2.0-only
// Runs where a ruleset changes, never where a packet passes. One line per kernel function at the end.
#pragma once

#include "maps.h"

const volatile __u32 own_netns; // inode of the network namespace that tsdroptrace runs in

// Not in `events`: there they would wait behind the packets that the change makes die. Userspace looks in every 100 ms.
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 64 * 1024);
} changes SEC(".maps");

// Records of changes sent in the current second, by enum tsdt_netns_class.
struct change_budget {
	u64 second;
	u32 used;
	u32 pad;
};
static struct change_budget change_budgets[TSDT_NETNS_CLASSES];
// Changes that were complete. Both are counted before the generation says so: who reads the ruleset after that knows
// how many records of changes it must have got to know who made them.
__u64 changes_told;                       // by a record
__u64 changes_untold[TSDT_NETNS_CLASSES]; // without one

// Two that begin a second at once may each give it the whole budget: the bound is soft, the count is not.
static __always_inline bool may_tell(u32 class, u64 now)
{
	struct change_budget *budget = &change_budgets[class];
	u64 second = now / 1000000000;

	if (*(volatile u64 *)&budget->second != second) {
		budget->second = second;
		budget->used = 0;
	}
	return compat_fetch_and_add(&budget->used, 1) < TSDT_CHANGES_PER_SECOND;
}

// Tells userspace who has changed the ruleset: the current process.
static __always_inline void tell_change(u32 ruleset, u32 which, struct net *net)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	struct task_struct *process = BPF_CORE_READ(task, group_leader);
	struct task_struct *parent = BPF_CORE_READ(process, real_parent);
	struct tsdt_ruleset_change change = {.mono_ns = bpf_ktime_get_ns(), .ruleset = ruleset};
	u32 class;

	change.netns = BPF_CORE_READ(net, ns.inum);
	class = change.netns == own_netns ? TSDT_NETNS_OWN : TSDT_NETNS_OTHER;
	if (!may_tell(class, change.mono_ns)) {
		__sync_fetch_and_add(&changes_untold[class], 1);
		return;
	}
	change.generation = generation(which) + 1;
	change.pid = BPF_CORE_READ(process, tgid);
	bpf_probe_read_kernel_str(change.comm, sizeof(change.comm), &process->comm);
	change.parent_pid = BPF_CORE_READ(parent, tgid);
	bpf_probe_read_kernel_str(change.parent_comm, sizeof(change.parent_comm), &parent->comm);
	if (bpf_ringbuf_output(&changes, &change, sizeof(change), BPF_RB_NO_WAKEUP))
		__sync_fetch_and_add(&changes_untold[class], 1);
	else
		__sync_fetch_and_add(&changes_told, 1);
}

static __always_inline int change_begins(u32 which)
{
	__sync_fetch_and_add(&changing[which], 1);
	__sync_fetch_and_add(&generations[which], 1);
	return 0;
}

#define SOCKET_NET(sk) BPF_CORE_READ(sk, __sk_common.skc_net.net)

// The command that replaces a table (IPT_SO_SET_REPLACE and its like): the other one only adds old counters back.
static __always_inline s32 replace_command(u32 ruleset)
{
	return ruleset == TSDT_RULESET_ARP_TABLES ? 96 : ruleset == TSDT_RULESET_BRIDGE_FILTER ? 128 : 64;
}

// A process has replaced a table of this ruleset. Which one of ebtables', only what it has handed over says: there `ruleset`
// is TSDT_RULESET_BRIDGE_FILTER for all.
static __always_inline void tell_replacement(u32 ruleset, struct sock *sk, const void *replacement)
{
	char name[8] = {};

	if (ruleset == TSDT_RULESET_BRIDGE_FILTER) {
		bpf_probe_read_user(name, sizeof(name), replacement); // struct ebt_replace
		if (name[0] != 'f' && name[0] != 'n')
			return;
		if (name[0] == 'n')
			ruleset = TSDT_RULESET_BRIDGE_NAT;
	}
	tell_change(ruleset, TSDT_GENERATION_X_TABLES, SOCKET_NET(sk));
}

#ifdef TSDT_KPROBES
#include "ruleset_change_kprobes.h"
#else
// A begin may have been missed: the kernel does not run a program on top of itself, and calls that began before the
// program was attached come here all the same. Then there is nothing to take back.
static __always_inline int change_ends(u32 which)
{
	__sync_fetch_and_add(&generations[which], 1);
	if (__sync_fetch_and_add(&changing[which], -1) <= 0)
		__sync_fetch_and_add(&changing[which], 1);
	return 0;
}

SEC("fexit/nf_tables_commit")
int BPF_PROG(nf_tables_commit_end, struct net *net, struct sk_buff *skb, int ret)
{
	if (!ret)
		tell_change(TSDT_RULESET_NF_TABLES, TSDT_GENERATION_NF_TABLES, net);
	return change_ends(TSDT_GENERATION_NF_TABLES);
}

// sockptr_t is two words in the arguments (since 5.9), so `len` and the result are not at a position of their own.
#define SET_CTL(function, ruleset)                                                                     \
	SEC("fexit/" #function) int function##_end(unsigned long long *ctx)                           \
	{                                                                                              \
		struct sock *sk = (struct sock *)ctx[0];                                               \
		u64 ret = -1;                                                                          \
                                                                                                       \
		bpf_get_func_ret(ctx, &ret);                                                           \
		if (!(int)ret && (int)ctx[1] == replace_command(ruleset))                                      \
			tell_replacement(ruleset, sk, (void *)ctx[2]);                                 \
		return change_ends(TSDT_GENERATION_X_TABLES);                                          \
	}
SET_CTL(do_ipt_set_ctl, TSDT_RULESET_IP_TABLES)
SET_CTL(do_ip6t_set_ctl, TSDT_RULESET_IP6_TABLES)
SET_CTL(do_arpt_set_ctl, TSDT_RULESET_ARP_TABLES)
SET_CTL(do_ebt_set_ctl, TSDT_RULESET_BRIDGE_FILTER)

#define CHANGE_BEGINS(function, which) \
	ENTRY_OF(function) int function##_begin(void *ctx) { return change_begins(which); }
CHANGE_BEGINS(nf_tables_commit, TSDT_GENERATION_NF_TABLES)
CHANGE_BEGINS(do_ipt_set_ctl, TSDT_GENERATION_X_TABLES)
CHANGE_BEGINS(do_ip6t_set_ctl, TSDT_GENERATION_X_TABLES)
CHANGE_BEGINS(do_arpt_set_ctl, TSDT_GENERATION_X_TABLES)
CHANGE_BEGINS(do_ebt_set_ctl, TSDT_GENERATION_X_TABLES)
#endif

// A table is there when the function has ended (its first use in a namespace), or gone before it begins.
static __always_inline int table_comes_or_goes(void)
{
	__sync_fetch_and_add(&generations[TSDT_GENERATION_X_TABLES], 1);
	return 0;
}
EXIT_OF(xt_register_table) int xt_register_table_end(void *ctx) { return table_comes_or_goes(); }
ENTRY_OF(xt_unregister_table) int xt_unregister_table_begin(void *ctx) { return table_comes_or_goes(); } // to 7.0
// From 7.1:
ENTRY_OF(xt_unregister_table_pre_exit) int xt_unregister_table_pre_exit_begin(void *ctx) { return table_comes_or_goes(); }
#ifndef TSDT_LINUX_5_10
EXIT_OF(ebt_register_table) int ebt_register_table_end(void *ctx) { return table_comes_or_goes(); }
ENTRY_OF(ebt_unregister_table) int ebt_unregister_table_begin(void *ctx) { return table_comes_or_goes(); }

// Without a commit, a table goes with the socket of the process that owns it (5.12). nf_tables_table_destroy has a table
// in its arguments from 6.12 on, before that more: the namespace is that of the socket. (It is called after commits, too.)
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 256);
	__type(key, u64);   // bpf_get_current_pid_tgid()
	__type(value, u64); // struct net * of the socket that is being closed
} closing SEC(".maps");

static __always_inline int socket_closes(unsigned long event, const struct netlink_notify *closed)
{
	u64 task = bpf_get_current_pid_tgid(), net = (u64)BPF_CORE_READ(closed, net);

	if (event == NETLINK_URELEASE && BPF_CORE_READ(closed, protocol) == NETLINK_NETFILTER)
		bpf_map_update_elem(&closing, &task, &net, BPF_ANY);
	return 0;
}
AT_BEGIN(nft_rcv_nl_event, socket_closes(argument[1], (void *)argument[2])) // the first one is the notifier

static __always_inline int socket_closed(void)
{
	u64 task = bpf_get_current_pid_tgid();

	bpf_map_delete_elem(&closing, &task);
	return 0;
}
EXIT_OF(nft_rcv_nl_event) int nft_rcv_nl_event_end(void *ctx) { return socket_closed(); }

static __always_inline int table_goes(void)
{
	u64 task = bpf_get_current_pid_tgid();
	u64 *net = bpf_map_lookup_elem(&closing, &task);

	if (!net)
		return 0;
	tell_change(TSDT_RULESET_NF_TABLES, TSDT_GENERATION_NF_TABLES, (struct net *)*net);
	__sync_fetch_and_add(&generations[TSDT_GENERATION_NF_TABLES], 1);
	return 0;
}
ENTRY_OF(nf_tables_table_destroy) int nf_tables_table_destroy_begin(void *ctx) { return table_goes(); }
#endif
