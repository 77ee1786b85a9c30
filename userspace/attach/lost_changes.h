// SPDX-License-Identifier: GPL-2.0-only
#pragma once

#include <chrono>
#include <cstdint>

namespace tsdroptrace::attach {

// Whether the end of a ruleset's change was missed: the program was at work on that CPU already, or the change began
// between the attaching of two programs. Until that is noticed, the ruleset seems to be changing all the while.
class LostChanges {
public:
    using TimePoint = std::chrono::steady_clock::time_point;
    // A change that takes longer, or others that end meanwhile, do no harm: an end too many is not counted.
    static constexpr std::chrono::seconds longest{10};

    // Ask every now and then. True: nothing has begun or ended for so long that nothing can be under way.
    bool are_there(std::uint32_t generation, std::int32_t changing, TimePoint now) {
        if (changing == 0 || generation != generation_ || !waiting_) {
            generation_ = generation;
            since_ = now;
            waiting_ = changing != 0;
            return false;
        }
        return now - since_ >= longest;
    }

private:
    std::uint32_t generation_ = 0;
    TimePoint since_{};
    bool waiting_ = false;
};

} // namespace tsdroptrace::attach
