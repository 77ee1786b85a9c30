// SPDX-License-Identifier: GPL-2.0-only
#include "resolve_rule/legacy_path.h"

#include <algorithm>
#include <cstdint>
#include <map>

namespace tsdroptrace::resolve_rule {
namespace {

class Search {
public:
    Search(const SnapshotTable& table, LegacyPosition goal, std::span<const std::uint32_t> jumpstack)
        : table_(table), goal_(goal), jumpstack_(jumpstack) {
        for (std::size_t i = 0; i < table.chains.size(); i++)
            if (table.chains[i].offset && !table.chains[i].hook)
                user_chain_at_.emplace(*table.chains[i].offset, i);
    }

    std::vector<PathStep> run(std::size_t builtin) {
        visit(builtin, 0);
        return ways_ == 1 ? answer_ : std::vector<PathStep>{};
    }

private:
    // Far more than real rulesets need for one drop, and still only milliseconds.
    static constexpr std::size_t max_looked_at = 200'000;
    static constexpr std::size_t max_depth = 128;

    void visit(std::size_t chain, std::size_t level) {
        if (chain == goal_.chain) {
            if (++ways_ == 1) {
                answer_ = way_;
                answer_.push_back(step(goal_.chain, goal_.rule));
            }
            return;
        }
        if (way_.size() >= max_depth) {
            ways_ = 2; // cannot be, in a table that the kernel accepted
            return;
        }
        const auto& rules = table_.chains[chain].rules;
        for (std::size_t i = 0; i < rules.size() && ways_ < 2; i++) {
            if (++looked_at_ > max_looked_at) {
                ways_ = 2;
                return;
            }
            if (!rules[i].jump_offset)
                continue;
            bool on_stack = level < jumpstack_.size() && rules[i].offset == jumpstack_[level];
            bool beyond_stack = level == jumpstack_.size();
            if (!rules[i].is_goto && !on_stack && !beyond_stack)
                continue;
            auto target = user_chain_at_.find(*rules[i].jump_offset);
            if (target == user_chain_at_.end())
                continue;
            way_.push_back(step(chain, i));
            visit(target->second, level + (rules[i].is_goto || beyond_stack ? 0 : 1));
            way_.pop_back();
        }
    }

    PathStep step(std::size_t chain, std::size_t rule) const {
        return {table_.chains[chain].name, static_cast<std::uint32_t>(rule + 1), std::nullopt};
    }

    const SnapshotTable& table_;
    LegacyPosition goal_;
    std::span<const std::uint32_t> jumpstack_;
    std::map<std::uint32_t, std::size_t> user_chain_at_;
    std::vector<PathStep> way_, answer_;
    int ways_ = 0; // 2 means: more than one, or too many to tell
    std::size_t looked_at_ = 0;
};

} // namespace

std::optional<LegacyPosition> find_rule(const SnapshotTable& table, std::uint32_t offset) {
    for (std::size_t chain = 0; chain < table.chains.size(); chain++) {
        const auto& rules = table.chains[chain].rules; // in the order of the blob
        auto rule = std::lower_bound(rules.begin(), rules.end(), offset,
                                     [](const SnapshotRule& r, std::uint32_t o) { return r.offset < o; });
        if (rule != rules.end() && rule->offset == offset)
            return LegacyPosition{chain, static_cast<std::size_t>(rule - rules.begin())};
    }
    return std::nullopt;
}

std::vector<std::uint32_t> rules_before(const SnapshotTable& table, std::span<const std::uint32_t> offsets) {
    std::vector<std::uint32_t> result;
    for (const std::uint32_t offset : offsets) {
        std::uint32_t before = UINT32_MAX;
        for (const SnapshotChain& chain : table.chains) // in the order of the blob
            for (const SnapshotRule& rule : chain.rules)
                if (rule.offset && *rule.offset < offset)
                    before = *rule.offset;
        result.push_back(offset == UINT32_MAX ? offset : before);
    }
    return result;
}

std::vector<PathStep> legacy_path(const SnapshotTable& table, Hook hook, std::uint32_t offset,
                                  std::span<const std::uint32_t> jumpstack) {
    auto goal = find_rule(table, offset);
    auto builtin = std::find_if(table.chains.begin(), table.chains.end(),
                                [&](const SnapshotChain& chain) { return chain.hook == hook; });
    if (!goal || builtin == table.chains.end())
        return {};
    return Search(table, *goal, jumpstack).run(static_cast<std::size_t>(builtin - table.chains.begin()));
}

} // namespace tsdroptrace::resolve_rule
