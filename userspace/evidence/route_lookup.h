// SPDX-License-Identifier: GPL-2.0-only
// The kernel's answer to where a packet goes, as `ip route get` asks it, in the network namespace of the calling
// thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "evidence/netlink.h"
#include "model.h"

namespace tsdroptrace::evidence {

struct RouteQuestion {
    Address to;
    std::optional<Address> from; // an address of this machine, or with in_dev any
    std::uint32_t mark = 0;
    std::optional<std::string> in_dev; // the packet is forwarded: it comes in by this device
    std::optional<std::string> at_dev; // the packet is this machine's, and belongs to where this device is
};

// One message about a route.
struct RouteAnswer {
    int error = 0;           // errno; then the rest is empty
    std::uint8_t type = 0;   // RTN_*
    std::uint8_t prefix = 0; // bits
    std::uint32_t table = 0;
    std::uint32_t out_dev = 0; // index; 0: none, or several
    std::optional<Address> to, gateway;
};

// nullopt: the message is about something else, or too short to hold one. Attributes that are not known, or have a
// length that they cannot have, are passed over.
std::optional<RouteAnswer> read_route(const nlmsghdr&);

// "unicast", "none"...: Route::type; empty where that answer does not say.
std::string route_type(const RouteAnswer&);

// "100.64.0.7/32", "default".
std::string matched_text(const RouteAnswer&, IpFamily);

// An ip rule, as far as it is told by what of a packet.
struct PolicyRule {
    std::uint32_t priority = 0, table = 0; // table 0: it leads to none
    std::optional<Address> to, from;
    std::uint8_t to_bits = 0, from_bits = 0;
    std::uint32_t mark = 0, mask = 0;
    std::string in_dev;
    bool more = false; // it also asks for what is not read here
};

// nullopt: the message is about something else, or too short to hold one.
std::optional<PolicyRule> read_rule(const nlmsghdr&);

// Which of the rules, in their order, leads to the table; nullopt where that depends on what is not read.
std::optional<std::uint32_t> rule_to(std::uint32_t table, const RouteQuestion&, std::span<const PolicyRule>);

// A device, as far as routes depend on it.
struct Link {
    std::uint32_t index = 0;
    std::uint32_t vrf = 0; // index of the VRF that it is or belongs to; 0: none
};

std::optional<Link> read_link(const nlmsghdr&);

class RouteLookup {
public:
    // Each is empty, or false, when the kernel cannot be asked or does not tell.
    std::optional<Route> route(const RouteQuestion&);
    bool is_local(const Address&, const std::optional<std::string>& at_dev);
    // Whether the table has a route to this one address; `route`: the one that the kernel takes to it.
    std::optional<bool> has_host_route(const Address&, std::uint32_t table, const std::optional<Route>& route);

private:
    std::optional<RouteAnswer> ask(const RouteQuestion&, std::uint32_t flags);
    std::optional<Link> link(const std::string& name);
    std::span<const PolicyRule> rules(IpFamily);

    Netlink netlink_{NETLINK_ROUTE};
    std::map<std::string, std::optional<Link>> links_;
    std::map<IpFamily, std::vector<PolicyRule>> rules_;
};

} // namespace tsdroptrace::evidence
