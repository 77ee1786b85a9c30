// SPDX-License-Identifier: GPL-2.0-only
// Whole outputs are compared with tests/fixtures/golden. After a wanted change, write them again with
// TSDROPTRACE_UPDATE_GOLDEN=1 and read the difference.
#include "address.h"
#include "catch.h"

#include <arpa/inet.h>
#include <csignal>
#include <cstdlib>
#include <fcntl.h>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <regex>
#include <sstream>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "explain/explain.h"
#include "kprobe_limits.h"
#include "output/json.h"
#include "output/schema.h"
#include "output/sink.h"
#include "output/text.h"
#include "util/text.h"

using namespace tsdroptrace;
using namespace tsdroptrace::output;
using nlohmann::json;

namespace {

constexpr std::int64_t second = 1'000'000'000;
constexpr std::int64_t noon = 1785585600 * second; // 2026-08-01T12:00:00Z

// ---- fixtures ----

void explained(Drop& drop) {
    const explain::Explainer explainer(Backend::iptables_legacy);
    if (drop.rule)
        drop.owner = explainer.owner(*drop.rule);
    drop.explanation = explainer.explain(drop);
    drop.noise = explainer.is_noise(drop);
}

Drop incident() {
    Drop drop;
    drop.time_ns = noon + second + 42;
    drop.mono_ns = 81234567890;
    drop.cpu = 1;
    drop.cause_id = 1;
    drop.netns = {4026531840, std::nullopt, true};
    drop.packet.family = IpFamily::ipv4;
    drop.packet.proto = 17;
    drop.packet.src = address("100.100.2.136");
    drop.packet.dst = address("10.0.0.2");
    drop.packet.sport = 53;
    drop.packet.dport = 41873;
    drop.packet.length = 112;
    drop.packet.ttl = 64;
    drop.packet.ethertype = 0x0800;
    drop.packet.direction = Direction::from;
    drop.packet.received = true;
    drop.packet.ctinfo = 3;
    drop.packet.in_dev = "eth0";
    drop.site = {DropKind::rule, "NETFILTER_DROP", 8, "nf_hook_slow+0x9b/0xd0", Hook::input, ""};
    Rule rule;
    rule.backend = Backend::iptables_legacy;
    rule.table = "filter";
    rule.chain = "ts-input";
    rule.number = 3;
    rule.text = "-A ts-input -s 100.64.0.0/10 ! -i tailscale0 -j DROP";
    rule.path = {{"INPUT", 1, std::nullopt}, {"ts-input", 3, std::nullopt}};
    drop.rule = std::make_shared<Rule>(rule);
    explained(drop);
    return drop;
}

// tailscaled's native rule, over a jump, in another namespace, inferred, its ruleset already another one.
Drop native() {
    Drop drop = incident();
    drop.cause_id = 2;
    drop.netns = {4026532281, "blue", false};
    Rule rule = *drop.rule;
    rule.backend = Backend::nftables;
    rule.handle = 10;
    rule.text = "iifname != \"tailscale0*\" ip saddr 100.64.0.0/10 counter packets 3 bytes 252 drop";
    rule.path = {{"INPUT", 1, 5}, {"ts-input", 3, 10}};
    rule.confidence = Confidence::inferred;
    rule.evidence = "between two looks its counter rose by 3 packets, 252 bytes";
    rule.stale = true;
    drop.rule = std::make_shared<Rule>(rule);
    explained(drop);
    return drop;
}

Drop no_socket() {
    Drop drop = incident();
    drop.cause_id = 3;
    drop.packet.family = IpFamily::ipv6;
    drop.packet.proto = 6;
    drop.packet.src = address("2001:db8:1234:5678:9abc:def0:1234:5678");
    drop.packet.dst = address("2001:db8:ffff:ffff:ffff:ffff:ffff:fffe");
    drop.packet.sport = 443;
    drop.packet.tcp_flags = 0x12;
    drop.packet.ctinfo.reset();
    drop.site = {DropKind::kernel, "NO_SOCKET", 3, "tcp_v6_rcv+0x2d4/0xf60", std::nullopt, ""};
    drop.rule = nullptr;
    drop.owner.reset();
    explained(drop);
    return drop;
}

Drop hook_drop() {
    Drop drop = incident();
    drop.cause_id = 4;
    drop.packet.received = false;
    drop.packet.in_dev.reset();
    drop.packet.out_dev = "eth0";
    drop.packet.src = address("10.0.0.2");
    drop.packet.dst = address("100.100.2.136");
    drop.packet.sport = 41873;
    drop.packet.dport = 53;
    drop.packet.ctinfo = 2;
    drop.packet.direction = Direction::to;
    drop.process = Process{4242, "dig"};
    drop.site = {DropKind::hook,
                 "NETFILTER_DROP",
                 8,
                 "nf_hook_slow+0x9b/0xd0",
                 Hook::output,
                 "the ruleset has no counter that moved, so a match or an extension target dropped it"};
    drop.rule = nullptr;
    drop.owner.reset();
    explained(drop);
    return drop;
}

Drop policy() {
    Drop drop = incident();
    drop.cause_id = 5;
    drop.site.kind = DropKind::policy;
    Rule rule = *drop.rule;
    rule.chain = "INPUT";
    rule.family = RuleFamily::ip6;
    rule.number.reset();
    rule.text.reset();
    rule.path = {{"INPUT", std::nullopt, std::nullopt}};
    drop.rule = std::make_shared<Rule>(rule);
    drop.packet.family = IpFamily::ipv6;
    drop.packet.proto = 58;
    drop.packet.src = address("2001:db8::1");
    drop.packet.dst = address("2001:db8::2");
    drop.packet.sport.reset();
    drop.packet.dport.reset();
    drop.packet.icmp_type = 128;
    drop.packet.icmp_code = 0;
    drop.packet.ctinfo = 2;
    explained(drop);
    return drop;
}

// A router's word on a query of this host's.
Drop icmp_error() {
    Drop drop = incident();
    drop.packet.proto = 1;
    drop.packet.src = address("192.0.2.1");
    drop.packet.sport.reset();
    drop.packet.dport.reset();
    drop.packet.icmp_type = 3;
    drop.packet.icmp_code = 1;
    drop.packet.quoted = Quoted{17, address("10.0.0.2"), address("100.100.2.136"), 41873, 53};
    return drop;
}

Drop ping_noise() {
    Drop drop = no_socket();
    drop.cause_id = 6;
    drop.packet = incident().packet;
    drop.packet.proto = 1;
    drop.packet.sport.reset();
    drop.packet.dport.reset();
    drop.packet.icmp_type = 0;
    drop.packet.icmp_code = 0;
    drop.site.location = "ping_rcv+0x9f/0x100";
    explained(drop);
    return drop;
}

// Everything that others can name, made to hurt a terminal or a JSON reader.
Drop hostile() {
    Drop drop = incident();
    drop.cause_id = 7;
    drop.netns = {4026532281, "net\x1b]0;owned\x07", false};
    drop.packet.in_dev = "e\x9bJ\n1";
    drop.process = Process{1, "\xff\xfe\r\x7f"};
    Rule rule = *drop.rule;
    rule.table = "t\xc2\x9b"
                 "2J"; // a C1 control sequence introducer in UTF-8
    rule.chain = "evil\x1b[2J";
    rule.text = "-A evil\x1b[2J -m comment --comment \"\xe2\x80\xaetfel\" " + std::string(200, 'x') + " -j DROP";
    rule.path = {{"INPUT", 1, std::nullopt}, {"evil\x1b[2J", 3, std::nullopt}};
    drop.rule = std::make_shared<Rule>(rule);
    drop.owner.reset();
    explained(drop);
    return drop;
}

Start start() {
    Start out;
    out.time_ns = noon;
    out.version = "0.1.0";
    out.kernel = "6.12.95+deb13-cloud-amd64";
    out.host = "web-1";
    out.filter = "100.100.0.0/16, both ways";
    out.capabilities.iptables_legacy = {Exactness::exact, ""};
    out.capabilities.iptables_nft = {Exactness::exact, ""};
    out.capabilities.nftables = {Exactness::inferred,
                                 "the kernel's module nf_tables has no BTF, so expressions cannot be followed"};
    return out;
}

Cause cause(const Drop& example, std::uint64_t packets) {
    Cause out;
    out.id = example.cause_id;
    out.example = example;
    out.packets = packets;
    out.bytes = packets * 112;
    out.first_ns = noon + second;
    out.last_ns = noon + 9 * second;
    return out;
}

Summary summary(bool final) {
    Summary out;
    out.final = final;
    out.since_ns = noon;
    out.until_ns = noon + 12 * second;
    Cause dns = cause(incident(), 10);
    Flow flow{17, address("100.100.2.136"), address("10.0.0.2"), 53, 41873, 5};
    dns.flows.push_back(flow);
    flow.dport = 52111;
    flow.packets = 3;
    dns.flows.push_back(flow);
    flow.src = address("100.100.2.138");
    flow.packets = 1;
    dns.flows.push_back(flow);
    dns.other_flows = 1;
    dns.other_packets = 1;
    out.causes = {dns, cause(no_socket(), 2)};
    out.causes[1].other_packets = 2;
    out.lost = {{"ring", 37}};
    out.hidden = {{"NO_SOCKET", 4}};
    return out;
}

// ---- running an output into a string ----

class Pipe {
public:
    Pipe() {
        REQUIRE(pipe2(fds_, O_CLOEXEC) == 0);
        REQUIRE(fcntl(fds_[1], F_SETPIPE_SZ, 1 << 20) > 0);
    }
    ~Pipe() {
        close(fds_[0]);
        if (fds_[1] >= 0)
            close(fds_[1]);
    }
    Pipe(const Pipe&) = delete;
    Pipe& operator=(const Pipe&) = delete;
    int in() const { return fds_[1]; }
    void close_reader() {
        close(fds_[0]);
        fds_[0] = -1;
    }
    std::string text() {
        close(fds_[1]);
        fds_[1] = -1;
        std::string out;
        char buffer[4096];
        for (ssize_t n; (n = read(fds_[0], buffer, sizeof buffer)) > 0;)
            out.append(buffer, static_cast<std::size_t>(n));
        return out;
    }

private:
    int fds_[2] = {-1, -1};
};

std::string shown(TextOptions options, auto use) {
    setenv("TZ", "UTC", 1);
    tzset();
    Pipe pipe;
    TextOutput output(Sink::borrow(pipe.in(), "standard output"), options);
    use(output);
    return pipe.text();
}

std::vector<std::string> lines_of(const std::string& text) {
    std::vector<std::string> out;
    std::istringstream in(text);
    for (std::string line; std::getline(in, line);)
        out.push_back(line);
    return out;
}

std::string read_file(const std::filesystem::path& path) {
    std::ifstream in(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
}

void check_golden(const std::string& name, const std::string& actual) {
    const auto path = std::filesystem::path(TSDROPTRACE_FIXTURES) / "golden" / name;
    if (std::getenv("TSDROPTRACE_UPDATE_GOLDEN") != nullptr)
        std::ofstream(path, std::ios::binary) << actual;
    CHECK(actual == read_file(path));
}

// At most 80 columns, except a command beside its number; nothing that a terminal obeys.
void check_terminal(const std::string& text) {
    static const std::regex command("^  (fix|   )     [0-9]  .*");
    for (const std::string& line : lines_of(text)) {
        INFO(line);
        for (const char c : line)
            CHECK((static_cast<unsigned char>(c) >= 0x20 && c != 0x7f));
        CHECK(printable(line) == line); // no C1 controls, direction marks or invalid UTF-8 either
        if (!std::regex_match(line, command))
            CHECK(columns(line) <= 80);
    }
}

// By tailscaled, at 12:00:05: "-A INPUT -j DROP", the first rule of INPUT.
RulesetChange added_rule() {
    RulesetChange change;
    change.time_ns = noon + 5 * second;
    change.netns = {4026531840, std::nullopt, true};
    change.backend = Backend::iptables_legacy;
    change.generation = 18;
    change.changers = {{{812, "tailscaled"}, Process{1, "systemd"}, 3}};
    Rule rule{Backend::iptables_legacy, RuleFamily::ip, "filter", "INPUT", 1, std::nullopt, "-A INPUT -j DROP", {}};
    rule.path = {{"INPUT", 1, std::nullopt}};
    change.added = {{rule, std::nullopt, {}}};
    return change;
}

// By tailscaled's change at 12:00:05, of INPUT: the incident is over, told at 12:00:11.
Stopped over() {
    Stopped stopped;
    stopped.time_ns = noon + 11 * second;
    stopped.cause.example = incident();
    stopped.cause.packets = 6;
    stopped.cause.first_ns = noon + second;
    stopped.cause.last_ns = noon + 4 * second;
    stopped.change = added_rule();
    stopped.change.added.clear();
    stopped.chain = ChainName{RuleFamily::ip, "filter", "INPUT"};
    stopped.seen_since_ns = noon + 6 * second;
    stopped.seen.sent = {4, {{"eth0", 4}}, {}, {}};
    stopped.seen.received = {5, {{"eth0", 3}, {"wlan0", 2}}, {}, {}};
    return stopped;
}

// ---- as much of JSON Schema as the schema uses ----

std::string violation(const json& schema, const json& value, const json& root) {
    if (schema.contains("$ref")) {
        const std::string name = schema["$ref"].get<std::string>().substr(std::string("#/$defs/").size());
        if (std::string v = violation(root["$defs"].at(name), value, root); !v.empty())
            return name + ": " + v;
    }
    if (schema.contains("oneOf")) {
        int fit = 0;
        std::string why;
        for (const json& option : schema["oneOf"]) {
            const std::string v = violation(option, value, root);
            fit += v.empty() ? 1 : 0;
            why += v.empty() ? "" : " / " + v;
        }
        if (fit != 1)
            return std::to_string(fit) + " of oneOf fit" + why;
    }
    if (schema.contains("const") && schema["const"] != value)
        return "is not " + schema["const"].dump();
    if (schema.contains("enum") &&
        std::find(schema["enum"].begin(), schema["enum"].end(), value) == schema["enum"].end())
        return value.dump() + " is not one of " + schema["enum"].dump();
    if (schema.contains("type")) {
        const json types = schema["type"].is_array() ? schema["type"] : json::array({schema["type"]});
        const std::string type = value.is_null()             ? "null"
                                 : value.is_boolean()        ? "boolean"
                                 : value.is_number_integer() ? "integer"
                                                             : value.type_name();
        if (std::find(types.begin(), types.end(), type) == types.end())
            return type + " is not " + types.dump();
    }
    if (schema.contains("pattern") && value.is_string() &&
        !std::regex_search(value.get<std::string>(), std::regex(schema["pattern"].get<std::string>())))
        return value.dump() + " does not match";
    if (value.is_number_integer() && ((schema.contains("minimum") && value < schema["minimum"]) ||
                                      (schema.contains("maximum") && value > schema["maximum"])))
        return value.dump() + " is out of range";
    if (value.is_array() && schema.contains("items"))
        for (const json& item : value)
            if (std::string v = violation(schema["items"], item, root); !v.empty())
                return "[]: " + v;
    if (!value.is_object())
        return "";
    for (const json& name : schema.value("required", json::array()))
        if (!value.contains(name.get<std::string>()))
            return name.get<std::string>() + " is missing";
    for (const auto& [name, item] : value.items()) {
        const json properties = schema.value("properties", json::object());
        const json rest = schema.value("additionalProperties", json(true));
        const json& of_item = properties.contains(name) ? properties[name] : rest;
        if (of_item.is_object())
            if (std::string v = violation(of_item, item, root); !v.empty())
                return name + ": " + v;
    }
    return "";
}

json checked(const std::string& line) {
    static const json root = json::parse(schema());
    INFO(line);
    CHECK(line.back() == '\n');
    CHECK(line.find('\n') == line.size() - 1);
    for (const char c : line.substr(0, line.size() - 1))
        CHECK((c >= 0x20 && static_cast<unsigned char>(c) < 0x80));
    const json value = json::parse(line);
    CHECK(violation(root, value, root) == "");
    return value;
}

class TemporaryDirectory {
public:
    TemporaryDirectory() { REQUIRE(mkdtemp(path_.data()) != nullptr); }
    ~TemporaryDirectory() { std::filesystem::remove_all(path_); }
    TemporaryDirectory(const TemporaryDirectory&) = delete;
    TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;
    std::string file(const char* name) const { return path_ + "/" + name; }

private:
    std::string path_ = (std::filesystem::temp_directory_path() / "tsdroptrace-test-XXXXXX").string();
};

// A full disk, by the limit on the size of files.
class FileSizeLimit {
public:
    explicit FileSizeLimit(rlim_t bytes) {
        std::signal(SIGXFSZ, SIG_IGN);
        getrlimit(RLIMIT_FSIZE, &before_);
        const rlimit limit{bytes, before_.rlim_max};
        REQUIRE(setrlimit(RLIMIT_FSIZE, &limit) == 0);
    }
    ~FileSizeLimit() { setrlimit(RLIMIT_FSIZE, &before_); }
    FileSizeLimit(const FileSizeLimit&) = delete;
    FileSizeLimit& operator=(const FileSizeLimit&) = delete;

private:
    rlimit before_{};
};

} // namespace

// ---- util/text ----

TEST_CASE("text from outside cannot drive a terminal", "[output]") {
    CHECK(printable("eth0") == "eth0");
    CHECK(printable("evil\x1b[2J") == "evil\\x1b[2J");
    CHECK(printable("a\nb\rc\td\x7f") == "a\\x0ab\\x0dc\\x09d\\x7f");
    CHECK(printable("\xc2\x9b") == "\\x9b");       // U+009B, a control in UTF-8
    CHECK(printable("\xe2\x80\xae") == "\\u202e"); // right-to-left override
    CHECK(printable("h\xc3\xa9") == "h\xc3\xa9");  // é
    CHECK(printable("\xff"
                    "a") == "\xef\xbf\xbd"
                            "a");
    CHECK(printable("\xc3") == "\xef\xbf\xbd");                 // cut short, as a name of 15 bytes may be
    CHECK(printable("\xc0\xaf") == "\xef\xbf\xbd\xef\xbf\xbd"); // overlong '/'
    CHECK(printable("\xed\xa0\x80") == "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"); // a surrogate
    CHECK(printable("\xf4\x90\x80\x80").find("\xef\xbf\xbd") == 0);             // past U+10FFFF
    CHECK(printable("\xf0\x9f\x94\xa5") == "\xf0\x9f\x94\xa5");
}

TEST_CASE("wrapping and cutting", "[output]") {
    CHECK(wrap("one two three", 7) == std::vector<std::string>{"one two", "three"});
    CHECK(wrap("abcdefghij k", 4) == std::vector<std::string>{"abcd", "efgh", "ij k"});
    CHECK(wrap("a  b", 80) == std::vector<std::string>{"a  b"}); // a rule's comment may hold such
    CHECK(wrap("", 80) == std::vector<std::string>{""});
    CHECK(wrap("ab abcdefgh", 4) == std::vector<std::string>{"ab", "abcd", "efgh"});
    CHECK(columns("\xe6\xbc\xa2") == 2);
    CHECK(cut("abcdef", 6) == "abcdef");
    CHECK(cut("abcdefg", 6) == "abc...");
    CHECK(cut("abcdefg", 2) == "..");
    CHECK(shell_word("eth0.100@x") == "eth0.100@x");
    CHECK(shell_word("a b'c") == "'a b'\\''c'");
    CHECK(shell_word("") == "''");
}

TEST_CASE("times", "[output]") {
    CHECK(rfc3339_utc(0) == "1970-01-01T00:00:00.000000000Z");
    CHECK(rfc3339_utc(noon + 42) == "2026-08-01T12:00:00.000000042Z");
    CHECK(rfc3339_utc(951782400 * second) == "2000-02-29T00:00:00.000000000Z");
    CHECK(rfc3339_utc(-1) == "1969-12-31T23:59:59.999999999Z");
    setenv("TZ", "Asia/Shanghai", 1);
    tzset();
    const bool has_zones = std::filesystem::exists("/usr/share/zoneinfo/Asia/Shanghai");
    CHECK(clock_local(noon) == (has_zones ? "20:00:00" : "12:00:00"));
    CHECK(duration_text(999'000'000) == "999 ms");
    CHECK(duration_text(12 * second) == "12 s");
    CHECK(duration_text(185 * second) == "3 min 5 s");
    CHECK(duration_text(7800 * second) == "2 h 10 min");
}

TEST_CASE("the model's names are the contract's", "[output]") {
    CHECK(address("100.100.2.136").text() == "100.100.2.136");
    CHECK(address("fd7a:115c:a1e0:0::1").text() == "fd7a:115c:a1e0::1");
    CHECK(Address{}.text() == "");
    CHECK(proto_name(17) == "udp");
    CHECK(proto_name(58) == "icmpv6");
    CHECK(proto_name(132) == "sctp");
    CHECK(proto_name(253) == "253");
    CHECK(to_string(Backend::iptables_nft) == "iptables-nft");
    CHECK(to_string(Hook::postrouting) == "postrouting");
}

// ---- the terminal ----

TEST_CASE("the terminal view, whole", "[output]") {
    const std::string text = shown({}, [](TextOutput& out) {
        CHECK(out.start(start()));
        for (const Drop& drop : {incident(), native(), no_socket(), hook_drop(), policy(), ping_noise()}) {
            CHECK(out.drop(drop, true));
            CHECK(out.drop(drop, false)); // counted, not shown again
        }
        CHECK(out.lost({37, "ring", noon}));
        CHECK(out.progress(summary(false))); // not a terminal: nothing
        CHECK(out.summary(summary(false)));
        CHECK(out.summary(summary(true)));
    });
    check_terminal(text);
    check_golden("terminal.txt", text);
}

TEST_CASE("hostile names, whole", "[output]") {
    const std::string text = shown({}, [](TextOutput& out) {
        CHECK(out.drop(hostile(), true));
        Summary one = summary(true);
        one.causes = {cause(hostile(), 1)};
        CHECK(out.summary(one));
    });
    check_terminal(text);
    check_golden("hostile.txt", text);
}

TEST_CASE("nothing dropped, whole", "[output]") {
    Summary nothing;
    nothing.final = true;
    nothing.since_ns = noon;
    nothing.until_ns = noon + 12 * second;
    const std::string text = shown({}, [&](TextOutput& out) {
        CHECK(out.start(start()));
        CHECK(out.summary(nothing));
    });
    check_terminal(text);
    check_golden("nothing.txt", text);
}

TEST_CASE("the start says what kprobes do not tell", "[output]") {
    const auto times_told = [](const Start& start, std::string_view limits) {
        const auto text = shown({}, [&](TextOutput& out) { CHECK(out.start(start)); });
        const std::string one_line = std::regex_replace(text, std::regex("\\s+"), " ");
        const auto at = one_line.find(limits);
        return at == one_line.npos ? 0 : one_line.find(limits, at + 1) == one_line.npos ? 1 : 2;
    };
    for (const std::string_view limits : {limits_on_5_10, limits_of_kprobes}) {
        Start on_kprobes = start();
        on_kprobes.capabilities = {};
        for (Capability* backend : {&on_kprobes.capabilities.iptables_legacy, &on_kprobes.capabilities.nftables})
            *backend = {Exactness::exact, std::string(limits)};
        CHECK(times_told(on_kprobes, limits) == 1);
        CHECK(times_told(on_kprobes, limits == limits_on_5_10 ? limits_of_kprobes : limits_on_5_10) == 0);
        CHECK(times_told(start(), limits) == 0);
    }
}

TEST_CASE("a changed ruleset on the terminal", "[output]") {
    const auto text_of = [](const RulesetChange& change, TextOptions options = {}) {
        const std::string text = shown(options, [&](TextOutput& out) { CHECK(out.ruleset(change)); });
        check_terminal(text);
        return text;
    };
    RulesetChange change = added_rule();
    CHECK(text_of(change) == "12:00:05 ruleset changed by tailscaled[812]: + INPUT rule 1: -A INPUT -j DROP\n");
    change.added[0].rule.text = "-A INPUT -s 100.64.0.0/10 ! -i tailscale0 -m comment --comment long -j DROP";
    CHECK(text_of(change) == "12:00:05 ruleset changed by tailscaled[812]:\n"
                             "  + INPUT rule 1: -A INPUT -s 100.64.0.0/10 ! -i tailscale0 -m comment --comment\n"
                             "    long -j DROP\n");
    CHECK(text_of(change, {.quiet = true}).empty());

    // iptables, run by a daemon; more than one line holds; another namespace.
    change = added_rule();
    change.netns = {4026532500, "blue", false};
    change.changers = {{{900, "iptables"}, Process{812, "tailscaled"}, 1},
                       {{901, "iptables"}, Process{812, "tailscaled"}, 1}};
    change.removed = change.moved = change.added;
    change.removed[0].rule.number = std::nullopt; // a policy
    change.moved[0].was = 7;
    change.moved[0].rule.backend = Backend::nftables;
    change.moved[0].rule.family = RuleFamily::inet;
    change.added.resize(9, change.added[0]);
    change.more_added = 90;
    const std::string text = text_of(change);
    CHECK(text.starts_with("12:00:05 ruleset changed by iptables[900], iptables[901] of tailscaled[812],\n"
                           "netns blue (4026532500):\n"
                           "  - INPUT policy drop\n"
                           "  + INPUT rule 1: -A INPUT -j DROP\n"));
    CHECK(text.ends_with("  + INPUT rule 1: -A INPUT -j DROP\n    and 91 more\n"));
    CHECK(std::count(text.begin(), text.end(), '\n') == 2 + 10 + 1);
    change.added.clear(), change.removed.clear(), change.more_added = 0;
    CHECK(text_of(change).ends_with("  ~ inet filter INPUT rule 1 (was 7): -A INPUT -j DROP\n"));

    // Nobody in particular; nothing that drops; not known.
    change = added_rule();
    change.other_changes = 1;
    CHECK(text_of(change).starts_with("12:00:05 ruleset changed by tailscaled[812] (and 1 more change, not"));
    change.changers.clear();
    CHECK(text_of(change).starts_with("12:00:05 ruleset changed by too many to tell apart (1 change):"));
    change.other_changes = 0;
    CHECK(text_of(change).starts_with("12:00:05 ruleset changed by a process not known:\n  + INPUT rule 1: "));
    change.added.clear();
    CHECK(text_of(change).empty());
    CHECK(text_of(change, {.verbose = true}) ==
          "12:00:05 ruleset changed by a process not known: no rule that drops differs\n");
    change.unknown = "it is gone";
    CHECK(text_of(change) == "12:00:05 ruleset changed by a process not known: it is gone\n");

    change = added_rule();
    change.changers[0].process.comm = "evil\x1b[2J\n";
    change.added[0].rule.text = change.added[0].rule.chain = change.added[0].rule.table = "\x1b[31m\r\xff";
    text_of(change);
}

TEST_CASE("quiet is the final summary alone, verbose shows noise", "[output]") {
    const auto use = [](TextOutput& out) {
        CHECK(out.start(start()));
        CHECK(out.drop(incident(), true));
        CHECK(out.lost({37, "ring", noon}));
        CHECK(out.progress(summary(false)));
        CHECK(out.summary(summary(false)));
    };
    CHECK(shown({.tty = true, .quiet = true}, use).empty());
    const std::string final = shown({.quiet = true}, [](TextOutput& out) { CHECK(out.summary(summary(true))); });
    CHECK(final.starts_with("12 dropped in 12 s, from 12:00:00 to 12:00:12\n"));
    CHECK(final.find("hidden: 4 NO_SOCKET (noise; --verbose shows it)\n") != std::string::npos);
    CHECK(final.find("lost: 37 drops were counted but not shown: the ring buffer was full\n") != std::string::npos);

    CHECK(shown({}, [](TextOutput& out) { CHECK(out.drop(ping_noise(), true)); }).empty());
    const std::string noise = shown({.verbose = true}, [](TextOutput& out) { CHECK(out.drop(ping_noise(), true)); });
    CHECK(noise.find("icmp 100.100.2.136 > 10.0.0.2, echo reply") != std::string::npos);
}

TEST_CASE("a packet without ports of its own says why, and what it is about", "[output]") {
    Drop error = icmp_error(), fragment = incident();
    fragment.packet.sport.reset();
    fragment.packet.dport.reset();
    fragment.packet.no_ports = NoPorts::fragment;
    const auto on_terminal = [](const Drop& drop) {
        std::string text = shown({}, [&](TextOutput& out) { CHECK(out.drop(drop, true)); });
        text = text.substr(0, text.find("  where"));
        text.erase(std::unique(text.begin(), text.end(), [](char a, char b) { return a <= ' ' && b <= ' '; }),
                   text.end());
        std::ranges::replace(text, '\n', ' ');
        return text;
    };
    CHECK(on_terminal(error).find("icmp 192.0.2.1 > 10.0.0.2, unreachable about udp 10.0.0.2:41873 > "
                                  "100.100.2.136:53, ") != std::string::npos);
    CHECK(on_terminal(fragment).find(
              "udp 100.100.2.136 > 10.0.0.2, a later fragment (the ports are in the first one)") != std::string::npos);
    const json line = json::parse(json_line(error, "h"));
    CHECK(line["packet"]["quoted"] ==
          json{{"proto", "udp"}, {"src", "10.0.0.2"}, {"sport", 41873}, {"dst", "100.100.2.136"}, {"dport", 53}});
    CHECK(line["packet"]["no_ports"] == nullptr);
    CHECK(json::parse(json_line(fragment, "h"))["packet"]["no_ports"] == "fragment");
    fragment.packet.no_ports = NoPorts::unread;
    CHECK(json::parse(json_line(fragment, "h"))["packet"]["no_ports"] == "unread");
    CHECK(on_terminal(fragment).find("ports not readable") != std::string::npos);
}

TEST_CASE("on a terminal one line of counts is kept up to date", "[output]") {
    const std::string erase = "\r\x1b[K";
    const std::string counts = "12 dropped: 10 by ts-input rule 3, 2 NO_SOCKET";
    const std::string text = shown({.tty = true}, [](TextOutput& out) {
        Summary now = summary(false);
        CHECK(out.progress(now));
        now.until_ns += 199'000'000; // too soon
        CHECK(out.progress(now));
        now.until_ns += 1'000'000;
        CHECK(out.progress(now));
        CHECK(out.lost({1, "file", noon})); // takes the line's place
        CHECK(out.summary(now));
    });
    CHECK(text ==
          erase + counts + erase + counts + erase + "1 JSON lines could not be written\n12:00:12  " + counts + "\n");

    const std::string narrow =
        shown({.tty = true, .width = 40}, [](TextOutput& out) { CHECK(out.progress(summary(false))); });
    CHECK(narrow == erase + counts.substr(0, 36) + "...");
}

TEST_CASE("every place of loss that the tracer counts has words of its own", "[output]") {
    for (const char* where : {"ring", "causes", "flows", "sampled", "resolver", "file"}) {
        const std::string text = shown({}, [&](TextOutput& out) { CHECK(out.lost({3, where, noon})); });
        CHECK(text.starts_with("3 "));
        CHECK(text.find("events were lost at") == std::string::npos);
    }
    CHECK(shown({}, [](TextOutput& out) { CHECK(out.lost({3, "x\x1b", noon})); }) == "3 events were lost at: x\\x1b\n");
}

TEST_CASE("color changes nothing but the color", "[output]") {
    const auto use = [](TextOutput& out) {
        CHECK(out.drop(incident(), true));
        CHECK(out.summary(summary(true)));
    };
    const std::string plain = shown({}, use), colored = shown({.color = true}, use);
    CHECK(colored.find("\x1b[1;31m") != std::string::npos);
    CHECK(std::regex_replace(colored, std::regex("\x1b\\[[0-9;]*m"), "") == plain);
}

// ---- JSON ----

TEST_CASE("JSON lines hold what the contract says", "[output]") {
    const json line = checked(json_line(incident(), "web-1"));
    CHECK(line["schema_version"] == 1);
    CHECK(line["type"] == "drop");
    CHECK(line["time"] == "2026-08-01T12:00:01.000000042Z");
    CHECK(line["host"] == "web-1");
    CHECK(line["mono_ns"] == 81234567890);
    CHECK(line["cpu"] == 1);
    CHECK(line["netns"] == json{{"inode", 4026531840}, {"name", nullptr}});
    CHECK(line["packet"] == json{{"family", "ipv4"},
                                 {"proto", "udp"},
                                 {"src", "100.100.2.136"},
                                 {"sport", 53},
                                 {"dst", "10.0.0.2"},
                                 {"dport", 41873},
                                 {"length", 112},
                                 {"ttl", 64},
                                 {"tcp_flags", nullptr},
                                 {"icmp_type", nullptr},
                                 {"icmp_code", nullptr},
                                 {"mark", 0},
                                 {"direction", "from"},
                                 {"in_dev", "eth0"},
                                 {"out_dev", nullptr},
                                 {"ct_state", "established-reply"},
                                 {"no_ports", nullptr},
                                 {"quoted", nullptr}});
    CHECK(line["drop"] == json{{"kind", "rule"},
                               {"reason", "NETFILTER_DROP"},
                               {"reason_code", 8},
                               {"location", "nf_hook_slow+0x9b/0xd0"},
                               {"hook", "input"},
                               {"unknown", nullptr},
                               {"hook_function", nullptr},
                               {"queue", nullptr}});
    const json rule{{"backend", "iptables-legacy"},
                    {"family", "ip"},
                    {"table", "filter"},
                    {"chain", "ts-input"},
                    {"number", 3},
                    {"handle", nullptr},
                    {"text", "-A ts-input -s 100.64.0.0/10 ! -i tailscale0 -j DROP"},
                    {"path",
                     {{{"chain", "INPUT"}, {"number", 1}, {"handle", nullptr}},
                      {{"chain", "ts-input"}, {"number", 3}, {"handle", nullptr}}}},
                    {"verdict", "drop"},
                    {"confidence", "exact"},
                    {"evidence", nullptr},
                    {"stale", false},
                    {"owner", "Tailscale"}};
    json rule_of_packet = rule;
    rule_of_packet["elements"] = nullptr;
    CHECK(line["rule"] == rule_of_packet);
    CHECK(line["process"].is_null());
    CHECK(line["explanation"]["id"] == "tailscale-cgnat");
    CHECK(line["explanation"]["fixes"][1]["do"] == "iptables -I INPUT 1 -i eth0 -s 100.100.0.0/16 -j ACCEPT");

    const json sum = checked(json_line(summary(true), "web-1"));
    CHECK(sum["time"] == "2026-08-01T12:00:12.000000000Z");
    CHECK(sum["final"] == true);
    CHECK(sum["seen"].is_null());
    CHECK(sum["lost"] == json{{"ring", 37}});
    CHECK(sum["hidden"] == json{{"NO_SOCKET", 4}});
    CHECK(sum["causes"][0]["rule"] == rule);
    CHECK(sum["causes"][0]["packets"] == 10);
    CHECK(sum["causes"][0]["first"] == "2026-08-01T12:00:01.000000000Z");
    CHECK(sum["causes"][0]["flows"][0] == json{{"proto", "udp"},
                                               {"src", "100.100.2.136"},
                                               {"sport", 53},
                                               {"dst", "10.0.0.2"},
                                               {"dport", 41873},
                                               {"packets", 5}});
    CHECK(sum["causes"][0]["flows_other"] == json{{"flows", 1}, {"packets", 1}});

    const json first = checked(json_line(start()));
    CHECK(first["capabilities"]["iptables-legacy"] == json{{"exactness", "exact"}, {"reason", nullptr}});
    CHECK(first["capabilities"]["nftables"]["exactness"] == "inferred");
    CHECK(checked(json_line(Lost{37, "ring", noon}, "web-1", noon + second))["since"] ==
          "2026-08-01T12:00:00.000000000Z");
}

TEST_CASE("the owner is who is known by a name, and who was seen writing the rule", "[output]") {
    const auto text_of = [](const Drop& drop) {
        const std::string text = shown({}, [&](TextOutput& out) { CHECK(out.drop(drop, true)); });
        check_terminal(text);
        return text;
    };
    Drop drop = incident();
    CHECK(text_of(drop).find("written") == std::string::npos);
    CHECK(checked(json_line(drop, "web-1"))["rule_written"].is_null());

    RulesetChange change = added_rule();
    change.changers = {{{900, "iptables"}, Process{812, "tailscaled"}, 1}};
    drop.written = std::make_shared<RulesetChange>(change);
    CHECK(text_of(drop).find("  owner   Tailscale, going by chain ts-input; written at 12:00:05 by\n"
                             "          iptables[900] of tailscaled[812]; configured by: tailscale set\n"
                             "          --netfilter-mode\n") != std::string::npos);
    const json written = checked(json_line(drop, "web-1"))["rule_written"];
    CHECK(written["time"] == "2026-08-01T12:00:05.000000000Z");
    CHECK(written["by"] == json{{"pid", 900}, {"comm", "iptables"}});
    CHECK(written["changers"][0]["parent"] == json{{"pid", 812}, {"comm", "tailscaled"}});

    change.changers.push_back({{901, "nft"}, std::nullopt, 1});
    drop.written = std::make_shared<RulesetChange>(change);
    drop.owner.reset();
    CHECK(text_of(drop).find("  owner   not known by a name; written at 12:00:05 by one of iptables[900],\n"
                             "          nft[901]\n") != std::string::npos);
    CHECK(checked(json_line(drop, "web-1"))["rule_written"]["by"].is_null());
}

TEST_CASE("where the packets got to", "[output]") {
    const auto says = [](const Summary& summary) {
        std::string text = shown({}, [&](TextOutput& out) { CHECK(out.summary(summary)); });
        check_terminal(text);
        for (std::size_t at = 0; (at = text.find("\n  ", at)) != std::string::npos;)
            text.replace(at, 3, " ");
        return text;
    };
    const auto has = [](const std::string& text, const char* part) { return text.find(part) != std::string::npos; };
    Summary one;
    one.final = true;
    one.seen = Seen{};
    one.seen->sent = {8, {{"eth0", 8}}, noon, noon};
    CHECK(has(says(one), "8 packets to there left by eth0; none from there ever reached this machine: the loss is not "
                         "here\n"));

    // tailscaled is on this machine.
    one.seen->sent.by_dev = {{"tailscale0", 8}};
    CHECK(!has(says(one), "the loss is not here"));
    CHECK(has(says(one), "What left by tailscale0 went to tailscaled, on this machine, which may have dropped it"));
    CHECK(has(says(one), "tailscale metrics print"));
    CHECK(!has(says(one), "pref 5200")); // by which route is not known
    one.seen->sent.by_dev = {{"tun7", 8}};
    CHECK(!has(says(one), "the loss is not here"));
    CHECK(has(says(one), "What left by tun7 went to the program behind it"));
    CHECK(!has(says(one), "tailscale"));

    // A route that was accepted covers a network that is not the tailnet's.
    one.seen->sent.by_dev = {{"tailscale0", 8}};
    Route route{"unicast", "tailscale0", std::nullopt, 52, "192.168.0.0/16"};
    one.ways = {{"192.168.7.0/24", address("192.168.7.1"), route}};
    CHECK(has(says(one), "Table 52 has 192.168.0.0/16 for it"));
    CHECK(has(says(one), "ip rule add to 192.168.7.0/24 lookup main pref 5200"));
    for (const char* own :
         {"100.101.102.104/32", "fd7a:115c:a1e0::/48", "default"}) { // a peer, the tailnet, an exit node
        one.ways[0].route.matched = own;
        CHECK(!has(says(one), "pref 5200"));
    }
    one.ways[0].route.matched = "192.168.0.0/16";
    one.ways[0].route.table = 254;
    CHECK(!has(says(one), "pref 5200"));

    // Nothing left: where would it have gone?
    one.seen->sent = {};
    one.ways[0].route.table = 52;
    CHECK(has(says(one), "no packet to there left this machine, and none from there arrived; the route to 192.168.7.1 "
                         "goes through tailscale0 (table 52)\n"));
    one.ways[0].route = {"unicast", "eth0", address("10.0.0.1"), 254, "default"};
    CHECK(has(says(one), "the route to 192.168.7.1 goes through eth0 via 10.0.0.1 (table main)\n"));
    one.ways[0].route = {"none", std::nullopt, std::nullopt, 0, ""};
    CHECK(has(says(one), "the route to 192.168.7.1 is none, or an ip rule says unreachable\n"));
    one.ways[0].route.type = "blackhole";
    CHECK(has(says(one), "the route to 192.168.7.1 is of type blackhole\n"));
    const json way = checked(json_line(one, "web-1"))["ways"][0];
    CHECK(way["range"] == "192.168.7.0/24");
    CHECK(way["route"]["type"] == "blackhole");

    // --no-seen
    one.seen.reset();
    one.ways.clear();
    CHECK(has(says(one), "may have gone into a tunnel"));
    CHECK(checked(json_line(one, "web-1"))["seen"].is_null());
}

TEST_CASE("drops that have stopped, on the terminal", "[output]") {
    const auto text_of = [](const Stopped& stopped, TextOptions options = {}) {
        const std::string text = shown(options, [&](TextOutput& out) { CHECK(out.stopped(stopped)); });
        check_terminal(text);
        return text;
    };
    Stopped stopped = over();
    CHECK(text_of(stopped) == "12:00:11 STOPPED  ts-input rule 3 has dropped nothing since 12:00:04 (6 packets\n"
                              "                  before)\n"
                              "  rule    -A ts-input -s 100.64.0.0/10 ! -i tailscale0 -j DROP\n"
                              "  change  12:00:05 by tailscaled[812], on the way by INPUT in table filter\n"
                              "          (iptables-legacy). It is the only change of rules there since the last\n"
                              "          drop: that it stopped them is inferred from this, not seen\n"
                              "  since   12:00:06: 4 packets to there left by eth0; 5 packets from there\n"
                              "          arrived on eth0 (3) and wlan0 (2)\n\n");
    CHECK(text_of(stopped, {.quiet = true}).empty());

    // A policy, elsewhere; several changes, the first not read; nothing came back.
    stopped.cause.example.site.kind = DropKind::policy;
    stopped.cause.example.netns = {4026532500, "blue", false};
    stopped.chain = std::nullopt;
    stopped.changes = 3;
    stopped.seen.received = {};
    const std::string text = text_of(stopped);
    for (const char* says :
         {"STOPPED  the policy of ts-input has dropped", "the first of 3 changes", "of iptables-legacy; what it did",
          "4 packets to there left by eth0\n", "  netns   blue (4026532500)\n"})
        CHECK(text.find(says) != text.npos);
}

TEST_CASE("drops that have stopped, in JSON", "[output]") {
    Stopped stopped = over();
    json line = checked(json_line(stopped, "web-1"));
    CHECK(line["type"] == "stopped");
    CHECK(line["time"] == "2026-08-01T12:00:11.000000000Z");
    CHECK(line["netns"] == json{{"inode", 4026531840}, {"name", nullptr}});
    CHECK(line["drop"] == json{{"kind", "rule"}, {"reason", "NETFILTER_DROP"}, {"hook", "input"}});
    CHECK(line["rule"]["number"] == 3);
    CHECK(line["rule"]["owner"] == "Tailscale");
    CHECK(line["packets"] == 6);
    CHECK(line["first"] == "2026-08-01T12:00:01.000000000Z");
    CHECK(line["last"] == "2026-08-01T12:00:04.000000000Z");
    CHECK(line["change"] == json{{"time", "2026-08-01T12:00:05.000000000Z"},
                                 {"backend", "iptables-legacy"},
                                 {"generation", 18},
                                 {"by", {{"pid", 812}, {"comm", "tailscaled"}}},
                                 {"chain", {{"family", "ip"}, {"table", "filter"}, {"chain", "INPUT"}}},
                                 {"changes", 1},
                                 {"confidence", "inferred"}});
    CHECK(line["seen"] == json{{"since", "2026-08-01T12:00:06.000000000Z"},
                               {"sent", {{"packets", 4}, {"by_dev", {{"eth0", 4}}}}},
                               {"received", {{"packets", 5}, {"by_dev", {{"eth0", 3}, {"wlan0", 2}}}}}});
    stopped.change.other_changes = 1;
    stopped.chain = std::nullopt;
    line = checked(json_line(stopped, "web-1"));
    CHECK(line["change"]["by"].is_null());
    CHECK(line["change"]["chain"].is_null());
}

TEST_CASE("a changed ruleset in JSON", "[output]") {
    RulesetChange change = added_rule();
    json line = checked(json_line(change, "web-1"));
    CHECK(line["type"] == "ruleset");
    CHECK(line["time"] == "2026-08-01T12:00:05.000000000Z");
    CHECK(line["netns"] == json{{"inode", 4026531840}, {"name", nullptr}});
    CHECK(line["backend"] == "iptables-legacy");
    CHECK(line["generation"] == 18);
    CHECK(line["by"] == json{{"pid", 812}, {"comm", "tailscaled"}});
    CHECK(line["changers"] ==
          json::array(
              {{{"pid", 812}, {"comm", "tailscaled"}, {"parent", {{"pid", 1}, {"comm", "systemd"}}}, {"changes", 3}}}));
    CHECK(line["other_changes"] == 0);
    CHECK(line["unknown"].is_null());
    CHECK(line["drops"]["removed"] == json::array());
    CHECK(line["drops"]["moved"] == json::array());
    CHECK(line["drops"]["more"] == json{{"added", 0}, {"removed", 0}, {"moved", 0}});
    REQUIRE(line["drops"]["added"].size() == 1);
    CHECK(line["drops"]["added"][0] == json{{"backend", "iptables-legacy"},
                                            {"family", "ip"},
                                            {"table", "filter"},
                                            {"chain", "INPUT"},
                                            {"number", 1},
                                            {"handle", nullptr},
                                            {"text", "-A INPUT -j DROP"},
                                            {"path", {{{"chain", "INPUT"}, {"number", 1}, {"handle", nullptr}}}},
                                            {"verdict", "drop"},
                                            {"confidence", "exact"},
                                            {"evidence", nullptr},
                                            {"stale", false},
                                            {"owner", nullptr}});

    change.moved = change.added;
    change.moved[0].was = 4;
    change.more_moved = (1ULL << 53) + 1;
    change.other_changes = 2;
    line = checked(json_line(change, "web-1"));
    CHECK(line["by"].is_null()); // it may have been another one
    CHECK(line["drops"]["moved"][0]["was"] == 4);
    CHECK(line["drops"]["more"]["moved"] == "9007199254740993");

    change.changers.clear();
    change.unknown = "it is gone";
    line = checked(json_line(change, "web-1"));
    CHECK(line["drops"].is_null());
    CHECK(line["unknown"] == "it is gone");
}

TEST_CASE("every kind of line fits the schema", "[output]") {
    for (const Drop& drop : {native(), no_socket(), hook_drop(), policy(), ping_noise(), Drop{}})
        checked(json_line(drop, "web-1"));
    CHECK(checked(json_line(native(), "h"))["rule"]["handle"] == 10);
    CHECK(checked(json_line(hook_drop(), "h"))["process"] == json{{"pid", 4242}, {"comm", "dig"}});
    checked(json_line(Summary{}, ""));
}

TEST_CASE("functions at hooks and queues are shown", "[output]") {
    Drop drop = hook_drop();
    drop.site.unknown.clear();
    drop.site.hook_function = HookFunction{"nf_confirm", "nf_conntrack", std::nullopt, ""};
    json line = checked(json_line(drop, "h"));
    CHECK(line["drop"]["hook_function"] ==
          json{{"name", "nf_confirm"}, {"module", "nf_conntrack"}, {"bpf_program", nullptr}});
    CHECK(line["drop"]["unknown"].is_null());
    std::string text = shown({}, [&](TextOutput& out) { CHECK(out.drop(drop, true)); });
    CHECK(text.find("  rule    none: the hook function nf_confirm [nf_conntrack] dropped it\n") != std::string::npos);
    drop.site.hook_function = HookFunction{"nf_hook_run_bpf", std::nullopt, 12, "evil\x1b[2J"};
    line = checked(json_line(drop, "h"));
    CHECK(line["drop"]["hook_function"]["bpf_program"] == json{{"id", 12}, {"name", "evil\x1b[2J"}});
    text = shown({}, [&](TextOutput& out) { CHECK(out.drop(drop, true)); });
    CHECK(text.find('\x1b') == std::string::npos);

    drop = incident();
    drop.site.queue = Queue{5, QueueFate::full, std::nullopt};
    line = checked(json_line(drop, "h"));
    CHECK(line["drop"]["queue"] == json{{"number", 5}, {"fate", "full"}, {"process", nullptr}});
    text = shown({}, [&](TextOutput& out) { CHECK(out.drop(drop, true)); });
    CHECK(text.find("  queue   it was handed to queue 5, which is full, or the socket of its program") !=
          std::string::npos);
    drop.site.queue = Queue{std::nullopt, QueueFate::verdict, Process{7, "x"}};
    CHECK(checked(json_line(drop, "h"))["drop"]["queue"]["process"] == json{{"pid", 7}, {"comm", "x"}});
}

TEST_CASE("elements of sets are shown", "[output]") {
    Drop drop = native();
    CHECK(checked(json_line(drop, "h"))["rule"]["elements"].is_null());
    CHECK(shown({}, [&](TextOutput& out) { CHECK(out.drop(drop, true)); }).find("element") == std::string::npos);
    drop.elements = {{"blocked", "198.51.100.0/24"}, {std::nullopt, "7017 : drop"}};
    CHECK(checked(json_line(drop, "h"))["rule"]["elements"] ==
          json{{{"set", "blocked"}, {"element", "198.51.100.0/24"}}, {{"set", nullptr}, {"element", "7017 : drop"}}});
    CHECK(shown({}, [&](TextOutput& out) { CHECK(out.drop(drop, true)); })
              .find("  element 198.51.100.0/24 of @blocked; 7017 : drop (deduced from the ruleset and\n"
                    "          the packet)\n") != std::string::npos);
    drop.elements = {{"x\x1b[2J", "1 comment \"\x1b[2J\""}};
    CHECK(shown({}, [&](TextOutput& out) { CHECK(out.drop(drop, true)); }).find('\x1b') == std::string::npos);
    drop.rule = nullptr;
    CHECK(checked(json_line(drop, "h"))["rule"].is_null());
}

TEST_CASE("what the machine itself says is shown", "[output]") {
    Drop drop = incident();
    CHECK(checked(json_line(drop, "h"))["evidence"].is_null());
    const auto with = [&](const Evidence& evidence) {
        drop.evidence = std::make_shared<const Evidence>(evidence);
        return checked(json_line(drop, "h"))["evidence"];
    };
    const auto line = [&] {
        const std::string text = shown({}, [&](TextOutput& out) { CHECK(out.drop(drop, true)); });
        const std::size_t begin = text.find("  route ");
        return begin == std::string::npos ? std::string{} : text.substr(begin, text.find('\n', begin) - begin);
    };
    CHECK(with({}) ==
          json{{"route", nullptr}, {"tailnet_peer", nullptr}, {"socket", nullptr}, {"sysctls", json::object()}});
    CHECK(line().empty());

    Evidence evidence;
    evidence.route = Route{"unicast", "eth0", address("10.0.0.1"), 254, "default", 32766};
    evidence.tailnet_peer = false;
    evidence.socket_waits = true;
    evidence.waiting = Process{4242, "dig"};
    evidence.sysctls = {{"net.ipv4.ip_forward", "0"}};
    CHECK(with(evidence) == json{{"route",
                                  {{"type", "unicast"},
                                   {"dev", "eth0"},
                                   {"gateway", "10.0.0.1"},
                                   {"table", 254},
                                   {"matched", "default"},
                                   {"rule", 32766}}},
                                 {"tailnet_peer", false},
                                 {"socket", {{"waits", true}, {"process", {{"pid", 4242}, {"comm", "dig"}}}}},
                                 {"sysctls", {{"net.ipv4.ip_forward", "0"}}}});
    CHECK(line() == "  route   to 100.100.2.136: by eth0 via 10.0.0.1 (table main)");
    const std::string text = shown({}, [&](TextOutput& out) { CHECK(out.drop(drop, true)); });
    CHECK(text.find("\n  route ") > text.find("\n  owner "));
    CHECK(text.find("\n  route ") < text.find("\n  why "));

    evidence.waiting.reset();
    evidence.socket_waits = false;
    evidence.route = Route{"none", std::nullopt, std::nullopt, 0, ""};
    json value = with(evidence);
    CHECK(value["socket"] == json{{"waits", false}, {"process", nullptr}});
    CHECK(value["route"] == json{{"type", "none"},
                                 {"dev", nullptr},
                                 {"gateway", nullptr},
                                 {"table", nullptr},
                                 {"matched", nullptr},
                                 {"rule", nullptr}});
    CHECK(line() == "  route   to 100.100.2.136: none, or an ip rule that says unreachable");
    evidence.route = Route{"unicast", "tailscale0", std::nullopt, 52, "100.100.2.136/32"};
    with(evidence);
    CHECK(line() == "  route   to 100.100.2.136: by tailscale0 (table 52)");
    evidence.route->rule = 5270;
    with(evidence);
    CHECK(line() == "  route   to 100.100.2.136: by tailscale0 (table 52, rule 5270)");
    evidence.route->rule.reset();
    evidence.route = Route{"local", "lo", std::nullopt, 255, "100.100.2.136/32"};
    with(evidence);
    CHECK(line() == "  route   to 100.100.2.136: local (table local)");
    evidence.route = Route{"blackhole", std::nullopt, std::nullopt, 0, ""};
    with(evidence);
    CHECK(line() == "  route   to 100.100.2.136: blackhole");
    evidence.route->dev = "evil\x1b[2J";
    evidence.route->type = "unicast";
    with(evidence);
    CHECK(line() == "  route   to 100.100.2.136: by evil\\x1b[2J");
}

TEST_CASE("the schema refuses what the contract does not have", "[output]") {
    const json root = json::parse(schema());
    const json good = json::parse(json_line(incident(), "web-1"));
    REQUIRE(violation(root, good, root) == "");
    for (const char* field : {"schema_version", "type", "time", "host", "mono_ns", "cpu", "netns", "packet", "drop",
                              "rule", "process", "evidence", "explanation"}) {
        json bad = good;
        bad.erase(field);
        INFO(field);
        CHECK(violation(root, bad, root) != "");
    }
    json bad = good;
    bad["packet"]["sport"] = "53";
    CHECK(violation(root, bad, root) != "");
    bad = good;
    bad["rule"]["backend"] = "ebtables";
    CHECK(violation(root, bad, root) != "");
    json extended = good; // a later minor version
    extended["packet"]["flow_label"] = 1;
    CHECK(violation(root, extended, root) == "");
}

TEST_CASE("numbers that a double cannot hold are strings", "[output]") {
    Drop drop = native();
    Rule rule = *drop.rule;
    rule.handle = (1ULL << 53) + 1;
    drop.rule = std::make_shared<Rule>(rule);
    drop.mono_ns = 1ULL << 53;
    const json line = checked(json_line(drop, "h"));
    CHECK(line["mono_ns"] == 9007199254740992);
    CHECK(line["rule"]["handle"] == "9007199254740993");
}

TEST_CASE("hostile names are text in JSON too", "[output]") {
    const json line = checked(json_line(hostile(), "web-1"));
    CHECK(line["rule"]["chain"] == "evil\x1b[2J"); // the name itself, for programs; the line had it escaped
    CHECK(line["process"]["comm"] == "\xef\xbf\xbd\xef\xbf\xbd\r\x7f");
}

TEST_CASE("JSON leaves noise out unless asked", "[output]") {
    for (const bool noise : {false, true}) {
        Pipe pipe;
        JsonOutput out(Sink::borrow(pipe.in(), "standard output"), noise, [] { return noon; });
        CHECK(out.start(start()));
        CHECK(out.drop(ping_noise(), true));
        CHECK(out.drop(incident(), false)); // every drop is a line, not only the first of a cause
        CHECK(out.progress(summary(false)));
        CHECK(lines_of(pipe.text()).size() == (noise ? 3U : 2U));
    }
}

// ---- the sink ----

TEST_CASE("a closed pipe is one clear line", "[output]") {
    std::signal(SIGPIPE, SIG_IGN);
    Pipe pipe;
    pipe.close_reader();
    Sink sink = Sink::borrow(pipe.in(), "standard output");
    const Status status = sink.write("a line\n");
    REQUIRE(!status);
    CHECK(status.error().message == "cannot write to standard output: Broken pipe (whoever read it has gone)");
    CHECK(sink.failed_lines() == 1);
}

TEST_CASE("files are appended to, and only files", "[output]") {
    const TemporaryDirectory dir;
    const std::string path = dir.file("a.json");
    {
        auto sink = Sink::open_file(path);
        REQUIRE(sink);
        CHECK(sink->write("one\n"));
    }
    std::ofstream(path, std::ios::app) << "half a line of a run that was killed";
    {
        auto sink = Sink::open_file(path);
        REQUIRE(sink);
        CHECK(sink->write("two\n"));
        std::filesystem::rename(path, dir.file("a.json.1"));
        CHECK(sink->write("three\n")); // still into the old file
        CHECK(sink->reopen());
        CHECK(sink->write("four\n"));
    }
    CHECK(read_file(dir.file("a.json.1")) == "one\nhalf a line of a run that was killed\ntwo\nthree\n");
    CHECK(read_file(path) == "four\n");

    std::filesystem::create_symlink(path, dir.file("link"));
    const auto link = Sink::open_file(dir.file("link"));
    REQUIRE(!link);
    CHECK(link.error().message.find("symbolic link") != std::string::npos);
    REQUIRE(mkfifo(dir.file("fifo").c_str(), 0600) == 0);
    CHECK(!Sink::open_file(dir.file("fifo"))); // and does not hang
    CHECK(!Sink::open_file(dir.file("")));
}

TEST_CASE("a full disk leaves no half line, and the loss is told", "[output]") {
    const TemporaryDirectory dir;
    const std::string path = dir.file("a.json");
    auto sink = Sink::open_file(path);
    REQUIRE(sink);
    JsonOutput out(std::move(*sink), false, [] { return noon + second; });
    REQUIRE(out.start(start()));
    const std::string before = read_file(path);
    {
        const FileSizeLimit limit(before.size() + 100); // a part of the next line fits
        const Status status = out.drop(incident(), true);
        REQUIRE(!status);
        CHECK(status.error().message.starts_with("cannot write to " + path + ": "));
        CHECK(!out.drop(incident(), true));
        CHECK(read_file(path) == before);
    }
    CHECK(out.drop(incident(), true));
    Summary sum = summary(true);
    CHECK(out.summary(sum));
    const auto lines = lines_of(read_file(path));
    REQUIRE(lines.size() == 4);
    const json lost = checked(lines[1] + "\n");
    CHECK(lost["type"] == "lost");
    CHECK(lost["where"] == "file");
    CHECK(lost["count"] == 2);
    CHECK(checked(lines[2] + "\n")["type"] == "drop");
    CHECK(checked(lines[3] + "\n")["lost"] == json{{"file", 2}, {"ring", 37}});
}

TEST_CASE("a half line in a borrowed descriptor is ended before the next", "[output]") {
    const TemporaryDirectory dir;
    const std::string path = dir.file("redirected");
    const int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    REQUIRE(fd >= 0);
    Sink sink = Sink::borrow(fd, "standard output");
    CHECK(sink.write("one\n"));
    {
        const FileSizeLimit limit(6);
        CHECK(!sink.write("two\n"));
    }
    CHECK(sink.write("three\n"));
    close(fd);
    CHECK(read_file(path) == "one\ntw\nthree\n");
    CHECK(sink.failed_lines() == 1);
}

TEST_CASE("a descriptor that does not block is waited for", "[output]") {
    int fds[2];
    REQUIRE(pipe2(fds, O_CLOEXEC) == 0);
    REQUIRE(fcntl(fds[1], F_SETFL, O_NONBLOCK) == 0);
    REQUIRE(fcntl(fds[1], F_SETPIPE_SZ, 4096) > 0);
    const std::string big(20000, 'x');
    const pid_t reader = fork();
    if (reader == 0) { // reads everything, late
        close(fds[1]);
        usleep(20000);
        char buffer[1000];
        std::size_t sum = 0;
        for (ssize_t n; (n = read(fds[0], buffer, sizeof buffer)) > 0;)
            sum += static_cast<std::size_t>(n);
        _exit(sum == 20001 ? 0 : 1);
    }
    Sink sink = Sink::borrow(fds[1], "standard output");
    CHECK(sink.write(big + "\n"));
    close(fds[0]);
    close(fds[1]);
    int status = -1;
    REQUIRE(waitpid(reader, &status, 0) == reader);
    CHECK(status == 0);
}
