// SPDX-License-Identifier: GPL-2.0-only
#include "util/netns.h"

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <ctime>
#include <fstream>
#include <memory>
#include <sstream>
#include <system_error>
#include <thread>

#include <dirent.h>
#include <fcntl.h>
#include <fmt/core.h>
#include <linux/nsfs.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "util/text.h"

namespace tsdroptrace {
namespace {

constexpr const char* own_netns = "/proc/thread-self/ns/net";
constexpr const char* ip_netns_directories[] = {"/run/netns", "/var/run/netns"};
constexpr const char* other_directories[] = {"/run/docker/netns", "/var/run/docker/netns"};
constexpr int max_processes = 65536;

struct CloseDirectory {
    void operator()(DIR* directory) const { closedir(directory); }
};

bool is_netns(const struct stat& found, std::uint32_t inode) {
    // Inode numbers are only unique within nsfs, so the device has to be the one of our own namespace.
    struct stat own;
    return found.st_ino == inode && stat(own_netns, &own) == 0 && found.st_dev == own.st_dev;
}

// Opens the path if it is the namespace; what a path means can change between two calls.
Fd open_if_netns(const std::string& path, std::uint32_t inode) {
    struct stat status;
    if (stat(path.c_str(), &status) != 0 || status.st_ino != inode)
        return Fd();
    Fd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
    if (!fd || fstat(fd.get(), &status) != 0 || !is_netns(status, inode))
        return Fd();
    return fd;
}

struct Named {
    Fd fd;
    std::string name;
};

Named find_in_directory(const char* path, std::uint32_t inode) {
    std::unique_ptr<DIR, CloseDirectory> directory(opendir(path));
    while (dirent* entry = directory ? readdir(directory.get()) : nullptr) {
        if (entry->d_name[0] == '.')
            continue;
        if (Fd fd = open_if_netns(fmt::format("{}/{}", path, entry->d_name), inode))
            return {std::move(fd), entry->d_name};
    }
    return {};
}

struct Process {
    Fd fd;
    std::string directory; // below /proc
};

Process find_by_process(std::uint32_t inode) {
    std::unique_ptr<DIR, CloseDirectory> proc(opendir("/proc"));
    int seen = 0;
    while (dirent* entry = proc ? readdir(proc.get()) : nullptr) {
        if (!std::isdigit(static_cast<unsigned char>(entry->d_name[0])))
            continue;
        if (++seen > max_processes)
            break;
        if (Fd fd = open_if_netns(fmt::format("/proc/{}/ns/net", entry->d_name), inode))
            return {std::move(fd), entry->d_name};
    }
    return {};
}

// Whether the process began after that time; also where that is not known.
bool started_after(const std::string& directory, std::int64_t since_ns) {
    std::ifstream file(directory + "/stat");
    std::string text;
    std::getline(file, text);
    const std::size_t comm_end = text.rfind(')'); // the name may hold anything
    if (comm_end == std::string::npos)
        return true;
    std::istringstream fields(text.substr(comm_end + 1));
    std::string field;
    for (int number = 3; number <= 22; ++number) // starttime, in ticks since the machine came up
        fields >> field;
    std::int64_t ticks = 0;
    if (std::from_chars(field.data(), field.data() + field.size(), ticks).ec != std::errc{})
        return true;
    struct timespec real, boot;
    clock_gettime(CLOCK_REALTIME, &real);
    clock_gettime(CLOCK_BOOTTIME, &boot);
    const std::int64_t came_up_ns = (real.tv_sec - boot.tv_sec) * 1'000'000'000LL + real.tv_nsec - boot.tv_nsec;
    return came_up_ns + ticks * (1'000'000'000LL / sysconf(_SC_CLK_TCK)) > since_ns;
}

} // namespace

std::uint32_t current_netns() {
    struct stat status;
    return stat(own_netns, &status) == 0 ? static_cast<std::uint32_t>(status.st_ino) : 0;
}

std::optional<NetnsName> netns_name(std::uint32_t inode, std::int64_t since_ns) {
    for (const char* directory : ip_netns_directories) {
        Named found = find_in_directory(directory, inode);
        struct stat status;
        if (!found.fd || stat(directory, &status) != 0)
            continue;
        if (status.st_mtim.tv_sec * 1'000'000'000LL + status.st_mtim.tv_nsec > since_ns)
            return std::nullopt;
        return NetnsName{found.name, fmt::format("{}/{}", directory, found.name)};
    }
    return std::nullopt;
}

std::optional<NetnsName> netns_process(std::uint32_t inode, std::int64_t since_ns) {
    const Process process = find_by_process(inode);
    if (!process.fd)
        return std::nullopt;
    const std::string directory = "/proc/" + process.directory;
    if (started_after(directory, since_ns))
        return std::nullopt;
    char comm[64];
    const Fd file(open((directory + "/comm").c_str(), O_RDONLY | O_CLOEXEC));
    const ssize_t size = file ? read(file.get(), comm, sizeof(comm)) : -1;
    if (size <= 0)
        return std::nullopt; // it has just ended
    std::string_view name(comm, static_cast<std::size_t>(size));
    if (name.ends_with('\n'))
        name.remove_suffix(1);
    return NetnsName{fmt::format("{}[{}]", name, process.directory), directory + "/ns/net"};
}

bool leads_to_netns(const std::string& path, std::uint32_t inode) {
    struct stat status;
    return stat(path.c_str(), &status) == 0 && is_netns(status, inode);
}

Result<std::uint32_t> resolve_netns(const std::string& text) {
    constexpr const char* expected =
        "expected a path such as /proc/1/ns/net, a name as in `ip netns`, or the number of "
        "an inode as in `lsns -t net`";
    const std::string shown = text.empty() ? "\"\"" : printable(text);
    const bool is_path = text.find('/') != std::string::npos;
    std::string path = text;
    if (!is_path) {
        path = fmt::format("{}/{}", ip_netns_directories[0], text);
        // A name may be a number; else it is an inode.
        struct stat status;
        std::uint32_t inode = 0;
        const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), inode);
        if (stat(path.c_str(), &status) != 0 && error == std::errc{} && end == text.data() + text.size() && inode != 0)
            return inode;
        if (text.empty() || text == "." || text == "..")
            return Error{ErrorKind::command_line, fmt::format("{} is no network namespace: {}", shown, expected)};
    }
    const Fd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY));
    if (!fd && (errno == EACCES || errno == EPERM))
        return Error{ErrorKind::unsupported, fmt::format("{}: {}: run it with sudo", shown, std::strerror(errno))};
    if (!fd)
        return Error{ErrorKind::command_line,
                     fmt::format("{} is no network namespace ({}): {}", shown,
                                 is_path ? std::strerror(errno) : "no name in /run/netns", expected)};
    struct stat status;
    if (ioctl(fd.get(), NS_GET_NSTYPE) != CLONE_NEWNET || fstat(fd.get(), &status) != 0)
        return Error{ErrorKind::command_line,
                     fmt::format("{} is no network namespace but something else: {}", shown, expected)};
    return static_cast<std::uint32_t>(status.st_ino);
}

Result<Fd> open_netns(std::uint32_t inode) {
    for (const char* directory : ip_netns_directories)
        if (Named found = find_in_directory(directory, inode); found.fd)
            return std::move(found.fd);
    for (const char* directory : other_directories)
        if (Named found = find_in_directory(directory, inode); found.fd)
            return std::move(found.fd);
    if (Process process = find_by_process(inode); process.fd)
        return std::move(process.fd);
    return Error{ErrorKind::other,
                 fmt::format("network namespace {} is gone, or no name and no process leads to it", inode)};
}

Status run_in_netns(std::uint32_t inode, const std::function<void()>& work) {
    if (inode != 0 && inode == current_netns()) {
        work();
        return Ok{};
    }
    auto fd = open_netns(inode);
    if (!fd)
        return fd.error();
    Status status = Ok{};
    try {
        std::thread([&] {
            if (setns(fd->get(), CLONE_NEWNET) == 0)
                work();
            else
                status = Error{ErrorKind::other,
                               fmt::format("cannot enter network namespace {}: {}", inode, std::strerror(errno))};
        }).join();
    } catch (const std::system_error& failure) { // how std::thread says EAGAIN
        return Error{ErrorKind::other, fmt::format("cannot start a thread: {}", failure.what())};
    }
    return status;
}

} // namespace tsdroptrace
