// SPDX-License-Identifier: GPL-2.0-only
// The programs of tsdroptrace.bpf.c for kernels where fentry is not to be had on netfilter's modules: 5.10 above all,
// whose modules have no type information. Userspace loads one object or the other.
#define TSDT_KPROBES
#include "ruleset_change.h"
#include "nft_trail.h"
#include "ipt_table.h"
#include "ipt_target.h"
#include "drop.h"

char LICENSE[] SEC("license") = "GPL";
