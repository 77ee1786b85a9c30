// SPDX-License-Identifier: GPL-2.0-only
// Owns one file descriptor.
#pragma once

#include <utility>

#include <unistd.h>

namespace tsdroptrace {

class Fd {
public:
    Fd() = default;
    explicit Fd(int fd) : fd_(fd) {} // takes it over; a negative one means none
    Fd(Fd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
    Fd& operator=(Fd&& other) noexcept {
        if (this != &other) {
            reset();
            fd_ = std::exchange(other.fd_, -1);
        }
        return *this;
    }
    ~Fd() { reset(); }

    explicit operator bool() const { return fd_ >= 0; }
    int get() const { return fd_; }
    void reset() {
        if (fd_ >= 0)
            close(fd_);
        fd_ = -1;
    }

private:
    int fd_ = -1;
};

} // namespace tsdroptrace
