// SPDX-License-Identifier: GPL-2.0-only
// --replay: reads a recording, frame by frame. The file may come from anyone.
#pragma once

#include <cstdint>
#include <istream>
#include <string>

#include "recording/format.h"

namespace tsdroptrace::recording {

// Receives what a recording holds, in its order, every value checked: causes passed decode::read_cause, drops
// decode::read_drop. meta comes first and once. A visitor that keeps values bounds how many.
class Visitor {
public:
    virtual ~Visitor() = default;
    virtual void meta(Meta) = 0;
    virtual void snapshot(resolve_rule::Snapshot) = 0;
    virtual void look(resolve_rule::Look) = 0;
    virtual void netns(const NetnsName&) = 0;
    virtual void reasons(decode::KernelNames) = 0; // all that are known from now on
    virtual void ruleset(RulesetChange) = 0;
    virtual void stopped(Stopped) = 0; // has a rule
    virtual void way(Way) = 0;
    virtual void evidence(evidence::Entry) = 0;
    virtual void cause(const tsdt_cause&) = 0; // again with higher counts: the last one of a key counts
    virtual void drop(const tsdt_drop&) = 0;
    virtual void flow(const tsdt_flow_key&, std::uint64_t packets) = 0;
    virtual void seen(const tsdt_seen_count&) = 0;
    virtual void lost(const LostCounts&) = 0;
    virtual void end(std::int64_t time_ns) = 0; // CLOCK_REALTIME; not called when the recording was cut
};

struct ReadResult {
    std::string warning; // one line when the recording was cut or is damaged; everything before that was delivered
};

// Fails, with nothing delivered, when `path` cannot be read or is not a recording that this version understands.
Result<ReadResult> read(const std::string& path, Visitor&);

// The same for an open stream; `name` is what messages call it.
Result<ReadResult> read(std::istream&, const std::string& name, Visitor&);

} // namespace tsdroptrace::recording
