// SPDX-License-Identifier: GPL-2.0-only
#include "explain/words.h"

#include <algorithm>
#include <cctype>
#include <fmt/format.h>

#include "explain/match.h"
#include "util/kallsyms.h"
#include "util/text.h"

namespace tsdroptrace::explain {

namespace {

// ---- what the packet tells ----

// Tailscale takes the whole range for itself: who meets one address of a provider there will meet the others, too.
bool of_tailscale(const Subject& s) {
    return s.drop.rule && s.drop.rule->chain.starts_with("ts-") && other_legacy_tool(*s.drop.rule).empty();
}

// What a rule that accepts the peer should name; empty when it should not be accepted.
std::string peer_cidr(const Subject& s) {
    const std::string_view accept = s.service != nullptr ? s.service->accept : "";
    if (accept == never_accept && peer_is_source(s.drop))
        return {};
    return accept.empty() || accept == never_accept || !of_tailscale(s) ? peer(s.drop).text() : std::string(accept);
}

// The one service that a rule which accepts the packet should name: its protocol, and the port of who serves. Empty for
// Tailscale's rules, which are in the way of all of them.
struct ServedPort {
    std::string proto; // empty: whatever it is
    bool source = false;
    std::uint16_t number = 0; // 0: it has none
};

ServedPort served_port(const Subject& s) {
    constexpr std::uint8_t icmp = 1, tcp = 6, udp = 17, icmpv6 = 58, sctp = 132;
    constexpr std::uint16_t privileged = 1024;
    const Packet& packet = s.drop.packet;
    if (of_tailscale(s) || packet.family == IpFamily::other)
        return {};
    if (packet.proto == icmp || packet.proto == icmpv6)
        return {packet.proto == icmp ? "icmp" : "ipv6-icmp", false, 0};
    const bool has_ports = packet.proto == tcp || packet.proto == udp || packet.proto == sctp;
    if (!has_ports || !packet.sport || !packet.dport)
        return {};
    const bool answer = packet.ctinfo ? *packet.ctinfo == 3 || *packet.ctinfo == 4
                                      : *packet.sport < privileged && *packet.dport >= privileged;
    return {proto_name(packet.proto), answer, answer ? *packet.sport : *packet.dport};
}

// Only what the event holds: what conntrack says, or else the port, named as what it is.
std::string evidence(const Subject& s) {
    constexpr std::uint8_t is_new = 2;
    const Packet& packet = s.drop.packet;
    const auto ct = packet.ctinfo;
    if (ct == 3 && s.drop.site.hook == Hook::input)
        return "an answer to this machine's own request (conntrack)";
    if (ct == 4 && s.drop.site.hook == Hook::input)
        return "related to this machine's own request, such as an ICMP error about it (conntrack)";
    if ((ct == 3 || ct == 4) && leaves_this_machine(s.drop))
        return "this machine's answer to a request from " + packet.dst.text() + " (conntrack)";
    if (ct == 3 || ct == 4)
        return "an answer in a connection that conntrack knows";
    std::string text = ct == is_new && packet.received
                           ? "the first of a connection that somebody else opens (conntrack: new)"
                       : ct == is_new ? "the first of a connection (conntrack: new)"
                                      : "";
    if (packet.received && packet.sport == 53)
        text += std::string(text.empty() ? "" : ", ") + "from port 53 (DNS, by its port)";
    return text;
}

std::string with_port(const Address& address, std::optional<std::uint16_t> port) {
    if (!port)
        return address.text();
    const bool ipv6 = address.family == IpFamily::ipv6;
    return fmt::format("{}{}{}:{}", ipv6 ? "[" : "", address.text(), ipv6 ? "]" : "", *port);
}

std::string dns_server(const Subject& s) {
    const bool by_port = peer_is_source(s.drop) ? s.drop.packet.sport == 53 : s.drop.packet.dport == 53;
    return by_port || (s.service != nullptr && s.service->dns) ? peer(s.drop).text() : std::string{};
}

// ---- commands that edit or show the rule, with the rule's own tool ----

// iptables has one base chain in a table for each hook, so it is known also where the way to the rule is not.
std::string base_chain(const Drop& drop) {
    const Rule& rule = *drop.rule;
    if (rule.backend != Backend::nftables && drop.site.hook) {
        std::string name(to_string(*drop.site.hook));
        std::ranges::transform(name, name.begin(), [](unsigned char c) { return static_cast<char>(std::toupper(c)); });
        return name;
    }
    return rule.path.empty() ? rule.chain : rule.path.front().chain;
}

// Empty where no command of iptables would do anything.
std::string iptables_tool(const Subject& s) {
    if (s.drop.rule && !other_legacy_tool(*s.drop.rule).empty())
        return {};
    const bool ipv6 = s.drop.packet.family == IpFamily::ipv6;
    const std::string name = ipv6 ? "ip6tables" : "iptables";
    if (!s.drop.rule || s.plain_iptables == s.drop.rule->backend || s.drop.rule->backend == Backend::nftables)
        return name;
    return name + (s.drop.rule->backend == Backend::iptables_legacy ? "-legacy" : "-nft");
}

// " -i eth0 -s 100.100.0.0/16": as narrow as the event allows; empty when the peer should not be accepted.
std::string iptables_match(const Subject& s) {
    const std::string cidr = peer_cidr(s);
    if (cidr.empty())
        return {};
    const Packet& packet = s.drop.packet;
    std::string match;
    if (!leaves_this_machine(s.drop) && packet.in_dev)
        match += " -i " + shell_word(*packet.in_dev);
    if ((leaves_this_machine(s.drop) || s.drop.site.hook == Hook::forward) && packet.out_dev)
        match += " -o " + shell_word(*packet.out_dev);
    match += (peer_is_source(s.drop) ? " -s " : " -d ") + cidr;
    const ServedPort served = served_port(s);
    if (!served.proto.empty())
        match += " -p " + served.proto;
    if (served.number != 0)
        match += fmt::format(" --{} {}", served.source ? "sport" : "dport", served.number);
    return match;
}

// Inserts an accept at the top of the base chain, as narrow as the event allows. Only there: an accept in
// an earlier base chain does not stop a later one from dropping.
std::string accept_command(const Subject& s) {
    const std::string cidr = peer_cidr(s);
    const Packet& packet = s.drop.packet;
    if (!s.drop.rule || !s.drop.site.hook || cidr.empty())
        return {};
    const Rule& rule = *s.drop.rule;
    const bool source = peer_is_source(s.drop);
    const bool entering = !leaves_this_machine(s.drop);
    const bool leaving = leaves_this_machine(s.drop) || s.drop.site.hook == Hook::forward;
    std::string command;
    if (rule.backend == Backend::nftables) {
        if (rule.family == RuleFamily::arp || packet.family == IpFamily::other)
            return {};
        const auto device = [](const std::string& name) {
            const bool plain = shell_word(name) == name;
            return plain ? '"' + name + '"' : shell_word('"' + name + '"');
        };
        command += fmt::format("nft insert rule {} {} {}", to_string(rule.family), shell_word(rule.table),
                               shell_word(base_chain(s.drop)));
        if (entering && packet.in_dev && rule.family != RuleFamily::netdev)
            command += " iifname " + device(*packet.in_dev);
        if (leaving && packet.out_dev && rule.family != RuleFamily::netdev)
            command += " oifname " + device(*packet.out_dev);
        const std::string_view ip = packet.family == IpFamily::ipv6 ? "ip6" : "ip";
        command += fmt::format(" {} {} {}", ip, source ? "saddr" : "daddr", cidr);
        const ServedPort served = served_port(s);
        if (served.number != 0)
            command += fmt::format(" {} {} {}", served.proto, served.source ? "sport" : "dport", served.number);
        else if (!served.proto.empty())
            command += " meta l4proto " + served.proto;
        return command + " accept";
    }
    const std::string tool = iptables_tool(s);
    if (tool.empty())
        return {};
    command += tool;
    if (rule.table != "filter")
        command += " -t " + shell_word(rule.table);
    return command + fmt::format(" -I {} 1{} -j ACCEPT", shell_word(base_chain(s.drop)), iptables_match(s));
}

// What the accept lets pass.
std::string allowed(const Subject& s) {
    const std::string cidr = peer_cidr(s);
    if (cidr.empty())
        return {};
    const std::string_view verb = leaves_this_machine(s.drop)         ? "lets out"
                                  : s.drop.site.hook == Hook::forward ? "lets through"
                                                                      : "lets in";
    const ServedPort served = served_port(s);
    std::string what = served.proto.empty() ? "whatever" : served.proto;
    if (served.number != 0)
        what += fmt::format(" {} port {}", served.source ? "from" : "to", served.number);
    what += served.proto.empty() ? "" : " that";
    return fmt::format("{} {} {} {} this way", verb, what, peer_is_source(s.drop) ? cidr : "is sent",
                       peer_is_source(s.drop) ? "sends" : "to " + cidr);
}

std::string show_command(const Subject& s) {
    if (!s.drop.rule)
        return {};
    const Rule& rule = *s.drop.rule;
    const std::string table = shell_word(rule.table), chain = shell_word(rule.chain);
    if (rule.backend == Backend::nftables)
        return fmt::format("nft -a list chain {} {} {}", to_string(rule.family), table, chain);
    if (rule.family == RuleFamily::bridge)
        return fmt::format("ebtables-legacy -t {} -L {} --Ln --Lc", table, chain);
    const std::string_view other = other_legacy_tool(rule);
    return fmt::format("{} -t {} -L {} -n -v --line-numbers", other.empty() ? iptables_tool(s) : other, table, chain);
}

// ---- placeholders ----

std::string or_empty(const std::optional<std::string>& text) {
    return text.value_or("");
}

std::string process_text(const std::optional<Process>& process) {
    return process ? fmt::format("{} (pid {})", process->comm, process->pid) : std::string{};
}

// "eth0 via 172.24.63.253 (table main)"
std::string route(const Subject& s) {
    if (!s.drop.evidence || !s.drop.evidence->route || !s.drop.evidence->route->dev)
        return {};
    constexpr std::uint32_t table_main = 254;
    const Route& route = *s.drop.evidence->route;
    std::string text = *route.dev;
    if (route.gateway)
        text += " via " + route.gateway->text();
    if (route.table == 0) // not told
        return text;
    const std::string rule = rule_words(route);
    return text + fmt::format(" (table {}{}{}{})", route.table == table_main ? "main" : std::to_string(route.table),
                              route.table == tailscale_table ? ", Tailscale's" : "", rule.empty() ? "" : ", ", rule);
}

std::string trimmed(std::string text) {
    return text.starts_with(' ') ? text.substr(1) : text;
}

struct Placeholder {
    std::string_view name;
    std::string (*value)(const Subject&);
    bool ready = false; // a command already: not quoted again within a command
};

const Placeholder placeholders[] = {
    {"src", [](const Subject& s) { return s.drop.packet.src.text(); }},
    {"dst", [](const Subject& s) { return s.drop.packet.dst.text(); }},
    {"dst_end", [](const Subject& s) { return with_port(s.drop.packet.dst, s.drop.packet.dport); }},
    {"peer", [](const Subject& s) { return peer(s.drop).text(); }},
    {"peer_cidr", peer_cidr},
    {"service", [](const Subject& s) { return s.service ? std::string(s.service->who) : std::string{}; }},
    {"evidence", evidence},
    {"dns", dns_server},
    {"proto", [](const Subject& s) { return proto_name(s.drop.packet.proto); }},
    {"ethertype", [](const Subject& s) { return fmt::format("0x{:04x}", s.drop.packet.ethertype); }},
    {"length", [](const Subject& s) { return std::to_string(s.drop.packet.length); }},
    {"mark", [](const Subject& s) { return fmt::format("{:#x}", s.drop.packet.mark); }},
    {"in_dev", [](const Subject& s) { return or_empty(s.drop.packet.in_dev); }},
    {"out_dev", [](const Subject& s) { return or_empty(s.drop.packet.out_dev); }},
    {"sysctl_dev", [](const Subject& s) { return sysctl_device(or_empty(s.drop.packet.in_dev)); }},
    {"table", [](const Subject& s) { return s.drop.rule ? s.drop.rule->table : std::string{}; }},
    {"chain", [](const Subject& s) { return s.drop.rule ? s.drop.rule->chain : std::string{}; }},
    {"owner", [](const Subject& s) { return s.owner ? s.owner->name : std::string{}; }},
    {"owner_evidence", [](const Subject& s) { return s.owner ? s.owner->evidence : std::string{}; }},
    {"configured_by", [](const Subject& s) { return s.owner ? s.owner->configured_by : std::string{}; }, true},
    {"accept", accept_command, true},
    {"match", [](const Subject& s) { return trimmed(iptables_match(s)); }, true},
    {"allowed", allowed},
    {"show", show_command, true},
    {"iptables", iptables_tool},
    {"unknown", [](const Subject& s) { return s.drop.site.unknown; }},
    {"hook_function",
     [](const Subject& s) { return s.drop.site.hook_function ? s.drop.site.hook_function->text() : std::string{}; }},
    {"program_id",
     [](const Subject& s) {
         const auto& function = s.drop.site.hook_function;
         return function && function->program_id ? std::to_string(*function->program_id) : std::string{};
     }},
    {"queue",
     [](const Subject& s) {
         const auto& queue = s.drop.site.queue;
         return queue && queue->number ? std::to_string(*queue->number) : std::string{};
     }},
    {"queue_process",
     [](const Subject& s) {
         const auto& queue = s.drop.site.queue;
         return queue ? process_text(queue->process) : std::string{};
     }},
    {"route", route},
    {"sender", [](const Subject& s) { return process_text(s.drop.process); }},
    {"waiting",
     [](const Subject& s) { return s.drop.evidence ? process_text(s.drop.evidence->waiting) : std::string{}; }},
    {"waiter", // the same at the beginning of a sentence, also where the process was not found in time
     [](const Subject& s) {
         if (!s.drop.evidence || s.drop.evidence->socket_waits != true)
             return std::string{};
         return s.drop.evidence->waiting ? process_text(s.drop.evidence->waiting) : "A socket";
     }},
    {"reason", [](const Subject& s) { return has_name(s.drop.site) ? std::string(reason_of(s.drop.site)) : ""; }},
    {"nameless_reason", [](const Subject& s) { return has_name(s.drop.site) ? "" : s.drop.site.reason; }},
    {"symbol", [](const Subject& s) { return std::string(symbol_of(s.drop.site.location)); }},
};

// ---- whether an accept is reached at all ----

struct Accept {
    bool nft = false, appended = false;
    std::string table = "filter"; // nft: "ip filter"
    std::string chain;
};

std::vector<std::string_view> words_of(std::string_view text) {
    std::vector<std::string_view> words;
    for (std::size_t at = 0; at < text.size();) {
        const std::size_t end = std::min(text.find(' ', at), text.size());
        if (end > at)
            words.push_back(text.substr(at, end - at));
        at = end + 1;
    }
    return words;
}

// What an iptables or nft command that accepts something does to which chain.
std::optional<Accept> accept_of(std::string_view command) {
    const auto words = words_of(command);
    const auto word = [&](std::size_t i) { return i < words.size() ? words[i] : std::string_view{}; };
    Accept accept;
    if (!words.empty() && words.back() == "ACCEPT") {
        for (std::size_t i = 0; i < words.size(); i++) {
            if (words[i] == "-t")
                accept.table = word(i + 1);
            if (words[i] == "-A" || words[i] == "-I") {
                accept.appended = words[i] == "-A";
                accept.chain = word(i + 1);
            }
        }
    } else if (!words.empty() && words.back() == "accept") {
        const auto rule = std::ranges::find(words, "rule");
        const auto at = static_cast<std::size_t>(rule - words.begin());
        if (rule == words.end() || at == 0)
            return std::nullopt;
        accept = {true, words[at - 1] == "add", fmt::format("{} {}", word(at + 1), word(at + 2)),
                  std::string(word(at + 3))};
    }
    return accept.chain.empty() ? std::nullopt : std::optional(accept);
}

} // namespace

std::string_view other_legacy_tool(const Rule& rule) {
    if (rule.backend != Backend::iptables_legacy)
        return {};
    return rule.family == RuleFamily::arp      ? "arptables-legacy"
           : rule.family == RuleFamily::bridge ? "ebtables-legacy"
                                               : "";
}

std::string shadow_warning(std::string_view command, const Drop& drop) {
    const auto accept = accept_of(command);
    if (!accept || !drop.rule)
        return {};
    const Rule& rule = *drop.rule;
    // Names that a shell wants quoted would have to be read as a shell reads them.
    const auto is_plain = [](const std::string& name) { return shell_word(name) == name; };
    if (!is_plain(rule.table) || !is_plain(rule.chain) || !std::ranges::all_of(rule.path, is_plain, &PathStep::chain))
        return {};
    const bool nft = rule.backend == Backend::nftables;
    if (accept->nft != nft ||
        accept->table != (nft ? fmt::format("{} {}", to_string(rule.family), rule.table) : rule.table))
        return fmt::format("it does not help against this drop: an accept ends only its own table, and the rule stands "
                           "in table {}",
                           rule.table);
    const bool on_the_way =
        std::ranges::any_of(rule.path, [&](const PathStep& step) { return step.chain == accept->chain; }) ||
        rule.chain == accept->chain || base_chain(drop) == accept->chain;
    // A policy comes after all rules of its chain.
    const bool policy = drop.site.kind == DropKind::policy;
    if (on_the_way && accept->appended && !policy)
        return fmt::format("it does not help against this drop: at the end of {} it stands below the rule that drops",
                           accept->chain);
    const bool passed = on_the_way || std::ranges::find(rule.jumps, accept->chain) != rule.jumps.end();
    if (!passed)
        return fmt::format("helps only if packets pass {} before they come to {}", accept->chain, rule.chain);
    if (nft || rule.table != "filter")
        return "ends only this chain: one that comes later may still drop it";
    return {};
}

std::vector<std::string_view> placeholder_names() {
    std::vector<std::string_view> names;
    for (const Placeholder& placeholder : placeholders)
        names.push_back(placeholder.name);
    return names;
}

bool is_placeholder(std::string_view name) {
    return std::ranges::find(placeholders, name, &Placeholder::name) != std::end(placeholders);
}

std::optional<std::string> fill(std::string_view text, const Subject& subject, Use use) {
    std::string out;
    for (;;) {
        const std::size_t open = text.find('{');
        out += text.substr(0, open);
        if (open == std::string_view::npos)
            return out;
        const std::size_t close = text.find('}', open);
        const std::string_view name = text.substr(open + 1, close - open - 1);
        const auto* found = std::ranges::find(placeholders, name, &Placeholder::name);
        const std::string value = found == std::end(placeholders) ? std::string{} : found->value(subject);
        if (value.empty())
            return std::nullopt;
        out += use == Use::command && !found->ready ? shell_word(value) : value;
        text.remove_prefix(close + 1);
    }
}

} // namespace tsdroptrace::explain
