// SPDX-License-Identifier: GPL-2.0-only
// Whether a legacy rule may be about a packet, going by its addresses, protocol and ports: a second look at what the counters say
// (see ipt_table.h).
#pragma once

#include "ipt_verdict.h"

#define MATCHES 8

// Whether the rule's udp or tcp match allows these ports. Other matches are not asked.
__noinline int match_allows(u64 match_address, u16 sport, u16 dport)
{
	struct xt_entry_match_head match = {};
	struct xt_match *kind;
	u64 name = 0;
	u8 inverted;

	if (!traces_legacy)
		return 1;
	bpf_probe_read_kernel(&match, sizeof(match), (void *)match_address);
	kind = match.match;
	bpf_probe_read_kernel(&name, sizeof(name), (void *)kind + MODULE_FIELD_OFFSET(xt_match, name));
	if (NAME_IS(name, "udp"))
		inverted = match.udp_invflags;
	else if (NAME_IS(name, "tcp"))
		inverted = match.tcp_invflags;
	else
		return 1;
	return (sport >= match.spts[0] && sport <= match.spts[1]) != !!(inverted & XT_INV_SRCPT) &&
	       (dport >= match.dpts[0] && dport <= match.dpts[1]) != !!(inverted & XT_INV_DSTPT);
}

static __always_inline bool ports_allowed(u64 entry, const void *l4, u32 family)
{
	u32 at = ENTRY_SIZE(family), matches = 0;
	u16 ports[2] = {}, target = 0, size;

	if (bpf_probe_read_kernel(ports, sizeof(ports), l4))
		return true;
	bpf_probe_read_kernel(&target, sizeof(target), (void *)(entry + ENTRY(family, target_offset)));
	while (at < target && matches++ < MATCHES) {
		if (!match_allows(entry + at, bpf_ntohs(ports[0]), bpf_ntohs(ports[1])))
			return false;
		size = 0;
		bpf_probe_read_kernel(&size, sizeof(size), (void *)(entry + at));
		if (!size)
			break;
		at += size;
	}
	return true;
}

// Whether the rule's operation and addresses allow what is asked or answered.
static __always_inline bool arp_allowed(struct draft *draft, u64 entry, const void *header)
{
	const struct arpt_arp *rule = &draft->rule_arp.arp;
	struct arp_over_ethernet arp = {};

	bpf_probe_read_kernel(&draft->rule_arp, sizeof(draft->rule_arp), (void *)entry);
	bpf_probe_read_kernel(&arp, sizeof(arp), header);
	if (((arp.operation & rule->arpop_mask) == rule->arpop) == !!(rule->invflags & ARPT_INV_ARPOP))
		return false;
	// The target mangle has written other addresses into the packet.
	if (arp.hardware_length != sizeof(arp.sender_hardware) ||
	    draft->rule_arp.next_offset - draft->rule_arp.target_offset > sizeof(struct arpt_mangle))
		return true;
	return ((arp.sender & rule->smsk) == rule->src) != !!(rule->invflags & ARPT_INV_SRCIP) &&
	       ((arp.target & rule->tmsk) == rule->tgt) != !!(rule->invflags & ARPT_INV_TGTIP);
}

static __always_inline bool mac_allowed(const u8 *mac, const u8 *address, const u8 *mask, bool inverted)
{
	u8 differs = 0;

	for (u32 i = 0; i < 6; i++)
		differs |= (mac[i] ^ address[i]) & mask[i];
	return !differs != inverted;
}

// Whether the rule's protocol and addresses allow this frame. What it says of VLANs and lengths is not asked.
static __always_inline bool bridge_allowed(struct draft *draft, u64 entry, const void *header)
{
	const struct ebt_entry *rule = &draft->rule_bridge;
	struct ethhdr frame = {};

	bpf_probe_read_kernel(&draft->rule_bridge, sizeof(draft->rule_bridge), (void *)entry);
	bpf_probe_read_kernel(&frame, sizeof(frame), header);
	if (!(rule->bitmask & (EBT_NOPROTO | EBT_802_3)) && !(rule->invflags & EBT_IPROTO) &&
	    rule->ethproto != bpf_htons(ETH_P_8021Q) && rule->ethproto != frame.h_proto)
		return false;
	return (!(rule->bitmask & EBT_SOURCEMAC) ||
		mac_allowed(frame.h_source, rule->sourcemac, rule->sourcemsk, rule->invflags & EBT_ISOURCE)) &&
	       (!(rule->bitmask & EBT_DESTMAC) ||
		mac_allowed(frame.h_dest, rule->destmac, rule->destmsk, rule->invflags & EBT_IDEST));
}

// Whether the rule's addresses, protocol and ports allow this packet: a second look, since what moved must not be
// another's.
VERIFIED_ONCE int rule_allows(struct draft *draft, u64 skb_address, u32 hook, u32 family)
{
	struct sk_buff *skb = (struct sk_buff *)skb_address;
	const struct claim *claim;
	void *header;
	u64 entry;

	if (!traces_legacy || !draft)
		return 0;
	claim = &draft->claim;
	entry = entries_of(claim->table, claim->private) + claim->offset;
	header = BPF_CORE_READ(skb, head) + BPF_CORE_READ(skb, network_header);
	if (claim->chain & CHAIN_BUILTIN && (claim->chain & 0xff) != hook)
		return false;
	if (is_bridge_table(claim->table))
		return !claim->number || bridge_allowed(draft, entry, BPF_CORE_READ(skb, head) + BPF_CORE_READ(skb, mac_header));
	if (family == FAMILY_ARP)
		return arp_allowed(draft, entry, header);
	if (family == FAMILY_IPV4) {
		const struct ipt_ip *rule = &draft->rule4;
		struct iphdr ip = {};

		bpf_probe_read_kernel(&draft->rule4, sizeof(draft->rule4), (void *)entry);
		bpf_probe_read_kernel(&ip, sizeof(ip), header);
		if (((ip.saddr & rule->smsk) == rule->src) == !!(rule->invflags & XT_INV_SRCIP) ||
		    ((ip.daddr & rule->dmsk) == rule->dst) == !!(rule->invflags & XT_INV_DSTIP) ||
		    (rule->proto && (rule->proto == ip.protocol) == !!(rule->invflags & XT_INV_PROTO)))
			return false;
		if (ip.frag_off & bpf_htons(IP_OFFSET_MASK))
			return true;
		return ports_allowed(entry, header + ip.ihl * 4, family);
	} else {
		const struct ip6t_ip6 *rule = &draft->rule6;
		struct ipv6hdr ip = {};
		u64 differs_src = 0, differs_dst = 0;

		bpf_probe_read_kernel(&draft->rule6, sizeof(draft->rule6), (void *)entry);
		bpf_probe_read_kernel(&ip, sizeof(ip), header);
		for (u32 i = 0; i < 2; i++) {
			differs_src |= (((u64 *)ip.saddr)[i] & rule->smsk[i]) ^ rule->src[i];
			differs_dst |= (((u64 *)ip.daddr)[i] & rule->dmsk[i]) ^ rule->dst[i];
		}
		if (!differs_src == !!(rule->invflags & XT_INV_SRCIP) || !differs_dst == !!(rule->invflags & XT_INV_DSTIP))
			return false;
		if (ip.nexthdr != IPPROTO_TCP && ip.nexthdr != IPPROTO_UDP)
			return true; // the ports are further on
		return ports_allowed(entry, header + sizeof(ip), family);
	}
}
