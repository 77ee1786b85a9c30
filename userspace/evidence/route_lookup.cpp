// SPDX-License-Identifier: GPL-2.0-only
#include "evidence/route_lookup.h"

#include <array>
#include <cerrno>
#include <cstring>

#include <net/if.h>
#include <sys/socket.h>

#include <linux/fib_rules.h>
#include <linux/if_link.h>
#include <linux/rtnetlink.h>
#include <spdlog/spdlog.h>

namespace tsdroptrace::evidence {
namespace {

using Bytes = std::span<const std::byte>;

std::uint8_t af_of(const Address& address) {
    return address.family == IpFamily::ipv6 ? AF_INET6 : AF_INET;
}

std::size_t size_of(IpFamily family) {
    return family == IpFamily::ipv6 ? 16 : 4;
}

Bytes bytes_of(const Address& address) {
    return std::as_bytes(std::span(address.bytes)).first(size_of(address.family));
}

std::optional<Address> address_of(Bytes bytes) {
    Address address;
    address.family = bytes.size() == 4 ? IpFamily::ipv4 : IpFamily::ipv6;
    if (bytes.size() != size_of(address.family))
        return std::nullopt;
    std::memcpy(address.bytes.data(), bytes.data(), bytes.size());
    return address;
}

// A gateway of the other family (struct rtvia): two bytes of family before it.
std::optional<Address> via_of(Bytes bytes) {
    return bytes.size() > 2 ? address_of(bytes.subspan(2)) : std::nullopt;
}

// Means something only on one link, so that the device has to be named.
bool of_one_link(const Address& address) {
    const auto& b = address.bytes;
    if (address.family == IpFamily::ipv6)
        return b[0] == 0xff || (b[0] == 0xfe && (b[1] & 0xc0) == 0x80);
    return b[0] >= 224 && b[0] < 240;
}

constexpr std::string_view types[] = {"",          "unicast",     "local",    "broadcast", "anycast", "multicast",
                                      "blackhole", "unreachable", "prohibit", "throw",     "nat",     "xresolve"};

} // namespace

std::optional<RouteAnswer> read_route(const nlmsghdr& message) {
    RouteAnswer answer;
    answer.error = error_of(message);
    if (answer.error != 0)
        return answer;
    if (message.nlmsg_type != RTM_NEWROUTE)
        return std::nullopt;
    const auto route = read_message<rtmsg>(message);
    if (!route)
        return std::nullopt;
    for_each_attribute(route->second, [&](std::uint16_t type, Bytes value) {
        switch (type) {
        case RTA_TABLE:
            answer.table = read_u32(value).value_or(0);
            break;
        case RTA_OIF:
            answer.out_dev = read_u32(value).value_or(0);
            break;
        case RTA_DST:
            answer.to = address_of(value);
            break;
        case RTA_GATEWAY:
            answer.gateway = address_of(value);
            break;
        case RTA_VIA:
            answer.gateway = via_of(value);
            break;
        default:
            break;
        }
    });
    answer.type = route->first.rtm_type;
    answer.prefix = route->first.rtm_dst_len;
    if (answer.table == 0)
        answer.table = route->first.rtm_table;
    return answer;
}

std::string route_type(const RouteAnswer& answer) {
    switch (answer.error) {
    case 0:
        return std::string(answer.type < std::size(types) ? types[answer.type] : "");
    case ENETUNREACH:
        return "none";
    case EHOSTUNREACH:
        return "unreachable";
    case EACCES:
        return "prohibit";
    case EINVAL:
        return "blackhole";
    default:
        return {};
    }
}

std::string matched_text(const RouteAnswer& answer, IpFamily family) {
    if (answer.prefix == 0)
        return "default";
    if (!answer.to || answer.to->family != family || answer.prefix > 8 * size_of(family))
        return {};
    return answer.to->text() + '/' + std::to_string(answer.prefix);
}

std::optional<PolicyRule> read_rule(const nlmsghdr& message) {
    if (message.nlmsg_type != RTM_NEWRULE)
        return std::nullopt;
    const auto head = read_message<fib_rule_hdr>(message);
    if (!head)
        return std::nullopt;
    PolicyRule rule;
    rule.to_bits = head->first.dst_len;
    rule.from_bits = head->first.src_len;
    rule.more = head->first.tos != 0 || (head->first.flags & FIB_RULE_INVERT) != 0;
    rule.table = head->first.table;
    for_each_attribute(head->second, [&](std::uint16_t type, Bytes value) {
        switch (type) {
        case FRA_PRIORITY:
            rule.priority = read_u32(value).value_or(0);
            break;
        case FRA_TABLE:
            rule.table = read_u32(value).value_or(0);
            break;
        case FRA_DST:
            rule.to = address_of(value);
            break;
        case FRA_SRC:
            rule.from = address_of(value);
            break;
        case FRA_FWMARK:
            rule.mark = read_u32(value).value_or(0);
            break;
        case FRA_FWMASK:
            rule.mask = read_u32(value).value_or(0);
            break;
        case FRA_IIFNAME: {
            const std::string_view name(reinterpret_cast<const char*>(value.data()), value.size());
            rule.in_dev = name.substr(0, name.find('\0'));
            break;
        }
        case FRA_SUPPRESS_PREFIXLEN: // the kernel sends them with each rule: all bits set is none
        case FRA_SUPPRESS_IFGROUP:
            rule.more |= read_u32(value) != ~std::uint32_t{0};
            break;
        case FRA_PROTOCOL: // who made it
        case FRA_FLOW:
        case FRA_PAD:
            break;
        default:
            rule.more = true;
        }
    });
    if (head->first.action != FR_ACT_TO_TBL)
        rule.table = 0;
    return rule;
}

std::optional<std::uint32_t> rule_to(std::uint32_t table, const RouteQuestion& question,
                                     std::span<const PolicyRule> rules) {
    const auto holds = [](const std::optional<Address>& network, unsigned bits, const std::optional<Address>& address) {
        if (bits == 0)
            return true;
        if (!network || !address || network->family != address->family || bits > 8 * size_of(address->family))
            return false;
        for (unsigned i = 0; i < bits; ++i)
            if (((network->bytes[i / 8] ^ address->bytes[i / 8]) >> (7 - i % 8) & 1) != 0)
                return false;
        return true;
    };
    for (const PolicyRule& rule : rules) {
        const bool fits = rule.table == table && holds(rule.to, rule.to_bits, question.to) &&
                          holds(rule.from, rule.from_bits, question.from) &&
                          ((rule.mark ^ question.mark) & rule.mask) == 0 &&
                          (rule.in_dev.empty() || rule.in_dev == question.in_dev.value_or("lo"));
        if (fits)
            return rule.more ? std::nullopt : std::optional(rule.priority);
    }
    return std::nullopt;
}

std::optional<Link> read_link(const nlmsghdr& message) {
    if (message.nlmsg_type != RTM_NEWLINK)
        return std::nullopt;
    const auto info = read_message<ifinfomsg>(message);
    if (!info || info->first.ifi_index <= 0)
        return std::nullopt;
    const auto is_vrf = [](Bytes kind) {
        const std::string_view text(reinterpret_cast<const char*>(kind.data()), kind.size());
        return text.substr(0, text.find('\0')) == "vrf";
    };
    std::uint32_t master = 0;
    bool itself = false, member = false;
    for_each_attribute(info->second, [&](std::uint16_t type, Bytes value) {
        if (type == IFLA_MASTER)
            master = read_u32(value).value_or(0);
        if (type != IFLA_LINKINFO)
            return;
        for_each_attribute(value, [&](std::uint16_t inner, Bytes kind) {
            itself |= inner == IFLA_INFO_KIND && is_vrf(kind);
            member |= inner == IFLA_INFO_SLAVE_KIND && is_vrf(kind);
        });
    });
    const auto index = static_cast<std::uint32_t>(info->first.ifi_index);
    return Link{index, itself ? index : member ? master : 0};
}

std::optional<Link> RouteLookup::link(const std::string& name) {
    const auto known = links_.find(name);
    if (known != links_.end())
        return known->second;
    Request request(RTM_GETLINK, 0);
    request.extra<ifinfomsg>().ifi_family = AF_UNSPEC;
    mnl_attr_put_strz(request.head, IFLA_IFNAME, name.substr(0, IFNAMSIZ - 1).c_str());
    std::optional<Link> found;
    netlink_.ask(request, [&](Bytes datagram) {
        for_each_message(datagram, [&](const nlmsghdr& message) { found = read_link(message); });
        return true;
    });
    return links_[name] = found;
}

// Nothing when it cannot be asked as it was meant: the answer to another question would pass for this one's.
std::optional<RouteAnswer> RouteLookup::ask(const RouteQuestion& question, std::uint32_t flags) {
    Link at;
    if (const auto& dev = question.in_dev ? question.in_dev : question.at_dev) {
        const auto known = link(*dev);
        if (!known) // it is gone
            return std::nullopt;
        at = *known;
    }

    Request request(RTM_GETROUTE, 0);
    auto& header = request.extra<rtmsg>();
    header.rtm_family = af_of(question.to);
    header.rtm_dst_len = static_cast<std::uint8_t>(8 * size_of(question.to.family));
    header.rtm_flags = flags;
    if (question.to.family == IpFamily::ipv4) // IPv6 tells its table anyway, and refuses to be asked
        header.rtm_flags |= RTM_F_LOOKUP_TABLE;
    request.attribute(RTA_DST, bytes_of(question.to));
    if (question.from) {
        header.rtm_src_len = header.rtm_dst_len;
        request.attribute(RTA_SRC, bytes_of(*question.from));
    }
    if (question.mark != 0)
        request.attribute(RTA_MARK, question.mark);
    if (question.in_dev)
        request.attribute(RTA_IIF, at.index);
    else if (at.index != 0 && of_one_link(question.to))
        request.attribute(RTA_OIF, at.index);
    else if (at.vrf != 0)
        request.attribute(RTA_OIF, at.vrf);
    std::optional<RouteAnswer> answer;
    netlink_.ask(request, [&](Bytes datagram) {
        for_each_message(datagram, [&](const nlmsghdr& message) { answer = read_route(message); });
        return true;
    });
    return answer;
}

std::optional<Route> RouteLookup::route(const RouteQuestion& question) {
    const auto answer = ask(question, 0);
    // EINVAL is also what a forwarded packet gets whose source the kernel finds impossible.
    if (!answer || (answer->error == EINVAL && question.in_dev))
        return std::nullopt;
    Route route;
    route.type = route_type(*answer);
    if (route.type.empty()) {
        spdlog::debug("no route to {}: {}", question.to.text(), std::strerror(answer->error));
        return std::nullopt;
    }
    if (answer->error != 0)
        return route;
    route.table = answer->table;
    route.gateway = answer->gateway;
    std::array<char, IF_NAMESIZE> name{};
    if (answer->out_dev != 0 && if_indextoname(answer->out_dev, name.data()))
        route.dev = name.data();
    // The entry of the table is another question; the routes may have changed in between.
    const auto entry = ask(question, RTM_F_FIB_MATCH);
    if (entry && entry->error == 0 && entry->table == answer->table)
        route.matched = matched_text(*entry, question.to.family);
    route.rule = rule_to(route.table, question, rules(question.to.family));
    return route;
}

// In their order; none where they cannot be read whole.
std::span<const PolicyRule> RouteLookup::rules(IpFamily family) {
    constexpr std::size_t most = 4096;
    const auto [known, fresh] = rules_.try_emplace(family);
    std::vector<PolicyRule>& rules = known->second;
    if (!fresh)
        return rules;
    Request request(RTM_GETRULE, NLM_F_DUMP);
    request.extra<fib_rule_hdr>().family = family == IpFamily::ipv6 ? AF_INET6 : AF_INET;
    const bool answered = netlink_.ask(request, [&](Bytes datagram) {
        for_each_message(datagram, [&](const nlmsghdr& message) {
            if (auto rule = read_rule(message))
                rules.push_back(std::move(*rule));
        });
        return rules.size() < most;
    });
    if (!answered || rules.size() >= most)
        rules.clear();
    return rules;
}

bool RouteLookup::is_local(const Address& address, const std::optional<std::string>& at_dev) {
    RouteQuestion question;
    question.to = address;
    question.at_dev = at_dev;
    const auto answer = ask(question, 0);
    return answer && answer->error == 0 && answer->type == RTN_LOCAL;
}

std::optional<bool> RouteLookup::has_host_route(const Address& address, std::uint32_t table,
                                                const std::optional<Route>& route) {
    const auto host_bits = static_cast<std::uint8_t>(8 * size_of(address.family));
    // The longest entry of a table is the one that matches.
    if (route && route->table == table && !route->matched.empty())
        return route->matched == address.text() + '/' + std::to_string(host_bits);

    constexpr std::size_t max_bytes = 4u << 20; // some 50,000 routes
    Request request(RTM_GETROUTE, NLM_F_DUMP);
    auto& header = request.extra<rtmsg>();
    header.rtm_family = af_of(address);
    header.rtm_table = static_cast<std::uint8_t>(table);
    bool found = false;
    int error = 0;
    std::size_t bytes = 0;
    const bool answered = netlink_.ask(request, [&](Bytes datagram) {
        for_each_message(datagram, [&](const nlmsghdr& message) {
            const auto entry = read_route(message);
            if (entry && entry->error != 0)
                error = entry->error;
            found |= entry && entry->table == table && entry->prefix == host_bits && entry->to == address;
        });
        bytes += datagram.size();
        return !found && bytes < max_bytes;
    });
    if (found)
        return true;
    // ENOENT: there is no such table.
    const bool whole = answered && bytes < max_bytes && (error == 0 || error == ENOENT);
    return whole ? std::optional(false) : std::nullopt;
}

} // namespace tsdroptrace::evidence
