// SPDX-License-Identifier: GPL-2.0-only
// What the BPF programs hand to userspace: the one header that both sides include.
//
// All integers are in host byte order unless a field says otherwise. Addresses and ports are in
// network byte order, as on the wire. Text is NUL-terminated when shorter than its array; a name that
// fills its array was cut. Nothing here depends on the kernel version: bpf/kernel_compat.h hides that.
#pragma once

#ifndef __BPF__ // the BPF side has these types from vmlinux.h
#include <linux/types.h>
#endif

#define TSDT_COMM_LEN 16     // TASK_COMM_LEN
#define TSDT_IFNAME_LEN 16   // IFNAMSIZ
#define TSDT_NAME_LEN 64     // table and chain names; longer ones are cut, the handle still tells them apart
#define TSDT_SYMBOL_LEN 96   // "symbol+0xoff/0xsize [module]" as the kernel's %pS prints it
#define TSDT_PATH_MAX 17     // NFT_JUMP_STACK_SIZE jumps and the rule itself
#define TSDT_MAX_CPUS 512    // nf_tables is not traced on a machine that may have more
#define TSDT_JUMPSTACK_MAX 8 // how much of a legacy table's jump stack travels with an event
#define TSDT_JUMPSTACK_UNKNOWN 0xfffffffeu // in its first place: the stack has been used by others since

// Who dropped the packet, as far as the programs could tell.
enum tsdt_source {
	TSDT_SOURCE_KERNEL = 0,        // the stack itself: the reason and the location are all there is
	TSDT_SOURCE_NETFILTER = 1,     // netfilter, but no rule is known: see tsdt_unknown
	TSDT_SOURCE_NFT_RULE = 2,      // an nf_tables rule
	TSDT_SOURCE_NFT_POLICY = 3,    // an nf_tables base chain's policy
	TSDT_SOURCE_LEGACY_RULE = 4,   // an x_tables rule
	TSDT_SOURCE_LEGACY_POLICY = 5, // an x_tables built-in chain's policy
	TSDT_SOURCE_HOOK_FUNCTION = 6, // a function that is registered at a hook and has no rules
};

// Why no rule is known for a packet that netfilter dropped.
enum tsdt_unknown {
	TSDT_UNKNOWN_NONE = 0,
	TSDT_UNKNOWN_NOT_TRACED = 1,      // nothing was seen: a hook function without rules, or a backend that is not traced
	TSDT_UNKNOWN_EXPRESSION = 2,      // nf_tables: an expression that is not traced set the verdict, or may have
	TSDT_UNKNOWN_TRAVERSAL_LOST = 3,  // an interrupting traversal overwrote the record
	TSDT_UNKNOWN_NO_COUNTER = 4,      // x_tables: no counter of a dropping rule moved (a match or an extension target dropped)
	TSDT_UNKNOWN_MANY_COUNTERS = 5,   // x_tables: several moved (two packets at once on this CPU, or counters being restored)
	TSDT_UNKNOWN_NO_BASELINE = 6,     // x_tables: the table was being replaced, or has more dropping rules than are watched
	TSDT_UNKNOWN_QUEUE = 7,           // it was in a queue for a program, or on its way there: see tsdt_queue
	TSDT_UNKNOWN_NOT_SEEN = 8,        // kprobes: as NOT_TRACED, or the kernel has skipped the probes for this packet
	TSDT_UNKNOWN_MANY_POLICIES = 9,   // ebtables: a policy dropped it, and several chains have that one
};

// tsdt_cause_key.queue: 0 when no queue (NFQUEUE) has to do with the drop. Else one of these, with TSDT_QUEUE_NUMBERED
// and the queue's number in the low 16 bits where that is known.
enum tsdt_queue {
	TSDT_QUEUE_NOBODY = 1 << 16,  // no program listens on it
	TSDT_QUEUE_FULL = 2 << 16,    // it holds as many packets as it may
	TSDT_QUEUE_REFUSED = 3 << 16, // the packet could not be queued for another reason
	TSDT_QUEUE_UNKNOWN = 4 << 16, // the packet could not be queued; nothing says why
	TSDT_QUEUE_VERDICT = 5 << 16, // the program that listens said so: it is the drop's process
	TSDT_QUEUE_CLOSED = 6 << 16,  // the program went away, or a device did, while the packet waited
	TSDT_QUEUE_WHY = 7 << 16,
	TSDT_QUEUE_NUMBERED = 1 << 20,
};

// What one drop has in common with others: packets of one cause are counted together, in the kernel.
struct tsdt_cause_key {
	__u64 rule;       // NFT_RULE: address of the expression; *_POLICY and LEGACY_RULE: address of the base chain or xt_table_info; HOOK_FUNCTION: its address; else 0
	__u64 location;   // code address that freed the packet
	__u64 path_hash;  // NFT_RULE: over the expressions on the way; LEGACY_*: over table, chain and number; else 0
	__u32 offset;     // LEGACY_*: of the entry in the table's blob (as IPT_SO_GET_ENTRIES returns it); HOOK_FUNCTION: id of the BPF program, or 0
	__u32 generation; // of this backend's rulesets on this machine: a rule address means nothing in another generation
	__u32 netns;      // inode of the network namespace
	__u32 reason;     // enum skb_drop_reason of the running kernel; 0 where it has none
	__u8 source;      // enum tsdt_source
	__u8 unknown;     // enum tsdt_unknown
	__u8 hook;        // enum nf_inet_hooks (or the family's own), 0xff when not known
	__u8 pf;          // NFPROTO_* of the hook, 0 when not known
	__u32 queue;      // tsdt_queue
};

// One step of the way from the base chain to the rule, in order; the last one is the rule that dropped.
struct tsdt_step {
	char chain[TSDT_NAME_LEN];
	__u64 chain_handle; // as `nft -a` prints it
	__u64 handle;       // of the rule
	__u32 number;       // 1-based position of the rule in its chain, 0 when it could not be read
	__u32 by_match;     // 1: it was a match of this rule that dropped the packet by itself
};

// A cause: the value in the map `causes`, written once when it is first met, then only counted up.
struct tsdt_cause {
	struct tsdt_cause_key key;
	__u64 packets;
	__u64 bytes;    // of the IP packets, as rule counters count them
	__u64 first_ns; // CLOCK_MONOTONIC
	__u64 last_ns;
	__u32 id;       // unique in this run, never 0
	__u16 family;   // NFPROTO_* of the table: inet is 1, ip 2, arp 3, netdev 5, bridge 7, ip6 10; 0 when there is no table
	// nf_tables: how many of `step` are filled in; x_tables: 1 when chain and number are known, else 0. HOOK_FUNCTION:
	// 1, the chain is the function's symbol. NETFILTER: functions one of which may have dropped the packet, with their
	// symbols as chains. NOT_TRACED: those registered at the hook. NO_COUNTER: of the table's matches that may drop by
	// themselves; EXPRESSION: one of the matches of iptables-nft that may; both with their addresses as handles.
	__u16 steps;
	__u64 table_handle; // nf_tables only
	char table[TSDT_NAME_LEN]; // HOOK_FUNCTION: name of the BPF program
	char location[TSDT_SYMBOL_LEN]; // symbol of key.location, empty where this kernel cannot print it from BPF
	struct tsdt_step step[TSDT_PATH_MAX];
};

// Why a packet has no ports although its protocol may have some.
enum tsdt_no_ports {
	TSDT_NO_PORTS_NONE = 0,     // it has them (has_ports), or its protocol has none
	TSDT_NO_PORTS_FRAGMENT = 1, // a later fragment: they are in the first one
	TSDT_NO_PORTS_UNREAD = 2,   // that header could not be read: cut short, not in the packet's linear part, or too far back
};

// The packet that an ICMP error is about, as far as the error quotes it.
struct tsdt_headers {
	__u8 saddr[16]; // network order; an IPv4 address is in the first four bytes
	__u8 daddr[16];
	__u16 sport; // network order, 0 unless has_ports
	__u16 dport;
	__u8 family; // 4, 6, or 0: there is none
	__u8 proto;  // IPPROTO_*
	__u8 has_ports;
	__u8 no_ports; // enum tsdt_no_ports
};

// One dropped packet: the record in the ring buffer `events`.
struct tsdt_drop {
	struct tsdt_cause_key key; // to find its cause
	__u64 mono_ns;             // CLOCK_MONOTONIC
	__u32 cause_id;            // tsdt_cause.id
	__u32 cpu;
	__u8 saddr[16];            // network order; an IPv4 address is in the first four bytes
	__u8 daddr[16];
	__u16 sport;               // network order, 0 unless has_ports
	__u16 dport;
	__u32 length;              // of the IP packet, header included
	__u32 mark;                // skb->mark
	__u8 family;               // 4, 6, or 0 for anything else
	__u8 proto;                // IPPROTO_*
	__u8 ttl;                  // or hop limit
	__u8 tcp_flags;            // the 13th byte of the TCP header, for TCP
	__u8 icmp_type;
	__u8 icmp_code;
	__u8 has_ports;            // sport and dport are there (first fragments of TCP, UDP, SCTP, DCCP, UDP-Lite)
	__u8 has_l4;               // tcp_flags, icmp_type and icmp_code could be read
	__u8 to_range;             // it goes to the filter's range, or is an ICMP error about an answer from there
	__u8 from_range;           // it comes from there, or is an ICMP error about a packet to it
	__u8 received;             // it came in through a device (skb->skb_iif is set)
	__u8 ctinfo;               // enum ip_conntrack_info, or 0xff: conntrack has not seen it
	__u32 pid;                 // of the sending process, 0 where the packet was not being sent by one; TSDT_QUEUE_VERDICT: of the one that gave the verdict
	__u16 ethertype;           // host order, of what follows any VLAN tags
	__u8 no_ports;             // enum tsdt_no_ports
	__u8 is_arp;               // for an IPv4 address: saddr and daddr are those of its sender and its target
	char comm[TSDT_COMM_LEN];
	char in_dev[TSDT_IFNAME_LEN];  // empty when not known
	char out_dev[TSDT_IFNAME_LEN];
	__u32 jumpstack[TSDT_JUMPSTACK_MAX]; // LEGACY_*: offsets of the jumps that led to the chain, oldest first; entries past the way are leftovers
	struct tsdt_headers quoted; // of an ICMP error
};

// Packets by flow, within one cause: the key of the map `flows`; its value is a __u64 count of packets.
struct tsdt_flow_key {
	__u8 saddr[16];
	__u8 daddr[16];
	__u32 cause_id;
	__u16 sport; // network order
	__u16 dport;
	__u8 family;
	__u8 proto;
	__u8 pad[2];
};

// Details that were lost; counts in `causes` are not touched by these. One per-CPU slot each in `lost`.
enum tsdt_lost {
	TSDT_LOST_RING = 0,   // ring buffer full: counted, not shown
	TSDT_LOST_CAUSE = 1,  // map `causes` full: the packet is in no cause's count
	TSDT_LOST_FLOW = 2,   // map `flows` full: counted in its cause, its flow is not
	TSDT_LOST_MAX = 3,
};

// The filter, beside the ranges: what a key of the map `choices` is about. Its values are those that the user chose.
enum tsdt_choice {
	TSDT_CHOICE_PROTO = 0,  // IPPROTO_*
	TSDT_CHOICE_PORT = 1,   // host order
	TSDT_CHOICE_REASON = 2, // enum skb_drop_reason
	TSDT_CHOICE_NETNS = 3,  // inode
};

struct tsdt_choice_key {
	__u32 what; // enum tsdt_choice
	__u32 value;
};

// What userspace replaces in instructions, by numbers in the kernel's BTF: libbpf would read all of the kernel's types for
// them, and a constant would cost a load.
enum tsdt_placeholder {
	TSDT_RDONLY_CAST = 0x7eed0001, // of a call
	TSDT_TYPE_IPHDR = 0x7eed0002,
	TSDT_TYPE_IPV6HDR = 0x7eed0003,
	TSDT_PER_CPU_VARIABLE = 0x7eed0004,  // nf_skb_duplicated where it is there, else another one
	TSDT_NF_SKB_DUPLICATED = 0x7eed0005, // not 0: that is the one
};

// Packets of the filter that pass, by device: key and value of the map `seen`.
enum tsdt_seen_way {
	TSDT_SEEN_SENT = 0,     // toward the range, handed to the device's driver
	TSDT_SEEN_RECEIVED = 1, // from the range, come in by the device
};

struct tsdt_seen_key {
	__u32 netns; // inode of the device's network namespace
	__u32 way;   // enum tsdt_seen_way
	char dev[TSDT_IFNAME_LEN];
};

struct tsdt_seen {
	__u64 packets;
	__u64 first_ns; // CLOCK_MONOTONIC
	__u64 last_ns;
};

struct tsdt_seen_count { // both, where they are handed on
	struct tsdt_seen_key key;
	struct tsdt_seen value;
};

// Who changed a ruleset: the record in the ring buffer `changes`. Sent when the change is complete, before `generation` is
// there.
struct tsdt_ruleset_change {
	__u64 mono_ns;    // CLOCK_MONOTONIC
	__u32 generation; // of this backend's rulesets once the change has ended (that of a later one, where two end at once)
	__u32 netns;      // inode of the network namespace
	__u32 pid;        // of the process that made the change: tgid
	__u32 parent_pid; // of the process that started that one; 0 when there is none
	__u32 ruleset;    // enum tsdt_ruleset
	__u32 pad;
	char comm[TSDT_COMM_LEN]; // of the process, not of the thread
	char parent_comm[TSDT_COMM_LEN];
};

enum tsdt_ruleset {
	TSDT_RULESET_NF_TABLES = 0,
	TSDT_RULESET_IP_TABLES = 1,
	TSDT_RULESET_IP6_TABLES = 2,
	TSDT_RULESET_ARP_TABLES = 3,
	TSDT_RULESET_BRIDGE_FILTER = 4, // ebtables: the table filter
	TSDT_RULESET_BRIDGE_NAT = 5,    // and nat; broute drops nothing
	TSDT_RULESET_MAX = 6,
};

// Records of changes in one second: those beyond are counted by netns class (enum tsdt_netns_class), not sent.
#define TSDT_CHANGES_PER_SECOND 64

// The namespaces that share such a limit: what others do in theirs must not hide what is done in ours.
enum tsdt_netns_class {
	TSDT_NETNS_OWN = 0, // that of tsdroptrace
	TSDT_NETNS_OTHER = 1,
	TSDT_NETNS_CLASSES = 2,
};

// Generations of rulesets: bumped before and after each change, in whatever namespace. Several may be under way at once
// (IPv4 and IPv6, two namespaces): how many are is counted beside it.
enum tsdt_generation {
	TSDT_GENERATION_NF_TABLES = 0,
	TSDT_GENERATION_X_TABLES = 1,
	TSDT_GENERATION_MAX = 2,
};

#ifdef __cplusplus
#define TSDT_ASSERT static_assert
#else
#define TSDT_ASSERT _Static_assert
#endif
TSDT_ASSERT(sizeof(struct tsdt_cause_key) == 48, "tsdt_cause_key has no padding");
TSDT_ASSERT(sizeof(struct tsdt_step) == 88, "tsdt_step has no padding");
TSDT_ASSERT(sizeof(struct tsdt_cause) == 48 + 32 + 8 + 8 + TSDT_NAME_LEN + TSDT_SYMBOL_LEN + TSDT_PATH_MAX * 88,
	    "tsdt_cause has no padding");
TSDT_ASSERT(sizeof(struct tsdt_headers) == 40, "tsdt_headers has no padding");
TSDT_ASSERT(sizeof(struct tsdt_drop) == 248, "tsdt_drop has no padding");
TSDT_ASSERT(sizeof(struct tsdt_seen_count) == 48, "tsdt_seen_count has no padding");
TSDT_ASSERT(sizeof(struct tsdt_ruleset_change) == 64, "tsdt_ruleset_change has no padding");
TSDT_ASSERT(sizeof(struct tsdt_flow_key) == 44, "tsdt_flow_key has no padding");
