// SPDX-License-Identifier: GPL-2.0-only
// All programs in one object, so that userspace reads the kernel's types once. Userspace decides which of them
// to load: those whose function this kernel has. Read them in the order in which a packet meets them.
#include "ruleset_change.h" // where rulesets change
#include "nft_trail.h"      // nf_tables: the trail of a packet through the chains
#include "ipt_table.h"      // legacy tables: the counters that move
#include "task_moves.h"     // where processes are moved between CPUs
#include "ipt_target.h"     // legacy tables: extension targets that drop
#include "hook_function.h"  // hook functions that have no rules
#include "queue.h"          // queues for programs in userspace
#include "drop.h"           // where packets die
#include "seen.h"           // packets that pass

char LICENSE[] SEC("license") = "GPL";
