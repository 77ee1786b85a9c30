// SPDX-License-Identifier: GPL-2.0-only
#pragma once

#include "kernel_compat.h"

// Whether `text` begins with `wanted`, which is `size` bytes long (clang would call memcmp, which BPF lacks). All bytes
// are looked at: each branch is a way that the verifier follows.
static __always_inline bool begins_with(const char *text, const char *wanted, u32 size)
{
	u8 differs = 0;

	for (u32 i = 0; i < size; i++)
		differs |= text[i] ^ wanted[i];
	return !differs;
}
