// SPDX-License-Identifier: GPL-2.0-only
// Reads the headers of a packet that is about to be freed into a struct tsdt_drop.
#pragma once

#include "kernel_compat.h"
#include "event.h"

#define IP_OFFSET_MASK 0x1fff
#define MAX_EXTENSION_HEADERS 6

static __always_inline bool has_port_numbers(u8 proto)
{
	return proto == IPPROTO_TCP || proto == IPPROTO_UDP || proto == IPPROTO_SCTP || proto == IPPROTO_DCCP ||
	       proto == IPPROTO_UDPLITE;
}

static __always_inline void read_l4(struct tsdt_drop *drop, const void *l4)
{
	u8 head[14] = {}; // of TCP up to its flags; the others are shorter, so they are read in two goes

	if (has_port_numbers(drop->proto)) {
		if (bpf_probe_read_kernel(head, 4, l4))
			return;
		drop->sport = *(u16 *)&head[0];
		drop->dport = *(u16 *)&head[2];
		drop->has_ports = 1;
		if (drop->proto == IPPROTO_TCP && !bpf_probe_read_kernel(head, sizeof(head), l4)) {
			drop->tcp_flags = head[13];
			drop->has_l4 = 1;
		}
	} else if (drop->proto == IPPROTO_ICMP || drop->proto == IPPROTO_ICMPV6) {
		if (bpf_probe_read_kernel(head, 2, l4))
			return;
		drop->icmp_type = head[0];
		drop->icmp_code = head[1];
		drop->has_l4 = 1;
	}
}

static __always_inline bool read_ipv4(struct tsdt_drop *drop, const void *l3)
{
	struct iphdr ip;

	if (bpf_probe_read_kernel(&ip, sizeof(ip), l3) || ip.version != 4 || ip.ihl < 5)
		return false;
	drop->family = 4;
	drop->proto = ip.protocol;
	drop->ttl = ip.ttl;
	if (ip.tot_len) // 0: BIG TCP
		drop->length = bpf_ntohs(ip.tot_len);
	__builtin_memcpy(drop->saddr, &ip.saddr, 4);
	__builtin_memcpy(drop->daddr, &ip.daddr, 4);
	if (!(ip.frag_off & bpf_htons(IP_OFFSET_MASK)))
		read_l4(drop, l3 + ip.ihl * 4);
	return true;
}

// IPv6 extension headers: where the walk through them stands.
struct extension_walk {
	const void *l3;
	u32 at;
	u8 next;     // type of the header at `at`
	u8 fragment; // a later one: what follows is no header
};

static long skip_extension_header(u32 index, struct extension_walk *walk)
{
	enum { HOP_BY_HOP = 0, ROUTING = 43, FRAGMENT = 44, AUTH = 51, DEST_OPTIONS = 60 };
	u8 header[4] = {}; // next header, length, and for a fragment its offset
	u8 type = walk->next;

	if (type != HOP_BY_HOP && type != ROUTING && type != FRAGMENT && type != AUTH && type != DEST_OPTIONS)
		return 1;
	if (bpf_probe_read_kernel(header, sizeof(header), walk->l3 + walk->at))
		return 1;
	walk->next = header[0];
	if (type == FRAGMENT) {
		walk->at += 8;
		walk->fragment = (*(u16 *)&header[2] & bpf_htons(0xfff8)) != 0;
		return walk->fragment;
	}
	walk->at += type == AUTH ? (header[1] + 2) * 4 : (header[1] + 1) * 8;
	return 0;
}

static __always_inline bool read_ipv6(struct tsdt_drop *drop, const void *l3)
{
	struct extension_walk walk = {.l3 = l3, .at = sizeof(struct ipv6hdr)};
	struct ipv6hdr ip;

	if (bpf_probe_read_kernel(&ip, sizeof(ip), l3) || ip.version != 6)
		return false;
	drop->family = 6;
	drop->ttl = ip.hop_limit;
	if (ip.payload_len) // 0: jumbogram or BIG TCP
		drop->length = sizeof(ip) + bpf_ntohs(ip.payload_len);
	__builtin_memcpy(drop->saddr, ip.saddr, 16);
	__builtin_memcpy(drop->daddr, ip.daddr, 16);

	walk.next = ip.nexthdr;
	bpf_loop(MAX_EXTENSION_HEADERS, skip_extension_header, &walk, 0);
	drop->proto = walk.next;
	if (!walk.fragment)
		read_l4(drop, l3 + walk.at);
	return true;
}

// Who asks or answers whom about an IPv4 address. The family stays 0: it is no IP packet.
static __always_inline void read_arp(struct tsdt_drop *drop, const void *l3)
{
	struct {
		__be16 hardware, protocol;
		u8 hardware_length, protocol_length;
		__be16 operation;
		u8 sender_hardware[6], sender[4], target_hardware[6], target[4];
	} arp;

	if (bpf_probe_read_kernel(&arp, sizeof(arp), l3) || arp.protocol != bpf_htons(ETH_P_IP) ||
	    arp.hardware_length != 6 || arp.protocol_length != 4)
		return;
	__builtin_memcpy(drop->saddr, arp.sender, 4);
	__builtin_memcpy(drop->daddr, arp.target, 4);
	drop->is_arp = 1;
}

// Fills in what the packet itself says; family stays 0 when it is not an IP packet whose header can be read.
// A global function, as are others below: the verifier then looks at each of them once, and not again for
// every way that leads to it.
__noinline int read_packet(struct tsdt_drop *drop, u64 skb_address)
{
	struct sk_buff *skb = (struct sk_buff *)skb_address;
	u64 nfct = BPF_CORE_READ(skb, _nfct);
	u16 network_header = BPF_CORE_READ(skb, network_header);
	const void *l3 = BPF_CORE_READ(skb, head) + network_header;

	if (!drop)
		return 0;
	drop->ethertype = bpf_ntohs(BPF_CORE_READ(skb, protocol));
	drop->length = BPF_CORE_READ(skb, len);
	drop->mark = BPF_CORE_READ(skb, mark);
	drop->received = BPF_CORE_READ(skb, skb_iif) != 0;
	drop->ctinfo = nfct & ~7UL ? nfct & 7 : 0xff; // NFCT_PTRMASK
	if (network_header == 0xffff || network_header > BPF_CORE_READ(skb, tail))
		return 0;
	if (drop->ethertype == ETH_P_IP)
		read_ipv4(drop, l3);
	else if (drop->ethertype == ETH_P_IPV6)
		read_ipv6(drop, l3);
	else if (drop->ethertype == ETH_P_ARP)
		read_arp(drop, l3);
	return 0;
}
