// SPDX-License-Identifier: GPL-2.0-only
#include "tracer_process.h"

#include <cerrno>
#include <charconv>
#include <chrono>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <set>
#include <string_view>
#include <thread>
#include <utility>

#include <fcntl.h>
#include <nlohmann/json.hpp>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include "fail.h"

namespace bench {
namespace {

using Clock = std::chrono::steady_clock;

constexpr const char* output_path = "/tmp/tsdroptrace.json";
constexpr const char* diagnostics_path = "/tmp/tsdroptrace.err";

std::string contents(const char* path) {
    std::ifstream file(path);
    return {std::istreambuf_iterator<char>(file), {}};
}

// The number after `name` and a colon in a file of /proc; 0 when it is not there.
std::uint64_t field(const std::filesystem::path& path, std::string_view name) {
    std::ifstream file(path);
    for (std::string line; std::getline(file, line);) {
        if (!line.starts_with(name) || line.size() <= name.size() || line[name.size()] != ':')
            continue;
        const auto digits = line.find_first_of("0123456789", name.size());
        std::uint64_t value = 0;
        if (digits != std::string::npos)
            std::from_chars(line.data() + digits, line.data() + line.size(), value);
        return value;
    }
    return 0;
}

} // namespace

TracerProcess::TracerProcess(const std::string& range, bool seen) {
    const char* const arguments[] = {"tsdroptrace", "--json", "--dst", range.c_str(), seen ? nullptr : "--no-seen",
                                     nullptr};
    posix_spawn_file_actions_t files;
    posix_spawn_file_actions_init(&files);
    posix_spawn_file_actions_addopen(&files, STDOUT_FILENO, output_path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    posix_spawn_file_actions_addopen(&files, STDERR_FILENO, diagnostics_path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    unlink(output_path);

    const auto begin = Clock::now();
    const int error = posix_spawnp(&pid_, arguments[0], &files, nullptr, const_cast<char* const*>(arguments), environ);
    posix_spawn_file_actions_destroy(&files);
    if (error)
        fail("cannot start tsdroptrace: {}", std::strerror(error));
    while (contents(output_path).find('\n') == std::string::npos) {
        if (waitpid(pid_, nullptr, WNOHANG) != 0) {
            pid_ = -1;
            fail("tsdroptrace did not start: {}", contents(diagnostics_path));
        }
        if (Clock::now() - begin > std::chrono::seconds(60))
            fail("tsdroptrace has not written its start line in a minute: {}", contents(diagnostics_path));
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    start_seconds_ = std::chrono::duration<double>(Clock::now() - begin).count();
}

TracerProcess::~TracerProcess() {
    if (pid_ >= 0)
        stop();
}

Memory TracerProcess::memory() const {
    const auto proc = std::filesystem::path("/proc") / std::to_string(pid_);
    Memory memory;
    memory.resident = field(proc / "status", "VmRSS") * 1024;
    memory.resident_peak = field(proc / "status", "VmHWM") * 1024;
    std::set<std::uint64_t> counted;
    for (const auto& entry : std::filesystem::directory_iterator(proc / "fdinfo"))
        if (const std::uint64_t map = field(entry.path(), "map_id"); map && counted.insert(map).second)
            memory.maps += field(entry.path(), "memlock");
    if (!memory.resident || !memory.maps)
        fail("cannot read how much memory tsdroptrace takes");
    return memory;
}

void TracerProcess::wait_until_quiet() const {
    std::uintmax_t before = 0, now = std::filesystem::file_size(output_path);
    while (now != before) {
        std::this_thread::sleep_for(std::chrono::milliseconds(300));
        before = std::exchange(now, std::filesystem::file_size(output_path));
    }
}

void TracerProcess::stop() {
    int status = 0;
    kill(pid_, SIGTERM);
    while (waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
    }
    pid_ = -1;
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
        fail("tsdroptrace ended with status {:#x}: {}", status, contents(diagnostics_path));
}

Tally TracerProcess::tally() const {
    Tally tally;
    std::ifstream file(output_path);
    for (std::string line; std::getline(file, line);) {
        // There may be a hundred thousand of these, and the processor is an emulated one.
        if (line.find(R"("type":"drop")") != std::string::npos) {
            ++tally.shown;
            continue;
        }
        const auto object = nlohmann::json::parse(line, nullptr, false);
        if (object.is_discarded())
            fail("not a JSON line: {}", line);
        if (object["type"] == "lost") {
            tally.lost += object["count"].get<std::uint64_t>();
        } else if (object["type"] == "summary") {
            tally.counted = 0;
            for (const auto& cause : object["causes"])
                if (cause["drop"]["kind"] == "rule")
                    tally.counted += cause["packets"].get<std::uint64_t>();
        }
    }
    return tally;
}

} // namespace bench
