// SPDX-License-Identifier: GPL-2.0-only
// Kernel types for arm64: what all architectures share. Nothing of its own yet.
#pragma once

#include "../kernel_types.h"
