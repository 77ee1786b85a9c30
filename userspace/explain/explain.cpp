// SPDX-License-Identifier: GPL-2.0-only
#include "explain/explain.h"

#include <algorithm>
#include <fmt/format.h>
#include <string>

#include "explain/match.h"
#include "explain/tables.h"
#include "util/text.h"

namespace tsdroptrace::explain {

namespace {

// Everything that a placeholder may ask for.
struct Context {
    const Drop& drop;
    std::optional<Owner> owner;
    std::optional<Backend> plain_iptables;
    const Service* service; // that lives at the peer; null when none is known
};

// ---- what the packet tells ----

const Service* service_of(const Address& address) {
    const auto found = std::ranges::find_if(services(), [&](const Service& s) { return contains(s.cidr, address); });
    return found == services().end() ? nullptr : &*found;
}

// What a rule that accepts the peer should name; empty when it should not be accepted.
std::string peer_cidr(const Context& c) {
    const std::string_view accept = c.service != nullptr ? c.service->accept : "";
    if (accept == never_accept && peer_is_source(c.drop))
        return {};
    return accept.empty() || accept == never_accept ? peer(c.drop).text() : std::string(accept);
}

// Only what the event holds: what conntrack says, or else the port, named as what it is.
std::string evidence(const Context& c) {
    const Packet& packet = c.drop.packet;
    const auto ct = packet.ctinfo;
    if (ct == 3 && c.drop.site.hook == Hook::input)
        return "an answer to this machine's own request (conntrack)";
    if (ct == 4 && c.drop.site.hook == Hook::input)
        return "related to this machine's own request, such as an ICMP error about it (conntrack)";
    if ((ct == 3 || ct == 4) && leaves_this_machine(c.drop))
        return "this machine's answer to a request from " + packet.dst.text() + " (conntrack)";
    if (ct == 3 || ct == 4)
        return "an answer in a connection that conntrack knows";
    if (packet.received && packet.sport == 53)
        return "from port 53 (DNS, by its port)";
    return {};
}

std::string with_port(const Address& address, std::optional<std::uint16_t> port) {
    if (!port)
        return address.text();
    const bool ipv6 = address.family == IpFamily::ipv6;
    return fmt::format("{}{}{}:{}", ipv6 ? "[" : "", address.text(), ipv6 ? "]" : "", *port);
}

std::string dns_server(const Context& c) {
    const bool by_port = peer_is_source(c.drop) ? c.drop.packet.sport == 53 : c.drop.packet.dport == 53;
    return by_port || (c.service != nullptr && c.service->dns) ? peer(c.drop).text() : std::string{};
}

// ---- commands that edit or show the rule, with the rule's own tool ----

std::string base_chain(const Rule& rule) {
    return rule.path.empty() ? rule.chain : rule.path.front().chain;
}

// A command for another network namespace must not run in this one by mistake: without a name it has a
// placeholder that makes it fail until it is replaced.
std::string in_netns(const Netns& netns) {
    if (netns.initial)
        return {};
    return netns.name ? fmt::format("ip netns exec {} ", shell_word(*netns.name)) : "nsenter -t PID -n ";
}

std::string iptables_tool(const Context& c) {
    const bool ipv6 = c.drop.packet.family == IpFamily::ipv6;
    const std::string name = ipv6 ? "ip6tables" : "iptables";
    if (!c.drop.rule || c.plain_iptables == c.drop.rule->backend || c.drop.rule->backend == Backend::nftables)
        return name;
    return name + (c.drop.rule->backend == Backend::iptables_legacy ? "-legacy" : "-nft");
}

// Inserts an accept at the top of the base chain, as narrow as the event allows. Only there: an accept in
// an earlier base chain does not stop a later one from dropping.
std::string accept_command(const Context& c) {
    const std::string cidr = peer_cidr(c);
    const Packet& packet = c.drop.packet;
    if (!c.drop.rule || !c.drop.site.hook || cidr.empty())
        return {};
    const Rule& rule = *c.drop.rule;
    const bool source = peer_is_source(c.drop);
    const bool entering = !leaves_this_machine(c.drop);
    const bool leaving = leaves_this_machine(c.drop) || c.drop.site.hook == Hook::forward;
    std::string command = in_netns(c.drop.netns);
    if (rule.backend == Backend::nftables) {
        if (rule.family == RuleFamily::arp || packet.family == IpFamily::other)
            return {};
        const auto device = [](const std::string& name) {
            const bool plain = shell_word(name) == name;
            return plain ? '"' + name + '"' : shell_word('"' + name + '"');
        };
        command += fmt::format("nft insert rule {} {} {}", to_string(rule.family), shell_word(rule.table),
                               shell_word(base_chain(rule)));
        if (entering && packet.in_dev && rule.family != RuleFamily::netdev)
            command += " iifname " + device(*packet.in_dev);
        if (leaving && packet.out_dev && rule.family != RuleFamily::netdev)
            command += " oifname " + device(*packet.out_dev);
        const std::string_view ip = packet.family == IpFamily::ipv6 ? "ip6" : "ip";
        return command + fmt::format(" {} {} {} accept", ip, source ? "saddr" : "daddr", cidr);
    }
    command += iptables_tool(c);
    if (rule.table != "filter")
        command += " -t " + shell_word(rule.table);
    command += fmt::format(" -I {} 1", shell_word(base_chain(rule)));
    if (entering && packet.in_dev)
        command += " -i " + shell_word(*packet.in_dev);
    if (leaving && packet.out_dev)
        command += " -o " + shell_word(*packet.out_dev);
    return command + fmt::format(" {} {} -j ACCEPT", source ? "-s" : "-d", cidr);
}

// What the accept lets pass.
std::string allowed(const Context& c) {
    const std::string cidr = peer_cidr(c);
    if (cidr.empty())
        return {};
    const std::string_view verb = leaves_this_machine(c.drop)         ? "lets out"
                                  : c.drop.site.hook == Hook::forward ? "lets through"
                                                                      : "lets in";
    return fmt::format("{} whatever {} {} this way", verb, peer_is_source(c.drop) ? cidr : "is sent",
                       peer_is_source(c.drop) ? "sends" : "to " + cidr);
}

std::string show_command(const Context& c) {
    if (!c.drop.rule)
        return {};
    const Rule& rule = *c.drop.rule;
    const std::string netns = in_netns(c.drop.netns);
    const std::string table = shell_word(rule.table), chain = shell_word(rule.chain);
    if (rule.backend == Backend::nftables)
        return fmt::format("{}nft -a list chain {} {} {}", netns, to_string(rule.family), table, chain);
    return fmt::format("{}{} -t {} -L {} -n -v --line-numbers", netns, iptables_tool(c), table, chain);
}

// ---- placeholders ----

std::string or_empty(const std::optional<std::string>& text) {
    return text.value_or("");
}

// In the path of a sysctl a dot separates, so the dot of a VLAN device is written as a slash.
std::string sysctl_device(const Context& c) {
    std::string name = or_empty(c.drop.packet.in_dev);
    std::ranges::replace(name, '.', '/');
    return name;
}

struct Placeholder {
    std::string_view name;
    std::string (*value)(const Context&);
    bool ready = false; // a command already: not quoted again within a command
};

const Placeholder placeholders[] = {
    {"src", [](const Context& c) { return c.drop.packet.src.text(); }},
    {"dst", [](const Context& c) { return c.drop.packet.dst.text(); }},
    {"dst_end", [](const Context& c) { return with_port(c.drop.packet.dst, c.drop.packet.dport); }},
    {"peer", [](const Context& c) { return peer(c.drop).text(); }},
    {"peer_cidr", peer_cidr},
    {"service", [](const Context& c) { return c.service ? std::string(c.service->who) : std::string{}; }},
    {"evidence", evidence},
    {"dns", dns_server},
    {"proto", [](const Context& c) { return proto_name(c.drop.packet.proto); }},
    {"ethertype", [](const Context& c) { return fmt::format("0x{:04x}", c.drop.packet.ethertype); }},
    {"length", [](const Context& c) { return std::to_string(c.drop.packet.length); }},
    {"in_dev", [](const Context& c) { return or_empty(c.drop.packet.in_dev); }},
    {"out_dev", [](const Context& c) { return or_empty(c.drop.packet.out_dev); }},
    {"sysctl_dev", sysctl_device},
    {"chain", [](const Context& c) { return c.drop.rule ? c.drop.rule->chain : std::string{}; }},
    {"owner", [](const Context& c) { return c.owner ? c.owner->name : std::string{}; }},
    {"owner_evidence", [](const Context& c) { return c.owner ? c.owner->evidence : std::string{}; }},
    {"configured_by", [](const Context& c) { return c.owner ? c.owner->configured_by : std::string{}; }, true},
    {"accept", accept_command, true},
    {"allowed", allowed},
    {"show", show_command, true},
    {"iptables", iptables_tool},
    {"unknown", [](const Context& c) { return c.drop.site.unknown; }},
    {"hook_function",
     [](const Context& c) { return c.drop.site.hook_function ? c.drop.site.hook_function->text() : std::string{}; }},
    {"program_id",
     [](const Context& c) {
         const auto& function = c.drop.site.hook_function;
         return function && function->program_id ? std::to_string(*function->program_id) : std::string{};
     }},
    {"queue",
     [](const Context& c) {
         const auto& queue = c.drop.site.queue;
         return queue && queue->number ? std::to_string(*queue->number) : std::string{};
     }},
    {"queue_process",
     [](const Context& c) {
         const auto& queue = c.drop.site.queue;
         return queue && queue->process ? fmt::format("{} (pid {})", queue->process->comm, queue->process->pid)
                                        : std::string{};
     }},
    {"symbol", [](const Context& c) { return std::string(symbol_of(c.drop.site.location)); }},
};

// The template with its placeholders replaced; nullopt when one of them has no value. Values are not
// looked at again, so a brace in a chain's name stays what it is.
std::optional<std::string> fill(std::string_view text, const Context& context, bool is_command) {
    std::string out;
    for (;;) {
        const std::size_t open = text.find('{');
        out += text.substr(0, open);
        if (open == std::string_view::npos)
            return out;
        const std::size_t close = text.find('}', open);
        const std::string_view name = text.substr(open + 1, close - open - 1);
        const auto* found = std::ranges::find(placeholders, name, &Placeholder::name);
        const std::string value = found == std::end(placeholders) ? std::string{} : found->value(context);
        if (value.empty())
            return std::nullopt;
        out += is_command && !found->ready ? shell_word(value) : value;
        text.remove_prefix(close + 1);
    }
}

std::shared_ptr<const Explanation> compose(std::string id, const std::vector<std::string_view>& sentences,
                                           const std::vector<FixTemplate>& fixes, const Context& context) {
    auto out = std::make_shared<Explanation>();
    out->id = std::move(id);
    for (const std::string_view sentence : sentences) {
        const auto filled = fill(sentence, context, false);
        if (!filled)
            continue;
        if (!out->summary.empty())
            out->summary += ' ';
        out->summary += *filled;
    }
    for (const FixTemplate& fix : fixes) {
        auto action = fill(fix.action, context, true);
        auto risk = fill(fix.risk, context, false);
        if (!action || !risk)
            continue;
        if (action->starts_with("nsenter -t PID"))
            *risk +=
                fmt::format("; PID is any process in network namespace {} (lsns -t net)", context.drop.netns.inode);
        out->fixes.push_back({std::move(*action), std::move(*risk)});
    }
    return out->summary.empty() ? nullptr : out;
}

// ---- which line of the tables ----

bool fits(const KnownCause& cause, const Context& c) {
    const Drop& drop = c.drop;
    const bool needs_rule = !cause.table.empty() || !cause.chain.empty() || !cause.text.empty();
    if (cause.kind != drop.site.kind || (cause.hook && cause.hook != drop.site.hook) || (needs_rule && !drop.rule))
        return false;
    if (!cause.table.empty() && !matches(cause.table, drop.rule->table))
        return false;
    if (!cause.chain.empty() && !matches(cause.chain, drop.rule->chain))
        return false;
    const auto& function = drop.site.hook_function;
    if (!cause.function.empty() && (!function || !matches(cause.function, function->name)))
        return false;
    if (cause.queue && (!drop.site.queue || drop.site.queue->fate != *cause.queue))
        return false;
    if (!cause.source.empty() && !contains(cause.source, drop.packet.src))
        return false;
    if (cause.owned != Owned::either && c.owner.has_value() != (cause.owned == Owned::yes))
        return false;
    return std::ranges::all_of(cause.text, [&](std::string_view part) {
        return drop.rule->text && drop.rule->text->find(part) != std::string::npos;
    });
}

// Kernels before 5.17 have no reasons at all.
std::string_view reason_of(const DropSite& site) {
    return site.reason.empty() || site.reason == "0" ? "NOT_SPECIFIED" : std::string_view(site.reason);
}

bool symbol_fits(std::string_view pattern, std::string_view symbol) {
    return pattern.empty() || (pattern == "*" ? !symbol.empty() : pattern == symbol);
}

std::string id_of(std::string_view reason) {
    std::string id = "kernel-";
    for (const char c : reason)
        id += c == '_' ? '-' : static_cast<char>(c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c);
    return id;
}

bool is_evidence(const OwnerPattern& pattern, const Rule& rule) {
    switch (pattern.evidence) {
    case Evidence::comment:
        return rule.text && rule.text->find(pattern.pattern) != std::string::npos;
    case Evidence::chain:
        return matches(pattern.pattern, rule.chain);
    case Evidence::table: {
        const std::size_t space = pattern.pattern.find(' ');
        return matches(pattern.pattern.substr(0, space), to_string(rule.family)) &&
               matches(pattern.pattern.substr(space + 1), rule.table);
    }
    }
    return false;
}

} // namespace

std::optional<Owner> Explainer::owner(const Rule& rule) const {
    const auto found = std::ranges::find_if(owners(), [&](const OwnerPattern& p) { return is_evidence(p, rule); });
    if (found == owners().end())
        return std::nullopt;
    Owner owner{std::string(found->name), {}, std::string(found->configured_by)};
    switch (found->evidence) {
    case Evidence::comment:
        owner.evidence = "its comment";
        break;
    case Evidence::chain:
        owner.evidence = "chain " + rule.chain;
        break;
    case Evidence::table:
        owner.evidence = fmt::format("table {} {}", to_string(rule.family), rule.table);
        break;
    }
    return owner;
}

std::shared_ptr<const Explanation> Explainer::explain(const Drop& drop) const {
    const Context context{drop, drop.owner || !drop.rule ? drop.owner : owner(*drop.rule), plain_iptables_,
                          service_of(peer(drop))};
    if (drop.site.kind != DropKind::kernel) {
        const auto cause = std::ranges::find_if(causes(), [&](const KnownCause& k) { return fits(k, context); });
        return cause == causes().end() ? nullptr
                                       : compose(std::string(cause->id), cause->sentences, cause->fixes, context);
    }
    const std::string_view reason = reason_of(drop.site), symbol = symbol_of(drop.site.location);
    for (const KnownReason& known : reasons()) {
        if (known.reason != reason || !symbol_fits(known.symbol, symbol))
            continue;
        // A line may need a value that this packet lacks; then a more general one may still do.
        if (auto explanation = compose(id_of(reason), known.sentences, known.fixes, context))
            return explanation;
    }
    return nullptr;
}

bool Explainer::is_noise(const Drop& drop) const {
    if (drop.site.kind != DropKind::kernel)
        return false;
    const std::string_view reason = reason_of(drop.site), symbol = symbol_of(drop.site.location);
    return std::ranges::any_of(noise(), [&](const Noise& n) {
        return n.reason == reason && symbol_fits(n.symbol, symbol) &&
               (n.icmp_type == Noise::any_icmp_type || drop.packet.icmp_type == n.icmp_type);
    });
}

} // namespace tsdroptrace::explain
