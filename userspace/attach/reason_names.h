// SPDX-License-Identifier: GPL-2.0-only
// The names of drop reasons, as the running kernel's own type information (BTF) tells them.
#pragma once

#include "decode/decode.h"

struct btf;
struct btf_type;

namespace tsdroptrace::attach {

// Adds the reasons of that type, if it is an enum of such: skb_drop_reason (5.17), or a subsystem's own (6.4). What is
// known already keeps its name.
void add_reasons(const btf* types, const btf_type* type, decode::KernelNames& names);

// Those of vmlinux, and of all modules that are there now, whatever else they do. Takes some 20 ms.
decode::KernelNames read_reasons();

} // namespace tsdroptrace::attach
