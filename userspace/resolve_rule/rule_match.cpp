// SPDX-License-Identifier: GPL-2.0-only
#include "resolve_rule/rule_match.h"

#include <algorithm>
#include <cstring>
#include <optional>

#include "resolve_rule/rule_values.h"
#include "resolve_rule/rule_words.h"

namespace tsdroptrace::resolve_rule {
namespace {

using Words = std::vector<std::string_view>;
using Bytes = ValueBytes;

template <std::size_t size>
bool is_one_of(std::string_view word, const std::string_view (&words)[size]) {
    return std::find(std::begin(words), std::end(words), word) != std::end(words);
}

bool same_device(std::string_view pattern, std::string_view name) {
    if (pattern.ends_with('+') || pattern.ends_with('*'))
        return name.starts_with(pattern.substr(0, pattern.size() - 1));
    return pattern == name;
}

// The value at `at`: one word, or what is in the braces there. Moves `at` behind it.
Words value_at(const Words& words, std::size_t& at) {
    Words values;
    if (at >= words.size())
        return values;
    if (words[at] != "{")
        return {words[at++]};
    for (at++; at < words.size() && words[at] != "}"; at++) {
        std::string_view value = words[at];
        if (value.ends_with(','))
            value.remove_suffix(1);
        if (!value.empty())
            values.push_back(value);
    }
    at++;
    return values;
}

std::vector<std::string_view> split_at(std::string_view text, char separator) {
    std::vector<std::string_view> parts;
    while (true) {
        const auto end = text.find(separator);
        parts.push_back(text.substr(0, end));
        if (end == text.npos)
            return parts;
        text.remove_prefix(end + 1);
    }
}

// From "jump {" or "goto {" on: a chain without a name, which has rules of its own.
std::string_view without_block(std::string_view rule) {
    const auto at = std::min(rule.find("jump {"), rule.find("goto {"));
    return rule.substr(0, at);
}

} // namespace

RuleMatch::RuleMatch(std::string_view text, Backend backend) {
    if (backend == Backend::nftables)
        read_nft(without_block(text));
    else
        read_iptables(text);
}

// False, and nothing is asked, when one of the values is not understood.
bool RuleMatch::add(What what, bool inverted, const std::vector<std::string_view>& values) {
    Condition condition{what, inverted, IpFamily::other, {}, {}};
    for (const std::string_view value : values) {
        switch (what) {
        case What::src:
        case What::dst: {
            const auto range = address_range(value);
            if (!range || (condition.family != IpFamily::other && condition.family != range->family))
                return false;
            condition.family = range->family;
            condition.ranges.push_back({range->low, range->high});
            break;
        }
        case What::in_dev:
        case What::out_dev: {
            const std::string_view name = unquote(value);
            if (name.empty() || name.starts_with('@'))
                return false;
            condition.names.emplace_back(name);
            break;
        }
        case What::proto:
        case What::sport:
        case What::dport: {
            const auto separator = value.find(value.find(':') != value.npos ? ':' : '-');
            const bool range = what != What::proto && separator != value.npos && separator > 0;
            const auto read = what == What::proto ? protocol : number;
            const auto low = read(range ? value.substr(0, separator) : value);
            const auto high = range ? read(value.substr(separator + 1)) : low;
            if (!low || !high)
                return false;
            condition.ranges.push_back({as_bytes(*low), as_bytes(*high)});
            break;
        }
        }
    }
    if (condition.ranges.empty() && condition.names.empty())
        return false;
    conditions_.push_back(std::move(condition));
    return true;
}

void RuleMatch::read_iptables(std::string_view text) {
    struct Option {
        std::string_view name;
        What what;
    };
    constexpr Option options[] = {
        {"-s", What::src},         {"-d", What::dst},          {"-i", What::in_dev},       {"-o", What::out_dev},
        {"-p", What::proto},       {"--sport", What::sport},   {"--dport", What::dport},   {"--sports", What::sport},
        {"--dports", What::dport}, {"--src-range", What::src}, {"--dst-range", What::dst},
    };
    const Words words = split_rule(text, true);
    for (std::size_t i = 2; i + 1 < words.size(); i++) { // after -A chain
        if (words[i] == "-j" || words[i] == "-g")
            return; // what follows is the target's
        const auto* option = std::find_if(std::begin(options), std::end(options),
                                          [&](const Option& candidate) { return candidate.name == words[i]; });
        if (option == std::end(options)) {
            if (words[i].starts_with("--") && words[i + 1] != "-j" && words[i + 1] != "-g")
                i++; // its value may look like an option: a comment
            continue;
        }
        const bool inverted = words[i - 1] == "!";
        const bool all = option->what == What::proto && (words[i + 1] == "all" || words[i + 1] == "0");
        const bool port_list = option->what == What::sport || option->what == What::dport;
        if (!all)
            add(option->what, inverted, port_list ? split_at(words[i + 1], ',') : Words{words[i + 1]});
        i++;
    }
}

void RuleMatch::read_nft(std::string_view text) {
    struct Key {
        std::string_view first, second; // `first` empty: the word stands alone
        What what;
        std::string_view protocol; // that it implies
    };
    constexpr Key keys[] = {
        {"ip", "saddr", What::src, ""},         {"ip", "daddr", What::dst, ""},
        {"ip6", "saddr", What::src, ""},        {"ip6", "daddr", What::dst, ""},
        {"ip", "protocol", What::proto, ""},    {"meta", "l4proto", What::proto, ""},
        {"", "iifname", What::in_dev, ""},      {"", "iif", What::in_dev, ""},
        {"", "oifname", What::out_dev, ""},     {"", "oif", What::out_dev, ""},
        {"tcp", "sport", What::sport, "tcp"},   {"tcp", "dport", What::dport, "tcp"},
        {"udp", "sport", What::sport, "udp"},   {"udp", "dport", What::dport, "udp"},
        {"sctp", "sport", What::sport, "sctp"}, {"sctp", "dport", What::dport, "sctp"},
        {"th", "sport", What::sport, ""},       {"th", "dport", What::dport, ""},
    };
    // These say that the words are about something else than the packet's own headers; or part of a larger expression.
    constexpr std::string_view others[] = {"original", "reply", "vxlan", "geneve", "gre", "gretap", "fib", ".", "set"};
    constexpr std::string_view verbs[] = {"add", "update", "delete", "meter"};
    const Words words = split_rule(text, false);
    int depth = 0;
    for (std::size_t i = 0; i < words.size(); i++) {
        if (words[i] == "{")
            depth++;
        else if (words[i] == "}")
            depth--;
        if (depth != 0)
            continue;
        const auto* key = std::find_if(std::begin(keys), std::end(keys), [&](const Key& candidate) {
            return words[i] == candidate.second &&
                   (candidate.first.empty() || (i > 0 && words[i - 1] == candidate.first));
        });
        if (key == std::end(keys))
            continue;
        const std::size_t first = key->first.empty() ? i : i - 1;
        if (first > 0 && (is_one_of(words[first - 1], others) || is_one_of(words[first - 1], verbs)))
            continue;
        std::size_t at = i + 1;
        bool inverted = false;
        if (at < words.size() && (words[at] == "!=" || words[at] == "==")) {
            inverted = words[at] == "!=";
            at++;
        }
        const Words values = value_at(words, at);
        const bool more = at < words.size() && (words[at] == "." || words[at] == ":" || words[at] == "&");
        if (more || !add(key->what, inverted, values))
            continue;
        if (!key->protocol.empty())
            add(What::proto, false, {key->protocol});
        i = at - 1;
    }
}

bool RuleMatch::holds(const Condition& condition, const Packet& packet, bool devices_known) {
    const auto in_ranges = [&](const Bytes& value) {
        return std::any_of(condition.ranges.begin(), condition.ranges.end(),
                           [&](const Range& range) { return range.low <= value && value <= range.high; });
    };
    const auto device = [&](const std::optional<std::string>& name) {
        if (!devices_known || !name)
            return true;
        const bool found = std::any_of(condition.names.begin(), condition.names.end(),
                                       [&](const std::string& pattern) { return same_device(pattern, *name); });
        return found != condition.inverted;
    };
    const auto port = [&](const std::optional<std::uint16_t>& value) {
        return !value || in_ranges(as_bytes(*value)) != condition.inverted;
    };
    switch (condition.what) {
    case What::src:
    case What::dst: {
        const Address& address = condition.what == What::src ? packet.src : packet.dst;
        if (packet.family == IpFamily::other)
            return true;
        if (address.family != condition.family)
            return false;
        return in_ranges(address.bytes) != condition.inverted;
    }
    case What::in_dev:
        return device(packet.in_dev);
    case What::out_dev:
        return device(packet.out_dev);
    case What::proto:
        if (packet.family == IpFamily::other || packet.no_ports != NoPorts::none)
            return true; // the header before it may be the last that could be read
        return in_ranges(as_bytes(packet.proto)) != condition.inverted;
    case What::sport:
        return port(packet.sport);
    case What::dport:
        return port(packet.dport);
    }
    return true;
}

bool RuleMatch::may_match(const Packet& packet, bool devices_known) const {
    return std::all_of(conditions_.begin(), conditions_.end(),
                       [&](const Condition& condition) { return holds(condition, packet, devices_known); });
}

// ---- what it may do ----

namespace {

// Targets of iptables that never drop, or only when there is no memory.
constexpr std::string_view harmless_targets[] = {
    "LOG",     "NFLOG",       "ULOG",  "MARK", "CONNMARK", "CLASSIFY",  "CHECKSUM", "TRACE",
    "NOTRACK", "CT",          "SET",   "TEE",  "AUDIT",    "IDLETIMER", "LED",      "RATEEST",
    "SECMARK", "CONNSECMARK", "HMARK", "TOS",  "DSCP",     "TTL",       "HL",
};

// Words of nft that may drop, beside drop and reject.
constexpr std::string_view failing_words[] = {"dnat", "snat", "masquerade", "redirect", "synproxy", "fwd", "xt"};

bool iptables_may_drop(std::string_view text) {
    const Words words = split_rule(text, true);
    for (std::size_t i = 2; i + 1 < words.size(); i++)
        if (words[i] == "-j")
            return !is_one_of(words[i + 1], harmless_targets);
    return false;
}

bool nft_may_drop(std::string_view text) {
    const Words words = split_rule(text, false);
    for (std::size_t i = 0; i < words.size(); i++) {
        if (words[i] == "drop" || words[i] == "drop," || words[i] == "drop;" || words[i] == "reject" ||
            words[i].starts_with("xt_") || is_one_of(words[i], failing_words))
            return true;
        if (words[i] == "vmap" && i + 1 < words.size() && words[i + 1].starts_with('@'))
            return true;
    }
    return false;
}

} // namespace

bool may_drop(const SnapshotRule& rule, Backend backend) {
    if (rule.verdict == "drop" || rule.verdict == "reject" || rule.text.empty())
        return true;
    if (backend == Backend::nftables)
        return nft_may_drop(rule.text);
    constexpr std::string_view settled[] = {"accept", "return", "queue", "goto", "jump", "continue"};
    return !is_one_of(rule.verdict, settled) && iptables_may_drop(rule.text);
}

JumpTargets jump_targets(const SnapshotRule& rule, Backend backend) {
    JumpTargets targets;
    if (rule.text.empty()) {
        targets.any = true;
        return targets;
    }
    const bool nft = backend == Backend::nftables;
    const Words words = split_rule(rule.text, !nft);
    for (std::size_t i = nft ? 0 : 2; i + 1 < words.size(); i++) {
        std::string_view next = words[i + 1];
        if (nft && words[i] == "vmap" && next.starts_with('@'))
            targets.any = true;
        if (nft ? words[i] != "jump" && words[i] != "goto" : words[i] != "-j" && words[i] != "-g")
            continue;
        while (next.ends_with(',') || next.ends_with(';'))
            next.remove_suffix(1);
        if (next != "{")
            targets.chains.emplace_back(unquote(next));
    }
    return targets;
}

} // namespace tsdroptrace::resolve_rule
