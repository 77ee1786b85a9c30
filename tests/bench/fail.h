// SPDX-License-Identifier: GPL-2.0-only
#pragma once

#include <cstdio>
#include <cstdlib>
#include <utility>

#include <fmt/format.h>

namespace bench {

// The benchmark could not measure, which is not the same as a limit that is not kept: exit code 2.
template <typename... Args>
[[noreturn]] void fail(fmt::format_string<Args...> format, Args&&... args) {
    std::fflush(stdout);
    fmt::print(stderr, "bench: {}\n", fmt::format(format, std::forward<Args>(args)...));
    std::exit(2);
}

} // namespace bench
