// SPDX-License-Identifier: GPL-2.0-only
#include "resolve_rule/inference.h"

#include <algorithm>
#include <charconv>
#include <cstring>
#include <tuple>
#include <unordered_map>

#include <fmt/format.h>
#include <linux/netfilter.h>

#include "resolve_rule/resolve_rule.h"
#include "resolve_rule/rule_match.h"
#include "util/text.h"

namespace tsdroptrace::resolve_rule {

// What a snapshot says of its rules, read out of their text once.
class RulesetIndex {
public:
    static constexpr std::size_t policy = SIZE_MAX;

    struct Entry { // a rule that may drop, or leads to another chain; or a policy
        std::size_t rule = policy;
        std::size_t place = 0; // of its counter
        RuleMatch match;
        bool drops = false;
        std::vector<std::size_t> jumps; // indices of chains
        bool jumps_anywhere = false;    // to any chain of the table: by a map whose elements are not known
    };
    struct Chain {
        const SnapshotTable* table;
        const SnapshotChain* chain;
        std::size_t first; // index of the table's first chain
        std::vector<Entry> entries;
    };

    explicit RulesetIndex(std::shared_ptr<const Snapshot> snapshot);

    const std::vector<Chain>& chains() const { return chains_; }

private:
    std::shared_ptr<const Snapshot> snapshot_;
    std::vector<Chain> chains_;
};

namespace {

// The chains of one table that a rule can lead to.
class Targets {
public:
    Targets(const SnapshotTable& table, std::size_t first) {
        for (std::size_t i = 0; i < table.chains.size(); i++) {
            const SnapshotChain& chain = table.chains[i];
            if (chain.hook)
                continue;
            by_name_.emplace(chain.name, first + i);
            if (chain.offset)
                by_offset_.emplace(*chain.offset, first + i);
        }
    }

    void fill_in(RulesetIndex::Entry& entry, const SnapshotRule& rule, Backend backend) const {
        if (rule.jump_offset) {
            if (const auto found = by_offset_.find(*rule.jump_offset); found != by_offset_.end())
                entry.jumps.push_back(found->second);
        } else if (rule.handle) {
            const JumpTargets targets = jump_targets(rule, backend);
            entry.jumps_anywhere = targets.any;
            for (const std::string& name : targets.chains)
                if (const auto found = by_name_.find(name); found != by_name_.end())
                    entry.jumps.push_back(found->second);
        }
    }

private:
    std::unordered_map<std::string_view, std::size_t> by_name_;
    std::unordered_map<std::uint32_t, std::size_t> by_offset_;
};

} // namespace

RulesetIndex::RulesetIndex(std::shared_ptr<const Snapshot> snapshot) : snapshot_(std::move(snapshot)) {
    std::size_t place = 0;
    for (const SnapshotTable& table : snapshot_->tables) {
        const std::size_t first = chains_.size();
        const Targets targets(table, first);
        for (const SnapshotChain& chain : table.chains) {
            Chain& here = chains_.emplace_back(Chain{&table, &chain, first, {}});
            for (std::size_t i = 0; i < chain.rules.size(); i++, place++) {
                Entry entry{i, place, {}, may_drop(chain.rules[i], chain.backend), {}, false};
                targets.fill_in(entry, chain.rules[i], chain.backend);
                if (!entry.drops && entry.jumps.empty() && !entry.jumps_anywhere)
                    continue;
                entry.match = RuleMatch(chain.rules[i].text, chain.backend);
                here.entries.push_back(std::move(entry));
            }
            if (chain.policy == "drop")
                here.entries.push_back({policy, place, {}, true, {}, false});
            place++;
        }
    }
}

namespace {

std::string_view function_of(const tsdt_cause& cause) {
    const std::string_view location(cause.location, strnlen(cause.location, sizeof(cause.location)));
    return location.substr(0, location.find('+'));
}

// From 6.7 nft_do_chain frees what nf_tables drops (NF_DROP_REASON); some older kernels have that, too.
bool frees_in_nft_do_chain(std::string_view kernel) {
    unsigned major = 0, minor = 0;
    const char* end = kernel.data() + kernel.size();
    const auto [dot, error] = std::from_chars(kernel.data(), end, major);
    if (error == std::errc() && dot != end)
        std::from_chars(dot + 1, end, minor);
    return std::pair(major, minor) >= std::pair(6u, 7u);
}

bool is_inet(Hook hook) {
    return hook != Hook::ingress && hook != Hook::egress;
}

// Whether packets of a base chain of that table and hook may be the one in question.
bool may_see(const SnapshotTable& table, Hook hook, const Question& question) {
    if (question.hook && *question.hook != hook)
        return false;
    const bool ip = question.packet.family == IpFamily::ipv4, ip6 = question.packet.family == IpFamily::ipv6;
    const std::uint8_t pf = question.pf;
    switch (table.family) {
    case RuleFamily::ip:
        return ip && (pf == 0 || pf == NFPROTO_IPV4);
    case RuleFamily::ip6:
        return ip6 && (pf == 0 || pf == NFPROTO_IPV6);
    case RuleFamily::inet:
        if (!is_inet(hook))
            return pf == 0 || pf == NFPROTO_NETDEV;
        return (ip && (pf == 0 || pf == NFPROTO_IPV4)) || (ip6 && (pf == 0 || pf == NFPROTO_IPV6));
    case RuleFamily::arp:
        return pf == NFPROTO_ARP || (pf == 0 && !ip && !ip6);
    case RuleFamily::bridge:
        return pf == 0 || pf == NFPROTO_BRIDGE;
    case RuleFamily::netdev:
        return pf == 0 || pf == NFPROTO_NETDEV;
    }
    return true;
}

// What the rule's counter adds up is what the packet says of its length.
bool counts_ip_length(const SnapshotTable& table) {
    return table.family == RuleFamily::ip || table.family == RuleFamily::ip6 || table.family == RuleFamily::inet;
}

} // namespace

struct Inference::Window {
    Ruleset* ruleset;
    std::size_t before, after; // indices of its looks

    const Seen& first() const { return ruleset->seen[before]; }
    const Seen& last() const { return ruleset->seen[after]; }
    bool has_counter(std::size_t place) const { return first().look.packets[place] != Look::no_counter; }
    // By how much the counter has moved, without what earlier answers have taken.
    Counts moved(std::size_t place) const {
        Counts moved{last().look.packets[place] - first().look.packets[place],
                     last().look.bytes[place] - first().look.bytes[place]};
        for (std::size_t i = before; i < after; i++) {
            const auto spent = ruleset->seen[i].spent.find(place);
            if (spent == ruleset->seen[i].spent.end())
                continue;
            moved.packets -= std::min(moved.packets, spent->second.packets);
            moved.bytes -= std::min(moved.bytes, spent->second.bytes);
        }
        return moved;
    }
    // A counter that is lower than it was: set to zero in between.
    bool set_back() const {
        const Look &a = first().look, &b = last().look;
        for (std::size_t i = 0; i < a.packets.size(); i++)
            if (a.packets[i] != Look::no_counter && (b.packets[i] < a.packets[i] || b.bytes[i] < a.bytes[i]))
                return true;
        return false;
    }
};

struct Inference::Candidate {
    Window window;
    std::size_t chain, entry; // of the RulesetIndex

    const RulesetIndex::Chain& of() const { return window.first().index->chains()[chain]; }
    const RulesetIndex::Entry& what() const { return of().entries[entry]; }
    bool is_policy() const { return what().rule == RulesetIndex::policy; }
    bool has_counter() const { return window.has_counter(what().place); }
};

Inference::Inference() = default;
Inference::~Inference() = default;
Inference::Inference(Inference&&) noexcept = default;
Inference& Inference::operator=(Inference&&) noexcept = default;

std::optional<Question> question_of(const Drop& drop, const tsdt_cause& cause, std::string_view kernel,
                                    InferredBackends backends) {
    if (cause.key.source != TSDT_SOURCE_NETFILTER || cause.key.unknown != TSDT_UNKNOWN_NOT_TRACED || cause.key.queue)
        return std::nullopt;
    const std::string_view function = function_of(cause);
    const bool slow = function == "nf_hook_slow";
    Question question;
    if (backends.nf_tables && (function == "nft_do_chain" || (slow && !frees_in_nft_do_chain(kernel))))
        question.kinds.push_back(SnapshotKind::nf_tables);
    const std::uint8_t pf = cause.key.pf;
    if (backends.legacy && slow && drop.packet.family == IpFamily::ipv4 && (pf == 0 || pf == NFPROTO_IPV4))
        question.kinds.push_back(SnapshotKind::ip_tables);
    if (backends.legacy && slow && drop.packet.family == IpFamily::ipv6 && (pf == 0 || pf == NFPROTO_IPV6))
        question.kinds.push_back(SnapshotKind::ip6_tables);
    if (question.kinds.empty())
        return std::nullopt;
    question.netns = cause.key.netns;
    question.pf = pf;
    question.hook = drop.site.hook;
    question.mono_ns = static_cast<std::int64_t>(drop.mono_ns);
    question.packet = drop.packet;
    return question;
}

Inference::Ruleset* Inference::find(SnapshotKind kind, std::uint32_t netns) {
    const auto found = std::ranges::find_if(
        rulesets_, [&](const Ruleset& ruleset) { return ruleset.kind == kind && ruleset.netns == netns; });
    return found == rulesets_.end() ? nullptr : &*found;
}

const Inference::Ruleset* Inference::find(SnapshotKind kind, std::uint32_t netns) const {
    return const_cast<Inference*>(this)->find(kind, netns);
}

void Inference::add(Look look) {
    const std::size_t expected = look.snapshot ? places(*look.snapshot) : 0;
    if (look.begin_ns < 0 || look.end_ns < look.begin_ns || look.end_ns > INT64_MAX / 2)
        look.begin_ns = look.end_ns = 0; // from a recording that is not ours
    if (look.problem.empty() && (!look.snapshot || look.packets.size() != expected || look.bytes.size() != expected))
        look.problem = "the counters that were read do not fit the rules";
    Ruleset* ruleset = find(look.kind, look.netns);
    if (!ruleset) {
        if (rulesets_.size() >= max_rulesets)
            rulesets_.pop_back();
        ruleset = &rulesets_.emplace_front(Ruleset{look.kind, look.netns, {}});
    } else {
        rulesets_.splice(rulesets_.begin(), rulesets_,
                         std::ranges::find_if(rulesets_, [&](const Ruleset& other) { return &other == ruleset; }));
    }
    Seen seen;
    if (look.problem.empty()) {
        const bool same = !ruleset->seen.empty() && ruleset->seen.back().index &&
                          ruleset->seen.back().look.generation == look.generation;
        seen.index = same ? ruleset->seen.back().index : std::make_shared<const RulesetIndex>(look.snapshot);
    }
    seen.look = std::move(look);
    ruleset->seen.push_back(std::move(seen));
    if (ruleset->seen.size() > max_seen)
        ruleset->seen.pop_front();
}

bool Inference::ready(const Question& question) const {
    return std::ranges::all_of(question.kinds, [&](SnapshotKind kind) {
        const Ruleset* ruleset = find(kind, question.netns);
        return ruleset && !ruleset->seen.empty() && ruleset->seen.back().look.begin_ns > question.mono_ns;
    });
}

// ---- one packet: what is left over ----

namespace {

// Goes from the base chains that may have seen the packet to all chains that it may have come to.
template <typename MayPass, typename Visit>
void walk(const RulesetIndex& index, const Question& question, const MayPass& may_pass, const Visit& visit) {
    const auto& chains = index.chains();
    std::vector<bool> met(chains.size());
    std::vector<bool> opened(chains.size()); // tables, by their first chain
    std::vector<std::size_t> to_visit;
    const auto meet = [&](std::size_t chain) {
        if (!met[chain])
            to_visit.push_back(chain);
        met[chain] = true;
    };
    for (std::size_t i = 0; i < chains.size(); i++)
        if (chains[i].chain->hook && may_see(*chains[i].table, *chains[i].chain->hook, question))
            meet(i);
    while (!to_visit.empty()) {
        const std::size_t chain = to_visit.back();
        to_visit.pop_back();
        for (std::size_t i = 0; i < chains[chain].entries.size(); i++) {
            const RulesetIndex::Entry& entry = chains[chain].entries[i];
            if (!may_pass(entry))
                continue;
            if (entry.drops)
                visit(chain, i);
            for (const std::size_t target : entry.jumps)
                meet(target);
            const std::size_t first = chains[chain].first;
            if (!entry.jumps_anywhere || opened[first])
                continue;
            opened[first] = true;
            for (std::size_t j = first; j < chains.size() && chains[j].first == first; j++)
                if (!chains[j].chain->hook)
                    meet(j);
        }
    }
}

// The only way from a base chain to `goal`, without the step there; nullopt when there are several.
template <typename MayPass>
class OnlyWay {
public:
    OnlyWay(const RulesetIndex& index, const Question& question, const MayPass& may_pass, std::size_t goal)
        : chains_(index.chains()), may_pass_(may_pass), goal_(goal) {
        for (std::size_t i = 0; i < chains_.size(); i++)
            if (chains_[i].chain->hook && may_see(*chains_[i].table, *chains_[i].chain->hook, question))
                visit(i);
    }
    std::optional<std::vector<PathStep>> way() const { return ways_ == 1 ? std::optional(answer_) : std::nullopt; }

private:
    static constexpr std::size_t max_looked_at = 100'000, max_depth = 128;

    void visit(std::size_t chain) {
        if (chain == goal_) {
            if (++ways_ == 1)
                answer_ = way_;
            return;
        }
        if (way_.size() >= max_depth || ++looked_at_ > max_looked_at)
            ways_ = 2;
        for (const RulesetIndex::Entry& entry : chains_[chain].entries) {
            if (++looked_at_ > max_looked_at)
                ways_ = 2;
            if (ways_ > 1)
                return;
            if ((entry.jumps.empty() && !entry.jumps_anywhere) || !may_pass_(entry))
                continue;
            if (entry.jumps_anywhere) {
                ways_ = 2;
                return;
            }
            const SnapshotRule& rule = chains_[chain].chain->rules[entry.rule];
            way_.push_back({chains_[chain].chain->name, static_cast<std::uint32_t>(entry.rule + 1), rule.handle});
            for (const std::size_t target : entry.jumps)
                visit(target);
            way_.pop_back();
        }
    }

    const std::vector<RulesetIndex::Chain>& chains_;
    const MayPass& may_pass_;
    std::size_t goal_, looked_at_ = 0;
    std::vector<PathStep> way_, answer_;
    int ways_ = 0; // 2: more than one, or too many to tell
};

} // namespace

// Appends what is left over; says why that cannot be known, if it cannot.
std::string Inference::candidates(const Question& question, std::vector<Candidate>& out) {
    if (question.netns == 0)
        return "its network namespace is not known";
    for (const SnapshotKind kind : question.kinds) {
        Ruleset* ruleset = find(kind, question.netns);
        if (!ruleset)
            return not_looked().unknown;
        const auto& seen = ruleset->seen;
        const auto after =
            std::ranges::find_if(seen, [&](const Seen& one) { return one.look.begin_ns > question.mono_ns; });
        const auto before = std::find_if(seen.rbegin(), seen.rend(), [&](const Seen& one) {
            return one.look.end_ns + margin_ns < question.mono_ns;
        });
        if (after == seen.end())
            return not_looked().unknown;
        if (before == seen.rend())
            return "the counters of its rules were first read when it had died; the next packet may tell";
        for (const Look* look : {&before->look, &after->look})
            if (!look->problem.empty())
                return look->problem;
        if (before->look.generation != after->look.generation)
            return "the rules changed between the two looks at their counters, before it died and after";
        const Window window{ruleset, static_cast<std::size_t>(seen.rend() - before) - 1,
                            static_cast<std::size_t>(after - seen.begin())};
        if (window.set_back())
            return "counters of the rules were set to zero between the two looks at them";
        const auto may_pass = [&](const RulesetIndex::Entry& entry) {
            return (!window.has_counter(entry.place) || window.moved(entry.place).packets > 0) &&
                   entry.match.may_match(question.packet, question.hook.has_value());
        };
        walk(*before->index, question, may_pass, [&](std::size_t chain, std::size_t entry) {
            out.push_back({window, chain, entry});
        });
    }
    return "";
}

namespace {

std::string tool_of(const RulesetIndex::Chain& chain) {
    return std::string(to_string(chain.chain->backend));
}

// "INPUT rule 3, table filter" or "the policy of INPUT, table filter"
std::string name_of(const RulesetIndex::Chain& chain, const RulesetIndex::Entry& entry) {
    const std::string table = chain.chain->backend == Backend::nftables
                                  ? fmt::format("table {} {}", to_string(chain.table->family), chain.table->name)
                                  : "table " + chain.table->name;
    if (entry.rule == RulesetIndex::policy)
        return fmt::format("the policy of {}, {} ({})", chain.chain->name, table, tool_of(chain));
    return fmt::format("{} rule {}, {} ({})", chain.chain->name, entry.rule + 1, table, tool_of(chain));
}

} // namespace

Answer Inference::not_looked() {
    return {nullptr, false, "the counters of the rules could not be looked at after it had died"};
}

namespace {

// What a rule must have counted if all these packets of one window have died by it.
struct Claim {
    Counts sum;
    std::vector<std::size_t> questions;
};

std::string several(const std::vector<std::string>& names) {
    constexpr std::size_t shown = 4;
    std::string text = fmt::format("{} rules could have done it: ", names.size());
    for (std::size_t i = 0; i < std::min(shown, names.size()); i++)
        text += (i == 0 ? "" : "; ") + names[i];
    if (names.size() > shown)
        text += fmt::format("; and {} more", names.size() - shown);
    return text;
}

} // namespace

std::vector<Answer> Inference::answer(const std::vector<const Question*>& questions) {
    std::vector<Answer> answers(questions.size());
    std::vector<std::optional<Candidate>> left(questions.size());
    std::vector<std::vector<std::string>> could_have(questions.size()); // names
    // Narrow windows first: what their packets take is not there for those of a wider one. (width, ...)
    using Key = std::tuple<std::size_t, const Ruleset*, std::size_t, std::size_t>;
    std::map<Key, Claim> claims;
    for (std::size_t i = 0; i < questions.size(); i++) {
        std::vector<Candidate> found;
        std::string& unknown = answers[i].unknown;
        unknown = candidates(*questions[i], found);
        if (!unknown.empty())
            continue;
        std::vector<std::string>& names = could_have[i];
        for (const Candidate& candidate : found)
            names.push_back(name_of(candidate.of(), candidate.what()) +
                            (candidate.has_counter() ? "" : ", which has no counter"));
        const auto silent = std::stable_partition(found.begin(), found.end(),
                                                  [](const Candidate& candidate) { return candidate.has_counter(); });
        const auto counted = silent - found.begin();
        if (found.empty()) {
            unknown = "no rule that could have dropped it has counted a packet: a match or a target of a rule may have "
                      "done it, or a function without rules";
        } else if (counted > 1 || (counted == 0 && found.size() > 1)) {
            unknown = several(names);
        } else if (counted == 0) {
            unknown = fmt::format("of the rules that could have done it only one is left, but nothing shows that it "
                                  "did: {}",
                                  names[0]);
        } else {
            left[i] = found[0];
            const Window& window = found[0].window;
            Claim& claim = claims[{window.after - window.before, window.ruleset, window.before, found[0].what().place}];
            claim.sum.packets += 1;
            claim.sum.bytes += questions[i]->packet.length;
            claim.questions.push_back(i);
        }
    }
    for (const auto& [key, claim] : claims) {
        const Candidate& candidate = *left[claim.questions.front()];
        const std::size_t place = candidate.what().place;
        const Counts moved = candidate.window.moved(place);
        const bool too_few = moved.packets < claim.sum.packets;
        const bool others =
            counts_ip_length(*candidate.of().table) &&
            (moved.bytes < claim.sum.bytes || (moved.packets == claim.sum.packets && moved.bytes != claim.sum.bytes));
        // Nothing speaks against a rule without a counter, except that the other one accounts for just these packets.
        const bool just_these = counts_ip_length(*candidate.of().table) && moved.packets == claim.sum.packets &&
                                moved.bytes == claim.sum.bytes;
        const std::string name = name_of(candidate.of(), candidate.what());
        if (!too_few && !others) {
            Counts& spent = candidate.window.ruleset->seen[candidate.window.before].spent[place];
            spent.packets += claim.sum.packets;
            spent.bytes += claim.sum.bytes;
        }
        for (const std::size_t i : claim.questions) {
            if (too_few)
                answers[i].unknown = fmt::format("the only rule that has counted any has counted {}, while {} died: {}",
                                                 counted(moved.packets, "packet"), claim.sum.packets, name);
            else if (others)
                answers[i].unknown =
                    fmt::format("the only rule that has counted any has counted packets of another length: {}", name);
            else if (could_have[i].size() > 1 && !just_these)
                answers[i].unknown = several(could_have[i]);
            else
                answers[i] = told(*questions[i], *left[i], moved, could_have[i].size() > 1);
        }
    }
    return answers;
}

Answer Inference::told(const Question& question, const Candidate& candidate, const Counts& moved, bool beside_silent) {
    const RulesetIndex::Chain& chain = candidate.of();
    const RulesetIndex::Entry& entry = candidate.what();
    const Window& window = candidate.window;
    auto rule = std::make_shared<Rule>();
    rule->backend = chain.chain->backend;
    rule->family = chain.table->family;
    rule->table = chain.table->name;
    rule->chain = chain.chain->name;
    rule->confidence = Confidence::inferred;
    rule->evidence = fmt::format(
        "between two looks its counter rose by {}, {}{}; no other rule that could have dropped the packet has counted "
        "any{}",
        counted(moved.packets, "packet"), counted(moved.bytes, "byte"), beside_silent ? ", which is what has died" : "",
        beside_silent ? "; there are some without a counter" : "");
    if (candidate.is_policy()) {
        rule->path = {{rule->chain, std::nullopt, std::nullopt}};
        rule->jumps = jumps_of(*chain.chain, *chain.table);
        return {std::move(rule), true, ""};
    }
    const SnapshotRule& found = chain.chain->rules[entry.rule];
    rule->number = static_cast<std::uint32_t>(entry.rule + 1);
    rule->handle = found.handle;
    if (!found.text.empty())
        rule->text = found.text;
    rule->has_twin = !found.handle && has_twin(*chain.chain, found);
    if (!found.verdict.empty())
        rule->verdict = found.verdict;
    const auto may_pass = [&](const RulesetIndex::Entry& jump) {
        return (!window.has_counter(jump.place) ||
                window.last().look.packets[jump.place] > window.first().look.packets[jump.place]) &&
               jump.match.may_match(question.packet, question.hook.has_value());
    };
    if (auto way = OnlyWay(*window.first().index, question, may_pass, candidate.chain).way())
        rule->path = std::move(*way);
    rule->path.push_back({rule->chain, rule->number, rule->handle});
    return {std::move(rule), false, ""};
}

} // namespace tsdroptrace::resolve_rule
