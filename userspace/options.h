// SPDX-License-Identifier: GPL-2.0-only
// The command line: what the user typed in, what to trace and how to show it out. Pure: no environment, no
// terminal and no file is touched here.
#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "check/target.h"
#include "model.h"
#include "util/result.h"

namespace tsdroptrace {

struct Cidr {
    IpFamily family = IpFamily::ipv4;
    std::array<std::uint8_t, 16> network{}; // network order, IPv4 in the first four; no bit is set beyond the prefix
    std::uint8_t prefix = 0;                // 0..32 or 0..128
    std::string text() const;               // "100.100.0.0/16"; a bare address for a host route
    bool operator==(const Cidr&) const = default;
};

// "100.100.0.0/16", "fd7a::/48" or a bare address. Fails with one sentence that quotes `text` and says what to
// type instead; the caller adds where `text` came from.
Result<Cidr> parse_cidr(std::string_view text);

enum class DirectionFilter { both, to, from };

struct Options {
    // Entries of the kernel's maps.
    static constexpr std::size_t max_networks = 1024, max_ports = 1024, max_reasons = 256, max_devices = 64,
                                 max_netns = 64;

    std::vector<Cidr> dst; // the remote side; empty with `all` and with `replay` only
    bool all = false;
    DirectionFilter direction = DirectionFilter::both;
    // Each of these narrows it; empty: does not.
    std::vector<Cidr> src;            // the local side
    std::vector<std::uint16_t> ports; // host order; either port of a packet
    std::vector<std::uint8_t> protos; // IPPROTO_*
    std::vector<std::string> devices; // possible names of devices: in or out
    std::vector<std::string> netns;   // paths, names or inodes, not resolved yet
    std::vector<std::string> reasons; // as typed: the running kernel knows which there are
    bool rules_only = false;
    bool seen = true; // count the packets that pass

    bool json = false;
    std::optional<std::string> json_file;
    bool quiet = false;
    bool verbose = false;
    bool color = false; // --color and the environment together

    std::optional<std::chrono::milliseconds> duration, summary_every; // at least 1 ms, at most ten years
    std::optional<std::uint64_t> count;                               // at least 1

    std::optional<check::Target> check;        // tsdroptrace check TARGET: dst, ports and protos are the target's
    std::optional<std::string> record, replay; // paths, not opened yet

    std::vector<std::string> command; // to run while tracing, and its arguments; empty: none
    std::optional<std::string> user;  // who runs it
};

struct PrintAndExit {
    enum class What { help, version, schema };
    What what = What::help;
    std::string text; // for standard output, with its newline; empty for schema, which the output stage knows
};

// What the environment says, read by main: color "auto" depends on it.
struct Environment {
    bool stdout_is_tty = false;
    const char* no_color = nullptr; // $NO_COLOR: any text but the empty one turns color off
};

// argv[0] is skipped. An error is always ErrorKind::command_line with one line for the user.
Result<std::variant<Options, PrintAndExit>> parse(int argc, const char* const* argv, const Environment& environment);

// The filter as a person would write it: "100.100.0.0/16, both ways, port 53"; "everything" for --all. A replay has the
// filter of its recording, which this does not know: empty.
std::string filter_text(const Options& options);

} // namespace tsdroptrace
