// SPDX-License-Identifier: GPL-2.0-only
#include <algorithm>
#include <array>
#include <cstring>
#include <ctime>
#include <fstream>
#include <functional>
#include <iterator>
#include <map>
#include <sstream>
#include <thread>

#include <arpa/inet.h>
#include <fmt/format.h>
#include <linux/netfilter_bridge/ebtables.h>
#include <sched.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include "catch.h"
#include "resolve_rule/ebt_blob.h"
#include "resolve_rule/iptables_save.h"
#include "resolve_rule/legacy_blob.h"
#include "resolve_rule/legacy_path.h"
#include "resolve_rule/live_snapshots.h"
#include "resolve_rule/nft_listing.h"
#include "resolve_rule/resolve_rule.h"
#include "resolve_rule/rule_words.h"
#include "resolve_rule/ruleset_reader.h"
#include "util/netns.h"
#include "util/subprocess.h"

using namespace tsdroptrace;
using namespace tsdroptrace::resolve_rule;

namespace {

const char* const cgnat_rule = "-A ts-input -s 100.64.0.0/10 ! -i tailscale0 -j DROP";

std::string fixture(const std::string& name) {
    std::ifstream file(std::string(TSDROPTRACE_FIXTURES "/rulesets/") + name);
    REQUIRE(file);
    return {std::istreambuf_iterator<char>(file), {}};
}

Snapshot listed(std::string_view text, std::size_t max_rules = 1000) {
    Snapshot snapshot;
    read_nft_listing(text, max_rules, snapshot);
    return snapshot;
}

// A listing with iptables' words on its table ip filter.
Snapshot listed_with_words(const std::string& name) {
    Snapshot snapshot = listed(fixture(name + ".listing"));
    use_iptables_words(snapshot.tables.at(0), read_iptables_save(fixture(name + ".save")));
    return snapshot;
}

struct BlobFixture {
    BlobInfo info;
    std::vector<std::byte> bytes;
};

BlobFixture blob_fixture(const std::string& name) {
    BlobFixture blob;
    std::istringstream in(fixture(name + ".blob"));
    std::string word;
    in >> word >> blob.info.valid_hooks >> word;
    for (auto& value : blob.info.hook_entry)
        in >> value;
    in >> word;
    for (auto& value : blob.info.underflow)
        in >> value;
    in >> word >> blob.info.num_entries >> word;
    REQUIRE(word == "entries");
    while (in >> word)
        for (std::size_t i = 0; i < word.size(); i += 2)
            blob.bytes.push_back(static_cast<std::byte>(std::stoi(word.substr(i, 2), nullptr, 16)));
    return blob;
}

SnapshotTable parsed(const std::string& name, RuleFamily family = RuleFamily::ip) {
    BlobFixture blob = blob_fixture(name);
    auto table = parse_ipt_blob(family, "filter", blob.info, blob.bytes);
    REQUIRE(table);
    return *table;
}

Snapshot legacy_snapshot(const std::string& name) {
    Snapshot snapshot;
    snapshot.kind = SnapshotKind::ip_tables;
    snapshot.tables.push_back(parsed(name));
    use_iptables_words(snapshot.tables[0], read_iptables_save(fixture(name + ".save")));
    return snapshot;
}

const SnapshotChain& chain_of(const SnapshotTable& table, std::string_view name) {
    auto chain = std::find_if(table.chains.begin(), table.chains.end(), [&](const auto& c) { return c.name == name; });
    REQUIRE(chain != table.chains.end());
    return *chain;
}

std::vector<std::string> texts(const SnapshotChain& chain) {
    std::vector<std::string> result;
    for (const SnapshotRule& rule : chain.rules)
        result.push_back(rule.text);
    return result;
}

std::string text_of(const std::vector<PathStep>& path) {
    std::string result;
    for (const PathStep& step : path)
        result += (result.empty() ? "" : " > ") + step.chain + (step.number ? " " + std::to_string(*step.number) : "");
    return result;
}

struct OneSnapshot : SnapshotSource {
    std::shared_ptr<const Snapshot> snapshot;
    int asked = 0;
    SnapshotKind kind{};
    std::uint32_t netns = 0, generation = 0;

    explicit OneSnapshot(Snapshot s) : snapshot(std::make_shared<Snapshot>(std::move(s))) {}
    OneSnapshot() = default;
    std::shared_ptr<const Snapshot> get(SnapshotKind k, std::uint32_t n, std::uint32_t g) override {
        asked++;
        kind = k, netns = n, generation = g;
        return snapshot;
    }
};

template <std::size_t size>
void put(char (&to)[size], std::string_view text) {
    std::memset(to, 0, size);
    text.copy(to, size - 1);
}

struct Step {
    std::string_view chain;
    std::uint64_t chain_handle, handle;
    std::uint32_t number;
};

tsdt_cause nft_cause(std::string_view table, std::uint64_t table_handle, std::vector<Step> steps,
                     tsdt_source source = TSDT_SOURCE_NFT_RULE, std::uint16_t family = 2) {
    tsdt_cause cause{};
    cause.id = 1;
    cause.key.source = source;
    cause.family = family;
    cause.table_handle = table_handle;
    put(cause.table, table);
    cause.steps = static_cast<std::uint16_t>(steps.size());
    for (std::size_t i = 0; i < steps.size(); i++) {
        put(cause.step[i].chain, steps[i].chain);
        cause.step[i].chain_handle = steps[i].chain_handle;
        cause.step[i].handle = steps[i].handle;
        cause.step[i].number = steps[i].number;
    }
    return cause;
}

tsdt_cause legacy_cause(std::uint32_t offset, std::uint8_t hook, std::string_view chain, std::uint32_t number,
                        tsdt_source source = TSDT_SOURCE_LEGACY_RULE) {
    tsdt_cause cause{};
    cause.id = 1;
    cause.key.source = source;
    cause.key.offset = offset;
    cause.key.hook = hook;
    cause.family = 2;
    put(cause.table, "filter");
    cause.steps = chain.empty() ? 0 : 1;
    put(cause.step[0].chain, chain);
    cause.step[0].number = number;
    return cause;
}

tsdt_drop drop_with(std::vector<std::uint32_t> jumpstack = {}) {
    tsdt_drop drop{};
    std::fill(std::begin(drop.jumpstack), std::end(drop.jumpstack),
              ~0u); // as the kernel's side marks "outside the blob"
    std::copy(jumpstack.begin(), jumpstack.end(), drop.jumpstack);
    return drop;
}

tsdt_cause incident_nft() {
    return nft_cause("filter", 1, {{"INPUT", 1, 6, 1}, {"ts-input", 5, 17, 5}});
}

// Offset of the rule with that number.
std::uint32_t at(const SnapshotTable& table, std::string_view chain, std::size_t number) {
    return chain_of(table, chain).rules.at(number - 1).offset.value();
}

constexpr std::uint8_t hook_input = 1, hook_forward = 2; // enum nf_inet_hooks

} // namespace

// ---- words ----

TEST_CASE("resolve_rule: the verdict of a rule as nft prints it", "[resolve_rule]") {
    auto [rule, verdict] = GENERATE(table<std::string, std::string>({
        {"iifname != \"tailscale0\" ip saddr 100.64.0.0/10 counter drop", "drop"},
        {"ip saddr 1.1.1.1 drop comment \"goto accept\"", "drop"},
        {"log prefix \"drop\" accept", "accept"},
        {"tcp dport vmap { 22 : accept, 23 : drop }", ""},
        {"ip saddr vmap @m", ""},
        {"tcp dport { 22, 80 } drop", "drop"},
        {"counter jump ts-input", "jump"},
        {"goto c2", "goto"},
        {"iifname \"eth0\" jump { ip saddr 1.2.3.4 drop; tcp dport 80 drop }", "jump"},
        {"meta l4proto tcp reject with tcp reset", "reject"},
        {"reject", "reject"},
        {"return", "return"},
        {"queue num 3 bypass", "queue"},
        {"meta mark set 0x00000005", ""},
        {"", ""},
        {"comment \"drop\"", ""},
        {"\"drop", ""}, // unbalanced
    }));
    CAPTURE(rule);
    CHECK(nft_verdict(rule) == verdict);
}

TEST_CASE("resolve_rule: the verdict of an iptables line", "[resolve_rule]") {
    auto [rule, verdict] = GENERATE(table<std::string, std::string>({
        {cgnat_rule, "drop"},
        {"-A X -m comment --comment \"x -j DROP\" -j ACCEPT", "accept"},
        {"-A X -m comment --comment \"say \\\" -j DROP\" -j RETURN", "return"},
        {"-A X -j REJECT --reject-with icmp-port-unreachable", "reject"},
        {"-A X -p icmp -g other", "goto"},
        {"-A X -p icmp", ""},
        {"-A X -j ts-input", ""},
        {"-A -j -j DROP", "drop"}, // a chain with an odd name
        {"-A", ""},
    }));
    CAPTURE(rule);
    CHECK(iptables_verdict(rule) == verdict);
}

TEST_CASE("resolve_rule: iptables lines that leave something out are not believed", "[resolve_rule]") {
    // Left: what iptables-nft-save 1.8.9 prints for the rule on the right.
    CHECK(says_the_same(cgnat_rule, "iifname != \"tailscale0\" ip saddr 100.64.0.0/10 counter drop"));
    CHECK(says_the_same("-A t -p tcp -m tcp --dport 5:9 -j DROP", "tcp dport 5-9 drop"));
    CHECK_FALSE(says_the_same("-A t -s 2.2.2.2/32 -j DROP", "ip saddr 1.1.1.1-2.2.2.2 drop"));
    CHECK_FALSE(says_the_same("-A t -j DROP", "iifname { \"eth0\", \"eth1\" } drop"));
    CHECK_FALSE(says_the_same("-A t -p tcp", "tcp dport vmap { 22 : drop }"));
    CHECK_FALSE(says_the_same("-A t -j DROP", "ip saddr @blocked drop"));
    CHECK_FALSE(says_the_same("-A t -j ACCEPT", "drop"));
    // ... unless an xtables module is behind it.
    CHECK(says_the_same("-A t -m iprange --src-range 1.1.1.1-2.2.2.2 -j REJECT --reject-with icmp-port-unreachable",
                        "ip saddr 1.1.1.1-2.2.2.2 counter reject"));
    CHECK(says_the_same("-A t -p tcp -m multiport --dports 22,80 -j DROP",
                        "meta l4proto tcp tcp dport { 22, 80 }  counter drop"));
}

// ---- nft's listing ----

TEST_CASE("resolve_rule: a listing with everything that is hard", "[resolve_rule]") {
    Snapshot snapshot = listed(fixture("native.listing"));
    CHECK(snapshot.problems.empty());
    REQUIRE(snapshot.tables.size() == 6);

    const SnapshotTable& inet = snapshot.tables[0];
    CHECK(inet.family == RuleFamily::inet);
    CHECK(inet.name == "t");
    CHECK(inet.handle);
    REQUIRE(inet.chains.size() == 2); // sets, maps, counters, quotas, limits and helpers are none

    const SnapshotChain& c2 = inet.chains[0];
    CHECK(c2.name == "c2");
    CHECK(c2.handle == 1u);
    CHECK_FALSE(c2.hook);
    CHECK(texts(c2) ==
          std::vector<std::string>{"counter drop", "reject", "ip saddr 1.1.1.1 comment \"multi\nline drop\""});
    CHECK(c2.rules[2].handle == 11u);

    const SnapshotChain& c1 = inet.chains[1];
    CHECK(c1.name == "c1");
    CHECK(c1.handle == 2u);
    CHECK(c1.hook == Hook::input);
    CHECK(c1.backend == Backend::nftables);
    REQUIRE(c1.rules.size() == 11);
    CHECK(c1.rules[1].text == "ip saddr @bl counter name \"cnt\" drop comment \"say # handle 99\"");
    CHECK(c1.rules[1].handle == 13u);
    CHECK(c1.rules[1].verdict == "drop");
    CHECK(c1.rules[4].text == "iifname \"eth0\" jump { ip saddr 1.2.3.4 drop; tcp dport 80 drop }");
    CHECK(c1.rules[4].handle == 21u);
    CHECK(c1.rules[5].text == "tcp dport 81 goto { counter accept }");
    CHECK(c1.rules[6].text == "log prefix \"x # handle 3 { \"");
    CHECK(c1.rules[9].verdict == "reject");
    CHECK(c1.rules[10].handle == 29u);

    CHECK(snapshot.tables[1].family == RuleFamily::netdev);
    CHECK(snapshot.tables[1].chains.at(0).hook == Hook::ingress);
    CHECK(snapshot.tables[2].family == RuleFamily::bridge);
    CHECK(snapshot.tables[3].family == RuleFamily::arp);
    CHECK(snapshot.tables[4].chains.at(0).hook == Hook::prerouting);
    CHECK(texts(snapshot.tables[4].chains.at(0)) ==
          std::vector<std::string>{"ip6 saddr fe80::/10 drop", "rt type 0 drop"});
    CHECK(texts(snapshot.tables[5].chains.at(0)) == std::vector<std::string>{"drop"}); // flags dormant
}

TEST_CASE("resolve_rule: a listing that is cut anywhere gives whole tables or none", "[resolve_rule]") {
    for (const char* name : {"native.listing", "extensions-iptables-nft.listing"}) {
        std::string text = fixture(name);
        Snapshot whole = listed(text);
        for (std::size_t length = 0; length < text.size(); length++) {
            CAPTURE(name, length);
            Snapshot cut = listed(std::string_view(text).substr(0, length));
            REQUIRE(cut.tables.size() <= whole.tables.size());
            for (std::size_t t = 0; t < cut.tables.size(); t++) {
                REQUIRE(cut.tables[t].chains.size() == whole.tables[t].chains.size());
                for (std::size_t c = 0; c < cut.tables[t].chains.size(); c++)
                    REQUIRE(texts(cut.tables[t].chains[c]) == texts(whole.tables[t].chains[c]));
            }
        }
    }
}

TEST_CASE("resolve_rule: a listing with too many rules loses whole tables and says so", "[resolve_rule]") {
    Snapshot all = listed(fixture("native.listing"), 20);
    CHECK(all.tables.size() == 6); // 14 + 1 + 1 + 1 + 2 + 1 rules
    Snapshot some = listed(fixture("native.listing"), 16);
    CHECK(some.tables.size() == 3);
    REQUIRE(some.problems.size() == 1);
    CHECK(some.problems[0] == "more than 16 nf_tables rules: table ar and what follows it were left out");
}

TEST_CASE("resolve_rule: names and comments that no nft user would write", "[resolve_rule]") {
    Snapshot snapshot = listed("table ip a b { # handle 3 progname fw\n"
                               "\tcomment \"two\n"
                               "}\n"
                               "table ip6 fake { # handle 9\"\n"
                               "\n"
                               "\tchain x { # handle 7 { # handle 1\n"
                               "\t\tcomment \"12\" disk\"\n"
                               "\t\ttype filter hook egress device \"eth0\" priority filter; policy accept;\n"
                               "\t\tlog prefix \"odd\" quote\" drop # handle 4\n"
                               "\t\tsomething that a newer nft prints\n"
                               "\t\tdrop # handle 5\n"
                               "\t}\n"
                               "}\n");
    REQUIRE(snapshot.tables.size() == 1);
    CHECK(snapshot.tables[0].name == "a b");
    CHECK(snapshot.tables[0].handle == 3u);
    REQUIRE(snapshot.tables[0].chains.size() == 1);
    const SnapshotChain& chain = snapshot.tables[0].chains[0];
    CHECK(chain.name == "x { # handle 7");
    CHECK(chain.handle == 1u);
    CHECK(chain.hook == Hook::egress);
    CHECK(texts(chain) == std::vector<std::string>{"log prefix \"odd\" quote\" drop", "drop"});

    CHECK(listed("not a listing\nat all").tables.empty());
    CHECK(listed("table martian x { # handle 1\n}\n").problems.size() == 1);
    CHECK(listed(std::string("table ip t { # handle 1\n\tchain c { # handle 1\n\t\tdrop comment \"") +
                 std::string(100'000, 'x') + "\" # handle 2\n\t}\n}\n")
              .tables.at(0)
              .chains.at(0)
              .rules.at(0)
              .text == ""); // too long to keep; its place is kept
}

// ---- iptables' words ----

TEST_CASE("resolve_rule: iptables-nft's rules get iptables' words", "[resolve_rule]") {
    Snapshot snapshot = listed_with_words("tailscale-iptables-nft");
    const SnapshotTable& table = snapshot.tables.at(0);
    REQUIRE(table.chains.size() == 5);
    for (const SnapshotChain& chain : table.chains) {
        CAPTURE(chain.name);
        CHECK(chain.backend == Backend::iptables_nft);
    }
    const SnapshotChain& input = chain_of(table, "ts-input");
    CHECK(input.rules.at(4).text == cgnat_rule);
    CHECK(input.rules.at(4).handle == 17u);
    CHECK(input.rules.at(4).verdict == "drop");
    CHECK(chain_of(table, "ts-forward").rules.at(3).text ==
          "-A ts-forward -o tailscale0 -m conntrack ! --ctstate RELATED,ESTABLISHED -j DROP");
}

TEST_CASE("resolve_rule: xtables modules that nft prints its own way are still iptables' rules", "[resolve_rule]") {
    Snapshot snapshot = listed_with_words("extensions-iptables-nft");
    const SnapshotChain& chain = chain_of(snapshot.tables.at(0), "ts-input");
    CHECK(chain.backend == Backend::iptables_nft);
    REQUIRE(chain.rules.size() == 10);
    CHECK(chain.rules[5].text ==
          "-A ts-input -p tcp -m multiport --dports 22,80 -m comment --comment \"a # handle 9 { \\\"x\" -j DROP");
    CHECK(chain.rules[8].text == "-A ts-input -m string --string \"a \\\"b\" --algo bm -j DROP");
}

TEST_CASE("resolve_rule: chains that iptables-nft misprints or does not reach stay nft's", "[resolve_rule]") {
    Snapshot snapshot = listed(fixture("mixed.listing"));
    SnapshotTable& table = snapshot.tables.at(0);
    CHECK(use_iptables_words(table, read_iptables_save(fixture("mixed.save"))) == 4);

    std::map<std::string, Backend> backends;
    for (const SnapshotChain& chain : table.chains)
        backends[chain.name] = chain.backend;
    CHECK(backends == std::map<std::string, Backend>{{"DOCKER-USER", Backend::iptables_nft},
                                                     {"INPUT", Backend::iptables_nft},
                                                     {"ranges", Backend::nftables},
                                                     {"sets", Backend::nftables},
                                                     {"ts-input", Backend::nftables},
                                                     {"verdicts", Backend::nftables}});
    CHECK(chain_of(table, "ranges").rules.at(0).text == "ip saddr 1.1.1.1-2.2.2.2 drop");
    CHECK(chain_of(table, "ts-input").rules.at(2).text ==
          "iifname != \"tailscale0*\" ip saddr 100.64.0.0/10 counter drop");

    // What it prints, with exit code 0, for a table with rules that it knows it cannot print.
    Snapshot again = listed(fixture("mixed.listing"));
    CHECK(use_iptables_words(again.tables.at(0),
                             read_iptables_save("# Table `filter' is incompatible, use 'nft' tool.\n")) == 6);
}

// ---- legacy tables ----

TEST_CASE("resolve_rule: a legacy table's blob", "[resolve_rule]") {
    SnapshotTable table = parsed("tailscale-legacy");
    CHECK(table.name == "filter");
    REQUIRE(table.chains.size() == 5);

    // struct ipt_entry is 112 bytes, a verdict 40, the head of a user chain 176.
    const SnapshotChain& input = table.chains[0];
    CHECK(input.name == "INPUT");
    CHECK(input.hook == Hook::input);
    CHECK(input.offset == 0u);
    CHECK(input.policy_offset == 152u);
    CHECK(input.backend == Backend::iptables_legacy);
    REQUIRE(input.rules.size() == 1);
    CHECK(input.rules[0].verdict == "jump");

    const SnapshotChain& ts_forward = table.chains[3];
    CHECK(ts_forward.name == "ts-forward");
    CHECK(ts_forward.offset == 936u);
    CHECK_FALSE(ts_forward.hook);
    CHECK(ts_forward.rules.size() == 5); // the final RETURN is not a rule
    CHECK(ts_forward.rules.at(0).verdict == "");
    CHECK(ts_forward.rules.at(2).verdict == "drop");

    const SnapshotChain& ts_input = table.chains[4];
    CHECK(input.rules[0].jump_offset == ts_input.offset);
    REQUIRE(ts_input.rules.size() == 5);
    CHECK(ts_input.rules[2].text == "-A ts-input -p udp -m udp [...] -j ACCEPT"); // honest about what it cannot read
    CHECK(ts_input.rules[3].verdict == "return");
    CHECK(ts_input.rules[4].text == cgnat_rule);
    CHECK(ts_input.rules[4].verdict == "drop");
}

TEST_CASE("resolve_rule: where a rule has no details its own words are iptables' words", "[resolve_rule]") {
    auto [name, family, compared] = GENERATE(table<std::string, RuleFamily, int>({
        {"tailscale-legacy", RuleFamily::ip, 8},
        {"tailscale-legacy6", RuleFamily::ip6, 3},
        {"ways-legacy", RuleFamily::ip, 12},
    }));
    SavedTable saved = read_iptables_save(fixture(name + ".save"));
    int count = 0;
    for (const SnapshotChain& chain : parsed(name, family).chains) {
        REQUIRE(saved[chain.name].size() == chain.rules.size());
        for (std::size_t i = 0; i < chain.rules.size(); i++) {
            if (chain.rules[i].text.find("[...]") != std::string::npos)
                continue;
            CHECK(chain.rules[i].text == saved[chain.name][i]);
            count++;
        }
    }
    CHECK(count == compared);
}

TEST_CASE("resolve_rule: legacy rules get iptables-legacy-save's words", "[resolve_rule]") {
    SnapshotTable table = parsed("ways-legacy");
    CHECK(use_iptables_words(table, read_iptables_save(fixture("ways-legacy.save"))) == 0);
    CHECK(chain_of(table, "shared").rules.at(0).text == "-A shared -m comment --comment \"say \\\"no\\\"\n-A shared -j "
                                                        "ACCEPT\" -j REJECT --reject-with icmp-port-unreachable");
    CHECK(chain_of(table, "twice").rules.at(0).text == "-A twice -p sctp -m multiport --dports 1,2 -j DROP");
    for (const SnapshotChain& chain : table.chains)
        CHECK(chain.backend == Backend::iptables_legacy);

    // A save that was made a moment later: one chain has one more rule, another one rule's target changed.
    SnapshotTable before = parsed("tailscale-legacy");
    std::string later = fixture("tailscale-legacy.save");
    later.insert(later.find("-A ts-input"), "-A ts-input -j ACCEPT\n");
    std::string old_rule = "-A ts-forward -o tailscale0 -j ACCEPT";
    later.replace(later.find(old_rule), old_rule.size(), "-A ts-forward -o tailscale0 -j DROP");
    CHECK(use_iptables_words(before, read_iptables_save(later)) == 2);
    CHECK(chain_of(before, "ts-input").rules.at(2).text == "-A ts-input -p udp -m udp [...] -j ACCEPT");
}

TEST_CASE("resolve_rule: blobs that are cut or wrong are refused", "[resolve_rule]") {
    for (const char* name : {"tailscale-legacy", "ways-legacy"}) {
        BlobFixture blob = blob_fixture(name);
        for (std::size_t length = 0; length < blob.bytes.size(); length++) {
            CAPTURE(name, length);
            std::vector<std::byte> cut(blob.bytes.begin(),
                                       blob.bytes.begin() +
                                           static_cast<std::ptrdiff_t>(length)); // so that ASan sees its end
            REQUIRE_FALSE(parse_ipt_blob(RuleFamily::ip, "filter", blob.info, cut));
        }
        for (std::size_t i = 0; i < blob.bytes.size(); i++) // any result will do, as long as it stays in bounds
            for (int value : {0x00, 0xff, 0x70, 0x98}) {
                std::vector<std::byte> bent = blob.bytes;
                bent[i] = static_cast<std::byte>(value);
                auto table = parse_ipt_blob(RuleFamily::ip, "filter", blob.info, bent);
                if (table)
                    legacy_path(*table, Hook::input, static_cast<std::uint32_t>(i), {});
            }
    }
    BlobFixture blob = blob_fixture("tailscale-legacy");
    blob.info.num_entries++;
    auto table = parse_ipt_blob(RuleFamily::ip, "filter", blob.info, blob.bytes);
    REQUIRE_FALSE(table);
    CHECK(table.error().message == "table filter: 20 entries instead of 21 at offset 3408 of 3408");
}

// ---- the way through a legacy table ----

TEST_CASE("resolve_rule: legacy paths follow the jump stack", "[resolve_rule]") {
    SnapshotTable table = parsed("ways-legacy");
    auto jump = [&](std::string_view chain, std::size_t number) { return at(table, chain, number); };
    auto path = [&](Hook hook, std::uint32_t offset, std::vector<std::uint32_t> stack) {
        stack.resize(TSDT_JUMPSTACK_MAX, ~0u);
        return text_of(legacy_path(table, hook, offset, stack));
    };
    std::uint32_t shared_drop = at(table, "shared", 3);
    std::uint32_t tail_drop = at(table, "tail", 1);

    SECTION("a shared chain, reached by two ways") {
        CHECK(path(Hook::input, shared_drop, {jump("INPUT", 2), jump("first", 1)}) == "INPUT 2 > first 1 > shared 3");
        CHECK(path(Hook::input, shared_drop, {jump("INPUT", 3), jump("second", 1)}) == "INPUT 3 > second 1 > shared 3");
    }
    SECTION("leftovers after the way are not part of it") {
        CHECK(path(Hook::input, shared_drop, {jump("INPUT", 2), jump("first", 1), jump("second", 1)}) ==
              "INPUT 2 > first 1 > shared 3");
    }
    SECTION("a stack that does not lead there") {
        CHECK(path(Hook::input, shared_drop, {}) == "");
        CHECK(path(Hook::input, shared_drop, {jump("INPUT", 2)}) == "");
        CHECK(path(Hook::input, shared_drop, {jump("first", 1), jump("INPUT", 2)}) == "");
        CHECK(path(Hook::forward, shared_drop, {jump("INPUT", 2), jump("first", 1)}) == "");
        CHECK(path(Hook::postrouting, shared_drop, {}) == ""); // not a hook of this table
    }
    SECTION("one goto fits, and is not on the stack") {
        CHECK(path(Hook::input, tail_drop, {}) == "INPUT 4 > tail 1");
    }
    SECTION("two ways fit: INPUT 3 may be live or a leftover") {
        CHECK(path(Hook::input, tail_drop, {jump("INPUT", 3)}) == "");
        CHECK(path(Hook::forward, at(table, "twice", 1), {jump("FORWARD", 2)}) == "");
    }
    SECTION("not a rule") {
        CHECK(path(Hook::input, 4, {}) == "");
        CHECK(path(Hook::input, 1'000'000, {}) == "");
    }
}

TEST_CASE("resolve_rule: legacy paths that are longer than the stack that is known", "[resolve_rule]") {
    // INPUT jumps to c1, that to c2, ... c11 drops. Offsets: chain i has its one rule at 1000 * i.
    SnapshotTable table;
    for (std::uint32_t i = 0; i <= 11; i++) {
        SnapshotChain chain;
        chain.name = "c" + std::to_string(i);
        chain.offset = 1000 * i;
        if (i == 0)
            chain.hook = Hook::input;
        SnapshotRule rule;
        rule.offset = 1000 * i;
        if (i < 11)
            rule.jump_offset = 1000 * (i + 1);
        chain.rules.push_back(rule);
        table.chains.push_back(chain);
    }
    std::vector<std::uint32_t> stack;
    for (std::uint32_t i = 0; i < TSDT_JUMPSTACK_MAX; i++)
        stack.push_back(1000 * i);
    CHECK(text_of(legacy_path(table, Hook::input, 11000, stack)) ==
          "c0 1 > c1 1 > c2 1 > c3 1 > c4 1 > c5 1 > c6 1 > c7 1 > c8 1 > c9 1 > c10 1 > c11 1");

    // A second jump from c9 to c10 makes it unknown which one it was.
    SnapshotRule other = table.chains[9].rules[0];
    other.offset = 9500;
    table.chains[9].rules.push_back(other);
    CHECK(legacy_path(table, Hook::input, 11000, stack).empty());

    // A loop, which no kernel accepts, ends the search.
    table.chains[10].rules[0].jump_offset = 9000;
    CHECK(legacy_path(table, Hook::input, 11000, stack).empty());
}

// ---- the resolver: nf_tables ----

TEST_CASE("resolve_rule: the incident, iptables-nft", "[resolve_rule]") {
    OneSnapshot source(listed_with_words("tailscale-iptables-nft"));
    Resolver resolver(source);
    tsdt_cause cause = incident_nft();
    cause.key.netns = 42;
    auto rule = resolver.resolve(cause, drop_with());
    REQUIRE(rule);
    CHECK(source.kind == SnapshotKind::nf_tables);
    CHECK(source.netns == 42);
    CHECK(rule->backend == Backend::iptables_nft);
    CHECK(rule->family == RuleFamily::ip);
    CHECK(rule->table == "filter");
    CHECK(rule->chain == "ts-input");
    CHECK(rule->number == 5u);
    CHECK(rule->handle == 17u);
    CHECK(rule->text == std::string(cgnat_rule));
    CHECK(rule->verdict == "drop");
    CHECK(rule->confidence == Confidence::exact);
    CHECK_FALSE(rule->stale);
    CHECK(text_of(rule->path) == "INPUT 1 > ts-input 5");
    CHECK(rule->path[0].handle == 6u);

    tsdt_cause by_match = cause;
    by_match.id++;
    by_match.step[by_match.steps - 1].by_match = 1;
    rule = Resolver(source).resolve(by_match, drop_with());
    CHECK(rule->verdict == "hotdrop"); // not what its target says
    CHECK(rule->text == std::string(cgnat_rule));
    source.asked = 1;

    rule = resolver.resolve(cause, drop_with());
    CHECK(resolver.resolve(cause, drop_with({1, 2, 3})) == rule); // the same object: not looked up again
    CHECK(source.asked == 1);
}

TEST_CASE("resolve_rule: a native nftables rule, its reject, and a nameless chain", "[resolve_rule]") {
    Snapshot snapshot = listed(fixture("native.listing"));
    std::uint64_t table_handle = snapshot.tables[0].handle.value();
    OneSnapshot source(snapshot);
    Resolver resolver(source);

    auto rule = resolver.resolve(
        nft_cause("t", table_handle, {{"c1", 2, 29, 11}, {"c2", 1, 10, 2}}, TSDT_SOURCE_NFT_RULE, 1), drop_with());
    REQUIRE(rule);
    CHECK(rule->backend == Backend::nftables);
    CHECK(rule->family == RuleFamily::inet);
    CHECK(rule->text == std::string("reject"));
    CHECK(rule->verdict == "reject");
    CHECK(text_of(rule->path) == "c1 11 > c2 2");

    tsdt_cause nameless =
        nft_cause("t", table_handle, {{"c1", 2, 21, 5}, {"__chain0", 18, 19, 1}}, TSDT_SOURCE_NFT_RULE, 1);
    nameless.id = 2;
    rule = resolver.resolve(nameless, drop_with());
    REQUIRE(rule);
    CHECK(rule->chain == "__chain0");
    CHECK(rule->number == 1u);
    // nft prints it as part of the rule that jumps there, without a handle of its own: nothing has changed.
    CHECK(rule->text == std::string("iifname \"eth0\" jump { ip saddr 1.2.3.4 drop; tcp dport 80 drop }"));
    CHECK_FALSE(rule->stale);

    nameless.id = 3; // and in a block of a block
    nameless.step[2] = nameless.step[1];
    std::strcpy(nameless.step[2].chain, "__chain1");
    nameless.steps = 3;
    CHECK(resolver.resolve(nameless, drop_with())->text == rule->text);
}

TEST_CASE("resolve_rule: the element of a set that held the packet's value", "[resolve_rule]") {
    Snapshot snapshot = listed("table ip t { # handle 1\n\tset blocked { # handle 2\n\t\ttype ipv4_addr\n\t}\n\n"
                               "\tchain c { # handle 3\n\t\tip saddr @blocked udp dport { 53, 54 } drop # handle 4\n"
                               "\t}\n}\n");
    snapshot.tables.at(0).sets.at(0).elements = "10.0.0.1, 10.0.0.2";
    snapshot.generation = 7;
    OneSnapshot source(snapshot);
    tsdt_cause cause = nft_cause("t", 1, {{"c", 3, 4, 1}});
    cause.key.generation = 7;
    Packet packet;
    packet.family = IpFamily::ipv4;
    packet.src = packet.dst = {IpFamily::ipv4, {10, 0, 0, 2}};
    packet.proto = 17;
    packet.dport = 53;
    const std::vector<SetElement> both{{"blocked", "10.0.0.2"}, {std::nullopt, "53"}};

    Resolver resolver(source);
    CHECK(resolver.elements(cause, packet).empty()); // it has not been resolved
    REQUIRE(resolver.resolve(cause, drop_with()));
    CHECK(resolver.elements(cause, packet) == both);
    packet.dport = 54; // another packet of the same cause
    CHECK(resolver.elements(cause, packet).back().text == "54");
    packet.dport = 53;

    tsdt_cause by_match = cause;
    by_match.id = 2;
    by_match.step[0].by_match = 1;
    resolver.resolve(by_match, drop_with());
    CHECK(resolver.elements(by_match, packet).empty());
    tsdt_cause other_generation = cause;
    other_generation.id = 3;
    other_generation.key.generation = 8;
    CHECK(resolver.resolve(other_generation, drop_with())->stale);
    CHECK(resolver.elements(other_generation, packet).empty());
    tsdt_cause other_rule = cause;
    other_rule.id = 4;
    other_rule.step[0].number = 2;
    CHECK(resolver.resolve(other_rule, drop_with())->stale);
    CHECK(resolver.elements(other_rule, packet).empty());

    // What is kept is bounded. Rules of older generations lose theirs, and do not get wrong ones.
    std::string many;
    for (int i = 0; i < 20'000; i++)
        many += (i == 0 ? "" : ", ") + std::to_string(i / 200) + "." + std::to_string(i % 200) + ".0.0/16";
    for (std::uint32_t generation = 8; generation < 100; generation++) {
        snapshot.tables.at(0).sets.at(0).elements = many + ", 100.0.0." + std::to_string(generation);
        snapshot.generation = generation;
        source.snapshot = std::make_shared<Snapshot>(snapshot);
        cause.id = other_rule.id = 2 * generation;
        cause.key.generation = generation;
        packet.src.bytes = {100, 0, 0, static_cast<std::uint8_t>(generation)};
        resolver.resolve(cause, drop_with());
        REQUIRE(resolver.elements(cause, packet).size() == 2);
    }
    for (std::uint32_t generation = 8; generation < 99; generation++) {
        cause.id = 2 * generation;
        packet.src.bytes = {100, 0, 0, static_cast<std::uint8_t>(generation)};
        const auto elements = resolver.elements(cause, packet);
        CHECK((elements.empty() || elements[0].text == "100.0.0." + std::to_string(generation)));
    }
    cause.id = 16;
    CHECK(resolver.elements(cause, packet).empty());
}

TEST_CASE("resolve_rule: what the kernel said stays when the snapshot is of no use", "[resolve_rule]") {
    tsdt_cause cause = incident_nft();
    cause.key.generation = 7;
    Snapshot snapshot = listed_with_words("tailscale-iptables-nft");
    snapshot.generation = 7;
    OneSnapshot source;
    bool stale = true;

    SECTION("a later generation") {
        snapshot.generation = 8;
        source.snapshot = std::make_shared<Snapshot>(snapshot);
    }
    SECTION("another number than the kernel counted") {
        snapshot.tables[0].chains[4].rules.erase(snapshot.tables[0].chains[4].rules.begin());
        source.snapshot = std::make_shared<Snapshot>(snapshot);
    }
    SECTION("no rule with that handle") {
        snapshot.tables[0].chains[4].rules[4].handle = 18;
        source.snapshot = std::make_shared<Snapshot>(snapshot);
    }
    SECTION("a chain of that name, but another one") {
        snapshot.tables[0].chains[4].handle = 99;
        source.snapshot = std::make_shared<Snapshot>(snapshot);
    }
    SECTION("no such table in a complete snapshot") {
        snapshot.tables.clear();
        source.snapshot = std::make_shared<Snapshot>(snapshot);
    }
    SECTION("no such table, but something could not be read") {
        snapshot.tables.clear();
        snapshot.problems = {"out of room"};
        source.snapshot = std::make_shared<Snapshot>(snapshot);
        stale = false;
    }
    SECTION("no snapshot at all") {
        stale = false;
    }
    Resolver resolver(source);
    auto rule = resolver.resolve(cause, drop_with());
    REQUIRE(rule);
    CHECK(source.generation == 7);
    CHECK(rule->stale == stale);
    CHECK_FALSE(rule->text);
    CHECK(rule->backend == Backend::nftables);
    CHECK(rule->chain == "ts-input");
    CHECK(rule->number == 5u);
    CHECK(rule->handle == 17u);
    CHECK(rule->verdict == "drop");
    CHECK(text_of(rule->path) == "INPUT 1 > ts-input 5");
}

TEST_CASE("resolve_rule: a snapshot that comes later is used then", "[resolve_rule]") {
    OneSnapshot source;
    Resolver resolver(source);
    CHECK_FALSE(resolver.resolve(incident_nft(), drop_with())->text);
    source.snapshot = std::make_shared<Snapshot>(listed_with_words("tailscale-iptables-nft"));
    CHECK(resolver.resolve(incident_nft(), drop_with())->text == std::string(cgnat_rule));
}

TEST_CASE("resolve_rule: an nf_tables policy is its chain and nothing else", "[resolve_rule]") {
    OneSnapshot source(listed_with_words("tailscale-iptables-nft"));
    auto rule =
        Resolver(source).resolve(nft_cause("filter", 1, {{"FORWARD", 2, 0, 0}}, TSDT_SOURCE_NFT_POLICY), drop_with());
    REQUIRE(rule);
    CHECK(rule->backend == Backend::iptables_nft);
    CHECK(rule->chain == "FORWARD");
    CHECK_FALSE(rule->number);
    CHECK_FALSE(rule->handle);
    CHECK_FALSE(rule->text);
    CHECK_FALSE(rule->stale);
    CHECK(rule->verdict == "drop");
    CHECK(text_of(rule->path) == "FORWARD");
    CHECK(rule->jumps == std::vector<std::string>{"ts-forward"});

    // Only base chains have policies.
    rule =
        Resolver(source).resolve(nft_cause("filter", 1, {{"ts-input", 5, 0, 0}}, TSDT_SOURCE_NFT_POLICY), drop_with());
    CHECK(rule->stale);
}

TEST_CASE("resolve_rule: names that the kernel's side had to cut come back whole", "[resolve_rule]") {
    std::string name(100, 'x');
    Snapshot snapshot =
        listed("table ip " + name + " { # handle 3\n\tchain " + name + " { # handle 1\n\t\tdrop # handle 2\n\t}\n}\n");
    OneSnapshot source(snapshot);
    auto rule = Resolver(source).resolve(nft_cause(name, 3, {{name, 1, 2, 1}}), drop_with());
    REQUIRE(rule);
    CHECK(rule->table == name);
    CHECK(rule->chain == name);
    CHECK(rule->path.at(0).chain == name);
    CHECK(rule->text == std::string("drop"));
}

TEST_CASE("resolve_rule: records with odd contents", "[resolve_rule]") {
    OneSnapshot source(listed_with_words("tailscale-iptables-nft"));
    Resolver resolver(source);

    tsdt_cause cause = incident_nft();
    cause.key.source = TSDT_SOURCE_KERNEL;
    CHECK_FALSE(resolver.resolve(cause, drop_with()));
    cause.key.source = TSDT_SOURCE_NETFILTER;
    CHECK_FALSE(resolver.resolve(cause, drop_with()));
    cause.key.source = 200;
    CHECK_FALSE(resolver.resolve(cause, drop_with()));
    CHECK(source.asked == 0);

    cause = incident_nft();
    cause.family = 77;
    CHECK_FALSE(resolver.resolve(cause, drop_with()));

    cause = incident_nft();
    cause.steps = 60000;
    std::memset(cause.step[TSDT_PATH_MAX - 1].chain, 'y', TSDT_NAME_LEN); // not terminated
    auto rule = resolver.resolve(cause, drop_with());
    REQUIRE(rule);
    CHECK(rule->path.size() == TSDT_PATH_MAX);
    CHECK(rule->chain == std::string(TSDT_NAME_LEN, 'y'));

    cause = incident_nft();
    cause.id = 2;
    cause.steps = 0; // the kernel's side could not read the chain
    rule = resolver.resolve(cause, drop_with());
    REQUIRE(rule);
    CHECK(rule->table == "filter");
    CHECK(rule->path.empty());
    CHECK_FALSE(rule->text);
    CHECK_FALSE(rule->stale);
}

TEST_CASE("resolve_rule: what is remembered is bounded", "[resolve_rule]") {
    OneSnapshot source(listed_with_words("tailscale-iptables-nft"));
    Resolver resolver(source);
    tsdt_cause cause = incident_nft();
    auto resolve = [&](std::uint32_t id) {
        cause.id = id;
        return resolver.resolve(cause, drop_with());
    };
    auto first = resolve(1);
    for (std::uint32_t id = 2; id <= Resolver::max_cached; id++)
        resolve(id);
    CHECK(resolve(1) == first);
    resolve(Resolver::max_cached + 1);
    auto again = resolve(1);
    CHECK(again != first);
    CHECK(again->text == first->text);
}

// ---- the resolver: x_tables ----

TEST_CASE("resolve_rule: the incident, iptables-legacy", "[resolve_rule]") {
    Snapshot snapshot = legacy_snapshot("tailscale-legacy");
    const SnapshotTable& table = snapshot.tables[0];
    std::uint32_t offset = at(table, "ts-input", 5);
    OneSnapshot source(snapshot);
    Resolver resolver(source);
    auto rule = resolver.resolve(legacy_cause(offset, hook_input, "ts-input", 5), drop_with({at(table, "INPUT", 1)}));
    REQUIRE(rule);
    CHECK(source.kind == SnapshotKind::ip_tables);
    CHECK(rule->backend == Backend::iptables_legacy);
    CHECK(rule->family == RuleFamily::ip);
    CHECK(rule->table == "filter");
    CHECK(rule->chain == "ts-input");
    CHECK(rule->number == 5u);
    CHECK_FALSE(rule->handle);
    CHECK(rule->text == std::string(cgnat_rule));
    CHECK(rule->verdict == "drop");
    CHECK_FALSE(rule->stale);
    CHECK(text_of(rule->path) == "INPUT 1 > ts-input 5");

    tsdt_cause by_match = legacy_cause(offset, hook_input, "ts-input", 5);
    by_match.step[0].by_match = 1;
    CHECK(Resolver(source).resolve(by_match, drop_with())->verdict == "hotdrop");

    // Without a way that is certain, the rule alone; the same cause on another way is another rule object.
    rule = resolver.resolve(legacy_cause(offset, hook_input, "ts-input", 5), drop_with());
    CHECK(text_of(rule->path) == "ts-input 5");
    CHECK(rule->text == std::string(cgnat_rule));

    // The kernel's side could not read chain and number: the offset is enough.
    tsdt_cause unnamed = legacy_cause(offset, hook_input, "", 0);
    unnamed.id = 2;
    rule = resolver.resolve(unnamed, drop_with({at(table, "INPUT", 1)}));
    CHECK(rule->chain == "ts-input");
    CHECK(rule->number == 5u);
}

TEST_CASE("resolve_rule: legacy rules that the snapshot contradicts are stale", "[resolve_rule]") {
    Snapshot snapshot = legacy_snapshot("tailscale-legacy");
    std::uint32_t offset = at(snapshot.tables[0], "ts-input", 5);
    auto [o, chain, number] = GENERATE_COPY(table<std::uint32_t, std::string, std::uint32_t>({
        {offset, "ts-input", 4},
        {offset, "ts-forward", 5},
        {offset + 8, "ts-input", 5},
    }));
    OneSnapshot source(snapshot);
    auto rule = Resolver(source).resolve(legacy_cause(o, hook_input, chain, number), drop_with());
    REQUIRE(rule);
    CHECK(rule->stale);
    CHECK_FALSE(rule->text);
    CHECK(rule->chain == chain);
    CHECK(rule->number == number);
    CHECK(text_of(rule->path) == chain + " " + std::to_string(number));
}

TEST_CASE("resolve_rule: a legacy policy, and a legacy reject", "[resolve_rule]") {
    OneSnapshot source(legacy_snapshot("tailscale-legacy"));
    auto rule =
        Resolver(source).resolve(legacy_cause(456, hook_forward, "FORWARD", 0, TSDT_SOURCE_LEGACY_POLICY), drop_with());
    REQUIRE(rule);
    CHECK(rule->chain == "FORWARD");
    CHECK_FALSE(rule->number);
    CHECK_FALSE(rule->text);
    CHECK_FALSE(rule->stale);
    CHECK(text_of(rule->path) == "FORWARD");
    CHECK(rule->jumps == std::vector<std::string>{"ts-forward"});
    rule = Resolver(source).resolve(legacy_cause(456, hook_input, "INPUT", 0, TSDT_SOURCE_LEGACY_POLICY), drop_with());
    CHECK(rule->stale);

    Snapshot ways = legacy_snapshot("ways-legacy");
    OneSnapshot other(ways);
    rule = Resolver(other).resolve(legacy_cause(at(ways.tables[0], "shared", 2), hook_input, "shared", 2), drop_with());
    CHECK(rule->verdict == "reject");
    CHECK(rule->text == std::string("-A shared -j REJECT --reject-with icmp-port-unreachable"));
}

TEST_CASE("resolve_rule: a table of arp_tables", "[resolve_rule]") {
    Snapshot snapshot;
    snapshot.kind = SnapshotKind::arp_tables;
    snapshot.tables.push_back(parsed("arptables-legacy", RuleFamily::arp));
    SnapshotTable& table = snapshot.tables[0];
    CHECK(texts(chain_of(table, "INPUT")) ==
          std::vector<std::string>{"-A INPUT -i eth0 -s 10.0.0.7/32 --opcode 1 -j sub",
                                   "-A INPUT ! -s 10.1.1.1/32 --src-mac 00:11:22:33:44:55 -d 10.0.0.0/24 -j DROP"});
    CHECK(texts(chain_of(table, "OUTPUT")) == std::vector<std::string>{"-A OUTPUT ! -o lo -j sub", "-A OUTPUT"});
    CHECK(texts(chain_of(table, "sub")) ==
          std::vector<std::string>{"-A sub -j mangle [...]",
                                   "-A sub -o ppp+ --h-length 6 --h-type 1 --proto-type 0x800 -j RETURN",
                                   "-A sub -d 10.0.0.9/32 -j DROP"});
    CHECK(chain_of(table, "INPUT").hook == Hook::input);
    CHECK(chain_of(table, "OUTPUT").hook == Hook::output);
    CHECK(chain_of(table, "FORWARD").hook == Hook::forward);
    CHECK(chain_of(table, "FORWARD").policy == std::string("drop"));

    // arptables' own words take the place of these, but for a chain with a rule that it prints as an empty line.
    CHECK(use_iptables_words(table, read_legacy_listing(fixture("arptables-legacy.list"))) == 1);
    CHECK(texts(chain_of(table, "INPUT")) ==
          std::vector<std::string>{"-A INPUT -j sub -i eth0 -s 10.0.0.7 --opcode 1",
                                   "-A INPUT -j DROP ! -s 10.1.1.1 --src-mac 00:11:22:33:44:55 -d 10.0.0.0/24"});
    CHECK(texts(chain_of(table, "OUTPUT")) == std::vector<std::string>{"-A OUTPUT ! -o lo -j sub", "-A OUTPUT"});
    CHECK(texts(chain_of(table, "sub"))[0] == "-A sub -j mangle --mangle-ip-s 1.2.3.4 --mangle-target DROP");

    // Its hooks have other numbers than those of IP: 0 is INPUT, 1 is OUTPUT.
    OneSnapshot source(snapshot);
    tsdt_cause cause = legacy_cause(at(table, "sub", 3), 0, "sub", 3);
    cause.family = 3;
    Resolver resolver(source);
    auto rule = resolver.resolve(cause, drop_with({at(table, "INPUT", 1)}));
    REQUIRE(rule);
    CHECK(source.kind == SnapshotKind::arp_tables);
    CHECK(rule->family == RuleFamily::arp);
    CHECK(rule->backend == Backend::iptables_legacy);
    CHECK(rule->text == std::string("-A sub -j DROP -d 10.0.0.9"));
    CHECK(text_of(rule->path) == "INPUT 1 > sub 3");
    cause.id++;
    cause.key.hook = 1;
    rule = resolver.resolve(cause, drop_with({at(table, "OUTPUT", 1)}));
    CHECK(text_of(rule->path) == "OUTPUT 1 > sub 3");

    cause = legacy_cause(*chain_of(table, "FORWARD").policy_offset, 2, "FORWARD", 0, TSDT_SOURCE_LEGACY_POLICY);
    cause.family = 3;
    rule = Resolver(source).resolve(cause, drop_with());
    CHECK(rule->chain == "FORWARD");
    CHECK_FALSE(rule->number);
    CHECK_FALSE(rule->stale);
}

// ---- ebtables ----

namespace {

// A blob as ebtables hands it out.
class BridgeBlob {
public:
    std::uint32_t chain(std::string_view name, int policy, std::uint32_t rules) {
        const auto offset = static_cast<std::uint32_t>(bytes.size());
        ebt_entries head{};
        put(head.name, name);
        head.policy = policy;
        head.nentries = rules;
        append(&head, sizeof head);
        return offset;
    }
    // `target`: "standard" with a verdict, or another one with data of that size.
    std::uint32_t rule(int verdict, std::string_view target = "standard", std::string_view match = {},
                       const std::function<void(ebt_entry&)>& change = {}) {
        const auto offset = static_cast<std::uint32_t>(bytes.size());
        ebt_entry head{};
        head.bitmask = EBT_ENTRY_OR_ENTRIES | EBT_NOPROTO;
        head.watchers_offset = head.target_offset = sizeof head + (match.empty() ? 0u : sizeof(ebt_entry_match) + 8u);
        head.next_offset = head.target_offset + sizeof(ebt_entry_target) + 8;
        if (change)
            change(head);
        append(&head, sizeof head);
        if (!match.empty()) {
            ebt_entry_match extension{};
            put(extension.u.name, match);
            extension.match_size = 8;
            append(&extension, sizeof extension);
            append(std::array<char, 8>{}.data(), 8);
        }
        ebt_entry_target end{};
        put(end.u.name, target);
        end.target_size = 8;
        append(&end, sizeof end);
        const std::array<int, 2> data{verdict, 0};
        append(data.data(), sizeof data);
        return offset;
    }
    std::vector<std::byte> bytes;

private:
    void append(const void* data, std::size_t size) {
        const auto* begin = static_cast<const std::byte*>(data);
        bytes.insert(bytes.end(), begin, begin + size);
    }
};

} // namespace

TEST_CASE("resolve_rule: a table of ebtables", "[resolve_rule]") {
    BridgeBlob blob;
    blob.chain("INPUT", EBT_ACCEPT, 0);
    const std::uint32_t forward = blob.chain("FORWARD", EBT_DROP, 2);
    constexpr std::uint32_t rule_size = sizeof(ebt_entry) + sizeof(ebt_entry_target) + 8;
    const std::uint32_t strict = forward + sizeof(ebt_entries) + 2 * rule_size + sizeof(ebt_entry_match) + 8;
    const std::uint32_t jump = blob.rule(static_cast<int>(strict), "standard", "ip", [](ebt_entry& entry) {
        entry.bitmask = EBT_ENTRY_OR_ENTRIES | EBT_SOURCEMAC;
        entry.ethproto = htons(0x0800);
        entry.invflags = EBT_IPROTO | EBT_ISOURCE;
        entry.sourcemac[5] = 1;
        std::fill(std::begin(entry.sourcemsk), std::end(entry.sourcemsk), 0xff);
        put(entry.in, "eth\x01");
        put(entry.logical_out, "br0");
    });
    blob.rule(EBT_CONTINUE, "AUDIT");
    REQUIRE(blob.chain("strict", EBT_DROP, 1) == strict);
    const std::uint32_t drop = blob.rule(EBT_DROP);

    auto table = parse_ebt_blob("filter", blob.bytes);
    REQUIRE(table);
    CHECK(table->family == RuleFamily::bridge);
    REQUIRE(table->chains.size() == 3);
    const SnapshotChain& chain = chain_of(*table, "FORWARD");
    CHECK(chain.hook == Hook::forward);
    CHECK(chain.policy == std::string("drop"));
    CHECK(texts(chain) ==
          std::vector<std::string>{
              "-A FORWARD ! -p IPv4 ! -s 00:00:00:00:00:01 -i eth+ --logical-out br0 -m ip [...] -j strict",
              "-A FORWARD -j AUDIT [...]"});
    CHECK(texts(chain_of(*table, "strict")) == std::vector<std::string>{"-A strict -j DROP"});
    CHECK_FALSE(chain_of(*table, "strict").hook);
    for (std::size_t size = 0; size < blob.bytes.size(); size++) { // cut anywhere: never read past
        auto cut = parse_ebt_blob("filter", std::span(blob.bytes).first(size));
        CHECK((!cut || cut->chains.size() <= 3));
    }

    Snapshot snapshot;
    snapshot.kind = SnapshotKind::bridge_filter;
    snapshot.tables.push_back(*table);
    OneSnapshot source(snapshot);
    Resolver resolver(source);
    tsdt_cause cause = legacy_cause(drop, 2, "strict", 1);
    cause.family = 7;
    // The stack says what comes after the jump.
    auto rule = resolver.resolve(cause, drop_with({jump + rule_size + std::uint32_t{sizeof(ebt_entry_match)} + 8}));
    REQUIRE(rule);
    CHECK(source.kind == SnapshotKind::bridge_filter);
    CHECK(rule->family == RuleFamily::bridge);
    CHECK(rule->backend == Backend::iptables_legacy);
    CHECK(text_of(rule->path) == "FORWARD 1 > strict 1");
    CHECK(rule->text == std::string("-A strict -j DROP"));

    cause = legacy_cause(strict, 2, "strict", 0, TSDT_SOURCE_LEGACY_POLICY);
    cause.family = 7;
    rule = Resolver(source).resolve(cause, drop_with());
    CHECK(rule->chain == "strict");
    CHECK_FALSE(rule->number);
    CHECK_FALSE(rule->stale);

    put(cause.table, "nat");
    Resolver(source).resolve(cause, drop_with());
    CHECK(source.kind == SnapshotKind::bridge_nat);
}

TEST_CASE("resolve_rule: what ebtables-legacy -L prints", "[resolve_rule]") {
    const SavedTable table = read_legacy_listing("Bridge table: filter\n\n"
                                                 "Bridge chain: INPUT, entries: 2, policy: ACCEPT\n"
                                                 "-p ARP --arp-op Request -j DROP \n"
                                                 "-j sub \n\n"
                                                 "Bridge chain: sub, entries: 0, policy: RETURN\n");
    CHECK(table == SavedTable{{"INPUT", {"-A INPUT -p ARP --arp-op Request -j DROP", "-A INPUT -j sub"}}, {"sub", {}}});
}

// ---- live snapshots, with a machine that is not there ----

namespace {

struct FakeMachine {
    std::uint32_t generation = 2;
    int changes_while_reading = 0;
    int reads = 0, observed = 0;
    std::size_t rules = 1;
    bool fails = false;

    LiveSnapshots live{[this](SnapshotKind) {
                           return Generation{generation, false};
                       },
                       [this](const Snapshot&) { observed++; },
                       [this](SnapshotKind kind, std::uint32_t netns, std::size_t) { return read(kind, netns); }};

    Result<Snapshot> read(SnapshotKind kind, std::uint32_t netns) {
        reads++;
        if (fails)
            return Error{ErrorKind::other, "the namespace is gone"};
        if (changes_while_reading > 0) {
            changes_while_reading--;
            generation += 2;
        }
        Snapshot snapshot;
        snapshot.kind = kind;
        snapshot.netns = netns;
        snapshot.tables.push_back({RuleFamily::ip, std::to_string(reads), 1, {{}}});
        snapshot.tables[0].chains[0].rules.resize(rules);
        return snapshot;
    }
    std::shared_ptr<const Snapshot> get(std::uint32_t asked, std::uint32_t netns = 1) {
        return live.get(SnapshotKind::nf_tables, netns, asked);
    }
    // The next reading waits three times as long as the last one took, which a busy machine can stretch.
    std::shared_ptr<const Snapshot> get_in_time(std::uint32_t asked) {
        for (int i = 0; i < 1000; i++) {
            if (auto snapshot = get(asked); snapshot && snapshot->generation == asked)
                return snapshot;
            std::this_thread::sleep_for(std::chrono::milliseconds(2));
        }
        return nullptr;
    }
};

} // namespace

TEST_CASE("resolve_rule: a ruleset is read once per generation", "[resolve_rule]") {
    FakeMachine machine;
    auto first = machine.get(2);
    REQUIRE(first);
    CHECK(first->generation == 2);
    CHECK(machine.get(2) == first);
    CHECK(machine.reads == 1);
    CHECK(machine.observed == 1);
    CHECK(machine.get(2, 2) != first); // another namespace
    CHECK(machine.live.get(SnapshotKind::ip_tables, 1, 2) != first);
    CHECK(machine.reads == 3);

    machine.generation = 4;
    CHECK(machine.get_in_time(4));
    CHECK(machine.get(2) == first); // those of the past are still there
    std::shared_ptr<const Snapshot> newest;
    for (machine.generation = 6; machine.generation <= 2 + 2 * LiveSnapshots::max_past; machine.generation += 2)
        newest = machine.get_in_time(machine.generation);
    CHECK(machine.get(2) == first);
    newest = machine.get_in_time(machine.generation);
    REQUIRE(newest);
    CHECK(machine.get(2) == newest); // too old: the newest, which differs
    CHECK(machine.reads == 3 + 1 + LiveSnapshots::max_past);
    CHECK(machine.observed == machine.reads);
}

TEST_CASE("resolve_rule: a drop of the past gets a snapshot that says so", "[resolve_rule]") {
    FakeMachine machine;
    machine.generation = 10;
    auto snapshot = machine.get(8);
    REQUIRE(snapshot);
    CHECK(snapshot->generation == 10);
    machine.generation = 12;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    CHECK(machine.get(8) == snapshot); // not worth another reading
    CHECK(machine.reads == 1);
}

TEST_CASE("resolve_rule: a ruleset that changes while it is read", "[resolve_rule]") {
    FakeMachine machine;
    machine.changes_while_reading = 2;
    auto snapshot = machine.get(2);
    REQUIRE(snapshot);
    CHECK(snapshot->generation == 6); // the third reading was quiet
    CHECK(machine.reads == 3);
    CHECK(machine.observed == 1);

    FakeMachine restless;
    restless.changes_while_reading = 1000;
    snapshot = restless.get(2);
    REQUIRE(snapshot);
    CHECK(snapshot->generation != 2);
    CHECK(snapshot->tables.empty());
    CHECK(restless.reads == 3);
    CHECK(restless.observed == 0); // nothing to record
}

TEST_CASE("resolve_rule: a change under way is waited for, but not for ever", "[resolve_rule]") {
    int looks = 0, last_busy = 3, reads = 0;
    auto generation = [&](SnapshotKind) { return ++looks <= last_busy ? Generation{5, true} : Generation{6, false}; };
    auto reader = [&](SnapshotKind, std::uint32_t, std::size_t) {
        reads++;
        return Result<Snapshot>(Snapshot{});
    };
    auto snapshot = LiveSnapshots(generation, {}, reader).get(SnapshotKind::ip_tables, 1, 5);
    REQUIRE(snapshot);
    CHECK(snapshot->generation == 6); // what the drop of generation 5 met is not known
    CHECK(reads == 1);

    looks = 0, last_busy = 1000; // what is read then may be the ruleset of before or after
    int kept = 0;
    LiveSnapshots busy(
        generation, [&](const Snapshot&) { kept++; }, reader);
    snapshot = busy.get(SnapshotKind::ip_tables, 1, 5);
    REQUIRE(snapshot);
    CHECK(snapshot->generation != 5);
    CHECK(reads == 1);
    CHECK(kept == 0);

    // Two changes at once: the counter stands at an even number of begins and ends, and both are under way.
    bool changing = true;
    auto overlapping = [&](SnapshotKind) { return Generation{6, changing}; };
    LiveSnapshots live(
        overlapping, [&](const Snapshot&) { kept++; }, reader);
    live.get(SnapshotKind::ip_tables, 1, 6);
    CHECK(kept == 0);
    changing = false;
    // Not before three times as long as the last attempt has taken, which a busy machine makes longer.
    snapshot = nullptr;
    for (int tries = 0; tries < 500 && !snapshot; tries++) {
        std::this_thread::sleep_for(std::chrono::milliseconds(10));
        snapshot = live.get(SnapshotKind::ip_tables, 1, 6);
    }
    REQUIRE(snapshot);
    CHECK(snapshot->generation == 6);
    CHECK(kept == 1);
}

TEST_CASE("resolve_rule: a ruleset that cannot be read, until it can", "[resolve_rule]") {
    FakeMachine machine;
    machine.fails = true;
    CHECK_FALSE(machine.get(2)); // not known to have changed
    machine.generation = 3;
    auto changed = machine.get(2);
    REQUIRE(changed);
    CHECK(changed->generation != 2);
    CHECK(changed->tables.empty());
    machine.generation = 2;
    machine.fails = false;
    CHECK(machine.get_in_time(2));
    machine.fails = true;
    machine.generation = 4;
    auto old = machine.get(4);
    REQUIRE(old);
    CHECK(old->generation == 2);
}

TEST_CASE("resolve_rule: many namespaces and large rulesets are bounded", "[resolve_rule]") {
    FakeMachine many;
    for (std::uint32_t netns = 1; netns <= LiveSnapshots::max_rulesets + 1; netns++)
        many.get(2, netns);
    int reads = many.reads;
    many.get(2, 2);
    CHECK(many.reads == reads);
    many.get(2, 1); // the longest unused one had to go
    CHECK(many.reads == reads + 1);

    FakeMachine large;
    large.rules = LiveSnapshots::max_rules / 2;
    large.get(2, 1);
    large.get(2, 2);
    CHECK(large.reads == 2);
    large.get(2, 3);
    large.get(2, 2);
    CHECK(large.reads == 3);
    large.get(2, 1);
    CHECK(large.reads == 4);
}

// ---- util: children and namespaces ----

TEST_CASE("resolve_rule: a program's answer", "[resolve_rule]") {
    auto result = run_program("/bin/sh", {"-c", "echo out; echo err >&2; cat; echo \"$LC_ALL $HOME\"; exit 3"});
    REQUIRE(result);
    CHECK(result->exit_code == 3);
    CHECK(result->out == "out\nC \n"); // nothing on standard input, and no environment of ours
    CHECK(result->err == "err\n");

    result = run_program("/bin/sh", {"-c", "for i in $(seq 3000); do echo ${i}xxx >&2; done"});
    REQUIRE(result);
    CHECK(result->err.size() == 4096);
}

TEST_CASE("resolve_rule: programs that do not answer", "[resolve_rule]") {
    CHECK_FALSE(run_program("/nonexistent/program", {}));
    CHECK_FALSE(run_program("sh", {"-c", "true"})); // no search in PATH

    auto begin = std::chrono::steady_clock::now();
    auto result = run_program("/bin/sh", {"-c", "sleep 60 & sleep 60"}, {std::chrono::milliseconds(100), 1000});
    REQUIRE_FALSE(result);
    CHECK(result.error().message == "/bin/sh did not end within 100 ms");
    CHECK(std::chrono::steady_clock::now() - begin < std::chrono::seconds(5));

    result = run_program("/bin/sh", {"-c", "exec >&- 2>&-; sleep 60"}, {std::chrono::milliseconds(100), 1000});
    CHECK_FALSE(result);
    result = run_program("/bin/sh", {"-c", "while :; do echo 0123456789; done"}, {std::chrono::seconds(10), 1000});
    REQUIRE_FALSE(result);
    CHECK(result.error().message == "/bin/sh wrote more than 1000 bytes");
    result = run_program("/bin/sh", {"-c", "kill -TERM $$"});
    REQUIRE_FALSE(result);
    CHECK(result.error().message == "/bin/sh was ended by signal 15");
}

TEST_CASE("resolve_rule: a forked copy answers or dies alone", "[resolve_rule]") {
    auto result = run_forked([] { return write(1, "hello", 5) == 5 ? 7 : 1; });
    REQUIRE(result);
    CHECK(result->exit_code == 7);
    CHECK(result->out == "hello");

    result = run_forked([]() -> int {
        signal(SIGABRT, SIG_DFL); // not the test framework's report
        abort();
    });
    REQUIRE_FALSE(result);
    CHECK(result.error().message == "the child process was ended by signal 6");
}

TEST_CASE("resolve_rule: our own network namespace", "[resolve_rule]") {
    std::uint32_t inode = current_netns();
    REQUIRE(inode != 0);
    bool ran = false;
    auto here = std::this_thread::get_id();
    CHECK(run_in_netns(inode, [&] { ran = std::this_thread::get_id() == here; }));
    CHECK(ran);
    CHECK(open_netns(inode)); // this very process leads to it
    CHECK_FALSE(open_netns(1));
    const auto process = netns_process(inode, 1'000'000'000 * static_cast<std::int64_t>(std::time(nullptr) + 1)); // the oldest in it
    CHECK_FALSE(netns_process(inode, 0)); // it had not begun then
    REQUIRE(process);
    CHECK(process->name.ends_with(']'));
    CHECK(leads_to_netns(process->path, inode));
    CHECK_FALSE(leads_to_netns(process->path, 1));
    CHECK_FALSE(leads_to_netns("/no/such/path", inode));
    CHECK_FALSE(netns_process(1, 0));
    CHECK_FALSE(run_in_netns(1, [] {}));
}

TEST_CASE("resolve_rule: a network namespace as people name it", "[resolve_rule]") {
    CHECK(*resolve_netns("/proc/self/ns/net") == current_netns());
    CHECK(*resolve_netns("4026531840") == 4026531840u); // an inode; who has it is not asked
    const auto refused = [](const std::string& text) {
        const auto inode = resolve_netns(text);
        REQUIRE_FALSE(inode);
        CHECK(inode.error().kind == ErrorKind::command_line);
        return inode.error().message;
    };
    CHECK(
        refused("no such name").starts_with("no such name is no network namespace (no name in /run/netns): expected"));
    CHECK(refused("/no/such/path").starts_with("/no/such/path is no network namespace (No such file or directory)"));
    CHECK(refused("/proc/self/ns/pid").find("something else") != std::string::npos);
    CHECK(refused("/proc/self/status").find("something else") != std::string::npos);
    for (const char* text : {"", ".", "..", "0", "4294967296", "-1", "12x"})
        CHECK(refused(text).find("is no network namespace") != std::string::npos);
    CHECK(refused("\x1b[31m").find('\x1b') == std::string::npos);
}

// ---- with a real kernel: sudo unit_tests "[.live]" ----

TEST_CASE("resolve_rule: the elements of sets that rules which drop look up, live", "[.live][resolve_rule]") {
    const std::string rules =
        "table inet t { \n"
        "set used { type ipv4_addr; flags interval; elements = { 10.0.0.0/8, 192.0.2.1-192.0.2.9 } }\n"
        "set unused { type ipv4_addr; elements = { 10.0.0.1 } }\n"
        "set accepted { type ipv4_addr; elements = { 10.0.0.1 } }\n"
        "set empty { type ipv4_addr; }\n"
        "set large { type ipv4_addr; }\n"
        "map verdicts { type inet_service : verdict; elements = { 1 : accept, 2 : drop } }\n"
        "chain c {\n ip saddr @accepted accept\n ip saddr @used drop\n ip saddr @empty drop\n"
        "udp dport vmap @verdicts\n ip daddr @large drop\n}\n}\n";
    std::string large = "add element inet t large { 1.0.0.0";
    for (int i = 0; i < 20'000; i++)
        large += fmt::format(", 20.{}.{}.77", i / 200, i % 200);
    const auto list = [&] {
        if (unshare(CLONE_NEWNET) != 0)
            return 1;
        const std::string path = "/tmp/tsdroptrace-unit-" + std::to_string(getpid());
        std::ofstream(path) << rules << large << " }\n";
        const auto loaded = run_program("/usr/sbin/nft", {"-f", path});
        unlink(path.c_str());
        if (!loaded || loaded->exit_code != 0)
            return 2;
        const auto snapshot = read_ruleset(SnapshotKind::nf_tables, current_netns(), 1000);
        if (!snapshot || snapshot->tables.size() != 1 || !snapshot->problems.empty())
            return 3;
        for (const SnapshotSet& set : snapshot->tables[0].sets) {
            const std::string line = fmt::format("{} {} {}\n", set.name, set.is_map, set.elements);
            if (write(1, line.data(), line.size()) < 0)
                return 4;
        }
        return 0;
    };
    const auto listed_sets = run_forked(list);
    REQUIRE(listed_sets);
    CHECK(listed_sets->exit_code == 0);
    CHECK(listed_sets->out == "used false 10.0.0.0/8, 192.0.2.1-192.0.2.9\nverdicts true 1 : accept, 2 : drop\n");
}

TEST_CASE("resolve_rule: rulesets of another network namespace, live", "[.live][resolve_rule]") {
    // A process that stays in the new namespace leads to it, as with a container.
    std::string rules =
        "*filter\n:INPUT ACCEPT\n:ts-input -\n-A INPUT -j ts-input\n" + std::string(cgnat_rule) + "\nCOMMIT\n";
    auto program = GENERATE(as<std::string>(), "iptables-legacy-restore", "iptables-nft-restore");
    int ready[2], done[2];
    REQUIRE(pipe(ready) == 0);
    REQUIRE(pipe(done) == 0);
    pid_t pid = fork();
    if (pid == 0) {
        close(done[1]);
        char c = 'n';
        if (unshare(CLONE_NEWNET) == 0 && run_program("/bin/sh", {"-c", "printf '" + rules + "' | " + program}))
            c = 'y';
        if (write(ready[1], &c, 1) != 1 || read(done[0], &c, 1) < 0)
            _exit(1);
        _exit(0);
    }
    Fd release(done[1]);
    close(done[0]);
    char c = 0;
    REQUIRE(read(ready[0], &c, 1) == 1);
    REQUIRE(c == 'y');

    struct stat status;
    REQUIRE(stat(("/proc/" + std::to_string(pid) + "/ns/net").c_str(), &status) == 0);
    auto inode = static_cast<std::uint32_t>(status.st_ino);
    REQUIRE(inode != current_netns());
    bool legacy = program == "iptables-legacy-restore";

    auto begin = std::chrono::steady_clock::now();
    auto snapshot = read_ruleset(legacy ? SnapshotKind::ip_tables : SnapshotKind::nf_tables, inode, 1000);
    auto took = std::chrono::steady_clock::now() - begin;
    REQUIRE(snapshot);
    CHECK(took < std::chrono::seconds(2)); // on an idle machine: 5 to 25 ms
    WARN(program << ": " << std::chrono::duration_cast<std::chrono::microseconds>(took).count() << " us");
    CHECK(snapshot->problems.empty());
    CHECK(snapshot->netns == inode);
    REQUIRE(snapshot->tables.size() == 1);
    const SnapshotChain& chain = chain_of(snapshot->tables[0], "ts-input");
    CHECK(chain.backend == (legacy ? Backend::iptables_legacy : Backend::iptables_nft));
    CHECK(texts(chain) == std::vector<std::string>{cgnat_rule});

    // The other backend has nothing there, and asking for it made nothing.
    for (int i = 0; i < 2; i++) {
        auto other = read_ruleset(legacy ? SnapshotKind::nf_tables : SnapshotKind::ip_tables, inode, 1000);
        REQUIRE(other);
        CHECK(other->tables.empty());
    }
}
