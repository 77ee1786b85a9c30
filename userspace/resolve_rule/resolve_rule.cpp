// SPDX-License-Identifier: GPL-2.0-only
#include "resolve_rule/resolve_rule.h"

#include <algorithm>
#include <cstring>
#include <span>
#include <string_view>

#include <fmt/format.h>
#include <linux/netfilter.h>

#include "resolve_rule/legacy_path.h"
#include "resolve_rule/rule_words.h"

namespace tsdroptrace::resolve_rule {
namespace {

std::optional<RuleFamily> rule_family(std::uint16_t nfproto) {
    switch (nfproto) {
    case NFPROTO_INET:
        return RuleFamily::inet;
    case NFPROTO_IPV4:
        return RuleFamily::ip;
    case NFPROTO_ARP:
        return RuleFamily::arp;
    case NFPROTO_NETDEV:
        return RuleFamily::netdev;
    case NFPROTO_BRIDGE:
        return RuleFamily::bridge;
    case NFPROTO_IPV6:
        return RuleFamily::ip6;
    default:
        return std::nullopt;
    }
}

std::optional<Hook> legacy_hook(RuleFamily family, std::uint8_t number) {
    static constexpr Hook inet[] = {Hook::prerouting, Hook::input, Hook::forward, Hook::output, Hook::postrouting};
    static constexpr Hook arp[] = {Hook::input, Hook::output, Hook::forward};
    const std::span<const Hook> hooks = family == RuleFamily::arp ? std::span<const Hook>(arp) : inet;
    return number < hooks.size() ? std::optional(hooks[number]) : std::nullopt;
}

template <std::size_t size>
std::string_view bounded(const char (&text)[size]) {
    return {text, strnlen(text, size)};
}

// Whether the kernel's name, which is cut when it fills its array, is the name in the snapshot.
bool same_name(std::string_view from_kernel, std::string_view from_snapshot) {
    bool cut = from_kernel.size() >= TSDT_NAME_LEN - 1;
    return cut ? from_snapshot.starts_with(from_kernel) : from_snapshot == from_kernel;
}

PathStep path_step(const tsdt_step& step) {
    PathStep result{std::string(bounded(step.chain)), std::nullopt, std::nullopt};
    if (step.number != 0)
        result.number = step.number;
    if (step.handle != 0)
        result.handle = step.handle;
    return result;
}

// What looking a rule up in a snapshot can come to.
enum class Match {
    found,
    absent,       // the snapshot should have it, and disagrees with the kernel
    not_readable, // the snapshot does not have it, and need not
};

// A table that is in a snapshot is there as a whole; one that could not be read is not in it.
Match no_table(const Snapshot& snapshot) {
    return snapshot.problems.empty() ? Match::absent : Match::not_readable;
}

// What the rule's target would have done is of no matter where a match has dropped the packet.
void set_verdict(Rule& rule, const SnapshotRule& found) {
    if (rule.verdict != verdict_of_match && !found.verdict.empty())
        rule.verdict = found.verdict;
}

// ---- nf_tables ----

const SnapshotTable* find_nft_table(const Snapshot& snapshot, const tsdt_cause& cause, RuleFamily family) {
    for (const SnapshotTable& table : snapshot.tables) {
        bool same = cause.table_handle != 0 && table.handle ? *table.handle == cause.table_handle : true;
        if (table.family == family && same && same_name(bounded(cause.table), table.name))
            return &table;
    }
    return nullptr;
}

const SnapshotChain* find_nft_chain(const SnapshotTable& table, const tsdt_step& step) {
    for (const SnapshotChain& chain : table.chains) {
        bool same = step.chain_handle != 0 && chain.handle ? *chain.handle == step.chain_handle : true;
        if (same && same_name(bounded(step.chain), chain.name))
            return &chain;
    }
    return nullptr;
}

// Chains that `jump { ... }` makes: listed within the jumping rule, without handles.
bool is_anonymous(std::string_view chain) {
    return chain.starts_with("__chain");
}

// nft lists a rule of an anonymous chain only as part of the rule that jumps there: that one's text is the answer.
Match fill_in_block(Rule& rule, const tsdt_cause& cause, std::size_t steps, const SnapshotTable& table) {
    while (steps > 0 && is_anonymous(bounded(cause.step[steps - 1].chain)))
        steps--;
    if (steps == 0)
        return Match::not_readable;
    const tsdt_step& jump = cause.step[steps - 1];
    const SnapshotChain* chain = find_nft_chain(table, jump);
    if (!chain)
        return Match::absent;
    auto at = std::find_if(chain->rules.begin(), chain->rules.end(),
                           [&](const SnapshotRule& candidate) { return candidate.handle == jump.handle; });
    if (at == chain->rules.end())
        return Match::absent;
    rule.table = table.name;
    if (!at->text.empty())
        rule.text = at->text;
    return Match::found;
}

Match fill_in_nft(Rule& rule, const tsdt_cause& cause, std::size_t steps, const Snapshot& snapshot) {
    bool policy = cause.key.source == TSDT_SOURCE_NFT_POLICY;
    if (steps == 0 || (!policy && cause.step[steps - 1].handle == 0))
        return Match::not_readable; // the kernel's side could not say enough to find it
    const tsdt_step& last = cause.step[steps - 1];
    const SnapshotTable* table = find_nft_table(snapshot, cause, rule.family);
    if (!table)
        return no_table(snapshot);
    const SnapshotChain* chain = find_nft_chain(*table, last);
    if (!chain)
        return is_anonymous(bounded(last.chain)) ? fill_in_block(rule, cause, steps, *table) : Match::absent;

    const SnapshotRule* found = nullptr;
    std::size_t index = 0;
    if (policy) {
        if (!chain->hook)
            return Match::absent;
        rule.jumps = jumps_of(*chain, *table);
    } else {
        auto at = std::find_if(chain->rules.begin(), chain->rules.end(),
                               [&](const SnapshotRule& candidate) { return candidate.handle == last.handle; });
        if (at == chain->rules.end())
            return Match::absent;
        index = static_cast<std::size_t>(at - chain->rules.begin()) + 1;
        if (last.number != 0 && last.number != index)
            return Match::absent;
        found = &*at;
    }

    rule.table = table->name;
    rule.backend = chain->backend;
    for (std::size_t i = 0; i < rule.path.size(); i++) // names that the kernel's side had to cut
        if (const SnapshotChain* passed = find_nft_chain(*table, cause.step[i]))
            rule.path[i].chain = passed->name;
    rule.chain = chain->name;
    if (found) {
        rule.number = rule.path.back().number = static_cast<std::uint32_t>(index);
        if (!found->text.empty())
            rule.text = found->text;
        set_verdict(rule, *found);
    }
    return Match::found;
}

// ---- x_tables ----

const SnapshotTable* find_legacy_table(const Snapshot& snapshot, std::string_view name, RuleFamily family) {
    for (const SnapshotTable& table : snapshot.tables)
        if (table.family == family && table.name == name)
            return &table;
    return nullptr;
}

Match fill_in_legacy_policy(Rule& rule, const tsdt_cause& cause, const SnapshotTable& table) {
    for (const SnapshotChain& chain : table.chains) {
        if (chain.policy_offset != cause.key.offset)
            continue;
        if (!rule.chain.empty() && rule.chain != chain.name)
            return Match::absent;
        rule.chain = chain.name;
        rule.path = {{chain.name, std::nullopt, std::nullopt}};
        rule.jumps = jumps_of(chain, table);
        return Match::found;
    }
    return Match::absent;
}

Match fill_in_legacy_rule(Rule& rule, const tsdt_cause& cause, const tsdt_drop& drop, const SnapshotTable& table) {
    auto position = find_rule(table, cause.key.offset);
    if (!position)
        return Match::absent;
    const SnapshotChain& chain = table.chains[position->chain];
    const SnapshotRule& found = chain.rules[position->rule];
    auto number = static_cast<std::uint32_t>(position->rule + 1);
    if ((!rule.chain.empty() && rule.chain != chain.name) || (rule.number && *rule.number != number))
        return Match::absent;

    rule.chain = chain.name;
    rule.number = number;
    rule.path.clear();
    std::span<const std::uint32_t> jumpstack = drop.jumpstack;
    std::vector<std::uint32_t> jumps;
    if (jumpstack.front() == TSDT_JUMPSTACK_UNKNOWN) {
        jumpstack = {};
    } else if (table.family == RuleFamily::bridge) {
        jumps = rules_before(table, jumpstack);
        jumpstack = jumps;
    }
    if (auto hook = legacy_hook(table.family, cause.key.hook))
        rule.path = legacy_path(table, *hook, cause.key.offset, jumpstack);
    if (rule.path.empty())
        rule.path = {{chain.name, number, std::nullopt}};
    if (!found.text.empty())
        rule.text = found.text;
    rule.has_twin = has_twin(chain, found);
    set_verdict(rule, found);
    return Match::found;
}

Match fill_in_legacy(Rule& rule, const tsdt_cause& cause, const tsdt_drop& drop, const Snapshot& snapshot) {
    const SnapshotTable* table = find_legacy_table(snapshot, rule.table, rule.family);
    if (!table)
        return no_table(snapshot);
    return cause.key.source == TSDT_SOURCE_LEGACY_POLICY ? fill_in_legacy_policy(rule, cause, *table)
                                                         : fill_in_legacy_rule(rule, cause, drop, *table);
}

// ---- both ----

bool is_nft(std::uint8_t source) {
    return source == TSDT_SOURCE_NFT_RULE || source == TSDT_SOURCE_NFT_POLICY;
}

bool is_policy(std::uint8_t source) {
    return source == TSDT_SOURCE_NFT_POLICY || source == TSDT_SOURCE_LEGACY_POLICY;
}

bool is_legacy(std::uint8_t source) {
    return source == TSDT_SOURCE_LEGACY_RULE || source == TSDT_SOURCE_LEGACY_POLICY;
}

// What the kernel said, and nothing else.
Rule rule_of_kernel(const tsdt_cause& cause, RuleFamily family, std::size_t steps) {
    Rule rule;
    rule.backend = is_nft(cause.key.source) ? Backend::nftables : Backend::iptables_legacy;
    rule.family = family;
    rule.table = bounded(cause.table);
    if (steps == 0)
        return rule;
    for (std::size_t i = 0; i < steps; i++)
        rule.path.push_back(path_step(cause.step[i]));
    if (is_policy(cause.key.source))
        rule.path.back() = {rule.path.back().chain, std::nullopt, std::nullopt};
    rule.chain = rule.path.back().chain;
    rule.number = rule.path.back().number;
    rule.handle = rule.path.back().handle;
    if (cause.step[steps - 1].by_match)
        rule.verdict = verdict_of_match;
    return rule;
}

std::optional<SnapshotKind> kind_of(std::uint8_t source, RuleFamily family, std::string_view table) {
    if (is_nft(source))
        return SnapshotKind::nf_tables;
    switch (family) {
    case RuleFamily::ip:
        return SnapshotKind::ip_tables;
    case RuleFamily::ip6:
        return SnapshotKind::ip6_tables;
    case RuleFamily::arp:
        return SnapshotKind::arp_tables;
    case RuleFamily::bridge:
        return table == "nat" ? SnapshotKind::bridge_nat : SnapshotKind::bridge_filter;
    default:
        return std::nullopt;
    }
}

} // namespace

std::vector<std::string> jumps_of(const SnapshotChain& from, const SnapshotTable& table) {
    std::vector<std::string> out;
    for (const SnapshotRule& rule : from.rules) {
        const bool iptables = rule.text.starts_with("-A ");
        const std::string name = iptables ? iptables_jump(rule.text) : nft_jump(rule.text);
        const bool is_chain = std::ranges::any_of(table.chains, [&](const auto& chain) { return chain.name == name; });
        if (is_chain && std::ranges::find(out, name) == out.end())
            out.push_back(name);
    }
    return out;
}

std::optional<SnapshotKind> snapshot_kind(const tsdt_cause& cause) {
    auto family = rule_family(cause.family);
    bool names_one = is_nft(cause.key.source) || is_legacy(cause.key.source);
    return names_one && family ? kind_of(cause.key.source, *family, bounded(cause.table)) : std::nullopt;
}

std::shared_ptr<const Rule> Resolver::resolve(const tsdt_cause& cause, const tsdt_drop& drop) {
    std::uint8_t source = cause.key.source;
    auto family = rule_family(cause.family);
    if ((!is_nft(source) && !is_legacy(source)) || !family)
        return nullptr;

    CacheKey key{cause.id, {}};
    if (source == TSDT_SOURCE_LEGACY_RULE) // elsewhere the path is part of the cause
        std::copy(std::begin(drop.jumpstack), std::end(drop.jumpstack), key.second.begin());
    if (auto cached = cache_.find(key); cached != cache_.end())
        return cached->second.rule;

    std::size_t steps = std::min<std::size_t>(cause.steps, is_legacy(source) ? 1 : TSDT_PATH_MAX);
    auto rule = std::make_shared<Rule>(rule_of_kernel(cause, *family, steps));

    std::shared_ptr<const Snapshot> snapshot;
    if (auto kind = kind_of(source, *family, bounded(cause.table)))
        snapshot = source_.get(*kind, cause.key.netns, cause.key.generation);
    if (!snapshot)
        return rule; // perhaps it can be read next time
    if (snapshot->generation != cause.key.generation) {
        rule->stale = true;
        return rule;
    }
    Match match =
        is_nft(source) ? fill_in_nft(*rule, cause, steps, *snapshot) : fill_in_legacy(*rule, cause, drop, *snapshot);
    rule->stale = match == Match::absent;

    if (cache_.size() >= max_cached) {
        cache_.clear();
        sets_.clear();
        lookups_size_ = 0;
    }
    Resolved resolved{rule, cause.key.generation, nullptr};
    const SnapshotTable* table =
        source == TSDT_SOURCE_NFT_RULE && match == Match::found ? find_nft_table(*snapshot, cause, *family) : nullptr;
    // A match that has dropped the packet may stand before the rule's lookups.
    if (table && rule->backend == Backend::nftables && rule->text && rule->verdict != verdict_of_match)
        resolved.lookups = lookups_of(*rule, cause, *table);
    cache_.emplace(key, std::move(resolved));
    return rule;
}

std::shared_ptr<const RuleLookups> Resolver::lookups_of(const Rule& rule, const tsdt_cause& cause,
                                                        const SnapshotTable& table) {
    if (lookups_size_ > max_lookups_size)
        forget_lookups(cause.key.generation);
    const auto named = [&](std::string_view name, const Selectors& selectors) -> std::shared_ptr<const SetElements> {
        const auto set = std::ranges::find(table.sets, name, &SnapshotSet::name);
        if (set == table.sets.end() || set->elements.empty())
            return nullptr;
        std::string key = fmt::format("{} {} {} {} {}", cause.key.netns, cause.key.generation,
                                      static_cast<int>(table.family), table.handle.value_or(0), name);
        for (const Selector& selector : selectors)
            key += fmt::format(" {} {} {}", static_cast<int>(selector.what), static_cast<int>(selector.family),
                               selector.proto);
        auto& elements = sets_[key];
        if (!elements) {
            elements = std::make_shared<SetElements>(set->elements, selectors, set->may_change);
            lookups_size_ += elements->size();
        }
        return elements;
    };
    auto lookups = std::make_shared<const RuleLookups>(*rule.text, named);
    if (lookups->empty())
        return nullptr;
    lookups_size_ += lookups->size();
    return lookups;
}

// Rules of that generation are resolved again, since their snapshot is likely to be still there.
void Resolver::forget_lookups(std::uint32_t generation) {
    std::erase_if(cache_,
                  [&](const auto& entry) { return entry.second.lookups && entry.second.generation == generation; });
    for (auto& [key, resolved] : cache_)
        resolved.lookups = nullptr;
    sets_.clear();
    lookups_size_ = 0;
}

std::vector<SetElement> Resolver::elements(const tsdt_cause& cause, const Packet& packet) const {
    const auto found = cache_.find(CacheKey{cause.id, {}});
    if (found == cache_.end() || !found->second.lookups)
        return {};
    return found->second.lookups->elements(packet);
}

} // namespace tsdroptrace::resolve_rule
