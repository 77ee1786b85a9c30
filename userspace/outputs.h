// SPDX-License-Identifier: GPL-2.0-only
// Which outputs the user asked for.
#pragma once

#include <cstdint>

#include "options.h"
#include "output/json.h"
#include "pipeline.h"
#include "util/result.h"

namespace tsdroptrace {

// Adds them to `pipeline`. Returns the JSON file's output, which `pipeline` owns, for reopening; null without one.
// Fails when that file cannot be opened.
Result<output::JsonOutput*> add_outputs(const Options& options, bool stdout_is_tty, Pipeline& pipeline);

std::int64_t realtime_ns(); // CLOCK_REALTIME

} // namespace tsdroptrace
