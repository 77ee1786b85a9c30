// SPDX-License-Identifier: GPL-2.0-only
// nft_trail.h's programs where kprobes are what is attached. A kretprobe does not see what its function was called with: so
// that is kept from the entry on. The kernel runs no kprobe program on top of another one on the same CPU: what a
// softirq does meanwhile is seen not at all, from its beginning to its end. But it may miss a return alone, where more
// calls of a function are under way than there are CPUs (maxactive, which perf events cannot raise): so an expression
// leaves word of its beginning, and takes that back; and that a rule drops is said where it does, not when its chain
// returns.
#pragma once

// From 6.7 nft_do_chain frees what it drops itself (NF_DROP_REASON): nothing is to be learnt at its end.
const volatile bool chain_frees;

// Else nf_hook_slow frees the packet, when the traversal and its nft_pktinfo are gone: kfree_skb then reads the trail.
static __noinline int leave_nft_verdict(u64 pkt)
{
	u64 skb = (u64)MODULE_READ(nft_pktinfo, pkt, skb);
	const struct nf_hook_state *state = MODULE_READ(nft_pktinfo, pkt, state);
	struct verdict verdict;

	if (chain_frees)
		return 0;
	begin_verdict(&verdict, (struct sk_buff *)skb, state);
	verdict.source = TSDT_SOURCE_NFT_RULE; // or the policy: the trail tells
	verdict.rule = pkt;
	verdict.generation = generation(TSDT_GENERATION_NF_TABLES);
	verdict.gencursor = gencursor_of(state);
	bpf_map_update_elem(&verdicts, &skb, &verdict, BPF_ANY);
	return 0;
}

SEC("kprobe/nft_do_chain")
int nft_do_chain_begin(struct pt_regs *ctx) // struct nft_pktinfo *pkt, void *priv: the base chain
{
	trail_add(this_cpu_trail(), (void *)PT_REGS_PARM1(ctx), (void *)PT_REGS_PARM2(ctx), TRAIL_BEGIN);
	return chain_frees ? 0 : begin_call(ctx);
}

SEC("kprobe/nft_immediate_eval")
int nft_immediate_eval_begin(struct pt_regs *ctx) // struct nft_expr *expr, struct nft_regs *regs, struct nft_pktinfo *pkt
{
	u64 expr = PT_REGS_PARM1(ctx), pkt = PT_REGS_PARM3(ctx), immediate = expr + MODULE_FIELD_OFFSET(nft_expr, data);
	s32 code = MODULE_READ(nft_immediate_expr, immediate, data.verdict.code);
	bool drops = (code & NF_VERDICT_MASK) == NF_DROP;

	if ((u32)(code - NFT_GOTO) > NFT_JUMP - NFT_GOTO && !drops)
		return 0;
	trail_add(this_cpu_trail(), (void *)pkt, (void *)expr, TRAIL_IMMEDIATE);
	if (drops && MODULE_READ(nft_immediate_expr, immediate, dreg) == NFT_REG_VERDICT)
		leave_nft_verdict(pkt);
	return 0;
}

SEC("kretprobe/nft_do_chain")
int nft_do_chain_end(struct pt_regs *ctx)
{
	u64 call[4];

	if (end_call(ctx, call) && (call[3] & NF_VERDICT_MASK) == NF_DROP)
		leave_nft_verdict(call[0]);
	return 0;
}

static __always_inline int expression_begins(struct pt_regs *ctx)
{
	struct trail *trail = this_cpu_trail();
	struct call call = {.argument[0] = PT_REGS_PARM1(ctx), .argument[1] = PT_REGS_PARM2(ctx), .argument[2] = PT_REGS_PARM3(ctx)};

	call.cpu = bpf_get_smp_processor_id();
	call.step = trail_end(trail);
	trail_add(trail, (void *)call.argument[2], (void *)call.argument[0], TRAIL_PENDING);
	begin_call_with(ctx, &call);
	return 0;
}

enum expression_kind { EXPRESSION, TARGET }; // NFQUEUE is among iptables-nft's targets

static __always_inline int expression_ends(struct pt_regs *ctx, enum expression_kind kind)
{
	u64 frame = frame_at_return(ctx);
	struct call *call = bpf_map_lookup_elem(&calls, &frame);
	struct trail *trail = this_cpu_trail();
	struct trail_step *begun;
	u64 expr, regs, pkt;
	s32 code;

	if (!call)
		return 0;
	expr = call->argument[0];
	regs = call->argument[1];
	pkt = call->argument[2];
	begun = &trail_of(call->cpu)->step[call->step % TSDT_TRAIL_STEPS];
	if (begun->pkt == pkt && begun->what == expr + TRAIL_PENDING)
		begun->pkt = 0;
	bpf_map_delete_elem(&calls, &frame);

	code = MODULE_READ(nft_regs, regs, verdict.code);
	if (code == NFT_JUMP || code == NFT_GOTO) {
		trail_add(trail, (void *)pkt, MODULE_READ(nft_regs, regs, verdict.chain), TRAIL_JUMP_TO);
		trail_add(trail, (void *)pkt, (void *)expr, TRAIL_JUMP_BY);
	} else if ((code & NF_VERDICT_MASK) == NF_DROP) {
		trail_add(trail, (void *)pkt, (void *)expr, TRAIL_DROP);
		leave_nft_verdict(pkt);
	} else if (kind == TARGET && compat_follows_queues && (code & NF_VERDICT_MASK) == NF_QUEUE) {
		nft_queued((struct nft_expr *)expr, (struct nft_pktinfo *)pkt);
	}
	return 0;
}

#define NFT_EXPRESSION_OF(function, kind)                                                                \
	ENTRY_OF(function) int function##_begin(struct pt_regs *ctx) { return expression_begins(ctx); } \
	EXIT_OF(function) int function##_end(struct pt_regs *ctx) { return expression_ends(ctx, kind); }
#define NFT_EXPRESSION(function) NFT_EXPRESSION_OF(function, EXPRESSION)
#define NFT_TARGET(function) NFT_EXPRESSION_OF(function, TARGET)
