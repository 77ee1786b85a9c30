// SPDX-License-Identifier: GPL-2.0-only
#include "decode/decode.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <string_view>
#include <type_traits>
#include <utility>

#include <arpa/inet.h>
#include <linux/netfilter.h>
#include <netinet/in.h>

#include <fmt/format.h>

#include "util/kallsyms.h"
#include "util/text.h"

namespace tsdroptrace::decode {
namespace {

constexpr std::uint8_t hook_unknown = 0xff;
constexpr std::uint8_t ctinfo_last = 4; // IP_CT_RELATED_REPLY; above it are "untracked" and "not seen"

struct HookName {
    std::uint8_t pf, number;
    Hook hook;
};

// enum nf_inet_hooks, nf_bridge hooks, NF_ARP_* and enum nf_dev_hooks. The numbers mean something within their
// family only. A packet of an inet chain has its own family, at ingress too (since 5.10).
constexpr HookName hook_names[] = {
    {NFPROTO_INET, 0, Hook::prerouting},   {NFPROTO_INET, 1, Hook::input},         {NFPROTO_INET, 2, Hook::forward},
    {NFPROTO_INET, 3, Hook::output},       {NFPROTO_INET, 4, Hook::postrouting},   {NFPROTO_INET, 5, Hook::ingress},
    {NFPROTO_IPV4, 0, Hook::prerouting},   {NFPROTO_IPV4, 1, Hook::input},         {NFPROTO_IPV4, 2, Hook::forward},
    {NFPROTO_IPV4, 3, Hook::output},       {NFPROTO_IPV4, 4, Hook::postrouting},   {NFPROTO_IPV6, 0, Hook::prerouting},
    {NFPROTO_IPV6, 1, Hook::input},        {NFPROTO_IPV6, 2, Hook::forward},       {NFPROTO_IPV6, 3, Hook::output},
    {NFPROTO_IPV6, 4, Hook::postrouting},  {NFPROTO_IPV4, 5, Hook::ingress},       {NFPROTO_IPV6, 5, Hook::ingress},
    {NFPROTO_BRIDGE, 0, Hook::prerouting}, {NFPROTO_BRIDGE, 1, Hook::input},       {NFPROTO_BRIDGE, 2, Hook::forward},
    {NFPROTO_BRIDGE, 3, Hook::output},     {NFPROTO_BRIDGE, 4, Hook::postrouting}, {NFPROTO_ARP, 0, Hook::input},
    {NFPROTO_ARP, 1, Hook::output},        {NFPROTO_ARP, 2, Hook::forward},        {NFPROTO_NETDEV, 0, Hook::ingress},
    {NFPROTO_NETDEV, 1, Hook::egress},
};

// By tsdt_source.
constexpr DropKind kinds[] = {
    DropKind::kernel, // KERNEL
    DropKind::hook,   // NETFILTER
    DropKind::rule,   // NFT_RULE
    DropKind::policy, // NFT_POLICY
    DropKind::rule,   // LEGACY_RULE
    DropKind::policy, // LEGACY_POLICY
    DropKind::hook,   // HOOK_FUNCTION
};
static_assert(std::size(kinds) == TSDT_SOURCE_HOOK_FUNCTION + 1);

// By tsdt_unknown: why no rule is named, after "no rule is known: ".
constexpr std::string_view unknown_sentences[] = {
    "netfilter dropped it without saying where", // NONE
    "no rule was seen dropping it: a hook function without rules, or a firewall backend that is not traced",
    "an nftables expression that is not traced set the verdict",
    "another packet interrupted this one on its CPU and took the place of its record",
    "no dropping rule of iptables-legacy was seen counting it: perhaps a match or an extension target dropped it",
    "several dropping rules of iptables-legacy counted a packet at once, or counters were being restored",
    "an iptables-legacy table was being replaced, or this one has more dropping rules than are watched",
    "a rule handed it to a program in userspace", // QUEUE: the queue says more
    // NOT_SEEN:
    "no rule was seen dropping it: a hook function without rules, a firewall backend that is not traced, or a rule "
    "whose probe the kernel skipped, as it does while others are at work",
    // MANY_POLICIES:
    "no rule of ebtables-legacy counted it, so a policy dropped it, and several chains that it may have ended in have "
    "the policy DROP",
};
static_assert(std::size(unknown_sentences) == TSDT_UNKNOWN_MANY_POLICIES + 1);

// By Suspects::Kind, before the functions' names.
constexpr std::string_view suspect_sentences[] = {
    "no rule was seen dropping it; registered at that hook, so one of these did: ",
    "no dropping rule of iptables-legacy was seen counting it: perhaps an extension target dropped it, or a match that "
    "may drop by itself; the table has these: ",
    "no rule was seen dropping it: either the policy of the chain did, or a match of iptables-nft that may drop by "
    "itself, such as ",
};

// By tsdt_queue, from 1.
constexpr QueueFate queue_fates[] = {QueueFate::nobody,  QueueFate::full,    QueueFate::refused,
                                     QueueFate::unknown, QueueFate::verdict, QueueFate::closed};
static_assert(std::size(queue_fates) == TSDT_QUEUE_CLOSED >> 16);

template <std::size_t N>
std::string_view text(const char (&chars)[N]) {
    return {chars, strnlen(chars, N)};
}

template <std::size_t N>
std::optional<std::string> optional_text(const char (&chars)[N]) {
    return chars[0] ? std::optional(std::string(text(chars))) : std::nullopt;
}

template <typename Record>
Result<Record> copy(std::span<const std::byte> bytes, std::string_view name) {
    static_assert(std::is_trivially_copyable_v<Record>);
    if (bytes.size() != sizeof(Record)) {
        return Error{ErrorKind::other,
                     fmt::format("a {} has {} bytes: expected {}", name, bytes.size(), sizeof(Record))};
    }
    Record record;
    std::memcpy(&record, bytes.data(), sizeof record);
    return record;
}

Error inconsistent(std::string_view name, std::string_view field, std::uint64_t value) {
    return {ErrorKind::other, fmt::format("a {} is inconsistent: {} is {}", name, field, value)};
}

std::optional<Error> check_key(const tsdt_cause_key& key, std::string_view name) {
    if (key.source >= std::size(kinds)) {
        return inconsistent(name, "its source", key.source);
    }
    if (key.unknown >= std::size(unknown_sentences)) {
        return inconsistent(name, "the reason why no rule is known", key.unknown);
    }
    if ((key.queue & TSDT_QUEUE_WHY) >> 16 > std::size(queue_fates) ||
        (key.queue != 0 && (key.queue & TSDT_QUEUE_WHY) == 0)) {
        return inconsistent(name, "what became of it in a queue", key.queue);
    }
    return std::nullopt;
}

Address address(std::uint8_t family, const std::uint8_t (&bytes)[16]) {
    Address address;
    if (family == 4) {
        address.family = IpFamily::ipv4;
        std::copy_n(bytes, 4, address.bytes.begin());
    } else if (family == 6) {
        address.family = IpFamily::ipv6;
        std::copy_n(bytes, 16, address.bytes.begin());
    }
    return address;
}

Direction direction(const tsdt_drop& record) {
    if (record.to_range || record.from_range) {
        return record.to_range ? Direction::to : Direction::from;
    }
    // --all has no range: what came in comes from the other side.
    return record.received ? Direction::from : Direction::to;
}

std::optional<Quoted> quoted(const tsdt_headers& headers) {
    if (headers.family == 0) {
        return std::nullopt;
    }
    Quoted quoted;
    quoted.src = address(headers.family, headers.saddr);
    quoted.dst = address(headers.family, headers.daddr);
    quoted.proto = headers.proto;
    if (headers.has_ports) {
        quoted.sport = ntohs(headers.sport);
        quoted.dport = ntohs(headers.dport);
    }
    return quoted;
}

Packet packet(const tsdt_drop& record) {
    Packet packet;
    packet.src = address(record.family, record.saddr);
    packet.dst = address(record.family, record.daddr);
    packet.family = packet.src.family;
    if (record.is_arp && record.family == 0) {
        packet.src = address(4, record.saddr);
        packet.dst = address(4, record.daddr);
    }
    packet.proto = record.proto;
    if (record.has_ports) {
        packet.sport = ntohs(record.sport);
        packet.dport = ntohs(record.dport);
    }
    packet.no_ports = static_cast<NoPorts>(record.no_ports);
    packet.quoted = quoted(record.quoted);
    packet.length = record.length;
    packet.ttl = record.ttl;
    if (record.has_l4 && record.proto == IPPROTO_TCP) {
        packet.tcp_flags = record.tcp_flags;
    }
    if (record.has_l4 && (record.proto == IPPROTO_ICMP || record.proto == IPPROTO_ICMPV6)) {
        packet.icmp_type = record.icmp_type;
        packet.icmp_code = record.icmp_code;
    }
    packet.mark = record.mark;
    packet.ethertype = record.ethertype;
    packet.direction = direction(record);
    packet.received = record.received;
    if (record.ctinfo <= ctinfo_last) {
        packet.ctinfo = record.ctinfo;
    }
    packet.in_dev = optional_text(record.in_dev);
    packet.out_dev = optional_text(record.out_dev);
    return packet;
}

std::string reason_name(std::uint32_t reason, const KernelNames& names) {
    if (const auto found = names.reasons.find(reason); found != names.reasons.end()) {
        return found->second;
    }
    return names.reasons.empty() && reason == 0 ? "NOT_SPECIFIED" : std::to_string(reason);
}

// ": did you mean NO_SOCKET or SOCKET_FILTER?" The names of a kernel are many: those with few other letters, and those
// that `name` is part of.
std::string near_reasons(const std::string& name, const KernelNames& names) {
    constexpr std::size_t most = 5;
    std::vector<std::pair<std::size_t, std::string_view>> near;
    for (const auto& [code, reason] : names.reasons) {
        const bool part = name.size() >= 3 && reason.find(name) != std::string::npos;
        const std::size_t distance = part ? 0 : edit_distance(name, reason);
        if (distance <= std::max<std::size_t>(2, reason.size() / 3)) {
            near.emplace_back(distance, reason);
        }
    }
    std::sort(near.begin(), near.end());
    near.erase(std::unique(near.begin(), near.end()), near.end());
    std::string text = near.empty() ? "; expected one such as NETFILTER_DROP (a module's are known once it is loaded)"
                                    : ": did you mean ";
    for (std::size_t i = 0; i < std::min(most, near.size()); ++i) {
        text += fmt::format("{}{}", i == 0 ? "" : i + 1 == std::min(most, near.size()) ? " or " : ", ", near[i].second);
    }
    return text + (near.empty() ? "" : "?");
}

std::optional<Hook> hook(const tsdt_cause_key& key) {
    const auto found = std::find_if(std::begin(hook_names), std::end(hook_names), [&](const HookName& name) {
        return name.pf == key.pf && name.number == key.hook && key.hook != hook_unknown;
    });
    return found == std::end(hook_names) ? std::nullopt : std::optional(found->hook);
}

// From a symbol as the kernel prints it: "ipv4_conntrack_in+0x0/0x20 [nf_conntrack]".
HookFunction hook_function(std::string_view symbol) {
    HookFunction function;
    function.name = symbol.substr(0, symbol.find('+'));
    if (const auto module = module_of(symbol); !module.empty()) {
        function.module = module;
    }
    return function;
}

std::optional<Queue> queue(std::uint32_t value) {
    if (value == 0) {
        return std::nullopt;
    }
    Queue queue;
    queue.fate = queue_fates[((value & TSDT_QUEUE_WHY) >> 16) - 1];
    if (value & TSDT_QUEUE_NUMBERED) {
        queue.number = static_cast<std::uint16_t>(value);
    }
    return queue;
}

// Why no rule is named.
std::string unknown(const tsdt_cause& cause, const DropSite& site) {
    if (site.queue) {
        return site.queue->text();
    }
    const auto all = suspects(cause);
    if (!all) {
        return std::string(unknown_sentences[cause.key.unknown]);
    }
    std::string names;
    for (const HookFunction& function : all->functions) {
        names += (names.empty() ? "" : ", ") + function.text();
    }
    constexpr std::string_view or_skipped =
        "; should it have rules, it was one whose probe the kernel skipped, as it does while others are at work";
    return fmt::format("{}{}{}", suspect_sentences[static_cast<std::size_t>(all->kind)], names,
                       cause.key.unknown == TSDT_UNKNOWN_NOT_SEEN ? or_skipped : "");
}

DropSite site(const tsdt_cause& cause, const KernelNames& names) {
    DropSite site;
    site.kind = kinds[cause.key.source];
    site.reason = reason_name(cause.key.reason, names);
    site.reason_code = cause.key.reason;
    site.location = text(cause.location);
    if (site.location.empty() && cause.key.location) {
        site.location = fmt::format("{:#x}", cause.key.location);
    }
    site.hook = hook(cause.key);
    site.queue = queue(cause.key.queue);
    if (cause.key.source == TSDT_SOURCE_HOOK_FUNCTION) {
        site.hook_function = hook_function(text(cause.step[0].chain));
        if (cause.key.offset) {
            site.hook_function->program_id = cause.key.offset;
            site.hook_function->program = text(cause.table);
        }
    } else if (site.kind == DropKind::hook) {
        site.unknown = unknown(cause, site);
    }
    return site;
}

// Functions that a packet reaches before the stack has noted by which device it came in, so that it looks like one that
// is about to leave by that device: it is written to a TUN, comes out of a VXLAN tunnel, waits for its CPU. (Those that
// have been met; other tunnels' are likely to be like VXLAN's.)
constexpr std::string_view comes_in[] = {"tun_get_user", "vxlan_rcv", "enqueue_to_backlog"};

void set_way(Packet& packet, std::string_view location) {
    if (packet.in_dev || !packet.out_dev || std::ranges::find(comes_in, symbol_of(location)) == std::end(comes_in)) {
        return;
    }
    std::swap(packet.in_dev, packet.out_dev);
    packet.received = true;
}

// Where a packet dies that may have waited: for its device, or for its neighbour's address. Whoever is at work then,
// since it sends another packet or switches the device off, need not be who has sent this one.
constexpr std::string_view waiting_reasons[] = {"QDISC_", "NEIGH_QUEUEFULL", "FULL_RING"}; // they begin so
// Where the reason does not tell. (5.10 has none.)
constexpr std::string_view waiting_places[] = {"__rtnl_unlock", "kfree_skb_list", "__neigh_event_send",
                                               "neigh_destroy"};

bool may_have_waited(const DropSite& site) {
    if (site.kind != DropKind::kernel)
        return false;
    const auto begins = [&](std::string_view reason) { return site.reason.starts_with(reason); };
    if (std::ranges::any_of(waiting_reasons, begins))
        return true;
    const std::string_view place = symbol_of(site.location);
    return (site.reason == "NOT_SPECIFIED" || site.reason == "QUEUE_PURGE") &&
           (place.ends_with("_reset") || std::ranges::find(waiting_places, place) != std::end(waiting_places));
}

// What all packets of a cause share.
Drop shared(const tsdt_cause& cause, std::uint64_t mono_ns, const Machine& machine) {
    Drop drop;
    drop.mono_ns = mono_ns;
    // Unsigned: a recording may claim any time, and a signed sum could overflow.
    drop.time_ns = static_cast<std::int64_t>(mono_ns + static_cast<std::uint64_t>(machine.realtime_minus_mono_ns));
    drop.cause_id = cause.id;
    drop.netns = decode_netns(cause.key.netns, machine);
    drop.site = site(cause, machine.names);
    return drop;
}

} // namespace

Result<std::vector<std::uint32_t>> reason_codes(const std::vector<std::string>& wanted, const KernelNames& names) {
    constexpr std::string_view prefix = "SKB_DROP_REASON_";
    std::vector<std::uint32_t> codes;
    if (!wanted.empty() && names.reasons.empty())
        return Error{ErrorKind::unsupported, "--reason: this kernel gives no reasons for drops (needs 5.17 and BTF)"};
    for (const std::string& typed : wanted) {
        std::string name = typed;
        std::transform(name.begin(), name.end(), name.begin(),
                       [](char c) { return c >= 'a' && c <= 'z' ? static_cast<char>(c - 'a' + 'A') : c; });
        if (name.starts_with(prefix)) {
            name.erase(0, prefix.size());
        }
        const std::size_t before = codes.size();
        for (const auto& [code, reason] : names.reasons) {
            const bool of_queue = name == queue_refused && code > 0xffff && reason.starts_with("QDISC_DROP_");
            if (reason == name || of_queue) {
                codes.push_back(code); // a module may use a name again
            }
        }
        if (codes.size() == before) {
            return Error{ErrorKind::command_line, fmt::format("--reason {}: this kernel has no such drop reason{}",
                                                              printable(typed), near_reasons(name, names))};
        }
    }
    return codes;
}

std::string_view lost_place_name(std::size_t place) {
    constexpr std::string_view names[TSDT_LOST_MAX] = {"ring", "causes", "flows"};
    return place < TSDT_LOST_MAX ? names[place] : "elsewhere";
}

Seen decode_seen(const std::vector<tsdt_seen_count>& counts, const Machine& machine) {
    Seen seen;
    for (const auto& [key, count] : counts) {
        SeenWay& way = key.way == TSDT_SEEN_SENT ? seen.sent : seen.received;
        const auto first = static_cast<std::int64_t>(count.first_ns) + machine.realtime_minus_mono_ns;
        const auto last = static_cast<std::int64_t>(count.last_ns) + machine.realtime_minus_mono_ns;
        way.packets += count.packets;
        way.by_dev[std::string(text(key.dev))] += count.packets;
        way.first_ns = way.first_ns ? std::min(*way.first_ns, first) : first;
        way.last_ns = way.last_ns ? std::max(*way.last_ns, last) : last;
    }
    return seen;
}

Netns decode_netns(std::uint32_t inode, const Machine& machine) {
    Netns netns;
    netns.inode = inode;
    netns.initial = inode != 0 && inode == machine.own_netns;
    const auto found = machine.netns_names.find(inode);
    if (found != machine.netns_names.end() && !found->second.empty()) {
        netns.name = found->second;
    }
    return netns;
}

Result<tsdt_drop> read_drop(std::span<const std::byte> bytes) {
    constexpr std::string_view name = "record of a dropped packet";
    auto record = copy<tsdt_drop>(bytes, name);
    if (!record) {
        return record;
    }
    if (const auto error = check_key(record->key, name)) {
        return *error;
    }
    for (const std::uint8_t family : {record->family, record->quoted.family}) {
        if (family != 0 && family != 4 && family != 6) {
            return inconsistent(name, "an address family", family);
        }
    }
    for (const std::uint8_t no_ports : {record->no_ports, record->quoted.no_ports}) {
        if (no_ports > TSDT_NO_PORTS_UNREAD) {
            return inconsistent(name, "the reason why it has no ports", no_ports);
        }
    }
    for (const std::uint8_t flag : {record->has_ports, record->quoted.has_ports, record->has_l4, record->to_range,
                                    record->from_range, record->received, record->is_arp}) {
        if (flag > 1) {
            return inconsistent(name, "a yes-or-no field", flag);
        }
    }
    return record;
}

Result<tsdt_ruleset_change> read_ruleset_change(std::span<const std::byte> bytes) {
    constexpr std::string_view name = "record of a changed ruleset";
    auto record = copy<tsdt_ruleset_change>(bytes, name);
    if (record && record->ruleset >= TSDT_RULESET_MAX) {
        return inconsistent(name, "the kind of its ruleset", record->ruleset);
    }
    return record;
}

Changer decode_changer(const tsdt_ruleset_change& record) {
    Changer changer;
    changer.process = {record.pid, std::string(text(record.comm))};
    if (record.parent_pid != 0) {
        changer.parent = Process{record.parent_pid, std::string(text(record.parent_comm))};
    }
    changer.changes = 1;
    return changer;
}

Result<tsdt_seen_count> read_seen(std::span<const std::byte> bytes) {
    constexpr std::string_view name = "count of packets that pass";
    auto count = copy<tsdt_seen_count>(bytes, name);
    if (count && count->key.way > TSDT_SEEN_RECEIVED) {
        return inconsistent(name, "its way", count->key.way);
    }
    return count;
}

Result<tsdt_cause> read_cause(std::span<const std::byte> bytes) {
    constexpr std::string_view name = "cause of drops";
    auto cause = copy<tsdt_cause>(bytes, name);
    if (!cause) {
        return cause;
    }
    if (const auto error = check_key(cause->key, name)) {
        return *error;
    }
    if (cause->id == 0) {
        return inconsistent(name, "its id", cause->id);
    }
    if (cause->steps > TSDT_PATH_MAX) {
        return inconsistent(name, "the number of its steps", cause->steps);
    }
    return cause;
}

Drop decode_drop(const tsdt_drop& record, const tsdt_cause& cause, const Machine& machine) {
    Drop drop = shared(cause, record.mono_ns, machine);
    drop.cpu = record.cpu;
    drop.packet = packet(record);
    set_way(drop.packet, drop.site.location);
    if (record.pid != 0) {
        Process process{record.pid, std::string(text(record.comm))};
        if (drop.site.queue && drop.site.queue->fate == QueueFate::verdict) {
            drop.site.queue->process = std::move(process);
            if (drop.site.kind == DropKind::hook) {
                drop.site.unknown = drop.site.queue->text();
            }
        } else if (!may_have_waited(drop.site)) {
            drop.process = std::move(process);
        }
    }
    return drop;
}

std::optional<Suspects> suspects(const tsdt_cause& cause) {
    constexpr std::pair<tsdt_unknown, Suspects::Kind> listed[] = {
        {TSDT_UNKNOWN_NOT_TRACED, Suspects::Kind::hook_functions},
        {TSDT_UNKNOWN_NOT_SEEN, Suspects::Kind::hook_functions},
        {TSDT_UNKNOWN_NO_COUNTER, Suspects::Kind::legacy_matches},
        {TSDT_UNKNOWN_EXPRESSION, Suspects::Kind::nft_matches},
    };
    if (cause.key.source != TSDT_SOURCE_NETFILTER || cause.steps == 0) {
        return std::nullopt;
    }
    const auto* found = std::find_if(std::begin(listed), std::end(listed),
                                     [&](const auto& entry) { return entry.first == cause.key.unknown; });
    if (found == std::end(listed)) {
        return std::nullopt;
    }
    Suspects suspects{found->second, {}};
    for (std::size_t i = 0; i < std::min<std::size_t>(cause.steps, TSDT_PATH_MAX); ++i) {
        suspects.functions.push_back(hook_function(text(cause.step[i].chain)));
    }
    return suspects;
}

Drop decode_cause(const tsdt_cause& cause, const Machine& machine) {
    return shared(cause, cause.last_ns, machine);
}

} // namespace tsdroptrace::decode
