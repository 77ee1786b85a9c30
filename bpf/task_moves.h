// SPDX-License-Identifier: GPL-2.0-only
// Runs where the scheduler moves a task to another CPU: see struct move.
#pragma once

#include "ipt_table.h"

SEC("tp_btf/sched_migrate_task")
int BPF_PROG(on_sched_migrate_task, struct task_struct *task, int cpu)
{
	u64 key = (u64)task, now = bpf_ktime_get_ns();
	struct moves *known, first = {};
	struct move *move;

	if (!bpf_core_field_exists(task->rcu_read_lock_nesting) || !task->rcu_read_lock_nesting)
		return 0;
	known = bpf_map_lookup_elem(&moves, &key);
	if (!known) {
		bpf_map_update_elem(&moves, &key, &first, BPF_NOEXIST);
		known = bpf_map_lookup_elem(&moves, &key);
	}
	if (!known)
		return 0;
	move = &known->move[known->count % TSDT_MOVES];
	move->from = compat_task_cpu(task);
	move->to = cpu;
	move->end = trail_end(trail_of(move->from));
	move->begin = trail_end(trail_of(move->to));
	known->count++;
	known->last_ns = now;
	return stray(move->from, move->to);
}
