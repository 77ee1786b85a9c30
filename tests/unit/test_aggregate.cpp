// SPDX-License-Identifier: GPL-2.0-only
#include "catch.h"

#include "aggregate/aggregate.h"

using namespace tsdroptrace;
using namespace tsdroptrace::aggregate;

namespace {

Drop drop_of(std::uint32_t cause_id, const char* chain, std::uint32_t number) {
    Drop drop;
    drop.cause_id = cause_id;
    drop.netns.inode = 4026531840;
    drop.site = {DropKind::rule, "NETFILTER_DROP", 8, "nf_hook_slow+0x9b/0xd0", Hook::input, ""};
    auto rule = std::make_shared<Rule>();
    rule->table = "filter";
    rule->chain = chain;
    rule->number = number;
    rule->text = "-A " + std::string(chain) + " -j DROP";
    drop.rule = rule;
    return drop;
}

Flow flow(std::uint8_t last_byte, std::uint16_t port, std::uint64_t packets) {
    Flow out;
    out.proto = 17;
    out.src = {IpFamily::ipv4, {100, 100, 2, last_byte}};
    out.dst = {IpFamily::ipv4, {10, 0, 0, 2}};
    out.sport = 53;
    out.dport = port;
    out.packets = packets;
    return out;
}

} // namespace

TEST_CASE("the kernel's causes that a person would call one are one", "[aggregate]") {
    Aggregator aggregator(1000);
    Drop drop = drop_of(1, "ts-input", 3);
    CHECK(aggregator.first_of_cause(drop));
    CHECK(!aggregator.first_of_cause(drop));

    Drop other_path = drop_of(2, "ts-input", 3); // another kernel cause: same rule by another path, other code offset
    other_path.site.location = "nf_hook_slow+0x10/0xd0";
    CHECK(!aggregator.first_of_cause(other_path));
    CHECK(aggregator.first_of_cause(drop_of(3, "ts-input", 4)));

    const Summary summary = aggregator.summarize(
        {{1, 4, 400, 5000, 9000}, {2, 6, 600, 3000, 8000}, {3, 7, 70, 1, 2}},
        {{1, flow(136, 1111, 3)}, {2, flow(136, 1111, 2)}, {2, flow(138, 2222, 4)}}, {{"ring", 2}}, 10000, true);
    CHECK(summary.since_ns == 1000);
    CHECK(summary.until_ns == 10000);
    CHECK(summary.final);
    CHECK(summary.packets() == 17);
    CHECK(summary.lost.at("ring") == 2);
    REQUIRE(summary.causes.size() == 2);
    const Cause& merged = summary.causes[0];
    CHECK(merged.packets == 10);
    CHECK(merged.bytes == 1000);
    CHECK(merged.first_ns == 3000);
    CHECK(merged.last_ns == 9000);
    CHECK(merged.example.rule->number == 3U);
    REQUIRE(merged.flows.size() == 2);
    CHECK(merged.flows[0].packets == 5); // 3 + 2 of the same flow
    CHECK(merged.flows[1].packets == 4);
    CHECK(merged.other_flows == 0);
    CHECK(merged.other_packets == 1); // counted in the cause, in no flow
    CHECK(summary.causes[1].packets == 7);
    CHECK(summary.causes[1].flows.empty());
    CHECK(summary.causes[1].other_packets == 7);
}

TEST_CASE("what tells causes apart for a person keeps them apart", "[aggregate]") {
    Aggregator aggregator(0);
    std::uint32_t id = 1;
    Drop drop = drop_of(id++, "a", 1);
    CHECK(aggregator.first_of_cause(drop));
    const auto is_new_with = [&](auto change) {
        Drop changed = drop_of(id++, "a", 1);
        auto rule = std::make_shared<Rule>(*changed.rule);
        change(changed, *rule);
        changed.rule = rule;
        return aggregator.first_of_cause(changed);
    };
    CHECK(!is_new_with([](Drop&, Rule& rule) { rule.path = {{"b", 1, std::nullopt}, {"a", 1, std::nullopt}}; }));
    CHECK(is_new_with([](Drop& d, Rule&) { d.netns.inode = 7; }));
    CHECK(is_new_with([](Drop& d, Rule&) { d.site.kind = DropKind::policy; }));
    CHECK(is_new_with([](Drop& d, Rule&) { d.site.reason = "OTHER"; }));
    CHECK(is_new_with([](Drop& d, Rule&) { d.site.location = "nft_do_chain+0x5/0x6 [nf_tables]"; }));
    CHECK(is_new_with([](Drop& d, Rule&) { d.site.hook = Hook::forward; }));
    CHECK(is_new_with([](Drop&, Rule& rule) { rule.backend = Backend::iptables_legacy; }));
    CHECK(is_new_with([](Drop&, Rule& rule) { rule.family = RuleFamily::inet; }));
    CHECK(is_new_with([](Drop&, Rule& rule) { rule.table = "raw"; }));
    CHECK(is_new_with([](Drop&, Rule& rule) { rule.chain = "b"; }));
    CHECK(is_new_with([](Drop&, Rule& rule) { rule.number = 2; }));
    CHECK(is_new_with([](Drop&, Rule& rule) { rule.handle = 9; }));
    CHECK(is_new_with([](Drop&, Rule& rule) { rule.text = "something else"; }));
    drop.cause_id = id++;
    drop.rule = nullptr;
    CHECK(aggregator.first_of_cause(drop));
}

// iptables-legacy -R INPUT 1, time and again, while packets die: what is at number 1 is another rule each time.
TEST_CASE("a rule whose text is not known is not taken for another one at its number", "[aggregate]") {
    Aggregator aggregator(0);
    const auto drop = [](std::uint32_t cause_id, const char* text) {
        Drop drop = drop_of(cause_id, "INPUT", 1);
        auto rule = std::make_shared<Rule>(*drop.rule);
        rule->text = text ? std::optional<std::string>(text) : std::nullopt;
        drop.rule = rule;
        return drop;
    };
    CHECK(aggregator.first_of_cause(drop(1, nullptr)));  // its ruleset could never be read
    CHECK(!aggregator.first_of_cause(drop(2, nullptr))); // nor that of this one's first packet
    CHECK(aggregator.first_of_cause(drop(2, "-A two"))); // but that of its next one
    CHECK(!aggregator.first_of_cause(drop(3, nullptr)));
    CHECK(!aggregator.first_of_cause(drop(4, nullptr)));
    CHECK(aggregator.first_of_cause(drop(4, "-A four")));
    CHECK(!aggregator.first_of_cause(drop(4, "-A four")));
    CHECK(!aggregator.first_of_cause(drop(2, nullptr)));
    CHECK(!aggregator.first_of_cause(drop(5, "-A two"))); // the same rule again, in a later ruleset

    std::vector<CauseCount> counts;
    for (std::uint32_t id = 1; id <= 5; ++id)
        counts.push_back({id, 1ULL << id, 1, 1, 1});
    const auto packets = [](const Summary& summary) {
        std::map<std::string, std::uint64_t> packets;
        for (const Cause& cause : summary.causes)
            packets[cause.example.rule->text.value_or("")] += cause.packets;
        return packets;
    };
    const std::map<std::string, std::uint64_t> expected{{"", 2 + 8}, {"-A two", 4 + 32}, {"-A four", 16}};
    CHECK(packets(aggregator.summarize(counts, {}, {}, 1, false)) == expected);
    aggregator.retire(counts, {});
    CHECK(packets(aggregator.summarize({}, {}, {}, 1, true)) == expected);
}

TEST_CASE("two namespaces that had the same number, one after the other, are not called by the name of one",
          "[aggregate]") {
    Aggregator aggregator(0);
    const auto drop = [](std::uint32_t cause_id, std::optional<std::string> name) {
        Drop drop = drop_of(cause_id, "INPUT", 1);
        drop.netns.name = std::move(name);
        return drop;
    };
    CHECK(aggregator.first_of_cause(drop(1, "blue")));
    CHECK(!aggregator.first_of_cause(drop(1, std::nullopt))); // its name is gone
    CHECK(!aggregator.first_of_cause(drop(2, "blue")));
    CHECK(aggregator.first_of_cause(drop(3, "green"))); // a cause of its own, so it is told apart
    CHECK(!aggregator.first_of_cause(drop(4, "green")));
    const std::vector<CauseCount> counts{{1, 8, 1, 1, 1}, {2, 4, 1, 1, 1}, {3, 2, 1, 1, 1}, {4, 1, 1, 1, 1}};
    Summary summary = aggregator.summarize(counts, {}, {}, 1, false);
    REQUIRE(summary.causes.size() == 2);
    CHECK(summary.causes[0].packets == 12);
    CHECK(summary.causes[0].example.netns.name == "blue");
    CHECK(summary.causes[1].packets == 3);
    CHECK(summary.causes[1].example.netns.name == "green");

    CHECK(!aggregator.first_of_cause(drop(1, "green"))); // counted by the kernel together with those of "blue"
    summary = aggregator.summarize(counts, {}, {}, 1, true);
    REQUIRE(summary.causes.size() == 2);
    CHECK_FALSE(summary.causes[0].example.netns.name);
}

TEST_CASE("the largest flows are listed, the rest is two numbers", "[aggregate]") {
    Aggregator aggregator(0);
    aggregator.first_of_cause(drop_of(1, "a", 1));
    std::vector<FlowCount> flows;
    std::uint64_t sum = 0;
    for (std::uint16_t port = 1; port <= 15; ++port) {
        const std::uint64_t packets = port == 15 ? 100 : 2; // fourteen alike
        flows.push_back({1, flow(136, static_cast<std::uint16_t>(16 - port), packets)});
        sum += packets;
    }
    const Summary summary = aggregator.summarize({{1, sum + 5, 0, 1, 2}}, flows, {}, 3, false);
    const Cause& cause = summary.causes.at(0);
    REQUIRE(cause.flows.size() == 10);
    CHECK(cause.flows[0].packets == 100);
    for (std::size_t i = 1; i < 10; ++i) // ties in the order of the flow itself, not of the kernel's map
        CHECK(cause.flows[i].dport == i + 1);
    CHECK(cause.other_flows == 5);
    CHECK(cause.other_packets == 5 * 2 + 5);
    // Flows that were counted on after the causes were read do not wrap around.
    CHECK(aggregator.summarize({{1, 1, 0, 1, 2}}, flows, {}, 3, false).causes.at(0).other_packets == 0);
}

TEST_CASE("noise is hidden by reason", "[aggregate]") {
    Aggregator aggregator(0);
    for (std::uint32_t id = 1; id <= 2; ++id) {
        Drop drop = drop_of(id, "", 0);
        drop.rule = nullptr;
        drop.noise = true;
        drop.site = {DropKind::kernel, "NO_SOCKET", 3, id == 1 ? "ping_rcv+0x1/0x2" : "ping_rcv6+0x1/0x2",
                     std::nullopt,     ""};
        CHECK(aggregator.first_of_cause(drop));
    }
    aggregator.first_of_cause(drop_of(3, "a", 1));
    const Summary summary = aggregator.summarize({{1, 4, 1, 1, 1}, {2, 2, 1, 1, 1}, {3, 1, 1, 1, 1}}, {}, {}, 1, true);
    CHECK(summary.causes.size() == 1);
    CHECK(summary.packets() == 1);
    CHECK(summary.hidden == std::map<std::string, std::uint64_t>{{"NO_SOCKET", 6}});
}

TEST_CASE("causes are ordered by packets, then by time, and those of zero left out", "[aggregate]") {
    Aggregator aggregator(0);
    for (std::uint32_t id = 1; id <= 4; ++id)
        aggregator.first_of_cause(drop_of(id, "a", id));
    const Summary summary = aggregator.summarize(
        {{1, 5, 0, 300, 400}, {2, 9, 0, 1, 2}, {3, 5, 0, 200, 400}, {4, 0, 0, 0, 0}}, {}, {}, 1, true);
    REQUIRE(summary.causes.size() == 3);
    CHECK(summary.causes[0].id == 2);
    CHECK(summary.causes[1].id == 3);
    CHECK(summary.causes[2].id == 1);
}

TEST_CASE("a cause whose drops were all lost is still in the sum, and memory is bounded", "[aggregate]") {
    Aggregator aggregator(0);
    CHECK(aggregator.summarize({{77, 3, 30, 1, 2}}, {}, {}, 1, true).packets() == 3);
    for (std::uint32_t id = 1; id <= Aggregator::max_causes; ++id)
        REQUIRE(aggregator.first_of_cause(drop_of(id, "a", id)));
    CHECK(!aggregator.first_of_cause(drop_of(5000, "a", 5000)));
    const Summary summary =
        aggregator.summarize({{1, 1, 1, 1, 1}, {5000, 2, 1, 1, 1}, {5001, 3, 1, 1, 1}}, {}, {}, 1, true);
    CHECK(summary.packets() == 6);
    REQUIRE(summary.causes.size() == 2);
    CHECK(summary.causes[0].packets == 5);
    CHECK(summary.causes[0].example.site.reason.empty());
}

TEST_CASE("causes that the kernel counts no more stay in the sum", "[aggregate]") {
    Aggregator aggregator(0);
    for (std::uint32_t id = 1; id <= 3; ++id) // one rule, in three generations of the ruleset
        aggregator.first_of_cause(drop_of(id, "a", 1));
    aggregator.retire({{1, 4, 40, 500, 600}, {2, 5, 50, 300, 900}},
                      {{1, flow(136, 1111, 4)}, {2, flow(136, 1111, 3)}, {2, flow(138, 2222, 2)}});
    for (const std::uint32_t now : {3U, 4U}) {
        Summary summary = aggregator.summarize({{3, now, 10, 700, 800}}, {{3, flow(136, 1111, 1)}}, {}, 1, false);
        REQUIRE(summary.causes.size() == 1);
        CHECK(summary.causes[0].packets == 9 + now);
        CHECK(summary.causes[0].bytes == 100);
        CHECK(summary.causes[0].first_ns == 300);
        CHECK(summary.causes[0].last_ns == 900);
        REQUIRE(summary.causes[0].flows.size() == 2);
        CHECK(summary.causes[0].flows[0].packets == 8);
    }
    // The rule's next cause joins them, and one of which nothing was shown is counted all the same.
    CHECK(!aggregator.first_of_cause(drop_of(5, "a", 1)));
    aggregator.retire({{3, 3, 30, 1, 2}, {9, 7, 70, 1, 2}}, {});
    const Summary summary = aggregator.summarize({{5, 1, 1, 1, 1}}, {}, {}, 1, true);
    CHECK(summary.packets() == 9 + 3 + 1 + 7);
    CHECK(summary.causes.size() == 2);
}

TEST_CASE("rulesets that come and go for a week do not fill the memory", "[aggregate]") {
    Aggregator aggregator(0);
    std::uint64_t packets = 0;
    for (std::uint32_t id = 1; id <= 3 * Aggregator::max_merged; ++id) {
        aggregator.first_of_cause(drop_of(id, "a", id % 8));
        aggregator.retire({{id, 1, 1, 1, 1}},
                          {{id, flow(static_cast<std::uint8_t>(id), static_cast<std::uint16_t>(id), 1)}});
        packets += 1;
    }
    const Summary summary = aggregator.summarize({}, {}, {}, 1, true);
    CHECK(summary.packets() == packets);
    REQUIRE(summary.causes.size() == 8);
    for (const Cause& cause : summary.causes) {
        std::uint64_t flows = cause.other_packets;
        for (const Flow& one : cause.flows)
            flows += one.packets;
        CHECK(flows == cause.packets);
    }
}
