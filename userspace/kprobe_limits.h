// SPDX-License-Identifier: GPL-2.0-only
// What a backend that is exact all the same does not tell: the reason of its capability, which a terminal shows too.
#pragma once

#include <string_view>

namespace tsdroptrace {

constexpr std::string_view limits_on_5_10 = "with kprobes, since this kernel's modules have no type information: "
                                            "functions at hooks and queues are not told, nor "
                                            "a rule whose probe the kernel skips";
constexpr std::string_view limits_of_kprobes = "with kprobes, since this kernel lets no fentry be attached: a rule "
                                               "whose probe the kernel skips is not told";

} // namespace tsdroptrace
