// SPDX-License-Identifier: GPL-2.0-only
// nf_tables, per packet: leave the trail that lets kfree_skb find the rule. See struct trail_step.
#pragma once

#include "maps.h"
#include "text.h"

// A rule hands the packet to a program in userspace: should it die on its way there, that is the rule.
static __always_inline int nft_queued(const struct nft_expr *expr, const struct nft_pktinfo *pkt)
{
	struct queueing *here = this_cpu_queueing();

	trail_add(this_cpu_trail(), pkt, expr, TRAIL_DROP);
	here->target = 0;
	here->pkt = (u64)pkt;
	here->queued = (u64)ARGUMENT_READ(pkt, skb);
	return 0;
}

#ifdef TSDT_KPROBES
#include "nft_trail_kprobes.h"
#else
// These two run for packets that pass. Arguments are taken from the context when they are needed: what lives across
// a call costs registers to save.
SEC("fentry/nft_do_chain")
int nft_do_chain_begin(u64 *ctx) // struct nft_pktinfo *pkt, void *priv: the base chain
{
	struct trail *trail = trail_of(this_cpu_keeping(&ctx));

	trail_add(trail, (void *)ctx[0], (void *)ctx[1], TRAIL_BEGIN);
	return 0;
}

// The plain verdicts of rules: drop, accept, jump, goto, return. Accept and return need no trail. nft_immediate also
// loads constants into registers, which may look like a verdict here: who reads the trail looks twice.
SEC("fentry/nft_immediate_eval")
int nft_immediate_eval_begin(u64 *ctx) // struct nft_expr *expr, struct nft_regs *regs, struct nft_pktinfo *pkt
{
	const struct nft_expr *expr = (void *)ctx[0];
	s32 code = compat_expr_read(ctx, expr, struct nft_immediate_expr, data.verdict.code);
	struct trail *trail;

	if ((u32)(code - NFT_GOTO) > NFT_JUMP - NFT_GOTO && (code & NF_VERDICT_MASK) != NF_DROP)
		return 0;
	trail = trail_of(this_cpu_keeping(&ctx));
	trail_add(trail, (void *)ctx[2], (void *)ctx[0], TRAIL_IMMEDIATE);
	return 0;
}

// Before 6.7 (NF_DROP_REASON) nf_hook_slow frees the packet, when the traversal and its nft_pktinfo are gone.
// Userspace attaches this only to such kernels.
SEC("fexit/nft_do_chain")
int BPF_PROG(nft_do_chain_end, struct nft_pktinfo *pkt, void *priv, unsigned int ret)
{
	u64 skb = (u64)pkt->skb;
	struct verdict verdict;

	if ((ret & NF_VERDICT_MASK) != NF_DROP)
		return 0;
	begin_verdict(&verdict, pkt->skb, pkt->state);
	verdict.source = TSDT_SOURCE_NFT_RULE; // or the policy: kfree_skb reads the trail
	verdict.rule = (u64)pkt;
	verdict.generation = generation(TSDT_GENERATION_NF_TABLES);
	verdict.gencursor = gencursor_of(pkt->state);
	bpf_map_update_elem(&verdicts, &skb, &verdict, BPF_ANY);
	return 0;
}

// Expressions that may set a verdict only after they have looked.
static __always_inline int expression_done(const struct nft_expr *expr, const struct nft_regs *regs,
					   const struct nft_pktinfo *pkt)
{
	s32 code = regs->verdict.code;
	struct trail *trail = this_cpu_trail();

	if (code == NFT_JUMP || code == NFT_GOTO) {
		trail_add(trail, pkt, regs->verdict.chain, TRAIL_JUMP_TO);
		trail_add(trail, pkt, expr, TRAIL_JUMP_BY);
	} else if ((code & NF_VERDICT_MASK) == NF_DROP) {
		trail_add(trail, pkt, expr, TRAIL_DROP);
	}
	return 0;
}

// NFQUEUE is among iptables-nft's targets.
static __always_inline int target_done(const struct nft_expr *expr, const struct nft_regs *regs,
				       const struct nft_pktinfo *pkt)
{
	if ((regs->verdict.code & NF_VERDICT_MASK) == NF_QUEUE)
		return nft_queued(expr, pkt);
	return expression_done(expr, regs, pkt);
}

#define NFT_EXPRESSION(function) NFT_EXPRESSION_DONE(function, expression_done)
#define NFT_TARGET(function) NFT_EXPRESSION_DONE(function, target_done)
#define NFT_EXPRESSION_DONE(function, done)                                                                       \
	SEC("fexit/" #function)                                                                                   \
	int BPF_PROG(function##_end, struct nft_expr *expr, struct nft_regs *regs, struct nft_pktinfo *pkt) \
	{                                                                                                         \
		return done(expr, regs, pkt);                                                                     \
	}

#endif

// All that may set a drop or a jump, up to 7.2.
NFT_EXPRESSION(nft_lookup_eval)     // verdict maps
NFT_EXPRESSION(nft_objref_eval)     // objects: synproxy, connlimit, ct helper, timeout and expectation
NFT_EXPRESSION(nft_objref_map_eval)
NFT_EXPRESSION(nft_reject_ipv4_eval)
NFT_EXPRESSION(nft_reject_ipv6_eval)
NFT_EXPRESSION(nft_reject_inet_eval)
NFT_EXPRESSION(nft_reject_bridge_eval)
NFT_EXPRESSION(nft_reject_netdev_eval)
NFT_TARGET(nft_target_eval_xt) // iptables-nft's REJECT and other extension targets
NFT_TARGET(nft_target_eval_bridge)
// These drop when they fail.
NFT_EXPRESSION(nft_nat_eval)
NFT_EXPRESSION(nft_nat_inet_eval)
NFT_EXPRESSION(nft_masq_eval) // for all families in newer kernels, for each one its own before
NFT_EXPRESSION(nft_masq_ipv4_eval)
NFT_EXPRESSION(nft_masq_ipv6_eval)
NFT_EXPRESSION(nft_masq_inet_eval)
NFT_EXPRESSION(nft_redir_eval) // the same
NFT_EXPRESSION(nft_redir_ipv4_eval)
NFT_EXPRESSION(nft_redir_ipv6_eval)
NFT_EXPRESSION(nft_redir_inet_eval)
NFT_EXPRESSION(nft_synproxy_eval)
NFT_EXPRESSION(nft_connlimit_eval)
NFT_EXPRESSION(nft_ct_set_zone_eval)
NFT_EXPRESSION(nft_exthdr_tcp_strip_eval)
NFT_EXPRESSION(nft_fib_inet_eval)
NFT_EXPRESSION(nft_fib_netdev_eval)
NFT_EXPRESSION(nft_fwd_neigh_eval)

// The matches of iptables-nft are many, and hardly ever drop: attached late (match.h).
NFT_EXPRESSION(nft_match_eval)
NFT_EXPRESSION(nft_match_large_eval)

// A module's expressions drop packets before userspace has seen that it is there.
SEC("raw_tp/module_load")
int on_module_load(u64 *ctx) // struct module *
{
	struct module *module = (void *)ctx[0];
	char name[8] = {};
#ifdef TSDT_LINUX_5_10
	struct module_name whole = {};
	u64 now = bpf_ktime_get_ns();

	BPF_CORE_READ_STR_INTO(&whole.text, module, name);
	if (bpf_map_update_elem(&module_loads, &whole, &now, BPF_ANY))
		__sync_fetch_and_add(&module_loads_lost, 1);
#endif

	BPF_CORE_READ_STR_INTO(&name, module, name);
	if (begins_with(name, "nft_", 4))
		__sync_fetch_and_add(&expressions_loaded, 1);
	return 0;
}
