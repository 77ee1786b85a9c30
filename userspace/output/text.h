// SPDX-License-Identifier: GPL-2.0-only
// The terminal view: the first drop of each cause in full, then counts.
#pragma once

#include <cstdint>
#include <string>

#include "output/output.h"
#include "output/sink.h"

namespace tsdroptrace::output {

struct TextOptions {
    bool color = false;
    bool tty = false;     // there is a cursor to go back with: keep one line of counts up to date
    bool verbose = false; // show noise too
    bool quiet = false;   // the final summary and nothing else
    unsigned width = 80;  // columns; no line is wider, except commands to paste
};

class TextOutput : public Output {
public:
    TextOutput(Sink sink, TextOptions options) : sink_(std::move(sink)), options_(options) {}

    Status start(const Start& start) override;
    Status drop(const Drop& drop, bool new_cause) override;
    Status lost(const Lost& lost) override;
    Status ruleset(const RulesetChange& change) override; // one that leaves the drops as they were is for verbose
    Status stopped(const Stopped& stopped) override;
    Status check(const CheckVerdict& verdict, std::int64_t time_ns) override;
    Status summary(const Summary& summary) override;
    Status progress(const Summary& summary) override; // drawn at most every 200 ms of Summary::until_ns

private:
    // Text that stays, in place of the line of counts if there is one.
    Status print(std::string text);

    Sink sink_;
    TextOptions options_;
    std::string filter_;
    bool live_line_ = false; // the line of counts is on the screen
    std::int64_t drawn_ns_ = 0;
};

} // namespace tsdroptrace::output
