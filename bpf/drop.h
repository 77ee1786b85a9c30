// SPDX-License-Identifier: GPL-2.0-only
// Where packets die: the one program that emits. It asks, in this order: is the packet one that the user
// asked for? who dropped it (what did the netfilter programs leave in the stash)? then it counts, and
// sends one record. Everything that takes long happens once per cause.
#pragma once

#include "maps.h"
#include "packet.h"
#include "text.h"
#include "nft_rule.h"
#include "ipt_match.h"
#include "verdict_giver.h"
#ifndef TSDT_LINUX_5_10
#include "hook_function.h"
#include "queue.h"
#endif

// Userspace loads this object again when a module appears whose types were not known before, and hands
// over from one instance to the other by writing `control`.
const volatile __u32 instance;
const volatile bool match_all;  // no range for the remote side: every one
const volatile bool match_to;   // packets to the remote side
const volatile bool match_from; // packets from there
const volatile bool by_local;   // the other side is in `locals4` or `locals6`
const volatile bool by_proto;   // is in `choices`, as are the next ones
const volatile bool by_port;
const volatile bool by_reason;
const volatile bool by_netns;
const volatile bool by_device;  // is in `devices`
const volatile bool rules_only; // a rule or a policy dropped it
const volatile bool inferred;   // which rule dropped a packet, userspace infers: here it may be any that netfilter dropped

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, u32);
} control SEC(".maps");

struct range4 {
	u32 prefix;
	u8 address[4];
};
struct range6 {
	u32 prefix;
	u8 address[16];
};

#define RANGES(name, range)                           \
	struct {                                      \
		__uint(type, BPF_MAP_TYPE_LPM_TRIE);  \
		__uint(map_flags, BPF_F_NO_PREALLOC); \
		__uint(max_entries, 1024);            \
		__type(key, struct range);            \
		__type(value, u8);                    \
	} name SEC(".maps")

RANGES(ranges4, range4); // the remote side: --dst
RANGES(ranges6, range6);
RANGES(locals4, range4); // the local side: --src
RANGES(locals6, range6);

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 4096);
	__type(key, struct tsdt_choice_key);
	__type(value, u8);
} choices SEC(".maps");

struct device {
	char name[TSDT_IFNAME_LEN];
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 64);
	__type(key, struct device);
	__type(value, u8);
} devices SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, struct tsdt_cause_key);
	__type(value, struct tsdt_cause);
} causes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8192);
	__type(key, struct tsdt_flow_key);
	__type(value, u64);
} flows SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, TSDT_LOST_MAX);
	__type(key, u32);
	__type(value, u64);
} lost SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, u32);
} last_cause_id SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4 * 1024 * 1024);
} events SEC(".maps");

// The function that a location is in, where that matters.
enum place {
	PLACE_OTHER = 1,
	PLACE_NFT_DO_CHAIN = 2,
	PLACE_NF_HOOK_SLOW = 3,
	PLACE_NF_QUEUE = 4,
	PLACE_REINJECT = 5,
	PLACE_BRIDGE_PREROUTING = 6, // nf_hook_slow's part there; but not all that dies in it is netfilter's
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, u64);
	__type(value, u32);
} places SEC(".maps");

struct scratch {
	struct tsdt_drop drop;
	struct verdict verdict;
	struct tsdt_cause cause;
	struct tsdt_flow_key flow;
	struct path path;
	u64 in_task; // not in an interrupt or a softirq
	u32 in_use;
	char symbol[TSDT_SYMBOL_LEN];
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, EMITTERS);
	__type(key, u32);
	__type(value, struct scratch);
} scratches SEC(".maps");

static __always_inline struct scratch *this_cpu_scratch(u32 emitter)
{
	return bpf_map_lookup_elem(&scratches, &emitter);
}

#ifdef TSDT_LINUX_5_10
static __always_inline struct path *path_of(u32 owner)
{
	struct scratch *scratch = this_cpu_scratch(owner);

	return scratch ? &scratch->path : NULL;
}
#endif

static const struct tsdt_cause no_cause;

static __always_inline void count_lost(u32 where)
{
	u64 *count = bpf_map_lookup_elem(&lost, &where);

	if (count)
		__sync_fetch_and_add(count, 1);
}

// The verdict that a table left for this packet, taken out whether the packet matches the filter or not, since its skb
// will be used again for another one.
static __always_inline const struct verdict *take_verdict(struct scratch *scratch, struct sk_buff *skb)
{
	u64 key = (u64)skb;
	struct verdict *waiting = bpf_map_lookup_elem(&verdicts, &key);

	if (!waiting)
		return NULL;
	scratch->verdict = *waiting;
	bpf_map_delete_elem(&verdicts, &key);
	return is_about(&scratch->verdict, skb) ? &scratch->verdict : NULL;
}

static __always_inline bool in_ranges(void *map4, void *map6, const u8 *address, u8 family)
{
	if (family == 4) {
		struct range4 key = {.prefix = 32};

		__builtin_memcpy(key.address, address, 4);
		return bpf_map_lookup_elem(map4, &key);
	} else {
		struct range6 key = {.prefix = 128};

		__builtin_memcpy(key.address, address, 16);
		return bpf_map_lookup_elem(map6, &key);
	}
}

static __always_inline bool is_remote(const u8 *address, u8 family)
{
	return match_all || in_ranges(&ranges4, &ranges6, address, family);
}

static __always_inline bool is_local(const u8 *address, u8 family)
{
	return !by_local || in_ranges(&locals4, &locals6, address, family);
}

static __always_inline bool chosen(u32 what, u32 value)
{
	struct tsdt_choice_key key = {.what = what, .value = value};

	return bpf_map_lookup_elem(&choices, &key);
}

enum { GOES_TO = 1, COMES_FROM = 2 }; // the remote side

// Whether the packet with these headers is one that the user asked for, and which way it goes: 0, GOES_TO, COMES_FROM or
// both. `also` is another protocol that it may pass for. Where ports are not known since the packet lacks them, though
// others of its datagram have them, the addresses decide.
VERIFIED_ONCE int ways_of(const struct tsdt_headers *headers, u32 also)
{
	u32 ways = 0;

	if (!headers)
		return 0;
	if (!headers->family) // no addresses, no protocol, no ports: only who asks for everything means it
		return match_all && !by_local && !by_proto && !by_port ? GOES_TO | COMES_FROM : 0;
	if (by_proto && !chosen(TSDT_CHOICE_PROTO, headers->proto) && !chosen(TSDT_CHOICE_PROTO, also) &&
	    !(headers->no_ports && is_extension_header(headers->proto))) // which one is not known
		return 0;
	if (by_port && !headers->no_ports &&
	    !(headers->has_ports && (chosen(TSDT_CHOICE_PORT, bpf_ntohs(headers->sport)) ||
				     chosen(TSDT_CHOICE_PORT, bpf_ntohs(headers->dport)))))
		return 0;
	if (is_remote(headers->daddr, headers->family) && is_local(headers->saddr, headers->family))
		ways |= GOES_TO;
	if (is_remote(headers->saddr, headers->family) && is_local(headers->daddr, headers->family))
		ways |= COMES_FROM;
	return ways;
}

// Whether the packet is one that the user asked for, as far as it says so itself, or the packet does that it quotes: an
// ICMP error goes the other way than what it is about.
VERIFIED_ONCE int wanted(struct tsdt_drop *drop)
{
	struct tsdt_headers own;
	u32 ways, quoted;

	if (!drop || (by_reason && !chosen(TSDT_CHOICE_REASON, drop->key.reason)))
		return 0;
	if (drop->is_arp && by_proto) // it is no IP packet
		return 0;
	__builtin_memcpy(own.saddr, drop->saddr, sizeof(own.saddr));
	__builtin_memcpy(own.daddr, drop->daddr, sizeof(own.daddr));
	own.sport = drop->sport;
	own.dport = drop->dport;
	own.family = drop->is_arp ? 4 : drop->family;
	own.proto = drop->proto;
	own.has_ports = drop->has_ports;
	own.no_ports = drop->no_ports;
	ways = ways_of(&own, own.proto);
	if (drop->quoted.family) {
		quoted = ways_of(&drop->quoted, own.proto);
		if (quoted & GOES_TO)
			ways |= COMES_FROM;
		if (quoted & COMES_FROM)
			ways |= GOES_TO;
	}
	if (!match_all || by_local) { // else there is no remote side
		drop->to_range = !!(ways & GOES_TO);
		drop->from_range = !!(ways & COMES_FROM);
	}
	return (match_to && ways & GOES_TO) || (match_from && ways & COMES_FROM);
}

static __always_inline bool chosen_device(const char *name)
{
	struct device key;

	__builtin_memcpy(key.name, name, sizeof(key.name));
	return bpf_map_lookup_elem(&devices, &key);
}

// What only is known once it is known who dropped the packet: netfilter's state tells the namespace and both devices. A
// namespace or a device that is not known is not the one that the user asked for.
VERIFIED_ONCE int wanted_there(struct tsdt_drop *drop)
{
	if (!drop)
		return 0;
	if (rules_only && (drop->key.source < TSDT_SOURCE_NFT_RULE || drop->key.source > TSDT_SOURCE_LEGACY_POLICY) &&
	    !(inferred && drop->key.source == TSDT_SOURCE_NETFILTER))
		return 0;
	if (by_netns && !chosen(TSDT_CHOICE_NETNS, drop->key.netns))
		return 0;
	return !by_device || chosen_device(drop->in_dev) || chosen_device(drop->out_dev);
}

#ifdef TSDT_LINUX_5_10
// 5.10 prints no symbols from BPF. Address and size; a size of 0: not known.
const volatile __u64 code_of_nf_hook_slow[2], code_of_nf_queue[2], code_of_nf_reinject[2];

static __always_inline bool lies_in(u64 location, const volatile __u64 *code)
{
	return location - code[0] < code[1];
}
#endif

VERIFIED_ONCE int place_of(u64 location, struct scratch *scratch)
{
	u32 *known = bpf_map_lookup_elem(&places, &location);
	u32 place = PLACE_OTHER;

	if (known)
		return *known;
	if (!scratch)
		return place;
#ifdef TSDT_LINUX_5_10
	if (lies_in(location, code_of_nf_hook_slow))
		place = PLACE_NF_HOOK_SLOW;
	else if (lies_in(location, code_of_nf_queue))
		place = PLACE_NF_QUEUE;
	else if (lies_in(location, code_of_nf_reinject))
		place = PLACE_REINJECT;
#endif
	compat_symbol(scratch->symbol, sizeof(scratch->symbol), location);
	if (begins_with(scratch->symbol, "nft_do_chain+", 13))
		place = PLACE_NFT_DO_CHAIN;
	else if (begins_with(scratch->symbol, "nf_hook_slow+", 13))
		place = PLACE_NF_HOOK_SLOW;
	else if (begins_with(scratch->symbol, "nf_queue+", 9))
		place = PLACE_NF_QUEUE;
	else if (begins_with(scratch->symbol, "nf_reinject+", 12) || begins_with(scratch->symbol, "nfqnl_reinject+", 15))
		place = PLACE_REINJECT;
	else if (begins_with(scratch->symbol, "br_handle_frame+", 16) || begins_with(scratch->symbol, "nf_hook_bridge_pre", 18))
		place = PLACE_BRIDGE_PREROUTING;
	bpf_map_update_elem(&places, &location, &place, BPF_ANY);
	return place;
}

static __always_inline void device_name(char *out, struct net_device *dev)
{
	if (dev)
		bpf_probe_read_kernel_str(out, TSDT_IFNAME_LEN, BPF_CORE_READ(dev, name));
}

static __always_inline u32 netns_of(struct net_device *dev)
{
	return dev ? BPF_CORE_READ(dev, nd_net.net, ns.inum) : 0;
}

// The device of a packet, if it has one. Where packets wait in a tree (TCP segments that came out of order, fragments), a
// pointer of the tree takes the place of skb->dev, and leads to another packet, in which any bytes would do for a name. A
// device belongs to a namespace, whose own loopback device belongs to it as well.
static __always_inline struct net_device *device_of(struct sk_buff *skb)
{
	struct net_device *dev = BPF_CORE_READ(skb, dev);
	struct net *net = dev ? BPF_CORE_READ(dev, nd_net.net) : NULL;

	return net && BPF_CORE_READ(net, loopback_dev, nd_net.net) == net ? dev : NULL;
}

// What netfilter's state says of the packet: the hook and both devices.
static __always_inline void apply_state(struct scratch *scratch, const struct nf_hook_state *state)
{
	struct tsdt_cause_key *key = &scratch->drop.key;

	key->hook = BPF_CORE_READ(state, hook);
	key->pf = BPF_CORE_READ(state, pf);
	key->netns = BPF_CORE_READ(state, net, ns.inum);
	scratch->path.gencursor = gencursor_of(state);
	device_name(scratch->drop.in_dev, BPF_CORE_READ(state, in));
	device_name(scratch->drop.out_dev, BPF_CORE_READ(state, out));
}

// Where nft_do_chain frees what a rule drops, and what a policy drops: learnt from the drops whose expression is known.
// Userspace forgets them where the module has gone (kprobes do not hold it).
__u64 rule_site, policy_site;

// No expression is known to have dropped the packet: may the policy of this chain have done so? The expression may be
// one that is not traced, or not yet, or its program may not have been run, so all that is known must agree. `suspect`: a
// match on the way may have dropped the packet (struct path).
static __noinline bool policy_may_drop(u64 chain_address, const struct tsdt_cause_key *key, u32 place, u64 suspect)
{
	u64 base = chain_address - MODULE_FIELD_OFFSET(nft_base_chain, chain);

	if (*(volatile u32 *)&expressions_loaded != *(volatile u32 *)&expressions_traced)
		return false;
	if (MODULE_READ(nft_base_chain, base, policy) != NF_DROP ||
	    MODULE_READ(nft_base_chain, base, ops.hooknum) != key->hook)
		return false;
	if (place != PLACE_NFT_DO_CHAIN || !rule_site)
		return !suspect;
	if (key->location != rule_site) {
		policy_site = key->location;
		return true;
	}
	return !policy_site && !suspect; // a compiler might make one place of the two
}

// nf_tables: what the trail of the traversal `pkt` says. The hook is known already.
VERIFIED_ONCE int attribute_nft(struct scratch *scratch, u64 pkt, u32 place)
{
	struct tsdt_cause_key *key;
	u64 base_chain;

	if (!traces_nft || !scratch)
		return 0;
	key = &scratch->drop.key;
	key->source = TSDT_SOURCE_NETFILTER;
	key->unknown = TSDT_UNKNOWN_TRAVERSAL_LOST;
	key->rule = 0;
	key->generation = generation(TSDT_GENERATION_NF_TABLES);
	find_segments(&scratch->path, scratch->in_task);
	base_chain = read_trail(pkt, &scratch->path);
	if (!base_chain)
		return 0;
	if (!is_base_chain(base_chain, key->hook))
		return 0;
	if (compat_misses_ends && scratch->path.pending && !scratch->path.dropped_by)
		return 0;
	if (scratch->path.dropped_by) {
		if (!scratch->path.complete)
			return 0;
		key->source = TSDT_SOURCE_NFT_RULE;
		key->unknown = TSDT_UNKNOWN_NONE;
		key->rule = scratch->path.dropped_by;
		key->path_hash = scratch->path.hash;
		if (scratch->path.outdated)
			key->generation = GENERATION_PAST;
		// Memory of rules that are gone may hold others before the generation says so.
		if (scratch->path.outdated || is_changing(TSDT_GENERATION_NF_TABLES)) {
			describe_path(&scratch->path, &scratch->cause);
			key->path_hash ^= identity_of(&scratch->cause);
		}
		if (place == PLACE_NFT_DO_CHAIN)
			rule_site = key->location;
		return 0;
	}
	key->unknown = TSDT_UNKNOWN_EXPRESSION;
	find_suspect_on(&scratch->path);
	if (policy_may_drop(base_chain, key, place, scratch->path.suspect)) {
		key->source = TSDT_SOURCE_NFT_POLICY;
		key->unknown = TSDT_UNKNOWN_NONE;
		key->rule = base_chain;
	}
	return 0;
}

// nft_do_chain is freeing the packet itself (6.7; in Debian's 6.1 too), so its traversal is still under way, and
// its nft_pktinfo is alive: the newest one in the trail that belongs to this skb.
VERIFIED_ONCE int attribute_live_traversal(struct scratch *scratch, u64 skb)
{
	u64 pkt;

	if (!traces_nft || !scratch)
		return 0;
	scratch->drop.key.source = TSDT_SOURCE_NETFILTER;
	scratch->drop.key.unknown = TSDT_UNKNOWN_TRAVERSAL_LOST;
	find_segments(&scratch->path, scratch->in_task);
	pkt = live_traversal(skb, &scratch->path);
	if (!pkt)
		return 0;
	apply_state(scratch, MODULE_READ(nft_pktinfo, pkt, state));
	return attribute_nft(scratch, pkt, PLACE_NFT_DO_CHAIN);
}

// What tells a legacy rule from others that were at its address at another time: while rulesets change, generations do not.
static __always_inline u64 identity_of_legacy(const struct verdict *verdict)
{
	const u64 *chain = (const u64 *)verdict->chain;
	u64 hash = verdict->table_address ^ *(const u64 *)verdict->table ^ (u64)verdict->by_match << 32 ^ verdict->number;

	for (u32 i = 0; i < 4; i++) { // chains' names are no longer
		hash = (hash ^ chain[i]) * 0x9e3779b97f4a7c15ULL;
		hash ^= hash >> 29;
	}
	return hash;
}

VERIFIED_ONCE int attribute_verdict(struct scratch *scratch, const struct verdict *verdict)
{
	struct tsdt_cause_key *key;
	struct tsdt_drop *drop;

	if (!scratch || !verdict)
		return 0;
	drop = &scratch->drop;
	key = &drop->key;

	key->source = verdict->source;
	key->unknown = verdict->unknown;
	key->hook = verdict->hook;
	key->pf = verdict->pf;
	key->netns = verdict->netns;
	key->rule = verdict->rule;
	key->offset = verdict->offset;
	key->generation = verdict->generation;
	key->queue = verdict->queue;
	if (traces_legacy && (key->source == TSDT_SOURCE_LEGACY_RULE || key->source == TSDT_SOURCE_LEGACY_POLICY))
		key->path_hash = identity_of_legacy(verdict);
	__builtin_memcpy(drop->jumpstack, verdict->jumpstack, sizeof(drop->jumpstack));
	device_name(drop->in_dev, verdict->in);
	device_name(drop->out_dev, verdict->out);
	return 0;
}

#ifdef TSDT_LINUX_5_10
// Functions at hooks that have no rules, and packets that are queued for programs in userspace, are not followed.
static __always_inline const struct verdict *attribute_queued(struct scratch *scratch, struct sk_buff *skb, u64 address)
{
	scratch->drop.key.source = TSDT_SOURCE_NETFILTER;
	scratch->drop.key.unknown = TSDT_UNKNOWN_QUEUE;
	return NULL;
}
static __always_inline void find_hook_of_drop(unsigned long long *ctx, struct tsdt_drop *drop, u32 emitter, u64 location,
					      u32 below)
{
}
static __always_inline void list_hook_functions(struct tsdt_cause *cause, u64 skb)
{
	barrier_var(skb); // else add_cause's callers would not pass it, which the verifier takes for a mistake
}
#else
// The packet dies on its way to a program in userspace.
__noinline int attribute_queue(struct scratch *scratch, u64 skb)
{
	enum { ESRCH = 3, ENOSPC = 28, ENOBUFS = 105 };
	struct queueing *here = this_cpu_queueing();
	struct tsdt_cause_key *key;
	u32 why = TSDT_QUEUE_REFUSED;

	if (!scratch)
		return 0;
	key = &scratch->drop.key;
	key->source = TSDT_SOURCE_NETFILTER;
	key->unknown = TSDT_UNKNOWN_QUEUE;
	key->queue = TSDT_QUEUE_UNKNOWN;
	if (here->skb != skb)
		return 0;
	here->skb = 0;
	apply_state(scratch, (struct nf_hook_state *)here->state);
	if (traces_nft && here->queued == skb && here->pkt) {
		here->queued = 0;
		attribute_nft(scratch, here->pkt, PLACE_NF_QUEUE);
		if (key->source == TSDT_SOURCE_NETFILTER)
			key->unknown = TSDT_UNKNOWN_QUEUE;
	}
	if (here->error == -ESRCH || (!here->error && *(volatile __u32 *)&queue_handler_absent))
		why = TSDT_QUEUE_NOBODY;
	else if (here->error == -ENOBUFS || here->error == -ENOSPC)
		why = TSDT_QUEUE_FULL;
	else if (!here->error)
		why = TSDT_QUEUE_UNKNOWN;
	key->queue = why | TSDT_QUEUE_NUMBERED | here->number;
	return 0;
}

// The same, with the rule of a legacy table that handed it over.
static __always_inline const struct verdict *attribute_queued(struct scratch *scratch, struct sk_buff *skb, u64 address)
{
	const struct verdict *verdict = NULL;
	struct tsdt_drop *drop = &scratch->drop;

	attribute_queue(scratch, address);
	if (traces_legacy && drop->key.queue & TSDT_QUEUE_NUMBERED && find_queue_rule(address)) {
		leave_queue_verdict(address, drop->key.queue);
		verdict = take_verdict(scratch, skb);
	}
	if (verdict)
		attribute_verdict(scratch, verdict);
	return verdict;
}

// At which hook nf_hook_slow has dropped the packet: by who called it.
static __always_inline void find_hook_of_drop(unsigned long long *ctx, struct tsdt_drop *drop, u32 emitter, u64 location,
					      u32 below)
{
	struct hook_search *search = bpf_map_lookup_elem(&hook_searches, &emitter);
	u32 hook;

	if (!search || bpf_get_stack(ctx, search->frames, sizeof(search->frames), 0) <= 0)
		return;
	hook = find_hook(emitter, location, below);
	if (!hook)
		return;
	drop->key.pf = hook >> 8;
	drop->key.hook = hook & 0xff;
}
#endif

// Without netfilter's state, skb->dev is where the packet came in or where it was about to leave.
VERIFIED_ONCE int attribute_devices(struct scratch *scratch, u64 skb_address)
{
	enum { RTN_UNICAST = 1 };
	struct sk_buff *skb = (struct sk_buff *)skb_address;
	struct net_device *dev = device_of(skb);
	u64 dst = BPF_CORE_READ(skb, _skb_refdst) & ~1UL; // SKB_DST_NOREF
	struct tsdt_drop *drop;

	if (!scratch)
		return 0;
	drop = &scratch->drop;
	if (!drop->in_dev[0] && !drop->out_dev[0] && dev) {
		if (drop->received && BPF_CORE_READ(dev, ifindex) == BPF_CORE_READ(skb, skb_iif))
			device_name(drop->in_dev, dev);
		else
			device_name(drop->out_dev, dev);
	}
	// What dies while it is forwarded is still at the device that it came in by. (At a hook the state says all; `reject`
	// gives a packet the route of its answer.)
	if (drop->key.hook == 0xff && drop->in_dev[0] && !drop->out_dev[0] && drop->family == 4 && dst &&
	    BPF_CORE_READ((struct rtable *)dst, rt_type) == RTN_UNICAST) {
		struct net_device *out = BPF_CORE_READ((struct dst_entry *)dst, dev);

		if (out)
			device_name(drop->out_dev, out);
	}
	if (!drop->key.netns)
		drop->key.netns = netns_of(dev);
	if (!drop->key.netns && BPF_CORE_READ(skb, sk))
		drop->key.netns = BPF_CORE_READ(skb, sk, __sk_common.skc_net.net, ns.inum);
	if (!drop->key.netns && dst)
		drop->key.netns = netns_of(BPF_CORE_READ((struct dst_entry *)dst, dev));
	return 0;
}

// First met: describes the cause and enters it in the map. (Map keys and values must come out of a map before 6.2,
// so this function finds the scratch space itself.)
__noinline int add_cause(u32 emitter, bool with_verdict, u64 skb)
{
	struct scratch *scratch = this_cpu_scratch(emitter);
	const struct verdict *verdict;
	struct tsdt_cause *cause;
	u32 zero = 0;
	u32 *last_id = bpf_map_lookup_elem(&last_cause_id, &zero);

	if (!scratch || !last_id)
		return 0;
	verdict = &scratch->verdict;
	cause = &scratch->cause;
	bpf_probe_read_kernel(cause, sizeof(*cause), &no_cause);
	cause->key = scratch->drop.key;
	cause->first_ns = scratch->drop.mono_ns;
	cause->id = compat_next_id(last_id);
	compat_symbol(cause->location, sizeof(cause->location), cause->key.location);
	if (traces_nft && cause->key.source == TSDT_SOURCE_NFT_RULE) {
		describe_path(&scratch->path, cause);
	} else if (traces_nft && cause->key.source == TSDT_SOURCE_NFT_POLICY) {
		describe_table(cause->key.rule, cause);
		describe_chain(cause->key.rule, &cause->step[0]);
		cause->steps = 1;
	} else if (cause->key.source == TSDT_SOURCE_HOOK_FUNCTION) {
		compat_symbol(cause->step[0].chain, sizeof(cause->step[0].chain), cause->key.rule);
		cause->steps = 1;
		bpf_probe_read_kernel_str(cause->table, sizeof(cause->table), verdict->table);
	} else if (cause->key.unknown == COMPAT_UNKNOWN_UNSEEN && cause->key.hook != 0xff &&
		   place_of(cause->key.location, scratch) == PLACE_NF_HOOK_SLOW) {
		list_hook_functions(cause, skb);
	} else if (traces_nft && cause->key.unknown == TSDT_UNKNOWN_EXPRESSION && scratch->path.suspect) {
		name_function(&cause->step[0], scratch->path.suspect);
		cause->steps = 1;
	} else if (with_verdict) {
		cause->family = verdict->family;
		bpf_probe_read_kernel_str(cause->table, sizeof(cause->table), verdict->table);
		if (verdict->named) {
			bpf_probe_read_kernel_str(cause->step[0].chain, sizeof(cause->step[0].chain), verdict->chain);
			cause->step[0].number = verdict->number;
			cause->step[0].by_match = verdict->by_match;
			cause->steps = 1;
		} else if (traces_legacy && cause->key.unknown == TSDT_UNKNOWN_NO_COUNTER) {
			list_matches(cause, verdict);
		}
	}
	// Another CPU may have been faster: then its entry, and its id, stand.
	bpf_map_update_elem(&causes, &cause->key, cause, BPF_NOEXIST);
	return 0;
}

__noinline int count_flow(u32 emitter)
{
	struct scratch *scratch = this_cpu_scratch(emitter);
	struct tsdt_flow_key *key;
	struct tsdt_drop *drop;
	u64 one = 1, *count;

	if (!scratch)
		return 0;
	drop = &scratch->drop;
	key = &scratch->flow;
	__builtin_memcpy(key->saddr, drop->saddr, sizeof(key->saddr));
	__builtin_memcpy(key->daddr, drop->daddr, sizeof(key->daddr));
	key->cause_id = drop->cause_id;
	key->sport = drop->sport;
	key->dport = drop->dport;
	key->family = drop->family;
	key->proto = drop->proto;
	count = bpf_map_lookup_elem(&flows, key);
	if (!count && bpf_map_update_elem(&flows, key, &one, BPF_NOEXIST)) {
		count = bpf_map_lookup_elem(&flows, key);
		if (!count)
			count_lost(TSDT_LOST_FLOW);
	}
	if (count)
		__sync_fetch_and_add(count, 1);
	return 0;
}

#ifndef TSDT_LINUX_5_10
// The packets that on_kfree_skb has handled, until on_kfree_skb_again has taken note. More than one: between the two
// programs others may run on this CPU, and (where the kernel is preemptible) the process may be moved to another one.
#define HANDLED 16
struct handled {
	u64 skb[HANDLED];
};
static struct handled handled[TSDT_MAX_CPUS];
__u64 stood_in; // how often on_kfree_skb_again has stood in for on_kfree_skb

static __always_inline struct handled *handled_on(u32 cpu)
{
	return &handled[cpu & (TSDT_MAX_CPUS - 1)];
}

// Where a packet is looked for first.
static __always_inline u32 handled_slot(u64 skb)
{
	return skb * 0x9e3779b97f4a7c15ULL >> 60;
}

// That place is taken.
static __noinline int add_handled(struct handled *here, u64 skb)
{
	for (u32 i = 0; i < HANDLED; i++) {
		if (!here->skb[i]) {
			here->skb[i] = skb;
			return 0;
		}
	}
	// So many are not under way at once: of these the second program has not been run.
	__builtin_memset(here, 0, sizeof(*here));
	here->skb[0] = skb;
	return 0;
}

struct handled_search {
	u64 skb;
	u32 found;
};

static long find_handled(u32 cpu, struct handled_search *search)
{
	struct handled *there = handled_on(cpu);

	for (u32 i = 0; i < HANDLED; i++) {
		if (there->skb[i] == search->skb) {
			there->skb[i] = 0;
			search->found = 1;
			return 1;
		}
	}
	return 0;
}

// Whether on_kfree_skb has handled the packet, here or on another CPU.
static __noinline int was_handled(u64 skb)
{
	struct handled_search search = {.skb = skb};

	compat_search_all_cpus(cpus, find_handled, &search);
	return search.found;
}
#endif

#ifdef TSDT_LINUX_5_10
#define reason_of(ctx, skb) compat_kfree_skb_reason(ctx)
#else
// All that a queue refuses dies of one reason; which one of the queue's own it is, newer kernels tell at a trace point, on the
// same CPU and just before.
const volatile __u32 queue_refused; // that one reason; 0: no such trace point

struct refusal {
	u64 skb;
	u64 fingerprint; // of the packet: it may not have been freed then, since somebody else held it, too
	u64 reason;
};
static struct refusal refusals[TSDT_MAX_CPUS];

static __always_inline struct refusal *this_cpu_refusal(void)
{
	return &refusals[bpf_get_smp_processor_id() & (TSDT_MAX_CPUS - 1)];
}

SEC("tp_btf/qdisc_drop")
int BPF_PROG(on_qdisc_drop, const void *qdisc, const void *queue, const void *device, struct sk_buff *skb, u32 reason)
{
	struct refusal *refusal = this_cpu_refusal();

	refusal->skb = as_number(skb);
	refusal->fingerprint = fingerprint_of(skb);
	refusal->reason = reason;
	return 0;
}

// Where nothing was told of this packet, the kernel's one word for all of them stands.
static __always_inline u32 reason_of(unsigned long long *ctx, struct sk_buff *skb)
{
	struct refusal *refusal = this_cpu_refusal();
	u32 reason = compat_kfree_skb_reason(ctx);

	if (!queue_refused || reason != queue_refused || refusal->skb != as_number(skb))
		return reason;
	refusal->skb = 0;
	return refusal->fingerprint == fingerprint_of(skb) ? refusal->reason : reason;
}
#endif

static __always_inline bool is_active(void)
{
	u32 zero = 0;
	u32 *active = bpf_map_lookup_elem(&control, &zero);

	return active && *active == instance;
}

static __always_inline int packet_dies(unsigned long long *ctx, struct scratch *scratch, u32 emitter,
				       struct sk_buff *skb, u64 location)
{
	const struct verdict *verdict;
	struct tsdt_cause *cause;
	struct tsdt_drop *drop;
	u64 address;
	u32 place;

	address = as_number(skb);
	verdict = take_verdict(scratch, skb);
	drop = &scratch->drop;
	__builtin_memset(drop, 0, sizeof(*drop));
	drop->key.reason = reason_of(ctx, skb);
	read_packet(drop, address);
	if (!wanted(drop))
		return 0;

	drop->mono_ns = bpf_ktime_get_ns();
	drop->cpu = bpf_get_smp_processor_id();
	drop->key.location = location;
	drop->key.hook = 0xff;
	scratch->in_task = compat_in_task(ctx);
	place = place_of(location, scratch);
	if (place == PLACE_BRIDGE_PREROUTING &&
	    !(verdict && verdict->pf == NFPROTO_BRIDGE && verdict->hook == NF_BR_PRE_ROUTING))
		place = PLACE_OTHER;
	if (rules_only && place == PLACE_OTHER)
		return 0;
	// A table's verdict is carried out in nf_hook_slow, or after a queue in nf_reinject. One that is still there when
	// the packet dies elsewhere was about an earlier packet, in the same skb.
	if (place != PLACE_NF_HOOK_SLOW && place != PLACE_REINJECT && place != PLACE_BRIDGE_PREROUTING)
		verdict = NULL;
	if (verdict) {
		attribute_verdict(scratch, verdict);
		scratch->path.gencursor = verdict->gencursor;
#ifdef TSDT_LINUX_5_10
		scratch->path.owner = emitter;
#endif
		if (traces_nft && verdict->source == TSDT_SOURCE_NFT_RULE)
			attribute_nft(scratch, verdict->rule, place);
	} else if (traces_nft && place == PLACE_NFT_DO_CHAIN) {
		attribute_live_traversal(scratch, address);
	} else if (traces_legacy && place == PLACE_NF_HOOK_SLOW && table_dropped_unseen(address, emitter)) {
		verdict = take_verdict(scratch, skb);
		if (verdict)
			attribute_verdict(scratch, verdict);
	} else if (place == PLACE_NF_QUEUE) {
		verdict = attribute_queued(scratch, skb, address);
	} else if (place != PLACE_OTHER) {
		drop->key.source = TSDT_SOURCE_NETFILTER;
		drop->key.unknown = COMPAT_UNKNOWN_UNSEEN;
		// nft_do_chain, where it is not traced: its caller stands at the hook.
		if (place == PLACE_NF_HOOK_SLOW || place == PLACE_NFT_DO_CHAIN)
			find_hook_of_drop(ctx, drop, emitter, location, place == PLACE_NFT_DO_CHAIN);
	}
	attribute_devices(scratch, address);
	if (!wanted_there(drop))
		return 0;
	// Who gives verdicts on queued packets does not send them, wherever they die.
	if (place == PLACE_REINJECT ? (drop->key.queue & TSDT_QUEUE_WHY) == TSDT_QUEUE_VERDICT :
				      !drop->received && compat_in_process(ctx) && !gives_verdict()) {
		drop->pid = bpf_get_current_pid_tgid() >> 32;
		bpf_get_current_comm(drop->comm, sizeof(drop->comm));
	}

	cause = bpf_map_lookup_elem(&causes, &drop->key);
	if (!cause) {
		add_cause(emitter, verdict != NULL, address);
		cause = bpf_map_lookup_elem(&causes, &drop->key);
	}
	if (!cause) {
		count_lost(TSDT_LOST_CAUSE);
		return 0;
	}
	__sync_fetch_and_add(&cause->packets, 1);
	__sync_fetch_and_add(&cause->bytes, drop->length);
	cause->last_ns = drop->mono_ns;
	drop->cause_id = cause->id;
	count_flow(emitter);
	if (bpf_ringbuf_output(&events, drop, sizeof(*drop), 0))
		count_lost(TSDT_LOST_RING);
	return 0;
}

#ifdef TSDT_LINUX_5_10
// Kernels that old run a program on top of itself (6.2, 05b24ff9b2cf): each has a place of its own to work in.
static u32 dying[TSDT_MAX_CPUS];

SEC("tp_btf/kfree_skb")
int BPF_PROG(on_kfree_skb, struct sk_buff *skb, void *location)
{
	u32 *depth = &dying[bpf_get_smp_processor_id() & (TSDT_MAX_CPUS - 1)];
	u32 emitter;
	struct scratch *scratch;

	if (!is_active())
		return 0;
	emitter = (*depth)++;
	scratch = this_cpu_scratch(emitter);
	if (scratch)
		packet_dies(ctx, scratch, emitter, skb, (u64)location);
	else
		count_lost(TSDT_LOST_CAUSE);
	(*depth)--;
	return 0;
}
#else
// Which scratch space is the caller's until it says otherwise. A global function, so that what follows is verified once.
__noinline int take_scratch(void)
{
	for (u32 emitter = 0; emitter < EMITTERS; emitter++) {
		struct scratch *scratch = this_cpu_scratch(emitter);

		if (scratch && !__sync_val_compare_and_swap(&scratch->in_use, 0, 1))
			return emitter;
	}
	return EMITTERS;
}

// Userspace puts `emit` into it.
struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, u32);
} emit_call SEC(".maps");

// One program for both that are attached, since it is long to verify. The call that leads nowhere is what keeps it
// from a stack of its own per CPU ("private stack", 6.13), which it would share with itself: the kernel sees to it that a
// program does not run on top of itself, but not where it comes by a tail call.
SEC("tp_btf/kfree_skb")
int BPF_PROG(emit, struct sk_buff *skb, void *location)
{
	u32 emitter = take_scratch();
	struct scratch *scratch = this_cpu_scratch(emitter);

	if (!scratch) {
		bpf_tail_call(ctx, &emit_call, 1);
		return 0;
	}
	packet_dies(ctx, scratch, emitter, skb, (u64)location);
	scratch->in_use = 0;
	return 0;
}

SEC("tp_btf/kfree_skb")
int BPF_PROG(on_kfree_skb, struct sk_buff *skb, void *location)
{
	struct handled *here = handled_on(bpf_get_smp_processor_id());
	u64 address = as_number(skb), *slot = &here->skb[handled_slot(address)];

	if (!is_active())
		return 0;
	if (*slot && *slot != address)
		add_handled(here, address);
	else
		*slot = address;
	bpf_tail_call(ctx, &emit_call, 0);
	return 0;
}

// The kernel does not run a program on top of itself on one CPU: a packet that a softirq drops while on_kfree_skb is
// at work for a process, or that another process drops after that one has been preempted, would go uncounted.
SEC("tp_btf/kfree_skb")
int BPF_PROG(on_kfree_skb_again, struct sk_buff *skb, void *location)
{
	u64 address = as_number(skb), *slot = &handled_on(bpf_get_smp_processor_id())->skb[handled_slot(address)];

	if (!is_active())
		return 0;
	if (*slot == address) {
		*slot = 0;
		return 0;
	}
	if (was_handled(address))
		return 0;
	__sync_fetch_and_add(&stood_in, 1);
	bpf_tail_call(ctx, &emit_call, 0);
	return 0;
}
#endif
