// SPDX-License-Identifier: GPL-2.0-only
#pragma once

#include "kernel_compat.h"

// Whether `text` begins with `wanted`, which is `size` bytes long (clang would call memcmp, which BPF lacks).
static __always_inline bool begins_with(const char *text, const char *wanted, u32 size)
{
	for (u32 i = 0; i < size; i++) {
		if (text[i] != wanted[i])
			return false;
	}
	return true;
}
