// SPDX-License-Identifier: GPL-2.0-only
// Gives the answer of a recording again, on any machine and without privileges.
#pragma once

#include "options.h"
#include "util/result.h"

namespace tsdroptrace {

// Fails when the file is not a recording that this version reads, or was cut: then after all that it holds.
Result<int> run_replay(const Options& options, bool stdout_is_tty);

} // namespace tsdroptrace
