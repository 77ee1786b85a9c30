// SPDX-License-Identifier: GPL-2.0-only
// The user's own command, which is traced while it runs. It finds everything as if it had been typed without us: the
// terminal, the descriptors, the signals, the limits. What it must not find is ours: capabilities, descriptors, and
// that we may gain no privileges any more. So it is forked before any of that is there, and waits until we trace.
#pragma once

#include <chrono>
#include <optional>
#include <string>
#include <vector>

#include <sys/types.h>

#include "command/user.h"
#include "util/fd.h"
#include "util/result.h"

namespace tsdroptrace::command {

using Clock = std::chrono::steady_clock;

struct Request {
    std::vector<std::string> words; // the program, looked up in PATH as a shell does, and its arguments
    std::optional<User> user;       // none: as we do
    bool output_to_stderr = false;  // standard output is taken
};

class Command {
public:
    // What the answer to a packet that the command has left behind gets, to come and be dropped: longer than most round
    // trips on earth, shorter than anybody minds.
    static constexpr std::chrono::milliseconds aftermath{500};
    // What a command gets to end in, after it was told for the last time.
    static constexpr std::chrono::milliseconds last_chance{1000};

    // Forks, while there is one thread and nothing is open that the command should not see. The child is that user when
    // this returns, and waits; it goes away with us, or with this object, when it is never started.
    static Result<Command> prepare(const Request& request);

    Command(Command&&) noexcept = default;
    Command& operator=(Command&&) = delete;
    ~Command();

    void start(); // once
    bool started() const { return started_; }

    // Whether it has ended, if it was started. Kills it once its last chance is over.
    bool ended(Clock::time_point now);
    // Whether what it has left behind has had its time, too.
    bool over(Clock::time_point now);

    // Of a command that has ended, as a shell has it: 128 + N where signal N ended it, 127 where there is no such
    // program, 126 where there is one that cannot be run.
    int exit_code() const { return exit_code_; }
    // Why it could not be run, if that is how it ended.
    const std::optional<Error>& failure() const { return failure_; }

    // We have been sent SIGINT; where the terminal did it, the command has been, too. The first time it may end as it
    // likes; the second time all comes to its end.
    void interrupted(bool by_terminal, Clock::time_point now);
    // We have been sent SIGTERM: that is for the command.
    void terminated();

private:
    Command(std::string name, pid_t pid, Fd channel)
        : name_(std::move(name)), pid_(pid), channel_(std::move(channel)) {}
    void send(int signal);

    std::string name_;
    pid_t pid_;
    Fd channel_;
    bool started_ = false;
    bool interrupted_ = false, at_once_ = false;
    std::optional<Clock::time_point> ended_, kill_;
    int exit_code_ = 0;
    std::optional<Error> failure_;
};

} // namespace tsdroptrace::command
