// SPDX-License-Identifier: GPL-2.0-only
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "util/result.h"

namespace tsdroptrace::output {

// Writes whole lines to a file or a descriptor. A line that could not be written is counted, and never
// leaves a half line before the next one: in a file of ours it is cut off again, elsewhere (or where that
// fails too) the half line is ended before anything else is written.
//
// The process must ignore SIGPIPE, so that a closed pipe is an error here.
class Sink {
public:
    // Opens for appending, creating it with mode 0644. Follows no symbolic link in the last component: this
    // runs as root, and the name may lie in a directory that others can write to. A last line that an
    // earlier run left unfinished is ended first. Fails with one line that names the path.
    static Result<Sink> open_file(const std::string& path);

    // Borrows a descriptor (standard output); `name` is for messages. A descriptor that does not block is
    // waited for.
    static Sink borrow(int fd, std::string name);

    Sink(Sink&& other) noexcept;
    Sink& operator=(Sink&& other) noexcept;
    ~Sink();

    // Lines with their newlines, as one: after an Error none of them counts as written. (Text without a
    // newline at its end can be written too, to a terminal.)
    Status write(std::string_view lines);

    // Opens the path again, after a log rotation (files only; nothing to do for a descriptor). On an Error
    // the old file stays in use.
    Status reopen();

    // Lines that could not be written, ever.
    std::uint64_t failed_lines() const { return failed_lines_; }

private:
    Sink(int fd, std::string name, bool owned) : fd_(fd), name_(std::move(name)), owned_(owned) {}
    void undo(std::size_t written);

    int fd_ = -1;
    std::string name_;
    bool owned_ = false;
    bool mid_line_ = false; // what is out there ends in half a line
    std::uint64_t failed_lines_ = 0;
};

} // namespace tsdroptrace::output
