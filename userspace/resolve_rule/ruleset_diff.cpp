// SPDX-License-Identifier: GPL-2.0-only
#include "resolve_rule/ruleset_diff.h"

#include <algorithm>
#include <map>
#include <string_view>
#include <tuple>
#include <unordered_map>

namespace tsdroptrace::resolve_rule {
namespace {

// One rule that drops; what it points to lives in its snapshot.
struct Dropping {
    const SnapshotRule* rule = nullptr;
    std::uint32_t number = 0;
    bool matched = false;
};

std::vector<Dropping> dropping_rules(const SnapshotChain* chain) {
    std::vector<Dropping> found;
    for (std::size_t i = 0; chain && i < chain->rules.size(); i++)
        if (can_drop(chain->rules[i]))
            found.push_back({&chain->rules[i], static_cast<std::uint32_t>(i + 1)});
    return found;
}

bool has_drop_policy(const SnapshotChain* chain) {
    return chain && chain->policy == "drop";
}

// One chain in both snapshots; null where it is not there.
struct ChainPair {
    const SnapshotTable *old_table = nullptr, *new_table = nullptr;
    const SnapshotChain *before = nullptr, *after = nullptr;

    // Handles are counted within a table: one that was made anew begins again.
    bool comparable_handles() const {
        return old_table && new_table && old_table->handle && old_table->handle == new_table->handle && before &&
               after && before->handle == after->handle;
    }
};

// The handle alone does not tell: a rule that is replaced (NLM_F_REPLACE) may keep it.
bool same_rule(const SnapshotRule& before, const SnapshotRule& after, const ChainPair& pair) {
    if (before.verdict != after.verdict)
        return false;
    // nft's words for a rule may have been iptables' the last time: then there is only the handle.
    if (pair.comparable_handles() && pair.before->backend != pair.after->backend && before.handle)
        return before.handle == after.handle;
    return before.text == after.text && (!pair.comparable_handles() || before.handle == after.handle);
}

bool same_chain(const ChainPair& pair) {
    if (!pair.before || !pair.after || pair.before->hook != pair.after->hook ||
        pair.before->policy != pair.after->policy)
        return false;
    return std::equal(pair.before->rules.begin(), pair.before->rules.end(), pair.after->rules.begin(),
                      pair.after->rules.end(),
                      [&](const SnapshotRule& a, const SnapshotRule& b) { return same_rule(a, b, pair); });
}

ChangedRule describe(const SnapshotTable& table, const SnapshotChain& chain, const Dropping* dropping) {
    ChangedRule changed;
    Rule& rule = changed.rule;
    rule.backend = chain.backend;
    rule.family = table.family;
    rule.table = table.name;
    rule.chain = chain.name;
    rule.verdict = "drop";
    if (dropping) {
        rule.number = dropping->number;
        rule.handle = dropping->rule->handle;
        if (!dropping->rule->text.empty())
            rule.text = dropping->rule->text;
        if (!dropping->rule->verdict.empty())
            rule.verdict = dropping->rule->verdict;
    }
    rule.path = {{chain.name, rule.number, rule.handle}};
    return changed;
}

void compare_chain(const ChainPair& pair, RulesetDiff& diff) {
    std::vector<Dropping> before = dropping_rules(pair.before), after = dropping_rules(pair.after);
    const auto add_moved = [&](const Dropping& from, const Dropping& to) {
        if (from.number == to.number)
            return;
        diff.moved.push_back(describe(*pair.new_table, *pair.after, &to));
        diff.moved.back().was = from.number;
    };

    if (pair.comparable_handles()) {
        std::unordered_map<std::uint64_t, Dropping*> by_handle;
        for (Dropping& old : before)
            if (old.rule->handle)
                by_handle.emplace(*old.rule->handle, &old);
        for (Dropping& now : after) {
            const auto found = now.rule->handle ? by_handle.find(*now.rule->handle) : by_handle.end();
            if (found == by_handle.end() || found->second->matched || !same_rule(*found->second->rule, *now.rule, pair))
                continue;
            found->second->matched = now.matched = true;
            add_moved(*found->second, now);
        }
    }
    // By text: first those that are still (or again) at their place, then the others in their order.
    std::unordered_multimap<std::string_view, Dropping*> by_text;
    for (Dropping& old : before)
        if (!old.matched && !old.rule->text.empty())
            by_text.emplace(old.rule->text, &old);
    for (const bool same_place : {true, false}) {
        for (Dropping& now : after) {
            if (now.matched)
                continue;
            Dropping* best = nullptr;
            const auto [begin, end] = by_text.equal_range(now.rule->text);
            for (auto it = begin; it != end; ++it) {
                Dropping* old = it->second;
                if (!old->matched && (!same_place || old->number == now.number) &&
                    (!best || old->number < best->number))
                    best = old;
            }
            if (!best)
                continue;
            best->matched = now.matched = true;
            add_moved(*best, now);
        }
    }
    for (const Dropping& old : before)
        if (!old.matched)
            diff.removed.push_back(describe(*pair.old_table, *pair.before, &old));
    for (const Dropping& now : after)
        if (!now.matched)
            diff.added.push_back(describe(*pair.new_table, *pair.after, &now));
    if (has_drop_policy(pair.before) && !has_drop_policy(pair.after))
        diff.removed.push_back(describe(*pair.old_table, *pair.before, nullptr));
    if (has_drop_policy(pair.after) && !has_drop_policy(pair.before))
        diff.added.push_back(describe(*pair.new_table, *pair.after, nullptr));
}

} // namespace

bool can_drop(const SnapshotRule& rule) {
    return rule.verdict == "drop" || rule.verdict == "reject" ||
           (rule.verdict.empty() && rule.handle && rule.text.find("vmap {") != rule.text.npos &&
            rule.text.find(": drop") != rule.text.npos);
}

std::optional<RulesetDiff> compare(const Snapshot& before, const Snapshot& after) {
    if (before.problems != after.problems)
        return std::nullopt;
    std::map<std::tuple<RuleFamily, std::string_view, std::string_view>, ChainPair> pairs;
    for (const SnapshotTable& table : before.tables)
        for (const SnapshotChain& chain : table.chains) {
            ChainPair& pair = pairs[{table.family, table.name, chain.name}];
            pair.old_table = &table;
            pair.before = &chain;
        }
    for (const SnapshotTable& table : after.tables)
        for (const SnapshotChain& chain : table.chains) {
            ChainPair& pair = pairs[{table.family, table.name, chain.name}];
            pair.new_table = &table;
            pair.after = &chain;
        }
    RulesetDiff diff;
    for (const auto& [key, pair] : pairs) {
        if (same_chain(pair))
            continue;
        diff.changed.insert((pair.after ? pair.after : pair.before)->backend);
        compare_chain(pair, diff);
    }
    return diff;
}

} // namespace tsdroptrace::resolve_rule
