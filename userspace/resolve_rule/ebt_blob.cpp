// SPDX-License-Identifier: GPL-2.0-only
#include "resolve_rule/ebt_blob.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <arpa/inet.h>
#include <fmt/core.h>
#include <linux/if_ether.h>
#include <linux/netfilter_bridge/ebtables.h>

namespace tsdroptrace::resolve_rule {
namespace {

using Bytes = std::span<const std::byte>;

constexpr std::pair<std::string_view, Hook> builtin_chains[] = {
    {"PREROUTING", Hook::prerouting},   {"INPUT", Hook::input},
    {"FORWARD", Hook::forward},         {"OUTPUT", Hook::output},
    {"POSTROUTING", Hook::postrouting}, {"BROUTING", Hook::prerouting},
};

constexpr std::pair<int, std::pair<const char*, const char*>> verdicts[] = {
    {EBT_DROP, {"drop", "DROP"}},
    {EBT_ACCEPT, {"accept", "ACCEPT"}},
    {EBT_CONTINUE, {"continue", "CONTINUE"}},
    {EBT_RETURN, {"return", "RETURN"}},
};

// Copies: the blob promises no alignment that C++ would accept.
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

void add(std::string& text, bool inverted, std::string_view option, std::string_view value) {
    text += fmt::format("{} {} {}", inverted ? " !" : "", option, value);
}

void add_interface(std::string& text, bool inverted, std::string_view option, const char (&name)[IFNAMSIZ]) {
    constexpr char any_end = 1; // stands for the + at the end
    std::string value = text_of(name);
    if (value.empty())
        return;
    if (value.back() == any_end)
        value.back() = '+';
    add(text, inverted, option, value);
}

std::string mac_text(const unsigned char (&mac)[ETH_ALEN]) {
    return fmt::format("{:02x}:{:02x}:{:02x}:{:02x}:{:02x}:{:02x}", mac[0], mac[1], mac[2], mac[3], mac[4], mac[5]);
}

void add_mac(std::string& text, bool inverted, std::string_view option, const unsigned char (&mac)[ETH_ALEN],
             const unsigned char (&mask)[ETH_ALEN]) {
    const bool whole = std::ranges::all_of(mask, [](unsigned char byte) { return byte == 0xff; });
    add(text, inverted, option, whole ? mac_text(mac) : mac_text(mac) + "/" + mac_text(mask));
}

void add_protocol(std::string& text, bool inverted, const ebt_entry& entry) {
    static constexpr std::pair<int, const char*> names[] = {
        {ETH_P_IP, "IPv4"}, {ETH_P_ARP, "ARP"}, {ETH_P_IPV6, "IPv6"}, {ETH_P_8021Q, "802_1Q"}};
    if (entry.bitmask & EBT_NOPROTO)
        return;
    if (entry.bitmask & EBT_802_3)
        return add(text, inverted, "-p", "LENGTH");
    const int protocol = ntohs(entry.ethproto);
    for (auto [number, name] : names)
        if (number == protocol)
            return add(text, inverted, "-p", name);
    add(text, inverted, "-p", fmt::format("{:#x}", protocol));
}

// What every rule can ask for: " -p IPv4 -i eth0".
std::string basic_matches(const ebt_entry& entry) {
    const auto inverted = [&](unsigned flag) { return (entry.invflags & flag) != 0; };
    std::string text;
    add_protocol(text, inverted(EBT_IPROTO), entry);
    if (entry.bitmask & EBT_SOURCEMAC)
        add_mac(text, inverted(EBT_ISOURCE), "-s", entry.sourcemac, entry.sourcemsk);
    if (entry.bitmask & EBT_DESTMAC)
        add_mac(text, inverted(EBT_IDEST), "-d", entry.destmac, entry.destmsk);
    add_interface(text, inverted(EBT_IIN), "-i", entry.in);
    add_interface(text, inverted(EBT_ILOGICALIN), "--logical-in", entry.logical_in);
    add_interface(text, inverted(EBT_IOUT), "-o", entry.out);
    add_interface(text, inverted(EBT_ILOGICALOUT), "--logical-out", entry.logical_out);
    return text;
}

struct Entry {
    std::uint32_t offset = 0, next = 0;
    std::string matches; // " -p IPv4 -m ip [...]"
    std::string target;
    int verdict = 0; // of the standard target
};

// Names of matches or watchers from `at` to `end`.
bool load_extensions(Bytes bytes, std::size_t at, std::size_t end, std::string& text) {
    while (at < end) {
        ebt_entry_match match;
        if (!load(bytes.first(end), at, match) || match.match_size > end - at - sizeof match)
            return false;
        text += fmt::format(" -m {} [...]", text_of(match.u.name));
        at += sizeof match + match.match_size;
    }
    return true;
}

std::optional<Entry> load_entry(Bytes blob, std::uint32_t offset) {
    ebt_entry head;
    if (!load(blob, offset, head) || head.watchers_offset < sizeof head || head.target_offset < head.watchers_offset ||
        head.next_offset <= head.target_offset || head.next_offset > blob.size() - offset)
        return std::nullopt;
    const Bytes bytes = blob.subspan(offset, head.next_offset);
    Entry entry{offset, offset + head.next_offset, basic_matches(head), "", 0};
    ebt_entry_target target;
    if (!load_extensions(bytes, sizeof head, head.watchers_offset, entry.matches) ||
        !load_extensions(bytes, head.watchers_offset, head.target_offset, entry.matches) ||
        !load(bytes, head.target_offset, target))
        return std::nullopt;
    entry.target = text_of(target.u.name);
    if (entry.target == EBT_STANDARD_TARGET && !load(bytes, head.target_offset + sizeof target, entry.verdict))
        return std::nullopt;
    return entry;
}

SnapshotRule rule_of(const Entry& entry, const std::string& chain,
                     const std::map<std::uint32_t, std::string>& chain_names) {
    SnapshotRule rule;
    rule.offset = entry.offset;
    rule.text = "-A " + chain + entry.matches;
    if (entry.target != EBT_STANDARD_TARGET) {
        rule.text += fmt::format(" -j {} [...]", entry.target);
        return rule;
    }
    for (const auto& [number, names] : verdicts) {
        if (number != entry.verdict)
            continue;
        rule.verdict = names.first;
        rule.text += fmt::format(" -j {}", names.second);
    }
    if (entry.verdict >= 0) {
        rule.verdict = "jump";
        rule.jump_offset = static_cast<std::uint32_t>(entry.verdict);
        const auto target = chain_names.find(*rule.jump_offset);
        rule.text += fmt::format(" -j {}", target == chain_names.end() ? "[...]" : target->second);
    }
    return rule;
}

} // namespace

Result<SnapshotTable> parse_ebt_blob(std::string_view name, std::span<const std::byte> bytes) {
    const auto wrong = [&](std::string_view what, std::size_t offset) {
        return Error{ErrorKind::other,
                     fmt::format("bridge table {}: {} at offset {} of {}", name, what, offset, bytes.size())};
    };
    if (bytes.size() > INT32_MAX)
        return wrong("too large", 0);

    SnapshotTable table;
    table.family = RuleFamily::bridge;
    table.name = name;
    std::vector<std::vector<Entry>> entries; // by chain
    std::map<std::uint32_t, std::string> chain_names;
    for (std::uint32_t offset = 0; offset < bytes.size();) {
        std::uint32_t bitmask;
        if (!load(bytes, offset, bitmask))
            return wrong("an entry does not fit", offset);
        if (!(bitmask & EBT_ENTRY_OR_ENTRIES)) { // the head of a chain
            ebt_entries head;
            if (!load(bytes, offset, head))
                return wrong("a chain does not fit", offset);
            SnapshotChain& chain = table.chains.emplace_back();
            chain.name = text_of(head.name);
            chain.offset = chain.policy_offset = offset;
            chain.backend = Backend::iptables_legacy;
            for (const auto& [builtin, hook] : builtin_chains)
                if (builtin == chain.name)
                    chain.hook = hook;
            for (const auto& [number, names] : verdicts)
                if (number == head.policy)
                    chain.policy = names.first;
            chain_names.emplace(offset, chain.name);
            entries.emplace_back();
            offset += static_cast<std::uint32_t>(sizeof head);
            continue;
        }
        auto entry = load_entry(bytes, offset);
        if (!entry)
            return wrong("an entry does not fit", offset);
        if (entries.empty())
            return wrong("a rule outside of any chain", offset);
        offset = entry->next;
        entries.back().push_back(std::move(*entry));
    }
    for (std::size_t i = 0; i < entries.size(); i++)
        for (const Entry& entry : entries[i])
            table.chains[i].rules.push_back(rule_of(entry, table.chains[i].name, chain_names));
    return table;
}

} // namespace tsdroptrace::resolve_rule
