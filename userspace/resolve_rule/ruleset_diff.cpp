// SPDX-License-Identifier: GPL-2.0-only
#include "resolve_rule/ruleset_diff.h"

#include <algorithm>
#include <deque>
#include <iterator>
#include <map>
#include <set>
#include <string_view>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <vector>

#include "resolve_rule/rule_match.h"

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

using Names = std::set<std::string_view>;

// Most rules do: their words need not be looked at.
bool ends_there(const SnapshotRule& rule) {
    constexpr std::string_view verdicts[] = {"accept", "drop", "reject", "return"};
    return std::ranges::find(verdicts, rule.verdict) != std::end(verdicts);
}

// The base chains from which a packet may get to one of `chains`.
Names base_chains_to(const Names& chains, const SnapshotTable& table) {
    const std::size_t count = table.chains.size();
    std::unordered_map<std::uint32_t, std::size_t> by_offset;
    std::unordered_map<std::string_view, std::size_t> by_name;
    for (std::size_t i = 0; i < count; i++) {
        by_name.emplace(table.chains[i].name, i);
        if (table.chains[i].offset)
            by_offset.emplace(*table.chains[i].offset, i);
    }
    std::vector<std::vector<std::size_t>> callers(count);
    std::vector<std::size_t> call_any; // jump by a map whose elements are not known
    for (std::size_t i = 0; i < count; i++) {
        for (const SnapshotRule& rule : table.chains[i].rules) {
            if (const auto to = rule.jump_offset ? by_offset.find(*rule.jump_offset) : by_offset.end();
                to != by_offset.end()) {
                callers[to->second].push_back(i);
            } else if (rule.handle && !ends_there(rule)) {
                const JumpTargets targets = jump_targets(rule, table.chains[i].backend);
                if (targets.any)
                    call_any.push_back(i);
                for (const std::string& name : targets.chains)
                    if (const auto named = by_name.find(name); named != by_name.end())
                        callers[named->second].push_back(i);
            }
        }
    }
    std::vector<bool> leads_there(count);
    std::vector<std::size_t> todo;
    const auto add = [&](std::size_t chain) {
        if (!leads_there[chain])
            todo.push_back(chain);
        leads_there[chain] = true;
    };
    for (std::size_t i = 0; i < count; i++)
        if (chains.contains(table.chains[i].name))
            add(i);
    Names bases;
    while (!todo.empty()) {
        const std::size_t chain = todo.back();
        todo.pop_back();
        if (table.chains[chain].hook)
            bases.insert(table.chains[chain].name);
        else
            std::ranges::for_each(call_any, add);
        std::ranges::for_each(callers[chain], add);
    }
    return bases;
}

// A table of which chains differ; null where it is not there.
struct DifferingTable {
    const SnapshotTable *before = nullptr, *after = nullptr;
    std::map<Backend, Names> chains;
};

void add_base_chains(const DifferingTable& table, RuleFamily family, std::string_view name, RulesetDiff& diff) {
    for (const auto& [backend, chains] : table.chains) {
        Names bases;
        for (const SnapshotTable* one : {table.before, table.after})
            if (one)
                bases.merge(base_chains_to(chains, *one));
        DropChanges& changes = diff[backend];
        for (const std::string_view base : bases) {
            if (changes.chains.size() < DropChanges::max_chains)
                changes.chains.push_back({family, std::string(name), std::string(base)});
            else
                changes.more_chains = true;
        }
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
    std::map<std::pair<RuleFamily, std::string_view>, DifferingTable> differing;
    for (const auto& [key, pair] : pairs) {
        if (same_chain(pair))
            continue;
        const auto& [family, table, chain] = key;
        DifferingTable& differs = differing[{family, table}];
        differs.before = pair.old_table ? pair.old_table : differs.before;
        differs.after = pair.new_table ? pair.new_table : differs.after;
        differs.chains[(pair.after ? pair.after : pair.before)->backend].insert(chain);
        compare_chain(pair, diff);
    }
    for (const auto& [key, table] : differing)
        add_base_chains(table, key.first, key.second, diff);
    return diff;
}

} // namespace tsdroptrace::resolve_rule
