// SPDX-License-Identifier: GPL-2.0-only
#include "command/command.h"

#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <string_view>

#include <fmt/format.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "util/text.h"

namespace tsdroptrace::command {
namespace {

// What the child tells through its end of the channel: twice at most, an errno or 0 once it is ready, an errno when the
// program could not be run. What we tell: one byte, go.
using Message = int;

bool tell(int channel, Message message) {
    return send(channel, &message, sizeof(message), MSG_NOSIGNAL) == sizeof(message);
}

std::optional<Message> hear(int channel, int flags) {
    Message message{};
    ssize_t got;
    do
        got = recv(channel, &message, sizeof(message), flags);
    while (got < 0 && errno == EINTR);
    return got == sizeof(message) ? std::optional(message) : std::nullopt;
}

// For execve: pointers into what `texts` holds.
std::vector<char*> pointers(const std::vector<std::string>& texts) {
    std::vector<char*> all;
    for (const std::string& text : texts)
        all.push_back(const_cast<char*>(text.c_str()));
    all.push_back(nullptr);
    return all;
}

std::vector<std::string> own_environment() {
    std::vector<std::string> all;
    for (char** variable = environ; variable && *variable; ++variable)
        all.emplace_back(*variable);
    return all;
}

// What execvp should have said. A directory of PATH that the user may not look into, such as root's own, makes it say
// EACCES of a program that is nowhere.
int exec_error(const std::string& name, int error) {
    const char* path = std::getenv("PATH");
    if (error != EACCES || !path || name.find('/') != std::string::npos)
        return error;
    for (std::string_view rest = path;;) {
        const std::string_view directory = rest.substr(0, rest.find(':'));
        if (access(fmt::format("{}/{}", directory.empty() ? "." : directory, name).c_str(), F_OK) == 0)
            return error;
        if (directory.size() == rest.size())
            return ENOENT;
        rest.remove_prefix(directory.size() + 1);
    }
}

// The child. Does not return.
[[noreturn]] void run(int channel, const Request& request, const std::vector<char*>& words,
                      const std::vector<char*>& environment) {
    const int problem = request.user ? become(*request.user) : drop_capabilities();
    char go;
    if (!tell(channel, problem) || problem != 0 || recv(channel, &go, sizeof(go), 0) != sizeof(go))
        _exit(EXIT_FAILURE);       // the tracer is gone, or will not start it
    std::signal(SIGPIPE, SIG_DFL); // that is ours to ignore; all others are as we found them
    if (!request.output_to_stderr || dup2(STDERR_FILENO, STDOUT_FILENO) >= 0)
        execvpe(words[0], words.data(), environment.data());
    tell(channel, exec_error(request.words[0], errno));
    _exit(EXIT_FAILURE);
}

Error cannot_run(const std::string& name, int error) {
    std::string text = fmt::format("cannot run {}: {}", printable(name), std::strerror(error));
    if (error == ENOENT && name.find('/') == std::string::npos) {
        const char* path = std::getenv("PATH");
        text += fmt::format(" (it was looked for in PATH={})", printable(path ? path : ""));
    }
    return {ErrorKind::other, text};
}

} // namespace

Result<Command> Command::prepare(const Request& request) {
    int ends[2];
    // Messages keep their bounds, and the end of the other side is seen.
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0)
        return Error{ErrorKind::other, fmt::format("cannot make a pair of sockets: {}", std::strerror(errno))};
    Fd ours(ends[0]), theirs(ends[1]);

    const std::string name = request.words.at(0);
    const std::vector<char*> words = pointers(request.words);
    const std::vector<std::string> variables =
        request.user ? environment_of(*request.user, own_environment()) : own_environment();
    const std::vector<char*> environment = pointers(variables);
    const pid_t pid = fork();
    if (pid < 0)
        return Error{ErrorKind::other,
                     fmt::format("cannot start a process for {}: {}", printable(name), std::strerror(errno))};
    if (pid == 0) {
        ours.reset();
        run(theirs.get(), request, words, environment);
    }
    theirs.reset();

    Command command(name, pid, std::move(ours));
    const auto ready = hear(command.channel_.get(), 0);
    if (ready == 0)
        return command;
    if (!ready)
        return Error{ErrorKind::other, fmt::format("the process for {} has ended before it began", printable(name))};
    return Error{ErrorKind::unsupported,
                 fmt::format("cannot run {} as {}: {}; run tsdroptrace as root", printable(name),
                             request.user ? printable(request.user->name) : "we are", std::strerror(*ready))};
}

Command::~Command() {
    if (!channel_ || started_) // moved from, or on its own
        return;
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
}

void Command::start() {
    started_ = true;
    const char go = 1;
    // Where that fails it has ended already, by a signal: ended() will say so.
    [[maybe_unused]] const ssize_t sent = ::send(channel_.get(), &go, sizeof(go), MSG_NOSIGNAL);
}

bool Command::ended(Clock::time_point now) {
    if (ended_ || !started_)
        return started_;
    if (kill_ && now >= *kill_) {
        send(SIGKILL);
        kill_.reset();
    }
    siginfo_t info{};
    if (waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED | WNOHANG) != 0) {
        failure_ = Error{ErrorKind::other, fmt::format("{}: its exit code is lost", printable(name_))};
        exit_code_ = EXIT_FAILURE;
    } else if (info.si_pid == 0) {
        return false; // still there
    } else {
        exit_code_ = info.si_code == CLD_EXITED ? info.si_status : 128 + info.si_status;
    }
    ended_ = now;
    if (const auto error = hear(channel_.get(), MSG_DONTWAIT)) {
        failure_ = cannot_run(name_, *error);
        exit_code_ = *error == ENOENT ? 127 : 126;
        at_once_ = true;
    }
    return true;
}

bool Command::over(Clock::time_point now) {
    return ended(now) && (at_once_ || now - *ended_ >= aftermath);
}

void Command::interrupted(bool by_terminal, Clock::time_point now) {
    if (std::exchange(interrupted_, true) || ended_) {
        at_once_ = true;
        send(SIGTERM);
        if (!kill_)
            kill_ = now + last_chance;
    } else if (!by_terminal) {
        send(SIGINT);
    }
}

void Command::terminated() {
    at_once_ |= ended_.has_value();
    send(SIGTERM);
}

void Command::send(int signal) {
    if (started_ && !ended_)
        kill(pid_, signal); // it is not reaped yet, so that the number is its own
}

} // namespace tsdroptrace::command
