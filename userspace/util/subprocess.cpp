// SPDX-License-Identifier: GPL-2.0-only
#include "util/subprocess.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>

#include <fcntl.h>
#include <fmt/core.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include "util/fd.h"

namespace tsdroptrace {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::size_t max_err = 4096;
constexpr rlim_t max_child_memory = 512u << 20;

struct Pipe {
    Fd read, write;
};

Result<Pipe> make_pipe() {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0)
        return Error{ErrorKind::other, fmt::format("cannot make a pipe: {}", std::strerror(errno))};
    return Pipe{Fd(ends[0]), Fd(ends[1])};
}

// In the child. Only async-signal-safe calls: another thread may have held any lock at the fork.
void become_quiet_child(int out, int err) {
    setpgid(0, 0); // Ctrl-C is for tsdroptrace
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (int signal : {SIGINT, SIGTERM, SIGHUP, SIGPIPE, SIGCHLD, SIGUSR1, SIGUSR2})
        std::signal(signal, SIG_DFL);
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, nullptr);

    // Above 2 first: the pipes may have got those numbers if the parent was started without them.
    out = fcntl(out, F_DUPFD_CLOEXEC, 3);
    err = fcntl(err, F_DUPFD_CLOEXEC, 3);
    int null = open("/dev/null", O_RDONLY | O_CLOEXEC);
    if (null < 0 || dup2(null, 0) < 0 || dup2(out, 1) < 0 || dup2(err, 2) < 0)
        _exit(126);
    fcntl(0, F_SETFD, 0); // where /dev/null was opened as 0 and dup2 left its flag alone
}

int milliseconds_left(Clock::time_point deadline) {
    auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now()).count();
    return static_cast<int>(std::clamp<long long>(left + 1, 0, 1 << 20));
}

enum class Ended { closed, too_late, too_much };

// Reads both pipes until the child has closed them, or a limit is met.
Ended collect(Pipe& out, Pipe& err, const ChildLimits& limits, Clock::time_point deadline, ChildOutput& result) {
    std::array<char, 16384> buffer;
    while (out.read || err.read) {
        std::array<pollfd, 2> fds{{{out.read.get(), POLLIN, 0}, {err.read.get(), POLLIN, 0}}};
        int ready = poll(fds.data(), fds.size(), milliseconds_left(deadline));
        if (ready < 0 && errno == EINTR)
            continue;
        if (ready <= 0 || Clock::now() >= deadline)
            return Ended::too_late;
        for (std::size_t i = 0; i < fds.size(); i++) {
            if (!fds[i].revents)
                continue;
            Fd& fd = i == 0 ? out.read : err.read;
            ssize_t count = read(fd.get(), buffer.data(), buffer.size());
            if (count < 0 && errno == EINTR)
                continue;
            if (count <= 0) {
                fd.reset();
                continue;
            }
            auto size = static_cast<std::size_t>(count);
            if (i == 0) {
                if (result.out.size() + size > limits.output)
                    return Ended::too_much;
                result.out.append(buffer.data(), size);
            } else {
                result.err.append(buffer.data(), std::min(size, max_err - result.err.size()));
            }
        }
    }
    return Ended::closed;
}

// Whether the child ended before the deadline; `status` as waitpid gives it, or -1 if somebody else reaped it.
bool wait_until(pid_t pid, Clock::time_point deadline, int& status) {
    for (;;) {
        pid_t got = waitpid(pid, &status, WNOHANG);
        if (got == pid)
            return true;
        if (got < 0 && errno != EINTR) {
            status = -1;
            return true;
        }
        if (Clock::now() >= deadline)
            return false;
        poll(nullptr, 0, 1); // it has closed its output: its end is a matter of microseconds
    }
}

Result<ChildOutput> supervise(const std::string& what, const std::function<int()>& body, const ChildLimits& limits) {
    auto out = make_pipe();
    if (!out)
        return out.error();
    auto err = make_pipe();
    if (!err)
        return err.error();

    auto deadline = Clock::now() + limits.time;
    pid_t pid = fork();
    if (pid < 0)
        return Error{ErrorKind::other, fmt::format("cannot start {}: {}", what, std::strerror(errno))};
    if (pid == 0) {
        become_quiet_child(out->write.get(), err->write.get());
        _exit(body());
    }
    setpgid(pid, pid); // whoever of the two comes first
    out->write.reset();
    err->write.reset();

    ChildOutput result;
    Ended ended = collect(*out, *err, limits, deadline, result);
    int status = 0;
    if (ended != Ended::closed || !wait_until(pid, deadline, status)) {
        kill(-pid, SIGKILL);
        while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
        }
        return Error{ErrorKind::other, ended == Ended::too_much
                                           ? fmt::format("{} wrote more than {} bytes", what, limits.output)
                                           : fmt::format("{} did not end within {} ms", what, limits.time.count())};
    }
    if (status == -1)
        return Error{ErrorKind::other, fmt::format("{}: its exit code is lost", what)};
    if (WIFSIGNALED(status))
        return Error{ErrorKind::other, fmt::format("{} was ended by signal {}", what, WTERMSIG(status))};
    result.exit_code = WEXITSTATUS(status);
    return result;
}

// Counts from what is mapped already, since RLIMIT_DATA does.
void limit_memory() {
    FILE* file = std::fopen("/proc/self/statm", "re");
    if (!file)
        return;
    unsigned long data = 0;
    int fields = std::fscanf(file, "%*u %*u %*u %*u %*u %lu", &data);
    std::fclose(file);
    if (fields != 1)
        return;
    rlim_t bytes = data * static_cast<rlim_t>(sysconf(_SC_PAGESIZE)) + max_child_memory;
    rlimit limit{bytes, bytes};
    setrlimit(RLIMIT_DATA, &limit);
}

} // namespace

Result<ChildOutput> run_program(const std::string& path, const std::vector<std::string>& arguments,
                                const ChildLimits& limits) {
    if (path.empty() || path[0] != '/')
        return Error{ErrorKind::other, fmt::format("not an absolute path: {}", path)};
    if (access(path.c_str(), X_OK) != 0)
        return Error{ErrorKind::other, fmt::format("cannot run {}: {}", path, std::strerror(errno))};

    std::vector<char*> argv{const_cast<char*>(path.c_str())};
    for (const std::string& argument : arguments)
        argv.push_back(const_cast<char*>(argument.c_str()));
    argv.push_back(nullptr);
    static const char* const environment[] = {
        "LC_ALL=C", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", nullptr};

    return supervise(
        path,
        [&] {
            execve(path.c_str(), argv.data(), const_cast<char* const*>(environment));
            return 127;
        },
        limits);
}

Result<ChildOutput> run_forked(const std::function<int()>& body, const ChildLimits& limits) {
    return supervise(
        "the child process",
        [&] {
            limit_memory();
            return body();
        },
        limits);
}

} // namespace tsdroptrace
