// SPDX-License-Identifier: GPL-2.0-only
// A few real packets to one target, and what comes back. What is on its way in between is the tracer's to say.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "check/target.h"
#include "model.h"
#include "util/result.h"

namespace tsdroptrace::check {

using Clock = std::chrono::steady_clock;

// An ICMP error that a packet met with, or would have: the kernel reports some of its own in these words.
struct IcmpError {
    std::uint8_t type = 0, code = 0;
    Address from; // who sent it; other where that is not known
    bool operator==(const IcmpError&) const = default;
};

enum class Outcome {
    answered, // UDP: a datagram, whatever it says; TCP: a connection; ICMP: an echo reply
    reset,    // TCP: a RST
    error,    // an ICMP error; of TCP before Linux 5.18 not which, and a RST is not told from a port unreachable
    local,    // this machine did not send it, or gave up itself
    silence,  // nothing came. Of UDP that is no proof: a service may have nothing to say to what it does not understand
};

struct Answer {
    Outcome outcome = Outcome::silence;
    int error_number = 0;                   // of `reset` and `local`, and of `error`: what the socket said
    std::optional<IcmpError> icmp;          // of `error`
    Address local;                          // where the packets came from, as far as that was decided
    std::vector<std::uint16_t> local_ports; // source ports; of ICMP the numbers of the echoes. Tells ours from others
    unsigned sent = 0;                      // packets that the kernel took from us (a SYN it repeats counts once)
};

struct Plan {
    unsigned attempts = 3;
    std::chrono::milliseconds each{600}; // until the next one; the last one waits as long
};

// Goes on whenever it is asked, and never waits: the caller has a tracer to read.
class Probe {
public:
    // Opens the sockets, and sends nothing yet. Needs privileges for ICMP only, where net.ipv4.ping_group_range gives
    // it to nobody; fails without them (ErrorKind::unsupported).
    static Result<Probe> open(const Target& target, const Plan& plan = {});
    Probe(Probe&&) noexcept;
    ~Probe();

    // What came of it, once that is known: at the first answer, or when the last attempt has had its time.
    std::optional<Answer> step(Clock::time_point now);

private:
    class State;
    explicit Probe(std::unique_ptr<State> state);
    std::unique_ptr<State> state_;
};

} // namespace tsdroptrace::check
