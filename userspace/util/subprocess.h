// SPDX-License-Identifier: GPL-2.0-only
// Children that answer a question and go away: bounded in time, output and memory, and out of reach of
// the terminal's Ctrl-C, which must not tear a ruleset in half.
#pragma once

#include <chrono>
#include <cstddef>
#include <functional>
#include <string>
#include <vector>

#include "util/result.h"

namespace tsdroptrace {

struct ChildLimits {
    std::chrono::milliseconds time{6000}; // long: the machine may be busy, or the ruleset large
    std::size_t output = 16u << 20;       // bytes of standard output
};

struct ChildOutput {
    int exit_code = 0;
    std::string out;
    std::string err; // the first 4 KB
};

// Runs the program at an absolute path, without a shell, with a fixed environment (LC_ALL=C) and nothing on
// standard input, in the caller's network namespace, and waits for it. An exit code other than 0 is an
// answer; an error is: it could not be started, a signal ended it, it took too long (it is killed) or it
// wrote too much (likewise).
Result<ChildOutput> run_program(const std::string& path, const std::vector<std::string>& arguments,
                                const ChildLimits& limits = {});

// Runs `body` in a forked copy of this process that has file descriptor 1 and 2 as above, and at most half a
// gigabyte of memory on top of what it starts with; the exit code is what `body` returns. For libraries that
// may abort() or that keep what they allocate. `body` must write to the descriptors, not to stdout, whose buffer
// may hold output of this process.
Result<ChildOutput> run_forked(const std::function<int()>& body, const ChildLimits& limits = {});

} // namespace tsdroptrace
