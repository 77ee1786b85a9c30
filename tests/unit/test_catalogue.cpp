// SPDX-License-Identifier: GPL-2.0-only
// The catalogue of explanations: what comes with the program, held against drops as they are met
// (tests/fixtures/explain/cases.yaml) and the kernels' own reasons (tests/fixtures/reasons), and the user's files.
#include "address.h"
#include "catch.h"

#include <algorithm>
#include <arpa/inet.h>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <sys/stat.h>
#include <unistd.h>

#include <yaml-cpp/yaml.h>

#include "explain/catalogue_yaml.h"
#include "explain/condition.h"
#include "explain/explain.h"
#include "explain/explain_dir.h"
#include "explain/match.h"
#include "explain/words.h"
#include "util/text.h"

using namespace tsdroptrace;
using namespace tsdroptrace::explain;

namespace {

const std::string fixtures = TSDROPTRACE_FIXTURES;

bool has(const std::string& text, std::string_view part) {
    return text.find(part) != std::string::npos;
}

// ---- a case of cases.yaml ----

constexpr DropKind kinds[] = {DropKind::rule, DropKind::policy, DropKind::hook, DropKind::kernel};
constexpr Hook hooks[] = {Hook::prerouting,  Hook::input,   Hook::forward, Hook::output,
                          Hook::postrouting, Hook::ingress, Hook::egress};
constexpr Backend backends[] = {Backend::iptables_legacy, Backend::iptables_nft, Backend::nftables};
constexpr RuleFamily families[] = {RuleFamily::ip,  RuleFamily::ip6,    RuleFamily::inet,
                                   RuleFamily::arp, RuleFamily::bridge, RuleFamily::netdev};
constexpr Confidence confidences[] = {Confidence::exact, Confidence::inferred};
constexpr QueueFate fates[] = {QueueFate::nobody,  QueueFate::full,    QueueFate::refused,
                               QueueFate::unknown, QueueFate::verdict, QueueFate::closed};

template <typename T>
T named(const auto& all, const std::string& name) {
    const auto found = std::ranges::find_if(all, [&](T one) { return to_string(one) == name; });
    INFO(name);
    REQUIRE(found != std::end(all));
    return *found;
}

class Case {
public:
    explicit Case(const YAML::Node& node) : node_(node) {
        static const std::set<std::string> known{
            "id",      "says",     "hides",        "fix",        "fixes",     "risk",   "kind",
            "hook",    "backend",  "table",        "chain",      "family",    "path",   "jumps",
            "text",    "verdict",  "src",          "dst",        "sport",     "dport",  "proto",
            "ct",      "in",       "out",          "mark",       "length",    "reason", "queue",
            "sender",  "location", "function",     "program_id", "unknown",   "route",  "tailnet_peer",
            "sysctls", "waiting",  "socket_waits", "confidence", "direction", "never"};
        for (const auto& entry : node) {
            INFO(entry.first.Scalar());
            REQUIRE(known.contains(entry.first.Scalar()));
        }
    }

    std::string id() const { return text("id", ""); }
    std::string text(const char* key, const std::string& otherwise) const {
        return node_[key] ? node_[key].Scalar() : otherwise;
    }
    std::vector<std::string> list(const char* key) const {
        return node_[key] ? node_[key].as<std::vector<std::string>>() : std::vector<std::string>{};
    }

    Drop drop() const {
        Drop drop;
        drop.netns = {4026531840, std::nullopt, true};
        drop.site.kind = named<DropKind>(kinds, text("kind", "rule"));
        const bool kernel = drop.site.kind == DropKind::kernel;
        if (!kernel)
            drop.site.hook = named<Hook>(hooks, text("hook", "input"));
        drop.site.reason = text("reason", kernel ? "NOT_SPECIFIED" : "NETFILTER_DROP");
        drop.site.location = text("location", kernel ? "" : "nf_hook_slow+0x9b/0xd0");
        drop.site.unknown = text("unknown", "");
        if (node_["function"])
            drop.site.hook_function = HookFunction{
                text("function", ""), std::nullopt,
                node_["program_id"] ? std::optional(node_["program_id"].as<std::uint32_t>()) : std::nullopt, ""};
        if (const YAML::Node queue = node_["queue"]) {
            drop.site.queue = Queue{queue["number"].as<std::uint16_t>(),
                                    named<QueueFate>(fates, queue["fate"].Scalar()), std::nullopt};
            if (queue["comm"])
                drop.site.queue->process = process(queue);
        }
        if (node_["sender"])
            drop.process = process(node_["sender"]);
        packet(drop);
        if (drop.site.kind == DropKind::rule || drop.site.kind == DropKind::policy)
            drop.rule = rule(drop.site.kind);
        drop.evidence = evidence();
        drop.owner = drop.rule ? Explainer().owner(*drop.rule) : std::nullopt;
        return drop;
    }

private:
    static Process process(const YAML::Node& node) { return {node["pid"].as<std::uint32_t>(), node["comm"].Scalar()}; }

    void packet(Drop& drop) const {
        const bool leaves = drop.site.hook == Hook::output || drop.site.hook == Hook::postrouting;
        Packet& packet = drop.packet;
        packet.family = IpFamily::ipv4;
        packet.proto = text("proto", "udp") == "tcp" ? 6 : text("proto", "udp") == "icmp" ? 1 : 17;
        packet.src = address(text("src", leaves ? "10.0.0.2" : "198.51.100.7"));
        packet.dst = address(text("dst", leaves ? "198.51.100.7" : "10.0.0.2"));
        packet.sport = static_cast<std::uint16_t>(std::stoi(text("sport", "4000")));
        packet.dport = static_cast<std::uint16_t>(std::stoi(text("dport", "53")));
        packet.length = static_cast<std::uint32_t>(std::stoi(text("length", "84")));
        packet.mark = static_cast<std::uint32_t>(std::stoul(text("mark", "0"), nullptr, 0));
        packet.direction = text("direction", leaves ? "to" : "from") == "to" ? Direction::to : Direction::from;
        packet.received = !leaves;
        if (node_["ct"])
            packet.ctinfo = static_cast<std::uint8_t>(node_["ct"].as<int>());
        if (const std::string in = text("in", leaves ? "" : "eth0"); !in.empty())
            packet.in_dev = in;
        if (const std::string out = text("out", leaves ? "eth0" : ""); !out.empty())
            packet.out_dev = out;
    }

    std::shared_ptr<const Rule> rule(DropKind kind) const {
        Rule rule;
        rule.backend = named<Backend>(backends, text("backend", "iptables-legacy"));
        rule.family = named<RuleFamily>(families, text("family", "ip"));
        rule.table = text("table", "filter");
        rule.chain = text("chain", "INPUT");
        rule.verdict = text("verdict", "drop");
        rule.confidence = named<Confidence>(confidences, text("confidence", "exact"));
        if (node_["text"])
            rule.text = text("text", "");
        for (const std::string& chain : list("path"))
            rule.path.push_back({chain, std::nullopt, std::nullopt});
        if (rule.path.empty())
            rule.path = {{rule.chain, std::nullopt, std::nullopt}};
        if (kind == DropKind::rule)
            rule.number = 3;
        rule.jumps = list("jumps");
        return std::make_shared<Rule>(rule);
    }

    std::shared_ptr<const Evidence> evidence() const {
        Evidence evidence;
        const auto yes = [&](const char* key) {
            return node_[key] ? std::optional(node_[key].Scalar() == "yes") : std::nullopt;
        };
        if (const YAML::Node route = node_["route"]) {
            evidence.route = Route{};
            evidence.route->type = route["type"].Scalar();
            evidence.route->dev = route["dev"].Scalar();
            evidence.route->table = route["table"].as<std::uint32_t>();
            if (route["via"])
                evidence.route->gateway = address(route["via"].Scalar());
        }
        evidence.tailnet_peer = yes("tailnet_peer");
        evidence.socket_waits = yes("socket_waits");
        if (node_["waiting"])
            evidence.waiting = process(node_["waiting"]);
        for (const auto& sysctl : node_["sysctls"])
            evidence.sysctls.emplace(sysctl.first.Scalar(), sysctl.second.Scalar());
        const bool asked =
            evidence.route || evidence.tailnet_peer || evidence.socket_waits || !evidence.sysctls.empty();
        return asked ? std::make_shared<Evidence>(evidence) : nullptr;
    }

    YAML::Node node_;
};

std::vector<Case> cases() {
    std::vector<Case> out;
    for (const auto& node : YAML::LoadFile(fixtures + "/explain/cases.yaml"))
        out.emplace_back(node);
    return out;
}

// ---- each condition, made false ----

void edit_rule(Drop& drop, auto edit) {
    REQUIRE(drop.rule);
    Rule rule = *drop.rule;
    edit(rule);
    drop.rule = std::make_shared<Rule>(rule);
}

void edit_evidence(Drop& drop, auto edit) {
    Evidence evidence = drop.evidence ? *drop.evidence : Evidence{};
    edit(evidence);
    drop.evidence = std::make_shared<Evidence>(evidence);
}

// A name that the pattern takes.
std::string example(std::string_view pattern) {
    return pattern.ends_with('*') ? std::string(pattern.substr(0, pattern.size() - 1)) + "x" : std::string(pattern);
}

template <typename T>
T other_than(const Condition& condition, const auto& all) {
    const auto found = std::ranges::find_if(
        all, [&](T one) { return std::ranges::find(condition.values, to_string(one)) == condition.values.end(); });
    REQUIRE(found != std::end(all));
    return *found;
}

// Changes the drop in this one respect, so that the condition does not hold.
void spoil(Drop& drop, const Condition& c) {
    const std::string value(c.values.front()); // of a condition in `unless`: what must not be
    const bool any = !c.negated && std::ranges::find(c.values, "*") != c.values.end();
    switch (c.field) {
    case Field::kind:
        drop.site.kind = other_than<DropKind>(c, kinds);
        break;
    case Field::hook:
        drop.site.hook = other_than<Hook>(c, hooks);
        break;
    case Field::table:
        edit_rule(drop, [](Rule& rule) { rule.table = "another"; });
        break;
    case Field::chain:
        edit_rule(drop, [](Rule& rule) { rule.chain = "another"; });
        break;
    case Field::jumps:
        edit_rule(drop, [&](Rule& rule) {
            rule.jumps = c.negated ? std::vector{example(value)} : std::vector<std::string>{};
        });
        break;
    case Field::text:
        edit_rule(drop, [&](Rule& rule) { rule.text = c.negated ? example(value) : "another"; });
        break;
    case Field::verdict:
        edit_rule(drop, [](Rule& rule) { rule.verdict = "another"; });
        break;
    case Field::source:
        drop.packet.src = address("203.0.113.1");
        break;
    case Field::owner:
        drop.owner = Owner{"somebody else", "chain another", ""};
        if (any) {
            drop.owner.reset();
            edit_rule(drop, [](Rule& rule) {
                rule.table = rule.chain = "another";
                rule.text = "-j DROP";
            });
        }
        break;
    case Field::reason:
        drop.site.reason = "ANOTHER";
        break;
    case Field::symbol:
        drop.site.location = any ? "" : "elsewhere+0x1/0x2";
        break;
    case Field::function:
        drop.site.hook_function->name = "elsewhere";
        if (any)
            drop.site.hook_function.reset();
        break;
    case Field::queue:
        drop.site.queue->fate = other_than<QueueFate>(c, fates);
        break;
    case Field::mark:
        drop.packet.mark = c.negated ? static_cast<std::uint32_t>(std::stoul(value, nullptr, 0)) : 0;
        break;
    case Field::sysctl:
        edit_evidence(drop, [&](Evidence& evidence) { evidence.sysctls[sysctl_name(c.argument, drop)] = "another"; });
        break;
    default:
        FAIL("no cause of the catalogue had a condition on " << fields()[static_cast<std::size_t>(c.field)].name);
    }
}

// The drop that a cause with nothing but a kind, reasons and a function describes.
Drop plain_kernel_drop(const std::string& reason) {
    Drop drop = Case(YAML::Load("{kind: kernel, out: eth1}")).drop();
    drop.site.reason = reason;
    return drop;
}

bool asks_only_the_reason(const KnownCause& cause) {
    return cause.conditions.size() == 2 && cause.conditions[0].field == Field::reason &&
           !cause.conditions[0].values.front().ends_with('*') && cause.conditions[1].field == Field::kind;
}

} // namespace

TEST_CASE("catalogue: drops as they are met have the explanation that is written beside them", "[explain]") {
    for (const Case& one : cases()) {
        const Drop drop = one.drop();
        const auto explanation = Explainer().explain(drop);
        INFO(one.id() << ", chain " << one.text("chain", "") << ", text " << one.text("text", ""));
        REQUIRE(explanation);
        CHECK(explanation->id == one.id());
        INFO(explanation->summary);
        for (const std::string& piece : one.list("says"))
            CHECK(has(explanation->summary, piece));
        for (const std::string& piece : one.list("hides"))
            CHECK(!has(explanation->summary, piece));
        std::string all_fixes, all_risks;
        for (const Fix& fix : explanation->fixes) {
            all_fixes += fix.action + '\n';
            all_risks += fix.risk + '\n';
        }
        if (const std::string first = one.text("fix", ""); !first.empty()) {
            REQUIRE(!explanation->fixes.empty());
            CHECK(explanation->fixes[0].action == first);
        }
        INFO(all_fixes << all_risks);
        for (const std::string& piece : one.list("fixes"))
            CHECK(has(all_fixes, piece));
        for (const std::string& piece : one.list("never"))
            CHECK(!has(all_fixes, piece));
        CHECK(has(all_risks, one.text("risk", "")));
    }
}

TEST_CASE("catalogue: each condition of an entry keeps it from applying", "[explain]") {
    const Explainer explainer;
    std::set<const KnownCause*> met;
    std::size_t spoilt = 0;
    const auto check = [&](const Drop& drop) {
        const KnownCause* cause = explainer.cause_of(drop);
        REQUIRE(cause != nullptr);
        met.insert(cause);
        for (const Condition& condition : cause->conditions) {
            Drop other = drop;
            spoil(other, condition);
            INFO(cause->id << ": " << fields()[static_cast<std::size_t>(condition.field)].name);
            CHECK(explainer.cause_of(other) != cause);
            spoilt++;
        }
    };
    for (const Case& one : cases())
        check(one.drop());
    for (const KnownCause& cause : builtin_catalogue().causes)
        if (asks_only_the_reason(cause))
            check(plain_kernel_drop(std::string(cause.conditions[0].values.front())));
    for (const KnownCause& cause : builtin_catalogue().causes) {
        INFO(cause.id << " is not in cases.yaml, or an entry before it always takes its place");
        CHECK(met.contains(&cause));
    }
    CHECK(spoilt > 500);
}

TEST_CASE("catalogue: every condition that may be written is one that can hold, and fail", "[explain]") {
    struct Example {
        const char *yaml, *holds, *fails;
    };
    const Example examples[] = {
        {"kind: rule", "{}", "{kind: policy}"},
        {"hook: [input, forward]", "{hook: forward}", "{hook: output}"},
        {"backend: nftables", "{backend: nftables}", "{}"},
        {"family: inet", "{family: inet}", "{}"},
        {"table: filter", "{}", "{table: mangle}"},
        {"chain: ts-*", "{chain: ts-input}", "{chain: INPUT}"},
        {"path: ts-*", "{path: [INPUT, ts-input, deep], chain: deep}", "{path: [INPUT, deep], chain: deep}"},
        {"jumps: ufw*", "{kind: policy, jumps: [a, ufw-b]}", "{kind: policy, jumps: [a]}"},
        {"text: [nothing, a*c]", "{text: a b c}", "{text: c b a}"},
        {"verdict: reject", "{verdict: reject}", "{}"},
        {"confidence: inferred", "{confidence: inferred}", "{}"},
        {"source: 198.51.100.0/24", "{}", "{src: 198.51.101.1}"},
        {"destination: 10.0.0.0/8", "{}", "{dst: 11.0.0.1}"},
        {"peer: 198.51.100.0/24", "{}", "{hook: output, dst: 10.0.0.1}"},
        {"owner: Docker", "{chain: DOCKER}", "{chain: DOCKER-USER}"},
        {"reason: IP_*", "{kind: kernel, reason: IP_CSUM}", "{kind: kernel, reason: TCP_CSUM}"},
        {"symbol: ip_error", "{kind: kernel, location: ip_error.part.0+0x1/0x2}", "{kind: kernel}"},
        {"function: ip_vs_*", "{kind: hook, function: ip_vs_in}", "{kind: hook, function: nf_confirm}"},
        {"queue: full", "{queue: {number: 1, fate: full}}", "{queue: {number: 1, fate: nobody}}"},
        {"conntrack: [reply, new]", "{ct: 2}", "{ct: 0}"},
        {"conntrack: none", "{}", "{ct: 3}"},
        {"answer: yes", "{ct: 4}", "{ct: 2}"},
        {"direction: from", "{}", "{hook: output}"},
        {"received: no", "{hook: output}", "{}"},
        {"sender: yes", "{sender: {pid: 1, comm: a}}", "{}"},
        {"in_dev: eth*", "{}", "{in: wlan0}"},
        {"out_dev: docker0", "{out: docker0}", "{}"},
        {"protocol: tcp", "{proto: tcp}", "{}"},
        {"source_port: 4000", "{}", "{sport: 4001}"},
        {"destination_port: [52, 53]", "{}", "{dport: 54}"},
        {"mark: 0x80000/0xff0000", "{mark: 0x80001}", "{mark: 0x180000}"},
        {"route_type: unicast", "{route: {type: unicast, dev: a, table: 1}}", "{}"},
        {"route_dev: tailscale*", "{route: {type: unicast, dev: tailscale0, table: 52}}",
         "{route: {type: unicast, dev: eth0, table: 254}}"},
        {"route_table: 52", "{route: {type: unicast, dev: tailscale0, table: 52}}",
         "{route: {type: unicast, dev: eth0, table: 254}}"},
        {"tailnet_peer: no", "{tailnet_peer: no}", "{}"}, // not known is not no
        {"socket_waits: yes", "{socket_waits: yes}", "{socket_waits: no}"},
        {"sysctl: {\"net.ipv4.conf.{in_dev}.rp_filter\": 1}",
         "{in: eth0.5, sysctls: {net.ipv4.conf.eth0/5.rp_filter: 1}}", "{sysctls: {net.ipv4.conf.eth0.rp_filter: 0}}"},
    };
    std::set<Field> tried;
    for (const Example& one : examples) {
        INFO(one.yaml);
        const std::string condition = one.yaml;
        OwnedCatalogue own, opposite;
        REQUIRE(read_catalogue("causes: [{id: x, when: {" + condition + "}, say: x}]", own).empty());
        REQUIRE(read_catalogue("causes: [{id: x, unless: {" + condition + "}, say: x}]", opposite).empty());
        REQUIRE(own.causes.at(0).conditions.size() == 1);
        tried.insert(own.causes[0].conditions[0].field);
        for (const auto& [yaml, expected] : {std::pair{one.holds, true}, std::pair{one.fails, false}}) {
            const Drop drop = Case(YAML::Load(yaml)).drop();
            const Subject subject{drop, drop.owner, std::nullopt, nullptr};
            CHECK(all_hold(own.causes[0].conditions, subject) == expected);
            CHECK(all_hold(opposite.causes[0].conditions, subject) != expected);
        }
    }
    for (const FieldInfo& field : fields()) {
        CHECK(&field == &fields()[static_cast<std::size_t>(field.field)]);
        INFO(field.name);
        CHECK((tried.contains(field.field) || field.field == Field::icmp_type)); // a case has no ICMP packet
    }
    Drop echo = Case(YAML::Load("{}")).drop();
    echo.packet.icmp_type = 8;
    OwnedCatalogue own;
    REQUIRE(read_catalogue("causes: [{id: x, when: {icmp_type: 8}, say: x}]", own).empty());
    CHECK(all_hold(own.causes[0].conditions, {echo, std::nullopt, std::nullopt, nullptr}));
    echo.packet.icmp_type = 0;
    CHECK(!all_hold(own.causes[0].conditions, {echo, std::nullopt, std::nullopt, nullptr}));
}

TEST_CASE("catalogue: every reason of the tested kernels has a sentence of its own", "[explain]") {
    // Enumerators that no packet dies of: ends and bases of the lists, and what is said of packets that live.
    const std::set<std::string> no_reasons{"SKB_NOT_DROPPED_YET", "SKB_CONSUMED",   "CONSUMED",    "MAX",
                                           "SUBSYS_MASK",         "QDISC_DROP_MAX", "OVS_DROP_MAX"};
    std::size_t reasons = 0;
    for (const char* kernel : {"6.1", "6.12", "7.2"}) {
        std::ifstream file(fixtures + "/reasons/" + kernel + ".txt");
        REQUIRE(file);
        for (std::string reason; std::getline(file, reason);) {
            constexpr std::string_view prefix = "SKB_DROP_REASON_";
            if (reason.starts_with('#') || reason.starts_with("__"))
                continue;
            if (reason.starts_with(prefix))
                reason.erase(0, prefix.size());
            if (no_reasons.contains(reason))
                continue;
            INFO(kernel << ": " << reason);
            const auto explanation = Explainer().explain(plain_kernel_drop(reason));
            REQUIRE(explanation);
            CHECK(explanation->id != "kernel-other");
            CHECK(explanation->summary.size() > 10);
            // Also of a packet of which little is known.
            Drop bare;
            bare.site.kind = DropKind::kernel;
            bare.site.reason = reason;
            const auto least = Explainer().explain(bare);
            REQUIRE(least);
            CHECK(!least->summary.empty());
            reasons++;
        }
    }
    CHECK(reasons > 300);
}

TEST_CASE("catalogue: what must never be advised is not", "[explain]") {
    const auto check = [](std::string_view text) {
        for (const std::string_view never : {"accept-dns", "disable-ipv4", "priority", "ts-input "})
            CHECK(text.find(never) == std::string_view::npos);
    };
    for (const KnownCause& cause : builtin_catalogue().causes)
        for (const FixTemplate& fix : cause.fixes) {
            INFO(cause.id);
            check(fix.action);
            // Rules within Tailscale's own chains are flushed.
            CHECK(fix.action.find("-I ts-") == std::string_view::npos);
        }
    // An accept is inserted into the chain that drops, never into one that comes earlier.
    for (const Case& one : cases()) {
        const Drop drop = one.drop();
        const auto explanation = Explainer().explain(drop);
        for (const Fix& fix : explanation->fixes)
            if (fix.action.starts_with("nft insert rule")) {
                INFO(fix.action);
                CHECK(has(fix.action, " " + drop.rule->table + " " + drop.rule->path.front().chain + " "));
                CHECK(has(fix.risk, "one that comes later may still drop it"));
            }
    }
}

TEST_CASE("catalogue: it holds what outputs and readers rely on", "[explain]") {
    const Catalogue& catalogue = builtin_catalogue();
    // A setting is shown on one line beside a number: 80 columns less 13. Commands may be wider.
    const std::set<std::string_view> tools{
        "bpftool", "cscli", "docker", "ethtool", "fail2ban-client", "firewall-cmd", "ip", "journalctl", "kubectl",
        "nft",     "nstat", "ss",     "sysctl",  "systemctl",       "tailscale",    "tc", "ufw",        "{iptables}"};
    std::map<std::string_view, std::vector<const KnownCause*>> by_id;
    for (const KnownCause& cause : catalogue.causes) {
        INFO(cause.id);
        by_id[cause.id].push_back(&cause);
        CHECK(!cause.sentences.empty());
        for (const FixTemplate& fix : cause.fixes) {
            INFO(fix.action);
            CHECK(!fix.risk.empty());
            if (!tools.contains(fix.action.substr(0, fix.action.find(' '))))
                CHECK(columns(fix.action) <= 67);
        }
        // What tells the reader to do something says where that is explained, unless all that is known is the rule.
        const bool general = cause.id.find("owned-") != std::string_view::npos || cause.id == "policy";
        if (!cause.fixes.empty() && !general)
            CHECK(!cause.reference.empty());
        // An address, an issue, or a page of the manual.
        const std::string_view see = cause.reference;
        CHECK((see.empty() || see.starts_with("https://") || see.find('#') != std::string_view::npos ||
               see.ends_with(')')));
    }
    // One id may have several forms, which then advise the same.
    for (const auto& [id, same] : by_id)
        for (const KnownCause* cause : same) {
            INFO(id);
            CHECK(cause->reference == same[0]->reference);
            if (id != "kernel-forwarding-off") // of IPv4 and of IPv6
                CHECK(std::ranges::equal(cause->fixes, same[0]->fixes, {}, &FixTemplate::action, &FixTemplate::action));
        }
    for (const OwnerPattern& owner : catalogue.owners)
        CHECK(columns(owner.configured_by) <= 67);
    for (const Service& service : catalogue.services) {
        INFO(service.cidr);
        CHECK(!service.source.empty());
        const std::string network(service.cidr.substr(0, service.cidr.find('/')));
        CHECK(contains(service.cidr, address(network)));
        if (!service.accept.empty() && service.accept != never_accept)
            CHECK(contains(service.accept, address(network)));
    }
}

TEST_CASE("catalogue: an accept that would not be reached is said to be none", "[explain]") {
    const Drop drop = Case(YAML::Load("{chain: ts-input, path: [INPUT, ts-input]}")).drop();
    CHECK(shadow_warning("iptables -I INPUT 1 -s 192.0.2.1 -j ACCEPT", drop).empty());
    CHECK(shadow_warning("iptables -t nat -A POSTROUTING -j MASQUERADE", drop).empty());
    CHECK(shadow_warning("iptables -A INPUT -s 192.0.2.1 -j ACCEPT", drop) ==
          "it does not help against this drop: at the end of INPUT it stands below the rule that drops");
    CHECK(shadow_warning("iptables -A ts-input -s 192.0.2.1 -j ACCEPT", drop) ==
          "it does not help against this drop: at the end of ts-input it stands below the rule that drops");
    CHECK(shadow_warning("iptables -I mine -s 192.0.2.1 -j ACCEPT", drop) ==
          "helps only if packets pass mine before they come to ts-input");
    CHECK(shadow_warning("iptables -t raw -I PREROUTING -j ACCEPT", drop) ==
          "it does not help against this drop: an accept ends only its own table, and the rule stands in table filter");
    CHECK(shadow_warning("nft insert rule inet early in ip saddr 192.0.2.1 accept", drop) ==
          "it does not help against this drop: an accept ends only its own table, and the rule stands in table filter");
    const Drop nft = Case(YAML::Load("{backend: nftables, family: inet, table: mine, chain: in}")).drop();
    CHECK(shadow_warning("nft insert rule inet mine in ip saddr 192.0.2.1 accept", nft) ==
          "ends only this chain: one that comes later may still drop it");
    CHECK(shadow_warning("nft add rule inet mine in ip saddr 192.0.2.1 accept", nft) ==
          "it does not help against this drop: at the end of in it stands below the rule that drops");
    const Drop policy = Case(YAML::Load("{kind: policy, chain: FORWARD, jumps: [DOCKER-USER]}")).drop();
    CHECK(shadow_warning("iptables -A FORWARD -j ACCEPT", policy).empty()); // a policy comes after all rules
    CHECK(shadow_warning("iptables -I DOCKER-USER 1 -j ACCEPT", policy).empty());
}

TEST_CASE("catalogue: the machine is asked only for sysctls that can change the explanation", "[explain]") {
    const Explainer explainer;
    const auto wanted = [&](const char* yaml) { return explainer.wanted_sysctls(Case(YAML::Load(yaml)).drop()); };
    CHECK(wanted("{chain: ts-input}").empty());
    CHECK(wanted("{kind: kernel, reason: IP_LOCAL_SOURCE}") ==
          std::set<std::string>{"net.ipv4.conf.all.src_valid_mark"});
    CHECK(wanted("{kind: kernel, reason: IP_INADDRERRORS, location: ip_error+0x1/0x2}") ==
          std::set<std::string>{"net.ipv4.ip_forward"});
    CHECK(wanted("{kind: kernel, reason: NOT_SPECIFIED, location: ip6_forward+0x1/0x2}") ==
          std::set<std::string>{"net.ipv6.conf.all.forwarding"});
}

// ---- the user's files ----

namespace {

std::vector<std::string> problems_of(std::string_view text) {
    OwnedCatalogue into;
    std::vector<std::string> out;
    for (const Problem& problem : read_catalogue(text, into))
        out.push_back(std::to_string(problem.line) + ": " + problem.message);
    return out;
}

class Directory {
public:
    Directory() {
        char name[] = "/tmp/tsdroptrace-test-XXXXXX";
        REQUIRE(mkdtemp(name) != nullptr);
        path_ = name;
        chmod(name, 0755);
    }
    ~Directory() { std::filesystem::remove_all(path_); }
    void write(const std::string& name, const std::string& text, mode_t mode = 0644) const {
        std::ofstream(path_ + "/" + name) << text;
        chmod((path_ + "/" + name).c_str(), mode);
    }
    OwnEntries read() const { return read_explain_dir(path_, getuid()); }
    const std::string& path() const { return path_; }

private:
    std::string path_;
};

} // namespace

TEST_CASE("explain.d: mistakes are told with their line and what was expected", "[explain]") {
    using Lines = std::vector<std::string>;
    CHECK(problems_of("").empty());
    CHECK(problems_of("# nothing yet\n").empty());
    CHECK(problems_of("causes:\n  - id: [\n") == Lines{"3: this is not YAML: end of sequence flow not found"});
    CHECK(problems_of("cause: []\n") == Lines{"1: there is no key of the file \"cause\"; did you mean \"causes\"?"});
    CHECK(problems_of("causes: 5\n") == Lines{"1: \"causes\" must be a list: lines that begin with \"- \""});
    CHECK(problems_of("- a\n") == Lines{"1: the file must have keys: causes, notes, owners, services"});
    CHECK(problems_of("causes:\n  - say: x\n") == Lines{"2: a cause needs \"id\""});
    CHECK(problems_of("causes:\n  - id: x\n") == Lines{"2: a cause needs \"say\""});
    CHECK(problems_of("causes:\n  - id: Mine\n    say: x\n") ==
          Lines{"2: the id \"Mine\" must be of small letters, digits and \"-\""});
    CHECK(problems_of("causes:\n  - id: x\n    id: y\n    say: x\n") == Lines{"3: \"id\" is there twice"});
    CHECK(problems_of("causes:\n  - id: x\n    say: x\n    when:\n      chian: INPUT\n") ==
          Lines{"5: there is no condition \"chian\"; did you mean \"chain\"?"});
    CHECK(problems_of("causes:\n  - {id: x, say: x, when: {hook: inputt}}\n") ==
          Lines{"2: \"hook\" is \"inputt\"; expected one of prerouting, input, forward, output, postrouting, ingress, "
                "egress"});
    CHECK(problems_of("causes:\n  - {id: x, say: x, when: {hook: \"input, forward\"}}\n").size() == 1);
    CHECK(problems_of("causes:\n  - {id: x, say: x, when: {source: 10.0.0.1}}\n") ==
          Lines{"2: \"source\" is \"10.0.0.1\"; expected a CIDR such as 100.64.0.0/10"});
    CHECK(problems_of("causes:\n  - {id: x, say: x, when: {destination_port: 70000}}\n") ==
          Lines{"2: \"destination_port\" is \"70000\"; expected a port number"});
    CHECK(problems_of("causes:\n  - {id: x, say: x, when: {chain: []}}\n") == Lines{"2: \"chain\" needs a value"});
    CHECK(problems_of("causes:\n  - {id: x, say: x, when: {sysctl: 1}}\n") ==
          Lines{"2: \"sysctl\" must have names and values, such as net.ipv4.ip_forward: 0"});
    CHECK(problems_of("causes:\n  - {id: x, say: \"by {indev}\"}\n") ==
          Lines{"2: there is no placeholder \"indev\"; did you mean \"in_dev\"?"});
    CHECK(problems_of("causes:\n  - {id: x, say: \"by {in_dev\"}\n") == Lines{"2: a \"{\" without its \"}\""});
    CHECK(problems_of("causes:\n  - id: x\n    say: x\n    fixes:\n      - do: reboot\n") ==
          Lines{"5: a fix needs \"risk\""});
    CHECK(problems_of("owners:\n  - name: me\n") ==
          Lines{"2: an owner needs \"comment\", \"chain\", \"set\" or \"table\""});
    CHECK(problems_of("owners:\n  - {name: me, table: mine}\n") ==
          Lines{"2: the table \"mine\" needs its family before it: \"inet mine\", or \"* mine\" for any family"});
    CHECK(problems_of("services:\n  - {address: 10.0.0.1, is: x, source: y}\n") ==
          Lines{"2: \"10.0.0.1\" is no CIDR; expected one such as 100.64.0.0/10, for a single address 192.0.2.1/32"});
    CHECK(problems_of("services:\n  - {address: 10.0.0.1/32, is: x}\n") == Lines{"2: a service needs \"source\""});
    CHECK(problems_of("services:\n  - {address: 10.0.0.1/32, is: x, source: y, dns: maybe}\n") ==
          Lines{"2: \"dns\" is \"maybe\"; expected yes or no"});
    // One bad entry does not take the others with it.
    OwnedCatalogue into;
    CHECK(
        read_catalogue("causes:\n  - {id: a, say: x}\n  - {id: b}\n  - {id: c, say: x}\nowners: [5]\n", into).size() ==
        2);
    CHECK(into.causes.size() == 2);
    CHECK(into.owners.empty());
    CHECK(problems_of(std::string(100000, '[')).size() == 1); // no stack is deep enough
}

TEST_CASE("explain.d: the example of the README is a good one", "[explain]") {
    std::ifstream file(fixtures + "/../../README.md");
    const std::string readme{std::istreambuf_iterator<char>(file), {}};
    const std::size_t begin = readme.find("```yaml\n"), end = readme.find("```\n", begin + 1);
    REQUIRE(begin != std::string::npos);
    OwnedCatalogue into;
    for (const Problem& problem : read_catalogue(readme.substr(begin + 8, end - begin - 8), into))
        FAIL(problem.line << ": " << problem.message);
    CHECK(into.causes.size() == 1);
    CHECK(into.owners.size() == 1);
    CHECK(into.services.size() == 1);
}

TEST_CASE("explain.d: the user's entries come before those of the program", "[explain]") {
    const Directory dir;
    dir.write("10-mine.yaml", "causes:\n"
                              "  - id: our-lab\n"
                              "    when: {kind: rule, chain: ts-input, source: 100.100.0.0/16}\n"
                              "    say: \"{src} is the lab's; {peer} is {service}; owner {owner}.\"\n"
                              "    fixes:\n"
                              "      - {do: call the lab, risk: they may be out}\n"
                              "    see: https://wiki.example/lab\n"
                              "owners:\n"
                              "  - {name: the lab, chain: [\"ts-*\", lab], configured_by: labctl}\n"
                              "services:\n"
                              "  - {address: 100.100.2.136/32, is: our own resolver, source: the wiki}\n");
    const OwnEntries own = dir.read();
    CHECK(own.warnings.empty());
    REQUIRE(own.catalogue);
    const Explainer explainer(std::nullopt, own.catalogue);
    const auto all = cases();
    Drop drop = all.front().drop(); // the incident
    drop.owner = explainer.owner(*drop.rule);
    CHECK(drop.owner->name == "the lab");
    const auto explanation = explainer.explain(drop);
    CHECK(explanation->id == "our-lab");
    CHECK(explanation->summary.starts_with(
        "100.100.2.136 is the lab's; 100.100.2.136 is our own resolver; owner the lab. 100.100.2.136 is our own "
        "resolver."));
    REQUIRE(explanation->fixes.size() == 1);
    CHECK(explanation->fixes[0].action == "call the lab");
    CHECK(explanation->reference == "https://wiki.example/lab");
    drop.packet.src = address("100.64.9.9"); // another range: the program's own entry again
    CHECK(explainer.explain(drop)->id == "tailscale-cgnat");
}

TEST_CASE("explain.d: an entry that names a chain is about IP, unless it asks for a family", "[explain]") {
    auto own = std::make_shared<OwnedCatalogue>();
    REQUIRE(read_catalogue("causes:\n"
                           "  - {id: of-ip, when: {chain: FORWARD}, say: x}\n"
                           "  - {id: of-arp, when: {family: arp, chain: FORWARD}, say: x, fixes: [\n"
                           "      {do: '{iptables} -L', risk: none}, {do: arptables-legacy -L, risk: none}]}\n",
                           *own)
                .empty());
    const Explainer explainer(std::nullopt, own);
    const auto explain = [&](const char* yaml) { return explainer.explain(Case(YAML::Load(yaml)).drop()); };
    CHECK(explain("{chain: FORWARD}")->id == "of-ip");
    CHECK(explain("{chain: FORWARD, family: bridge}")->id == "unowned-rule");
    CHECK(explain("{chain: FORWARD, family: bridge, backend: nftables}")->id == "of-ip");
    const auto arp = explain("{chain: FORWARD, family: arp}");
    CHECK(arp->id == "of-arp");
    REQUIRE(arp->fixes.size() == 1); // no command of iptables would do anything there
    CHECK(arp->fixes[0].action == "arptables-legacy -L");
}

TEST_CASE("explain.d: a bad file gets one line, and the rest works", "[explain]") {
    const Directory dir;
    const std::string good = "causes:\n  - {id: good, when: {chain: mine}, say: x}\n";
    dir.write("a.yaml", "causes:\n  - {id: one, say: x, when: {chian: y}}\n  - {id: two}\n" + good.substr(8));
    dir.write("b.yaml", "causes: [\n");
    dir.write("c.yaml", good);
    dir.write("d.yaml", good, 0664);
    dir.write("e.yaml", std::string(300 * 1024, '#'));
    dir.write(".hidden.yaml", "[");
    dir.write("README", "[");
    REQUIRE(symlink("c.yaml", (dir.path() + "/f.yaml").c_str()) == 0);
    REQUIRE(mkfifo((dir.path() + "/g.yaml").c_str(), 0600) == 0);
    const OwnEntries own = dir.read();
    const std::string me = getuid() == 0 ? "root" : "user " + std::to_string(getuid());
    const std::string regular = ": not read: expected a regular file that belongs to " + me +
                                " and that nobody else can write to (chown, chmod go-w)";
    CHECK(own.warnings ==
          std::vector<std::string>{
              dir.path() + "/a.yaml:2: there is no condition \"chian\"; did you mean \"chain\"? (and 1 more); what is "
                           "wrong is left out, the rest is used",
              dir.path() + "/b.yaml:2: this is not YAML: end of sequence flow not found; the file is not used",
              dir.path() + "/d.yaml" + regular, dir.path() + "/e.yaml: not read: expected at most 256 KiB",
              dir.path() + "/f.yaml: not read: it is a symbolic link; expected a regular file",
              dir.path() + "/g.yaml" + regular});
    REQUIRE(own.catalogue);
    CHECK(own.catalogue->causes.size() == 2); // of a.yaml and of c.yaml
}

TEST_CASE("explain.d: the directory itself", "[explain]") {
    CHECK(read_explain_dir("/nonexistent/explain.d", getuid()).warnings.empty());
    const Directory dir;
    CHECK(!dir.read().catalogue);
    dir.write("a.yaml", "causes:\n  - {id: a, say: x}\n");
    chmod(dir.path().c_str(), 0777);
    OwnEntries own = dir.read();
    CHECK(!own.catalogue);
    REQUIRE(own.warnings.size() == 1);
    CHECK(own.warnings[0].starts_with(dir.path() + ": not read: expected a directory that belongs to "));
    chmod(dir.path().c_str(), 0755);
    CHECK(read_explain_dir(dir.path(), getuid() + 1).warnings.size() == 1);
    for (int i = 0; i < 70; i++)
        dir.write("n" + std::to_string(i) + ".yaml", "");
    own = dir.read();
    REQUIRE(own.warnings.size() == 1);
    CHECK(has(own.warnings[0], "expected at most 64 files"));
    CHECK(own.catalogue);
}
