// SPDX-License-Identifier: GPL-2.0-only
// Who gives verdicts on queued packets now. What such a task lets pass goes on in its name, but it does not send that.
#pragma once

#include "maps.h"

// The queue that a task gives verdicts for. (On 5.10: 0.)
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, u64); // struct task_struct *
	__type(value, u32);
} verdict_givers SEC(".maps");

static __always_inline int verdict_comes(u32 number)
{
	u64 task = bpf_get_current_task();

	bpf_map_update_elem(&verdict_givers, &task, &number, BPF_ANY);
	return 0;
}

static __always_inline int verdict_ends(void)
{
	u64 task = bpf_get_current_task();

	bpf_map_delete_elem(&verdict_givers, &task);
	return 0;
}

__noinline int gives_verdict(void)
{
	u64 task = bpf_get_current_task();

	return bpf_map_lookup_elem(&verdict_givers, &task) != NULL;
}

#ifdef TSDT_LINUX_5_10
ENTRY_OF(nfqnl_recv_verdict) int nfqnl_recv_verdict_begin(void *ctx) { return verdict_comes(0); }
ENTRY_OF(nfqnl_recv_verdict_batch) int nfqnl_recv_verdict_batch_begin(void *ctx) { return verdict_comes(0); }
#endif
EXIT_OF(nfqnl_recv_verdict) int nfqnl_recv_verdict_end(void *ctx) { return verdict_ends(); }
EXIT_OF(nfqnl_recv_verdict_batch) int nfqnl_recv_verdict_batch_end(void *ctx) { return verdict_ends(); }
