// SPDX-License-Identifier: GPL-2.0-only
// Errors are values here: a function that can fail returns Result<T>. Exceptions are left to what
// nobody can handle (out of memory, a broken invariant).
#pragma once

#include <string>
#include <utility>
#include <variant>

namespace tsdroptrace {

// Whose fault it is decides the exit code (shared contract: 0, 1, 2, 3).
enum class ErrorKind {
    other = 1,        // disk full, a broken pipe, our own bug
    command_line = 2, // what the user typed
    unsupported = 3,  // this kernel or these privileges cannot do it
};

struct Error {
    ErrorKind kind = ErrorKind::other;
    std::string message;  // one line: what was wrong, what was expected, what to type
    int error_number = 0; // errno, where a caller may want to tell (a closed pipe from a full disk)
};

template <typename T>
class [[nodiscard]] Result {
public:
    Result(T value) : state_(std::move(value)) {}
    Result(Error error) : state_(std::move(error)) {}

    explicit operator bool() const { return std::holds_alternative<T>(state_); }
    T& operator*() { return std::get<T>(state_); }
    const T& operator*() const { return std::get<T>(state_); }
    T* operator->() { return &std::get<T>(state_); }
    const T* operator->() const { return &std::get<T>(state_); }
    const Error& error() const { return std::get<Error>(state_); }

private:
    std::variant<T, Error> state_;
};

struct Ok {};
using Status = Result<Ok>;

} // namespace tsdroptrace
