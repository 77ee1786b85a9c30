// SPDX-License-Identifier: GPL-2.0-only
// The kernel types that the BPF programs read, each trimmed to the fields they touch. Written by hand
// after the BTF of Debian's kernels 6.1.192, 6.12.117 and 7.2.13 (scripts/vmlinux prints the full types
// of a kernel to compare with). Offsets do not matter here: every access is relocated by CO-RE against
// the BTF of the running kernel and its modules; only the names and the kinds of the fields do.
#pragma once

typedef unsigned char __u8;
typedef unsigned short __u16;
typedef unsigned int __u32;
typedef unsigned long long __u64;
typedef signed char __s8;
typedef short __s16;
typedef int __s32;
typedef long long __s64;
typedef __u8 u8;
typedef __u16 u16;
typedef __u32 u32;
typedef __u64 u64;
typedef __s32 s32;
typedef __s64 s64;
typedef __u16 __be16;
typedef __u32 __be32;
typedef __u64 __be64;
typedef __u32 __wsum;
typedef __u16 __sum16;
typedef _Bool bool;
#define true 1
#define false 0
#define NULL ((void *)0)

// UAPI constants, fixed for ever: include/uapi/linux/bpf.h, if_ether.h, in.h, netfilter.h, netlink.h, nf_tables.h
enum {
	BPF_ANY = 0,
	BPF_NOEXIST = 1,
	BPF_F_NO_PREALLOC = 1,
	BPF_RB_NO_WAKEUP = 1,
	NETLINK_NETFILTER = 12,
	NETLINK_URELEASE = 1, // include/linux/notifier.h
};
enum bpf_map_type {
	BPF_MAP_TYPE_HASH = 1,
	BPF_MAP_TYPE_ARRAY = 2,
	BPF_MAP_TYPE_PROG_ARRAY = 3,
	BPF_MAP_TYPE_PERCPU_ARRAY = 6,
	BPF_MAP_TYPE_LRU_HASH = 9,
	BPF_MAP_TYPE_LPM_TRIE = 11,
	BPF_MAP_TYPE_RINGBUF = 27,
};
enum { ETH_P_IP = 0x0800, ETH_P_ARP = 0x0806, ETH_P_8021Q = 0x8100, ETH_P_IPV6 = 0x86dd, ETH_P_8021AD = 0x88a8 };
enum {
	IPPROTO_ICMP = 1,
	IPPROTO_TCP = 6,
	IPPROTO_UDP = 17,
	IPPROTO_DCCP = 33,
	IPPROTO_ICMPV6 = 58,
	IPPROTO_SCTP = 132,
	IPPROTO_UDPLITE = 136,
};
enum {
	NF_DROP = 0,
	NF_VERDICT_MASK = 0xff,
	NF_QUEUE = 3,
	NF_INET_NUMHOOKS = 5,
	NF_ARP_NUMHOOKS = 3,
	NF_NETDEV_EGRESS = 1,
	NFT_JUMP = -3,
	NFT_GOTO = -4,
	NFT_REG_VERDICT = 0,
	NFPROTO_IPV4 = 2,
	NFPROTO_ARP = 3,
	NFPROTO_NETDEV = 5,
	NFPROTO_BRIDGE = 7,
	NFPROTO_IPV6 = 10,
	XT_INV_SRCIP = 0x08, // IPT_INV_SRCIP and IP6T_INV_SRCIP
	XT_INV_DSTIP = 0x10,
	XT_INV_PROTO = 0x40,
};

enum {
	EBT_DROP = -2,
	EBT_ENTRY_OR_ENTRIES = 0x01,
	EBT_NOPROTO = 0x02,
	EBT_802_3 = 0x04,
	EBT_SOURCEMAC = 0x08,
	EBT_DESTMAC = 0x10,
	EBT_IPROTO = 0x01,
	EBT_ISOURCE = 0x08,
	EBT_IDEST = 0x10,
	NF_BR_PRE_ROUTING = 0,
	NF_BR_BROUTING = 5,
};

enum {
	ARPT_INV_SRCIP = 0x04,
	ARPT_INV_TGTIP = 0x08,
	ARPT_INV_ARPOP = 0x40,
};

enum {
	XT_INV_SRCPT = 0x01, // XT_UDP_INV_SRCPT and XT_TCP_INV_SRCPT
	XT_INV_DSTPT = 0x02,
};

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct ns_common {
	unsigned int inum;
};

struct nf_hook_entry {
	void *hook;
	void *priv;
};

struct nf_hook_entries {
	u16 num_hook_entries;
	struct nf_hook_entry hooks[];
};

struct netns_nf {
	struct nf_hook_entries *hooks_ipv4[5];
	struct nf_hook_entries *hooks_ipv6[5];
	struct nf_hook_entries *hooks_arp[3];
	struct nf_hook_entries *hooks_bridge[5];
};

struct netns_nftables {
	u8 gencursor;
};

struct net {
	struct ns_common ns;
	struct netns_nf nf;
	struct netns_nftables nft;
	struct net_device *loopback_dev;
};

typedef struct {
	struct net *net;
} possible_net_t;

struct list_head {
	struct list_head *next;
};

struct net_device {
	char name[16];
	struct {
		struct list_head upper;
		struct list_head lower;
	} adj_list;
	int ifindex;
	possible_net_t nd_net;
	struct nf_hook_entries *nf_hooks_ingress;
	struct nf_hook_entries *nf_hooks_egress;
};

struct sock_common {
	unsigned short skc_family;
	possible_net_t skc_net;
};

struct sock {
	struct sock_common __sk_common;
};

struct dst_entry {
	struct net_device *dev;
};

struct rtable {
	struct dst_entry dst;
	__u16 rt_type;
};

struct sk_buff {
	struct net_device *dev;
	struct sock *sk;
	unsigned long _skb_refdst;
	unsigned long _nfct;
	unsigned int len;
	int skb_iif;
	__u32 mark;
	__be16 protocol;
	__u16 transport_header;
	__u16 network_header;
	__u16 mac_header;
	unsigned int tail;
	unsigned char *head;
	unsigned char *data;
};

enum skb_drop_reason { SKB_NOT_DROPPED_YET = 0 };

struct nf_hook_ops {
	void *priv;
	unsigned int hooknum;
};

struct nf_hook_state {
	u8 hook;
	u8 pf;
	struct net_device *in;
	struct net_device *out;
	struct net *net;
};

struct bpf_prog_aux {
	u32 id;
	char name[16];
};

struct bpf_prog {
	struct bpf_prog_aux *aux;
};

// ---- nfnetlink, nfnetlink_queue (modules) ----

struct nf_queue_entry {
	struct sk_buff *skb;
	struct nf_hook_state state;
};

struct nfgenmsg {
	u8 nfgen_family;
	u8 version;
	__be16 res_id;
};

struct nfnl_info {
	const struct nfgenmsg *nfmsg;
};

// ---- nf_tables (module) ----

struct nft_verdict {
	u32 code;
	struct nft_chain *chain;
};

struct nft_data {
	struct nft_verdict verdict;
};

struct nft_regs {
	struct nft_verdict verdict;
};

struct nft_expr_type {
	const char *name;
};

struct nft_expr_ops {
	unsigned int size; // of the whole expression
	const struct nft_expr_type *type;
	void *data; // of nft_compat: struct xt_match *, struct xt_target *
};

struct nft_expr {
	const struct nft_expr_ops *ops;
	unsigned char data[0] __attribute__((aligned(8)));
};

struct nft_immediate_expr {
	struct nft_data data;
	u8 dreg;
};

struct nft_pktinfo {
	struct sk_buff *skb;
	const struct nf_hook_state *state;
};

struct netlink_notify {
	struct net *net;
	int protocol;
};

struct nft_table { // see also bpf/module_types_5_10.h
	u64 handle;
	u16 family : 6;
	char *name;
};

// One flavor for each bit field: clang 14 fails on those that do not begin at bit 0.
struct nft_rule_dp {
	u64 is_last : 1;
	unsigned char data[0];
};
struct nft_rule_dp___dlen {
	u64 dlen : 12;
};
struct nft_rule_dp___handle {
	u64 handle : 42;
};

struct nft_rule_blob {
	unsigned long size;
	unsigned char data[0];
};

struct nft_chain {
	struct nft_rule_blob *blob_gen_0;
	struct nft_rule_blob *blob_gen_1;
	struct nft_table *table;
	u64 handle;
	char *name;
};

struct nft_base_chain {
	struct nf_hook_ops ops;
	u8 policy;
	struct nft_chain chain;
};

// ---- x_tables (module) ----

struct xt_table_info {
	unsigned int size;
	unsigned int number;
	unsigned int hook_entry[NF_INET_NUMHOOKS];
	unsigned int underflow[NF_INET_NUMHOOKS];
	unsigned int stacksize;
	void ***jumpstack;
	unsigned char entries[0];
};

struct xt_table {
	struct xt_table_info *private;
	u8 af;
	char name[32];
};

// For its size, which tells how large the kernel takes a cache line to be: its last field begins one.
struct dst_ops {
	unsigned short family;
};

// ---- ebtables (module) ----

struct ebt_counter {
	u64 pcnt;
};

struct ebt_chainstack {
	void *e; // struct ebt_entry *
};

struct ebt_table_info {
	unsigned int entries_size;
	unsigned int nentries;
	void *hook_entry[6]; // struct ebt_entries *
	struct ebt_chainstack **chainstack;
	char *entries;
	struct ebt_counter counters[0];
};

struct ebt_table {
	char name[32];
	struct ebt_table_info *private;
};

struct xt_action_param;

struct xt_target {
	char name[29];
};

struct xt_match {
	char name[29];
	bool (*match)(const struct sk_buff *skb, struct xt_action_param *par);
};

struct xt_action_param {
	const void *matchinfo, *targinfo;
	const struct nf_hook_state *state;
	bool hotdrop;
};

struct thread_info {
	u64 preempt_count; // arm64 only
	u32 cpu;
};

struct task_struct {
	struct thread_info thread_info;
	void *stack;
	unsigned int cpu; // to 5.15
	unsigned int flags;
	int tgid;
	struct task_struct *real_parent;
	struct task_struct *group_leader;
	char comm[16];
	int rcu_read_lock_nesting; // with CONFIG_PREEMPT_RCU
	unsigned int in_nf_duplicate : 1;
};

struct rq {
	int cpu;
};

struct module {
	char name[56];
};

#pragma clang attribute pop

// ---- UAPI layouts, fixed for ever: include/uapi/linux/netfilter*/ , ip.h, ipv6.h ----

struct xt_counters {
	__u64 pcnt, bcnt;
};

// struct xt_entry_match, for two kinds of matches.
struct xt_entry_match_head {
	__u16 match_size;
	struct xt_match *match; // in the kernel's own copy of the entry
	__u8 rest[16];
	__u16 spts[2]; // of struct xt_udp and struct xt_tcp, host byte order
	__u16 dpts[2];
	__u8 udp_invflags;
	__u8 tcp_flags[2];
	__u8 tcp_invflags;
};

struct xt_entry_target_head {
	__u16 target_size;
	struct xt_target *target; // in the kernel's own copy of the entry
	__u8 rest[16];
	union {
		int verdict;        // of a standard target
		char errorname[30]; // of an ERROR target: the name of the user chain that begins here
	};
};

// What arp_tables' target mangle has behind its head.
struct arpt_mangle {
	char src_devaddr[16], tgt_devaddr[16];
	__be32 src, tgt;
	__u8 flags;
	int target; // the verdict
};

struct ipt_ip {
	__be32 src, dst;
	__be32 smsk, dmsk;
	char iniface[16], outiface[16];
	unsigned char iniface_mask[16], outiface_mask[16];
	__u16 proto;
	__u8 flags;
	__u8 invflags;
};

struct ip6t_ip6 {
	__u64 src[2], dst[2]; // struct in6_addr
	__u64 smsk[2], dmsk[2];
	char iniface[16], outiface[16];
	unsigned char iniface_mask[16], outiface_mask[16];
	__u16 proto;
	__u8 tos;
	__u8 flags;
	__u8 invflags;
	__u8 pad[3];
};

struct ipt_entry {
	struct ipt_ip ip;
	__u32 nfcache;
	__u16 target_offset;
	__u16 next_offset;
	__u32 comefrom;
	struct xt_counters counters;
};

struct ip6t_entry {
	struct ip6t_ip6 ipv6;
	__u32 nfcache;
	__u16 target_offset;
	__u16 next_offset;
	__u32 comefrom;
	struct xt_counters counters;
};

struct arpt_devaddr_info {
	char addr[16], mask[16];
};

struct arpt_arp {
	__be32 src, tgt;
	__be32 smsk, tmsk;
	__u8 arhln, arhln_mask;
	struct arpt_devaddr_info src_devaddr, tgt_devaddr;
	__be16 arpop, arpop_mask;
	__be16 arhrd, arhrd_mask;
	__be16 arpro, arpro_mask;
	char iniface[16], outiface[16];
	unsigned char iniface_mask[16], outiface_mask[16];
	__u8 flags;
	__u16 invflags;
};

struct arpt_entry {
	struct arpt_arp arp;
	__u16 target_offset;
	__u16 next_offset;
	__u32 comefrom;
	struct xt_counters counters;
};

// The head of a chain of ebtables. Its first word is 0, that of a rule is not.
struct ebt_entries {
	unsigned int distinguisher;
	char name[32];
	unsigned int counter_offset;
	int policy;
	unsigned int nentries;
};

struct ebt_entry {
	unsigned int bitmask, invflags;
	__be16 ethproto;
	char in[16], logical_in[16], out[16], logical_out[16];
	unsigned char sourcemac[6], sourcemsk[6], destmac[6], destmsk[6];
	unsigned int watchers_offset, target_offset, next_offset;
};

struct ebt_entry_target_head {
	struct xt_target *target; // in the kernel's own copy of the entry
	__u8 rest[24];
	unsigned int target_size;
	unsigned int pad;
	int verdict; // of a standard target
};

struct ethhdr {
	__u8 h_dest[6], h_source[6];
	__be16 h_proto;
};

struct iphdr {
	__u8 ihl : 4, version : 4;
	__u8 tos;
	__be16 tot_len;
	__be16 id;
	__be16 frag_off;
	__u8 ttl;
	__u8 protocol;
	__sum16 check;
	__be32 saddr;
	__be32 daddr;
};

struct ipv6hdr {
	__u8 priority : 4, version : 4;
	__u8 flow_lbl[3];
	__be16 payload_len;
	__u8 nexthdr;
	__u8 hop_limit;
	__u8 saddr[16];
	__u8 daddr[16];
};
