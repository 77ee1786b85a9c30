// SPDX-License-Identifier: GPL-2.0-only
#include "model.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <numeric>

namespace tsdroptrace {

std::string Address::text() const {
    if (family == IpFamily::other)
        return {};
    std::array<char, INET6_ADDRSTRLEN> buffer{};
    const int af = family == IpFamily::ipv4 ? AF_INET : AF_INET6;
    return inet_ntop(af, bytes.data(), buffer.data(), buffer.size());
}

std::string HookFunction::text() const {
    std::string text = name;
    if (program_id)
        text += " (BPF program " + std::to_string(*program_id) + (program.empty() ? "" : ", " + program) + ")";
    return module ? text + " [" + *module + "]" : text;
}

std::string Queue::text() const {
    const std::string which = number ? "queue " + std::to_string(*number) : "a queue for a program";
    switch (fate) {
    case QueueFate::nobody:
        return "it was handed to " + which + ", and no program listens there";
    case QueueFate::full:
        return "it was handed to " + which + ", which is full, or the socket of its program is";
    case QueueFate::refused:
    case QueueFate::unknown:
        return "it was handed to " + which + ", which did not take it";
    case QueueFate::verdict:
        return "the program that listens on " + which + " dropped it" +
               (process ? ": " + process->comm + " (pid " + std::to_string(process->pid) + ")" : "");
    case QueueFate::closed:
        return "it waited in " + which + " when the program, or a device of the packet, went away";
    }
    return "";
}

bool leaves_this_machine(const Drop& drop) {
    return drop.site.hook == Hook::output || drop.site.hook == Hook::postrouting || drop.site.hook == Hook::egress;
}

bool peer_is_source(const Drop& drop) {
    if (leaves_this_machine(drop))
        return false;
    if (drop.site.hook == Hook::forward)
        return drop.packet.direction == Direction::from;
    return drop.packet.received || drop.site.hook.has_value();
}

const Address& peer(const Drop& drop) {
    return peer_is_source(drop) ? drop.packet.src : drop.packet.dst;
}

std::uint64_t Summary::packets() const {
    return std::accumulate(causes.begin(), causes.end(), std::uint64_t{0},
                           [](std::uint64_t sum, const Cause& cause) { return sum + cause.packets; });
}

std::string_view to_string(IpFamily family) {
    switch (family) {
    case IpFamily::ipv4:
        return "ipv4";
    case IpFamily::ipv6:
        return "ipv6";
    case IpFamily::other:
        return "other";
    }
    return "";
}

std::string_view to_string(Direction direction) {
    return direction == Direction::to ? "to" : "from";
}

std::string_view to_string(NoPorts why) {
    switch (why) {
    case NoPorts::none:
        return "";
    case NoPorts::fragment:
        return "fragment";
    case NoPorts::unread:
        return "unread";
    }
    return "";
}

std::string_view to_string(DropKind kind) {
    switch (kind) {
    case DropKind::rule:
        return "rule";
    case DropKind::policy:
        return "policy";
    case DropKind::hook:
        return "hook";
    case DropKind::kernel:
        return "kernel";
    }
    return "";
}

std::string_view to_string(Hook hook) {
    switch (hook) {
    case Hook::prerouting:
        return "prerouting";
    case Hook::input:
        return "input";
    case Hook::forward:
        return "forward";
    case Hook::output:
        return "output";
    case Hook::postrouting:
        return "postrouting";
    case Hook::ingress:
        return "ingress";
    case Hook::egress:
        return "egress";
    }
    return "";
}

std::string_view to_string(QueueFate fate) {
    switch (fate) {
    case QueueFate::nobody:
        return "nobody";
    case QueueFate::full:
        return "full";
    case QueueFate::refused:
        return "refused";
    case QueueFate::unknown:
        return "unknown";
    case QueueFate::verdict:
        return "verdict";
    case QueueFate::closed:
        return "closed";
    }
    return "";
}

std::string_view to_string(Backend backend) {
    switch (backend) {
    case Backend::iptables_legacy:
        return "iptables-legacy";
    case Backend::iptables_nft:
        return "iptables-nft";
    case Backend::nftables:
        return "nftables";
    }
    return "";
}

std::string_view to_string(RuleFamily family) {
    switch (family) {
    case RuleFamily::ip:
        return "ip";
    case RuleFamily::ip6:
        return "ip6";
    case RuleFamily::inet:
        return "inet";
    case RuleFamily::arp:
        return "arp";
    case RuleFamily::bridge:
        return "bridge";
    case RuleFamily::netdev:
        return "netdev";
    }
    return "";
}

std::string_view to_string(Confidence confidence) {
    return confidence == Confidence::exact ? "exact" : "inferred";
}

std::string_view to_string(Exactness exactness) {
    switch (exactness) {
    case Exactness::exact:
        return "exact";
    case Exactness::inferred:
        return "inferred";
    case Exactness::unavailable:
        return "unavailable";
    }
    return "";
}

std::string_view to_string(Reached reached) {
    switch (reached) {
    case Reached::yes:
        return "reachable";
    case Reached::dropped_here:
        return "dropped_here";
    case Reached::lost_elsewhere:
        return "lost_elsewhere";
    }
    return "";
}

std::string proto_name(std::uint8_t proto) {
    switch (proto) {
    case IPPROTO_ICMP:
        return "icmp";
    case IPPROTO_IGMP:
        return "igmp";
    case IPPROTO_IPIP:
        return "ipip";
    case IPPROTO_TCP:
        return "tcp";
    case IPPROTO_UDP:
        return "udp";
    case IPPROTO_DCCP:
        return "dccp";
    case IPPROTO_IPV6:
        return "ipv6";
    case IPPROTO_GRE:
        return "gre";
    case IPPROTO_ESP:
        return "esp";
    case IPPROTO_AH:
        return "ah";
    case IPPROTO_ICMPV6:
        return "icmpv6";
    case IPPROTO_SCTP:
        return "sctp";
    case IPPROTO_UDPLITE:
        return "udplite";
    default:
        return std::to_string(proto);
    }
}

std::string rule_words(const Route& route) {
    constexpr std::uint32_t local = 0, main_table = 32766, default_table = 32767;
    if (!route.rule || *route.rule == local || *route.rule == main_table || *route.rule == default_table)
        return {};
    return "rule " + std::to_string(*route.rule);
}

} // namespace tsdroptrace
