// SPDX-License-Identifier: GPL-2.0-only
#include "resolve_rule/ruleset_diff.h"

#include <algorithm>
#include <deque>
#include <map>
#include <string_view>
#include <tuple>
#include <unordered_map>
#include <vector>

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

void add(std::vector<ChangedRule>& list, std::uint64_t& more, const SnapshotTable& table, const SnapshotChain& chain,
         const Dropping* dropping, std::optional<std::uint32_t> was = std::nullopt) {
    if (list.size() >= DropChanges::max_rules) {
        ++more;
        return;
    }
    list.push_back(describe(table, chain, dropping));
    list.back().was = was;
}

// Time and memory grow with the number of rules, however many of them are alike.
void compare_chain(const ChainPair& pair, RulesetDiff& diff) {
    std::vector<Dropping> before = dropping_rules(pair.before), after = dropping_rules(pair.after);
    const auto match = [&](Dropping& from, Dropping& to) {
        from.matched = to.matched = true;
        DropChanges& changes = diff[pair.after->backend];
        if (from.number != to.number)
            add(changes.moved, changes.more_moved, *pair.new_table, *pair.after, &to, from.number);
    };

    if (pair.comparable_handles()) {
        std::unordered_map<std::uint64_t, Dropping*> by_handle;
        for (Dropping& old : before)
            if (old.rule->handle)
                by_handle.emplace(*old.rule->handle, &old);
        for (Dropping& now : after) {
            const auto found = now.rule->handle ? by_handle.find(*now.rule->handle) : by_handle.end();
            if (found != by_handle.end() && !found->second->matched && same_rule(*found->second->rule, *now.rule, pair))
                match(*found->second, now);
        }
    }
    // By text: first those that are still (or again) at their place, then the others in their order.
    std::unordered_map<std::uint32_t, Dropping*> by_number;
    for (Dropping& old : before)
        by_number.emplace(old.number, &old);
    for (Dropping& now : after) {
        const auto found = by_number.find(now.number);
        if (!now.matched && found != by_number.end() && !found->second->matched && !now.rule->text.empty() &&
            found->second->rule->text == now.rule->text)
            match(*found->second, now);
    }
    std::unordered_map<std::string_view, std::deque<Dropping*>> by_text;
    for (Dropping& old : before)
        if (!old.matched && !old.rule->text.empty())
            by_text[old.rule->text].push_back(&old);
    for (Dropping& now : after) {
        const auto found = now.matched ? by_text.end() : by_text.find(now.rule->text);
        if (found == by_text.end() || found->second.empty())
            continue;
        match(*found->second.front(), now);
        found->second.pop_front();
    }

    if (pair.before) {
        DropChanges& changes = diff[pair.before->backend];
        for (const Dropping& old : before)
            if (!old.matched)
                add(changes.removed, changes.more_removed, *pair.old_table, *pair.before, &old);
        if (has_drop_policy(pair.before) && !has_drop_policy(pair.after))
            add(changes.removed, changes.more_removed, *pair.old_table, *pair.before, nullptr);
    }
    if (pair.after) {
        DropChanges& changes = diff[pair.after->backend];
        for (const Dropping& now : after)
            if (!now.matched)
                add(changes.added, changes.more_added, *pair.new_table, *pair.after, &now);
        if (has_drop_policy(pair.after) && !has_drop_policy(pair.before))
            add(changes.added, changes.more_added, *pair.new_table, *pair.after, nullptr);
    }
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
        DropChanges& changes = diff[(pair.after ? pair.after : pair.before)->backend];
        const auto& [family, table, chain] = key;
        if (changes.chains.size() < DropChanges::max_chains)
            changes.chains.push_back({family, std::string(table), std::string(chain)});
        else
            changes.more_chains = true;
        compare_chain(pair, diff);
    }
    return diff;
}

} // namespace tsdroptrace::resolve_rule
