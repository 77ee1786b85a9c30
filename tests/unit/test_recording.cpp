// SPDX-License-Identifier: GPL-2.0-only
#include "recording/reader.h"
#include "recording/writer.h"

#include <csignal>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>
#include <sstream>
#include <type_traits>
#include <vector>

#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "catch.h"

using namespace tsdroptrace;
using namespace tsdroptrace::recording;

namespace {

struct Directory {
    Directory() {
        std::string name = (std::filesystem::temp_directory_path() / "tsdroptrace-test-XXXXXX").string();
        REQUIRE(mkdtemp(name.data()));
        path = name;
    }
    ~Directory() { std::filesystem::remove_all(path); }
    std::string operator/(const std::string& name) const { return (path / name).string(); }
    std::filesystem::path path;
};

// Keeps everything, in words where that is easier to compare.
struct Collected : Visitor {
    void meta(Meta value) override { metas.push_back(std::move(value)); }
    void snapshot(resolve_rule::Snapshot value) override { snapshots.push_back(std::move(value)); }
    void look(resolve_rule::Look value) override { looks.push_back(std::move(value)); }
    void netns(const NetnsName& value) override { netns_names.emplace(value.inode, value.name); }
    void reasons(decode::KernelNames value) override { reason_names.push_back(std::move(value)); }
    void ruleset(RulesetChange value) override { changes.push_back(std::move(value)); }
    void stopped(Stopped value) override { stops.push_back(std::move(value)); }
    void way(Way value) override { ways.push_back(std::move(value)); }
    void evidence(evidence::Entry value) override { entries.push_back(std::move(value)); }
    void cause(const tsdt_cause& value) override { causes.push_back(value); }
    void drop(const tsdt_drop& value) override { drops.push_back(value); }
    void flow(const tsdt_flow_key& key, std::uint64_t packets) override { flows.emplace_back(key, packets); }
    void seen(const tsdt_seen_count& count) override { seen_counts.push_back(count); }
    void lost(const LostCounts& counts) override { losts.push_back(counts); }
    void end(std::int64_t time_ns) override { ends.push_back(time_ns); }

    std::vector<Meta> metas;
    std::vector<tsdt_seen_count> seen_counts;
    std::map<std::uint32_t, std::string> netns_names;
    std::vector<decode::KernelNames> reason_names;
    std::vector<resolve_rule::Snapshot> snapshots;
    std::vector<resolve_rule::Look> looks;
    std::vector<RulesetChange> changes;
    std::vector<Stopped> stops;
    std::vector<Way> ways;
    std::vector<evidence::Entry> entries;
    std::vector<tsdt_cause> causes;
    std::vector<tsdt_drop> drops;
    std::vector<std::pair<tsdt_flow_key, std::uint64_t>> flows;
    std::vector<LostCounts> losts;
    std::vector<std::int64_t> ends;
};

Meta sample_meta() {
    Meta meta;
    meta.machine.names.reasons = {{2, "NOT_SPECIFIED"}, {8, "NETFILTER_DROP"}};
    meta.machine.realtime_minus_mono_ns = 1'700'000'000'000'000'000;
    meta.machine.own_netns = 4026531840;
    meta.machine.netns_names = {{4026532500, "blue"}};
    meta.machine.host = "web-1";
    meta.machine.kernel = "6.8.0";
    meta.machine.version = "0.1.0";
    meta.start = {-5, "0.1.0", "6.8.0", "web-1", "100.100.0.0/16, both ways", {}};
    meta.start.capabilities.nftables.exactness = Exactness::exact;
    meta.start.capabilities.iptables_legacy = {Exactness::inferred, "from counters"};
    return meta;
}

resolve_rule::Snapshot sample_snapshot() {
    resolve_rule::SnapshotRule rule;
    rule.offset = 1234;
    rule.text = "-A ts-input -s 100.64.0.0/10 ! -i tailscale0 -j DROP -m comment --comment \"\xc3\xa9 \\ \xff\"";
    rule.verdict = "drop";
    resolve_rule::SnapshotRule jump;
    jump.handle = 0xfedcba9876543210;
    jump.jump_offset = 5;
    jump.is_goto = true;
    resolve_rule::SnapshotChain chain;
    chain.name = "INPUT";
    chain.hook = Hook::input;
    chain.policy_offset = 900;
    chain.policy = "drop";
    chain.backend = Backend::iptables_legacy;
    chain.rules = {rule, jump};
    resolve_rule::SnapshotTable table;
    table.family = RuleFamily::ip6;
    table.name = "filter";
    table.handle = 3;
    table.chains = {chain, {}};
    table.sets = {{"blocked", false, true, "10.0.0.1 comment \"x\""}};
    return {resolve_rule::SnapshotKind::ip6_tables, 4026531840, 17, {table}, {"could not read nat"}};
}

RulesetChange sample_change() {
    RulesetChange change;
    change.time_ns = 1'700'000'005'000'000'000;
    change.netns.inode = 4026532500;
    change.backend = Backend::iptables_nft;
    change.generation = 18;
    change.changers = {{{812, "tailscaled\xff"}, Process{1, "systemd"}, 3}, {{813, "nft"}, std::nullopt, 1}};
    change.other_changes = 40;
    Rule rule{Backend::iptables_nft, RuleFamily::ip6, "filter", "ts-input", 3, 10, "-A ts-input -j DROP", {}};
    rule.path = {{"ts-input", 3, 10}};
    rule.verdict = "reject";
    Rule policy;
    policy.chain = "INPUT";
    change.added = {{rule, std::nullopt, {}}};
    change.removed = {{policy, std::nullopt, {}}};
    change.moved = {{rule, 2, {}}};
    change.more_added = 7;
    change.more_removed = 8;
    change.more_moved = 9;
    return change;
}

Stopped sample_stopped() {
    Stopped stopped;
    stopped.time_ns = 1'700'000'031'000'000'000;
    Drop& drop = stopped.cause.example;
    drop.netns.inode = 4026532500;
    drop.site.kind = DropKind::policy;
    drop.site.reason = "NETFILTER_DROP";
    drop.site.hook = Hook::forward;
    Rule rule{Backend::iptables_nft, RuleFamily::ip6, "filter", "FORWARD", {}, {}, {}, {{"FORWARD", {}, {}}}};
    rule.confidence = Confidence::inferred;
    rule.evidence = "its counter";
    rule.stale = true;
    drop.rule = std::make_shared<const Rule>(rule);
    stopped.cause.packets = 6;
    stopped.cause.first_ns = 5;
    stopped.cause.last_ns = 7;
    stopped.change = sample_change();
    stopped.chain = ChainName{RuleFamily::ip6, "filter", "FORWARD"};
    stopped.changes = 3;
    stopped.seen_since_ns = 8;
    stopped.seen.sent = {4, {{"eth0", 3}, {"wlan0", 1}}, {}, {}};
    return stopped;
}

Address address(std::array<std::uint8_t, 16> bytes, IpFamily family) {
    return {family, bytes};
}

evidence::Entry sample_evidence() {
    evidence::Entry entry;
    entry.key.cause_id = 7;
    entry.key.far_end = address({100, 100, 2, 136}, IpFamily::ipv4);
    entry.key.near_end = address({10, 0, 0, 2}, IpFamily::ipv4);
    entry.key.mark = 0x80000;
    entry.key.in_dev = "eth0";
    entry.key.proto = 17;
    entry.key.far_port = 53;
    entry.key.near_port = 41873;
    entry.mono_ns = 81234567890;
    Evidence found;
    found.route = Route{"unicast", "eth0", address({0xfd, 0x7a, 1}, IpFamily::ipv6), 254, "default"};
    found.tailnet_peer = false;
    found.socket_waits = true;
    found.waiting = Process{4242, "dig\xff"};
    found.sysctls = {{"net.ipv4.conf.eth0/7.rp_filter", "1"}, {"net.ipv4.ip_forward", "0"}};
    entry.evidence = std::make_shared<const Evidence>(found);
    return entry;
}

tsdt_drop sample_drop(std::uint32_t id) {
    tsdt_drop drop{};
    drop.cause_id = id;
    drop.key.reason = 8;
    drop.family = 4;
    drop.proto = 17;
    drop.has_ports = 1;
    return drop;
}

tsdt_cause sample_cause(std::uint64_t packets) {
    tsdt_cause cause{};
    cause.id = 1;
    cause.packets = packets;
    cause.steps = 2;
    std::memcpy(cause.table, "filter", 6);
    return cause;
}

// The bytes of a whole recording.
resolve_rule::Look sample_look() {
    resolve_rule::Look look;
    look.kind = resolve_rule::SnapshotKind::ip6_tables;
    look.netns = 4026531840;
    look.generation = 17;
    look.begin_ns = 1;
    look.end_ns = 2;
    look.packets = {7, resolve_rule::Look::no_counter};
    look.bytes = {700, resolve_rule::Look::no_counter};
    look.problem = "none";
    return look;
}

std::string sample_file(const Directory& directory) {
    const std::string path = directory / "sample";
    auto writer = Writer::create(path);
    REQUIRE(writer);
    REQUIRE(writer->meta(sample_meta()));
    REQUIRE(writer->snapshot(sample_snapshot()));
    REQUIRE(writer->look(sample_look()));
    REQUIRE(writer->ruleset(sample_change()));
    REQUIRE(writer->stopped(sample_stopped()));
    REQUIRE(writer->evidence(sample_evidence()));
    REQUIRE(writer->cause(sample_cause(1)));
    REQUIRE(writer->drop(sample_drop(1)));
    REQUIRE(writer->reasons({{{8, "NETFILTER_DROP"}, {0x30001, "OVS_DROP_LAST_ACTION"}}}));
    REQUIRE(writer->drop(sample_drop(2)));
    REQUIRE(writer->cause(sample_cause(2)));
    tsdt_flow_key flow{};
    flow.cause_id = 1;
    flow.sport = 0x3500;
    REQUIRE(writer->flow(flow, 2));
    REQUIRE(writer->lost({1, 2, 3}));
    const Address way_to{IpFamily::ipv6, {0xfd, 0x7a, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1}};
    REQUIRE(writer->way({"fd7a::/48", way_to, {"unicast", "tailscale0", std::nullopt, 52, "fd7a::/48"}}));
    REQUIRE(writer->finish(1'700'000'009'000'000'000));
    CHECK(writer->lost_frames() == 0);
    std::ifstream in(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
}

Result<ReadResult> read_text(const std::string& bytes, Collected& collected) {
    std::istringstream in(bytes);
    return read(in, "x.rec", collected);
}

std::string error_of(const std::string& bytes) {
    Collected collected;
    const auto result = read_text(bytes, collected);
    REQUIRE_FALSE(result);
    CHECK(collected.metas.empty());
    return result.error().message;
}

std::string warning_of(const std::string& bytes) {
    Collected collected;
    const auto result = read_text(bytes, collected);
    REQUIRE(result);
    CHECK(collected.metas.size() == 1);
    return result->warning;
}

template <typename T>
std::string raw(const T& value) {
    static_assert(std::is_trivially_copyable_v<T>);
    return {reinterpret_cast<const char*>(&value), sizeof value};
}

std::string frame(std::uint32_t type, const std::string& payload) {
    return raw(type) + raw(static_cast<std::uint32_t>(payload.size())) + payload;
}

std::string beginning() {
    return raw(Header{}) + frame(1, to_json(sample_meta()));
}

mode_t mode_of(const std::string& path) {
    struct stat status {};
    REQUIRE(stat(path.c_str(), &status) == 0);
    return status.st_mode & 07777;
}

} // namespace

TEST_CASE("recording: what was written is read, in its order") {
    const Directory directory;
    sample_file(directory);
    Collected got;
    const auto result = read(directory / "sample", got);
    REQUIRE(result);
    CHECK(result->warning.empty());

    REQUIRE(got.metas.size() == 1);
    const Meta& meta = got.metas[0];
    CHECK(meta.machine.names.reasons == sample_meta().machine.names.reasons);
    REQUIRE(got.reason_names.size() == 1);
    CHECK(got.reason_names[0].reasons.at(0x30001) == "OVS_DROP_LAST_ACTION");
    CHECK(meta.machine.realtime_minus_mono_ns == 1'700'000'000'000'000'000);
    CHECK(meta.machine.own_netns == 4026531840);
    CHECK(meta.machine.netns_names.at(4026532500) == "blue");
    CHECK(meta.machine.host == "web-1");
    CHECK(meta.machine.kernel == "6.8.0");
    CHECK(meta.machine.version == "0.1.0");
    CHECK(meta.start.time_ns == -5);
    CHECK(meta.start.filter == "100.100.0.0/16, both ways");
    CHECK(meta.start.capabilities.nftables.exactness == Exactness::exact);
    CHECK(meta.start.capabilities.iptables_nft.exactness == Exactness::unavailable);
    CHECK(meta.start.capabilities.iptables_legacy.exactness == Exactness::inferred);
    CHECK(meta.start.capabilities.iptables_legacy.reason == "from counters");

    REQUIRE(got.snapshots.size() == 1);
    const auto& snapshot = got.snapshots[0];
    CHECK(snapshot.kind == resolve_rule::SnapshotKind::ip6_tables);
    CHECK(snapshot.netns == 4026531840);
    CHECK(snapshot.generation == 17);
    CHECK(snapshot.problems == std::vector<std::string>{"could not read nat"});
    REQUIRE(snapshot.tables.size() == 1);
    CHECK(snapshot.tables[0].family == RuleFamily::ip6);
    CHECK(snapshot.tables[0].handle == 3u);
    REQUIRE(snapshot.tables[0].sets.size() == 1);
    const auto& set = snapshot.tables[0].sets[0];
    CHECK((set.name == "blocked" && !set.is_map && set.may_change));
    CHECK(set.elements == "10.0.0.1 comment \"x\"");
    REQUIRE(snapshot.tables[0].chains.size() == 2);
    const auto& chain = snapshot.tables[0].chains[0];
    CHECK(chain.name == "INPUT");
    CHECK(chain.hook == Hook::input);
    CHECK(chain.policy_offset == 900u);
    CHECK(chain.policy == "drop");
    CHECK_FALSE(snapshot.tables[0].chains[1].policy);
    CHECK_FALSE(chain.handle);
    CHECK(chain.backend == Backend::iptables_legacy);
    REQUIRE(chain.rules.size() == 2);
    CHECK(chain.rules[0].text ==
          "-A ts-input -s 100.64.0.0/10 ! -i tailscale0 -j DROP -m comment --comment \"\xc3\xa9 \\ \xef\xbf\xbd\"");
    CHECK(chain.rules[0].offset == 1234u);
    CHECK(chain.rules[0].verdict == "drop");
    CHECK_FALSE(chain.rules[0].is_goto);
    CHECK(chain.rules[1].handle == 0xfedcba9876543210u);
    CHECK(chain.rules[1].jump_offset == 5u);
    CHECK(chain.rules[1].is_goto);

    REQUIRE(got.looks.size() == 1);
    const resolve_rule::Look& look = got.looks[0];
    CHECK(look.kind == resolve_rule::SnapshotKind::ip6_tables);
    CHECK(look.netns == 4026531840);
    CHECK(look.generation == 17);
    CHECK((look.begin_ns == 1 && look.end_ns == 2));
    CHECK(look.packets == std::vector<std::uint64_t>{7, resolve_rule::Look::no_counter});
    CHECK(look.bytes == std::vector<std::uint64_t>{700, resolve_rule::Look::no_counter});
    CHECK(look.problem == "none");

    REQUIRE(got.ways.size() == 1);
    CHECK(got.ways[0].range == "fd7a::/48");
    CHECK(got.ways[0].to.text() == "fd7a::1");
    CHECK((got.ways[0].route.dev == "tailscale0" && got.ways[0].route.table == 52));

    REQUIRE(got.stops.size() == 1);
    const Stopped& stopped = got.stops[0];
    CHECK(stopped.time_ns == 1'700'000'031'000'000'000);
    CHECK(stopped.cause.example.netns.inode == 4026532500);
    CHECK(stopped.cause.example.site.kind == DropKind::policy);
    CHECK(stopped.cause.example.site.reason == "NETFILTER_DROP");
    CHECK(stopped.cause.example.site.hook == Hook::forward);
    REQUIRE(stopped.cause.example.rule);
    CHECK(stopped.cause.example.rule->path.size() == 1);
    CHECK(stopped.cause.example.rule->confidence == Confidence::inferred);
    CHECK(stopped.cause.example.rule->evidence == "its counter");
    CHECK(stopped.cause.example.rule->stale);
    CHECK((stopped.cause.packets == 6 && stopped.cause.first_ns == 5 && stopped.cause.last_ns == 7));
    CHECK(stopped.change.changers.size() == 2);
    REQUIRE(stopped.chain);
    CHECK((stopped.chain->family == RuleFamily::ip6 && stopped.chain->name == "FORWARD"));
    CHECK((stopped.changes == 3 && stopped.seen_since_ns == 8));
    CHECK(stopped.seen.sent.packets == 4);
    CHECK(stopped.seen.sent.by_dev == std::map<std::string, std::uint64_t>{{"eth0", 3}, {"wlan0", 1}});
    CHECK(stopped.seen.received.packets == 0);

    REQUIRE(got.changes.size() == 1);
    const RulesetChange& change = got.changes[0];
    CHECK(change.time_ns == 1'700'000'005'000'000'000);
    CHECK(change.netns.inode == 4026532500);
    CHECK(change.backend == Backend::iptables_nft);
    CHECK(change.generation == 18);
    REQUIRE(change.changers.size() == 2);
    CHECK(change.changers[0].process.pid == 812);
    CHECK(change.changers[0].process.comm == "tailscaled\xef\xbf\xbd");
    CHECK(change.changers[0].changes == 3);
    REQUIRE(change.changers[0].parent);
    CHECK(change.changers[0].parent->comm == "systemd");
    CHECK_FALSE(change.changers[1].parent);
    CHECK(change.other_changes == 40);
    REQUIRE(change.added.size() == 1);
    CHECK(change.added[0].rule.backend == Backend::iptables_nft);
    CHECK(change.added[0].rule.family == RuleFamily::ip6);
    CHECK(change.added[0].rule.table == "filter");
    CHECK(change.added[0].rule.chain == "ts-input");
    CHECK(change.added[0].rule.number == 3u);
    CHECK(change.added[0].rule.handle == 10u);
    CHECK(change.added[0].rule.text == "-A ts-input -j DROP");
    CHECK(change.added[0].rule.verdict == "reject");
    REQUIRE(change.added[0].rule.path.size() == 1);
    CHECK(change.added[0].rule.path[0].number == 3u);
    CHECK_FALSE(change.added[0].was);
    REQUIRE(change.removed.size() == 1);
    CHECK_FALSE(change.removed[0].rule.number);
    CHECK_FALSE(change.removed[0].rule.text);
    REQUIRE(change.moved.size() == 1);
    CHECK(change.moved[0].was == 2u);
    CHECK(change.more_added == 7);
    CHECK(change.more_removed == 8);
    CHECK(change.more_moved == 9);
    CHECK(change.unknown.empty());

    REQUIRE(got.entries.size() == 1);
    CHECK(got.entries[0].key == sample_evidence().key);
    CHECK(got.entries[0].mono_ns == 81234567890);
    const Evidence& found = *got.entries[0].evidence;
    REQUIRE(found.route);
    CHECK(found.route->type == "unicast");
    CHECK(found.route->dev == "eth0");
    CHECK(found.route->gateway == sample_evidence().evidence->route->gateway);
    CHECK(found.route->table == 254);
    CHECK(found.route->matched == "default");
    CHECK(found.tailnet_peer == false);
    CHECK(found.socket_waits == true);
    REQUIRE(found.waiting);
    CHECK(found.waiting->pid == 4242);
    CHECK(found.waiting->comm == "dig\xef\xbf\xbd");
    CHECK(found.sysctls == sample_evidence().evidence->sysctls);

    REQUIRE(got.causes.size() == 2);
    CHECK(got.causes[0].packets == 1);
    CHECK(got.causes[1].packets == 2);
    CHECK(std::string(got.causes[1].table) == "filter");
    REQUIRE(got.drops.size() == 2);
    CHECK(got.drops[1].cause_id == 2);
    REQUIRE(got.flows.size() == 1);
    CHECK(got.flows[0].first.sport == 0x3500);
    CHECK(got.flows[0].second == 2);
    CHECK(got.losts == std::vector<LostCounts>{{1, 2, 3}});
    CHECK(got.ends == std::vector<std::int64_t>{1'700'000'009'000'000'000});
}

TEST_CASE("recording: truncations are noticed, and what is whole is delivered") {
    const Directory directory;
    const std::string bytes = sample_file(directory);
    const std::size_t described = beginning().size();
    const std::size_t end = bytes.size() - 16; // where the frame END starts: its header and eight bytes
    std::size_t delivered = 0;
    for (std::size_t length = 0; length < bytes.size(); length += 3) {
        Collected got;
        const auto result = read_text(bytes.substr(0, length), got);
        REQUIRE(bool(result) == (length >= described));
        CHECK((result ? result->warning : result.error().message).starts_with("x.rec "));
        CHECK(got.ends.empty());
        const std::size_t now = got.causes.size() + got.drops.size() + got.flows.size() + got.losts.size();
        CHECK(now >= delivered);
        delivered = now;
    }
    CHECK(delivered == 6);
    CHECK(warning_of(bytes.substr(0, end)) ==
          "x.rec ends without its end mark at byte " + std::to_string(end) + ": what came later was not recorded");
    CHECK(warning_of(bytes.substr(0, end + 3)) ==
          "x.rec ends in the middle of a record at byte " + std::to_string(end + 3) + ": what came later is missing");
    CHECK(warning_of(bytes.substr(0, end + 15)).find("in the middle of a record at byte " + std::to_string(end + 15)) !=
          std::string::npos);
}

TEST_CASE("recording: flipped bytes never crash and never get past the checks") {
    const Directory directory;
    const std::string bytes = sample_file(directory);
    std::mt19937 random(20240229); // the same in every run
    for (int round = 0; round < 3000; ++round) {
        std::string damaged = bytes;
        for (int flips = 1 + random() % 4; flips > 0; --flips) {
            damaged[random() % damaged.size()] = static_cast<char>(random());
        }
        Collected got;
        (void)read_text(damaged, got);
        for (const auto& drop : got.drops) {
            REQUIRE((drop.family == 0 || drop.family == 4 || drop.family == 6));
        }
        for (const auto& cause : got.causes) {
            REQUIRE(cause.steps <= TSDT_PATH_MAX);
        }
    }
}

TEST_CASE("recording: other files are refused with one sentence") {
    CHECK(error_of("") == "x.rec is not a tsdroptrace recording: expected a file that tsdroptrace --record wrote");
    CHECK(error_of(std::string(4096, '\0')).find("is not a tsdroptrace recording") != std::string::npos);
    CHECK(error_of("{\"type\": \"start\"}").find("is not a tsdroptrace recording") != std::string::npos);

    Header header;
    header.version = format_version + 1;
    CHECK(error_of(raw(header)) ==
          "x.rec was made by a newer tsdroptrace (format 10, this one reads 9): replay it with that one");
    header.version = 1;
    CHECK(error_of(raw(header)).find("another build of tsdroptrace (format 1)") != std::string::npos);
    header = {};
    header.byte_order = 0x04030201;
    CHECK(error_of(raw(header)).find("the other byte order") != std::string::npos);
    header = {};
    header.drop_size += 8;
    CHECK(error_of(raw(header)).find("another build") != std::string::npos);

    CHECK(error_of(raw(Header{})).find("ends without its end mark at byte 32") != std::string::npos);
    CHECK(error_of(raw(Header{}) + frame(7, raw(End{}))).find("does not begin with a description") !=
          std::string::npos);
    CHECK(error_of(raw(Header{}) + frame(1, "{}")).find("the description of the run has a wrong or no") !=
          std::string::npos);
    CHECK(error_of(raw(Header{}) + frame(1, "[[[[")).find("is not a JSON object") != std::string::npos);

    Collected collected;
    CHECK(read("/nonexistent/x", collected).error().message == "--replay /nonexistent/x: No such file or directory");
    CHECK_FALSE(read("/", collected));
}

TEST_CASE("recording: a change of a ruleset holds no more than it may") {
    REQUIRE(ruleset_from_json(to_json(sample_change())));
    CHECK_FALSE(ruleset_from_json("[]"));
    CHECK_FALSE(ruleset_from_json("{}"));
    RulesetChange change = sample_change();
    change.removed.resize(RulesetChange::max_rules + 1);
    CHECK(ruleset_from_json(to_json(change)).error().message.find("more rules") != std::string::npos);
    change = sample_change();
    change.changers.resize(RulesetChange::max_changers + 1);
    CHECK_FALSE(ruleset_from_json(to_json(change)));
    Stopped stopped = sample_stopped();
    REQUIRE(stopped_from_json(to_json(stopped)));
    stopped.cause.example.site.kind = DropKind::hook; // has no rule to speak of
    CHECK_FALSE(stopped_from_json(to_json(stopped)));
    stopped = sample_stopped();
    stopped.change = change;
    CHECK_FALSE(stopped_from_json(to_json(stopped)));
}

TEST_CASE("recording: damage after the beginning ends the replay with a warning") {
    CHECK(warning_of(beginning() + frame(99, "")).find("type 99 does not exist") != std::string::npos);
    CHECK(warning_of(beginning() + frame(4, "short")).find("a record of type 4 has 5 bytes") != std::string::npos);
    CHECK(warning_of(beginning() + frame(1, to_json(sample_meta()))).find("describes the run twice") !=
          std::string::npos);
    CHECK(warning_of(beginning() + raw(std::uint32_t{2}) + raw(~std::uint32_t{0})).find("is damaged at byte") !=
          std::string::npos);
    tsdt_cause cause = sample_cause(1);
    cause.steps = 0xffff;
    CHECK(warning_of(beginning() + frame(3, raw(cause))).find("the number of its steps is 65535") != std::string::npos);
    // Claims the largest ruleset there may be, has a few bytes of it.
    CHECK(
        warning_of(beginning() + raw(std::uint32_t{2}) + raw(max_snapshot) + "{}").find("in the middle of a record") !=
        std::string::npos);
    CHECK(warning_of(beginning() + frame(7, raw(End{})) + "whatever").empty());
}

TEST_CASE("recording: JSON of the wrong shape is refused") {
    const std::string good = to_json(sample_snapshot());
    REQUIRE(snapshot_from_json(good));
    const std::pair<const char*, const char*> changes[] = {
        {"\"ip6_tables\"", "\"ipx_tables\""},
        {"\"ip6_tables\"", "3"},
        {"\"generation\":17", "\"generation\":-17"},
        {"\"generation\":17", "\"generation\":4294967296"},
        {"\"generation\":17", "\"generation\":1.5"},
        {"\"generation\":17", "\"generation\":null"},
        {"\"generation\":17,", ""},
        {"\"hook\":\"input\"", "\"hook\":\"INPUT\""},
        {"\"is_goto\":true", "\"is_goto\":1"},
        {"\"handle\":3", "\"handle\":[3]"},
        {"\"problems\":[", "\"problems\":[0,"},
        {"\"tables\":[", "\"tables\":[[],"},
        {"\"name\":\"filter\"", "\"name\":{}"},
    };
    for (const auto& [from, to] : changes) {
        std::string bad = good;
        const auto at = bad.find(from);
        INFO(from << " -> " << to);
        REQUIRE(at != std::string::npos);
        bad.replace(at, std::strlen(from), to);
        CHECK_FALSE(snapshot_from_json(bad));
    }
    for (const std::string& text : {std::string(), std::string("null"), std::string("[]"), std::string("{"),
                                    std::string(1 << 20, '['), "{\"tables\":" + std::string(1 << 20, '[')}) {
        CHECK_FALSE(snapshot_from_json(text));
    }
    for (const char* key : {"-1", "x", "4294967296", "1.0", "", "[1]"}) {
        std::string bad = to_json(sample_meta());
        bad.replace(bad.find("\"8\""), 3, std::string("\"") + key + "\"");
        CHECK_FALSE(meta_from_json(bad));
    }
}

TEST_CASE("recording: the file is private, regular and ours") {
    const Directory directory;
    const mode_t before = umask(0);
    CHECK(Writer::create(directory / "new"));
    umask(before);
    CHECK(mode_of(directory / "new") == 0600);

    std::ofstream(directory / "old") << std::string(100000, 'x');
    REQUIRE(chmod((directory / "old").c_str(), 0644) == 0);
    CHECK(Writer::create(directory / "old"));
    CHECK(mode_of(directory / "old") == 0600);
    CHECK(std::filesystem::file_size(directory / "old") == sizeof(Header));

    std::ofstream(directory / "target") << "keep me";
    std::filesystem::create_symlink(directory / "target", directory / "link");
    const auto link = Writer::create(directory / "link");
    REQUIRE_FALSE(link);
    CHECK(link.error().message ==
          "--record " + (directory / "link") + ": is a symbolic link: expected a new or a regular file");
    CHECK(std::filesystem::file_size(directory / "target") == 7);

    REQUIRE(mkfifo((directory / "fifo").c_str(), 0600) == 0);
    CHECK_FALSE(Writer::create(directory / "fifo"));
    CHECK_FALSE(Writer::create(directory.path.string()));
    CHECK(Writer::create(directory / "no/such").error().message.ends_with("No such file or directory"));
    CHECK(Writer::create("/dev/null").error().message.find("not a regular file") != std::string::npos);

    if (geteuid() == 0) {
        std::ofstream(directory / "theirs") << "theirs";
        REQUIRE(chown((directory / "theirs").c_str(), 65534, 65534) == 0);
        CHECK(Writer::create(directory / "theirs").error().message.find("belongs to another user") !=
              std::string::npos);
        CHECK(std::filesystem::file_size(directory / "theirs") == 6);
    }
}

TEST_CASE("recording: a full disk is told once, and what was written can be replayed") {
    const Directory directory;
    const std::string path = directory / "full";
    // Stands in for the full disk: beyond the limit write() first writes less, then fails.
    rlimit before{};
    REQUIRE(getrlimit(RLIMIT_FSIZE, &before) == 0);
    const auto old_handler = std::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit{100'000, before.rlim_max};
    REQUIRE(setrlimit(RLIMIT_FSIZE, &limit) == 0);

    int failures = 0;
    std::string message;
    std::uint64_t lost = 0;
    {
        auto writer = Writer::create(path);
        if (writer) {
            (void)writer->meta(sample_meta());
            for (std::uint32_t i = 1; i <= 1000; ++i) { // 216 bytes each
                if (const auto status = writer->drop(sample_drop(i)); !status) {
                    ++failures;
                    message = status.error().message;
                }
            }
            CHECK(writer->flush());
            CHECK(writer->finish(1));
            lost = writer->lost_frames();
        }
    }
    setrlimit(RLIMIT_FSIZE, &before);
    std::signal(SIGXFSZ, old_handler);

    CHECK(failures == 1);
    CHECK(message == "--record " + path + ": File too large: the recording ends here, tracing goes on");
    Collected got;
    const auto result = read(path, got);
    REQUIRE(result);
    CHECK(result->warning.find("ends without its end mark") != std::string::npos);
    CHECK(got.drops.size() + lost == 1000);
    CHECK(got.drops.size() > 200);
    CHECK(got.drops.back().cause_id == got.drops.size());
}

TEST_CASE("recording: what was handed over survives a run that does not finish") {
    const Directory directory;
    {
        auto writer = Writer::create(directory / "cut");
        REQUIRE(writer);
        REQUIRE(writer->meta(sample_meta()));
        REQUIRE(writer->drop(sample_drop(1)));
        REQUIRE(writer->flush());
        Collected so_far; // as after SIGKILL
        REQUIRE(read(directory / "cut", so_far));
        CHECK(so_far.drops.size() == 1);
        REQUIRE(writer->drop(sample_drop(2)));
    }
    Collected got;
    const auto result = read(directory / "cut", got);
    REQUIRE(result);
    CHECK_FALSE(result->warning.empty());
    CHECK(got.drops.size() == 2);
}

TEST_CASE("recording: a ruleset that is too large is left out alone") {
    const Directory directory;
    resolve_rule::Snapshot snapshot = sample_snapshot();
    snapshot.problems.assign(1, std::string(max_snapshot, 'x'));
    auto writer = Writer::create(directory / "large");
    REQUIRE(writer);
    REQUIRE(writer->meta(sample_meta()));
    CHECK(writer->snapshot(snapshot).error().message.find("too large to record") != std::string::npos);
    snapshot.problems.assign(1, std::string(max_snapshot / 2, 'x'));
    REQUIRE(writer->snapshot(snapshot));
    REQUIRE(writer->finish(1));
    CHECK(writer->lost_frames() == 1);
    Collected got;
    REQUIRE(read(directory / "large", got));
    REQUIRE(got.snapshots.size() == 1);
    CHECK(got.snapshots[0].problems[0].size() == max_snapshot / 2);
    CHECK(got.ends.size() == 1);
}
