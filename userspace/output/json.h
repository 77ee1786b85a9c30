// SPDX-License-Identifier: GPL-2.0-only
// JSON lines, as the contract has them (schema.h prints it as a JSON Schema). All ASCII: whatever outside
// text holds, a line can be shown on a terminal. Invalid UTF-8 becomes U+FFFD.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "output/output.h"
#include "output/sink.h"

namespace tsdroptrace::output {

// One line each, with its newline. `host` and the time (CLOCK_REALTIME ns) are what the values do not hold.
std::string json_line(const Start& start);
std::string json_line(const Drop& drop, const std::string& host);
std::string json_line(const Lost& lost, const std::string& host, std::int64_t time_ns);
std::string json_line(const RulesetChange& change, const std::string& host);
std::string json_line(const Stopped& stopped, const std::string& host);
std::string json_line(const Summary& summary, const std::string& host);
std::string json_line(const CheckVerdict& verdict, const std::string& host, std::int64_t time_ns);

class JsonOutput : public Output {
public:
    // `noise`: write a line for noise as well; otherwise it is only in the summary, under hidden.
    // `now`: the clock for the time of a "lost" line, CLOCK_REALTIME ns.
    JsonOutput(Sink sink, bool noise, std::function<std::int64_t()> now)
        : sink_(std::move(sink)), noise_(noise), now_(std::move(now)) {}

    Status start(const Start& start) override;
    Status drop(const Drop& drop, bool new_cause) override;
    Status lost(const Lost& lost) override;
    Status ruleset(const RulesetChange& change) override;
    Status stopped(const Stopped& stopped) override;
    Status check(const CheckVerdict& verdict, std::int64_t time_ns) override;
    Status summary(const Summary& summary) override;
    Status progress(const Summary&) override { return Ok{}; }

    // After a log rotation.
    Status reopen() { return sink_.reopen(); }

private:
    // A line that can be written again after some could not is preceded by one that says how many.
    Status write(const std::string& line);

    Sink sink_;
    bool noise_;
    std::function<std::int64_t()> now_;
    std::string host_;
    std::uint64_t reported_ = 0;       // of the sink's failed lines
    std::int64_t last_written_ns_ = 0; // when a line last got through
};

} // namespace tsdroptrace::output
