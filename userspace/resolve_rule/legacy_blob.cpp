// SPDX-License-Identifier: GPL-2.0-only
#include "resolve_rule/legacy_blob.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <optional>
#include <utility>
#include <vector>

#include <arpa/inet.h>
#include <fmt/core.h>
#include <linux/netfilter.h>
#include <linux/netfilter_arp/arp_tables.h>
#include <linux/netfilter_ipv4/ip_tables.h>
#include <linux/netfilter_ipv6/ip6_tables.h>

namespace tsdroptrace::resolve_rule {
namespace {

using Bytes = std::span<const std::byte>;

struct BuiltinChain {
    const char* name;
    Hook hook;
};

// By the numbers of their hooks.
std::span<const BuiltinChain> builtin_chains(RuleFamily family) {
    static constexpr BuiltinChain inet[] = {
        {"PREROUTING", Hook::prerouting},   {"INPUT", Hook::input},
        {"FORWARD", Hook::forward},         {"OUTPUT", Hook::output},
        {"POSTROUTING", Hook::postrouting},
    };
    static constexpr BuiltinChain arp[] = {
        {"INPUT", Hook::input}, {"OUTPUT", Hook::output}, {"FORWARD", Hook::forward}};
    return family == RuleFamily::arp ? std::span<const BuiltinChain>(arp) : inet;
}

// Copies: the blob promises no alignment that C++ would accept. Not as std::optional, because these structs
// end in flexible arrays, which may be in nothing else.
template <typename T>
bool load(Bytes bytes, std::size_t offset, T& value) {
    if (offset > bytes.size() || bytes.size() - offset < sizeof(T))
        return false;
    std::memcpy(&value, bytes.data() + offset, sizeof(T));
    return true;
}

template <std::size_t size>
std::string text_of(const char (&text)[size]) {
    return {text, strnlen(text, size)};
}

// What is the same in struct ipt_entry, struct ip6t_entry and struct arpt_entry.
struct Common {
    std::string matches; // "-s 100.64.0.0/10 ! -i tailscale0", without a leading space
    bool unconditional = false;
    bool is_goto = false;
    std::uint16_t target_offset = 0, next_offset = 0;
    std::size_t header = 0;
};

struct Entry {
    std::uint32_t offset = 0;
    std::uint32_t next = 0; // offset of the entry after it
    Common common;
    std::vector<std::string> match_names;
    std::string target; // empty: a verdict
    int verdict = 0;
    std::string error_name; // of target ERROR: the name of the user chain that begins here
};

// ---- words ----

void add(std::string& text, bool inverted, std::string_view option, std::string_view value) {
    text += fmt::format("{}{}{} {}", text.empty() ? "" : " ", inverted ? "! " : "", option, value);
}

template <std::size_t size>
void add_address(std::string& text, bool inverted, std::string_view option,
                 const std::array<std::uint8_t, size>& address, const std::array<std::uint8_t, size>& mask) {
    int family = size == 4 ? AF_INET : AF_INET6;
    unsigned ones = 0;
    while (ones < size * 8 && mask[ones / 8] & (0x80 >> ones % 8))
        ones++;
    bool contiguous = true;
    for (unsigned bit = ones; bit < size * 8; bit++)
        contiguous &= !(mask[bit / 8] & (0x80 >> bit % 8));
    if (ones == 0 && contiguous && !inverted)
        return;
    char buffer[INET6_ADDRSTRLEN];
    std::string value = inet_ntop(family, address.data(), buffer, sizeof buffer);
    value += '/';
    value += contiguous ? std::to_string(ones) : inet_ntop(family, mask.data(), buffer, sizeof buffer);
    add(text, inverted, option, value);
}

void add_interface(std::string& text, bool inverted, std::string_view option, const char (&name)[IFNAMSIZ],
                   const unsigned char (&mask)[IFNAMSIZ]) {
    std::string value;
    for (std::size_t i = 0; i < IFNAMSIZ; i++) {
        if (mask[i] == 0) { // a mask that ends before the name's final NUL is a prefix match
            if (i > 0 && name[i - 1] != '\0')
                value += '+';
            break;
        }
        if (name[i] != '\0')
            value += name[i];
    }
    if (!value.empty())
        add(text, inverted, option, value);
}

void add_protocol(std::string& text, bool inverted, std::uint16_t protocol) {
    static constexpr std::pair<int, const char*> names[] = {
        // as iptables calls them
        {IPPROTO_TCP, "tcp"},   {IPPROTO_UDP, "udp"},          {IPPROTO_UDPLITE, "udplite"},
        {IPPROTO_ICMP, "icmp"}, {IPPROTO_ICMPV6, "ipv6-icmp"}, {IPPROTO_ESP, "esp"},
        {IPPROTO_AH, "ah"},     {IPPROTO_SCTP, "sctp"},        {IPPROTO_GRE, "gre"},
    };
    if (protocol == 0)
        return;
    for (auto [number, name] : names)
        if (number == protocol)
            return add(text, inverted, "-p", name);
    add(text, inverted, "-p", std::to_string(protocol));
}

template <typename To, typename From>
To bytes_of(const From& from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

Common common_of(const ipt_entry& entry) {
    using Four = std::array<std::uint8_t, 4>;
    const ipt_ip& ip = entry.ip;
    static const ipt_ip none{};
    Common common;
    std::string& text = common.matches;
    add_address(text, ip.invflags & IPT_INV_SRCIP, "-s", bytes_of<Four>(ip.src), bytes_of<Four>(ip.smsk));
    add_address(text, ip.invflags & IPT_INV_DSTIP, "-d", bytes_of<Four>(ip.dst), bytes_of<Four>(ip.dmsk));
    add_interface(text, ip.invflags & IPT_INV_VIA_IN, "-i", ip.iniface, ip.iniface_mask);
    add_interface(text, ip.invflags & IPT_INV_VIA_OUT, "-o", ip.outiface, ip.outiface_mask);
    add_protocol(text, ip.invflags & IPT_INV_PROTO, ip.proto);
    if (ip.flags & IPT_F_FRAG)
        text += fmt::format("{}{}-f", text.empty() ? "" : " ", ip.invflags & IPT_INV_FRAG ? "! " : "");
    common.unconditional = std::memcmp(&ip, &none, sizeof ip) == 0;
    common.is_goto = ip.flags & IPT_F_GOTO;
    common.target_offset = entry.target_offset;
    common.next_offset = entry.next_offset;
    common.header = sizeof entry;
    return common;
}

Common common_of(const ip6t_entry& entry) {
    using Sixteen = std::array<std::uint8_t, 16>;
    const ip6t_ip6& ip = entry.ipv6;
    static const ip6t_ip6 none{};
    Common common;
    std::string& text = common.matches;
    add_address(text, ip.invflags & IP6T_INV_SRCIP, "-s", bytes_of<Sixteen>(ip.src), bytes_of<Sixteen>(ip.smsk));
    add_address(text, ip.invflags & IP6T_INV_DSTIP, "-d", bytes_of<Sixteen>(ip.dst), bytes_of<Sixteen>(ip.dmsk));
    add_interface(text, ip.invflags & IP6T_INV_VIA_IN, "-i", ip.iniface, ip.iniface_mask);
    add_interface(text, ip.invflags & IP6T_INV_VIA_OUT, "-o", ip.outiface, ip.outiface_mask);
    add_protocol(text, ip.invflags & IP6T_INV_PROTO, ip.proto);
    common.unconditional = std::memcmp(&ip, &none, sizeof ip) == 0;
    common.is_goto = ip.flags & IP6T_F_GOTO;
    common.target_offset = entry.target_offset;
    common.next_offset = entry.next_offset;
    common.header = sizeof entry;
    return common;
}

void add_device_address(std::string& text, bool inverted, std::string_view option, const arpt_devaddr_info& address,
                        std::size_t length) {
    std::string value, mask;
    bool any = false, whole = true;
    for (std::size_t i = 0; i < length; i++) {
        const auto bits = static_cast<std::uint8_t>(address.mask[i]);
        any |= bits != 0;
        whole &= bits == 0xff;
        value += fmt::format("{}{:02x}", i ? ":" : "", static_cast<std::uint8_t>(address.addr[i]));
        mask += fmt::format("{}{:02x}", i ? ":" : "", bits);
    }
    if (any)
        add(text, inverted, option, whole ? value : value + "/" + mask);
}

template <typename T>
void add_number(std::string& text, bool inverted, std::string_view option, T value, T mask, const char* base) {
    if (mask)
        add(text, inverted, option, fmt::format(fmt::runtime(base), value));
}

Common common_of(const arpt_entry& entry) {
    using Four = std::array<std::uint8_t, 4>;
    constexpr std::size_t ethernet = 6;
    const arpt_arp& arp = entry.arp;
    static const arpt_arp none{};
    Common common;
    std::string& text = common.matches;
    const auto inverted = [&](unsigned flag) { return (arp.invflags & flag) != 0; };
    add_interface(text, inverted(ARPT_INV_VIA_IN), "-i", arp.iniface, arp.iniface_mask);
    add_interface(text, inverted(ARPT_INV_VIA_OUT), "-o", arp.outiface, arp.outiface_mask);
    add_address(text, inverted(ARPT_INV_SRCIP), "-s", bytes_of<Four>(arp.src), bytes_of<Four>(arp.smsk));
    add_device_address(text, inverted(ARPT_INV_SRCDEVADDR), "--src-mac", arp.src_devaddr, ethernet);
    add_address(text, inverted(ARPT_INV_TGTIP), "-d", bytes_of<Four>(arp.tgt), bytes_of<Four>(arp.tmsk));
    add_device_address(text, inverted(ARPT_INV_TGTDEVADDR), "--dst-mac", arp.tgt_devaddr, ethernet);
    add_number(text, inverted(ARPT_INV_ARPHLN), "--h-length", arp.arhln, arp.arhln_mask, "{}");
    add_number(text, inverted(ARPT_INV_ARPOP), "--opcode", ntohs(arp.arpop), ntohs(arp.arpop_mask), "{}");
    add_number(text, inverted(ARPT_INV_ARPHRD), "--h-type", ntohs(arp.arhrd), ntohs(arp.arhrd_mask), "{}");
    add_number(text, inverted(ARPT_INV_ARPPRO), "--proto-type", ntohs(arp.arpro), ntohs(arp.arpro_mask), "{:#x}");
    common.unconditional = std::memcmp(&arp, &none, sizeof arp) == 0;
    common.target_offset = entry.target_offset;
    common.next_offset = entry.next_offset;
    common.header = sizeof entry;
    return common;
}

// ---- the blob ----

template <typename Header>
std::optional<Common> load_common(Bytes blob, std::uint32_t offset) {
    Header header;
    return load(blob, offset, header) ? std::optional(common_of(header)) : std::nullopt;
}

std::optional<Entry> load_entry(RuleFamily family, Bytes blob, std::uint32_t offset) {
    auto common = family == RuleFamily::ip6   ? load_common<ip6t_entry>(blob, offset)
                  : family == RuleFamily::arp ? load_common<arpt_entry>(blob, offset)
                                              : load_common<ipt_entry>(blob, offset);
    if (!common || common->target_offset < common->header || common->next_offset < common->target_offset ||
        common->next_offset > blob.size() - offset)
        return std::nullopt;
    Bytes bytes = blob.subspan(offset, common->next_offset);
    Entry entry;
    entry.offset = offset;
    entry.next = offset + common->next_offset;

    for (std::size_t at = common->header; at < common->target_offset;) {
        xt_entry_match match;
        if (!load(bytes.first(common->target_offset), at, match) || match.u.user.match_size < sizeof match)
            return std::nullopt;
        entry.match_names.push_back(text_of(match.u.user.name));
        at += match.u.user.match_size;
    }

    constexpr std::size_t data = sizeof(xt_entry_target);
    xt_entry_target target;
    if (!load(bytes, common->target_offset, target))
        return std::nullopt;
    entry.target = text_of(target.u.user.name);
    if (entry.target == XT_STANDARD_TARGET) {
        if (!load(bytes, common->target_offset + data, entry.verdict))
            return std::nullopt;
    } else if (entry.target == XT_ERROR_TARGET) {
        char name[XT_FUNCTION_MAXNAMELEN];
        if (!load(bytes, common->target_offset + data, name))
            return std::nullopt;
        entry.error_name = text_of(name);
    }
    entry.common = std::move(*common);
    return entry;
}

constexpr std::pair<int, std::pair<const char*, const char*>> verdicts[] = {
    {-NF_DROP - 1, {"drop", "DROP"}},
    {-NF_ACCEPT - 1, {"accept", "ACCEPT"}},
    {-NF_QUEUE - 1, {"queue", "QUEUE"}},
    {XT_RETURN, {"return", "RETURN"}},
};

bool is_standard(const Entry& entry) {
    return entry.target == XT_STANDARD_TARGET;
}

// A rule without -j: "go on with the next entry".
bool falls_through(const Entry& entry) {
    return is_standard(entry) && entry.verdict >= 0 && static_cast<std::uint32_t>(entry.verdict) == entry.next;
}

// `chain_names`: by the offset of the chain's first entry.
SnapshotRule rule_of(const Entry& entry, const std::string& chain,
                     const std::map<std::uint32_t, std::string>& chain_names) {
    SnapshotRule rule;
    rule.offset = entry.offset;
    rule.text = "-A " + chain;
    if (!entry.common.matches.empty())
        rule.text += " " + entry.common.matches;
    for (const std::string& match : entry.match_names)
        rule.text += fmt::format(" -m {} [...]", match);

    if (!is_standard(entry)) {
        rule.text += fmt::format(" -j {} [...]", entry.target);
        rule.verdict = entry.target == "REJECT" ? "reject" : entry.target == "NFQUEUE" ? "queue" : "";
    } else if (entry.verdict < 0) {
        for (const auto& [number, names] : verdicts) {
            if (number != entry.verdict)
                continue;
            rule.verdict = names.first;
            rule.text += fmt::format(" -j {}", names.second);
        }
    } else if (!falls_through(entry)) {
        rule.jump_offset = static_cast<std::uint32_t>(entry.verdict);
        rule.is_goto = entry.common.is_goto;
        rule.verdict = rule.is_goto ? "goto" : "jump";
        auto target = chain_names.find(*rule.jump_offset);
        rule.text +=
            fmt::format(" {} {}", rule.is_goto ? "-g" : "-j", target == chain_names.end() ? "[...]" : target->second);
    }
    return rule;
}

// Every user chain ends in an entry that no one wrote: an unconditional RETURN.
void remove_final_return(SnapshotChain& chain, const Entry* last) {
    if (!chain.hook && !chain.rules.empty() && last && last->common.unconditional && last->match_names.empty() &&
        is_standard(*last) && last->verdict == XT_RETURN)
        chain.rules.pop_back();
}

} // namespace

Result<SnapshotTable> parse_ipt_blob(RuleFamily family, std::string_view name, const BlobInfo& info,
                                     std::span<const std::byte> bytes) {
    auto wrong = [&](std::string_view what, std::size_t offset) {
        return Error{ErrorKind::other,
                     fmt::format("table {}: {} at offset {} of {}", name, what, offset, bytes.size())};
    };
    if (bytes.size() > UINT32_MAX)
        return wrong("too large", 0);

    std::vector<Entry> entries;
    std::map<std::uint32_t, std::string> chain_names;
    for (std::uint32_t offset = 0; offset < bytes.size();) {
        auto entry = load_entry(family, bytes, offset);
        if (!entry)
            return wrong("an entry does not fit", offset);
        if (entry->target == XT_ERROR_TARGET)
            chain_names.emplace(entry->next, entry->error_name);
        offset = entry->next;
        entries.push_back(std::move(*entry));
    }
    if (entries.size() != info.num_entries)
        return wrong(fmt::format("{} entries instead of {}", entries.size(), info.num_entries), bytes.size());
    if (entries.empty() || entries.back().target != XT_ERROR_TARGET)
        return wrong("no final entry", bytes.size());
    entries.pop_back();

    SnapshotTable table;
    table.family = family;
    table.name = name;
    const std::span<const BuiltinChain> builtin = builtin_chains(family);
    bool in_chain = false;
    const Entry* last = nullptr;
    auto begin_chain = [&](std::string chain_name, std::uint32_t offset) -> SnapshotChain& {
        if (in_chain)
            remove_final_return(table.chains.back(), last);
        last = nullptr;
        in_chain = true;
        SnapshotChain& chain = table.chains.emplace_back();
        chain.name = std::move(chain_name);
        chain.offset = offset;
        chain.backend = Backend::iptables_legacy;
        return chain;
    };
    for (const Entry& entry : entries) {
        if (entry.target == XT_ERROR_TARGET) {
            begin_chain(entry.error_name, entry.next);
            continue;
        }
        for (std::size_t hook = 0; hook < builtin.size(); hook++) {
            if (!(info.valid_hooks & 1u << hook) || info.hook_entry[hook] != entry.offset)
                continue;
            SnapshotChain& chain = begin_chain(builtin[hook].name, entry.offset);
            chain.hook = builtin[hook].hook;
            chain.policy_offset = info.underflow[hook];
        }
        if (!in_chain)
            return wrong("a rule outside of any chain", entry.offset);
        SnapshotChain& chain = table.chains.back();
        if (chain.policy_offset == entry.offset) {
            chain.policy = rule_of(entry, chain.name, chain_names).verdict;
            in_chain = false;
            continue;
        }
        chain.rules.push_back(rule_of(entry, chain.name, chain_names));
        last = &entry;
    }
    if (in_chain)
        remove_final_return(table.chains.back(), last);
    return table;
}

namespace {

template <typename Header>
std::map<std::uint32_t, Counts> take_counters_of(std::span<std::byte> bytes) {
    std::map<std::uint32_t, Counts> counters;
    Header header;
    for (std::size_t offset = 0; load(bytes, offset, header) && header.next_offset >= sizeof(Header);
         offset += header.next_offset) {
        counters.emplace(static_cast<std::uint32_t>(offset), Counts{header.counters.pcnt, header.counters.bcnt});
        std::memset(bytes.data() + offset + offsetof(Header, counters), 0, sizeof(header.counters));
    }
    return counters;
}

} // namespace

std::map<std::uint32_t, Counts> take_counters(RuleFamily family, std::span<std::byte> bytes) {
    return family == RuleFamily::ip6 ? take_counters_of<ip6t_entry>(bytes) : take_counters_of<ipt_entry>(bytes);
}

} // namespace tsdroptrace::resolve_rule
