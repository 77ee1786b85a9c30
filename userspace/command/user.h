// SPDX-License-Identifier: GPL-2.0-only
// Who runs the command.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include <sys/types.h>

#include "util/result.h"

namespace tsdroptrace::command {

struct User {
    uid_t uid = 0;
    gid_t gid = 0;
    std::vector<gid_t> groups; // the supplementary ones
    std::string name, home, shell;
};

// What this process knows about who called it.
struct Caller {
    uid_t uid = 0;                  // our own
    const char* sudo_uid = nullptr; // $SUDO_UID and $SUDO_GID
    const char* sudo_gid = nullptr;
};

// The user of --user, where `asked`; else who called sudo, where we are root by it; else nobody: the command runs as we
// do. Fails, with ErrorKind::command_line, rather than let a command run as root that was not meant to.
Result<std::optional<User>> choose_user(const std::optional<std::string>& asked, const Caller& caller);

// `environment` (NAME=VALUE) as that user's: of what sudo has set for root, HOME and the like become the user's own,
// and what tells of sudo is gone, since the command is run by it no more.
std::vector<std::string> environment_of(const User& user, std::vector<std::string> environment);

// In a child that has one thread: becomes the user for good, without any capability unless that is root. Returns 0 or
// an errno. Async-signal-safe.
int become(const User& user);
// Likewise, of a process that keeps its user.
int drop_capabilities();

} // namespace tsdroptrace::command
