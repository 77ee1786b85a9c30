// SPDX-License-Identifier: GPL-2.0-only
// The programs of tsdroptrace.bpf.c for Linux 5.10, on kprobes: fentry needs type information, which modules have from 5.11.
// What else 5.10 does not have is left out, or done in another way (compat_5_10.h).
#define TSDT_KPROBES
#define TSDT_LINUX_5_10
#include "ruleset_change.h"
#include "nft_trail.h"
#include "ipt_table.h"
#include "task_moves.h"
#include "ipt_target.h"
#include "drop.h"
#include "seen.h"

char LICENSE[] SEC("license") = "GPL";
