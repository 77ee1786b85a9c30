// SPDX-License-Identifier: GPL-2.0-only
#include "explain/condition.h"

#include <algorithm>
#include <charconv>

#include "explain/match.h"
#include "util/kallsyms.h"

namespace tsdroptrace::explain {

namespace {

// ---- values ----

bool listed(std::string_view words, std::string_view value) {
    if (value.empty() || value.find_first_of(", ") != std::string_view::npos)
        return false;
    for (std::size_t at = 0; (at = words.find(value, at)) != std::string_view::npos; at += value.size()) {
        const bool begins = at == 0 || words[at - 1] == ' ';
        const std::size_t end = at + value.size();
        if (begins && (end == words.size() || words[end] == ','))
            return true;
    }
    return false;
}

constexpr std::string_view kinds = "rule, policy, hook, kernel";
constexpr std::string_view hooks = "prerouting, input, forward, output, postrouting, ingress, egress";
constexpr std::string_view backends = "iptables-legacy, iptables-nft, nftables";
constexpr std::string_view families = "ip, ip6, inet, arp, bridge, netdev";
constexpr std::string_view confidences = "exact, inferred";
constexpr std::string_view fates = "nobody, full, refused, unknown, verdict, closed";
constexpr std::string_view states = "new, established, related, reply, related-reply, none";
constexpr std::string_view directions = "to, from";
constexpr std::string_view yes_or_no = "yes, no";
constexpr std::string_view route_types =
    "unicast, local, broadcast, anycast, multicast, blackhole, unreachable, prohibit, throw, nat, xresolve, none";

template <const std::string_view& words>
bool one_of(std::string_view value) {
    return listed(words, value);
}

bool not_empty(std::string_view value) {
    return !value.empty();
}

template <typename T>
std::optional<T> number(std::string_view text) {
    const bool hex = text.starts_with("0x");
    if (hex)
        text.remove_prefix(2);
    T value{};
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, hex ? 16 : 10);
    if (text.empty() || error != std::errc{} || end != text.data() + text.size())
        return std::nullopt;
    return value;
}

template <typename T>
bool is_number(std::string_view value) {
    return number<T>(value).has_value();
}

struct Mark {
    std::uint32_t value, mask;
};

std::optional<Mark> mark(std::string_view text) {
    const std::size_t slash = text.find('/');
    const auto value = number<std::uint32_t>(text.substr(0, slash));
    const auto mask =
        slash == std::string_view::npos ? std::optional(~0U) : number<std::uint32_t>(text.substr(slash + 1));
    if (!value || !mask)
        return std::nullopt;
    return Mark{*value, *mask};
}

bool is_mark(std::string_view value) {
    return mark(value).has_value();
}

// ---- fields ----

bool yes(std::string_view value, std::optional<bool> is) {
    return is && (value == "yes") == *is;
}

bool matches_any(std::string_view pattern, const std::vector<std::string>& names) {
    return std::ranges::any_of(names, [&](const std::string& name) { return matches(pattern, name); });
}

bool is_number_of(std::string_view value, const auto& of) {
    return of && number<std::uint32_t>(value) == *of;
}

std::string_view conntrack(const Packet& packet) {
    constexpr std::string_view names[] = {"established", "related", "new", "reply", "related-reply"};
    return packet.ctinfo && *packet.ctinfo < std::size(names) ? names[*packet.ctinfo] : "none";
}

const Route* route(const Subject& s) {
    return s.drop.evidence && s.drop.evidence->route ? &*s.drop.evidence->route : nullptr;
}

bool sysctl_is(const Subject& s, std::string_view pattern, std::string_view value) {
    if (!s.drop.evidence)
        return false;
    const auto found = s.drop.evidence->sysctls.find(sysctl_name(pattern, s.drop));
    return found != s.drop.evidence->sysctls.end() && found->second == value;
}

using S = const Subject&;
using C = const Condition&;
using V = std::string_view;

constexpr V a_name = "a name, with * at its end for any that begins so";
constexpr V a_cidr = "a CIDR such as 100.64.0.0/10";
constexpr V a_port = "a port number";

const FieldInfo table_of_fields[] = {
    {Field::kind, "kind", kinds, one_of<kinds>, [](S s, C, V v) { return v == to_string(s.drop.site.kind); }},
    {Field::hook, "hook", hooks, one_of<hooks>,
     [](S s, C, V v) { return s.drop.site.hook && v == to_string(*s.drop.site.hook); }},
    {Field::backend, "backend", backends, one_of<backends>,
     [](S s, C, V v) { return s.drop.rule && v == to_string(s.drop.rule->backend); }},
    // of the rule, as nft names it
    {Field::family, "family", families, one_of<families>,
     [](S s, C, V v) { return s.drop.rule && v == to_string(s.drop.rule->family); }},
    {Field::table, "table", a_name, not_empty,
     [](S s, C, V v) { return s.drop.rule && matches(v, s.drop.rule->table); }},
    // that the rule stands in
    {Field::chain, "chain", a_name, not_empty,
     [](S s, C, V v) { return s.drop.rule && matches(v, s.drop.rule->chain); }},
    // any chain on the way from the base chain to the rule
    {Field::path, "path", a_name, not_empty,
     [](S s, C, V v) {
         return s.drop.rule &&
                std::ranges::any_of(s.drop.rule->path, [&](const PathStep& step) { return matches(v, step.chain); });
     }},
    // chains that the base chain of a policy jumps to
    {Field::jumps, "jumps", a_name, not_empty,
     [](S s, C, V v) { return s.drop.rule && matches_any(v, s.drop.rule->jumps); }},
    {Field::text, "text", "a piece of the rule's text, with * between pieces that follow each other", not_empty,
     [](S s, C, V v) { return s.drop.rule && s.drop.rule->text && has_pieces(v, *s.drop.rule->text); }},
    {Field::verdict, "verdict", a_name, not_empty,
     [](S s, C, V v) { return s.drop.rule && matches(v, s.drop.rule->verdict); }},
    // whether the rule was seen dropping the packet, or follows from its counter
    {Field::confidence, "confidence", confidences, one_of<confidences>,
     [](S s, C, V v) { return s.drop.rule && v == to_string(s.drop.rule->confidence); }},
    {Field::source, "source", a_cidr, is_cidr, [](S s, C, V v) { return contains(v, s.drop.packet.src); }},
    {Field::destination, "destination", a_cidr, is_cidr, [](S s, C, V v) { return contains(v, s.drop.packet.dst); }},
    // the far end: the source of what comes in, the destination of what leaves
    {Field::peer, "peer", a_cidr, is_cidr, [](S s, C, V v) { return contains(v, peer(s.drop)); }},
    {Field::owner, "owner", a_name, not_empty, [](S s, C, V v) { return s.owner && matches(v, s.owner->name); }},
    {Field::reason, "reason", a_name, not_empty, [](S s, C, V v) { return matches(v, reason_of(s.drop.site)); }},
    // the function that freed the packet
    {Field::symbol, "symbol", a_name, not_empty,
     [](S s, C, V v) {
         const V symbol = symbol_of(s.drop.site.location);
         return !symbol.empty() && matches(v, symbol);
     }},
    // at a hook, that has dropped the packet
    {Field::function, "function", a_name, not_empty,
     [](S s, C, V v) { return s.drop.site.hook_function && matches(v, s.drop.site.hook_function->name); }},
    {Field::queue, "queue", fates, one_of<fates>,
     [](S s, C, V v) { return s.drop.site.queue && v == to_string(s.drop.site.queue->fate); }},
    {Field::conntrack, "conntrack", states, one_of<states>, [](S s, C, V v) { return v == conntrack(s.drop.packet); }},
    // in a connection that the other side of this packet has opened
    {Field::answer, "answer", yes_or_no, one_of<yes_or_no>,
     [](S s, C, V v) { return yes(v, s.drop.packet.ctinfo == 3 || s.drop.packet.ctinfo == 4); }},
    {Field::direction, "direction", directions, one_of<directions>,
     [](S s, C, V v) { return v == to_string(s.drop.packet.direction); }},
    {Field::received, "received", yes_or_no, one_of<yes_or_no>,
     [](S s, C, V v) { return yes(v, s.drop.packet.received); }},
    // a process here was sending it
    {Field::sender, "sender", yes_or_no, one_of<yes_or_no>,
     [](S s, C, V v) { return yes(v, s.drop.process.has_value()); }},
    {Field::in_dev, "in_dev", a_name, not_empty,
     [](S s, C, V v) { return s.drop.packet.in_dev && matches(v, *s.drop.packet.in_dev); }},
    {Field::out_dev, "out_dev", a_name, not_empty,
     [](S s, C, V v) { return s.drop.packet.out_dev && matches(v, *s.drop.packet.out_dev); }},
    {Field::protocol, "protocol", "a protocol such as udp, tcp, icmp, icmpv6, or its number", not_empty,
     [](S s, C, V v) { return s.drop.packet.family != IpFamily::other && v == proto_name(s.drop.packet.proto); }},
    {Field::source_port, "source_port", a_port, is_number<std::uint16_t>,
     [](S s, C, V v) { return is_number_of(v, s.drop.packet.sport); }},
    {Field::destination_port, "destination_port", a_port, is_number<std::uint16_t>,
     [](S s, C, V v) { return is_number_of(v, s.drop.packet.dport); }},
    {Field::icmp_type, "icmp_type", "a number up to 255", is_number<std::uint8_t>,
     [](S s, C, V v) { return is_number_of(v, s.drop.packet.icmp_type); }},
    {Field::mark, "mark", "a mark such as 0x80000/0xff0000", is_mark,
     [](S s, C, V v) {
         const auto wanted = mark(v);
         return wanted && (s.drop.packet.mark & wanted->mask) == wanted->value;
     }},
    // what the kernel answers to `ip route get` for the far end
    {Field::route_type, "route_type", route_types, one_of<route_types>,
     [](S s, C, V v) { return route(s) != nullptr && route(s)->type == v; }},
    {Field::route_dev, "route_dev", a_name, not_empty,
     [](S s, C, V v) { return route(s) != nullptr && route(s)->dev && matches(v, *route(s)->dev); }},
    {Field::route_table, "route_table", "a table's number, 254 for main", is_number<std::uint32_t>,
     [](S s, C, V v) { return route(s) != nullptr && number<std::uint32_t>(v) == route(s)->table; }},
    {Field::tailnet_peer, "tailnet_peer", yes_or_no, one_of<yes_or_no>,
     [](S s, C, V v) { return s.drop.evidence && yes(v, s.drop.evidence->tailnet_peer); }},
    {Field::socket_waits, "socket_waits", yes_or_no, one_of<yes_or_no>,
     [](S s, C, V v) { return s.drop.evidence && yes(v, s.drop.evidence->socket_waits); }},
    {Field::sysctl, "sysctl", "names and values, such as net.ipv4.ip_forward: 0", not_empty,
     [](S s, C c, V v) { return sysctl_is(s, c.argument, v); }},
};

} // namespace

std::span<const FieldInfo> fields() {
    return table_of_fields;
}

bool is_evidence(Field field) {
    return field >= Field::route_type;
}

bool is_of_one_packet(Field field) {
    constexpr Field of_one[] = {Field::conntrack, Field::answer,   Field::direction,   Field::received,
                                Field::sender,    Field::protocol, Field::source_port, Field::destination_port,
                                Field::icmp_type, Field::mark};
    return std::ranges::find(of_one, field) != std::end(of_one);
}

bool holds(const Condition& condition, const Subject& subject) {
    const auto& field = table_of_fields[static_cast<std::size_t>(condition.field)];
    const bool any = std::ranges::any_of(
        condition.values, [&](std::string_view value) { return field.holds(subject, condition, value); });
    return any != condition.negated;
}

bool all_hold(std::span<const Condition> conditions, const Subject& subject) {
    return std::ranges::all_of(conditions, [&](const Condition& c) { return holds(c, subject); });
}

} // namespace tsdroptrace::explain
