// SPDX-License-Identifier: GPL-2.0-only
// UDP packets through the input hook of the host that scripts/vm/guest/incident sets up, and what each one takes.
#pragma once

#include <string>

#include "util/fd.h"

namespace bench {

// The addresses of scripts/vm/guest/incident. This host's own lies outside both ranges.
inline constexpr const char* accepted_source = "10.0.0.1";
inline constexpr const char* dropped_source = "100.100.2.136";
inline constexpr const char* range_without_accepted = "100.100.0.0/16";
inline constexpr const char* range_of_accepted = "10.0.0.1/32";

// From the provider's namespace over the veth pair. In a VM that counts instructions a nanosecond is an instruction.
class Packets {
public:
    explicit Packets(const char* source); // exits when it cannot be set up

    double accepted(unsigned count); // nanoseconds for each: sent, through the input hook, received
    double dropped(unsigned count);  // nanoseconds for each: sent, dropped in the input hook

private:
    void send_one();

    tsdroptrace::Fd receiver_, sender_;
};

// What a tracer does after it has been attached or detached (freeing, reading the ruleset) is over after this: the
// machine has had nothing to do for a while. Returns how many seconds it was busy, at most 10: some never rest.
double settle();

// "12,345"
std::string grouped(double value);

} // namespace bench
