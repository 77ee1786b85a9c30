// SPDX-License-Identifier: GPL-2.0-only
// Matches of iptables that may drop a packet by themselves (`hotdrop`): one whose header is cut short, one that they have
// no room to remember. No counter moves then, and nf_tables sees a verdict without a rule's target. Legacy tables
// (ipt_match.h) and iptables-nft (nft_rule.h) call the same functions. Nobody pays for them until something has died that
// one may have dropped: only then userspace has them traced.
#pragma once

#include "maps.h"

// The first eight bytes of a name as one number: the verifier follows every branch of a loop over them. Of a name that
// is shorter, its end counts as well.
#define NAME8(name) (*(const u64 *)(const char[16]){name})
#define NAME_IS(name8, name) \
	(((name8) ^ NAME8(name)) << (sizeof(name) > 8 ? 0 : 64 - 8 * sizeof(name)) == 0)

// Matches that never drop by themselves, up to 7.2. One that is not known may.
static __always_inline bool is_harmless(u64 name)
{
	return NAME_IS(name, "conntrack") | NAME_IS(name, "state") | NAME_IS(name, "comment") |
	       NAME_IS(name, "addrtype") | NAME_IS(name, "mark") | NAME_IS(name, "connmark") |
	       NAME_IS(name, "limit") | NAME_IS(name, "set") | NAME_IS(name, "physdev") | NAME_IS(name, "owner") |
	       NAME_IS(name, "mac") | NAME_IS(name, "pkttype") | NAME_IS(name, "length") | NAME_IS(name, "tos") |
	       NAME_IS(name, "dscp") | NAME_IS(name, "ttl") | NAME_IS(name, "hl") | NAME_IS(name, "iprange") |
	       NAME_IS(name, "time") | NAME_IS(name, "statistic") | NAME_IS(name, "quota") | NAME_IS(name, "socket") |
	       NAME_IS(name, "rpfilter") | NAME_IS(name, "helper") | NAME_IS(name, "connbytes") |
	       NAME_IS(name, "connlabel") | NAME_IS(name, "cgroup") | NAME_IS(name, "bpf") |
	       NAME_IS(name, "devgroup") | NAME_IS(name, "cpu") | NAME_IS(name, "realm") | NAME_IS(name, "nfacct") |
	       NAME_IS(name, "string") | NAME_IS(name, "policy") | NAME_IS(name, "ipvs") | NAME_IS(name, "rateest");
}

#define SUSPECT_UNKNOWN 1 // in place of a function

// The function of a match that may drop by itself; 0 when it cannot.
__noinline u64 dropping_match(u64 match)
{
	u64 name = 0, function = 0;

	if (!compat_knows_matches())
		return SUSPECT_UNKNOWN;
	bpf_probe_read_kernel(&name, sizeof(name), (void *)match + MODULE_FIELD_OFFSET(xt_match, name));
	if (is_harmless(name))
		return 0;
	bpf_probe_read_kernel(&function, sizeof(function), (void *)match + MODULE_FIELD_OFFSET(xt_match, match));
	return function ? function : SUSPECT_UNKNOWN;
}

static __always_inline void name_function(struct tsdt_step *out, u64 function)
{
	static const char unknown[] = "one that is not known";

	if (function == SUSPECT_UNKNOWN) {
		bpf_probe_read_kernel_str(out->chain, sizeof(unknown), unknown);
		return;
	}
	compat_symbol(out->chain, sizeof(out->chain), function);
	out->handle = function;
}
