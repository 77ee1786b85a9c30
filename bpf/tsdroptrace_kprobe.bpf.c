// SPDX-License-Identifier: GPL-2.0-only
// The programs of tsdroptrace.bpf.c, attached by kprobes, for kernels that have all that these need but fentry.
#define TSDT_KPROBES
#include "ruleset_change.h"
#include "nft_trail.h"
#include "ipt_table.h"
#include "task_moves.h"
#include "ipt_target.h"
#include "hook_function.h"
#include "queue.h"
#include "drop.h"
#include "seen.h"

char LICENSE[] SEC("license") = "GPL";
