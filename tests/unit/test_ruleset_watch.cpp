// SPDX-License-Identifier: GPL-2.0-only
#include "ruleset_watch.h"
#include "attach/lost_changes.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <set>

#include "catch.h"
#include "resolve_rule/ruleset_diff.h"

using namespace tsdroptrace;
using namespace tsdroptrace::resolve_rule;
using std::chrono::milliseconds;
using std::chrono::seconds;

namespace {

constexpr std::uint32_t own = 4026531840, other = 4026532500;

SnapshotRule rule(std::string text, std::string verdict = "drop", std::optional<std::uint64_t> handle = {}) {
    SnapshotRule rule;
    rule.text = std::move(text);
    rule.verdict = std::move(verdict);
    rule.handle = handle;
    return rule;
}

// A table of ip_tables with one chain.
Snapshot legacy(std::vector<SnapshotRule> rules, std::string policy = "accept") {
    SnapshotChain chain;
    chain.name = "INPUT";
    chain.hook = Hook::input;
    chain.policy = std::move(policy);
    chain.backend = Backend::iptables_legacy;
    chain.rules = std::move(rules);
    Snapshot snapshot;
    snapshot.kind = SnapshotKind::ip_tables;
    snapshot.netns = own;
    snapshot.tables = {{RuleFamily::ip, "filter", {}, {chain}}};
    return snapshot;
}

// The same of nf_tables, with handles.
Snapshot nft(std::vector<SnapshotRule> rules, std::uint64_t table_handle = 5, Backend backend = Backend::nftables) {
    Snapshot snapshot = legacy(std::move(rules));
    snapshot.kind = SnapshotKind::nf_tables;
    snapshot.tables[0].handle = table_handle;
    snapshot.tables[0].chains[0].handle = 1;
    snapshot.tables[0].chains[0].backend = backend;
    return snapshot;
}

// "3 text" for each, and "3<1 text" for one that has moved; "policy" for a policy.
std::vector<std::string> words(const std::vector<ChangedRule>& rules) {
    std::vector<std::string> out;
    for (const ChangedRule& changed : rules) {
        if (!changed.rule.number) {
            out.push_back("policy");
            continue;
        }
        out.push_back(std::to_string(*changed.rule.number) + (changed.was ? "<" + std::to_string(*changed.was) : "") +
                      " " + changed.rule.text.value_or("?"));
    }
    return out;
}

using Words = std::vector<std::string>;

// Of all backends together.
struct Difference : DropChanges {
    std::set<Backend> changed;
};

Difference diff_of(const Snapshot& before, const Snapshot& after) {
    const auto diff = compare(before, after);
    REQUIRE(diff);
    Difference all;
    for (const auto& [backend, drops] : *diff) {
        all.changed.insert(backend);
        all.added.insert(all.added.end(), drops.added.begin(), drops.added.end());
        all.removed.insert(all.removed.end(), drops.removed.begin(), drops.removed.end());
        all.moved.insert(all.moved.end(), drops.moved.begin(), drops.moved.end());
        all.more_added += drops.more_added;
        all.more_removed += drops.more_removed;
        all.more_moved += drops.more_moved;
    }
    return all;
}

} // namespace

TEST_CASE("ruleset_diff: rules are told by their text where they have no handle") {
    const auto accept = rule("ok", "accept");
    Difference diff = diff_of(legacy({rule("a"), rule("b")}), legacy({rule("a"), rule("b")}));
    CHECK(diff.changed.empty());
    CHECK((diff.added.empty() && diff.removed.empty() && diff.moved.empty()));

    diff =
        diff_of(legacy({rule("a"), rule("b"), rule("c")}), legacy({accept, rule("a"), rule("c"), rule("d", "reject")}));
    CHECK(diff.changed == std::set{Backend::iptables_legacy});
    CHECK(words(diff.added) == Words{"4 d"});
    CHECK(words(diff.removed) == Words{"2 b"});
    CHECK(words(diff.moved) == Words{"2<1 a"});
    CHECK(diff.added[0].rule.verdict == "reject");
    CHECK(diff.added[0].rule.chain == "INPUT");
    CHECK(diff.added[0].rule.table == "filter");
    CHECK(diff.added[0].rule.backend == Backend::iptables_legacy);
    REQUIRE(diff.added[0].rule.path.size() == 1);
    CHECK(diff.added[0].rule.path[0].number == 4u);

    // Only rules that let packets pass: the chain is another one, what drops is not.
    diff = diff_of(legacy({rule("a")}), legacy({rule("a"), accept}));
    CHECK(diff.changed == std::set{Backend::iptables_legacy});
    CHECK((diff.added.empty() && diff.removed.empty() && diff.moved.empty()));
}

TEST_CASE("ruleset_diff: base chains by which packets meet what differs") {
    // INPUT jumps to a chain, that one goes to another; by offset, as ip_tables has it, and by text, as nf_tables.
    const auto chain_of = [](const char* name, std::optional<std::uint32_t> offset, std::vector<SnapshotRule> rules) {
        SnapshotChain chain;
        chain.name = name;
        chain.offset = offset;
        chain.rules = std::move(rules);
        chain.backend = offset ? Backend::iptables_legacy : Backend::nftables;
        return chain;
    };
    const auto bases = [](const Snapshot& before, const Snapshot& after) {
        std::vector<std::string> names;
        const auto diff = compare(before, after);
        REQUIRE(diff);
        for (const auto& [backend, changes] : *diff)
            for (const ChainName& chain : changes.chains)
                names.push_back(chain.table + " " + chain.name);
        return names;
    };
    using Bases = std::vector<std::string>;
    SnapshotRule jump = rule("-A INPUT -j one"), go = rule("-A one -g two");
    jump.jump_offset = 100, go.jump_offset = 200;
    jump.verdict = go.verdict = "";
    Snapshot before = legacy({jump});
    before.tables[0].chains.push_back(chain_of("one", 100, {go}));
    before.tables[0].chains.push_back(chain_of("two", 200, {rule("a")}));
    before.tables[0].chains.push_back(chain_of("alone", 300, {rule("a")}));
    Snapshot after = before;
    CHECK(bases(before, after) == Bases{});
    after.tables[0].chains[2].rules.insert(after.tables[0].chains[2].rules.begin(), rule("ok", "accept"));
    CHECK(bases(before, after) == Bases{"filter INPUT"});
    after = before;
    after.tables[0].chains[3].rules.clear();
    CHECK(bases(before, after) == Bases{});
    after = before; // led there only before
    after.tables[0].chains[0].rules.clear();
    after.tables[0].chains[2].rules.clear();
    CHECK(bases(before, after) == Bases{"filter INPUT"});

    before = nft({rule("udp dport 53 jump one", "", 2)});
    before.tables[0].chains.push_back(chain_of("one", {}, {rule("a", "drop", 3)}));
    before.tables[0].chains.push_back(chain_of("two", {}, {rule("a", "drop", 4)}));
    after = before;
    after.tables[0].chains[1].rules.clear();
    const Bases one = bases(before, after);
    REQUIRE(one.size() == 1);
    after = before;
    after.tables[0].chains[2].rules.clear();
    CHECK(bases(before, after) == Bases{});
    for (Snapshot* snapshot : {&before, &after}) // anywhere
        snapshot->tables[0].chains[1].rules.push_back(rule("udp dport vmap @ports", "", 9));
    CHECK(bases(before, after) == one);
}

TEST_CASE("ruleset_diff: the chains that differ, also by what does not drop") {
    const auto accept = rule("ok", "accept");
    auto diff = compare(legacy({rule("a")}), legacy({accept, rule("a")}));
    REQUIRE(diff);
    REQUIRE((*diff)[Backend::iptables_legacy].chains.size() == 1);
    const ChainName& chain = (*diff)[Backend::iptables_legacy].chains[0];
    CHECK((chain.family == RuleFamily::ip && chain.table == "filter" && chain.name == "INPUT"));
    CHECK_FALSE((*diff)[Backend::iptables_legacy].more_chains);

    Snapshot many = legacy({});
    many.tables[0].chains.resize(DropChanges::max_chains + 1, many.tables[0].chains[0]);
    for (std::size_t i = 1; i < many.tables[0].chains.size(); ++i)
        many.tables[0].chains[i].name = "chain" + std::to_string(i);
    diff = compare(legacy({}), many);
    CHECK((*diff)[Backend::iptables_legacy].chains.size() == DropChanges::max_chains);
    CHECK_FALSE((*diff)[Backend::iptables_legacy].more_chains); // INPUT is the same
    many.tables[0].chains[0].policy = "drop";
    diff = compare(legacy({}), many);
    CHECK((*diff)[Backend::iptables_legacy].more_chains);
}

TEST_CASE("ruleset_diff: the same rule several times") {
    Difference diff = diff_of(legacy({rule("a"), rule("a")}), legacy({rule("a"), rule("a"), rule("a")}));
    CHECK(words(diff.added) == Words{"3 a"});
    CHECK(diff.moved.empty());
    diff = diff_of(legacy({rule("a"), rule("x", "accept"), rule("a"), rule("b")}), legacy({rule("a"), rule("b")}));
    CHECK(words(diff.removed) == Words{"3 a"});
    CHECK(words(diff.moved) == Words{"2<4 b"});
}

TEST_CASE("ruleset_diff: rules of nf_tables are told by their handles") {
    Difference diff = diff_of(nft({rule("a", "drop", 2), rule("b", "drop", 3)}), nft({rule("b", "drop", 3)}));
    CHECK(words(diff.removed) == Words{"1 a"});
    CHECK(words(diff.moved) == Words{"1<2 b"});
    CHECK(diff.moved[0].rule.handle == 3u);

    // Another program's words for the same rule are no change.
    diff =
        diff_of(nft({rule("-A INPUT -j DROP", "drop", 2)}, 5, Backend::iptables_nft), nft({rule("drop", "drop", 2)}));
    CHECK(diff.changed.empty());
    // Replaced, with its handle kept.
    diff =
        diff_of(nft({rule("a", "drop", 2), rule("c", "drop", 3)}), nft({rule("b", "drop", 2), rule("c", "drop", 3)}));
    CHECK(words(diff.removed) == Words{"1 a"});
    CHECK(words(diff.added) == Words{"1 b"});
    CHECK(diff.moved.empty());
    diff = diff_of(nft({rule("-A INPUT -j DROP", "drop", 2)}, 5, Backend::iptables_nft),
                   nft({rule("reject", "reject", 2)}));
    CHECK(words(diff.removed) == Words{"1 -A INPUT -j DROP"});
    CHECK(words(diff.added) == Words{"1 reject"});
    // A rule that was taken out and put back: another handle, nothing else.
    diff = diff_of(nft({rule("a", "drop", 2)}), nft({rule("a", "drop", 9)}));
    CHECK(diff.changed == std::set{Backend::nftables});
    CHECK((diff.added.empty() && diff.removed.empty() && diff.moved.empty()));
    // A table made anew counts its handles from the beginning: 2 is another rule.
    diff = diff_of(nft({rule("a", "drop", 2), rule("b", "drop", 3)}), nft({rule("b", "drop", 2)}, 6));
    CHECK(words(diff.removed) == Words{"1 a"});
    CHECK(words(diff.moved) == Words{"1<2 b"});
}

TEST_CASE("ruleset_diff: policies, verdict maps, and chains that come and go") {
    Difference diff = diff_of(legacy({}, "accept"), legacy({}, "drop"));
    CHECK(words(diff.added) == Words{"policy"});
    CHECK(diff.added[0].rule.chain == "INPUT");
    CHECK_FALSE(diff.added[0].rule.text);
    diff = diff_of(legacy({}, "drop"), legacy({}, "accept"));
    CHECK(words(diff.removed) == Words{"policy"});
    CHECK(diff.added.empty());

    CHECK(can_drop(rule("udp dport vmap { 1 : drop, 2 : accept }", "", 4)));
    CHECK_FALSE(can_drop(rule("udp dport vmap { 1 : jump x, 2 : accept }", "", 4)));
    CHECK_FALSE(can_drop(rule("counter comment \"vmap: drop\"", "", 4)));

    Snapshot none = legacy({});
    none.tables.clear();
    diff = diff_of(none, legacy({rule("a")}, "drop"));
    CHECK(words(diff.added) == Words{"1 a", "policy"});
    diff = diff_of(legacy({rule("a")}, "drop"), none);
    CHECK(words(diff.removed) == Words{"1 a", "policy"});
}

TEST_CASE("ruleset_diff: many rules that are all alike take neither time nor memory") {
    constexpr std::size_t many = 50'000;
    std::vector<SnapshotRule> rules(many, rule("a"));
    const Snapshot before = legacy(rules);
    rules.insert(rules.begin(), rule("ok", "accept"));
    const auto begin = std::chrono::steady_clock::now();
    Difference diff = diff_of(before, legacy(rules)); // all but the first are still at a place where there was one
    CHECK(words(diff.moved) == Words{std::to_string(many + 1) + "<1 a"});
    rules.assign(many, rule("b"));
    diff = diff_of(before, legacy(rules));
    CHECK(std::chrono::steady_clock::now() - begin < seconds(10)); // comparing each with each would take minutes
    CHECK(diff.added.size() == DropChanges::max_rules);
    CHECK(diff.more_added == many - DropChanges::max_rules);
    CHECK(diff.more_removed == many - DropChanges::max_rules);
}

TEST_CASE("ruleset_diff: what could not be read is not a change") {
    Snapshot part = legacy({});
    part.tables.clear();
    part.problems = {"table filter: no such device"};
    CHECK_FALSE(compare(legacy({rule("a")}), part));
    CHECK_FALSE(compare(part, legacy({rule("a")})));
}

// ---- the watch, with a machine that is not there ----

namespace {

struct FakeMachine : SnapshotSource {
    std::uint32_t generation = 2;
    bool changing = false, unreadable = false;
    int reads = 0;
    std::map<std::uint32_t, Snapshot> rulesets; // by namespace
    RulesetWatch::TimePoint now{seconds(1000)};
    decode::ChangeCounts counts;
    std::vector<tsdt_ruleset_change> ring; // records that wait, while `late`
    bool late = false;
    RulesetWatch watch{*this,
                       [this](SnapshotKind) {
                           return Generation{generation, changing};
                       },
                       [this] { return counts; }, own};

    std::shared_ptr<const Snapshot> get(SnapshotKind kind, std::uint32_t netns, std::uint32_t asked) override {
        reads++;
        if (unreadable)
            return nullptr;
        Snapshot snapshot = rulesets[netns];
        snapshot.kind = kind;
        snapshot.netns = netns;
        snapshot.generation = changing ? asked - 1 : asked;
        return std::make_shared<const Snapshot>(std::move(snapshot));
    }
    // A process makes that the ruleset, and the kernel says so.
    void change(std::uint32_t pid, const char* comm, Snapshot ruleset, std::uint32_t netns = own) {
        rulesets[netns] = std::move(ruleset);
        generation += 2;
        tsdt_ruleset_change record{};
        record.mono_ns = static_cast<std::uint64_t>(now.time_since_epoch().count());
        record.generation = generation;
        record.netns = netns;
        record.pid = pid;
        record.ruleset = TSDT_RULESET_IP_TABLES;
        std::memcpy(record.comm, comm, std::min(std::strlen(comm), sizeof(record.comm)));
        counts.told++;
        ring.push_back(record);
        if (!late)
            drain();
    }
    void drain() {
        for (const tsdt_ruleset_change& record : ring)
            watch.changed(record, now);
        ring.clear();
    }
    std::vector<RulesetChange> look(milliseconds later, bool last = false) {
        now += later;
        return watch.look(now, 77, 1'000'000, last);
    }
    // All that is told in `time`, looked for ten times a second.
    std::vector<RulesetChange> wait(milliseconds time) {
        std::vector<RulesetChange> all;
        for (; time > milliseconds(0); time -= milliseconds(100))
            for (RulesetChange& change : look(milliseconds(100)))
                all.push_back(std::move(change));
        return all;
    }
    void begin() {
        rulesets[own] = legacy({rule("a")});
        rulesets[other] = legacy({rule("x")});
        watch.watch(SnapshotKind::ip_tables, own, now);
        now += seconds(10);
    }
};

} // namespace

TEST_CASE("ruleset_watch: one change by one process") {
    FakeMachine machine;
    machine.begin();
    CHECK(machine.wait(seconds(3)).empty());
    CHECK(machine.reads == 1);
    const auto when = machine.now.time_since_epoch().count();
    machine.change(812, "tailscaled", legacy({rule("a"), rule("b")}));
    CHECK(machine.look(milliseconds(400)).empty()); // more may come
    const auto told = machine.look(milliseconds(100));
    REQUIRE(told.size() == 1);
    REQUIRE(told[0].by());
    CHECK(told[0].by()->process.pid == 812);
    CHECK(told[0].by()->process.comm == "tailscaled");
    CHECK(told[0].backend == Backend::iptables_legacy);
    CHECK(told[0].generation == 4);
    CHECK(told[0].netns.inode == own);
    CHECK(told[0].time_ns == when + 1'000'000);
    CHECK(words(told[0].added) == Words{"2 b"});
    CHECK(told[0].unknown.empty());
    CHECK(machine.wait(seconds(3)).empty());
    CHECK(machine.reads == 2);
}

TEST_CASE("ruleset_watch: a burst of one process is a line or two, and every change is counted") {
    FakeMachine machine;
    machine.begin();
    std::vector<SnapshotRule> rules;
    std::vector<RulesetChange> told;
    for (int i = 0; i < 1000; i++) {
        rules.push_back(rule(std::to_string(i)));
        machine.change(812, "flood", legacy(rules));
        for (RulesetChange& change : machine.look(milliseconds(1)))
            told.push_back(std::move(change));
    }
    for (RulesetChange& change : machine.wait(seconds(3)))
        told.push_back(std::move(change));
    CHECK(told.size() >= 1);
    CHECK(told.size() <= 2);
    CHECK(machine.reads <= 5);
    std::uint64_t changes = 0, added = 0;
    for (const RulesetChange& change : told) {
        REQUIRE(change.by());
        changes += change.by()->changes;
        CHECK(change.added.size() == RulesetChange::max_rules);
        added += change.added.size() + change.more_added;
    }
    CHECK(changes == 1000);
    CHECK(added == 1000);
}

TEST_CASE("ruleset_watch: several processes, and changes that nobody is known for") {
    FakeMachine machine;
    machine.begin();
    for (std::uint32_t pid = 1; pid <= 20; pid++)
        machine.change(pid, "iptables", legacy({rule("b")}));
    auto told = machine.wait(seconds(1));
    REQUIRE(told.size() == 1);
    CHECK_FALSE(told[0].by());
    CHECK(told[0].changers.size() == RulesetChange::max_changers);
    CHECK(told[0].other_changes == 20 - RulesetChange::max_changers);
    CHECK(words(told[0].removed) == Words{"1 a"});

    machine.change(812, "tailscaled", legacy({rule("c")}));
    machine.counts.untold[TSDT_NETNS_OTHER] = 5; // elsewhere
    machine.counts.untold[TSDT_NETNS_OWN] = 7;
    told = machine.wait(seconds(2));
    REQUIRE(told.size() == 1);
    CHECK_FALSE(told[0].by());
    CHECK(told[0].changers.size() == 1);
    CHECK(told[0].other_changes == 7);

    machine.change(812, "tailscaled", legacy({rule("d")})); // those have been told
    told = machine.wait(seconds(2));
    REQUIRE(told.size() == 1);
    CHECK(told[0].by());
}

TEST_CASE("ruleset_watch: a change without a record is seen all the same, in our own namespace") {
    FakeMachine machine;
    machine.begin();
    machine.rulesets[own] = legacy({rule("b")});
    machine.generation += 2;
    const auto told = machine.wait(seconds(2));
    REQUIRE(told.size() == 1);
    CHECK_FALSE(told[0].by());
    CHECK(told[0].changers.empty());
    CHECK(told[0].other_changes == 0);
    CHECK(told[0].time_ns == 77);
    CHECK(words(told[0].added) == Words{"1 b"});
}

TEST_CASE("ruleset_watch: nobody is blamed while a record has not come") {
    FakeMachine machine;
    machine.begin();
    machine.change(812, "tailscaled", legacy({rule("b")}));
    machine.late = true;
    machine.change(813, "nft", legacy({rule("c")}));
    CHECK(machine.wait(seconds(3)).empty());
    machine.drain();
    auto told = machine.wait(seconds(1));
    REQUIRE(told.size() == 1);
    CHECK_FALSE(told[0].by());
    CHECK(told[0].changers.size() == 2);
    CHECK(told[0].other_changes == 0);

    // Not waited for for ever.
    machine.change(814, "nft", legacy({rule("d")}));
    CHECK(machine.wait(seconds(14)).empty());
    told = machine.wait(seconds(4));
    REQUIRE(told.size() == 1);
    CHECK_FALSE(told[0].by());
    CHECK(told[0].changers.empty());
    CHECK(told[0].other_changes == 1);
    CHECK(words(told[0].added) == Words{"1 d"});
}

TEST_CASE("ruleset_watch: what leaves the rules as they were is no change") {
    FakeMachine machine;
    machine.begin();
    machine.change(812, "iptables", legacy({rule("a")})); // counters set to zero
    CHECK(machine.wait(seconds(3)).empty());
    machine.change(813, "iptables", legacy({rule("b")}));
    const auto told = machine.wait(seconds(3));
    REQUIRE(told.size() == 1);
    REQUIRE(told[0].by()); // the other one is out of it
    CHECK(told[0].by()->process.pid == 813);
}

TEST_CASE("ruleset_watch: other namespaces once they are watched, and not too many") {
    FakeMachine machine;
    machine.begin();
    machine.change(1, "iptables", legacy({rule("y")}), other);
    CHECK(machine.wait(seconds(3)).empty());
    machine.watch.watch(SnapshotKind::ip_tables, other, machine.now);
    machine.now += seconds(2);
    machine.change(2, "iptables", legacy({rule("z")}), other);
    const auto told = machine.wait(seconds(3));
    REQUIRE(told.size() == 1);
    CHECK(told[0].netns.inode == other);
    CHECK(words(told[0].removed) == Words{"1 y"});
    CHECK(words(told[0].added) == Words{"1 z"});
    REQUIRE(told[0].by());
    CHECK(told[0].by()->process.pid == 2);

    const int before = machine.reads;
    for (std::uint32_t netns = 1; netns <= 2 * RulesetWatch::max_foreign; netns++)
        machine.watch.watch(SnapshotKind::ip_tables, netns, machine.now);
    CHECK(machine.reads == before + static_cast<int>(RulesetWatch::max_foreign) - 1);
}

TEST_CASE("ruleset_watch: a ruleset that cannot be read") {
    FakeMachine machine;
    machine.begin();
    machine.unreadable = true;
    machine.change(812, "tailscaled", legacy({rule("b")}));
    CHECK(machine.wait(seconds(14)).empty());
    auto told = machine.wait(seconds(4));
    REQUIRE(told.size() == 1);
    CHECK(told[0].by());
    CHECK(told[0].unknown == "the ruleset could not be read after the change");
    CHECK(told[0].added.empty());

    // What is read while a change is under way has another generation, and is not what the change led to.
    machine.unreadable = false;
    machine.changing = true;
    machine.change(813, "nft", legacy({rule("c")}));
    CHECK(machine.wait(seconds(2)).empty());
    machine.changing = false;
    told = machine.wait(seconds(2));
    REQUIRE(told.size() == 1);
    CHECK(words(told[0].added) == Words{"1 c"});
    CHECK(words(told[0].removed) == Words{"1 a"});
}

TEST_CASE("ruleset_watch: rules that come with their kernel module") {
    FakeMachine machine;
    machine.generation = 0; // the change was before anyone could count it
    machine.rulesets[own] = legacy({rule("a")});
    machine.watch.watch(SnapshotKind::ip_tables, own, machine.now, true);
    const auto told = machine.wait(seconds(3));
    REQUIRE(told.size() == 1);
    CHECK_FALSE(told[0].by());
    CHECK(told[0].unknown.empty());
    CHECK(words(told[0].added) == Words{"1 a"});
    CHECK(machine.reads == 1);
}

TEST_CASE("ruleset_watch: the end of a run waits for nothing") {
    FakeMachine machine;
    machine.begin();
    machine.change(812, "tailscaled", legacy({rule("b")}));
    CHECK(machine.look(milliseconds(1)).empty());
    CHECK(machine.look(milliseconds(1), true).size() == 1);
    CHECK(machine.look(milliseconds(1), true).empty());
}

TEST_CASE("lost_changes: the end of a change that nobody has seen is not waited for for ever") {
    using attach::LostChanges;
    LostChanges lost;
    LostChanges::TimePoint now{seconds(1000)};
    const auto ask = [&](std::uint32_t generation, std::int32_t changing, seconds later) {
        now += later;
        return lost.are_there(generation, changing, now);
    };
    CHECK_FALSE(ask(0, 1, seconds(60))); // the first look
    CHECK_FALSE(ask(0, 1, seconds(9)));
    CHECK(ask(0, 1, seconds(1)));
    CHECK_FALSE(ask(0, 0, seconds(1))); // it has been forgotten
    CHECK_FALSE(ask(0, 0, seconds(60)));
    CHECK_FALSE(ask(1, 1, seconds(1)));
    CHECK_FALSE(ask(3, 1, seconds(9))); // others come and go: perhaps this one is one of them
    CHECK_FALSE(ask(5, 1, seconds(9)));
    CHECK(ask(5, 1, seconds(10)));
}
