// SPDX-License-Identifier: GPL-2.0-only
#include "resolve_rule/iptables_save.h"

#include <algorithm>

#include "resolve_rule/rule_words.h"

namespace tsdroptrace::resolve_rule {
namespace {

// Up to the line break that is not in quotes, where \ escapes.
std::string_view first_line(std::string_view text) {
    bool quoted = false;
    for (std::size_t i = 0; i < text.size(); i++) {
        if (text[i] == '\n' && !quoted)
            return text.substr(0, i);
        if (text[i] == '"')
            quoted = !quoted;
        else if (text[i] == '\\')
            i++;
    }
    return text;
}

bool fits(const SnapshotRule& rule, std::string_view line) {
    if (rule.handle)
        return says_the_same(line, rule.text);
    return (rule.verdict == "drop") == (iptables_verdict(line) == "drop");
}

} // namespace

SavedTable read_iptables_save(std::string_view output) {
    SavedTable table;
    while (!output.empty()) {
        bool is_rule = output.starts_with("-A ");
        std::string_view line = is_rule ? first_line(output) : output.substr(0, output.find('\n'));
        output.remove_prefix(std::min(line.size() + 1, output.size()));
        if (is_rule) {
            std::string_view name = line.substr(3);
            table[std::string(name.substr(0, name.find(' ')))].emplace_back(line);
        } else if (line.starts_with(':')) {
            table[std::string(line.substr(1, line.find(' ') - 1))];
        }
    }
    return table;
}

SavedTable read_legacy_listing(std::string_view output) {
    // "Chain INPUT (policy ACCEPT)", "Bridge chain: INPUT, entries: 2, policy: ACCEPT"
    constexpr std::string_view chain_begins[] = {"Chain ", "Bridge chain: "};
    SavedTable table;
    std::vector<std::string>* rules = nullptr;
    std::string chain;
    while (!output.empty()) {
        std::string_view line = output.substr(0, output.find('\n'));
        output.remove_prefix(std::min(line.size() + 1, output.size()));
        const auto begins = std::ranges::find_if(chain_begins, [&](auto prefix) { return line.starts_with(prefix); });
        if (begins != std::end(chain_begins)) {
            line.remove_prefix(begins->size());
            chain = line.substr(0, line.find_first_of(" ,"));
            rules = &table[chain];
        } else if (rules && !line.empty()) {
            while (line.ends_with(' '))
                line.remove_suffix(1);
            rules->push_back("-A " + chain + (line.empty() ? "" : " ") + std::string(line));
        }
    }
    return table;
}

std::size_t use_iptables_words(SnapshotTable& table, SavedTable saved) {
    std::size_t left = 0;
    for (SnapshotChain& chain : table.chains) {
        auto lines = saved.find(chain.name);
        if (lines == saved.end() || lines->second.size() != chain.rules.size() ||
            !std::equal(chain.rules.begin(), chain.rules.end(), lines->second.begin(), fits)) {
            left += !chain.rules.empty();
            continue;
        }
        for (std::size_t i = 0; i < chain.rules.size(); i++)
            chain.rules[i].text = std::move(lines->second[i]);
        if (table.handle)
            chain.backend = Backend::iptables_nft;
    }
    return left;
}

} // namespace tsdroptrace::resolve_rule
