// SPDX-License-Identifier: GPL-2.0-only
// What tsdroptrace costs. Runs in a test VM, after guest.sh has set up the incident's rules there:
//
//   bench TITLE LIMIT_PERCENT PACKETS ROUNDS FLOOD COUNTER_COMMAND
//
// prints two tables in Markdown: the cost of a packet that the rules accept (PACKETS of them in each of ROUNDS, for
// every variant in turn), and the limits that tsdroptrace has set itself, LIMIT_PERCENT among them, after FLOOD dropped
// packets as fast as they come. COUNTER_COMMAND prints the packet counter of the rule that drops them.
//
// Exit code: 0 all limits are kept, 1 one is not, 2 could not measure.
#include <algorithm>
#include <array>
#include <cstdint>
#include <ctime>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <sys/utsname.h>

#include "empty_programs.h"
#include "fail.h"
#include "packets.h"
#include "tracer_process.h"

namespace bench {
namespace {

constexpr unsigned warm_up = 1000;

// ---- the cost of a packet that passes ----

struct Samples {
    std::vector<double> values;

    double median() const {
        auto sorted = values;
        std::ranges::sort(sorted);
        return sorted[sorted.size() / 2];
    }
    double spread_percent() const {
        const auto [least, most] = std::ranges::minmax(values);
        return (most - least) / median() * 100;
    }
};

struct Variant {
    const char* name;
    std::function<std::shared_ptr<void>()> attach; // detached when the result is destroyed
    Samples nanoseconds;
};

enum { nothing, pair, floor, outside, matching, seen_floor, seen_outside, seen_matching, variants_count };

struct Costs {
    std::array<Variant, variants_count> variants;
    Samples start_seconds;

    double of(int variant) const { return variants[variant].nanoseconds.median(); }
    double added(int variant) const { return of(variant) - of(nothing); }
    // Of what empty programs at the same places add.
    double of_floor(int variant) const { return added(variant) / added(variant < seen_floor ? floor : seen_floor); }
    // Of what empty programs add at those places where passing packets are counted.
    double of_seen_floor() const { return (of(seen_outside) - of(outside)) / (of(seen_floor) - of(floor)); }
};

// `places`: where tsdroptrace attaches; `seen_places`: where it does when it counts the packets that pass as well.
Costs measure_costs(const std::vector<Place>& places, const std::vector<Place>& seen_places, unsigned packets,
                    unsigned rounds) {
    Costs costs;
    const auto empty = [](std::vector<Place> where) {
        return [where = std::move(where)]() -> std::shared_ptr<void> { return std::make_shared<EmptyPrograms>(where); };
    };
    const auto tsdroptrace = [&costs](const char* range, bool seen) {
        return [&costs, range, seen]() -> std::shared_ptr<void> {
            auto process = std::make_shared<TracerProcess>(range, seen);
            if (seen) // as users start it
                costs.start_seconds.values.push_back(process->start_seconds());
            return process;
        };
    };
    costs.variants[nothing] = {"nothing attached", [] { return nullptr; }, {}};
    costs.variants[pair] = {"empty programs: both ends of the table function, kfree_skb", empty(pair_of(places)), {}};
    costs.variants[floor] = {"empty programs everywhere that tsdroptrace attaches: the floor", empty(places), {}};
    costs.variants[outside] = {
        "tsdroptrace --no-seen, packet outside the filter", tsdroptrace(range_without_accepted, false), {}};
    costs.variants[matching] = {
        "tsdroptrace --no-seen, packet that matches the filter", tsdroptrace(range_of_accepted, false), {}};
    costs.variants[seen_floor] = {"the floor where passing packets are counted, too", empty(seen_places), {}};
    costs.variants[seen_outside] = {
        "tsdroptrace, packet outside the filter", tsdroptrace(range_without_accepted, true), {}};
    costs.variants[seen_matching] = {
        "tsdroptrace, packet that matches the filter", tsdroptrace(range_of_accepted, true), {}};

    Packets flow(accepted_source);
    for (unsigned round = 0; round < rounds; ++round) {
        for (Variant& variant : costs.variants) {
            const auto attached = variant.attach();
            settle();
            flow.accepted(warm_up);
            variant.nanoseconds.values.push_back(flow.accepted(packets));
        }
        fmt::print(stderr, "bench: round {} of {}\n", round + 1, rounds);
    }
    return costs;
}

// ---- packets that are dropped, as fast as they come ----

struct Flood {
    unsigned sent = 0;
    std::uint64_t rule_counter = 0;
    Tally tally;
    Memory memory;
    double untraced = 0, traced = 0; // nanoseconds for each packet
};

std::uint64_t rule_counter(const std::string& command) {
    const std::unique_ptr<FILE, int (*)(FILE*)> pipe(popen(command.c_str(), "r"), pclose);
    unsigned long long counter = 0;
    if (!pipe || std::fscanf(pipe.get(), "%llu", &counter) != 1)
        fail("no counter from: {}", command);
    return counter;
}

Flood measure_flood(unsigned count, const std::string& counter_command) {
    Flood flood;
    flood.sent = count;
    Packets flow(dropped_source);
    flow.dropped(warm_up);
    flood.untraced = flow.dropped(std::min(count, 10000u));

    TracerProcess tsdroptrace(range_without_accepted);
    settle();
    const std::uint64_t before = rule_counter(counter_command);
    flood.traced = flow.dropped(count);
    tsdroptrace.wait_until_quiet(); // what is in the ring buffer still becomes lines
    flood.rule_counter = rule_counter(counter_command) - before;
    flood.memory = tsdroptrace.memory();
    tsdroptrace.stop();
    flood.tally = tsdroptrace.tally();
    return flood;
}

// ---- the report ----

void print_costs(const Costs& costs) {
    fmt::print("| Packet that the rules accept | instructions | added | of what the floor adds | of nothing attached | "
               "spread |\n"
               "|---|---:|---:|---:|---:|---:|\n");
    for (int i = 0; i < variants_count; ++i) {
        const Variant& variant = costs.variants[i];
        fmt::print("| {} | {} | {} | {} | ×{:.3f} | {:.1f} % |\n", variant.name, grouped(costs.of(i)),
                   grouped(costs.added(i)), i < floor ? "" : fmt::format("×{:.2f}", costs.of_floor(i)),
                   costs.of(i) / costs.of(nothing), variant.nanoseconds.spread_percent());
    }
    fmt::print("\n");
}

class Limits {
public:
    Limits() { fmt::print("| | measured | limit | |\n|---|---:|---:|---|\n"); }

    void check(const std::string& what, const std::string& measured, const std::string& limit, bool kept) {
        fmt::print("| {} | {} | {} | {} |\n", what, measured, limit, kept ? "ok" : "**FAILED**");
        all_kept_ &= kept;
    }
    void note(const std::string& what, const std::string& measured) { fmt::print("| {} | {} | | |\n", what, measured); }
    bool all_kept() const { return all_kept_; }

private:
    bool all_kept_ = true;
};

bool check_limits(const Costs& costs, const Flood& flood, double limit_percent) {
    constexpr double mib = 1024 * 1024;
    const double of_floor = costs.of_floor(outside), with_seen = costs.of_floor(seen_outside);
    const double percent = costs.added(outside) / costs.of(nothing) * 100;
    const double start = costs.start_seconds.median();
    const Tally& tally = flood.tally;

    Limits limits;
    limits.check("outside the filter: of what the floor adds", fmt::format("×{:.2f}", of_floor), "×1.20",
                 of_floor <= 1.2);
    limits.check("the same where passing packets are counted", fmt::format("×{:.2f}", with_seen), "×1.20",
                 with_seen <= 1.20);
    limits.note("counting them alone: of what the floor adds", fmt::format("×{:.2f}", costs.of_seen_floor()));
    limits.check("outside the filter: over nothing attached", fmt::format("{:.1f} %", percent),
                 fmt::format("{:.0f} %", limit_percent), percent <= limit_percent);
    limits.check("start until the start line, virtual time", fmt::format("{:.2f} s", start), "0.50 s", start <= 0.5);
    limits.check("dropped packets: the rule's counter", grouped(static_cast<double>(flood.rule_counter)),
                 grouped(flood.sent), flood.rule_counter == flood.sent);
    limits.check("dropped packets: in the summary", grouped(static_cast<double>(tally.counted)),
                 grouped(static_cast<double>(flood.rule_counter)), tally.counted == flood.rule_counter);
    limits.check("dropped packets: shown in detail or in a lost line",
                 grouped(static_cast<double>(tally.shown + tally.lost)), grouped(static_cast<double>(tally.counted)),
                 tally.shown + tally.lost == tally.counted);
    limits.note("dropped packets: shown in detail",
                fmt::format("{} ({:.0f} %)", grouped(static_cast<double>(tally.shown)),
                            100.0 * static_cast<double>(tally.shown) / flood.sent));
    limits.note("instructions for a dropped packet, all of tsdroptrace included",
                fmt::format("{} (nothing attached: {})", grouped(flood.traced), grouped(flood.untraced)));
    limits.check("resident memory of the process, peak",
                 fmt::format("{:.1f} MB", static_cast<double>(flood.memory.resident_peak) / mib), "32 MB",
                 static_cast<double>(flood.memory.resident_peak) < 32 * mib);
    limits.note("resident memory of the process after that",
                fmt::format("{:.1f} MB", static_cast<double>(flood.memory.resident) / mib));
    limits.check("BPF maps", fmt::format("{:.1f} MB", static_cast<double>(flood.memory.maps) / mib), "16 MB",
                 static_cast<double>(flood.memory.maps) < 16 * mib);
    fmt::print("\n");
    return limits.all_kept();
}

unsigned number(const char* text) {
    const unsigned long value = std::strtoul(text, nullptr, 10);
    if (value == 0 || value > 100'000'000)
        fail("not a number of packets, rounds or per cent: {}", text);
    return static_cast<unsigned>(value);
}

int run(const char* title, unsigned limit_percent, unsigned packets, unsigned rounds, unsigned flood_packets,
        const std::string& counter_command) {
    const auto places_of = [](bool seen) {
        const TracerProcess tsdroptrace(range_without_accepted, seen); // the first start also finds the disk cache cold
        return attached_places();
    };
    const std::vector<Place> places = places_of(false), seen_places = places_of(true);
    const Costs costs = measure_costs(places, seen_places, packets, rounds);
    const Flood flood = measure_flood(flood_packets, counter_command);

    utsname kernel{};
    uname(&kernel);
    const std::time_t now = std::time(nullptr);
    std::array<char, 16> date{};
    std::strftime(date.data(), date.size(), "%Y-%m-%d", std::gmtime(&now));
    fmt::print("## {}: Linux {}, {}, {} rounds of {} packets\n\n", title, kernel.release, date.data(), rounds,
               grouped(packets));
    print_costs(costs);
    const bool kept = check_limits(costs, flood, limit_percent);
    fmt::print("Attached:");
    for (const Place& place : seen_places)
        fmt::print(" {}", place.section);
    fmt::print("\n\n");
    return kept ? 0 : 1;
}

} // namespace
} // namespace bench

int main(int argc, char** argv) {
    if (argc != 7)
        bench::fail("usage: bench TITLE LIMIT_PERCENT PACKETS ROUNDS FLOOD COUNTER_COMMAND");
    return bench::run(argv[1], bench::number(argv[2]), bench::number(argv[3]), bench::number(argv[4]),
                      bench::number(argv[5]), argv[6]);
}
