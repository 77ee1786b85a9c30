// SPDX-License-Identifier: GPL-2.0-only
#include "command/user.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <string_view>

#include <fmt/format.h>
#include <grp.h>
#include <linux/capability.h>
#include <pwd.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "util/text.h"

namespace tsdroptrace::command {
namespace {

Error wrong(std::string message) {
    return {ErrorKind::command_line, std::move(message)};
}

std::vector<gid_t> groups_of(const passwd& entry) {
    int count = 32;
    std::vector<gid_t> groups(static_cast<std::size_t>(count));
    while (getgrouplist(entry.pw_name, entry.pw_gid, groups.data(), &count) < 0)
        groups.resize(static_cast<std::size_t>(std::max(count, static_cast<int>(groups.size()) + 1)));
    groups.resize(static_cast<std::size_t>(count));
    return groups;
}

User user_of(const passwd& entry) {
    const auto text = [](const char* from, const char* otherwise) {
        return std::string(from && *from ? from : otherwise);
    };
    return {entry.pw_uid,
            entry.pw_gid,
            groups_of(entry),
            entry.pw_name,
            text(entry.pw_dir, "/"),
            text(entry.pw_shell, "/bin/sh")};
}

template <typename Id>
std::optional<Id> parse_id(const char* text) {
    const std::string_view typed(text);
    Id id{};
    const auto [end, error] = std::from_chars(typed.data(), typed.data() + typed.size(), id);
    // The last one means "leave it as it is" to the system calls.
    if (error != std::errc{} || end != typed.data() + typed.size() || id == static_cast<Id>(-1))
        return std::nullopt;
    return id;
}

Result<std::optional<User>> user_of_sudo(const Caller& caller) {
    constexpr std::string_view hint = "say who is to run the command, as in --user nobody";
    const auto uid = parse_id<uid_t>(caller.sudo_uid);
    if (uid == uid_t{0})
        return std::optional<User>();
    errno = 0;
    const passwd* entry = uid ? getpwuid(*uid) : nullptr;
    if (!entry)
        return wrong(fmt::format("the environment's SUDO_UID={} is no user of this machine: {}",
                                 printable(caller.sudo_uid), hint));
    User user = user_of(*entry);
    if (caller.sudo_gid) {
        const auto gid = parse_id<gid_t>(caller.sudo_gid);
        if (!gid || std::ranges::find(user.groups, *gid) == user.groups.end())
            return wrong(fmt::format("the environment's SUDO_GID={} is no group of {}: {}", printable(caller.sudo_gid),
                                     printable(user.name), hint));
        user.gid = *gid;
    }
    return std::optional(std::move(user));
}

} // namespace

Result<std::optional<User>> choose_user(const std::optional<std::string>& asked, const Caller& caller) {
    if (asked) {
        const passwd* entry = getpwnam(asked->c_str());
        if (!entry)
            return wrong(fmt::format("--user {}: expected the name of a user of this machine, such as nobody",
                                     printable(*asked)));
        return std::optional(user_of(*entry));
    }
    if (caller.uid == 0 && caller.sudo_uid)
        return user_of_sudo(caller);
    return std::optional<User>();
}

std::vector<std::string> environment_of(const User& user, std::vector<std::string> environment) {
    const std::array<std::pair<std::string_view, std::string_view>, 4> own{
        {{"HOME", user.home}, {"USER", user.name}, {"LOGNAME", user.name}, {"SHELL", user.shell}}};
    std::erase_if(environment, [&](std::string_view variable) {
        const std::string_view name = variable.substr(0, variable.find('='));
        return name.starts_with("SUDO_") || std::ranges::any_of(own, [&](auto& pair) { return pair.first == name; });
    });
    for (const auto& [name, value] : own)
        environment.push_back(fmt::format("{}={}", name, value));
    return environment;
}

int become(const User& user) {
    if (setgroups(user.groups.size(), user.groups.data()) != 0 || setresgid(user.gid, user.gid, user.gid) != 0 ||
        setresuid(user.uid, user.uid, user.uid) != 0)
        return errno;
    return drop_capabilities();
}

int drop_capabilities() {
    if (getuid() == 0)
        return 0;
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
    __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
    const __user_cap_data_struct none[_LINUX_CAPABILITY_U32S_3] = {};
    return syscall(SYS_capset, &header, none) == 0 ? 0 : errno;
}

} // namespace tsdroptrace::command
