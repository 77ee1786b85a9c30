// SPDX-License-Identifier: GPL-2.0-only
// What a healthy machine drops all day.
#pragma once

#include <span>
#include <string_view>

namespace tsdroptrace::explain {

struct Noise {
    std::string_view reason;       // without SKB_DROP_REASON_
    std::string_view symbol;       // function that freed the packet; empty for any
    int icmp_type = any_icmp_type; // only packets of this ICMP type

    static constexpr int any_icmp_type = -1;
};

std::span<const Noise> noise();

} // namespace tsdroptrace::explain
