// SPDX-License-Identifier: GPL-2.0-only
#include "options.h"

#include <algorithm>
#include <charconv>
#include <map>

#include <arpa/inet.h>

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include "util/text.h"

namespace tsdroptrace {
namespace {

Error wrong(std::string message) {
    return {ErrorKind::command_line, std::move(message)};
}

// Every option there is: the parser, --help and the messages are made from this.
struct Spec {
    std::string_view name;     // without the dashes
    std::string_view value;    // as --help shows it; empty for a flag
    std::string_view expected; // what a value looks like: "expected ..."
    std::string_view help;     // lines of at most 52 characters
};

constexpr std::string_view time_expected = "a time such as 10s, 500ms, 5m, 2h or 1d, ten years at most";
constexpr std::string_view file_expected = "the path of a file";

constexpr Spec specs[] = {
    {"dst", "CIDR[,CIDR...]", "a network or an address, such as 100.100.0.0/16 or fd7a:115c:a1e0::/48",
     "the remote side: packets to it, and the answers that\n"
     "come from it. IPv4, IPv6, a bare address, repeatable"},
    {"direction", "both|to|from", "both, to or from", "only packets to --dst, or only those from it"},
    {"all", "", "", "every destination; a busy machine drops a lot"},
    {"src", "CIDR[,CIDR...]", "a network or an address, such as 10.0.0.2 or 10.0.0.0/8",
     "the local side: only what it sends to --dst, and the\n"
     "answers to it"},
    {"port", "N[,N...]", "a port from 0 to 65535, such as 53", "either port; fragments without ports match, too"},
    {"proto", "NAME|N[,...]", "tcp, udp, icmp, icmpv6, sctp or a number from 0 to 255",
     "tcp, udp, icmp, icmpv6, sctp, or a number. (An ICMP\n"
     "error matches as the packet that it is about, too)"},
    {"iface", "NAME", "the name of a device, at most 15 bytes, such as eth0", "in or out by that device; repeatable"},
    {"netns", "PATH|NAME|INODE", "a network namespace: a path, a name of ip netns or the number of its inode",
     "dropped in that network namespace; repeatable"},
    {"reason", "NAME[,NAME...]", "names of this kernel's drop reasons, such as NETFILTER_DROP",
     "dropped for that reason of the kernel's"},
    {"rules-only", "", "", "only what a firewall's rule or policy dropped"},
    {"duration", "TIME", time_expected, "stop after 10s, 500ms, 5m, 2h, 1d (10 is 10s)"},
    {"count", "N", "a number of packets, at least 1", "stop after N dropped packets"},
    {"user", "NAME", "the name of a user, such as nobody", "run COMMAND as NAME; default: who called sudo"},
    {"summary-every", "TIME", time_expected, "a summary each TIME, not only at the end"},
    {"json", "", "", "JSON lines on standard output, nothing else there"},
    {"json-file", "PATH", file_expected, "JSON lines to PATH as well, appended"},
    {"no-seen", "", "", "do not count the packets that pass"},
    {"quiet", "", "", "only the summary"},
    {"verbose", "", "", "more diagnostics, and drops that are usually noise"},
    {"color", "auto|always|never", "auto, always or never", "default auto: on a terminal, unless NO_COLOR is set"},
    {"record", "FILE", file_expected, "write what the kernel said to FILE, for --replay"},
    {"replay", "FILE", file_expected, "show a recording again; any machine, any user"},
    {"print-schema", "", "", "print the JSON Schema of --json and exit"},
    {"version", "", "", "print the version and exit"},
    {"help", "", "", "print this and exit"},
};

// These belong to a recording, and cannot be had once it is made.
constexpr std::string_view filters[] = {"dst",   "all",   "direction", "src",        "port",   "proto",
                                        "iface", "netns", "reason",    "rules-only", "no-seen"};

const Spec& spec_of(std::string_view name) { // one of `specs`
    return *std::find_if(std::begin(specs), std::end(specs), [&](auto& spec) { return spec.name == name; });
}

struct Exclusion {
    std::string_view one, other, hint;
};

constexpr Exclusion exclusions[] = {
    {"dst", "all", "--all traces every destination, --dst only some: leave one of them out"},
    {"direction", "all", "a direction is relative to a range: give one with --dst instead of --all"},
    {"quiet", "verbose", "leave one of them out"},
    {"record", "replay", "a replayed file is a recording already: leave --record out"},
    {"duration", "replay", "a replay ends with its file: leave --duration out"},
    {"summary-every", "replay", "a replay has one summary, at its end: leave --summary-every out"},
    {"user", "replay", "a replay runs no command: leave --user out"},
};

std::string help_text() {
    std::string text = "Usage: tsdroptrace --dst CIDR[,CIDR...] [options] [-- COMMAND ARG...]\n"
                       "       tsdroptrace check ADDRESS[:PORT]/udp|tcp|icmp [options]\n\n"
                       "Shows which firewall rule drops packets to or from a destination, and what to\n"
                       "do about it. Changes nothing. Needs root, except for --replay.\n\n"
                       "check: sends a few packets of that kind there (a DNS query to port 53, a SYN, an\n"
                       "echo), watches both ways, and says within 3 s whether they get through: exit\n"
                       "code 0 reachable, 10 dropped on this machine, 11 lost elsewhere.\n\n"
                       "With COMMAND: traces while it runs, as the user who called sudo, and half a\n"
                       "second longer, and exits with its exit code. It gets SIGTERM and the first ^C;\n"
                       "a second ^C ends both. Where --duration or --count end the tracing before, it\n"
                       "goes on, and is waited for. With --json its output goes to standard error.\n\n"
                       "Options:\n";
    for (const Spec& spec : specs) {
        std::string left = fmt::format("  --{}{}{}", spec.name, spec.value.empty() ? "" : " ", spec.value);
        for (std::string_view rest = spec.help; !rest.empty();) {
            const auto line = rest.substr(0, rest.find('\n'));
            text += fmt::format("{:<28}{}\n", left, line);
            left.clear();
            rest.remove_prefix(std::min(rest.size(), line.size() + 1));
        }
    }
    return text + "\nExit codes: 0 stopped as asked, 2 wrong command line, 3 this kernel or these\n"
                  "privileges cannot do it, 1 anything else. Once COMMAND was started: its own,\n"
                  "128 + N where signal N ended it, 127 where it is not found, 126 where it cannot\n"
                  "be run.\n\n"
                  "Examples:\n"
                  "  tsdroptrace --dst 100.100.0.0/16\n"
                  "  tsdroptrace --dst 10.8.0.0/16,fd00::/8 --duration 30s --json\n"
                  "  tsdroptrace --dst 100.100.2.136 --port 53 --rules-only\n"
                  "  tsdroptrace --dst 100.100.0.0/16 -- dig @100.100.2.136 baidu.com\n";
}

Error unexpected_argument(std::string_view argument) {
    const std::string shown = printable(argument);
    if (!argument.starts_with('-')) {
        if (parse_cidr(argument)) {
            return wrong(fmt::format("unexpected argument {0}: try tsdroptrace --dst {0}", shown));
        }
        return wrong(fmt::format("unexpected argument {0}: expected options, or a command after --, as in tsdroptrace "
                                 "--dst 100.100.0.0/16 -- {0}",
                                 shown));
    }
    std::string_view name = argument.substr(std::min(argument.find_first_not_of('-'), argument.size()));
    name = name.substr(0, name.find('='));
    const auto near = std::min_element(std::begin(specs), std::end(specs), [&](const Spec& a, const Spec& b) {
        return edit_distance(name, a.name) < edit_distance(name, b.name);
    });
    if (!name.empty() && name.size() < 32 &&
        edit_distance(name, near->name) <= std::max<std::size_t>(2, near->name.size() / 3)) {
        return wrong(fmt::format("unknown option {}: did you mean --{}?", shown, near->name));
    }
    return wrong(fmt::format("unknown option {}: see tsdroptrace --help", shown));
}

Error bad_value(const Spec& spec, std::string_view value) {
    return wrong(
        fmt::format("--{} {}: expected {}", spec.name, value.empty() ? "\"\"" : printable(value), spec.expected));
}

Error no_value(const Spec& spec) {
    return wrong(
        fmt::format("--{0} has no value: expected {2}, as in --{0} {1}", spec.name, spec.value, spec.expected));
}

// What CLI11 still complains about once unknown arguments are ours: a value too few or a value for a flag. Its
// words differ between versions, the option's name is always one of them.
Error from_cli11(std::string_view what) {
    constexpr std::string_view letters = "abcdefghijklmnopqrstuvwxyz-";
    for (std::string_view rest = what; !rest.empty();) {
        rest.remove_prefix(std::min(rest.size(), rest.find_first_of(letters)));
        std::string_view word = rest.substr(0, rest.find_first_not_of(letters));
        rest.remove_prefix(word.size());
        word.remove_prefix(std::min(word.size(), word.find_first_not_of('-')));
        const auto spec = std::find_if(std::begin(specs), std::end(specs), [&](auto& s) { return s.name == word; });
        if (spec != std::end(specs)) {
            return spec->value.empty() ? wrong(fmt::format("--{0} takes no value: type --{0} alone", word))
                                       : no_value(*spec);
        }
    }
    return wrong(printable(what));
}

template <typename T>
std::optional<T> parse_number(std::string_view text) {
    T number{};
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
    if (error != std::errc{} || end != text.data() + text.size()) {
        return std::nullopt;
    }
    return number;
}

std::optional<std::chrono::milliseconds> parse_time(std::string_view text) {
    using namespace std::chrono_literals;
    static const std::map<std::string_view, std::chrono::milliseconds> units = {{"", 1s},    {"ms", 1ms}, {"s", 1s},
                                                                                {"m", 1min}, {"h", 1h},   {"d", 24h}};
    constexpr std::chrono::milliseconds longest = 24h * 3650;

    const auto digits = text.substr(0, text.find_first_not_of("0123456789"));
    const auto unit = units.find(text.substr(digits.size()));
    const auto number = parse_number<std::int64_t>(digits);
    if (!number || unit == units.end() || *number == 0 || *number > longest / unit->second) {
        return std::nullopt;
    }
    return *number * unit->second;
}

std::uint8_t address_bits(IpFamily family) {
    return family == IpFamily::ipv4 ? 32 : 128;
}

// The values of one option, as typed.
using Values = std::map<std::string_view, std::vector<std::string>>;

class Reader {
public:
    Reader(const Values& values) : values_(values) {}

    bool given(std::string_view name) const { return values_.contains(name); }

    // Sets `target` from the value of --name, if it was given and `parse` (text -> optional) takes it.
    template <typename Target, typename Parse>
    void read(std::string_view name, Target& target, Parse parse) {
        const auto found = values_.find(name);
        if (error_ || found == values_.end()) {
            return;
        }
        const Spec& spec = spec_of(name);
        if (found->second.size() > 1) {
            error_ = wrong(fmt::format("--{} was given {} times: expected once", name, found->second.size()));
        } else if (auto parsed = parse(found->second.front())) {
            target = *parsed;
        } else {
            error_ = bad_value(spec, found->second.front());
        }
    }

    std::optional<Error> error() const { return error_; }

private:
    const Values& values_;
    std::optional<Error> error_; // the first one
};

template <typename T>
auto one_of(std::map<std::string, T> names) {
    return [names](const std::string& text) {
        const auto found = names.find(text);
        return found == names.end() ? std::nullopt : std::optional(found->second);
    };
}

// Hands each item of an option's values to `take`, until that returns an error: of comma lists, where the option takes
// such.
template <typename Take>
std::optional<Error> each_item(const Spec& spec, const std::vector<std::string>& values, Take take) {
    const bool lists = spec.value.find(',') != std::string_view::npos;
    for (std::string_view rest : values) {
        for (bool more = true; more;) {
            const auto comma = lists ? rest.find(',') : std::string_view::npos;
            more = comma != std::string_view::npos;
            if (std::optional<Error> error = take(rest.substr(0, comma))) {
                return error;
            }
            rest.remove_prefix(more ? comma + 1 : rest.size());
        }
    }
    return std::nullopt;
}

std::optional<Error> parse_networks(const Spec& spec, const std::vector<std::string>& values,
                                    std::vector<Cidr>& networks) {
    return each_item(spec, values, [&](std::string_view item) -> std::optional<Error> {
        const auto network = parse_cidr(item);
        if (!network) {
            return wrong(fmt::format("--{} {}", spec.name, network.error().message));
        }
        if (networks.size() == Options::max_networks) {
            return wrong(fmt::format("--{} was given more than {} networks: give larger ones", spec.name,
                                     Options::max_networks));
        }
        networks.push_back(*network);
        return std::nullopt;
    });
}

// A list of what `parse` (text -> optional) makes of each item; what comes twice is taken once.
template <typename T, typename Parse>
std::optional<Error> parse_list(const Spec& spec, const std::vector<std::string>& values, std::size_t most,
                                std::vector<T>& list, Parse parse) {
    return each_item(spec, values, [&](std::string_view item) -> std::optional<Error> {
        const std::optional<T> parsed = parse(item);
        if (!parsed) {
            return bad_value(spec, item);
        }
        if (std::find(list.begin(), list.end(), *parsed) != list.end()) {
            return std::nullopt;
        }
        if (list.size() == most) {
            return wrong(fmt::format("--{} was given more than {} values: give fewer", spec.name, most));
        }
        list.push_back(*parsed);
        return std::nullopt;
    });
}

// Names as packets are shown with them, and numbers.
std::optional<std::uint8_t> parse_proto(std::string_view text) {
    if (const auto number = parse_number<std::uint8_t>(text)) {
        return number;
    }
    for (unsigned proto = 0; proto < 256; ++proto) {
        if (text == proto_name(static_cast<std::uint8_t>(proto))) {
            return static_cast<std::uint8_t>(proto);
        }
    }
    return std::nullopt;
}

// What the kernel takes for the name of a device (dev_valid_name); a comma is part of it.
std::optional<std::string> parse_device(std::string_view text) {
    constexpr std::size_t longest = 15;
    if (text.empty() || text.size() > longest || text == "." || text == ".." ||
        text.find_first_of("/: \t\n\v\f\r") != std::string_view::npos) {
        return std::nullopt;
    }
    return std::string(text);
}

std::optional<std::string> parse_reason(std::string_view text) {
    constexpr std::string_view letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_";
    return text.empty() || text.find_first_not_of(letters) != std::string_view::npos ? std::nullopt
                                                                                     : std::optional(std::string(text));
}

std::optional<std::string> not_empty(std::string_view text) {
    return text.empty() ? std::nullopt : std::optional(std::string(text));
}

std::optional<Error> read_filter(const Values& values, Options& options) {
    std::optional<Error> error; // the first one
    const auto read = [&](std::string_view name, std::size_t most, auto& target, auto parse) {
        if (const auto given = values.find(name); !error && given != values.end()) {
            error = parse_list(spec_of(name), given->second, most, target, parse);
        }
    };
    for (const auto& [name, networks] : {std::pair{"dst", &options.dst}, std::pair{"src", &options.src}}) {
        if (const auto given = values.find(name); !error && given != values.end()) {
            error = parse_networks(spec_of(name), given->second, *networks);
        }
    }
    read("port", Options::max_ports, options.ports, parse_number<std::uint16_t>);
    read("proto", 256, options.protos, parse_proto);
    read("iface", Options::max_devices, options.devices, parse_device);
    read("netns", Options::max_netns, options.netns, not_empty);
    read("reason", Options::max_reasons, options.reasons, parse_reason);
    return error;
}

struct CommandLine {
    std::vector<std::string> ours;
    std::optional<std::vector<std::string>> command; // what comes after the first "--", whatever it looks like
};

CommandLine split(int argc, const char* const* argv) {
    CommandLine typed{{argv + std::min(argc, 1), argv + argc}, std::nullopt};
    const auto dashes = std::find(typed.ours.begin(), typed.ours.end(), "--");
    if (dashes != typed.ours.end()) {
        typed.command.emplace(dashes + 1, typed.ours.end());
        typed.ours.erase(dashes, typed.ours.end());
    }
    return typed;
}

std::optional<Error> check_command(const Reader& reader, const std::optional<std::vector<std::string>>& command) {
    constexpr std::string_view example = "tsdroptrace --dst 100.100.0.0/16 -- dig @100.100.2.136 baidu.com";
    if (command && command->empty()) {
        return wrong(fmt::format("no command after --: expected one, as in {}", example));
    }
    if (command && reader.given("replay")) {
        return wrong("a command does not go with --replay: nothing is traced while a recording is shown: leave -- and "
                     "the command out");
    }
    if (!command && reader.given("user")) {
        return wrong(fmt::format("--user is for the command that is run: give one, as in {}", example));
    }
    return std::nullopt;
}

// The options and their values as typed, or what is wrong with their form.
Result<Values> tokenize(std::vector<std::string> arguments) {
    CLI::App app;
    app.set_help_flag();
    app.allow_extras();
    for (const Spec& spec : specs) {
        const std::string name = fmt::format("--{}", spec.name);
        if (spec.value.empty()) {
            app.add_flag(name)->disable_flag_override();
        } else {
            app.add_option(name)->expected(1)->take_all()->allow_extra_args(false);
        }
    }
    try {
        std::reverse(arguments.begin(), arguments.end()); // CLI11 takes them from the back
        app.parse(std::move(arguments));
    } catch (const CLI::ParseError& error) {
        return from_cli11(error.what());
    }

    Values values;
    for (const Spec& spec : specs) {
        const auto* option = app.get_option(fmt::format("--{}", spec.name));
        if (option->count() == 0) {
            continue;
        }
        values[spec.name] = option->results();
        for (const std::string& value : option->results()) {
            if (value.starts_with("--")) { // `--json-file --quiet` means no file of that name
                return no_value(spec);
            }
        }
    }
    for (const std::string& extra : app.remaining()) {
        if (!values.contains("help")) {
            return unexpected_argument(extra);
        }
    }
    return values;
}

} // namespace

std::string Cidr::text() const {
    const std::string address = Address{family, network}.text();
    return prefix == address_bits(family) ? address : fmt::format("{}/{}", address, prefix);
}

Result<Cidr> parse_cidr(std::string_view text) {
    const auto slash = text.find('/');
    const std::string address(text.substr(0, slash));
    const std::string shown = text.empty() ? "\"\"" : printable(text);

    Cidr cidr;
    // inet_pton stops at a NUL, which then would be taken for the end of the text.
    if (address.find('\0') == std::string::npos && inet_pton(AF_INET, address.c_str(), cidr.network.data()) == 1) {
        cidr.family = IpFamily::ipv4;
    } else if (address.find('\0') == std::string::npos &&
               inet_pton(AF_INET6, address.c_str(), cidr.network.data()) == 1) {
        cidr.family = IpFamily::ipv6;
    } else {
        return wrong(fmt::format("{} is not an address or a network: expected something like 100.100.0.0/16, "
                                 "100.100.2.136 or fd7a:115c:a1e0::/48 (names are not looked up)",
                                 shown));
    }

    const std::uint8_t bits = address_bits(cidr.family);
    cidr.prefix = bits;
    if (slash != std::string_view::npos) {
        const auto prefix = parse_number<std::uint8_t>(text.substr(slash + 1));
        if (!prefix || *prefix > bits) {
            return wrong(fmt::format("{} has a wrong prefix length: expected 0 to {}, as in {}/{}", shown, bits,
                                     address, bits == 32 ? 16 : 48));
        }
        cidr.prefix = *prefix;
    }

    const auto as_typed = cidr.network;
    for (std::size_t bit = cidr.prefix; bit < bits; ++bit) {
        cidr.network[bit / 8] &= static_cast<std::uint8_t>(~(0x80u >> (bit % 8)));
    }
    if (cidr.network != as_typed) {
        const Cidr host{cidr.family, as_typed, bits};
        return wrong(fmt::format("{} has host bits set: did you mean {} or {}?", shown, cidr.text(), host.text()));
    }
    return cidr;
}

// These do not go with `check`, which has a filter and an end of its own.
constexpr std::string_view not_with_check[] = {
    "dst",    "all",        "direction", "src",      "port",  "proto",         "iface",  "netns",
    "reason", "rules-only", "no-seen",   "duration", "count", "summary-every", "replay", "user"};

std::optional<Error> read_check(const std::string& typed, const Reader& reader, bool command, Options& options) {
    const auto target = check::parse_target(typed);
    if (!target)
        return wrong("check: " + target.error().message);
    for (const std::string_view name : not_with_check)
        if (reader.given(name))
            return wrong(
                fmt::format("--{0} does not go with check, which traces what it sends itself: leave --{0} out", name));
    if (command)
        return wrong("check runs no command: leave -- and what follows out");
    options.check = *target;
    const bool ipv6 = target->address.family == IpFamily::ipv6;
    options.dst = {Cidr{target->address.family, target->address.bytes, static_cast<std::uint8_t>(ipv6 ? 128 : 32)}};
    constexpr std::uint8_t tcp = 6, udp = 17, icmp = 1, icmpv6 = 58;
    options.protos = {target->kind == check::Kind::tcp   ? tcp
                      : target->kind == check::Kind::udp ? udp
                      : ipv6                             ? icmpv6
                                                         : icmp};
    if (target->kind != check::Kind::icmp)
        options.ports = {target->port};
    return std::nullopt;
}

Result<std::variant<Options, PrintAndExit>> parse(int argc, const char* const* argv, const Environment& environment) {
    CommandLine typed = split(argc, argv);
    const bool is_check = !typed.ours.empty() && std::string_view(typed.ours.front()) == "check";
    std::optional<std::string> target;
    if (is_check) {
        typed.ours.erase(typed.ours.begin());
        if (!typed.ours.empty() && !std::string_view(typed.ours.front()).starts_with('-')) {
            target = typed.ours.front();
            typed.ours.erase(typed.ours.begin());
        }
    }
    const auto values = tokenize(typed.ours);
    if (!values) {
        return values.error();
    }
    Reader reader(*values);

    if (reader.given("help")) {
        return std::variant<Options, PrintAndExit>(PrintAndExit{PrintAndExit::What::help, help_text()});
    }
    if (reader.given("version")) {
        return std::variant<Options, PrintAndExit>(
            PrintAndExit{PrintAndExit::What::version, "tsdroptrace " TSDROPTRACE_VERSION "\n"});
    }
    if (reader.given("print-schema")) {
        return std::variant<Options, PrintAndExit>(PrintAndExit{PrintAndExit::What::schema, ""});
    }
    for (const Exclusion& exclusion : exclusions) {
        if (reader.given(exclusion.one) && reader.given(exclusion.other)) {
            return wrong(fmt::format("--{} does not go with --{}: {}", exclusion.one, exclusion.other, exclusion.hint));
        }
    }
    if (const auto error = check_command(reader, typed.command)) {
        return *error;
    }
    for (const std::string_view filter : filters) {
        if (reader.given("replay") && reader.given(filter)) {
            return wrong(fmt::format("--{0} does not go with --replay: a replay shows what was recorded, with the "
                                     "filter of that time: leave --{0} out",
                                     filter));
        }
    }

    std::variant<Options, PrintAndExit> parsed;
    Options& options = std::get<Options>(parsed);
    enum class Color { automatic, always, never } color = Color::automatic;
    const auto path = [](const std::string& text) { return text.empty() ? std::nullopt : std::optional(text); };
    const auto positive = [](const std::string& text) {
        const auto number = parse_number<std::uint64_t>(text);
        return number == 0u ? std::nullopt : number;
    };

    options.all = reader.given("all");
    options.rules_only = reader.given("rules-only");
    options.seen = !reader.given("no-seen");
    options.json = reader.given("json");
    options.quiet = reader.given("quiet");
    options.verbose = reader.given("verbose");
    reader.read("direction", options.direction,
                one_of<DirectionFilter>(
                    {{"both", DirectionFilter::both}, {"to", DirectionFilter::to}, {"from", DirectionFilter::from}}));
    reader.read("color", color,
                one_of<Color>({{"auto", Color::automatic}, {"always", Color::always}, {"never", Color::never}}));
    reader.read("duration", options.duration, parse_time);
    reader.read("summary-every", options.summary_every, parse_time);
    reader.read("count", options.count, positive);
    reader.read("json-file", options.json_file, path);
    reader.read("record", options.record, path);
    reader.read("replay", options.replay, path);
    reader.read("user", options.user, path);
    options.command = typed.command.value_or(std::vector<std::string>());
    if (const auto error = reader.error()) {
        return *error;
    }

    if (const auto error = read_filter(*values, options)) {
        return *error;
    }
    if (is_check && !target) {
        return wrong("check what? Say an address, a port and a protocol, as in tsdroptrace check 100.100.2.136:53/udp");
    }
    if (target) {
        if (const auto error = read_check(*target, reader, typed.command.has_value(), options)) {
            return *error;
        }
    } else if (!reader.given("dst") && !options.all && !options.replay) {
        return wrong("no --dst: say what to trace, as in tsdroptrace --dst 100.100.0.0/16 (or --all for everything)");
    }

    const bool no_color = environment.no_color && *environment.no_color;
    options.color = color == Color::always || (color == Color::automatic && environment.stdout_is_tty && !no_color);
    return parsed;
}

namespace {

// "a, b, c, d and 2 more": the filter is one line of the output.
template <typename T, typename Show>
std::string few(const std::vector<T>& all, Show show) {
    constexpr std::size_t shown = 4;
    std::string text;
    for (std::size_t i = 0; i < std::min(shown, all.size()); ++i) {
        text += (i ? ", " : "") + show(all[i]);
    }
    if (all.size() > shown) {
        text += fmt::format(" and {} more", all.size() - shown);
    }
    return text;
}

} // namespace

std::string filter_text(const Options& options) {
    if (options.replay) {
        return "";
    }
    const auto network = [](const Cidr& cidr) { return cidr.text(); };
    const auto as_is = [](const std::string& name) { return name; };
    std::string text = options.all ? "everything" : few(options.dst, network);
    if (!options.all) {
        switch (options.direction) {
        case DirectionFilter::both:
            text += ", both ways";
            break;
        case DirectionFilter::to:
            text += ", only packets to it";
            break;
        case DirectionFilter::from:
            text += ", only packets from it";
            break;
        }
    }
    const auto add = [&](std::string_view what, const auto& list, auto show) {
        if (!list.empty()) {
            text += fmt::format("; {} {}", what, few(list, show));
        }
    };
    add("local side", options.src, network);
    add("port", options.ports, [](std::uint16_t port) { return std::to_string(port); });
    add("proto", options.protos, proto_name);
    add("device", options.devices, as_is);
    add("netns", options.netns, as_is);
    add("reason", options.reasons, as_is);
    if (options.rules_only) {
        text += "; only rules and policies";
    }
    return text;
}

} // namespace tsdroptrace
