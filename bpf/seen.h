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

#define READ_BY_CALL(pointer)                                                     \
	({                                                                        \
		u16 bits__ = 0;                                                   \
		bpf_probe_read_kernel(&bits__, sizeof(bits__), (void *)(pointer)); \
		bits__;                                                           \
	})
#ifdef TSDT_KPROBES
#define FIRST_BITS(type, header, field) READ_BY_CALL((header) + __builtin_offsetof(struct type, field))
#else
// Types of the kernel by their number in its BTF; 0: a pointer may not be given a type here, which kernels allow from 6.2
// (a35b9af4ec2c). Then it is one load, before it is a call.
const volatile __u32 iphdr_type, ipv6hdr_type;

extern void *bpf_rdonly_cast(void *pointer, __u32 type) __ksym __weak;

#define FIRST_BITS(type, header, field)                                                                              \
	(type##_type ? *(u16 *)&((struct type *)bpf_rdonly_cast((void *)(header), type##_type))->field : \
		       READ_BY_CALL((header) + __builtin_offsetof(struct type, field)))
#endif

static __always_inline bool was_sent_before(struct sk_buff *skb)
{
	u64 address = (u64)skb;
	struct sent now = {.fingerprint = fingerprint_of(skb), .mono_ns = bpf_ktime_get_ns()};
	struct sent *before = bpf_map_lookup_elem(&sent_before, &address);

	if (before && before->fingerprint == now.fingerprint && now.mono_ns - before->mono_ns < SENT_AGAIN_NS)
		return true;
	bpf_map_update_elem(&sent_before, &address, &now, BPF_ANY);
	return false;
}

// Counts the packet if it matches the filter. `at`: where its IP header is, from skb->head.
__noinline int count_seen(u64 skb_address, u64 dev_address, u32 at, u32 way)
{
	struct sk_buff *skb = (struct sk_buff *)skb_address;
	struct net_device *dev = (struct net_device *)dev_address;
	struct window window = {.head = (u64)BPF_CORE_READ(skb, head), .end = BPF_CORE_READ(skb, tail), .at = at};
	struct tsdt_headers headers = {};
	struct tsdt_seen_key key = {.way = way};
	struct tsdt_seen *counted, first = {};

	if (!is_active())
		return 0;
	read_headers(&headers, &window);
	if (!(ways_of(&headers, headers.proto) & (way == TSDT_SEEN_SENT ? GOES_TO : COMES_FROM)))
		return 0;
	key.netns = BPF_CORE_READ(dev, nd_net.net, ns.inum);
	if (by_netns ? !chosen(TSDT_CHOICE_NETNS, key.netns) : key.netns != own_netns)
		return 0;
	device_name(key.dev, dev);
	if ((by_device && !chosen_device(key.dev)) || (way == TSDT_SEEN_SENT && was_sent_before(skb)))
		return 0;
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

// The short way out of both programs: no call, and nothing that a register would have to be saved for.
#define MAY_MATCH(protocol, header, field)                                                                    \
	((protocol) == bpf_htons(ETH_P_IP)   ? first_bits4[FIRST_BITS(iphdr, header, field)] :               \
	 (protocol) == bpf_htons(ETH_P_IPV6) ? first_bits6[FIRST_BITS(ipv6hdr, header, field)] :             \
						  0)

static __noinline int sent(u64 *ctx)
{
	struct sk_buff *skb = (void *)ctx[0];

	return count_seen(as_number(skb), as_number((void *)ctx[1]), skb->network_header, TSDT_SEEN_SENT);
}

// On its way into a device's driver, as packet sockets see it.
SEC("tp_btf/net_dev_start_xmit")
int on_net_dev_start_xmit(u64 *ctx) // struct sk_buff *skb, struct net_device *dev
{
	const struct sk_buff *skb = (void *)ctx[0];

	if (!MAY_MATCH(skb->protocol, (u64)skb->head + skb->network_header, daddr))
		return 0;
	return sent(ctx);
}

// A device that stands for others hands what has come in by these on a second time.
static __noinline int received(u64 *ctx)
{
	struct sk_buff *skb = (void *)ctx[0];

	if (skb->skb_iif)
		return 0;
	return count_seen(as_number(skb), as_number(skb->dev), (u64)skb->data - (u64)skb->head, TSDT_SEEN_RECEIVED);
}

// Come in by a device, before anything else has looked at it.
SEC("tp_btf/netif_receive_skb")
int on_netif_receive_skb(u64 *ctx) // struct sk_buff *skb
{
	const struct sk_buff *skb = (void *)ctx[0];

	if (!MAY_MATCH(skb->protocol, (u64)skb->data, saddr))
		return 0;
	return received(ctx);
}
