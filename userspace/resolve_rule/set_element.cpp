// SPDX-License-Identifier: GPL-2.0-only
#include "resolve_rule/set_element.h"

#include <algorithm>
#include <charconv>
#include <initializer_list>
#include <limits>
#include <utility>

#include <netinet/in.h>

#include "resolve_rule/rule_words.h"

namespace tsdroptrace::resolve_rule {
namespace {

using What = Selector::What;
using Words = std::vector<std::string_view>;

bool is_one_of(std::string_view word, std::initializer_list<std::string_view> words) {
    return std::ranges::find(words, word) != words.end();
}

// ---- the packet's side ----

// Longer names do not exist. The rest is 0, so that a range from "eth" to "eth\xff..." holds what begins with it.
std::optional<ValueBytes> device_bytes(std::string_view name) {
    ValueBytes bytes{};
    if (name.empty() || name.size() >= bytes.size())
        return std::nullopt;
    std::ranges::copy(name, bytes.begin());
    return bytes;
}

template <typename T>
std::optional<ValueBytes> number_bytes(const std::optional<T>& value) {
    return value ? std::optional(as_bytes(*value)) : std::nullopt;
}

std::optional<ValueBytes> value_of(const Selector& selector, const Packet& packet) {
    const bool ip = packet.family != IpFamily::other;
    const bool whole = ip && packet.no_ports == NoPorts::none; // the header of the protocol is there
    const bool same_proto = ip && (selector.proto == 0 || selector.proto == packet.proto);
    switch (selector.what) {
    case What::src:
        return packet.family == selector.family ? std::optional(packet.src.bytes) : std::nullopt;
    case What::dst:
        return packet.family == selector.family ? std::optional(packet.dst.bytes) : std::nullopt;
    case What::sport:
        return whole && same_proto ? number_bytes(packet.sport) : std::nullopt;
    case What::dport:
        return whole && same_proto ? number_bytes(packet.dport) : std::nullopt;
    case What::in_dev:
        return device_bytes(packet.in_dev.value_or(""));
    case What::out_dev:
        return device_bytes(packet.out_dev.value_or(""));
    case What::l4proto:
        return whole ? std::optional(as_bytes(packet.proto)) : std::nullopt;
    case What::next_header:
        return whole && packet.family == IpFamily::ipv6 ? std::optional(as_bytes(packet.proto)) : std::nullopt;
    case What::mark:
        return as_bytes(packet.mark);
    case What::icmp_type:
        return whole && same_proto ? number_bytes(packet.icmp_type) : std::nullopt;
    }
    return std::nullopt;
}

// ---- the set's side ----

template <typename T>
std::optional<T> whole_number(std::string_view text, int base) {
    T value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, base);
    return error == std::errc() && end == text.data() + text.size() ? std::optional(value) : std::nullopt;
}

template <std::size_t size>
std::optional<std::uint32_t> by_name(const std::pair<std::string_view, std::uint8_t> (&names)[size],
                                     std::string_view name) {
    for (const auto& [key, value] : names)
        if (key == name)
            return value;
    return std::nullopt;
}

// As libc, and newer versions of nft, call what protocol() does not know.
constexpr std::pair<std::string_view, std::uint8_t> more_protocols[] = {
    {"ip", 0},          {"hopopt", 0},     {"igmp", 2},       {"ipencap", 4}, {"ipv4", 4},  {"ipv6", 41},
    {"ipv6-route", 43}, {"ipv6-frag", 44}, {"ipv6-opts", 60}, {"ospf", 89},   {"pim", 103}, {"vrrp", 112},
};
// What may stand between the IPv6 header and the packet's protocol.
constexpr std::uint8_t extension_headers[] = {0, 43, 44, 51, 60, 135, 139, 140};
constexpr std::pair<std::string_view, std::uint8_t> icmp_types[] = {
    {"echo-reply", 0},         {"destination-unreachable", 3}, {"source-quench", 4},        {"redirect", 5},
    {"echo-request", 8},       {"router-advertisement", 9},    {"router-solicitation", 10}, {"time-exceeded", 11},
    {"parameter-problem", 12}, {"timestamp-request", 13},      {"timestamp-reply", 14},     {"info-request", 15},
    {"info-reply", 16},        {"address-mask-request", 17},   {"address-mask-reply", 18},
};
constexpr std::pair<std::string_view, std::uint8_t> icmpv6_types[] = {
    {"destination-unreachable", 1},  {"packet-too-big", 2},         {"time-exceeded", 3},
    {"parameter-problem", 4},        {"echo-request", 128},         {"echo-reply", 129},
    {"mld-listener-query", 130},     {"mld-listener-report", 131},  {"mld-listener-done", 132},
    {"mld-listener-reduction", 132}, {"nd-router-solicit", 133},    {"nd-router-advert", 134},
    {"nd-neighbor-solicit", 135},    {"nd-neighbor-advert", 136},   {"nd-redirect", 137},
    {"router-renumbering", 138},     {"ind-neighbor-solicit", 141}, {"ind-neighbor-advert", 142},
    {"mld2-listener-report", 143},
};

std::optional<std::uint32_t> number_of(const Selector& selector, std::string_view text) {
    std::optional<std::uint32_t> named;
    switch (selector.what) {
    case What::l4proto:
    case What::next_header:
        named = by_name(more_protocols, text);
        break;
    case What::icmp_type:
        named = selector.proto == IPPROTO_ICMP ? by_name(icmp_types, text) : by_name(icmpv6_types, text);
        break;
    case What::mark:
        return text.starts_with("0x") ? whole_number<std::uint32_t>(text.substr(2), 16)
                                      : whole_number<std::uint32_t>(text, 10);
    default:
        break;
    }
    if (named)
        return named;
    return selector.what == What::l4proto || selector.what == What::next_header ? protocol(text) : number(text);
}

std::optional<ValueRange> number_range(const Selector& selector, std::string_view text) {
    if (const auto one = number_of(selector, text)) // before "-", which is part of names, too
        return ValueRange{as_bytes(*one), as_bytes(*one)};
    if (const auto slash = text.find('/'); slash != text.npos && selector.what == What::mark) {
        const auto base = number_of(selector, text.substr(0, slash));
        const auto prefix = number(text.substr(slash + 1));
        if (!base || !prefix || *prefix > 32)
            return std::nullopt;
        const std::uint32_t rest = *prefix == 32 ? 0 : std::numeric_limits<std::uint32_t>::max() >> *prefix;
        return ValueRange{as_bytes(*base & ~rest), as_bytes(*base | rest)};
    }
    const auto dash = text.find('-');
    if (dash == text.npos)
        return std::nullopt;
    const auto low = number_of(selector, text.substr(0, dash)), high = number_of(selector, text.substr(dash + 1));
    return low && high ? std::optional(ValueRange{as_bytes(*low), as_bytes(*high)}) : std::nullopt;
}

// "eth0", "eth*" with their quotes; an interface that is gone is a number, which says nothing.
std::optional<ValueRange> device_range(std::string_view word) {
    std::string_view name = unquote(word);
    if (name.size() == word.size())
        return std::nullopt;
    std::string literal;
    bool any_end = false;
    if (name.ends_with("\\*")) {
        literal.append(name.substr(0, name.size() - 2)).append("*");
        name = literal;
    } else if (name.ends_with('*')) {
        name.remove_suffix(1);
        any_end = true;
    }
    const auto bytes = device_bytes(name);
    if (!bytes)
        return std::nullopt;
    ValueRange range{*bytes, *bytes};
    if (any_end)
        std::fill(range.high.begin() + static_cast<std::ptrdiff_t>(name.size()), range.high.end(), std::uint8_t{0xff});
    return range;
}

std::optional<ValueRange> range_of(const Selector& selector, std::string_view word) {
    switch (selector.what) {
    case What::src:
    case What::dst: {
        const auto range = address_range(word);
        return range && range->family == selector.family ? std::optional(ValueRange{range->low, range->high})
                                                         : std::nullopt;
    }
    case What::in_dev:
    case What::out_dev:
        return device_range(word);
    default:
        return number_range(selector, word);
    }
}

// The header that follows IPv6's own is the packet's protocol only where no other may be in between.
bool may_be_extension_header(const Selector& selector, const ValueRange& range) {
    return selector.what == What::next_header &&
           std::ranges::any_of(extension_headers, [&](std::uint8_t header) { return range.holds(as_bytes(header)); });
}

// One element as nft prints it: "10.0.0.1 . 22 counter timeout 1h expires 59m comment "x" : drop".
struct ElementWords {
    Words key;
    std::string_view timeout, comment;
    Words verdict;
};

ElementWords words_of(std::string_view element) {
    ElementWords out;
    const Words words = split_rule(element, false);
    constexpr auto begins_option = [](std::string_view word) {
        return is_one_of(word, {"timeout", "expires", "comment", "counter", "limit", "quota", "ct", "last"});
    };
    std::size_t at = 0;
    while (at < words.size() && words[at] != ":" && !begins_option(words[at]))
        out.key.push_back(words[at++]);
    for (; at < words.size() && words[at] != ":"; at++) {
        if (at + 1 >= words.size())
            continue;
        if (words[at] == "timeout")
            out.timeout = words[++at];
        else if (words[at] == "comment")
            out.comment = words[++at];
    }
    for (at++; at < words.size(); at++)
        out.verdict.push_back(words[at]);
    return out;
}

std::string joined(const Words& words) {
    std::string out;
    for (const std::string_view word : words)
        out.append(out.empty() ? "" : " ").append(word);
    return out;
}

} // namespace

SetElements::SetElements(std::string text, const Selectors& selectors, bool may_change)
    : text_(std::move(text)), selectors_(selectors), may_change_(may_change) {
    const std::string_view all = text_;
    bool quoted = false;
    for (std::size_t begin = 0, at = 0; at <= all.size(); at++) {
        if (at < all.size() && all[at] == '"')
            quoted = !quoted;
        if (at < all.size() && (quoted || all[at] != ','))
            continue;
        add(all.substr(begin, at - begin));
        begin = at + 1;
    }
}

void SetElements::add(std::string_view element) {
    const ElementWords words = words_of(element);
    const Span span{static_cast<std::uint32_t>(element.data() - text_.data()),
                    static_cast<std::uint32_t>(element.size())};
    if (words.key.size() == 1 && words.key[0] == "*") {
        catch_all_ = span;
        return;
    }
    std::vector<ValueRange> ranges;
    bool understood = words.key.size() + 1 == 2 * selectors_.size();
    for (std::size_t i = 0; understood && i < words.key.size(); i++) {
        if (i % 2 != 0) {
            understood = words.key[i] == ".";
            continue;
        }
        const auto range = range_of(selectors_[i / 2], words.key[i]);
        understood = range && !may_be_extension_header(selectors_[i / 2], *range);
        if (understood)
            ranges.push_back(*range);
    }
    if (!understood) {
        complete_ = false;
        return;
    }
    ranges_.insert(ranges_.end(), ranges.begin(), ranges.end());
    spans_.push_back(span);
}

std::optional<SetElements::Found> SetElements::told(const Span& span) const {
    const ElementWords words = words_of(std::string_view(text_).substr(span.begin, span.length));
    Found found{joined(words.key), joined(words.verdict)};
    if (!words.timeout.empty())
        found.text.append(" timeout ").append(words.timeout);
    if (!words.comment.empty())
        found.text.append(" comment ").append(words.comment);
    if (!found.verdict.empty())
        found.text.append(" : ").append(found.verdict);
    return found.text.size() <= max_element_text ? std::optional(std::move(found)) : std::nullopt;
}

std::optional<SetElements::Found> SetElements::find(const Packet& packet) const {
    std::vector<ValueBytes> values;
    bool headers_between = false;
    for (const Selector& selector : selectors_) {
        const auto value = value_of(selector, packet);
        if (!value)
            return std::nullopt;
        values.push_back(*value);
        headers_between |= selector.what == What::next_header;
    }
    if (headers_between && !complete_)
        return std::nullopt;
    const Span* found = nullptr;
    for (std::size_t i = 0; i < spans_.size(); i++) {
        const ValueRange* range = &ranges_[i * values.size()];
        if (!std::ranges::all_of(values, [&](const ValueBytes& value) { return (range++)->holds(value); }))
            continue;
        if (found)
            return std::nullopt;
        found = &spans_[i];
    }
    if (!found && catch_all_ && complete_ && !may_change_ && !headers_between)
        found = &*catch_all_;
    return found ? told(*found) : std::nullopt;
}

std::size_t SetElements::size() const {
    return sizeof *this + text_.capacity() + ranges_.capacity() * sizeof(ValueRange) + spans_.capacity() * sizeof(Span);
}

// ---- the rule's side ----

namespace {

struct SelectorWords {
    std::string_view first, second; // `second` empty: one word
    Selector selector;
};

constexpr SelectorWords selector_words[] = {
    {"ip", "saddr", {What::src, IpFamily::ipv4}},
    {"ip", "daddr", {What::dst, IpFamily::ipv4}},
    {"ip6", "saddr", {What::src, IpFamily::ipv6}},
    {"ip6", "daddr", {What::dst, IpFamily::ipv6}},
    {"tcp", "sport", {What::sport, IpFamily::other, IPPROTO_TCP}},
    {"tcp", "dport", {What::dport, IpFamily::other, IPPROTO_TCP}},
    {"udp", "sport", {What::sport, IpFamily::other, IPPROTO_UDP}},
    {"udp", "dport", {What::dport, IpFamily::other, IPPROTO_UDP}},
    {"sctp", "sport", {What::sport, IpFamily::other, IPPROTO_SCTP}},
    {"sctp", "dport", {What::dport, IpFamily::other, IPPROTO_SCTP}},
    {"dccp", "sport", {What::sport, IpFamily::other, IPPROTO_DCCP}},
    {"dccp", "dport", {What::dport, IpFamily::other, IPPROTO_DCCP}},
    {"udplite", "sport", {What::sport, IpFamily::other, IPPROTO_UDPLITE}},
    {"udplite", "dport", {What::dport, IpFamily::other, IPPROTO_UDPLITE}},
    {"th", "sport", {What::sport}},
    {"th", "dport", {What::dport}},
    {"iif", "", {What::in_dev}},
    {"iifname", "", {What::in_dev}},
    {"oif", "", {What::out_dev}},
    {"oifname", "", {What::out_dev}},
    {"meta", "l4proto", {What::l4proto}},
    {"ip", "protocol", {What::l4proto}},
    {"ip6", "nexthdr", {What::next_header}},
    {"meta", "mark", {What::mark}},
    {"icmp", "type", {What::icmp_type, IpFamily::other, IPPROTO_ICMP}},
    {"icmpv6", "type", {What::icmp_type, IpFamily::other, IPPROTO_ICMPV6}},
};

class RuleReader {
public:
    explicit RuleReader(std::string_view rule) : words_(split_rule(rule, false)) {}

    bool at_end() const { return at_ >= words_.size(); }
    std::string_view word(std::size_t ahead = 0) const {
        return at_ + ahead < words_.size() ? words_[at_ + ahead] : std::string_view{};
    }
    void skip(std::size_t count = 1) { at_ += count; }

    // Moves behind "{ ... }", and returns what is in between.
    std::string_view braces() {
        int depth = 0;
        const char* begin = nullptr;
        for (; !at_end(); at_++) {
            if (word() == "{" && depth++ == 0)
                begin = word().data() + 1;
            if (word() == "}" && --depth == 0) {
                const char* end = word().data();
                at_++;
                return {begin, static_cast<std::size_t>(end - begin)};
            }
        }
        return {};
    }

    // Moves behind a selector, if there is one.
    std::optional<Selector> selector() {
        for (const auto& [first, second, selector] : selector_words)
            if (word() == first && (second.empty() || word(1) == second)) {
                skip(second.empty() ? 1 : 2);
                return selector;
            }
        return std::nullopt;
    }

private:
    Words words_;
    std::size_t at_ = 0;
};

// What ends a rule, or may, and statements that may drop by themselves: what comes after has not been asked.
bool may_end_rule(std::string_view word) {
    return is_one_of(word, {"drop", "reject", "accept", "return", "continue", "jump", "goto", "queue", "dnat", "snat",
                            "masquerade", "redirect", "tproxy", "synproxy", "fwd", "xt", "reset"});
}

// What follows is of a packet inside of this one, of the connection, or has nothing to do with the packet.
bool is_about_something_else(std::string_view word) {
    return is_one_of(word, {"original", "reply", "vxlan", "geneve", "gre", "gretap", "."});
}

} // namespace

RuleLookups::RuleLookups(std::string_view rule, const NamedSet& named) {
    RuleReader reader(rule);
    std::string_view before;
    while (!reader.at_end() && !may_end_rule(reader.word())) {
        if (reader.word() == "{") { // of a lookup that is negated or not understood, or of a set that is added to
            reader.braces();
            continue;
        }
        if (reader.word() == "ipsec") // of the transformation
            return;
        if (reader.word() == "fib") { // "fib saddr . iif oif": what it asks of the routes, and what of them
            reader.skip(2);
            while (reader.word() == ".")
                reader.skip(2);
            reader.skip();
            continue;
        }
        const bool of_something_else = is_about_something_else(before);
        Selectors selectors;
        bool whole = true; // of a concatenation every part is known
        while (const auto one = reader.selector()) {
            selectors.push_back(*one);
            whole = reader.word() != ".";
            if (whole)
                break;
            reader.skip();
        }
        // The packet that died is not the one that was looked up before its fields were set. "@nh,96,32 set 0x1" sets
        // any of them.
        const bool raw = reader.word().starts_with('@') && reader.word().find(',') != std::string_view::npos;
        if ((!selectors.empty() && reader.word() == "set") || (raw && reader.word(1) == "set")) {
            lookups_.clear();
            return;
        }
        if (selectors.empty()) {
            before = reader.word();
            reader.skip();
            continue;
        }
        before = whole ? "" : ".";
        if (!whole || of_something_else)
            continue;
        if (reader.word() == "==")
            reader.skip();
        const bool has_verdict = reader.word() == "vmap";
        if (has_verdict)
            reader.skip();
        if (reader.word() == "{") {
            const std::string text(reader.braces());
            lookups_.push_back({std::nullopt, has_verdict, std::make_shared<SetElements>(text, selectors, false)});
        } else if (reader.word().starts_with('@')) {
            const std::string_view name = reader.word().substr(1);
            reader.skip();
            if (auto elements = named(name, selectors))
                lookups_.push_back({std::string(name), has_verdict, std::move(elements)});
        }
        if (lookups_.size() > max_lookups)
            lookups_.pop_back();
    }
}

std::vector<SetElement> RuleLookups::elements(const Packet& packet) const {
    std::vector<SetElement> out;
    for (const Lookup& lookup : lookups_) {
        auto found = lookup.elements->find(packet);
        if (!found)
            continue;
        if (lookup.has_verdict && found->verdict != "drop" && found->verdict != "continue")
            return {};
        out.push_back({lookup.set, std::move(found->text)});
        if (lookup.has_verdict && found->verdict == "drop")
            break;
    }
    return out;
}

std::size_t RuleLookups::size() const {
    std::size_t bytes = sizeof *this;
    for (const Lookup& lookup : lookups_)
        bytes += sizeof lookup + (lookup.set ? 0 : lookup.elements->size());
    return bytes;
}

} // namespace tsdroptrace::resolve_rule
