// SPDX-License-Identifier: GPL-2.0-only
// Traces the running kernel until it is told to stop.
#pragma once

#include "options.h"
#include "util/result.h"

namespace tsdroptrace {

// Returns when the duration or the count is reached, or SIGINT or SIGTERM came; SIGHUP reopens the JSON file. With a
// command: when that has ended; these signals are its own then. Returns the exit code: the command's, if it was
// started. Fails before the start line (ErrorKind::unsupported, or other), or, with everything that could be written
// written, because an output did.
Result<int> run_live(const Options& options, bool stdout_is_tty);

} // namespace tsdroptrace
