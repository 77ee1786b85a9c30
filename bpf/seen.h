// SPDX-License-Identifier: GPL-2.0-only
// Packets of the filter that pass: how many left this machine toward the range, and how many came in from there, by
// device. What the drops mean depends on it: whether the requests left, whether any answer ever came.
//
// These programs see every packet of the machine, so what is not asked for must be out after a few instructions: the
// first 16 bits of one address, looked up in a bitmap. All else happens for packets that may match.
#pragma once

#include "drop.h"

// By the first 16 bits of an address, as they lie in memory: not 0 where a range of the remote side may hold it. Filled in
// by userspace. A byte each, since bits would have to be shifted.
const volatile __u8 first_bits4[65536];
const volatile __u8 first_bits6[65536];

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 512);
	__type(key, struct tsdt_seen_key);
	__type(value, struct tsdt_seen);
} seen SEC(".maps");

// Packets that were counted when a device that stands for others sent them: these send them again.
struct sent {
	u64 fingerprint;
	u64 mono_ns;
};
#define SENT_AGAIN_NS 50000000ULL // no sender repeats itself sooner

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, u64); // struct sk_buff *
	__type(value, struct sent);
} sent_before SEC(".maps");

__u64 unseen; // packets that found no room in `seen`

// What the kernel's structures hold is read by loads here, since every packet of the filter comes by. But not their pointers
// to other structures: each such load takes the verifier 7 ms (6.12), which looks through all types for what makes it safe.
#define IS_EMPTY(dev, list)                                                                   \
	((u64)BPF_CORE_READ(dev, list.next) == (u64)(dev) + bpf_core_field_offset(struct net_device, list))

// A VLAN's or a bridge's device hands what it sends to others, a bridge's port or a bond's slave is one of these.
static __always_inline bool is_stacked(struct net_device *dev)
{
	return !IS_EMPTY(dev, adj_list.upper) || !IS_EMPTY(dev, adj_list.lower);
}

__noinline int was_sent_before(u64 address)
{
	struct sk_buff *skb = (struct sk_buff *)address;
	struct sent now = {.fingerprint = fingerprint_of(skb), .mono_ns = bpf_ktime_get_ns()};
	struct sent *before = bpf_map_lookup_elem(&sent_before, &address);

	if (before && before->fingerprint == now.fingerprint && now.mono_ns - before->mono_ns < SENT_AGAIN_NS)
		return 1;
	bpf_map_update_elem(&sent_before, &address, &now, BPF_ANY);
	return 0;
}

// `name`: the device's, as it lies in memory. (Behind its end is what the kernel has there; userspace stops at the end.)
__noinline int count_by_device(u32 netns, u32 way, u64 name, u64 name_end)
{
	struct tsdt_seen_key key = {.netns = netns, .way = way};
	struct tsdt_seen *counted, first = {};

	*(u64 *)&key.dev[0] = name;
	*(u64 *)&key.dev[8] = name_end;
	counted = bpf_map_lookup_elem(&seen, &key);
	if (!counted) {
		first.first_ns = bpf_ktime_get_ns();
		bpf_map_update_elem(&seen, &key, &first, BPF_NOEXIST);
		counted = bpf_map_lookup_elem(&seen, &key);
	}
	if (!counted) {
		__sync_fetch_and_add(&unseen, 1);
		return 0;
	}
	__sync_fetch_and_add(&counted->packets, 1);
	counted->last_ns = bpf_ktime_get_ns();
	return 0;
}

static __always_inline bool is_chosen_device(struct net_device *dev)
{
	struct device key = {};

	device_name(key.name, dev);
	return chosen_device(key.name);
}

// Whether the packet, whose IP header is at `at` from skb->head, is one that the user asked for.
static __always_inline bool passes_filter(struct sk_buff *skb, u32 at, u32 way)
{
	struct window window = {.head = (u64)skb->head, .end = skb->tail, .at = at};
	struct tsdt_headers headers = {};

	read_headers(&headers, &window);
	return ways_of(&headers, headers.proto) & (way == TSDT_SEEN_SENT ? GOES_TO : COMES_FROM);
}

// Counts the packet if it matches the filter. The verifier knows the type of `dev` where it is sent, but not where it is
// received: skb->dev was no load.
static __always_inline int count_seen(struct sk_buff *skb, struct net_device *dev, u32 at, u32 way)
{
	u32 netns;
	u64 name[2];

	if (!is_active() || (skb->protocol != bpf_htons(ETH_P_IP) && skb->protocol != bpf_htons(ETH_P_IPV6)))
		return 0;
	netns = netns_of(dev);
	if (by_netns ? !chosen(TSDT_CHOICE_NETNS, netns) : netns != own_netns)
		return 0;
	if (!passes_filter(skb, at, way) || (by_device && !is_chosen_device(dev)))
		return 0;
	if (way == TSDT_SEEN_RECEIVED) {
		bpf_core_read(name, sizeof(name), &dev->name);
	} else {
		if (is_stacked(dev) && was_sent_before(as_number(skb)))
			return 0;
		name[0] = *(u64 *)&dev->name[0];
		name[1] = *(u64 *)&dev->name[8];
	}
	return count_by_device(netns, way, name[0], name[1]);
}

static __noinline int sent(u64 *ctx)
{
	struct sk_buff *skb = (void *)ctx[0];

	return count_seen(skb, (void *)ctx[1], skb->network_header, TSDT_SEEN_SENT);
}

// A device that stands for others hands what has come in by these on a second time.
static __noinline int received(u64 *ctx)
{
	struct sk_buff *skb = (void *)ctx[0];

	if (skb->skb_iif)
		return 0;
	return count_seen(skb, BPF_CORE_READ(skb, dev), (u64)skb->data - (u64)skb->head, TSDT_SEEN_RECEIVED);
}

// ---- the programs, of which userspace loads one for each of two places ----
//
// net_dev_start_xmit(skb, dev): on its way into a device's driver, as packet sockets see it.
// netif_receive_skb(skb): come in by a device, before anything else has looked at it.

#define SENT_HEADER(skb) ((u64)(skb)->head + (skb)->network_header)
#define RECEIVED_HEADER(skb) ((u64)(skb)->data)

static __always_inline u16 bits_by_call(u64 address)
{
	u16 bits = 0;

	bpf_probe_read_kernel(&bits, sizeof(bits), (void *)address);
	return bits;
}

#define BITS_BY_CALL(type, header, field) bits_by_call((header) + __builtin_offsetof(struct type, field))

// What is not asked for is out after this: no call, and no register that would have to be saved.
#define SEEN_PROGRAM(name, tracepoint, may_match, then)                     \
	SEC("tp_btf/" #tracepoint)                                          \
	int name(u64 *ctx)                                                  \
	{                                                                   \
		const struct sk_buff *skb = (void *)ctx[0];                 \
                                                                            \
		return (may_match) ? then(ctx) : 0;                         \
	}

#define IPV4_OR_IPV6(bits, header, field)                                                    \
	(skb->protocol == bpf_htons(ETH_P_IP)   ? first_bits4[bits(iphdr, header, field)] :   \
	 skb->protocol == bpf_htons(ETH_P_IPV6) ? first_bits6[bits(ipv6hdr, header, field)] : \
						  0)

SEEN_PROGRAM(sent_by_call, net_dev_start_xmit, IPV4_OR_IPV6(BITS_BY_CALL, SENT_HEADER(skb), daddr), sent)
SEEN_PROGRAM(received_by_call, netif_receive_skb, IPV4_OR_IPV6(BITS_BY_CALL, RECEIVED_HEADER(skb), saddr), received)

#ifndef TSDT_LINUX_5_10
// From 6.2 (a35b9af4ec2c) a pointer may be given a type, by its number in the kernel's BTF: one load instead of a call.
// Userspace puts the numbers of bpf_rdonly_cast and of the type in: to look for the function itself, libbpf would read all
// of the kernel's types at the start.
static __always_inline void *rdonly_cast(u64 address, int type, u64 **ctx)
{
	register void *typed asm("r0");
	register u64 pointer asm("r1") = address;
	register u64 *kept asm("r3") = *ctx; // as in this_cpu_keeping()

	asm volatile("r2 = %[type]; *(u64 *)(r10 - 8) = %[kept]; call %[cast]; %[kept] = *(u64 *)(r10 - 8)"
		     : "=r"(typed), "+r"(pointer), [kept] "+r"(kept)
		     : [type] "i"(type), [cast] "i"(TSDT_RDONLY_CAST)
		     : "r2", "r4", "r5");
	*ctx = kept;
	return typed;
}

#define TYPE_iphdr TSDT_TYPE_IPHDR
#define TYPE_ipv6hdr TSDT_TYPE_IPV6HDR
#define BITS(type, header, field) (*(u16 *)&((struct type *)rdonly_cast(header, TYPE_##type, &ctx))->field)

SEEN_PROGRAM(sent_any, net_dev_start_xmit, IPV4_OR_IPV6(BITS, SENT_HEADER(skb), daddr), sent)
SEEN_PROGRAM(received_any, netif_receive_skb, IPV4_OR_IPV6(BITS, RECEIVED_HEADER(skb), saddr), received)

// No range is one of IPv6: whatever the packet is, these bits only decide whether it gets a closer look.
SEEN_PROGRAM(sent_ipv4, net_dev_start_xmit, first_bits4[BITS(iphdr, SENT_HEADER(skb), daddr)], sent)
SEEN_PROGRAM(received_ipv4, netif_receive_skb, first_bits4[BITS(iphdr, RECEIVED_HEADER(skb), saddr)], received)
#endif
