// SPDX-License-Identifier: GPL-2.0-only
// tsdroptrace as a user starts it, and what it said.
#pragma once

#include <cstdint>
#include <string>

#include <sys/types.h>

namespace bench {

struct Memory {
    std::uint64_t resident = 0, resident_peak = 0; // bytes, of the process
    std::uint64_t maps = 0;                        // bytes, of the BPF maps that it holds
};

// What its JSON lines say of drops.
struct Tally {
    std::uint64_t shown = 0;   // drop lines
    std::uint64_t lost = 0;    // sum of the lost lines
    std::uint64_t counted = 0; // packets that rules dropped, by the last summary
};

class TracerProcess {
public:
    // Starts `tsdroptrace --json --dst RANGE`, found in the PATH, and returns when it has written its start line.
    // `seen`: it counts the packets that pass, too.
    explicit TracerProcess(const std::string& range, bool seen = true);
    ~TracerProcess();
    TracerProcess(const TracerProcess&) = delete;
    TracerProcess& operator=(const TracerProcess&) = delete;

    double start_seconds() const { return start_seconds_; } // until the start line
    Memory memory() const;
    void wait_until_quiet() const; // until it has had nothing to write for a while
    void stop();                   // as a user does, with a signal; it has to end with 0
    Tally tally() const;           // after stop()

private:
    pid_t pid_ = -1;
    double start_seconds_ = 0;
};

} // namespace bench
