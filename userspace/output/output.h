// SPDX-License-Identifier: GPL-2.0-only
// Where the pipeline ends. One interface, two forms: text for a terminal, JSON lines for programs.
#pragma once

#include "model.h"
#include "util/result.h"

namespace tsdroptrace::output {

// Every call writes whole lines at once, or nothing, or returns an Error of one line that names the file and
// what went wrong (EPIPE, ENOSPC...). The output stays usable after an error: the next call tries again.
class Output {
public:
    Output() = default;
    Output(const Output&) = delete;
    Output& operator=(const Output&) = delete;
    virtual ~Output() = default;

    virtual Status start(const Start& start) = 0;              // first, once, with every probe attached
    virtual Status drop(const Drop& drop, bool new_cause) = 0; // new_cause: Aggregator::first_of_cause said so
    virtual Status lost(const Lost& lost) = 0;
    virtual Status ruleset(const RulesetChange& change) = 0;
    virtual Status stopped(const Stopped& stopped) = 0;
    virtual Status check(const CheckVerdict& verdict, std::int64_t time_ns) = 0; // before the last summary
    virtual Status summary(const Summary& summary) = 0;
    virtual Status progress(const Summary& summary) = 0; // may be called often; outputs without a live view ignore it
};

} // namespace tsdroptrace::output
