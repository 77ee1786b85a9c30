// SPDX-License-Identifier: GPL-2.0-only
#include "recording/writer.h"

#include <cerrno>
#include <cstring>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fmt/format.h>

#include "util/text.h"

namespace tsdroptrace::recording {
namespace {

constexpr std::size_t buffer_size = 64 * 1024;

template <typename T>
std::span<const std::byte> bytes_of(const T& value) {
    return std::as_bytes(std::span(&value, 1));
}

std::span<const std::byte> bytes_of(const std::string& text) {
    return std::as_bytes(std::span(text));
}

Error cannot_write(const std::string& path, std::string_view why) {
    return {ErrorKind::other, fmt::format("--record {}: {}", printable(path), why)};
}

// 0, or the errno of the write that failed.
int write_all(int fd, std::span<const std::byte> bytes) {
    while (!bytes.empty()) {
        const ssize_t count = ::write(fd, bytes.data(), bytes.size());
        if (count > 0) {
            bytes = bytes.subspan(static_cast<std::size_t>(count));
        } else if (count == 0) {
            return ENOSPC;
        } else if (errno != EINTR) {
            return errno;
        }
    }
    return 0;
}

} // namespace

Result<Writer> Writer::create(const std::string& path) {
    // O_NONBLOCK: a FIFO must not make us wait for its reader. Emptied only once it is known to be ours.
    Fd fd(::open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0600));
    if (!fd) {
        return cannot_write(path, errno == ELOOP ? "is a symbolic link: expected a new or a regular file"
                                                 : std::strerror(errno));
    }
    struct stat status {};
    if (::fstat(fd.get(), &status) != 0) {
        return cannot_write(path, std::strerror(errno));
    }
    if (!S_ISREG(status.st_mode)) {
        return cannot_write(path, "is not a regular file: expected a new or a regular file");
    }
    // In a directory like /tmp someone else may have put the file there to read what root records.
    if (status.st_uid != ::geteuid()) {
        return cannot_write(path, "belongs to another user: remove it or name another file");
    }
    if (::fchmod(fd.get(), 0600) != 0 || ::ftruncate(fd.get(), 0) != 0) {
        return cannot_write(path, std::strerror(errno));
    }

    Writer writer(path, std::move(fd));
    const Header header;
    const auto bytes = bytes_of(header);
    writer.buffer_.assign(bytes.begin(), bytes.end());
    if (const Status flushed = writer.flush(); !flushed) {
        return flushed.error();
    }
    return writer;
}

Writer::~Writer() {
    (void)flush();
}

Status Writer::append(FrameType type, std::span<const std::byte> payload) {
    if (!fd_) {
        ++lost_frames_;
        return Ok{};
    }
    const FrameHeader header{static_cast<std::uint32_t>(type), static_cast<std::uint32_t>(payload.size())};
    const auto header_bytes = bytes_of(header);
    buffer_.insert(buffer_.end(), header_bytes.begin(), header_bytes.end());
    buffer_.insert(buffer_.end(), payload.begin(), payload.end());
    ++buffered_frames_;
    return buffer_.size() < buffer_size ? Status(Ok{}) : flush();
}

Status Writer::flush() {
    if (!fd_ || buffer_.empty()) {
        return Ok{};
    }
    const int error = write_all(fd_.get(), buffer_);
    if (error == 0) {
        written_ += buffer_.size();
        buffered_frames_ = 0;
        buffer_.clear();
        if (buffer_.capacity() > 4 * buffer_size) { // after a large ruleset
            buffer_.shrink_to_fit();
        }
        return Ok{};
    }
    // What a full disk left of the last frames is cut off, so that the rest can be replayed. If even that fails,
    // the reader finds the cut.
    [[maybe_unused]] const int cut = ::ftruncate(fd_.get(), static_cast<off_t>(written_));
    fd_.reset();
    lost_frames_ += buffered_frames_;
    buffer_ = {};
    return cannot_write(path_, fmt::format("{}: the recording ends here, tracing goes on", std::strerror(error)));
}

Status Writer::append_json(FrameType type, const std::string& text, std::uint32_t max, std::string_view what) {
    if (text.size() > max) {
        ++lost_frames_;
        return cannot_write(path_, fmt::format("{} of {} KiB is too large to record: expected {} at most", what,
                                               text.size() >> 10, max >> 10));
    }
    return append(type, bytes_of(text));
}

Status Writer::meta(const Meta& meta) {
    return append_json(FrameType::meta, to_json(meta), max_meta, "a description of the run");
}

Status Writer::netns(const NetnsName& netns) {
    return append_json(FrameType::netns, to_json(netns), max_meta, "the name of a network namespace");
}

Status Writer::reasons(const decode::KernelNames& names) {
    return append_json(FrameType::reasons, to_json(names), max_meta, "the names of drop reasons");
}

Status Writer::ruleset(const RulesetChange& change) {
    return append_json(FrameType::ruleset, to_json(change), max_snapshot, "a change of a ruleset");
}

Status Writer::stopped(const Stopped& stopped) {
    return append_json(FrameType::stopped, to_json(stopped), max_meta, "the end of drops");
}

Status Writer::way(const Way& way) {
    return append_json(FrameType::way, to_json(way), max_evidence, "the way to a range");
}

Status Writer::evidence(const evidence::Entry& entry) {
    return append_json(FrameType::evidence, to_json(entry), max_evidence, "the evidence of a drop");
}

Status Writer::snapshot(const resolve_rule::Snapshot& snapshot) {
    return append_json(FrameType::snapshot, to_json(snapshot), max_snapshot, "a ruleset");
}

Status Writer::look(const resolve_rule::Look& look) {
    return append_json(FrameType::look, to_json(look), max_snapshot, "a look at the counters of a ruleset");
}

Status Writer::cause(const tsdt_cause& cause) {
    return append(FrameType::cause, bytes_of(cause));
}

Status Writer::drop(const tsdt_drop& drop) {
    return append(FrameType::drop, bytes_of(drop));
}

Status Writer::flow(const tsdt_flow_key& key, std::uint64_t packets) {
    return append(FrameType::flow, bytes_of(Flow{key, 0, packets}));
}

Status Writer::seen(const tsdt_seen_count& count) {
    return append(FrameType::seen, bytes_of(count));
}

Status Writer::lost(const LostCounts& counts) {
    return append(FrameType::lost, bytes_of(counts));
}

Status Writer::finish(std::int64_t end_time_ns) {
    if (!fd_) {
        return Ok{}; // given up, and said so
    }
    if (const Status appended = append(FrameType::end, bytes_of(End{end_time_ns})); !appended) {
        return appended;
    }
    if (const Status flushed = flush(); !flushed) {
        return flushed;
    }
    const int error = ::fsync(fd_.get()) == 0 ? 0 : errno; // some file systems tell only now that the disk is full
    fd_.reset();
    return error == 0 ? Status(Ok{}) : Status(cannot_write(path_, std::strerror(error)));
}

} // namespace tsdroptrace::recording
