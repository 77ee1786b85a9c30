// SPDX-License-Identifier: GPL-2.0-only
#include "explain/explain_dir.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <dirent.h>
#include <fcntl.h>
#include <optional>
#include <sys/stat.h>
#include <unistd.h>

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include "explain/catalogue_yaml.h"
#include "util/fd.h"
#include "util/result.h"
#include "util/text.h"

namespace tsdroptrace::explain {

namespace {

constexpr std::size_t max_files = 64;
constexpr off_t max_size = 256 * 1024;

bool only_of(uid_t owner, const struct stat& status) {
    return status.st_uid == owner && (status.st_mode & (S_IWGRP | S_IWOTH)) == 0;
}

std::string who(uid_t owner) {
    return owner == 0 ? "root" : fmt::format("user {}", owner);
}

// The names of the files to read, in their order; errno where the directory cannot be read.
Result<std::vector<std::string>> names_in(int directory) {
    // fdopendir takes its descriptor over.
    DIR* dir = fdopendir(fcntl(directory, F_DUPFD_CLOEXEC, 0));
    if (dir == nullptr)
        return Error{ErrorKind::other, std::strerror(errno), errno};
    std::vector<std::string> names;
    while (const dirent* entry = readdir(dir)) {
        const std::string_view name = entry->d_name;
        if (!name.starts_with('.') && name.ends_with(".yaml"))
            names.emplace_back(name);
    }
    closedir(dir);
    std::ranges::sort(names);
    return names;
}

// A whole file, if it is one that may be trusted.
Result<std::string> read_file(int directory, const std::string& name, uid_t owner) {
    // O_NONBLOCK: a FIFO must not hold up the start.
    const Fd file(openat(directory, name.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC));
    struct stat status {};
    if (file.get() < 0 || fstat(file.get(), &status) != 0) {
        if (errno == ELOOP)
            return Error{ErrorKind::other, "it is a symbolic link; expected a regular file", errno};
        return Error{ErrorKind::other, std::strerror(errno), errno};
    }
    if (!S_ISREG(status.st_mode) || !only_of(owner, status))
        return Error{ErrorKind::other,
                     fmt::format("expected a regular file that belongs to {} and that nobody else can write to (chown, "
                                 "chmod go-w)",
                                 who(owner)),
                     0};
    std::string text;
    char buffer[16384];
    for (ssize_t got; (got = read(file.get(), buffer, sizeof(buffer))) != 0;) {
        if (got < 0)
            return Error{ErrorKind::other, std::strerror(errno), errno};
        text.append(buffer, static_cast<std::size_t>(got));
        if (text.size() > static_cast<std::size_t>(max_size))
            return Error{ErrorKind::other, fmt::format("expected at most {} KiB", max_size / 1024), 0};
    }
    return text;
}

std::string warning_of(const std::string& path, const std::vector<Problem>& problems) {
    const Problem& first = problems.front();
    std::string text = fmt::format("{}:{}: {}", path, first.line, first.message);
    if (problems.size() > 1)
        text += fmt::format(" (and {} more)", problems.size() - 1);
    return printable(text +
                     (first.whole_file ? "; the file is not used" : "; what is wrong is left out, the rest is used"));
}

} // namespace

OwnEntries read_explain_dir(const std::string& directory, uid_t owner) {
    OwnEntries out;
    const auto not_read = [&](const std::string& path, std::string_view why) {
        out.warnings.push_back(printable(fmt::format("{}: not read: {}", path, why)));
    };
    const Fd dir(open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    struct stat status {};
    if (dir.get() < 0 || fstat(dir.get(), &status) != 0) {
        if (errno != ENOENT)
            not_read(directory, std::strerror(errno));
        return out;
    }
    if (!only_of(owner, status)) {
        not_read(directory, fmt::format("expected a directory that belongs to {} and that nobody else can write to "
                                        "(chown, chmod go-w)",
                                        who(owner)));
        return out;
    }
    auto names = names_in(dir.get());
    if (!names) {
        not_read(directory, names.error().message);
        return out;
    }
    if (names->size() > max_files) {
        not_read(directory + "/" + (*names)[max_files], fmt::format("expected at most {} files", max_files));
        names->resize(max_files);
    }
    auto catalogue = std::make_shared<OwnedCatalogue>();
    for (const std::string& name : *names) {
        const std::string path = directory + "/" + name;
        const auto text = read_file(dir.get(), name, owner);
        if (!text) {
            not_read(path, text.error().message);
            continue;
        }
        if (const auto problems = read_catalogue(*text, *catalogue); !problems.empty())
            out.warnings.push_back(warning_of(path, problems));
    }
    if (!names->empty())
        out.catalogue = std::move(catalogue);
    return out;
}

std::shared_ptr<const OwnedCatalogue> own_entries() {
    OwnEntries own = read_explain_dir();
    for (const std::string& warning : own.warnings)
        spdlog::warn("{}", warning);
    return own.catalogue;
}

} // namespace tsdroptrace::explain
