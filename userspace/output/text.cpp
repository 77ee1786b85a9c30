// SPDX-License-Identifier: GPL-2.0-only
#include "output/text.h"

#include <algorithm>
#include <array>
#include <fmt/format.h>
#include <utility>
#include <vector>

#include "explain/tunnel.h"
#include "kprobe_limits.h"
#include "util/text.h"

namespace tsdroptrace::output {

namespace {

constexpr std::int64_t redraw_ns = 200'000'000;
constexpr std::string_view erase_line = "\r\x1b[K";
constexpr std::size_t label_width = 10; // "  where   "

enum class Paint { none, alarm, label, strong };

std::string paint(std::string_view text, Paint color, bool enabled) {
    constexpr std::array<std::string_view, 4> codes{"", "\x1b[1;31m", "\x1b[2m", "\x1b[1m"};
    if (!enabled || color == Paint::none)
        return std::string(text);
    return fmt::format("{}{}\x1b[0m", codes[static_cast<std::size_t>(color)], text);
}

// The words of one packet or cause. All outside text goes through printable() here.

std::string endpoint(const Address& address, std::optional<std::uint16_t> port) {
    if (!port)
        return address.text();
    const bool ipv6 = address.family == IpFamily::ipv6;
    return fmt::format("{}{}{}:{}", ipv6 ? "[" : "", address.text(), ipv6 ? "]" : "", *port);
}

std::string tcp_flags(std::uint8_t flags) {
    constexpr std::array<std::string_view, 8> names{"FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR"};
    std::string out;
    for (std::size_t bit = 0; bit < names.size(); ++bit)
        if ((flags >> bit & 1) != 0)
            out.append(out.empty() ? "" : "+").append(names[bit]);
    return out.empty() ? "no flags" : out;
}

std::string icmp_name(const Packet& packet) {
    struct Name {
        IpFamily family;
        std::uint8_t type;
        std::string_view name;
    };
    constexpr std::array<Name, 12> names{{{IpFamily::ipv4, 0, "echo reply"},
                                          {IpFamily::ipv4, 3, "unreachable"},
                                          {IpFamily::ipv4, 5, "redirect"},
                                          {IpFamily::ipv4, 8, "echo request"},
                                          {IpFamily::ipv4, 11, "time exceeded"},
                                          {IpFamily::ipv6, 1, "unreachable"},
                                          {IpFamily::ipv6, 2, "packet too big"},
                                          {IpFamily::ipv6, 3, "time exceeded"},
                                          {IpFamily::ipv6, 128, "echo request"},
                                          {IpFamily::ipv6, 129, "echo reply"},
                                          {IpFamily::ipv6, 135, "neighbour solicitation"},
                                          {IpFamily::ipv6, 136, "neighbour advertisement"}}};
    const auto found = std::ranges::find_if(
        names, [&](const Name& name) { return name.family == packet.family && name.type == packet.icmp_type; });
    if (found != names.end())
        return std::string(found->name);
    return fmt::format("type {} code {}", *packet.icmp_type, packet.icmp_code.value_or(0));
}

// "udp 100.100.2.136:53 > 10.0.0.2:41873, an answer, in by eth0"
std::string describe(const Packet& packet) {
    std::string out;
    constexpr std::uint16_t arp = 0x0806;
    if (packet.ethertype == arp && packet.src.family == IpFamily::ipv4) {
        out = fmt::format("arp {} > {}", packet.src.text(), packet.dst.text());
    } else if (packet.family == IpFamily::other) {
        out = fmt::format("ethertype 0x{:04x}, {} bytes", packet.ethertype, packet.length);
    } else {
        out = fmt::format("{} {} > {}", proto_name(packet.proto), endpoint(packet.src, packet.sport),
                          endpoint(packet.dst, packet.dport));
        if (packet.tcp_flags)
            out += ", " + tcp_flags(*packet.tcp_flags);
        if (packet.icmp_type)
            out += ", " + icmp_name(packet);
        if (packet.quoted)
            out += fmt::format(" about {} {} > {}", proto_name(packet.quoted->proto),
                               endpoint(packet.quoted->src, packet.quoted->sport),
                               endpoint(packet.quoted->dst, packet.quoted->dport));
        if (packet.no_ports == NoPorts::fragment)
            out += ", a later fragment (the ports are in the first one)";
        if (packet.no_ports == NoPorts::unread)
            out += ", ports not readable";
    }
    if (packet.ctinfo == 3)
        out += ", an answer";
    if (packet.ctinfo == 4)
        out += ", about an answer";
    if (packet.in_dev)
        out += ", in by " + printable(*packet.in_dev);
    if (packet.out_dev)
        out += ", out by " + printable(*packet.out_dev);
    return out;
}

// "ts-input rule 3, handle 10"; handles only where they are the user's way to edit a rule.
std::string describe(const PathStep& step, Backend backend) {
    std::string out = printable(step.chain);
    if (step.number)
        out += fmt::format(" rule {}", *step.number);
    if (step.handle && backend == Backend::nftables)
        out += fmt::format("{} handle {}", step.number ? "," : "", *step.handle);
    return out;
}

std::string reason_name(const DropSite& site) {
    return site.reason.empty() ? "no reason given" : printable(site.reason);
}

bool is_inferred(const Drop& drop) {
    return drop.rule && drop.rule->confidence == Confidence::inferred;
}

// "ts-input rule 3", "the policy of INPUT"; for a drop that has a rule.
std::string rule_name(const Drop& drop) {
    const Rule& rule = *drop.rule;
    return (drop.site.kind == DropKind::policy ? "the policy of " + printable(rule.chain)
                                               : describe({rule.chain, rule.number, rule.handle}, rule.backend)) +
           (is_inferred(drop) ? " (inferred)" : "");
}

// One cause in a few words, for a line of counts: "by ts-input rule 3".
std::string cause_name(const Drop& drop) {
    const Rule* rule = drop.rule.get();
    if ((drop.site.kind == DropKind::rule || drop.site.kind == DropKind::policy) && rule != nullptr)
        return "by " + rule_name(drop);
    if (drop.site.hook_function)
        return "by " + printable(drop.site.hook_function->text());
    if (drop.site.queue && drop.site.queue->number)
        return fmt::format("in queue {}", *drop.site.queue->number);
    if (drop.site.kind != DropKind::kernel)
        return drop.site.hook ? fmt::format("by netfilter at {}, rule not known", to_string(*drop.site.hook))
                              : "by netfilter, rule not known";
    return drop.site.reason.empty() && drop.site.location.empty() ? "details lost" : reason_name(drop.site);
}

std::string_view verb(const Drop& drop) {
    return drop.rule && drop.rule->verdict == "reject" && !is_inferred(drop) ? "REJECTED" : "DROPPED";
}

std::string netns_name(const Netns& netns) {
    return netns.name ? fmt::format("{} ({})", printable(*netns.name), netns.inode) : std::to_string(netns.inode);
}

// As the tool that edits it calls it: iptables knows "filter", nft "ip filter".
std::string table_name(const Rule& rule) {
    if (rule.backend == Backend::nftables)
        return fmt::format("table {} {}", to_string(rule.family), printable(rule.table));
    return "table " + printable(rule.table);
}

std::string tool_name(const Rule& rule) {
    const std::string name(to_string(rule.backend));
    if (rule.backend == Backend::nftables)
        return name;
    switch (rule.family) {
    case RuleFamily::ip6:
        return "ip6" + name.substr(2);
    case RuleFamily::arp:
        return "arp" + name.substr(2);
    case RuleFamily::bridge:
        return "eb" + name.substr(2);
    default:
        return name;
    }
}

std::string where(const Drop& drop) {
    std::string out;
    const DropSite& site = drop.site;
    if (const Rule* rule = drop.rule.get()) {
        if (site.hook)
            out = fmt::format("{} hook, ", to_string(*site.hook));
        out += table_name(*rule) + ": ";
        for (const PathStep& step : rule->path)
            out += (&step == rule->path.data() ? "" : " > ") + describe(step, rule->backend);
        if (rule->path.empty())
            out += describe({rule->chain, rule->number, rule->handle}, rule->backend);
        if (site.kind == DropKind::policy)
            out += " policy";
        out += fmt::format(" ({}{})", tool_name(*rule), rule->confidence == Confidence::inferred ? ", inferred" : "");
        return out;
    }
    out = site.hook ? fmt::format("{} hook, ", to_string(*site.hook)) : std::string{};
    out += reason_name(site);
    out += site.location.empty() ? ", function not known" : " at " + printable(site.location);
    return out;
}

// What is known of the rule itself; empty when there is none to speak of.
std::string rule_line(const Drop& drop) {
    if (drop.site.hook_function)
        return fmt::format("none: the hook function {} dropped it", printable(drop.site.hook_function->text()));
    if (drop.site.kind == DropKind::hook)
        return "not known: " + (drop.site.unknown.empty() ? "nothing says which" : printable(drop.site.unknown));
    if (!drop.rule)
        return drop.site.kind == DropKind::kernel ? "" : "not known: its ruleset could not be read";
    const std::string& evidence = drop.rule->evidence;
    const std::string inferred = is_inferred(drop) ? fmt::format(" (inferred from its counter, not seen{}{})",
                                                                 evidence.empty() ? "" : ": ", printable(evidence))
                                                   : std::string{};
    if (drop.site.kind == DropKind::policy)
        return fmt::format("none took the packet; the policy of {} is {}{}", printable(drop.rule->chain),
                           printable(drop.rule->verdict), inferred);
    if (drop.rule->text && drop.rule->stale)
        return printable(*drop.rule->text) + " (as the packet met it; the ruleset has changed since)" + inferred;
    if (drop.rule->text)
        return printable(*drop.rule->text) + inferred;
    if (!inferred.empty())
        return "its text could not be read" + inferred;
    return drop.rule->stale ? "not known: the ruleset changed before its text could be read"
                            : "not known: its text could not be read";
}

// "198.51.100.0/24 of @blocked"; empty when none is known.
std::string element_line(const Drop& drop) {
    std::string out;
    for (const SetElement& element : drop.elements) {
        out.append(out.empty() ? "" : "; ").append(printable(element.text));
        if (element.set)
            out += " of @" + printable(*element.set);
    }
    return out.empty() ? out : out + " (deduced from the ruleset and the packet)";
}

std::string routing_table(std::uint32_t number) {
    constexpr std::array<std::pair<std::uint32_t, std::string_view>, 3> names{
        {{253, "default"}, {254, "main"}, {255, "local"}}};
    const auto named = std::ranges::find(names, number, &std::pair<std::uint32_t, std::string_view>::first);
    return named != names.end() ? std::string(named->second) : std::to_string(number);
}

// " via 10.0.0.1 (table main)"
std::string way_of(const Route& route) {
    std::string out;
    if (route.gateway)
        out += " via " + route.gateway->text();
    if (route.table != 0)
        out += fmt::format(" (table {}{}{})", routing_table(route.table), rule_words(route).empty() ? "" : ", ",
                           rule_words(route));
    return out;
}

// "to 100.100.2.136: by eth0 via 10.0.0.1 (table main)"; empty where nothing is known, or the explanation tells it.
std::string route_line(const Drop& drop) {
    if (!drop.evidence || !drop.evidence->route)
        return {};
    const std::string far = peer(drop).text();
    if (drop.explanation && drop.explanation->summary.find("The route to " + far) != std::string::npos)
        return {};
    const Route& route = *drop.evidence->route;
    const std::string to = fmt::format("to {}: ", far);
    if (route.type == "none")
        return to + "none, or an ip rule that says unreachable";
    const bool leads = route.type == "unicast" && route.dev;
    return to + (leads ? "by " + printable(*route.dev) : printable(route.type)) + way_of(route);
}

std::string process_name(const Process& process) {
    return fmt::format("{}[{}]", printable(process.comm), process.pid);
}

// "tailscaled[812]", "iptables[900] of tailscaled[812]", "nft[900], nft[901], nft[902] and others"
std::string changers_text(const RulesetChange& change) {
    constexpr std::size_t shown = 3;
    std::string out;
    for (std::size_t i = 0; i < std::min(change.changers.size(), shown); ++i)
        out += (i == 0 ? "" : ", ") + process_name(change.changers[i].process);
    if (out.empty())
        return change.other_changes != 0
                   ? fmt::format("too many to tell apart ({})", counted(change.other_changes, "change"))
                   : "a process not known";
    if (change.other_changes != 0)
        out += fmt::format(" (and {}, not told by whom)", counted(change.other_changes, "more change"));
    else if (change.changers.size() > shown)
        out += " and others";
    const auto& parent = change.changers[0].parent;
    constexpr std::uint32_t init = 1;
    const bool of_one = parent && parent->pid != init && std::ranges::all_of(change.changers, [&](const Changer& c) {
                            return c.parent && c.parent->pid == parent->pid;
                        });
    return of_one && change.other_changes == 0 ? out + " of " + process_name(*parent) : out;
}

// Whose the rule is by its name, and who was seen writing it; empty where neither is known.
std::string owner_line(const Drop& drop) {
    std::string out;
    if (const Owner* owner = drop.owner ? &*drop.owner : nullptr)
        out = fmt::format("{}, going by {}{}", printable(owner->name), printable(owner->evidence),
                          is_inferred(drop) ? " (of the inferred rule)" : "");
    if (const RulesetChange* written = drop.written.get())
        out += fmt::format("{}written at {} by {}{}", out.empty() ? "not known by a name; " : "; ",
                           clock_local(written->time_ns), written->changers.size() > 1 ? "one of " : "",
                           changers_text(*written));
    if (drop.owner && !drop.owner->configured_by.empty())
        out += "; configured by: " + printable(drop.owner->configured_by);
    return out;
}

struct ChangeLine {
    char sign;
    std::string text;
};

// "ts-input rule 3: -A ts-input ... -j DROP"
ChangeLine change_line(char sign, const ChangedRule& changed) {
    const Rule& rule = changed.rule;
    // Only what the rule itself does not say: an iptables rule names its chain, and nft's tables have two names.
    std::string out = rule.backend == Backend::nftables
                          ? fmt::format("{} {} ", to_string(rule.family), printable(rule.table))
                          : fmt::format("{}{}", rule.table == "filter" ? "" : printable(rule.table) + " ",
                                        rule.family == RuleFamily::ip6      ? "IPv6 "
                                        : rule.family == RuleFamily::arp    ? "ARP "
                                        : rule.family == RuleFamily::bridge ? "bridge "
                                                                            : "");
    if (!rule.number)
        return {sign, fmt::format("{}{} policy {}", out, printable(rule.chain), printable(rule.verdict))};
    out += fmt::format("{} rule {}", printable(rule.chain), *rule.number);
    if (changed.was)
        out += fmt::format(" (was {})", *changed.was);
    return {sign, fmt::format("{}: {}", out, rule.text ? printable(*rule.text) : "its text could not be read")};
}

// Narrower than this nothing can be read, so there a line breaks where the terminal breaks it.
std::size_t width_of(const TextOptions& options) {
    return std::max(options.width, 40U);
}

// Collects lines of at most `width` columns.
class Page {
public:
    explicit Page(const TextOptions& options) : width_(width_of(options)), color_(options.color) {}

    // A paragraph behind a head of the same line; following lines are indented to where the text began.
    void paragraph(std::string_view head, std::string_view text, std::size_t indent, Paint head_paint = Paint::none) {
        bool first = true;
        for (const std::string& line : wrap(text, width_ - indent)) {
            const std::size_t pad = first ? indent - std::min(indent, columns(head)) : indent;
            text_ +=
                (first ? paint(head, head_paint, color_) : "") + std::string(line.empty() ? 0 : pad, ' ') + line + '\n';
            first = false;
        }
    }
    void field(std::string_view label, std::string_view text) {
        if (!text.empty())
            paragraph("  " + std::string(label), text, label_width, Paint::label);
    }
    // As it is, however wide: a command that is broken in two cannot be pasted.
    void whole(std::string_view head, std::string_view text) { text_ += std::string(head) + std::string(text) + '\n'; }
    void blank() { text_ += '\n'; }
    void cut_line(std::string_view text) { text_ += cut(text, width_) + '\n'; }

    std::string take() { return std::move(text_); }
    bool color() const { return color_; }

private:
    std::size_t width_;
    bool color_;
    std::string text_;
};

void entry(Page& page, const Drop& drop) {
    const std::string head = fmt::format("{} {}  ", clock_local(drop.time_ns), verb(drop));
    page.paragraph(head, describe(drop.packet), head.size(), drop.noise ? Paint::strong : Paint::alarm);
    page.field("where", where(drop));
    page.field("rule", rule_line(drop));
    page.field("element", element_line(drop));
    if (drop.site.queue && drop.rule)
        page.field("queue", printable(drop.site.queue->text()));
    page.field("owner", owner_line(drop));
    page.field("route", route_line(drop));
    if (!drop.netns.initial)
        page.field("netns", netns_name(drop.netns));
    if (drop.process)
        page.field("sender", fmt::format("{} (pid {})", printable(drop.process->comm), drop.process->pid));
    if (drop.noise)
        page.field("noise", "a healthy machine drops these all day");
    if (drop.explanation) {
        page.field("why", printable(drop.explanation->summary));
        std::size_t n = 0;
        for (const Fix& fix : drop.explanation->fixes) {
            const std::string label = paint(n == 0 ? "  fix     " : "          ", Paint::label, page.color());
            page.whole(label + fmt::format("{:<3}", ++n), paint(printable(fix.action), Paint::strong, page.color()));
            page.paragraph("", "risk: " + printable(fix.risk), label_width + 3);
        }
        if (!drop.explanation->reference.empty())
            page.whole(paint("  see     ", Paint::label, page.color()), printable(drop.explanation->reference));
    }
    page.blank();
}

// "12 dropped: 10 by ts-input rule 3, 2 NO_SOCKET"
std::string counts_line(const Summary& summary) {
    std::string out = fmt::format("{} dropped", summary.packets());
    for (const Cause& cause : summary.causes)
        out += fmt::format("{} {} {}", &cause == summary.causes.data() ? ":" : ",", cause.packets,
                           cause_name(cause.example));
    return out;
}

// What is lost, by where.
struct LostWords {
    std::string_view where, text; // "37 " + text
};

constexpr std::array<LostWords, 9> lost_words{{
    {"ring", "drops were counted but not shown: the ring buffer was full"},
    {"unread", "drops were counted but not shown: tracing ended before they were read"},
    {"recursion", "times a packet was freed while this program was at work on the same CPU: not counted"},
    {"sampled", "drops were counted but not shown: they came too fast"},
    {"resolver", "drops were shown without their rule: the look-up was too slow"},
    {"file", "JSON lines could not be written"},
    {"causes", "drops are in no count: the kernel's table of causes was full"},
    {"seen", "packets that passed are in no count: they passed too many devices"},
    {"flows", "drops were counted without their flow: the kernel's table of flows was full"},
}};

std::string describe_lost(const std::string& where, std::uint64_t count) {
    const auto found = std::ranges::find(lost_words, std::string_view(where), &LostWords::where);
    if (found != lost_words.end())
        return fmt::format("{} {}", count, found->text);
    return fmt::format("{} events were lost at: {}", count, printable(where));
}

// Flows by their far end, which is what a person asks for: an answer's local port is a different one each time.
struct FarEnd {
    std::string text;
    std::uint64_t packets = 0;
};

std::vector<FarEnd> far_ends(const Cause& cause) {
    const bool from = cause.example.packet.direction == Direction::from;
    std::vector<FarEnd> ends;
    for (const Flow& flow : cause.flows) {
        const std::uint16_t port = from ? flow.sport : flow.dport;
        const std::string text =
            fmt::format("{} {} {}", proto_name(flow.proto), from ? "from" : "to",
                        endpoint(from ? flow.src : flow.dst, port != 0 ? std::optional(port) : std::nullopt));
        const auto found = std::ranges::find(ends, text, &FarEnd::text);
        if (found == ends.end())
            ends.push_back({text, flow.packets});
        else
            found->packets += flow.packets;
    }
    std::ranges::stable_sort(ends, std::ranges::greater{}, &FarEnd::packets);
    return ends;
}

void cause_lines(Page& page, const Cause& cause) {
    const Drop& drop = cause.example;
    std::string text = cause_name(drop);
    if (drop.rule)
        text += fmt::format(", {} ({})", table_name(*drop.rule), tool_name(*drop.rule));
    else if (!drop.site.location.empty())
        text += " at " + printable(drop.site.location);
    if (drop.owner)
        text += fmt::format(", {}{}", is_inferred(drop) ? "if so " : "", printable(drop.owner->name));
    if (!drop.netns.initial && cause.id != 0)
        text += ", netns " + netns_name(drop.netns);
    const std::string head = fmt::format("{:>6}  ", cause.packets);
    page.paragraph(head, text, head.size(), Paint::strong);
    page.paragraph("",
                   fmt::format("first {}, last {}, {}", clock_local(cause.first_ns), clock_local(cause.last_ns),
                               counted(cause.bytes, "byte")),
                   head.size());
    constexpr std::size_t shown = 3;
    const std::vector<FarEnd> ends = far_ends(cause);
    std::uint64_t rest = cause.other_packets;
    for (std::size_t i = 0; i < ends.size(); ++i) {
        if (i < shown)
            page.paragraph("", fmt::format("{} {}", ends[i].packets, ends[i].text), head.size());
        else
            rest += ends[i].packets;
    }
    if (rest > 0)
        page.paragraph("", fmt::format("{} in other flows", rest), head.size());
}

// "eth0", or "eth0 (10) and wlan0 (2)"
std::string devices(const SeenWay& way) {
    std::vector<std::pair<std::string, std::uint64_t>> all(way.by_dev.begin(), way.by_dev.end());
    std::ranges::stable_sort(all, std::ranges::greater{}, [](const auto& one) { return one.second; });
    constexpr std::size_t shown = 3;
    std::string out;
    for (std::size_t i = 0; i < std::min(all.size(), shown); ++i) {
        out += i == 0 ? "" : i + 1 == all.size() ? " and " : ", ";
        out += printable(all[i].first);
        if (all.size() > 1)
            out += fmt::format(" ({})", all[i].second);
    }
    return all.size() > shown ? out + fmt::format(" and {} more devices", all.size() - shown) : out;
}

// How many of the packets that came from the range were dropped on their way in; nothing where causes hold packets both
// ways, or such as were dropped on their way out.
std::optional<std::uint64_t> dropped_on_the_way_in(const Summary& summary) {
    std::uint64_t packets = 0;
    for (const Cause& cause : summary.causes) {
        const auto& hook = cause.example.site.hook;
        const bool in = cause.example.packet.received &&
                        (!hook || *hook == Hook::ingress || *hook == Hook::prerouting || *hook == Hook::input);
        if (!in || cause.example.packet.direction != Direction::from || !cause.example.netns.initial)
            return std::nullopt;
        packets += cause.packets;
    }
    return packets;
}

// What left by a tunnel of a program has not left the machine yet: that program may drop it, which the kernel does not
// see. Tailscale takes there whatever its routes cover, also what was meant for somebody else.
std::string tunnel_words(const Summary& summary) {
    std::string out;
    for (const auto& device : summary.seen->sent.by_dev) {
        if (!device.second || !explain::is_tunnel(device.first))
            continue;
        const std::string name = printable(device.first);
        if (!explain::is_of_tailscale(device.first)) {
            out += fmt::format(". What left by {} went to the program behind it, on this machine, which may have "
                               "dropped it",
                               name);
            continue;
        }
        out += fmt::format(". What left by {} went to tailscaled, on this machine, which may have dropped it, or its "
                           "answers: tailscale metrics print (tailscaled_inbound_dropped_packets_total)",
                           name);
        for (const Way& way : summary.ways)
            if (way.route.dev == device.first)
                out += explain::accepted_route_words(way);
    }
    return out;
}

// The routes to ranges for which nothing left.
std::string ways_words(const Summary& summary) {
    std::string out;
    for (const Way& way : summary.ways) {
        const bool leads = way.route.type == "unicast" && way.route.dev;
        out += fmt::format("; the route to {} {}", way.to.text(),
                           leads                      ? "goes through " + printable(*way.route.dev) + way_of(way.route)
                           : way.route.type == "none" ? "is none, or an ip rule says unreachable"
                                                      : "is of type " + printable(way.route.type));
    }
    return out;
}

// Where the packets got to: what left, what came in, and what became of that.
std::string seen_sentence(const Summary& summary) {
    const SeenWay &sent = summary.seen->sent, &received = summary.seen->received;
    std::string out = sent.packets
                          ? fmt::format("{} to there left by {}", counted(sent.packets, "packet"), devices(sent))
                          : "no packet to there left this machine";
    if (received.packets) {
        out += fmt::format("; {} from there arrived on {}", counted(received.packets, "packet"), devices(received));
        const auto dropped = dropped_on_the_way_in(summary);
        if (summary.causes.empty())
            out += ", and none was dropped here";
        else if (dropped && *dropped >= received.packets)
            out += received.packets == 1 ? ", and it was dropped here" : ", and all of them were dropped here";
        else if (dropped)
            out += fmt::format(", and {} of them {} dropped here", *dropped, *dropped == 1 ? "was" : "were");
    } else if (sent.packets) {
        out += "; none from there ever reached this machine";
        if (summary.causes.empty() && !explain::left_by_tunnel(sent))
            out += ": the loss is not here";
    } else {
        out += ", and none from there arrived";
    }
    return out + tunnel_words(summary) + (sent.packets ? "" : ways_words(summary));
}

// What changed on the packets' way, and what makes it the one that stopped the drops.
std::string change_line(const Stopped& stopped) {
    std::string out = fmt::format("{} by {}, ", clock_local(stopped.change.time_ns), changers_text(stopped.change));
    if (stopped.chain) {
        Rule of_chain;
        of_chain.backend = stopped.change.backend;
        of_chain.family = stopped.chain->family;
        of_chain.table = stopped.chain->table;
        out += fmt::format("on the way by {} in {} ({})", printable(stopped.chain->name), table_name(of_chain),
                           tool_name(of_chain));
    } else {
        out += fmt::format("of {}; what it did is not known", to_string(stopped.change.backend));
    }
    const std::string which =
        stopped.changes == 1 ? "the only change" : fmt::format("the first of {} changes", stopped.changes);
    return fmt::format("{}. It is {} of rules there since the last drop: that it stopped them is inferred from this, "
                       "not seen",
                       out, which);
}

std::string since_line(const Stopped& stopped) {
    const SeenWay &sent = stopped.seen.sent, &received = stopped.seen.received;
    std::string out = clock_local(stopped.seen_since_ns) + ": ";
    if (sent.packets)
        out += fmt::format("{} to there left by {}", counted(sent.packets, "packet"), devices(sent));
    if (received.packets)
        out += fmt::format("{}{} from there arrived on {}", sent.packets ? "; " : "",
                           counted(received.packets, "packet"), devices(received));
    return out;
}

void total_lines(Page& page, const Summary& summary, const std::string& filter) {
    const std::string span = duration_text(summary.until_ns - summary.since_ns);
    const std::string clock =
        fmt::format("from {} to {}", clock_local(summary.since_ns), clock_local(summary.until_ns));
    if (summary.causes.empty()) {
        page.paragraph("",
                       fmt::format("nothing{} was dropped here in {}, {} (filter: {})",
                                   summary.hidden.empty() ? "" : " but noise", span, clock, printable(filter)),
                       0);
        if (summary.seen)
            page.paragraph("", seen_sentence(summary), 2);
        else
            page.paragraph("",
                           "If packets are still missing: they may never have come, may have left by another device "
                           "(ip route get ADDRESS shows which), or may have gone into a tunnel, where its program can "
                           "drop them unseen (for Tailscale: tailscale metrics print).",
                           2);
    } else {
        page.paragraph("", fmt::format("{} dropped in {}, {}", summary.packets(), span, clock), 0);
        if (summary.seen)
            page.paragraph("", seen_sentence(summary), 2);
    }
}

} // namespace

Status TextOutput::start(const Start& start) {
    filter_ = start.filter;
    if (options_.quiet)
        return Ok{};
    const Capabilities& c = start.capabilities;
    const std::array<std::pair<Backend, const Capability*>, 3> backends{{{Backend::iptables_legacy, &c.iptables_legacy},
                                                                         {Backend::iptables_nft, &c.iptables_nft},
                                                                         {Backend::nftables, &c.nftables}}};
    std::string exact;
    for (const auto& [backend, capability] : backends)
        if (capability->exactness == Exactness::exact)
            exact.append(exact.empty() ? "" : ", ").append(to_string(backend));
    Page page(options_);
    page.paragraph("",
                   fmt::format("tracing {}, on {}; exact: {}", printable(start.filter), printable(start.kernel),
                               exact.empty() ? "none" : exact),
                   0);
    for (const auto& [backend, capability] : backends)
        if (capability->exactness != Exactness::exact)
            page.paragraph("",
                           fmt::format("{}: {}: {}", to_string(backend), to_string(capability->exactness),
                                       printable(capability->reason)),
                           2);
    for (const std::string_view limits : {limits_on_5_10, limits_of_kprobes})
        if (std::ranges::any_of(backends, [&](const auto& backend) { return backend.second->reason == limits; }))
            page.paragraph("", std::string(limits), 2);
    page.blank();
    return print(page.take());
}

Status TextOutput::drop(const Drop& drop, bool new_cause) {
    if (!new_cause || options_.quiet || (drop.noise && !options_.verbose))
        return Ok{};
    Page page(options_);
    entry(page, drop);
    return print(page.take());
}

Status TextOutput::lost(const Lost& lost) {
    if (options_.quiet)
        return Ok{};
    Page page(options_);
    page.paragraph("", describe_lost(lost.where, lost.count), 0);
    return print(page.take());
}

Status TextOutput::ruleset(const RulesetChange& change) {
    constexpr std::size_t shown = 10;
    if (options_.quiet || (!options_.verbose && !change.drops_differ() && change.unknown.empty()))
        return Ok{};
    std::vector<ChangeLine> lines;
    std::uint64_t more = change.more_added + change.more_removed + change.more_moved;
    for (const auto& [sign, rules] : {std::pair('-', &change.removed), {'+', &change.added}, {'~', &change.moved}}) {
        for (const ChangedRule& changed : *rules) {
            if (lines.size() < shown)
                lines.push_back(change_line(sign, changed));
            else
                ++more;
        }
    }
    std::string head = fmt::format("{} ruleset changed by {}", clock_local(change.time_ns), changers_text(change));
    if (!change.netns.initial)
        head += ", netns " + netns_name(change.netns);
    if (!change.unknown.empty())
        head += ": " + change.unknown;
    else if (lines.empty())
        head += ": no rule that drops differs";
    Page page(options_);
    if (lines.size() == 1 && more == 0) {
        std::string whole = fmt::format("{}: {} {}", head, lines[0].sign, lines[0].text);
        if (columns(whole) <= width_of(options_)) {
            page.paragraph("", whole, 0);
            return print(page.take());
        }
    }
    page.paragraph("", lines.empty() ? head : head + ":", 0);
    for (const ChangeLine& line : lines)
        page.paragraph(fmt::format("  {} ", line.sign), line.text, 4, Paint::strong);
    if (more != 0)
        page.paragraph("  ", fmt::format("and {} more", more), 4);
    return print(page.take());
}

Status TextOutput::stopped(const Stopped& stopped) {
    if (options_.quiet)
        return Ok{};
    const Drop& drop = stopped.cause.example;
    Page page(options_);
    const std::string head = clock_local(stopped.time_ns) + " STOPPED  ";
    page.paragraph(head,
                   fmt::format("{} has dropped nothing since {} ({} before)", rule_name(drop),
                               clock_local(stopped.cause.last_ns), counted(stopped.cause.packets, "packet")),
                   head.size(), Paint::strong);
    page.field("rule", rule_line(drop));
    page.field("change", change_line(stopped));
    page.field("since", since_line(stopped));
    if (!drop.netns.initial)
        page.field("netns", netns_name(drop.netns));
    page.blank();
    return print(page.take());
}

Status TextOutput::check(const CheckVerdict& verdict, std::int64_t) {
    Page page(options_);
    page.paragraph("", printable(verdict.text), 0, verdict.reached == Reached::yes ? Paint::strong : Paint::alarm);
    page.blank();
    return print(page.take());
}

Status TextOutput::summary(const Summary& summary) {
    Page page(options_);
    if (!summary.final) {
        if (options_.quiet)
            return Ok{};
        page.cut_line(clock_local(summary.until_ns) + "  " + counts_line(summary));
        return print(page.take());
    }
    live_line_ |= options_.tty; // the ^C that the terminal has echoed goes as well
    total_lines(page, summary, filter_);
    for (const Cause& cause : summary.causes)
        cause_lines(page, cause);
    std::string hidden;
    for (const auto& [reason, packets] : summary.hidden)
        hidden += fmt::format("{}{} {}", hidden.empty() ? "" : ", ", packets, printable(reason));
    if (!hidden.empty())
        page.paragraph("", options_.verbose ? "noise: " + hidden : "hidden: " + hidden + " (noise; --verbose shows it)",
                       0);
    std::string lost;
    for (const auto& [where, count] : summary.lost)
        if (count > 0)
            lost += (lost.empty() ? "" : "; ") + describe_lost(where, count);
    if (!lost.empty())
        page.paragraph("", "lost: " + lost, 0);
    return print(page.take());
}

Status TextOutput::progress(const Summary& summary) {
    if (!options_.tty || options_.quiet || summary.causes.empty())
        return Ok{};
    if (summary.until_ns - drawn_ns_ < redraw_ns)
        return Ok{};
    // One column stays free: a cursor past the last one would be on the next line on some terminals.
    Status status = sink_.write(std::string(erase_line) + cut(counts_line(summary), width_of(options_) - 1));
    live_line_ = true;
    drawn_ns_ = summary.until_ns;
    return status;
}

Status TextOutput::print(std::string text) {
    if (std::exchange(live_line_, false))
        text.insert(0, erase_line);
    return sink_.write(text);
}

} // namespace tsdroptrace::output
