// SPDX-License-Identifier: GPL-2.0-only
// Rules that are inferred from what their counters moved by.
#include <cstring>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <vector>

#include <arpa/inet.h>
#include <endian.h>
#include <linux/netfilter.h>
#include <linux/netfilter/nf_tables.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netlink.h>

#include "address.h"
#include "catch.h"
#include "explain/catalogue_yaml.h"
#include "pipeline.h"
#include "resolve_rule/inference.h"
#include "resolve_rule/nft_counters.h"
#include "resolve_rule/nft_listing.h"
#include "resolve_rule/rule_match.h"

using namespace tsdroptrace;
using namespace tsdroptrace::resolve_rule;

namespace {

constexpr std::uint32_t netns = 4026531840;
constexpr std::int64_t second = 1'000'000'000;

Packet packet(std::uint8_t proto, const char* src, std::uint16_t sport, const char* dst, std::uint16_t dport,
              std::uint32_t length = 80) {
    Packet packet;
    packet.src = address(src);
    packet.dst = address(dst);
    packet.family = packet.src.family;
    packet.proto = proto;
    packet.sport = sport;
    packet.dport = dport;
    packet.length = length;
    packet.in_dev = "eth0";
    packet.received = true;
    return packet;
}

Packet answer_of_dns(std::uint32_t length = 80) {
    return packet(IPPROTO_UDP, "100.100.2.136", 53, "10.0.0.2", 40000, length);
}

SnapshotRule legacy_rule(std::uint32_t offset, std::string text, std::string verdict) {
    SnapshotRule rule;
    rule.offset = offset;
    rule.text = std::move(text);
    rule.verdict = std::move(verdict);
    return rule;
}

SnapshotChain legacy_chain(std::string name, std::uint32_t offset, std::optional<Hook> hook,
                           std::vector<SnapshotRule> rules) {
    SnapshotChain chain;
    chain.name = std::move(name);
    chain.offset = offset;
    chain.hook = hook;
    if (hook)
        chain.policy = "accept";
    chain.backend = Backend::iptables_legacy;
    chain.rules = std::move(rules);
    return chain;
}

// Places: INPUT 0 to 4, its policy 5; FORWARD 6, its policy 7; ts-input 8 and 9, no policy 10.
Snapshot legacy_rules() {
    Snapshot snapshot;
    snapshot.kind = SnapshotKind::ip_tables;
    snapshot.netns = netns;
    snapshot.generation = 1;
    SnapshotRule jump = legacy_rule(0, "-A INPUT -j ts-input", "jump");
    jump.jump_offset = 5000;
    SnapshotTable table;
    table.family = RuleFamily::ip;
    table.name = "filter";
    table.chains = {
        legacy_chain("INPUT", 0, Hook::input,
                     {jump, legacy_rule(100, "-A INPUT -p tcp -m tcp --dport 81 -j DROP", "drop"),
                      legacy_rule(200, "-A INPUT -p udp -j DROP", "drop"),
                      legacy_rule(300, "-A INPUT -p tcp -m tcp --dport 82 -j REJECT --reject-with tcp-reset", "reject"),
                      legacy_rule(400, "-A INPUT -j LOG --log-prefix \"in \"", "")}),
        legacy_chain("FORWARD", 1000, Hook::forward, {legacy_rule(1000, "-A FORWARD -j DROP", "drop")}),
        legacy_chain("ts-input", 5000, std::nullopt,
                     {legacy_rule(5000, "-A ts-input -s 100.115.92.0/23 -i eth0 -j RETURN", "return"),
                      legacy_rule(5100, "-A ts-input -s 100.64.0.0/10 ! -i tailscale0 -j DROP", "drop")}),
    };
    table.chains[0].policy = "drop";
    snapshot.tables = {table};
    return snapshot;
}
constexpr std::size_t jump_place = 0, tcp81_place = 1, udp_place = 2, log_place = 4, policy_place = 5,
                      forward_place = 6, cgnat_place = 9;

Snapshot nft_rules(const std::string& listing) {
    Snapshot snapshot;
    read_nft_listing(listing, 1000, snapshot);
    snapshot.kind = SnapshotKind::nf_tables;
    snapshot.netns = netns;
    snapshot.generation = 1;
    return snapshot;
}

// A ruleset, and looks at it.
class Bench {
public:
    explicit Bench(Snapshot snapshot) : snapshot_(std::make_shared<const Snapshot>(std::move(snapshot))) {
        counts_.assign(places(*snapshot_), {1000, 100'000});
        look();
    }
    void no_counter(std::size_t place) { counts_[place] = {Look::no_counter, Look::no_counter}; }
    void move(std::size_t place, std::uint64_t packets = 1, std::uint64_t bytes = 80) {
        counts_[place].packets += packets;
        counts_[place].bytes += bytes;
    }
    void zero(std::size_t place) { counts_[place] = {}; }
    void replace_rules() {
        Snapshot changed = *snapshot_;
        changed.generation++;
        snapshot_ = std::make_shared<const Snapshot>(std::move(changed));
    }
    void look(const std::string& problem = "") {
        Look look;
        look.kind = snapshot_->kind;
        look.netns = netns;
        look.generation = snapshot_->generation;
        look.begin_ns = now_ += second;
        look.end_ns = now_ += second / 10;
        look.problem = problem;
        look.snapshot = snapshot_;
        for (const Counts& counts : counts_) {
            look.packets.push_back(counts.packets);
            look.bytes.push_back(counts.bytes);
        }
        inference.add(std::move(look));
    }

    // A packet that dies now.
    Question dies(Packet packet, std::optional<Hook> hook = Hook::input) {
        now_ += second / 10;
        return {{snapshot_->kind}, netns, hook ? std::uint8_t{NFPROTO_IPV4} : std::uint8_t{0}, hook, now_,
                std::move(packet)};
    }
    Answer answer(const Question& question) {
        REQUIRE(inference.ready(question));
        return inference.answer({&question}).at(0);
    }

    Inference inference;

private:
    std::shared_ptr<const Snapshot> snapshot_;
    std::vector<Counts> counts_;
    std::int64_t now_ = second;
};

bool says(const Answer& answer, std::string_view words) {
    INFO(answer.unknown);
    return !answer.rule && answer.unknown.find(words) != std::string::npos;
}

} // namespace

TEST_CASE("inference: the one rule whose counter has moved, never as exact") {
    Bench bench(legacy_rules());
    const Question question = bench.dies(answer_of_dns());
    CHECK_FALSE(bench.inference.ready(question)); // the look before it died says nothing
    bench.move(jump_place, 5, 400);
    bench.move(cgnat_place);
    bench.look();
    const Answer answer = bench.answer(question);
    INFO(answer.unknown);
    REQUIRE(answer.rule);
    CHECK_FALSE(answer.policy);
    const Rule& rule = *answer.rule;
    CHECK(rule.confidence == Confidence::inferred);
    CHECK_FALSE(rule.stale);
    CHECK(rule.backend == Backend::iptables_legacy);
    CHECK(rule.family == RuleFamily::ip);
    CHECK(rule.table == "filter");
    CHECK(rule.chain == "ts-input");
    CHECK(rule.number == 2u);
    CHECK_FALSE(rule.handle);
    CHECK(rule.text == "-A ts-input -s 100.64.0.0/10 ! -i tailscale0 -j DROP");
    CHECK(rule.verdict == "drop");
    REQUIRE(rule.path.size() == 2);
    CHECK((rule.path[0].chain == "INPUT" && rule.path[0].number == 1u));
    CHECK((rule.path[1].chain == "ts-input" && rule.path[1].number == 2u));
    CHECK(rule.evidence.find("rose by 1 packet, 80 bytes") != std::string::npos);
}

TEST_CASE("inference: several rules that could have done it have counted") {
    Bench bench(legacy_rules());
    const Question question = bench.dies(answer_of_dns());
    bench.move(jump_place, 2);
    bench.move(cgnat_place);
    bench.move(udp_place);
    bench.look();
    const Answer answer = bench.answer(question);
    CHECK(says(answer, "2 rules could have done it: "));
    CHECK(says(answer, "ts-input rule 2, table filter (iptables-legacy)"));
    CHECK(says(answer, "INPUT rule 3, table filter (iptables-legacy)"));
}

TEST_CASE("inference: no counter has moved") {
    Bench bench(legacy_rules());
    const Question question = bench.dies(answer_of_dns());
    bench.look();
    CHECK(says(bench.answer(question), "no rule that could have dropped it has counted a packet"));
}

TEST_CASE("inference: a policy of legacy has a counter") {
    Bench bench(legacy_rules());
    const Question question = bench.dies(answer_of_dns());
    bench.move(jump_place);
    bench.move(log_place);
    bench.move(policy_place);
    bench.look();
    const Answer answer = bench.answer(question);
    REQUIRE(answer.rule);
    CHECK(answer.policy);
    CHECK(answer.rule->jumps == std::vector<std::string>{"ts-input"}); // who is at home in the chain
    CHECK(answer.rule->chain == "INPUT");
    CHECK_FALSE(answer.rule->number);
    CHECK_FALSE(answer.rule->text);
    CHECK(answer.rule->confidence == Confidence::inferred);
    REQUIRE(answer.rule->path.size() == 1);
    CHECK(answer.rule->path[0].chain == "INPUT");
}

TEST_CASE("inference: a counter that moved, of a rule that cannot have matched the packet") {
    Bench bench(legacy_rules());
    const Question question = bench.dies(answer_of_dns());
    SECTION("another protocol") {
        bench.move(tcp81_place);
        bench.look();
        CHECK(says(bench.answer(question), "no rule that could have dropped it"));
    }
    SECTION("another hook") {
        bench.move(forward_place);
        bench.look();
        CHECK(says(bench.answer(question), "no rule that could have dropped it"));
    }
    SECTION("the hook is not known: then it could") {
        Question anywhere = question;
        anywhere.hook = std::nullopt;
        anywhere.pf = 0;
        bench.move(forward_place);
        bench.look();
        const Answer answer = bench.answer(anywhere);
        REQUIRE(answer.rule);
        CHECK(answer.rule->chain == "FORWARD");
    }
    SECTION("nothing has jumped to its chain") {
        bench.move(cgnat_place);
        bench.look();
        CHECK(says(bench.answer(question), "no rule that could have dropped it"));
    }
    SECTION("beside the one that did") {
        bench.move(jump_place);
        bench.move(cgnat_place);
        bench.move(tcp81_place, 7, 700);
        bench.move(forward_place);
        bench.look();
        REQUIRE(bench.answer(question).rule);
    }
    SECTION("the device is another one") {
        Question other = question;
        other.packet.in_dev = "tailscale0";
        bench.move(jump_place);
        bench.move(cgnat_place);
        bench.look();
        CHECK(says(bench.answer(other), "no rule that could have dropped it"));
    }
}

TEST_CASE("inference: counters that do not add up to the packets that died") {
    Bench bench(legacy_rules());
    const Question first = bench.dies(answer_of_dns(80)), then = bench.dies(answer_of_dns(90));
    bench.move(jump_place, 9, 900);
    SECTION("fewer packets") {
        bench.move(cgnat_place, 1, 80);
        bench.look();
        const auto answers = bench.inference.answer({&first, &then});
        CHECK(says(answers[0], "has counted 1 packet, while 2 died: ts-input rule 2"));
        CHECK(says(answers[1], "has counted 1 packet, while 2 died: ts-input rule 2"));
    }
    SECTION("as many of another length") {
        bench.move(cgnat_place, 2, 1500);
        bench.look();
        CHECK(says(bench.inference.answer({&first, &then})[0], "packets of another length"));
    }
    SECTION("more: others have died by it") {
        bench.move(cgnat_place, 5, 1500);
        bench.look();
        const auto answers = bench.inference.answer({&first, &then});
        CHECK(answers[0].rule);
        CHECK(answers[1].rule);
    }
    SECTION("just these") {
        bench.move(cgnat_place, 2, 170);
        bench.look();
        CHECK(bench.inference.answer({&first, &then})[1].rule);
    }
}

TEST_CASE("inference: what has moved for one packet has not moved for another") {
    Bench bench(legacy_rules());
    const Question first = bench.dies(answer_of_dns(80));
    bench.move(jump_place);
    bench.move(cgnat_place);
    bench.look();
    REQUIRE(bench.answer(first).rule);
    // It died while that look was taken: its window begins with the look before.
    Question then = first;
    then.mono_ns += second + second / 20;
    bench.look();
    CHECK(says(bench.answer(then), "no rule that could have dropped it"));
}

TEST_CASE("inference: counters that were set to zero, rules that were replaced, looks that failed") {
    Bench bench(legacy_rules());
    const Question question = bench.dies(answer_of_dns());
    bench.move(jump_place);
    bench.move(cgnat_place);
    SECTION("zeroed") {
        bench.zero(udp_place);
        bench.look();
        CHECK(says(bench.answer(question), "set to zero"));
    }
    SECTION("replaced") {
        bench.replace_rules();
        bench.look();
        CHECK(says(bench.answer(question), "the rules changed"));
        // The next packet meets the new ones.
        const Question next = bench.dies(answer_of_dns());
        bench.move(jump_place);
        bench.move(cgnat_place);
        bench.look();
        CHECK(bench.answer(next).rule);
    }
    SECTION("failed") {
        bench.look("no way in");
        CHECK(says(bench.answer(question), "no way in"));
    }
    SECTION("the first look came too late") {
        Question earlier = question;
        earlier.mono_ns = 2 * second;
        bench.look();
        CHECK(says(bench.answer(earlier), "first read when it had died"));
    }
    SECTION("counters that do not fit") {
        Look look;
        look.kind = SnapshotKind::ip_tables;
        look.netns = netns;
        look.generation = 1;
        look.begin_ns = look.end_ns = 100 * second;
        look.snapshot = std::make_shared<const Snapshot>(legacy_rules());
        look.packets = look.bytes = {1, 2, 3};
        bench.inference.add(look);
        CHECK(says(bench.answer(question), "do not fit"));
    }
}

TEST_CASE("inference: nf_tables, with and without counters") {
    // Places: in 0 to 4, its policy 5; sub 6, no policy 7.
    Bench bench(nft_rules("table inet fw { # handle 1\n"
                          "\tchain in { # handle 1\n"
                          "\t\ttype filter hook input priority filter; policy accept;\n"
                          "\t\tip saddr 100.64.0.0/10 udp sport 53 counter drop # handle 3\n"
                          "\t\ttcp dport 81 counter drop # handle 4\n"
                          "\t\ttcp dport 83 drop # handle 5\n"
                          "\t\ttcp dport { 84, 85 } counter jump sub # handle 6\n"
                          "\t\tct state vmap { invalid : drop, established : accept } # handle 7\n"
                          "\t}\n"
                          "\tchain sub { # handle 2\n"
                          "\t\tcounter reject # handle 8\n"
                          "\t}\n"
                          "}\n"));
    for (const std::size_t place : {2u, 4u, 5u, 7u})
        bench.no_counter(place);
    bench.look();
    SECTION("a rule that counts and one that does not could have done it") {
        const Question question = bench.dies(answer_of_dns());
        bench.move(0, 2, 160);
        bench.look();
        const Answer answer = bench.answer(question);
        CHECK(says(answer, "2 rules could have done it: in rule 1, table inet fw (nftables); "
                           "in rule 5, table inet fw (nftables), which has no counter"));
    }
    SECTION("the one that counts has counted just the packet") {
        const Question question = bench.dies(answer_of_dns());
        bench.move(0);
        bench.look();
        const Answer answer = bench.answer(question);
        REQUIRE(answer.rule);
        CHECK(answer.rule->handle == 3u);
        CHECK(answer.rule->evidence.find("there are some without a counter") != std::string::npos);
    }
    SECTION("only one that does not is left") {
        const Question question = bench.dies(packet(IPPROTO_TCP, "100.100.2.136", 4000, "10.0.0.2", 99));
        bench.look();
        CHECK(says(bench.answer(question), "nothing shows that it did: in rule 5"));
    }
}

TEST_CASE("inference: nf_tables, a rule with a counter and its way") {
    Bench bench(nft_rules("table inet fw { # handle 1\n"
                          "\tchain in { # handle 1\n"
                          "\t\ttype filter hook input priority filter; policy accept;\n"
                          "\t\ttcp dport 83 drop # handle 5\n"
                          "\t\ttcp dport { 84, 85 } jump sub # handle 6\n"
                          "\t}\n"
                          "\tchain sub { # handle 2\n"
                          "\t\tcounter reject # handle 8\n"
                          "\t}\n"
                          "}\n"));
    for (const std::size_t place : {0u, 1u, 2u, 4u})
        bench.no_counter(place);
    bench.look();
    const Question question = bench.dies(packet(IPPROTO_TCP, "100.100.2.136", 4000, "10.0.0.2", 85));
    const Question to_another = bench.dies(packet(IPPROTO_TCP, "100.100.2.136", 4000, "10.0.0.2", 86));
    bench.move(3);
    bench.look();
    const auto answers = bench.inference.answer({&question, &to_another});
    REQUIRE(answers[0].rule);
    const Rule& rule = *answers[0].rule;
    CHECK(rule.backend == Backend::nftables);
    CHECK(rule.handle == 8u);
    CHECK(rule.number == 1u);
    CHECK(rule.verdict == "reject");
    CHECK(rule.text == "counter reject");
    REQUIRE(rule.path.size() == 2);
    CHECK((rule.path[0].chain == "in" && rule.path[0].number == 2u && rule.path[0].handle == 6u));
    CHECK(says(answers[1], "no rule that could have dropped it"));
}

TEST_CASE("inference: nf_tables, a map that may lead to any chain") {
    // Places: in 0, its policy 1; sub 2, no policy 3.
    Bench bench(nft_rules("table inet fw { # handle 1\n"
                          "\tchain in { # handle 1\n"
                          "\t\ttype filter hook input priority filter; policy accept;\n"
                          "\t\tip saddr vmap @verdicts # handle 6\n"
                          "\t}\n"
                          "\tchain sub { # handle 2\n"
                          "\t\tcounter drop # handle 8\n"
                          "\t}\n"
                          "}\n"));
    for (const std::size_t place : {0u, 1u, 3u})
        bench.no_counter(place);
    bench.look();
    const Question question = bench.dies(answer_of_dns());
    bench.move(2);
    bench.look();
    const Answer answer = bench.answer(question);
    INFO(answer.unknown);
    REQUIRE(answer.rule); // it has counted just this packet; the map itself may drop, too
    CHECK(answer.rule->chain == "sub");
    REQUIRE(answer.rule->path.size() == 1);
    CHECK(answer.rule->evidence.find("there are some without a counter") != std::string::npos);
}

TEST_CASE("inference: which packets are asked about") {
    Drop drop;
    drop.packet = answer_of_dns();
    drop.site.hook = Hook::input;
    tsdt_cause cause{};
    cause.key.source = TSDT_SOURCE_NETFILTER;
    cause.key.unknown = TSDT_UNKNOWN_NOT_TRACED;
    cause.key.netns = netns;
    cause.key.pf = NFPROTO_IPV4;
    const auto kinds = [&](const char* location, const char* kernel, InferredBackends backends = {true, true}) {
        std::strcpy(cause.location, location);
        const auto question = question_of(drop, cause, kernel, backends);
        return question ? question->kinds : std::vector<SnapshotKind>{};
    };
    using Kinds = std::vector<SnapshotKind>;
    CHECK(kinds("nft_do_chain+0x5d8/0x650", "6.18.44") == Kinds{SnapshotKind::nf_tables});
    CHECK(kinds("nf_hook_slow+0xb8/0xd0", "6.18.44") == Kinds{SnapshotKind::ip_tables});
    // Where nf_tables' drops are freed in nf_hook_slow as well.
    CHECK(kinds("nf_hook_slow+0xb8/0xd0", "5.15.0-1-amd64") == Kinds{SnapshotKind::nf_tables, SnapshotKind::ip_tables});
    CHECK(kinds("ip_rcv+0x1/0x2", "6.18.44").empty());
    // A backend that is exact has not dropped it, or the kernel would have said so.
    CHECK(kinds("nf_hook_slow+0xb8/0xd0", "5.15.0", {false, true}) == Kinds{SnapshotKind::nf_tables});
    CHECK(kinds("nft_do_chain+0x5d8/0x650", "6.18.44", {true, false}).empty());
    CHECK(kinds("nft_do_chain+0x5d8/0x650", "6.18.44", {}).empty());
    cause.key.pf = NFPROTO_ARP;
    CHECK(kinds("nf_hook_slow+0xb8/0xd0", "6.18.44").empty());
    cause.key.pf = 0;
    drop.packet.family = IpFamily::ipv6;
    CHECK(kinds("nf_hook_slow+0xb8/0xd0", "6.18.44") == Kinds{SnapshotKind::ip6_tables});
    cause.key.unknown = TSDT_UNKNOWN_EXPRESSION;
    CHECK(kinds("nft_do_chain+0x5d8/0x650", "6.18.44").empty());
    cause.key.unknown = TSDT_UNKNOWN_NOT_TRACED;
    cause.key.source = TSDT_SOURCE_NFT_RULE;
    CHECK(kinds("nft_do_chain+0x5d8/0x650", "6.18.44").empty());
}

TEST_CASE("inference: what a rule asks of a packet") {
    const Packet dns = answer_of_dns(), web = packet(IPPROTO_TCP, "fd00::1", 4000, "fd00::2", 443);
    struct Case {
        Backend backend;
        const char* text;
        bool dns, web;
    };
    constexpr Backend legacy = Backend::iptables_legacy, nft = Backend::nftables;
    const Case cases[] = {
        {legacy, "-A a -j DROP", true, true},
        {legacy, "-A a -s 100.64.0.0/10 -j DROP", true, false},
        {legacy, "-A a ! -s 100.64.0.0/10 -j DROP", false, false},
        {legacy, "-A a -s 100.100.2.136 -d 10.0.0.3/32 -j DROP", false, false},
        {legacy, "-A a -i eth+ -j DROP", true, true},
        {legacy, "-A a ! -i eth0 -j DROP", false, false},
        {legacy, "-A a -i eth1 -j DROP", false, false},
        {legacy, "-A a -o eth1 -j DROP", true, true}, // out by what is not known
        {legacy, "-A a -p udp -m udp --sport 50:60 -j DROP", true, false},
        {legacy, "-A a -p tcp -m multiport --dports 80,443 -j DROP", false, true},
        {legacy, "-A a -p tcp -m multiport ! --dports 80,443 -j DROP", false, false},
        {legacy, "-A a -p 17 -j DROP", true, false},
        {legacy, "-A a -m iprange --src-range 100.100.2.1-100.100.2.9 -j DROP", false, false},
        {legacy, "-A a -m comment --comment -s -m comment --comment 10.0.0.0/8 -j DROP", true, true},
        {legacy, "-A a -m comment --comment \"-s 10.0.0.0/8\" -j DROP", true, true},
        {legacy, "-A a -s 100.64.0.0/255.0.255.0 -j DROP", true, true}, // not understood
        {nft, "drop", true, true},
        {nft, "ip saddr 100.64.0.0/10 drop", true, false},
        {nft, "ip saddr != 100.64.0.0/10 drop", false, false},
        {nft, "ip saddr { 10.0.0.1, 100.100.2.0-100.100.2.255 } drop", true, false},
        {nft, "ip saddr @blocked drop", true, true},
        {nft, "ip saddr . udp dport { 10.0.0.1 . 53 } drop", true, true},
        {nft, "ct original ip saddr 10.0.0.1 drop", true, true},
        {nft, "ip saddr & 255.0.0.255 == 10.0.0.1 drop", true, true},
        {nft, "ip6 daddr fd00::/16 tcp dport 443 drop", false, true},
        {nft, "iifname \"eth*\" udp sport 53 drop", true, false},
        {nft, "iifname != \"eth0\" drop", false, false},
        {nft, "meta l4proto { tcp, udp } th dport 443 drop", false, true},
        {nft, "tcp dport vmap { 443 : drop }", true, true},
        {nft, "tcp dport 1-1024 counter drop comment \"ip saddr 1.2.3.4\"", false, true},
        {nft, "vxlan ip saddr 10.0.0.1 drop", true, true},
        {nft, "ip saddr 100.100.2.136 jump { ip saddr 10.0.0.1 drop; }", true, false},
    };
    for (const Case& c : cases) {
        INFO(c.text);
        const RuleMatch match(c.text, c.backend);
        CHECK(match.may_match(dns, true) == c.dns);
        CHECK(match.may_match(web, true) == c.web);
    }
    Packet fragment = dns;
    fragment.sport = fragment.dport = std::nullopt;
    fragment.no_ports = NoPorts::fragment;
    CHECK(RuleMatch("-A a -p udp -m udp --dport 99 -j DROP", legacy).may_match(fragment, true));
    CHECK(RuleMatch("-A a -i eth1 -j DROP", legacy).may_match(dns, false)); // devices that may be others
}

TEST_CASE("inference: which rules may drop") {
    const auto legacy = [](const char* text, const char* verdict = "") {
        return may_drop(legacy_rule(0, text, verdict), Backend::iptables_legacy);
    };
    CHECK(legacy("-A a -j DROP", "drop"));
    CHECK(legacy("-A a -j REJECT", "reject"));
    CHECK(legacy("-A a -j MASQUERADE"));
    CHECK_FALSE(legacy("-A a -j LOG --log-prefix DROP"));
    CHECK_FALSE(legacy("-A a -s 10.0.0.1/32"));
    CHECK_FALSE(legacy("-A a -j ACCEPT", "accept"));
    CHECK_FALSE(legacy("-A a -j ts-input", "jump"));
    const auto nft = [](const char* text) {
        SnapshotRule rule;
        rule.handle = 1;
        rule.text = text;
        return may_drop(rule, Backend::nftables);
    };
    CHECK(nft("tcp dport 1 drop comment \"x\""));
    CHECK(nft("ct state vmap { invalid : drop, new : accept }"));
    CHECK(nft("ip saddr vmap @verdicts"));
    CHECK(nft("oifname \"eth0\" masquerade"));
    CHECK(nft("jump { ip saddr 10.0.0.1 drop; }"));
    CHECK_FALSE(nft("accept comment \"drop\""));
    CHECK_FALSE(nft("ct state vmap { new : accept }"));
    CHECK_FALSE(nft("jump sub"));
    CHECK(nft("")); // too long to be shown
}

TEST_CASE("inference: counters from the kernel's own messages") {
    const auto bytes_of = [](const auto& value) {
        return std::string(reinterpret_cast<const char*>(&value), sizeof(value));
    };
    const auto attribute = [&](int type, const std::string& value) {
        const nlattr head{static_cast<std::uint16_t>(sizeof(nlattr) + value.size()), static_cast<std::uint16_t>(type)};
        const std::string padding((4 - value.size() % 4) % 4, '\0');
        return bytes_of(head) + value + padding;
    };
    const auto text = [](const char* value) { return std::string(value, std::strlen(value) + 1); };
    const auto number = [&](std::uint64_t value) { return bytes_of(htobe64(value)); };
    const auto read = [](const std::string& message, NftCounters& counters) {
        return read_nft_rule(std::as_bytes(std::span(message)), counters);
    };
    const std::string message = bytes_of(nfgenmsg{NFPROTO_INET, 0, 0}) + attribute(NFTA_RULE_TABLE, text("fw")) +
                                attribute(NFTA_RULE_CHAIN, text("in")) + attribute(NFTA_RULE_HANDLE, number(7));
    const std::string counter = attribute(
        NFTA_LIST_ELEM, attribute(NFTA_EXPR_NAME, text("counter")) +
                            attribute(NFTA_EXPR_DATA | NLA_F_NESTED, attribute(NFTA_COUNTER_BYTES, number(84)) +
                                                                         attribute(NFTA_COUNTER_PACKETS, number(2))));
    const std::string other = attribute(NFTA_LIST_ELEM, attribute(NFTA_EXPR_NAME, text("immediate")));
    NftCounters counters;
    const std::string with = message + attribute(NFTA_RULE_EXPRESSIONS | NLA_F_NESTED, counter + other);
    REQUIRE(read(with, counters));
    const NftRuleId id{NFPROTO_INET, "fw", 7};
    REQUIRE(counters.rules.count(id) == 1);
    CHECK(counters.rules[id].packets == 2);
    CHECK(counters.rules[id].bytes == 84);
    REQUIRE(read(message + attribute(NFTA_RULE_EXPRESSIONS, other), counters));
    CHECK(counters.rules[id].packets == Look::no_counter);
    // Cut anywhere, it is never read past its end.
    for (std::size_t size = 0; size < with.size(); size++) {
        NftCounters ignored;
        (void)read(with.substr(0, size), ignored);
    }
    CHECK_FALSE(read(with.substr(0, with.size() - 5), counters));
}

namespace {

struct NoSnapshots : SnapshotSource {
    std::shared_ptr<const Snapshot> get(SnapshotKind, std::uint32_t, std::uint32_t) override { return nullptr; }
};

struct NoEvidence : evidence::Source {
    std::shared_ptr<const Evidence> get(const Drop&, const evidence::WantedSysctls&) override { return nullptr; }
};

// Knows the route, and keeps what it was asked for.
struct Asked : evidence::Source {
    std::shared_ptr<const Evidence> get(const Drop& drop, const evidence::WantedSysctls& wanted) override {
        drops.push_back(drop);
        sysctls = wanted(drop);
        Evidence evidence;
        evidence.route = Route{"unicast", "eth0", std::nullopt, 254, "default"};
        return std::make_shared<Evidence>(evidence);
    }
    std::vector<Drop> drops;
    std::set<std::string> sysctls;
};

struct Shown {
    std::vector<Drop> drops;
    std::vector<Summary> summaries;
};

class Keep : public output::Output {
public:
    explicit Keep(Shown& shown) : shown_(shown) {}
    Status start(const Start&) override { return Ok{}; }
    Status drop(const Drop& drop, bool) override {
        shown_.drops.push_back(drop);
        return Ok{};
    }
    Status lost(const Lost&) override { return Ok{}; }
    Status ruleset(const RulesetChange&) override { return Ok{}; }
    Status stopped(const Stopped&) override { return Ok{}; }
    Status summary(const Summary& summary) override {
        shown_.summaries.push_back(summary);
        return Ok{};
    }
    Status check(const CheckVerdict&, std::int64_t) override { return Ok{}; }
    Status progress(const Summary&) override { return Ok{}; }

private:
    Shown& shown_;
};

tsdt_cause cause_of_input() {
    tsdt_cause cause{};
    cause.key.source = TSDT_SOURCE_NETFILTER;
    cause.key.unknown = TSDT_UNKNOWN_NOT_TRACED;
    cause.key.netns = netns;
    cause.key.pf = NFPROTO_IPV4;
    cause.key.hook = 1;
    cause.id = 3;
    std::strcpy(cause.location, "nf_hook_slow+0xb8/0xd0");
    return cause;
}

tsdt_drop dead(std::int64_t when, std::uint16_t port, std::uint8_t proto = IPPROTO_UDP) {
    tsdt_drop record{};
    record.key = cause_of_input().key;
    record.cause_id = 3;
    record.mono_ns = static_cast<std::uint64_t>(when);
    record.family = 4;
    record.proto = proto;
    record.has_ports = 1;
    record.dport = htons(port);
    record.sport = htons(53);
    record.length = 80;
    inet_pton(AF_INET, "100.100.2.136", record.saddr);
    inet_pton(AF_INET, "10.0.0.2", record.daddr);
    std::strcpy(record.in_dev, "eth0");
    return record;
}

Look look_at(std::int64_t begin_ns, const std::shared_ptr<const Snapshot>& snapshot,
             const std::map<std::size_t, std::uint64_t>& packets) {
    Look look;
    look.kind = snapshot->kind;
    look.netns = netns;
    look.generation = 1;
    look.begin_ns = begin_ns;
    look.end_ns = begin_ns + 1000;
    look.snapshot = snapshot;
    look.packets.assign(places(*snapshot), 0);
    for (const auto& [place, count] : packets)
        look.packets[place] = count;
    look.bytes = look.packets;
    for (std::uint64_t& bytes : look.bytes)
        bytes *= 80;
    return look;
}

} // namespace

namespace {

class LegacyRules : public SnapshotSource {
public:
    std::shared_ptr<const Snapshot> get(SnapshotKind, std::uint32_t, std::uint32_t) override { return rules_; }

    // At the end of INPUT.
    void add(SnapshotRule rule) {
        Snapshot more = *rules_;
        more.tables[0].chains[0].rules.push_back(std::move(rule));
        rules_ = std::make_shared<const Snapshot>(std::move(more));
    }

private:
    static Snapshot rules() {
        Snapshot rules = legacy_rules();
        rules.tables[0].chains[0].rules.push_back(
            legacy_rule(500, "-A INPUT -p tcp -m tcp --dport 84 -j DNPT --src-pfx fd01::/64 --dst-pfx fd02::/64", ""));
        return rules;
    }
    std::shared_ptr<const Snapshot> rules_ = std::make_shared<const Snapshot>(rules());
};

// A pipeline that has started, with these rules and nothing else.
struct LegacyRun {
    LegacyRun() {
        machine.own_netns = netns;
        pipeline.add_output(std::make_unique<Keep>(shown));
        pipeline.start(Start{});
    }

    LegacyRules snapshots;
    NoEvidence evidence;
    decode::Machine machine;
    Shown shown;
    Pipeline pipeline{machine, snapshots, evidence, explain::Explainer(), 0};
};

// Of -A INPUT -p tcp -m tcp --dport 81 -j DROP
tsdt_cause cause_of_tcp81() {
    tsdt_cause cause = cause_of_input();
    cause.key.source = TSDT_SOURCE_LEGACY_RULE;
    cause.key.unknown = TSDT_UNKNOWN_NONE;
    cause.key.generation = 1;
    cause.key.offset = 100;
    cause.family = NFPROTO_IPV4;
    std::strcpy(cause.table, "filter");
    cause.steps = 1;
    std::strcpy(cause.step[0].chain, "INPUT");
    cause.step[0].number = 2;
    return cause;
}

} // namespace

TEST_CASE("who was seen writing a rule is said of the packets that it drops later") {
    LegacyRun run;
    const tsdt_cause cause = cause_of_tcp81();
    run.pipeline.drop(dead(second, 81, IPPROTO_TCP), cause);
    REQUIRE(run.shown.drops.size() == 1);
    REQUIRE(run.shown.drops[0].rule);
    CHECK_FALSE(run.shown.drops[0].written); // it was there before anybody looked

    RulesetChange change;
    change.time_ns = 3 * second;
    change.netns.inode = run.shown.drops[0].netns.inode;
    change.backend = Backend::iptables_legacy;
    change.changers = {{{900, "iptables"}, std::nullopt, 1}};
    change.added = {{*run.shown.drops[0].rule, std::nullopt, {}}};
    RulesetChange other = change; // of a rule that has another text
    other.added[0].rule.text = "-A INPUT -p tcp -m tcp --dport 82 -j DROP";
    run.pipeline.ruleset(other);
    run.pipeline.drop(dead(4 * second, 81, IPPROTO_TCP), cause);
    CHECK_FALSE(run.shown.drops.back().written);

    run.pipeline.ruleset(change);
    run.pipeline.drop(dead(2 * second, 81, IPPROTO_TCP), cause); // before that
    CHECK_FALSE(run.shown.drops.back().written);
    run.pipeline.drop(dead(4 * second, 81, IPPROTO_TCP), cause);
    REQUIRE(run.shown.drops.back().written);
    CHECK(run.shown.drops.back().written->by()->process.pid == 900);
    CHECK(run.shown.drops.back().written->added.empty()); // a change may be large

    std::swap(change.added, change.removed);
    run.pipeline.ruleset(change);
    run.pipeline.drop(dead(5 * second, 81, IPPROTO_TCP), cause);
    CHECK_FALSE(run.shown.drops.back().written);

    // What is not listed may be this rule, gone and written again by somebody else.
    RulesetChange unknown = change;
    unknown.removed.clear();
    unknown.unknown = "the ruleset could not be read after the change";
    RulesetChange large = unknown;
    large.unknown.clear();
    large.more_removed = large.more_added = 1;
    std::swap(change.added, change.removed);
    for (const RulesetChange& later : {unknown, large}) {
        run.pipeline.ruleset(change);
        run.pipeline.drop(dead(6 * second, 81, IPPROTO_TCP), cause);
        CHECK(run.shown.drops.back().written);
        run.pipeline.ruleset(later);
        run.pipeline.drop(dead(7 * second, 81, IPPROTO_TCP), cause);
        CHECK_FALSE(run.shown.drops.back().written);
    }

    // The new rule has the words of an old one: which of the two has dropped the packet, they do not tell.
    run.snapshots.add(legacy_rule(600, "-A INPUT -p tcp -m tcp --dport 81 -j DROP", "drop"));
    run.pipeline.ruleset(change);
    tsdt_cause with_twin = cause;
    with_twin.id++;
    run.pipeline.drop(dead(8 * second, 81, IPPROTO_TCP), with_twin);
    REQUIRE(run.shown.drops.back().rule);
    CHECK(run.shown.drops.back().rule->text == "-A INPUT -p tcp -m tcp --dport 81 -j DROP");
    CHECK_FALSE(run.shown.drops.back().written);
}

TEST_CASE("of a cause whose packets were only counted no way is told where there are several") {
    LegacyRun run;
    SnapshotRule jump = legacy_rule(600, "-A INPUT -i eth1 -j ts-input", "jump"); // the other one is at offset 0
    jump.jump_offset = 5000;
    run.snapshots.add(jump);
    tsdt_cause cause = cause_of_tcp81();
    cause.key.offset = 5100;
    std::strcpy(cause.step[0].chain, "ts-input");
    cause.packets = 1;
    run.pipeline.summary(KernelCounts{{cause}, {}, {}}, 3 * second, true);
    REQUIRE(run.shown.summaries.back().causes.size() == 1);
    const Rule* rule = run.shown.summaries.back().causes[0].example.rule.get();
    REQUIRE(rule);
    CHECK(rule->text == "-A ts-input -s 100.64.0.0/10 ! -i tailscale0 -j DROP");
    REQUIRE(rule->path.size() == 1);
    CHECK(rule->path[0].chain == "ts-input");
}

TEST_CASE("a legacy rule that cannot have matched the packet is not said to have dropped it") {
    LegacyRun run;

    tsdt_cause cause = cause_of_tcp81();
    run.pipeline.drop(dead(second, 81, IPPROTO_TCP), cause);
    run.pipeline.drop(dead(2 * second, 82, IPPROTO_TCP), cause); // its counter was another packet's
    REQUIRE(run.shown.drops.size() == 2);
    REQUIRE(run.shown.drops[0].rule);
    CHECK(run.shown.drops[0].rule->text == "-A INPUT -p tcp -m tcp --dport 81 -j DROP");
    CHECK_FALSE(run.shown.drops[1].rule);
    CHECK(run.shown.drops[1].site.kind == DropKind::hook);
    CHECK(run.shown.drops[1].site.unknown.find("cannot have matched") != std::string::npos);

    cause.packets = 2;
    cause.bytes = 160;
    run.pipeline.summary(KernelCounts{{cause}, {}, {}}, 3 * second, true);
    const Summary& summary = run.shown.summaries.back();
    REQUIRE(summary.causes.size() == 2);
    CHECK(summary.causes[0].packets == 1);
    CHECK(summary.causes[1].packets == 1);
    CHECK((summary.causes[0].example.rule != nullptr) != (summary.causes[1].example.rule != nullptr));

    // A target that changes the packet before it drops it, and says so itself.
    cause.id = 99;
    cause.key.offset = 500;
    cause.step[0].number = 6;
    run.pipeline.drop(dead(4 * second, 83, IPPROTO_TCP), cause);
    REQUIRE(run.shown.drops.size() == 3);
    REQUIRE(run.shown.drops[2].rule);
    CHECK(run.shown.drops[2].rule->number == 6u);
}

TEST_CASE("inference: a cause of the kernel's is split by rule, and the sum stays what the kernel has counted") {
    const auto rules = std::make_shared<const Snapshot>(legacy_rules());
    decode::Machine machine;
    machine.kernel = "6.18.44";
    machine.own_netns = netns;
    NoSnapshots snapshots;
    NoEvidence evidence;
    Pipeline pipeline(machine, snapshots, evidence, explain::Explainer(), 0);
    Shown shown;
    pipeline.add_output(std::make_unique<Keep>(shown));
    Start start;
    start.capabilities.iptables_legacy.exactness = Exactness::inferred;
    pipeline.start(start);

    pipeline.look(look_at(second, rules, {}));
    tsdt_cause cause = cause_of_input();
    CHECK(pipeline.drop(dead(2 * second, 40000), cause));
    CHECK(pipeline.drop(dead(2 * second + 1, 40000), cause));
    CHECK(pipeline.drop(dead(2 * second + 2, 81, IPPROTO_TCP), cause));
    CHECK(shown.drops.empty()); // it is looked first
    REQUIRE(pipeline.waiting().size() == 1);
    CHECK(pipeline.waiting().begin()->second == std::uint64_t{2 * second});
    cause.packets = 3;
    cause.bytes = 240;
    KernelCounts counts{{cause}, {}, {}};
    pipeline.summary(counts, 2 * second, false);
    CHECK(shown.summaries.back().causes.empty());

    pipeline.look(look_at(3 * second, rules, {{jump_place, 3}, {cgnat_place, 2}, {tcp81_place, 1}}));
    CHECK(pipeline.waiting().empty());
    REQUIRE(shown.drops.size() == 3);
    REQUIRE(shown.drops[0].rule);
    CHECK(shown.drops[0].rule->chain == "ts-input");
    CHECK(shown.drops[0].site.kind == DropKind::rule);
    CHECK(shown.drops[0].site.unknown.empty());
    CHECK(shown.drops[1].rule->chain == "ts-input");
    // tcp to port 81 from there: both rules could have done it.
    CHECK_FALSE(shown.drops[2].rule);
    CHECK(shown.drops[2].site.kind == DropKind::hook);
    CHECK(shown.drops[2].site.unknown.find("2 rules could have done it") != std::string::npos);

    pipeline.drop(dead(4 * second, 40000), cause); // never looked at
    pipeline.stop_waiting();
    REQUIRE(shown.drops.size() == 4);
    CHECK(shown.drops[3].site.unknown.find("could not be looked at") != std::string::npos);

    // Five more have died than there are records of.
    counts.causes[0].packets = 9;
    counts.causes[0].bytes = 720;
    tsdt_flow_key flow{};
    flow.cause_id = 3;
    flow.family = 4;
    flow.proto = IPPROTO_UDP;
    std::memcpy(flow.saddr, dead(0, 1).saddr, 16);
    std::memcpy(flow.daddr, dead(0, 1).daddr, 16);
    flow.sport = htons(53);
    flow.dport = htons(40000);
    counts.flows.emplace_back(flow, 8);
    pipeline.summary(counts, 5 * second, true);
    const Summary& summary = shown.summaries.back();
    CHECK(summary.packets() == 9);
    REQUIRE(summary.causes.size() == 2);
    CHECK_FALSE(summary.causes[0].example.rule);
    CHECK(summary.causes[0].packets == 7);
    CHECK(summary.causes[0].bytes == 560);
    REQUIRE(summary.causes[0].flows.size() == 1);
    CHECK(summary.causes[0].flows[0].packets == 6);
    REQUIRE(summary.causes[1].example.rule);
    CHECK(summary.causes[1].example.rule->chain == "ts-input");
    CHECK(summary.causes[1].packets == 2);
    CHECK(summary.causes[1].bytes == 160);
    REQUIRE(summary.causes[1].flows.size() == 1);
    CHECK(summary.causes[1].flows[0].packets == 2);
}

TEST_CASE("inference: the machine is asked about a packet once its rule is known, and then explained") {
    const auto rules = std::make_shared<const Snapshot>(legacy_rules());
    decode::Machine machine;
    machine.kernel = "6.18.44";
    machine.own_netns = netns;
    auto own = std::make_shared<explain::OwnedCatalogue>();
    REQUIRE(explain::read_catalogue("causes:\n"
                                    "  - id: of-the-rule\n"
                                    "    when: {kind: rule, chain: ts-input}\n"
                                    "    say: [x, {say: y, when: {destination_port: 1, sysctl: {net.a: 1}}}]\n"
                                    "  - id: of-the-hook\n"
                                    "    when: {kind: hook}\n"
                                    "    say: [x, {say: y, when: {sysctl: {net.b: 1}}}]\n",
                                    *own)
                .empty());
    NoSnapshots snapshots;
    Asked asked;
    Pipeline pipeline(machine, snapshots, asked, explain::Explainer(std::nullopt, own), 0);
    Shown shown;
    pipeline.add_output(std::make_unique<Keep>(shown));
    Start start;
    start.capabilities.iptables_legacy.exactness = Exactness::inferred;
    pipeline.start(start);
    pipeline.look(look_at(second, rules, {}));
    pipeline.drop(dead(2 * second, 40000), cause_of_input());
    CHECK(asked.drops.empty());
    pipeline.look(look_at(3 * second, rules, {{jump_place, 1}, {cgnat_place, 1}}));
    REQUIRE(asked.drops.size() == 1);
    REQUIRE(asked.drops[0].rule);
    CHECK(asked.drops[0].rule->chain == "ts-input");
    // Another packet with the same answer may go to port 1.
    CHECK(asked.sysctls == std::set<std::string>{"net.a"});
    REQUIRE(shown.drops.size() == 1);
    CHECK(shown.drops[0].cause_id == asked.drops[0].cause_id); // what the answer belongs to, in a recording too
    REQUIRE(shown.drops[0].explanation);
    CHECK(shown.drops[0].explanation->id == "of-the-rule");
    CHECK(shown.drops[0].explanation->summary.find("The route to 100.100.2.136 leaves by eth0 (table main).") !=
          std::string::npos);
}

TEST_CASE("inference: where backends are exact nothing waits") {
    decode::Machine machine;
    machine.kernel = "6.18.44";
    NoSnapshots snapshots;
    NoEvidence evidence;
    Pipeline pipeline(machine, snapshots, evidence, explain::Explainer(), 0);
    Shown shown;
    pipeline.add_output(std::make_unique<Keep>(shown));
    Start start;
    start.capabilities.iptables_legacy.exactness = start.capabilities.nftables.exactness = Exactness::exact;
    pipeline.start(start);
    pipeline.drop(dead(2 * second, 40000), cause_of_input());
    CHECK(pipeline.waiting().empty());
    CHECK(shown.drops.size() == 1);
}
