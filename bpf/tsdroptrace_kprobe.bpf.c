// SPDX-License-Identifier: GPL-2.0-only
// The programs of tsdroptrace.bpf.c for 5.10, on kprobes: fentry needs type information, which modules have from 5.11.
// Userspace loads one object or the other.
#define TSDT_KPROBES
#include "ruleset_change.h"
#include "nft_trail.h"
#include "ipt_table.h"
#include "task_moves.h"
#include "ipt_target.h"
#include "drop.h"
#include "seen.h"

char LICENSE[] SEC("license") = "GPL";
