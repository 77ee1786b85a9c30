// SPDX-License-Identifier: GPL-2.0-only
// --record: writes a recording. Not for more than one thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "recording/format.h"
#include "util/fd.h"

namespace tsdroptrace::recording {

class Writer {
public:
    // Creates the file for its owner alone, since it holds addresses, or empties the one that is there. Fails
    // when it cannot be written, is a symbolic link or no regular file, or belongs to someone else.
    static Result<Writer> create(const std::string& path);

    Writer(Writer&&) = default;
    Writer& operator=(Writer&&) = delete;
    ~Writer(); // without finish(): what was handed over is written, the end is missing

    // Each hands over one frame; meta comes first. The first call that cannot write fails with one line for the
    // user and leaves a file that ends with a whole frame. Later calls succeed and count in lost_frames():
    // tracing goes on without its recording.
    Status meta(const Meta&);
    Status snapshot(const resolve_rule::Snapshot&); // one larger than max_snapshot fails and is left out alone
    Status look(const resolve_rule::Look&);
    Status netns(const NetnsName&);
    Status reasons(const decode::KernelNames&);
    Status ruleset(const RulesetChange&);
    Status stopped(const Stopped&);
    Status way(const Way&);
    Status evidence(const evidence::Entry&);
    Status cause(const tsdt_cause&);
    Status drop(const tsdt_drop&);
    Status flow(const tsdt_flow_key&, std::uint64_t packets);
    Status seen(const tsdt_seen_count&);
    Status lost(const LostCounts&);

    // Writes out what waits in memory (64 KiB at most); call it every second or so.
    Status flush();

    // Marks the recording as complete and closes it. `end_time_ns` is CLOCK_REALTIME.
    Status finish(std::int64_t end_time_ns);

    std::uint64_t lost_frames() const { return lost_frames_; }

private:
    Writer(std::string path, Fd fd) : path_(std::move(path)), fd_(std::move(fd)) {}

    Status append(FrameType, std::span<const std::byte> payload);
    Status append_json(FrameType, const std::string& text, std::uint32_t max, std::string_view what);

    std::string path_;
    Fd fd_; // none: finished, or given up
    std::vector<std::byte> buffer_;
    std::uint64_t buffered_frames_ = 0;
    std::uint64_t written_ = 0; // bytes in the file: the header and whole frames
    std::uint64_t lost_frames_ = 0;
};

} // namespace tsdroptrace::recording
