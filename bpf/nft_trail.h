// SPDX-License-Identifier: GPL-2.0-only
// nf_tables, per packet: leave the trail that lets kfree_skb find the rule. See struct trail_step.
#pragma once

#include "maps.h"

// These two run for packets that pass. Arguments are taken from the context when they are needed: what lives across
// a call costs registers to save.
SEC("fentry/nft_do_chain")
int nft_do_chain_begin(u64 *ctx) // struct nft_pktinfo *pkt, void *priv: the base chain
{
	struct trail *trail = this_cpu_trail();

	trail_add(trail, (void *)ctx[0], (void *)ctx[1], TRAIL_BEGIN);
	return 0;
}

// The plain verdicts of rules: drop, accept, jump, goto, return. Accept and return need no trail. nft_immediate also
// loads constants into registers, which may look like a verdict here: who reads the trail looks twice.
SEC("fentry/nft_immediate_eval")
int nft_immediate_eval_begin(u64 *ctx) // struct nft_expr *expr, struct nft_regs *regs, struct nft_pktinfo *pkt
{
	const struct nft_expr *expr = (void *)ctx[0];
	s32 code = compat_expr_read(expr, struct nft_immediate_expr, data.verdict.code);
	struct trail *trail;

	if ((u32)(code - NFT_GOTO) > NFT_JUMP - NFT_GOTO && (code & NF_VERDICT_MASK) != NF_DROP)
		return 0;
	trail = this_cpu_trail();
	trail_add(trail, (void *)ctx[2], (void *)ctx[0], TRAIL_IMMEDIATE);
	return 0;
}

// Before 6.7 (NF_DROP_REASON) nf_hook_slow frees the packet, when the traversal and its nft_pktinfo are gone.
// Userspace attaches this only to such kernels.
SEC("fexit/nft_do_chain")
int BPF_PROG(nft_do_chain_end, struct nft_pktinfo *pkt, void *priv, unsigned int ret)
{
	const struct nf_hook_state *state;
	struct verdict *verdict;
	struct stash *stash;

	if ((ret & NF_VERDICT_MASK) != NF_DROP)
		return 0;
	stash = this_cpu_stash();
	if (!stash)
		return 0;
	state = pkt->state;
	verdict = new_verdict(stash, pkt->skb, state);
	verdict->source = TSDT_SOURCE_NFT_RULE; // or the policy: kfree_skb reads the trail
	verdict->rule = (u64)pkt;
	verdict->generation = generation(TSDT_GENERATION_NF_TABLES);
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

#define NFT_EXPRESSION(function)                                                                                  \
	SEC("fexit/" #function)                                                                                   \
	int BPF_PROG(function##_end, struct nft_expr *expr, struct nft_regs *regs, struct nft_pktinfo *pkt) \
	{                                                                                                         \
		return expression_done(expr, regs, pkt);                                                          \
	}

NFT_EXPRESSION(nft_lookup_eval) // verdict maps
NFT_EXPRESSION(nft_reject_ipv4_eval)
NFT_EXPRESSION(nft_reject_ipv6_eval)
NFT_EXPRESSION(nft_reject_inet_eval)
NFT_EXPRESSION(nft_target_eval_xt) // iptables-nft's REJECT and other extension targets
NFT_EXPRESSION(nft_nat_eval)       // these drop when they fail
NFT_EXPRESSION(nft_masq_eval)
NFT_EXPRESSION(nft_redir_eval)
