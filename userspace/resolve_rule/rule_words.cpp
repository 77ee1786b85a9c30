// SPDX-License-Identifier: GPL-2.0-only
#include "resolve_rule/rule_words.h"

#include <algorithm>
#include <array>
#include <optional>
#include <vector>

namespace tsdroptrace::resolve_rule {
namespace {

using Words = std::vector<std::string_view>;

template <std::size_t size>
bool is_one_of(std::string_view word, const std::array<std::string_view, size>& set) {
    return std::find(set.begin(), set.end(), word) != set.end();
}

// Words outside of any { }.
Words outermost(const Words& words) {
    Words result;
    int depth = 0;
    for (std::string_view word : words) {
        if (word == "{")
            depth++;
        else if (word == "}")
            depth--;
        else if (depth == 0)
            result.push_back(word);
    }
    return result;
}

struct Target {
    std::string_view name;
    bool is_goto = false;
};

std::optional<Target> iptables_target(const Words& words) {
    for (std::size_t i = 2; i + 1 < words.size(); i++) // after -A chain
        if (words[i] == "-j" || words[i] == "-g")
            return Target{words[i + 1], words[i] == "-g"};
    return std::nullopt;
}

// Whether nft's words match on more than iptables' own language could have asked for.
bool has_set_or_range(const Words& words) {
    for (std::size_t i = 0; i < words.size(); i++) {
        if (words[i] == "{" || words[i].starts_with('@'))
            return true;
        if ((words[i] == "saddr" || words[i] == "daddr") && i + 1 < words.size()) {
            std::size_t value = words[i + 1] == "!=" ? i + 2 : i + 1;
            if (value < words.size() && words[value].find('-') != words[value].npos)
                return true;
        }
    }
    return false;
}

// Whether the rule has a match of the kernel's xtables modules, which nft may print with sets and ranges
// (multiport, iprange, time, ...). Rules that nft itself wrote have none; what iptables-nft shows as one of
// these is read out of native expressions.
bool has_xtables_match(const Words& words) {
    static constexpr std::array<std::string_view, 13> native = {
        "tcp", "udp", "icmp", "icmp6", "comment", "limit", "mark", "ttl", "hl", "mac", "pkttype", "conntrack", "state"};
    for (std::size_t i = 0; i + 1 < words.size(); i++)
        if (words[i] == "-m" && !is_one_of(words[i + 1], native))
            return true;
    return false;
}

} // namespace

std::vector<std::string_view> split_rule(std::string_view text, bool backslash_escapes) {
    std::vector<std::string_view> words;
    std::size_t begin = 0;
    bool in_word = false, quoted = false;
    for (std::size_t i = 0; i < text.size(); i++) {
        char c = text[i];
        bool space = !quoted && (c == ' ' || c == '\t' || c == '\n');
        if (space && in_word)
            words.push_back(text.substr(begin, i - begin));
        if (!space && !in_word)
            begin = i;
        in_word = !space;
        if (c == '"')
            quoted = !quoted;
        else if (c == '\\' && backslash_escapes)
            i++;
    }
    if (in_word)
        words.push_back(text.substr(begin));
    return words;
}

std::string nft_verdict(std::string_view rule) {
    static constexpr std::array<std::string_view, 4> final_words = {"drop", "accept", "return", "continue"};
    static constexpr std::array<std::string_view, 2> queue_or_reject = {"queue", "reject"};
    Words words = outermost(split_rule(rule, false));
    if (words.size() >= 2 && words[words.size() - 2] == "comment" && words.back().starts_with('"'))
        words.resize(words.size() - 2);
    if (words.empty())
        return "";
    for (std::size_t i = words.size() >= 2 ? words.size() - 2 : 0; i < words.size(); i++) // the last, in jump { ... }
        if (words[i] == "jump" || words[i] == "goto")
            return std::string(words[i]);
    if (is_one_of(words.back(), final_words))
        return std::string(words.back());
    for (std::string_view word : words)
        if (is_one_of(word, queue_or_reject))
            return std::string(word);
    return "";
}

std::string iptables_verdict(std::string_view rule) {
    auto target = iptables_target(split_rule(rule, true));
    if (!target)
        return "";
    static constexpr std::array<std::pair<std::string_view, std::string_view>, 6> names = {{{"DROP", "drop"},
                                                                                            {"ACCEPT", "accept"},
                                                                                            {"RETURN", "return"},
                                                                                            {"REJECT", "reject"},
                                                                                            {"QUEUE", "queue"},
                                                                                            {"NFQUEUE", "queue"}}};
    for (auto [name, verdict] : names)
        if (target->name == name)
            return std::string(verdict);
    return target->is_goto ? "goto" : "";
}

std::string nft_jump(std::string_view rule) {
    const Words words = outermost(split_rule(rule, false));
    for (std::size_t i = 0; i + 1 < words.size(); i++)
        if (words[i] == "jump" || words[i] == "goto")
            return std::string(words[i + 1]);
    return "";
}

std::string iptables_jump(std::string_view rule) {
    const auto target = iptables_target(split_rule(rule, true));
    return target ? std::string(target->name) : "";
}

bool says_the_same(std::string_view iptables_rule, std::string_view nft_rule) {
    if ((iptables_verdict(iptables_rule) == "drop") != (nft_verdict(nft_rule) == "drop"))
        return false;
    Words nft = split_rule(nft_rule, false);
    for (std::string_view word : outermost(nft))
        if (word == "vmap" || word == "map")
            return false;
    return !has_set_or_range(nft) || has_xtables_match(split_rule(iptables_rule, true));
}

} // namespace tsdroptrace::resolve_rule
