// SPDX-License-Identifier: GPL-2.0-only
#include "explain/noise.h"

namespace tsdroptrace::explain {

namespace {

constexpr Noise table_of_noise[] = {
    {"NO_SOCKET", "ping_rcv"},    // the end of every successful ping: the reply has been handed over
    {"NO_SOCKET", "icmp_rcv", 0}, // the same where ping_rcv leaves the freeing to its caller: an echo reply
    {"NO_SOCKET", "icmpv6_rcv", 129},
    {"NOT_SPECIFIED", "icmpv6_rcv"},  // up to 6.2 the end of every ICMPv6 message, errors too, that has been dealt with
    {"NOT_SPECIFIED", "icmp_rcv", 0}, // the same before 5.17, which gives no reasons
    {"NOT_SPECIFIED", "skb_queue_purge"},
    {"QUEUE_PURGE", ""},                    // a closing socket or device throws away what nobody will read
    {"NOT_SPECIFIED", "ip6_mc_input"},      // multicast for groups that nobody here joined
    {"NOT_SPECIFIED", "inet_rtm_getroute"}, // no packet: the question for a route, which is answered by an error
    {"CONSUMED", ""},                       // not a drop at all
    {"SKB_CONSUMED", ""},                   // the same under the enumerator's full name
};

} // namespace

std::span<const Noise> noise() {
    return table_of_noise;
}

} // namespace tsdroptrace::explain
