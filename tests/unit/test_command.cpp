// SPDX-License-Identifier: GPL-2.0-only
// Real children, looked at from outside through /proc.
#include "command/command.h"

#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>

#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "catch.h"

using namespace tsdroptrace;
using namespace tsdroptrace::command;
using namespace std::chrono_literals;
namespace fs = std::filesystem;

namespace {

// A directory that every user can write to.
class Scratch {
public:
    Scratch() {
        REQUIRE(mkdtemp(path_.data()));
        REQUIRE(chmod(path_.c_str(), 0777) == 0);
    }
    ~Scratch() { fs::remove_all(path_); }
    std::string file(const std::string& name) const { return path_ + "/" + name; }

private:
    std::string path_ = "/tmp/tsdroptrace-command-XXXXXX";
};

std::string content(const std::string& path) {
    std::ifstream file(path);
    return {std::istreambuf_iterator<char>(file), {}};
}

template <typename Condition>
bool eventually(Condition holds) {
    for (const auto end = Clock::now() + 10s; Clock::now() < end; poll(nullptr, 0, 5)) {
        if (holds()) {
            return true;
        }
    }
    return false;
}

Command prepared(Request request) {
    auto command = Command::prepare(request);
    INFO((command ? "" : command.error().message));
    REQUIRE(command);
    return std::move(*command);
}

Command started(Request request) {
    Command command = prepared(std::move(request));
    command.start();
    return command;
}

Request shell(const std::string& script, std::vector<std::string> arguments = {}) {
    std::vector<std::string> words{"sh", "-c", script, "sh"};
    words.insert(words.end(), arguments.begin(), arguments.end());
    return {words, std::nullopt, false};
}

int exit_code_of(Command command) {
    REQUIRE(eventually([&] { return command.ended(Clock::now()); }));
    return command.exit_code();
}

// Its process, once it has written its number (echo $$) to `file`.
std::string process_of(const std::string& file) {
    REQUIRE(eventually([&] { return content(file).ends_with('\n'); }));
    const std::string number = content(file);
    return "/proc/" + number.substr(0, number.find('\n'));
}

std::string status_of(const std::string& process, const std::string& field) {
    std::istringstream lines(content(process + "/status"));
    for (std::string line; std::getline(lines, line);) {
        if (line.starts_with(field + ":\t")) {
            return line.substr(field.size() + 2);
        }
    }
    return "no " + field;
}

std::set<int> descriptors_of(const std::string& process) {
    std::set<int> all;
    for (const auto& entry : fs::directory_iterator(process + "/fd")) {
        all.insert(std::stoi(entry.path().filename()));
    }
    return all;
}

Result<std::optional<User>> by_sudo(const char* uid, const char* gid = nullptr, uid_t own = 0) {
    return choose_user(std::nullopt, {own, uid, gid});
}

bool is_root() {
    if (geteuid() == 0) {
        return true;
    }
    WARN("not root: another user was not tried");
    return false;
}

} // namespace

TEST_CASE("command: its exit code is that of a shell") {
    CHECK(exit_code_of(started(shell("exit 0"))) == 0);
    CHECK(exit_code_of(started(shell("exit 9"))) == 9);
    CHECK(exit_code_of(started(shell("kill -KILL $$"))) == 128 + SIGKILL);
    CHECK(exit_code_of(started(shell("kill -TERM $$"))) == 128 + SIGTERM);
    CHECK(exit_code_of(started({{"true"}, std::nullopt, false})) == 0);
    CHECK(exit_code_of(started(shell("[ $# = 3 ] && [ \"$1$2$3\" = '*a b' ]", {"*", "", "a b"}))) == 0);
}

TEST_CASE("command: what cannot be run says so") {
    const std::vector<std::tuple<std::string, int, std::string>> cases = {
        {"no-such-program", 127, "cannot run no-such-program: No such file or directory (it was looked for in PATH="},
        {"/no/such/program", 127, "cannot run /no/such/program: No such file or directory"},
        {"", 127, "cannot run : No such file or directory"},
        {"/etc/passwd", 126, "cannot run /etc/passwd: Permission denied"},
        {"/tmp", 126, "cannot run /tmp: Permission denied"},
    };
    for (const auto& [program, code, message] : cases) {
        Command command = started({{program}, std::nullopt, false});
        REQUIRE(eventually([&] { return command.over(Clock::now()); }));
        CHECK(command.exit_code() == code);
        REQUIRE(command.failure());
        CHECK(command.failure()->message.starts_with(message));
    }
    if (is_root()) { // root's own directories are not for others to look into
        const Scratch scratch;
        REQUIRE(chmod(scratch.file("").c_str(), 0700) == 0);
        const std::string path = std::getenv("PATH");
        setenv("PATH", (scratch.file("") + ":" + path).c_str(), 1);
        Request request{{"no-such-program"}, *choose_user("nobody", {}), false};
        CHECK(exit_code_of(started(request)) == 127);
        request.words = {"true"};
        CHECK(exit_code_of(started(request)) == 0);
        setenv("PATH", path.c_str(), 1);
    }
    Command command = started(shell("exit 127"));
    REQUIRE(eventually([&] { return command.ended(Clock::now()); }));
    CHECK_FALSE(command.failure());
}

TEST_CASE("command: nothing of it runs before it is started") {
    const Scratch scratch;
    {
        Command command = prepared(shell("echo ran >\"$1\"", {scratch.file("ran")}));
        poll(nullptr, 0, 100);
        CHECK_FALSE(fs::exists(scratch.file("ran")));
        CHECK_FALSE(command.ended(Clock::now()));
        command.start();
        REQUIRE(eventually([&] { return command.ended(Clock::now()); }));
        CHECK(command.exit_code() == 0);
        CHECK(content(scratch.file("ran")) == "ran\n");
    }
    { const Command command = prepared(shell("echo ran >\"$1\"", {scratch.file("never")})); }
    CHECK(waitpid(-1, nullptr, WNOHANG) < 0); // no child is left
    CHECK_FALSE(fs::exists(scratch.file("never")));
}

TEST_CASE("command: it has the descriptors and signals that we were given, and none of ours") {
    const Scratch scratch;
    const Fd given(open("/dev/null", O_RDONLY)), own(open("/dev/null", O_RDONLY | O_CLOEXEC));
    std::set<int> expected;
    for (const int fd : descriptors_of("/proc/self")) {
        const int flags = fcntl(fd, F_GETFD);
        if (flags >= 0 && !(flags & FD_CLOEXEC)) {
            expected.insert(fd);
        }
    }
    const auto sigpipe = std::signal(SIGPIPE, SIG_IGN); // as main does
    const auto sighup = std::signal(SIGHUP, SIG_IGN);   // as nohup does
    Command command = started(shell("echo $$ >\"$1\"; exec sleep 60", {scratch.file("pid")}));
    std::signal(SIGPIPE, sigpipe);
    std::signal(SIGHUP, sighup);

    const std::string process = process_of(scratch.file("pid"));
    REQUIRE(eventually([&] { return content(process + "/comm") == "sleep\n"; }));
    eventually([&] { return descriptors_of(process) == expected; }); // the loader has one of its own for a while
    CHECK(descriptors_of(process) == expected);
    CHECK(expected.contains(given.get()));
    const auto ignored = std::stoull(status_of(process, "SigIgn"), nullptr, 16);
    CHECK_FALSE(ignored >> (SIGPIPE - 1) & 1);
    CHECK(ignored >> (SIGHUP - 1) & 1);
    CHECK(status_of(process, "NoNewPrivs") == "0");
    command.terminated();
    CHECK(exit_code_of(std::move(command)) == 128 + SIGTERM);
}

TEST_CASE("command: its output goes to standard error where ours is taken") {
    const Scratch scratch;
    const Fd file(open(scratch.file("err").c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
    const Fd kept(fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 3));
    REQUIRE(dup2(file.get(), STDERR_FILENO) == STDERR_FILENO);
    Request request = shell("echo output");
    request.output_to_stderr = true;
    auto command = Command::prepare(request);
    dup2(kept.get(), STDERR_FILENO);
    REQUIRE(command);
    command->start();
    CHECK(exit_code_of(std::move(*command)) == 0);
    CHECK(content(scratch.file("err")) == "output\n");
}

TEST_CASE("command: it may end as it likes at the first SIGINT, and not at the second") {
    const Scratch scratch;
    const std::string note = scratch.file("note");
    const auto notes = [&](const std::string& text) { return eventually([&] { return content(note) == text; }); };
    const std::string loop = "echo ready >>\"$1\"; while :; do sleep 0.02; done";
    const auto now = Clock::now();

    Command polite = started(shell("trap 'echo int >>\"$1\"' INT; " + loop, {note}));
    REQUIRE(notes("ready\n"));
    polite.interrupted(true, now); // the terminal has told it already
    poll(nullptr, 0, 100);
    CHECK(content(note) == "ready\n");
    CHECK_FALSE(polite.ended(now + 1h));
    polite.interrupted(true, now);
    REQUIRE(eventually([&] { return polite.over(now); })); // without the aftermath
    CHECK(polite.exit_code() == 128 + SIGTERM);

    fs::remove(note);
    Command stubborn = started(shell("trap 'echo int >>\"$1\"' INT; trap '' TERM; " + loop, {note}));
    REQUIRE(notes("ready\n"));
    stubborn.interrupted(false, now);
    CHECK(notes("ready\nint\n"));
    stubborn.terminated();
    CHECK_FALSE(stubborn.ended(now + 1h));
    stubborn.interrupted(false, now);
    poll(nullptr, 0, 50);
    CHECK_FALSE(stubborn.ended(now + Command::last_chance - 1ms));
    REQUIRE(eventually([&] { return stubborn.ended(now + Command::last_chance); }));
    CHECK(stubborn.exit_code() == 128 + SIGKILL);
}

TEST_CASE("command: what it has left behind gets its time") {
    const auto now = Clock::now();
    for (const bool interrupted : {false, true}) {
        Command command = started(shell("exit 3"));
        REQUIRE(eventually([&] { return command.ended(now); }));
        CHECK_FALSE(command.over(now + Command::aftermath - 1ms));
        if (interrupted) {
            command.interrupted(true, now);
        }
        CHECK(command.over(now + Command::aftermath - 1ms) == interrupted);
        CHECK(command.over(now + Command::aftermath));
        CHECK(command.exit_code() == 3);
    }
}

TEST_CASE("command: who called sudo runs it, or the user who was asked for") {
    const auto nobody = choose_user("nobody", {});
    REQUIRE(nobody);
    REQUIRE(*nobody);
    CHECK((*nobody)->name == "nobody");
    const std::string uid = std::to_string((*nobody)->uid), gid = std::to_string((*nobody)->gid);

    CHECK_FALSE(by_sudo(nullptr)->has_value());
    CHECK_FALSE(by_sudo("0", "0")->has_value()); // root called it
    CHECK_FALSE(by_sudo(uid.c_str(), gid.c_str(), 1000)->has_value());
    for (const char* group : {gid.c_str(), static_cast<const char*>(nullptr)}) {
        const auto user = by_sudo(uid.c_str(), group);
        REQUIRE(user);
        REQUIRE(*user);
        CHECK((*user)->uid == (*nobody)->uid);
        CHECK((*user)->gid == (*nobody)->gid);
    }
    CHECK((*choose_user("root", {0, uid.c_str(), gid.c_str()}))->uid == 0);
}

TEST_CASE("command: nobody becomes root, or anybody, by an environment that is wrong") {
    for (const char* uid : {"", "-1", "4294967295", "4294967296", "0x0", " 0", "00x", "nobody", "3999999999"}) {
        const auto user = by_sudo(uid, "0");
        REQUIRE_FALSE(user);
        CHECK(user.error().kind == ErrorKind::command_line);
        CHECK(user.error().message.starts_with(std::string("the environment's SUDO_UID=") + uid + " is no user"));
    }
    const std::string uid = std::to_string((*choose_user("nobody", {}))->uid);
    for (const char* gid : {"", "-1", "4294967295", "0", "x"}) {
        const auto user = by_sudo(uid.c_str(), gid);
        REQUIRE_FALSE(user);
        CHECK(user.error().message.starts_with(std::string("the environment's SUDO_GID=") + gid + " is no group of "));
    }
    const auto unknown = choose_user("no-such-user", {0, "0", "0"});
    REQUIRE_FALSE(unknown);
    CHECK(unknown.error().message ==
          "--user no-such-user: expected the name of a user of this machine, such as nobody");
}

TEST_CASE("command: the environment is the user's own") {
    const User user{1000, 1000, {1000}, "alice", "/home/alice", "/bin/zsh"};
    const std::vector<std::string> before{"PATH=/usr/bin",   "HOME=/root",       "SUDO_UID=1000", "LANG=C", "USER=root",
                                          "SHELL=/bin/bash", "SUDO_COMMAND=x=y", "HOMEPAGE=here", "odd"};
    CHECK(environment_of(user, before) == std::vector<std::string>{"PATH=/usr/bin", "LANG=C", "HOMEPAGE=here", "odd",
                                                                   "HOME=/home/alice", "USER=alice", "LOGNAME=alice",
                                                                   "SHELL=/bin/zsh"});
}

TEST_CASE("command: another user has that user's rights, and no others") {
    if (!is_root()) {
        return;
    }
    const Scratch scratch;
    const auto nobody = choose_user("nobody", {});
    REQUIRE(nobody);
    Request request = shell("env >\"$2\"; echo $$ >\"$1\"; exec sleep 60", {scratch.file("pid"), scratch.file("env")});
    request.user = *nobody;
    Command command = started(request);
    const std::string process = process_of(scratch.file("pid"));
    const std::string uid = std::to_string((*nobody)->uid), gid = std::to_string((*nobody)->gid);
    CHECK(status_of(process, "Uid") == uid + "\t" + uid + "\t" + uid + "\t" + uid);
    CHECK(status_of(process, "Gid") == gid + "\t" + gid + "\t" + gid + "\t" + gid);
    std::string groups;
    for (const gid_t group : std::set<gid_t>((*nobody)->groups.begin(), (*nobody)->groups.end())) {
        groups += std::to_string(group) + " ";
    }
    CHECK(status_of(process, "Groups") == groups);
    for (const char* field : {"CapInh", "CapPrm", "CapEff", "CapAmb"}) {
        CHECK(std::stoull(status_of(process, field), nullptr, 16) == 0);
    }
    CHECK(status_of(process, "CapBnd") == status_of("/proc/self", "CapBnd")); // sudo and ping still work in it
    const std::string environment = "\n" + content(scratch.file("env"));
    CHECK(environment.find("\nUSER=nobody\n") != std::string::npos);
    CHECK(environment.find("\nHOME=" + (*nobody)->home + "\n") != std::string::npos);
    command.terminated();
    CHECK(exit_code_of(std::move(command)) == 128 + SIGTERM);

    // Who is not root cannot become somebody else, and learns it before anything has begun.
    Request other = shell("exit 0");
    other.user = *choose_user("root", {});
    const pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0) {
        const auto refused = become(**nobody) == 0 ? Command::prepare(other) : Result<Command>(Error{});
        _exit(!refused && refused.error().kind == ErrorKind::unsupported ? 0 : 1);
    }
    int status = -1;
    REQUIRE(waitpid(child, &status, 0) == child);
    CHECK(status == 0);
}
