// SPDX-License-Identifier: GPL-2.0-only
#include "catch.h"

#include "aggregate/stopped.h"

using namespace tsdroptrace;
using namespace tsdroptrace::aggregate;

namespace {

constexpr std::int64_t second = 1'000'000'000;
constexpr std::uint32_t netns = 4026531840;

// ts-input's rule that drops what comes from there, by way of INPUT.
Cause cause(std::uint32_t id, std::uint64_t packets, std::int64_t first_s, std::int64_t last_s) {
    Rule rule{Backend::iptables_legacy,
              RuleFamily::ip,
              "filter",
              "ts-input",
              5,
              std::nullopt,
              "-A ts-input -j DROP",
              {{"INPUT", 1, std::nullopt}, {"ts-input", 5, std::nullopt}}};
    Cause cause;
    cause.id = id;
    cause.example.netns.inode = netns;
    cause.example.packet.direction = Direction::from;
    cause.example.site = {DropKind::rule, "NETFILTER_DROP", 8, "nf_hook_slow+0x9b/0xd0", Hook::input, ""};
    cause.example.rule = std::make_shared<Rule>(rule);
    cause.packets = packets;
    cause.first_ns = first_s * second;
    cause.last_ns = last_s * second;
    return cause;
}

template <typename Change>
Cause with_rule(Cause cause, Change change) {
    Rule rule = *cause.example.rule;
    change(rule);
    cause.example.rule = std::make_shared<Rule>(rule);
    return cause;
}

RulesetChange change_of(const char* chain, std::int64_t time_s) {
    RulesetChange change;
    change.time_ns = time_s * second;
    change.netns.inode = netns;
    change.backend = Backend::iptables_legacy;
    change.generation = 18;
    change.changers = {{{4242, "iptables-legacy"}, std::nullopt, 1}};
    change.chains = {{RuleFamily::ip, "nat", "OUTPUT"}, {RuleFamily::ip, "filter", chain}};
    return change;
}

Summary counts(std::int64_t now_s, std::uint64_t sent, std::uint64_t received, std::vector<Cause> causes) {
    Summary summary;
    summary.until_ns = now_s * second;
    summary.causes = std::move(causes);
    summary.seen = Seen{{sent, {{"eth0", sent}}, {}, {}}, {received, {{"eth0", received}}, {}, {}}};
    return summary;
}

// The rule dropped all 4 packets that came, the last one at 22 s; a change at 23 s; they go on coming.
struct Incident {
    Stops stops;
    std::vector<Cause> causes{cause(1, 4, 19, 22)};
    std::vector<RulesetChange> changes{change_of("INPUT", 23)};
    std::uint64_t received_before = 4, received_later = 1;
    std::int64_t now = 23;

    // What is told from then until `until` s, looking each second.
    std::vector<Stopped> told(std::int64_t until = 60) {
        std::vector<Stopped> all;
        for (; now <= until; ++now) {
            const std::uint64_t received = received_before + (now >= 24 ? received_later : 0);
            std::vector<Cause> so_far = causes;
            std::erase_if(so_far, [&](const Cause& one) { return one.last_ns > now * second; });
            for (Stopped& one : stops.judge(counts(now, received, received, so_far), true))
                all.push_back(std::move(one));
            if (now == 24) // it takes a while until it is told
                for (const RulesetChange& change : changes)
                    stops.change(change);
        }
        return all;
    }
};

} // namespace

TEST_CASE("stopped: what dropped before a change and lets pass since is told once", "[stopped]") {
    Incident incident;
    CHECK(incident.told(25).empty());
    CHECK(incident.stops.open());
    const auto told = incident.told();
    REQUIRE(told.size() == 1);
    const Stopped& stopped = told[0];
    CHECK(stopped.time_ns == 26 * second); // 3 s after the change
    CHECK(stopped.cause.packets == 4);
    CHECK(stopped.cause.first_ns == 19 * second);
    CHECK(stopped.cause.last_ns == 22 * second);
    CHECK(stopped.cause.example.rule->number == 5u);
    CHECK(stopped.change.time_ns == 23 * second);
    CHECK(stopped.change.generation == 18);
    REQUIRE(stopped.change.by());
    CHECK(stopped.change.by()->process.pid == 4242);
    CHECK(stopped.changes == 1);
    REQUIRE(stopped.chain);
    CHECK(stopped.chain->name == "INPUT");
    CHECK(stopped.seen_since_ns == 23 * second);
    CHECK(stopped.seen.received.packets == 1);
    CHECK(stopped.seen.received.by_dev == std::map<std::string, std::uint64_t>{{"eth0", 1}});
    CHECK_FALSE(incident.stops.open());
}

TEST_CASE("stopped: what is not known to have stopped is not told", "[stopped]") {
    Incident incident;
    const auto nothing_told = [](Incident changed) { return changed.told().empty(); };
    CHECK_FALSE(nothing_told(incident));

    // One packet is no series; nothing came since; the last drop was long before the change, or after it.
    const auto dropped = [&](std::uint64_t packets, std::int64_t first_s, std::int64_t last_s) {
        Incident changed = incident;
        changed.causes = {cause(1, packets, first_s, last_s)};
        changed.received_before = packets;
        return changed;
    };
    CHECK(nothing_told(dropped(1, 22, 22)));
    CHECK(nothing_told(dropped(4, -9, -8)));
    CHECK(nothing_told(dropped(4, 19, 23)));
    CHECK(nothing_told(dropped(4, 19, 24)));
    Incident silent = incident;
    silent.received_later = 0;
    CHECK(nothing_told(silent));
    CHECK(silent.stops.open() == incident.stops.open());

    // No rule's: whatever drops them, no change of rules is known to have stopped that.
    for (const DropKind kind : {DropKind::hook, DropKind::kernel}) {
        Incident other = incident;
        other.causes[0].example.rule = nullptr;
        other.causes[0].example.site.kind = kind;
        CHECK(nothing_told(other));
    }

    // Packets that pass are not counted.
    Stops stops;
    stops.change(incident.changes[0]);
    Summary blind = counts(40, 0, 0, incident.causes);
    blind.seen = std::nullopt;
    CHECK(stops.judge(blind, true).empty());
    CHECK_FALSE(stops.open());
}

TEST_CASE("stopped: only a change on the packets' way counts", "[stopped]") {
    const auto told_with = [](auto spoil) {
        Incident incident;
        spoil(incident.changes[0]);
        return incident.told().size();
    };
    CHECK(told_with([](RulesetChange&) {}) == 1);
    CHECK(told_with([](RulesetChange& change) { change.chains[1].name = "FORWARD"; }) == 0);
    CHECK(told_with([](RulesetChange& change) { change.chains[1].family = RuleFamily::ip6; }) == 0);
    CHECK(told_with([](RulesetChange& change) { change.chains[1].table = "mangle"; }) == 0);
    CHECK(told_with([](RulesetChange& change) { change.netns.inode = 7; }) == 0);
    CHECK(told_with([](RulesetChange& change) { change.backend = Backend::nftables; }) == 0);
    // What it did is not known.
    CHECK(told_with([](RulesetChange& change) { change.chains.clear(); }) == 0);
    CHECK(told_with([](RulesetChange& change) { change.chains.clear(), change.unknown = "not read"; }) == 1);
    CHECK(told_with([](RulesetChange& change) { change.chains.clear(), change.more_chains = true; }) == 1);

    // The way there is not known.
    Incident pathless;
    pathless.causes[0] = with_rule(pathless.causes[0], [](Rule& rule) { rule.path.clear(); });
    pathless.changes[0].chains[1].name = "FORWARD";
    CHECK(Incident(pathless).told().size() == 1);
    pathless.changes[0].chains.pop_back();
    CHECK(pathless.told().empty());

    // nft's rules and those of iptables-nft are one ruleset.
    Incident nft;
    nft.causes[0] = with_rule(nft.causes[0], [](Rule& rule) { rule.backend = Backend::iptables_nft; });
    nft.changes[0].backend = Backend::nftables;
    CHECK(nft.told().size() == 1);
}

TEST_CASE("stopped: a rule that a change has moved drops on", "[stopped]") {
    const auto told_with = [](auto change) {
        Incident incident;
        incident.causes[0] = with_rule(incident.causes[0], [](Rule& rule) { rule.handle = 11; });
        incident.causes.push_back(with_rule(cause(2, 1, 24, 24), change));
        incident.received_later = 2; // one is dropped, one passes
        return incident.told().size();
    };
    CHECK(told_with([](Rule& rule) { rule.number = 6; }) == 0);
    CHECK(told_with([](Rule& rule) { rule.handle = 12; }) == 0);
    CHECK(told_with([](Rule& rule) { rule.text = std::nullopt; }) == 0); // it may be the same
    CHECK(told_with([](Rule& rule) { rule.text = "-A ts-input -p tcp -j DROP"; }) == 1);
    CHECK(told_with([](Rule& rule) { rule.text = "drop", rule.handle = 11; }) == 0); // another tool's words
    CHECK(told_with([](Rule& rule) { rule.chain = "other"; }) == 1);

    // It is stopped for good later: all that it dropped, wherever it stood, and once.
    Incident incident;
    incident.causes = {cause(1, 4, 10, 15), with_rule(cause(2, 3, 17, 22), [](Rule& rule) { rule.number = 6; })};
    incident.received_before = 7;
    incident.changes.insert(incident.changes.begin(), change_of("INPUT", 16));
    const auto told = incident.told();
    REQUIRE(told.size() == 1);
    CHECK(told[0].cause.packets == 7);
    CHECK(told[0].cause.first_ns == 10 * second);
    CHECK(told[0].cause.example.rule->number == 6u);
    CHECK(told[0].change.time_ns == 23 * second);
    CHECK(told[0].changes == 1);
}

TEST_CASE("stopped: of several changes since the last drop the first is named", "[stopped]") {
    Incident incident;
    incident.changes = {change_of("INPUT", 24), change_of("INPUT", 23), change_of("FORWARD", 23)};
    const auto told = incident.told();
    REQUIRE(told.size() == 1);
    CHECK(told[0].change.time_ns == 23 * second);
    CHECK(told[0].chain->name == "INPUT");
    CHECK(told[0].changes == 2);
}

TEST_CASE("stopped: it waits as long as drops have lain apart", "[stopped]") {
    Incident incident;
    incident.causes = {cause(1, 3, 8, 22)}; // 7 s apart
    incident.received_before = 3;
    CHECK(incident.told(43).empty());
    CHECK(incident.told(44).size() == 1);
    Incident seldom;
    seldom.causes = {cause(1, 2, -100, 22)};
    seldom.received_before = 2;
    CHECK(seldom.told(82).empty());
    CHECK(seldom.told(83).size() == 1); // no longer than a minute
}

TEST_CASE("stopped: what passes must be more than passed before", "[stopped]") {
    // Half of what came was dropped: that 4 in a row pass may be chance, 5 hardly.
    Incident incident;
    incident.causes = {cause(1, 2, 19, 22)};
    incident.received_later = 4;
    CHECK(incident.told(50).empty());
    incident.received_later = 5;
    CHECK(incident.told().size() == 1);

    // What something else drops since has not got past the rule, for all that is known.
    Incident replaced;
    replaced.causes.push_back(with_rule(cause(2, 1, 24, 24), [](Rule& rule) { rule.chain = "INPUT"; }));
    CHECK(replaced.told(50).empty());
    replaced.received_later = 2;
    CHECK(replaced.told().size() == 1);

    // Toward the range, packets are counted once they have passed.
    Stops out;
    Cause outgoing = cause(1, 4, 19, 22);
    outgoing.example.packet.direction = Direction::to;
    out.judge(counts(23, 0, 0, {outgoing}), true);
    out.change(change_of("INPUT", 23));
    CHECK(out.judge(counts(30, 0, 9, {outgoing}), true).empty());
    CHECK(out.judge(counts(31, 1, 9, {outgoing}), true).size() == 1);
}

TEST_CASE("stopped: nothing is claimed while drops may be the rule's", "[stopped]") {
    Cause unknown = cause(2, 1, 24, 24);
    unknown.example.rule = nullptr;
    unknown.example.site.kind = DropKind::hook;
    const auto told_with = [&](auto change) {
        Incident incident;
        incident.received_later = 2;
        Cause other = unknown;
        change(other);
        incident.received_before += other.last_ns < 23 * second;
        incident.causes.push_back(other);
        return incident.told().size();
    };
    CHECK(told_with([](Cause&) {}) == 0);
    CHECK(told_with([](Cause& other) { other.id = 0, other.example = {}; }) == 0); // its details are lost
    CHECK(told_with([](Cause& other) { other.last_ns = 22 * second; }) == 1);
    CHECK(told_with([](Cause& other) { other.example.netns.inode = 7; }) == 1);
    CHECK(told_with([](Cause& other) { other.example.site.kind = DropKind::kernel; }) == 1);
    CHECK(told_with([](Cause& other) { other.example.site.hook_function = HookFunction{}; }) == 1);

    // Packets whose rule is still looked for; drops that are in no count.
    Incident incident;
    incident.stops.judge(counts(23, 4, 4, incident.causes), true);
    incident.stops.change(incident.changes[0]);
    CHECK(incident.stops.judge(counts(30, 5, 5, incident.causes), false).empty());
    CHECK(incident.stops.open());
    Summary lossy = counts(31, 5, 5, incident.causes);
    lossy.lost["causes"] = 1;
    CHECK(incident.stops.judge(lossy, true).empty());
    CHECK(incident.stops.judge(counts(32, 5, 5, incident.causes), true).size() == 1);
}

TEST_CASE("stopped: it may stop again once it has dropped again", "[stopped]") {
    Incident incident;
    REQUIRE(incident.told(30).size() == 1);
    incident.stops.change(change_of("INPUT", 31));
    CHECK(incident.stops.judge(counts(36, 6, 6, incident.causes), true).empty());

    incident.causes = {cause(1, 6, 19, 40)};
    incident.stops.change(change_of("INPUT", 41));
    CHECK(incident.stops.judge(counts(41, 9, 9, incident.causes), true).empty());
    CHECK(incident.stops.judge(counts(70, 19, 19, incident.causes), true).size() == 1);
}

TEST_CASE("stopped: memory is bounded, the oldest changes make room", "[stopped]") {
    Incident incident;
    for (std::size_t i = 0; i < Stops::max_changes; ++i)
        incident.changes.push_back(change_of("FORWARD", 23));
    CHECK(incident.told().empty());

    // The one that is left is not said to be the only one.
    Incident other;
    for (std::size_t i = 1; i < Stops::max_changes; ++i)
        other.changes.push_back(change_of("FORWARD", 23));
    other.changes.push_back(change_of("INPUT", 23));
    CHECK(other.told().empty());

    Stops stops;
    stops.change(change_of("INPUT", 23));
    CHECK(stops.judge(counts(23 + 600, 4, 4, incident.causes), true).empty());
    CHECK(stops.open());
    CHECK(stops.judge(counts(23 + 601, 9, 9, incident.causes), true).empty());
    CHECK_FALSE(stops.open());

    Stops later; // of two changes the first is too old by now
    later.change(change_of("INPUT", 23));
    later.change(change_of("INPUT", 33));
    CHECK(later.judge(counts(34, 4, 4, incident.causes), true).empty());
    CHECK(later.judge(counts(23 + 601, 9, 9, incident.causes), true).empty());
}
