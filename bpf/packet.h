// SPDX-License-Identifier: GPL-2.0-only
// Reads the headers of a packet that is about to be freed into a struct tsdt_drop.
#pragma once

#include "kernel_compat.h"
#include <bpf/bpf_endian.h>
#include "event.h"

#define IP_OFFSET_MASK 0x1fff
#define MAX_EXTENSION_HEADERS 6

static __always_inline bool has_port_numbers(u8 proto)
{
	return proto == IPPROTO_TCP || proto == IPPROTO_UDP || proto == IPPROTO_SCTP || proto == IPPROTO_DCCP ||
	       proto == IPPROTO_UDPLITE;
}

// The bytes of a packet that can be read: its linear part. All positions count from skb->head, as the kernel's own do.
struct window {
	u64 head; // address
	u32 end;  // of the linear part: what lies behind is another packet's or nobody's
	u32 at;   // where the IP header is expected
	// What read_headers() finds beside the addresses:
	u32 l4;     // of the transport header, 0 where there is none to read
	u32 length; // of the whole packet, header included; 0: the header does not say
	u32 ttl;
};

static __always_inline bool read_at(const struct window *window, u32 at, void *out, u32 size)
{
	return at + size <= window->end && !bpf_probe_read_kernel(out, size, (const void *)(window->head + at));
}

// IPv6 extension headers: where the walk through them stands.
struct extension_walk {
	u64 head;
	u32 end;
	u32 at;
	u8 next;     // type of the header at `at`
	u8 fragment; // a later one: what follows is no header
};

enum { HOP_BY_HOP = 0, ROUTING = 43, FRAGMENT = 44, AUTH = 51, DEST_OPTIONS = 60 };

static __always_inline bool is_extension_header(u8 type)
{
	return type == HOP_BY_HOP || type == ROUTING || type == FRAGMENT || type == AUTH || type == DEST_OPTIONS;
}

static long skip_extension_header(u32 index, struct extension_walk *walk)
{
	u8 header[4] = {}; // next header, length, and for a fragment its offset
	u8 type = walk->next;

	if (!is_extension_header(type))
		return 1;
	if (walk->at + sizeof(header) > walk->end ||
	    bpf_probe_read_kernel(header, sizeof(header), (const void *)(walk->head + walk->at)))
		return 1;
	walk->next = header[0];
	if (type == FRAGMENT) {
		walk->at += 8;
		if (*(u16 *)&header[2] & bpf_htons(0xfff8)) {
			walk->fragment = 1;
			return 1;
		}
		return 0;
	}
	walk->at += type == AUTH ? (header[1] + 2) * 4 : (header[1] + 1) * 8;
	return 0;
}

static __always_inline void read_ports(struct tsdt_headers *headers, const struct window *window)
{
	u16 ports[2];

	if (!has_port_numbers(headers->proto))
		return;
	if (!read_at(window, window->l4, ports, sizeof(ports))) {
		headers->no_ports = TSDT_NO_PORTS_UNREAD;
		return;
	}
	headers->sport = ports[0];
	headers->dport = ports[1];
	headers->has_ports = 1;
}

static __always_inline void read_ipv4(struct tsdt_headers *headers, struct window *window, struct iphdr ip)
{
	if (ip.ihl < 5)
		return;
	headers->family = 4;
	headers->proto = ip.protocol;
	window->ttl = ip.ttl;
	window->length = bpf_ntohs(ip.tot_len); // 0: BIG TCP
	__builtin_memcpy(headers->saddr, &ip.saddr, 4);
	__builtin_memcpy(headers->daddr, &ip.daddr, 4);
	if (ip.frag_off & bpf_htons(IP_OFFSET_MASK)) {
		if (has_port_numbers(ip.protocol))
			headers->no_ports = TSDT_NO_PORTS_FRAGMENT;
		return;
	}
	window->l4 = window->at + ip.ihl * 4;
	read_ports(headers, window);
}

static __always_inline void read_ipv6(struct tsdt_headers *headers, struct window *window)
{
	struct extension_walk walk = {.head = window->head, .end = window->end};
	struct ipv6hdr ip;

	if (!read_at(window, window->at, &ip, sizeof(ip)))
		return;
	headers->family = 6;
	window->ttl = ip.hop_limit;
	if (ip.payload_len) // 0: jumbogram or BIG TCP
		window->length = sizeof(ip) + bpf_ntohs(ip.payload_len);
	__builtin_memcpy(headers->saddr, ip.saddr, 16);
	__builtin_memcpy(headers->daddr, ip.daddr, 16);

	walk.at = window->at + sizeof(ip);
	walk.next = ip.nexthdr;
	compat_loop(MAX_EXTENSION_HEADERS, MAX_EXTENSION_HEADERS, skip_extension_header, &walk);
	headers->proto = walk.next;
	if (walk.fragment) {
		if (has_port_numbers(walk.next) || is_extension_header(walk.next))
			headers->no_ports = TSDT_NO_PORTS_FRAGMENT;
		return;
	}
	if (is_extension_header(walk.next)) { // the walk did not get to the end
		headers->no_ports = TSDT_NO_PORTS_UNREAD;
		return;
	}
	window->l4 = walk.at;
	read_ports(headers, window);
}

// Fills in what the IP header at window->at says; family stays 0 when there is none. A global function, as are others
// below: the verifier then looks at each of them once, and not again for every way that leads to it.
VERIFIED_ONCE int read_headers(struct tsdt_headers *headers, struct window *window)
{
	struct iphdr ip; // that of IPv6 is longer

	if (!headers || !window)
		return 0;
	window->l4 = 0;
	window->length = 0;
	if (!read_at(window, window->at, &ip, sizeof(ip)))
		return 0;
	if (ip.version == 4)
		read_ipv4(headers, window, ip);
	else if (ip.version == 6)
		read_ipv6(headers, window);
	return 0;
}

// Whether the ICMP message quotes the packet that it is about. (A redirect of IPv6 does so among other options.)
static __always_inline bool is_icmp_error(const struct tsdt_drop *drop)
{
	enum { UNREACHABLE = 3, SOURCE_QUENCH = 4, REDIRECT = 5, TIME_EXCEEDED = 11, PARAMETER_PROBLEM = 12 };
	u8 type = drop->icmp_type;

	if (drop->proto == IPPROTO_ICMPV6)
		return type < 128;
	return type == UNREACHABLE || type == SOURCE_QUENCH || type == REDIRECT || type == TIME_EXCEEDED ||
	       type == PARAMETER_PROBLEM;
}

static __always_inline void read_l4(struct tsdt_drop *drop, struct window *window)
{
	u8 head[14]; // of TCP up to its flags
	const u32 icmp_header = 8;

	if (drop->proto == IPPROTO_TCP) {
		if (!read_at(window, window->l4, head, sizeof(head)))
			return;
		drop->tcp_flags = head[13];
		drop->has_l4 = 1;
	} else if ((drop->family == 4 && drop->proto == IPPROTO_ICMP) ||
		   (drop->family == 6 && drop->proto == IPPROTO_ICMPV6)) {
		if (!read_at(window, window->l4, head, 2))
			return;
		drop->icmp_type = head[0];
		drop->icmp_code = head[1];
		drop->has_l4 = 1;
		if (is_icmp_error(drop)) {
			window->at = window->l4 + icmp_header;
			read_headers(&drop->quoted, window);
		}
	}
}

static __always_inline bool is_vlan(u16 ethertype)
{
	return ethertype == ETH_P_8021Q || ethertype == ETH_P_8021AD;
}

// Where the IP header is, 0 when that is not known; puts drop->ethertype right. As long as the packet carries a VLAN tag
// among its own bytes, and before the stack has looked at a received one, network_header does not tell: then the way
// leads over the Ethernet header, if there is one that agrees with skb->protocol.
static __always_inline u32 find_ip_header(struct sk_buff *skb, const struct window *window, struct tsdt_drop *drop)
{
	u16 network_header = BPF_CORE_READ(skb, network_header);
	u16 mac_header = BPF_CORE_READ(skb, mac_header);
	u16 type = 0;
	u32 at = mac_header + 12;

	if (!is_vlan(drop->ethertype) && network_header)
		return network_header == 0xffff ? 0 : network_header;
	if (mac_header == 0xffff || !read_at(window, at, &type, sizeof(type)) || bpf_ntohs(type) != drop->ethertype)
		return 0;
	at += sizeof(type);
	for (u32 tags = 0; tags < 2 && is_vlan(drop->ethertype); tags++) {
		if (!read_at(window, at + 2, &type, sizeof(type)))
			return 0;
		drop->ethertype = bpf_ntohs(type);
		at += 4;
	}
	return at;
}

struct arp_over_ethernet {
	__be16 hardware, protocol;
	u8 hardware_length, protocol_length;
	__be16 operation;
	u8 sender_hardware[6];
	__be32 sender;
	u8 target_hardware[6];
	__be32 target;
} __attribute__((packed));

// Who asks or answers whom about an IPv4 address. The family stays 0: it is no IP packet.
static __always_inline void read_arp(struct tsdt_drop *drop, const struct window *window)
{
	struct arp_over_ethernet arp;

	if (!read_at(window, window->at, &arp, sizeof(arp)) || arp.protocol != bpf_htons(ETH_P_IP) ||
	    arp.hardware_length != 6 || arp.protocol_length != 4)
		return;
	__builtin_memcpy(drop->saddr, &arp.sender, 4);
	__builtin_memcpy(drop->daddr, &arp.target, 4);
	drop->is_arp = 1;
}

#ifdef TSDT_LINUX_5_10
// 5.10 does not say what a packet is that a process has written header and all, until it is past OUTPUT: the family of
// its socket does.
static __always_inline u16 ethertype_of_socket(struct sk_buff *skb)
{
	enum { AF_INET = 2, AF_INET6 = 10 };
	struct sock *sk = BPF_CORE_READ(skb, sk);
	u16 family = BPF_CORE_READ(sk, __sk_common.skc_family);

	return family == AF_INET ? ETH_P_IP : family == AF_INET6 ? ETH_P_IPV6 : 0;
}
#endif

// Fills in what the packet itself says; family stays 0 when it is not an IP packet whose header can be read.
VERIFIED_ONCE int read_packet(struct tsdt_drop *drop, u64 skb_address)
{
	struct sk_buff *skb = (struct sk_buff *)skb_address;
	u64 nfct = BPF_CORE_READ(skb, _nfct);
	struct tsdt_headers headers = {};
	struct window window = {.head = (u64)BPF_CORE_READ(skb, head), .end = BPF_CORE_READ(skb, tail)};

	if (!drop)
		return 0;
	drop->ethertype = bpf_ntohs(BPF_CORE_READ(skb, protocol));
	drop->length = BPF_CORE_READ(skb, len);
	drop->mark = BPF_CORE_READ(skb, mark);
	drop->received = BPF_CORE_READ(skb, skb_iif) != 0;
	drop->ctinfo = nfct & ~7UL ? nfct & 7 : 0xff; // NFCT_PTRMASK
#ifdef TSDT_LINUX_5_10
	if (!drop->ethertype)
		drop->ethertype = ethertype_of_socket(skb);
#endif
	window.at = find_ip_header(skb, &window, drop);
	if (window.at && drop->ethertype == ETH_P_ARP)
		read_arp(drop, &window);
	if (!window.at || (drop->ethertype != ETH_P_IP && drop->ethertype != ETH_P_IPV6))
		return 0;
	read_headers(&headers, &window);
	if (headers.family != (drop->ethertype == ETH_P_IP ? 4 : 6))
		return 0;
	__builtin_memcpy(drop->saddr, headers.saddr, sizeof(drop->saddr));
	__builtin_memcpy(drop->daddr, headers.daddr, sizeof(drop->daddr));
	drop->sport = headers.sport;
	drop->dport = headers.dport;
	drop->family = headers.family;
	drop->proto = headers.proto;
	drop->has_ports = headers.has_ports;
	drop->no_ports = headers.no_ports;
	drop->ttl = window.ttl;
	if (window.length)
		drop->length = window.length;
	if (window.l4)
		read_l4(drop, &window);
	return 0;
}
