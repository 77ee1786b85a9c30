// SPDX-License-Identifier: GPL-2.0-only
// At which hook nf_hook_slow is called by which function of the kernel (bpf/hook_function.h). Not those that call it
// for several.
#pragma once

#include <cstdint>

#include <linux/netfilter.h>
#include <linux/netfilter_arp.h>
#include <linux/netfilter_bridge.h>

namespace tsdroptrace::attach {

struct HookCaller {
    const char* name;
    std::uint8_t pf, hook;
};
inline constexpr HookCaller hook_callers[] = {
    {"ip_rcv", NFPROTO_IPV4, NF_INET_PRE_ROUTING},
    {"ip_sublist_rcv", NFPROTO_IPV4, NF_INET_PRE_ROUTING},
    {"ip_list_rcv", NFPROTO_IPV4, NF_INET_PRE_ROUTING},
    {"ip_local_deliver", NFPROTO_IPV4, NF_INET_LOCAL_IN},
    {"ip_forward", NFPROTO_IPV4, NF_INET_FORWARD},
    {"__ip_local_out", NFPROTO_IPV4, NF_INET_LOCAL_OUT},
    {"raw_sendmsg", NFPROTO_IPV4, NF_INET_LOCAL_OUT},
    {"raw_send_hdrinc", NFPROTO_IPV4, NF_INET_LOCAL_OUT},
    {"ip_output", NFPROTO_IPV4, NF_INET_POST_ROUTING},
    {"ip_mc_output", NFPROTO_IPV4, NF_INET_POST_ROUTING},
    {"ipv6_rcv", NFPROTO_IPV6, NF_INET_PRE_ROUTING},
    {"ip6_sublist_rcv", NFPROTO_IPV6, NF_INET_PRE_ROUTING},
    {"ipv6_list_rcv", NFPROTO_IPV6, NF_INET_PRE_ROUTING},
    {"ip6_input", NFPROTO_IPV6, NF_INET_LOCAL_IN},
    {"ip6_forward", NFPROTO_IPV6, NF_INET_FORWARD},
    {"__ip6_local_out", NFPROTO_IPV6, NF_INET_LOCAL_OUT},
    {"ip6_xmit", NFPROTO_IPV6, NF_INET_LOCAL_OUT},
    {"rawv6_sendmsg", NFPROTO_IPV6, NF_INET_LOCAL_OUT},
    {"rawv6_send_hdrinc", NFPROTO_IPV6, NF_INET_LOCAL_OUT},
    {"ip6_output", NFPROTO_IPV6, NF_INET_POST_ROUTING},
    {"arp_rcv", NFPROTO_ARP, NF_ARP_IN},
    {"arp_xmit", NFPROTO_ARP, NF_ARP_OUT},
    {"br_pass_frame_up", NFPROTO_BRIDGE, NF_BR_LOCAL_IN},
    {"br_forward_finish", NFPROTO_BRIDGE, NF_BR_POST_ROUTING},
    {"__netif_receive_skb_core", NFPROTO_NETDEV, NF_NETDEV_INGRESS},
    {"__dev_queue_xmit", NFPROTO_NETDEV, NF_NETDEV_EGRESS},
};

} // namespace tsdroptrace::attach
