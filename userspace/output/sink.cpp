// SPDX-License-Identifier: GPL-2.0-only
#include "output/sink.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>
#include <utility>

namespace tsdroptrace::output {

namespace {

Error cannot(std::string_view what, std::string_view name, int error) {
    const char* hint = error == ELOOP    ? " (it is a symbolic link; give the path that it leads to)"
                       : error == ENXIO  ? " (a named pipe that nobody reads)"
                       : error == EPIPE  ? " (whoever read it has gone)"
                       : error == ENOSPC ? " (counts are not affected)"
                                         : "";
    return {ErrorKind::other, fmt::format("cannot {} {}: {}{}", what, name, std::strerror(error), hint), error};
}

// Whether a regular file ends within a line. Anything else cannot be asked, and counts as not.
bool ends_mid_line(int fd) {
    struct stat st {};
    char last = '\n';
    return fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && st.st_size > 0 && pread(fd, &last, 1, st.st_size - 1) == 1 &&
           last != '\n';
}

Result<int> open_for_append(const std::string& path) {
    // Reading is for ends_mid_line. Not blocking is for a named pipe that nobody reads: an error, not a hang.
    constexpr int flags = O_APPEND | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY;
    int fd = ::open(path.c_str(), flags | O_RDWR, 0644);
    struct stat st {};
    if (fd >= 0 && fstat(fd, &st) == 0 && S_ISFIFO(st.st_mode)) { // opened for reading too, it would read itself
        ::close(fd);
        fd = ::open(path.c_str(), flags | O_WRONLY, 0644);
    }
    if (fd < 0)
        return cannot("open", path, errno);
    return fd;
}

} // namespace

Result<Sink> Sink::open_file(const std::string& path) {
    const Result<int> fd = open_for_append(path);
    if (!fd)
        return fd.error();
    Sink sink(*fd, path, true);
    sink.mid_line_ = ends_mid_line(*fd);
    return sink;
}

Sink Sink::borrow(int fd, std::string name) {
    return {fd, std::move(name), false};
}

Sink::Sink(Sink&& other) noexcept
    : fd_(std::exchange(other.fd_, -1)), name_(std::move(other.name_)), owned_(other.owned_),
      mid_line_(other.mid_line_), failed_lines_(other.failed_lines_) {}

Sink& Sink::operator=(Sink&& other) noexcept {
    std::swap(fd_, other.fd_);
    std::swap(name_, other.name_);
    std::swap(owned_, other.owned_);
    std::swap(mid_line_, other.mid_line_);
    std::swap(failed_lines_, other.failed_lines_);
    return *this;
}

Sink::~Sink() {
    if (owned_ && fd_ >= 0)
        ::close(fd_);
}

Status Sink::write(std::string_view lines) {
    if (lines.empty())
        return Ok{};
    const std::string ended = mid_line_ ? '\n' + std::string(lines) : std::string{};
    std::string_view rest = mid_line_ ? ended : lines;
    std::size_t written = 0;
    bool within_line = mid_line_;
    while (!rest.empty()) {
        const ssize_t n = ::write(fd_, rest.data(), rest.size());
        if (n > 0) {
            written += static_cast<std::size_t>(n);
            within_line = rest[static_cast<std::size_t>(n) - 1] != '\n';
            rest.remove_prefix(static_cast<std::size_t>(n));
            continue;
        }
        const int error = n == 0 ? EIO : errno;
        if (error == EINTR)
            continue;
        if (error == EAGAIN) {
            pollfd ready{fd_, POLLOUT, 0};
            if (::poll(&ready, 1, -1) >= 0 || errno == EINTR)
                continue;
        }
        mid_line_ = within_line;
        undo(written);
        failed_lines_ += static_cast<std::uint64_t>(std::ranges::count(lines, '\n'));
        return cannot("write to", name_, error);
    }
    mid_line_ = false; // text that does not end in a newline was meant so
    return Ok{};
}

// Takes back what got out of a write that failed halfway. Only in a regular file of ours: in another one the
// offset belongs to whoever opened it, and a pipe gives nothing back.
void Sink::undo(std::size_t written) {
    struct stat st {};
    if (written == 0 || !owned_ || fstat(fd_, &st) != 0 || !S_ISREG(st.st_mode))
        return;
    if (::ftruncate(fd_, std::max<off_t>(st.st_size - static_cast<off_t>(written), 0)) == 0)
        mid_line_ = ends_mid_line(fd_);
}

Status Sink::reopen() {
    if (!owned_)
        return Ok{};
    const Result<int> fd = open_for_append(name_);
    if (!fd)
        return fd.error();
    ::close(fd_);
    fd_ = *fd;
    mid_line_ = ends_mid_line(fd_);
    return Ok{};
}

} // namespace tsdroptrace::output
