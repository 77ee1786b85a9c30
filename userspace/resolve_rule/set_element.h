// SPDX-License-Identifier: GPL-2.0-only
// Which elements of sets and verdict maps a packet has met on its way through a rule of nftables. That is deduced from
// the rule as nft prints it, its sets and the packet's fields: the kernel does not say it. Pure.
//
// Nothing is said of a lookup that is negated, asks for something that is not known of the packet, or whose set does
// not show exactly one element that holds the packet's value.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "model.h"
#include "resolve_rule/rule_values.h"
#include "resolve_rule/ruleset.h"

namespace tsdroptrace::resolve_rule {

// What a rule asks of a packet, as far as it is understood. `th` has no protocol, addresses always have a family.
struct Selector {
    enum class What { src, dst, sport, dport, in_dev, out_dev, l4proto, next_header, mark, icmp_type };
    What what;
    IpFamily family = IpFamily::other;
    std::uint8_t proto = 0;
    auto operator<=>(const Selector&) const = default;
};

// Several are a concatenation: "ip saddr . tcp dport".
using Selectors = std::vector<Selector>;

// The elements of one set or map, read once, so that each packet takes one comparison for each of them.
class SetElements {
public:
    static constexpr std::size_t max_element_text = 512; // nothing is said of a longer one

    // `text`: what nft prints between the braces of the set. `may_change`: packets or time change the set.
    SetElements(std::string text, const Selectors& selectors, bool may_change);

    struct Found {
        std::string text;    // as nft prints it, without counters and the time that is left
        std::string verdict; // of a map: "drop", "jump chain", or other data; empty in a set
    };
    // The element that holds the packet's values; nullopt where it is not known.
    std::optional<Found> find(const Packet& packet) const;

    std::size_t size() const; // bytes that it takes, roughly

private:
    struct Span {
        std::uint32_t begin, length; // in text_
    };

    void add(std::string_view element);
    std::optional<Found> told(const Span& span) const;

    std::string text_;
    Selectors selectors_;
    bool may_change_, complete_ = true; // every element was understood
    std::vector<ValueRange> ranges_;    // of each element as many as there are selectors
    std::vector<Span> spans_;           // by element
    std::optional<Span> catch_all_;     // "*"
};

// The lookups of one rule.
class RuleLookups {
public:
    static constexpr std::size_t max_lookups = 16;

    // The elements of the set or map of that name in the rule's table; null when they are not known.
    using NamedSet = std::function<std::shared_ptr<const SetElements>(std::string_view name, const Selectors&)>;

    // `rule` as nft prints it.
    RuleLookups(std::string_view rule, const NamedSet& named);

    // The elements that a packet has met which this rule has dropped, in the order of the lookups. None when these
    // contradict the drop.
    std::vector<SetElement> elements(const Packet& packet) const;

    bool empty() const { return lookups_.empty(); }
    std::size_t size() const; // bytes that the rule's own, anonymous sets take, roughly

private:
    struct Lookup {
        std::optional<std::string> set;
        bool has_verdict; // "vmap"
        std::shared_ptr<const SetElements> elements;
    };
    std::vector<Lookup> lookups_;
};

} // namespace tsdroptrace::resolve_rule
