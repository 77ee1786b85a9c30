// SPDX-License-Identifier: GPL-2.0-only
// Whether the cost grows with the number of rules, and what other ways to trace cost in the same VM. After guest.sh:
//
//   compare TITLE BACKEND PACKETS ROUNDS
//
// prints a table in Markdown: instructions that each way to trace adds to a packet that the rules accept, with few
// rules and many; then what a dropped packet takes. Ways whose program is not in the VM are left out, and said to be.
//
// Exit code: 0 tsdroptrace keeps its limits, 1 one is not kept, 2 could not measure.
#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstring>
#include <ctime>
#include <fstream>
#include <functional>
#include <iterator>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include <fcntl.h>
#include <spawn.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

#include "empty_programs.h"
#include "fail.h"
#include "packets.h"
#include "tracer_process.h"

namespace bench {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::array rule_counts = {10u, 1000u, 10000u};

int run_shell(const std::string& command) {
    const int status = std::system(command.c_str());
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

// Another tracer: a command of the shell that runs until it gets a signal, and is ready when it has written a text.
class OtherTracer {
public:
    OtherTracer(const std::string& command, const std::string& ready) {
        const char* arguments[] = {"sh", "-c", command.c_str(), nullptr};
        posix_spawn_file_actions_t files;
        posix_spawnattr_t attributes;
        posix_spawn_file_actions_init(&files);
        posix_spawn_file_actions_addopen(&files, STDOUT_FILENO, output, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND, 0600);
        posix_spawn_file_actions_adddup2(&files, STDOUT_FILENO, STDERR_FILENO);
        posix_spawnattr_init(&attributes);
        posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP); // to end all of it
        const int error = posix_spawnp(&pid_, "sh", &files, &attributes, const_cast<char* const*>(arguments), environ);
        posix_spawn_file_actions_destroy(&files);
        posix_spawnattr_destroy(&attributes);
        if (error)
            fail("cannot start a shell: {}", std::strerror(error));
        const auto begin = Clock::now();
        while (contents().find(ready) == std::string::npos) {
            if (waitpid(pid_, nullptr, WNOHANG) != 0)
                fail("{}: ended: {}", command, contents());
            if (Clock::now() - begin > std::chrono::minutes(10))
                fail("{}: not ready in ten minutes: {}", command, contents());
            std::this_thread::sleep_for(std::chrono::milliseconds(100));
        }
    }
    ~OtherTracer() {
        kill(-pid_, SIGINT);
        while (waitpid(pid_, nullptr, 0) < 0 && errno == EINTR) {
        }
    }
    OtherTracer(const OtherTracer&) = delete;
    OtherTracer& operator=(const OtherTracer&) = delete;

private:
    static constexpr const char* output = "/tmp/other-tracer";

    static std::string contents() {
        std::ifstream file(output);
        return {std::istreambuf_iterator<char>(file), {}};
    }

    pid_t pid_ = -1;
};

struct Variant {
    std::string name;
    std::string program; // that it needs
    std::function<std::shared_ptr<void>()> attach;
    unsigned share = 1; // of the packets, for what is slow
};

Variant other(std::string name, std::string program, std::string command, std::string ready, unsigned share) {
    return {std::move(name), std::move(program),
            [command, ready]() -> std::shared_ptr<void> { return std::make_shared<OtherTracer>(command, ready); },
            share};
}

bool is_there(const std::string& program) {
    return program.empty() || run_shell("command -v " + program + " >/dev/null") == 0;
}

// nft's own trace: a rule that marks the packets for it, and a reader.
std::string nft_trace(const std::string& source) {
    return "nft 'add table ip trace; add chain ip trace c { type filter hook prerouting priority -301; }; "
           "add rule ip trace c ip saddr " +
           source +
           " meta nftrace set 1'; trap 'nft delete table ip trace' EXIT INT; echo ready; nft monitor trace >/dev/null";
}

enum { nothing, floor, outside, matching, tsdroptrace_variants };

std::vector<Variant> variants(const std::vector<Place>& places, const std::string& backend) {
    const auto tsdroptrace = [](const char* range) {
        return [range]() -> std::shared_ptr<void> { return std::make_shared<TracerProcess>(range); };
    };
    std::vector<Variant> all(tsdroptrace_variants);
    all[nothing] = {"nothing attached", "", [] { return nullptr; }};
    all[floor] = {"the floor: empty programs where tsdroptrace attaches", "",
                  [places]() -> std::shared_ptr<void> { return std::make_shared<EmptyPrograms>(places); }};
    all[outside] = {"tsdroptrace, packet outside the filter", "", tsdroptrace(range_without_accepted)};
    all[matching] = {"tsdroptrace, packet that matches the filter", "", tsdroptrace(range_of_accepted)};
    all.push_back(other("bpftrace on kfree_skb (names no rule)", "bpftrace",
                        "exec bpftrace -e 'tracepoint:skb:kfree_skb { @[args->reason] = count() } "
                        "interval:s:1 { printf(\"ready\\n\") }'",
                        "ready", 1));
    all.push_back(other("pwru, packet outside the filter", "pwru",
                        fmt::format("exec pwru 'src net {}' 2>&1", range_without_accepted), "Listening", 4));
    all.push_back(other("pwru, packet that matches the filter", "pwru",
                        fmt::format("exec pwru 'src net {}' 2>&1", range_of_accepted), "Listening", 10));
    if (backend != "legacy") {
        all.push_back(other("nft monitor trace, packet outside the filter", "nft", nft_trace(range_without_accepted),
                            "ready", 1));
        all.push_back(
            other("nft monitor trace, packet that matches", "nft", nft_trace(range_of_accepted), "ready", 10));
    }
    return all;
}

void put_rules(const std::string& backend, unsigned count) {
    if (const int status = run_shell(fmt::format("/tests-bench/rules.sh {} {}", backend, count)))
        fail("rules.sh {} {}: exit code {}", backend, count, status);
}

double median(std::vector<double> values) {
    std::ranges::sort(values);
    return values[values.size() / 2];
}

int run(const char* title, const std::string& backend, unsigned packets, unsigned rounds) {
    std::vector<Place> places;
    {
        const TracerProcess tsdroptrace(range_without_accepted);
        places = attached_places();
    }
    auto all = variants(places, backend);
    std::string left_out;
    std::erase_if(all, [&](const Variant& variant) {
        if (is_there(variant.program))
            return false;
        left_out += (left_out.empty() ? "" : "; ") + variant.name;
        return true;
    });

    std::vector<std::array<double, rule_counts.size()>> cost(all.size());
    std::array<std::array<double, 2>, rule_counts.size()> dropped{};
    std::array<double, rule_counts.size()> start{}, reading{};
    std::array<Memory, rule_counts.size()> memory{};
    for (std::size_t i = 0; i < rule_counts.size(); ++i) {
        const unsigned count = rule_counts[i];
        const unsigned few = std::max(20u, count < 10000 ? packets : packets / 4);
        put_rules(backend, count);
        {
            Packets flow(accepted_source);
            for (std::size_t v = 0; v < all.size(); ++v) {
                std::vector<double> samples;
                const auto attached = all[v].attach();
                const double busy = settle();
                flow.accepted(few / 5 / all[v].share + 1);
                for (unsigned round = 0; round < rounds; ++round)
                    samples.push_back(flow.accepted(std::max(1u, few / all[v].share)));
                cost[v][i] = median(samples);
                fmt::print(stderr, "bench: {} rules, {}: {} (at rest after {:.1f} s)\n", count, all[v].name,
                           grouped(cost[v][i]), busy);
            }
        }
        Packets flow(dropped_source);
        flow.dropped(few / 5 + 1);
        dropped[i][0] = flow.dropped(few);
        TracerProcess tsdroptrace(range_without_accepted);
        settle();
        flow.dropped(few / 5 + 1);
        reading[i] = settle();
        dropped[i][1] = flow.dropped(few);
        tsdroptrace.wait_until_quiet();
        start[i] = tsdroptrace.start_seconds();
        memory[i] = tsdroptrace.memory();
        tsdroptrace.stop();
        const Tally tally = tsdroptrace.tally();
        if (tally.counted != few + few / 5 + 1)
            fail("{} rules: {} of {} dropped packets in the summary", count, tally.counted, few + few / 5 + 1);
    }
    put_rules(backend, 0);

    utsname kernel{};
    uname(&kernel);
    const std::time_t now = std::time(nullptr);
    std::array<char, 16> date{};
    std::strftime(date.data(), date.size(), "%Y-%m-%d", std::gmtime(&now));
    fmt::print("## {}, with more and more rules: Linux {}, {}\n\n", title, kernel.release, date.data());
    fmt::print("| added to an accepted packet, instructions |");
    for (const unsigned count : rule_counts)
        fmt::print(" {} rules |", grouped(count));
    fmt::print("\n|---|---:|---:|---:|\n");
    for (std::size_t v = 0; v < all.size(); ++v) {
        fmt::print("| {} |", all[v].name);
        for (std::size_t i = 0; i < rule_counts.size(); ++i)
            fmt::print(" {} |",
                       v == nothing ? "(" + grouped(cost[v][i]) + ")" : grouped(cost[v][i] - cost[nothing][i]));
        fmt::print("\n");
    }
    const auto row = [](const char* name, const auto& value) {
        fmt::print("| {} |", name);
        for (std::size_t i = 0; i < rule_counts.size(); ++i)
            fmt::print(" {} |", value(i));
        fmt::print("\n");
    };
    constexpr double mib = 1024 * 1024;
    row("a dropped packet, all of tsdroptrace included", [&](auto i) { return grouped(dropped[i][1]); });
    row("a dropped packet, nothing attached", [&](auto i) { return grouped(dropped[i][0]); });
    row("dropped packets in a virtual second, traced", [&](auto i) { return grouped(1e9 / dropped[i][1]); });
    row("start until the start line, virtual seconds", [&](auto i) { return fmt::format("{:.2f}", start[i]); });
    row("after the first drop until it rests, virtual seconds",
        [&](auto i) { return fmt::format("{:.1f}", reading[i]); });
    row("resident memory, peak, MB",
        [&](auto i) { return fmt::format("{:.1f}", static_cast<double>(memory[i].resident_peak) / mib); });
    fmt::print("\n");
    if (!left_out.empty())
        fmt::print("Not in this VM, so not measured: {}.\n\n", left_out);

    // What it adds to empty programs must not grow with the rules. A thousandth of what the rules themselves take is
    // what repeats here: timers and the like fall into it.
    const auto over_floor = [&](std::size_t i) { return cost[outside][i] - cost[floor][i]; };
    const double grown = over_floor(rule_counts.size() - 1) - over_floor(0);
    const bool kept = grown <= cost[nothing].back() / 1000;
    fmt::print("Outside the filter, over empty programs: {:.0f} instructions with 10 rules, {:.0f} with 10,000: {}\n\n",
               over_floor(0), over_floor(rule_counts.size() - 1), kept ? "ok" : "**FAILED**");
    return kept ? 0 : 1;
}

} // namespace
} // namespace bench

int main(int argc, char** argv) {
    if (argc != 5)
        bench::fail("usage: compare TITLE BACKEND PACKETS ROUNDS");
    return bench::run(argv[1], argv[2], static_cast<unsigned>(std::strtoul(argv[3], nullptr, 10)),
                      static_cast<unsigned>(std::strtoul(argv[4], nullptr, 10)));
}
