// SPDX-License-Identifier: GPL-2.0-only
#include "options.h"

#include <algorithm>
#include <sstream>

#include "catch.h"

using namespace tsdroptrace;
using namespace std::chrono_literals;

namespace {

Result<std::variant<Options, PrintAndExit>> parse_all(std::vector<const char*> arguments,
                                                      Environment environment = {}) {
    arguments.insert(arguments.begin(), "tsdroptrace");
    return parse(static_cast<int>(arguments.size()), arguments.data(), environment);
}

Options accepted(const std::vector<const char*>& arguments, Environment environment = {}) {
    const auto result = parse_all(arguments, environment);
    INFO((result ? "" : result.error().message));
    REQUIRE(result);
    return std::get<Options>(*result);
}

std::string refused(const std::vector<const char*>& arguments) {
    const auto result = parse_all(arguments);
    REQUIRE_FALSE(result);
    CHECK(result.error().kind == ErrorKind::command_line);
    CHECK(result.error().message.find('\n') == std::string::npos);
    return result.error().message;
}

PrintAndExit printed(const std::vector<const char*>& arguments) {
    const auto result = parse_all(arguments);
    REQUIRE(result);
    return std::get<PrintAndExit>(*result);
}

std::string cidr_error(std::string_view text) {
    const auto result = parse_cidr(text);
    REQUIRE_FALSE(result);
    return result.error().message;
}

} // namespace

TEST_CASE("options: --dst is repeatable and takes comma lists of both families") {
    const auto options = accepted({"--dst", "100.100.0.0/16,10.1.2.3", "--dst=fd7a:115c:a1e0::/48", "--dst", "::/0"});
    REQUIRE(options.dst.size() == 4);
    CHECK(options.dst[0] == Cidr{IpFamily::ipv4, {100, 100}, 16});
    CHECK(options.dst[1] == Cidr{IpFamily::ipv4, {10, 1, 2, 3}, 32});
    CHECK(options.dst[2] == Cidr{IpFamily::ipv6, {0xfd, 0x7a, 0x11, 0x5c, 0xa1, 0xe0}, 48});
    CHECK(options.dst[3] == Cidr{IpFamily::ipv6, {}, 0});
    CHECK(options.direction == DirectionFilter::both);
    CHECK_FALSE(options.all);
}

TEST_CASE("options: a network with host bits names the right one") {
    CHECK(cidr_error("10.0.0.1/8") == "10.0.0.1/8 has host bits set: did you mean 10.0.0.0/8 or 10.0.0.1?");
    CHECK(cidr_error("100.127.255.255/10").find("did you mean 100.64.0.0/10 or") != std::string::npos);
    CHECK(cidr_error("fd7a:115c:a1e0:8000::1/49")
              .find("did you mean fd7a:115c:a1e0:8000::/49 or fd7a:115c:a1e0:8000::1?") != std::string::npos);
    CHECK(cidr_error("1.2.3.4/0").find("did you mean 0.0.0.0/0 or 1.2.3.4?") != std::string::npos);
}

TEST_CASE("options: what is no network is refused and quoted") {
    for (const char* text : {"", "10.1", "example.com", "10.0.0.256", "10.0.0.0.0", "fd7a::1::2", "fe80::1%eth0",
                             " 10.0.0.1", "/8", "0x0a.0.0.1"}) {
        CHECK(cidr_error(text).find("is not an address or a network") != std::string::npos);
    }
    for (const char* text : {"10.0.0.0/", "10.0.0.0/33", "10.0.0.0/-1", "10.0.0.0/8/8", "10.0.0.0/255.0.0.0",
                             "10.0.0.0/256", "fd00::/129", "10.0.0.0/8 "}) {
        CHECK(cidr_error(text).find("wrong prefix length") != std::string::npos);
    }
    using namespace std::string_view_literals;
    CHECK(cidr_error("10.0.0.1\0evil"sv).find("is not an address") != std::string::npos);
    CHECK(cidr_error("\x1b[2Jx").find('\x1b') == std::string::npos);
    CHECK(refused({"--dst", "10.0.0.0/8,"}).starts_with("--dst \"\" is not an address"));
    CHECK(refused({"--dst", "10.0.0.1/8"}).starts_with("--dst 10.0.0.1/8 has host bits set"));
    CHECK(refused({"--dst", ""}).starts_with("--dst \"\" is not an address"));
    CHECK(refused({"--dst", "[10.0.0.1]"}).starts_with("--dst [10.0.0.1] is not an address"));
}

TEST_CASE("options: Cidr::text is what a person types") {
    CHECK(parse_cidr("100.100.0.0/16")->text() == "100.100.0.0/16");
    CHECK(parse_cidr("100.100.2.136/32")->text() == "100.100.2.136");
    CHECK(parse_cidr("fd7a::/48")->text() == "fd7a::/48");
    CHECK(parse_cidr("::1")->text() == "::1");
    CHECK(parse_cidr("0.0.0.0/0")->text() == "0.0.0.0/0");
}

TEST_CASE("options: no destination says what to type") {
    CHECK(refused({}).find("tsdroptrace --dst 100.100.0.0/16") != std::string::npos);
    CHECK(refused({"--json"}).starts_with("no --dst"));
    CHECK(accepted({"--all"}).all);
    CHECK(accepted({"--replay", "x.rec"}).replay == "x.rec");

    const char* no_name[] = {nullptr};
    CHECK_FALSE(parse(0, no_name, {})); // execve with an empty argv
}

TEST_CASE("options: at most 1024 networks") {
    std::string list = "10.0.0.0";
    for (int i = 1; i < 1024; ++i) {
        list += ",10.0." + std::to_string(i / 256) + "." + std::to_string(i % 256);
    }
    CHECK(accepted({"--dst", list.c_str()}).dst.size() == 1024);
    CHECK(refused({"--dst", list.c_str(), "--dst", "10.1.0.0"}).find("more than 1024") != std::string::npos);
}

TEST_CASE("options: --src is a list of networks, as --dst is") {
    const auto options = accepted({"--dst", "::/0", "--src", "10.0.0.0/8,fd00::1", "--src", "192.0.2.1"});
    REQUIRE(options.src.size() == 3);
    CHECK(options.src[0] == Cidr{IpFamily::ipv4, {10}, 8});
    CHECK(options.src[1].prefix == 128);
    CHECK(options.src[2].text() == "192.0.2.1");
    CHECK(accepted({"--all", "--src", "10.0.0.2"}).src.size() == 1);
    CHECK(refused({"--src", "10.0.0.2"}).starts_with("no --dst"));
    CHECK(refused({"--all", "--src", "10.0.0.1/8"}).starts_with("--src 10.0.0.1/8 has host bits set"));
    CHECK(refused({"--all", "--src", "eth0"}).starts_with("--src eth0 is not an address"));
}

TEST_CASE("options: --port is a list of ports") {
    CHECK(accepted({"--all", "--port", "53,0", "--port", "65535", "--port=53"}).ports ==
          std::vector<std::uint16_t>{53, 0, 65535});
    for (const char* text : {"65536", "-1", "dns", "53-60", "0x35", " 53", "53 "}) {
        CHECK(refused({"--all", "--port", text}) ==
              std::string("--port ") + text + ": expected a port from 0 to 65535, such as 53");
    }
    CHECK(refused({"--all", "--port", "53,,54"}).starts_with("--port \"\": expected"));
    CHECK(refused({"--all", "--port"}).starts_with("--port has no value"));
    std::string list = "1";
    for (int port = 2; port <= 1024; ++port) {
        list += "," + std::to_string(port);
    }
    CHECK(accepted({"--all", "--port", list.c_str()}).ports.size() == 1024);
    CHECK(refused({"--all", "--port", list.c_str(), "--port", "1025"}).find("more than 1024") != std::string::npos);
}

TEST_CASE("options: --proto takes the names that packets are shown with, and numbers") {
    CHECK(accepted({"--all", "--proto", "tcp,udp,icmp,icmpv6", "--proto", "sctp,47,0,255"}).protos ==
          std::vector<std::uint8_t>{6, 17, 1, 58, 132, 47, 0, 255});
    CHECK(accepted({"--all", "--proto", "gre"}).protos == std::vector<std::uint8_t>{47});
    for (const char* text : {"TCP", "upd", "256", "-1", ""}) {
        CHECK(refused({"--all", "--proto", text})
                  .find("expected tcp, udp, icmp, icmpv6, sctp or a number from 0 to 255") != std::string::npos);
    }
}

TEST_CASE("options: --iface takes what the kernel takes for a device's name") {
    CHECK(accepted({"--all", "--iface", "eth0", "--iface", "a,b", "--iface", "fifteen-letters"}).devices ==
          std::vector<std::string>{"eth0", "a,b", "fifteen-letters"});
    for (const char* text : {"", "sixteen-letters-", "a/b", "a b", "eth0:1", ".", ".."}) {
        CHECK(refused({"--all", "--iface", text}).find("expected the name of a device") != std::string::npos);
    }
}

TEST_CASE("options: --netns, --reason and --rules-only") {
    const auto options = accepted({"--all", "--netns", "/run/netns/a,b", "--netns", "4026531840", "--reason",
                                   "NO_SOCKET,SKB_DROP_REASON_NETFILTER_DROP", "--rules-only"});
    CHECK(options.netns == std::vector<std::string>{"/run/netns/a,b", "4026531840"});
    CHECK(options.reasons == std::vector<std::string>{"NO_SOCKET", "SKB_DROP_REASON_NETFILTER_DROP"});
    CHECK(options.rules_only);
    CHECK_FALSE(accepted({"--all"}).rules_only);
    CHECK(refused({"--all", "--netns", ""}).find("expected a network namespace") != std::string::npos);
    CHECK(refused({"--all", "--reason", "no socket"}).find("expected names of this kernel's") != std::string::npos);
    CHECK(refused({"--all", "--reason", "A,"}).starts_with("--reason \"\""));
    CHECK(refused({"--all", "--rules-only=1"}) == "--rules-only takes no value: type --rules-only alone");
}

TEST_CASE("options: times have units") {
    const auto duration = [](const char* text) { return *accepted({"--all", "--duration", text}).duration; };
    CHECK(duration("10") == 10s);
    CHECK(duration("10s") == 10s);
    CHECK(duration("500ms") == 500ms);
    CHECK(duration("5m") == 5min);
    CHECK(duration("2h") == 2h);
    CHECK(duration("1d") == 24h);
    CHECK(accepted({"--all", "--summary-every", "1m"}).summary_every == 60s);
    for (const char* text :
         {"0", "0s", "10x", "s", "1.5s", "10 s", "4000d", "99999999999999999999", "9223372036854775807d", "1ns"}) {
        CHECK(refused({"--all", "--duration", text}) ==
              std::string("--duration ") + text +
                  ": expected a time such as 10s, 500ms, 5m, 2h or 1d, ten years at most");
    }
    CHECK(refused({"--all", "--duration", "-5"}).find("--duration") != std::string::npos);
}

TEST_CASE("options: --count is a positive number") {
    CHECK(accepted({"--all", "--count", "18446744073709551615"}).count == 18446744073709551615ull);
    for (const char* text : {"0", "x", "1e3", "10s", "18446744073709551616"}) {
        CHECK(refused({"--all", "--count", text})
                  .starts_with(std::string("--count ") + text + ": expected a number of packets"));
    }
}

TEST_CASE("options: direction, output and files") {
    CHECK(accepted({"--dst", "::/0", "--direction", "to"}).direction == DirectionFilter::to);
    CHECK(accepted({"--dst", "::/0", "--direction", "from"}).direction == DirectionFilter::from);
    CHECK(refused({"--dst", "::/0", "--direction", "in"}) == "--direction in: expected both, to or from");

    const auto options = accepted({"--all", "--json", "--json-file", "/tmp/a.json", "--quiet", "--record", "r"});
    CHECK(options.json);
    CHECK(options.json_file == "/tmp/a.json");
    CHECK(options.quiet);
    CHECK_FALSE(options.verbose);
    CHECK(options.record == "r");
    CHECK(refused({"--all", "--json-file="}).find("--json-file") != std::string::npos);
}

TEST_CASE("options: color follows the option, then NO_COLOR, then the terminal") {
    CHECK_FALSE(accepted({"--all"}).color);
    CHECK(accepted({"--all"}, {true, nullptr}).color);
    CHECK(accepted({"--all"}, {true, ""}).color);
    CHECK_FALSE(accepted({"--all"}, {true, "1"}).color);
    CHECK(accepted({"--all", "--color", "always"}, {false, "1"}).color);
    CHECK_FALSE(accepted({"--all", "--color", "never"}, {true, nullptr}).color);
    CHECK(refused({"--all", "--color", "on"}) == "--color on: expected auto, always or never");
}

TEST_CASE("options: what does not go together is refused") {
    const std::vector<std::pair<std::vector<const char*>, std::string>> cases = {
        {{"--dst", "::/0", "--all"}, "--dst does not go with --all"},
        {{"--all", "--direction", "to"}, "--direction does not go with --all"},
        {{"--all", "--quiet", "--verbose"}, "--quiet does not go with --verbose"},
        {{"--replay", "a", "--record", "b"}, "--record does not go with --replay"},
        {{"--replay", "a", "--dst", "::/0"}, "--dst does not go with --replay"},
        {{"--replay", "a", "--duration", "1"}, "--duration does not go with --replay"},
        {{"--replay", "a", "--src", "::/0"}, "--src does not go with --replay"},
        {{"--replay", "a", "--port", "53"}, "--port does not go with --replay"},
        {{"--replay", "a", "--proto", "udp"}, "--proto does not go with --replay"},
        {{"--replay", "a", "--iface", "eth0"}, "--iface does not go with --replay"},
        {{"--replay", "a", "--netns", "x"}, "--netns does not go with --replay"},
        {{"--replay", "a", "--reason", "X"}, "--reason does not go with --replay"},
        {{"--replay", "a", "--rules-only"}, "--rules-only does not go with --replay"},
    };
    for (const auto& [arguments, expected] : cases) {
        CHECK(refused(arguments).starts_with(expected));
    }
}

TEST_CASE("options: mistakes of form name the option and what to type") {
    CHECK(refused({"--dst"}) == "--dst has no value: expected a network or an address, such as 100.100.0.0/16 or "
                                "fd7a:115c:a1e0::/48, as in --dst CIDR[,CIDR...]");
    CHECK(refused({"--duration", "--json"}).starts_with("--duration has no value"));
    CHECK(refused({"--json-file"}).starts_with("--json-file has no value"));
    CHECK(refused({"--all", "--json=yes"}) == "--json takes no value: type --json alone");
    CHECK(refused({"--all", "--count", "1", "--count", "2"}) == "--count was given 2 times: expected once");
    CHECK(refused({"--dts", "10.0.0.0/8"}) == "unknown option --dts: did you mean --dst?");
    CHECK(refused({"--all", "--sumary-every=5s"}) == "unknown option --sumary-every=5s: did you mean --summary-every?");
    CHECK(refused({"--all", "--netns-of-pid", "1"}) == "unknown option --netns-of-pid: see tsdroptrace --help");
    CHECK(refused({"10.0.0.0/8"}) == "unexpected argument 10.0.0.0/8: try tsdroptrace --dst 10.0.0.0/8");
    CHECK(refused({"--dst", "10.0.0.0/8", "eth0"}).starts_with("unexpected argument eth0"));
    CHECK(refused({"--dst", "10.0.0.0/8", "curl"}).ends_with("as in tsdroptrace --dst 100.100.0.0/16 -- curl"));
    CHECK(refused({"--all", "--\x1b[31m"}).find('\x1b') == std::string::npos);
}

TEST_CASE("options: what comes after -- is the command") {
    using Words = std::vector<std::string>;
    CHECK(accepted({"--all"}).command.empty());
    CHECK(accepted({"--dst", "::/0", "--", "dig", "@100.100.2.136", "baidu.com"}).command ==
          Words{"dig", "@100.100.2.136", "baidu.com"});
    // Nothing in it is read as ours.
    const auto options = accepted({"--all", "--", "env", "--json", "--", "--help", "", "--dst"});
    CHECK(options.command == Words{"env", "--json", "--", "--help", "", "--dst"});
    CHECK_FALSE(options.json);
    CHECK_FALSE(options.user);
    CHECK(accepted({"--all", "--user", "nobody", "--json", "--", "id"}).user == "nobody");

    CHECK(refused({"--", "dig"}) == refused({}));
    CHECK(refused({"--all", "--"}).starts_with("no command after --: expected one, as in tsdroptrace --dst"));
    CHECK(refused({"--dst", "--", "dig"}).starts_with("--dst has no value"));
    CHECK(refused({"--all", "--user", "nobody"}).starts_with("--user is for the command that is run"));
    CHECK(refused({"--all", "--user", "", "--", "id"}) == "--user \"\": expected the name of a user, such as nobody");
    CHECK(refused({"--replay", "a", "--", "dig"}).starts_with("a command does not go with --replay"));
    CHECK(refused({"--replay", "a", "--user", "nobody"}).starts_with("--user does not go with --replay"));
    CHECK(printed({"--help", "--", "dig"}).what == PrintAndExit::What::help);
}

TEST_CASE("options: --help fits a terminal and shows exactly this version's options") {
    const auto help = printed({"--help"});
    CHECK(help.what == PrintAndExit::What::help);
    std::istringstream lines(help.text);
    std::vector<std::string> names;
    for (std::string line; std::getline(lines, line);) {
        CHECK(line.size() <= 80);
        if (line.starts_with("  --")) {
            names.push_back(line.substr(4, line.find(' ', 4) - 4));
        }
    }
    std::sort(names.begin(), names.end());
    CHECK(names == std::vector<std::string>{"all",      "color",         "count",  "direction",    "dst",
                                            "duration", "help",          "iface",  "json",         "json-file",
                                            "netns",    "no-seen",       "port",   "print-schema", "proto",
                                            "quiet",    "reason",        "record", "replay",       "rules-only",
                                            "src",      "summary-every", "user",   "verbose",      "version"});
    CHECK(help.text.find("Exit codes:") != std::string::npos);
    CHECK(printed({"--help", "--nonsense"}).what == PrintAndExit::What::help);
    CHECK(printed({"--version"}).text == "tsdroptrace " TSDROPTRACE_VERSION "\n");
    CHECK(printed({"--print-schema"}).what == PrintAndExit::What::schema);
}

TEST_CASE("options: filter_text reads like a sentence") {
    CHECK(filter_text(accepted({"--dst", "100.100.0.0/16"})) == "100.100.0.0/16, both ways");
    CHECK(filter_text(accepted({"--dst", "100.100.2.136", "--direction", "from"})) ==
          "100.100.2.136, only packets from it");
    CHECK(filter_text(accepted({"--dst", "10.0.0.0/8,fd00::/8", "--direction", "to"})) ==
          "10.0.0.0/8, fd00::/8, only packets to it");
    CHECK(filter_text(accepted({"--dst", "1.1.1.1,2.2.2.2,3.3.3.3,4.4.4.4,5.5.5.5,6.6.6.6"})) ==
          "1.1.1.1, 2.2.2.2, 3.3.3.3, 4.4.4.4 and 2 more, both ways");
    CHECK(filter_text(accepted({"--all"})) == "everything");
    CHECK(filter_text(accepted({"--all", "--rules-only"})) == "everything; only rules and policies");
    CHECK(filter_text(
              accepted({"--dst", "10.8.0.0/16", "--src", "10.0.0.2,fd00::2", "--port", "53,443", "--proto", "17,tcp,47",
                        "--iface", "eth0", "--iface", "wg0", "--netns", "blue", "--reason", "NO_SOCKET"})) ==
          "10.8.0.0/16, both ways; local side 10.0.0.2, fd00::2; port 53, 443; proto udp, tcp, gre; device eth0, wg0; "
          "netns blue; reason NO_SOCKET");
    CHECK(filter_text(accepted({"--all", "--port", "1,2,3,4,5,6,7"})) == "everything; port 1, 2, 3, 4 and 3 more");
}
