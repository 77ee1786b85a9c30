// SPDX-License-Identifier: GPL-2.0-only
// Just enough of the two rule languages to know what a rule does with a packet.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace tsdroptrace::resolve_rule {

// The words of a rule. What is in double quotes is one word with its quotes; only iptables escapes these with \.
std::vector<std::string_view> split_rule(std::string_view text, bool backslash_escapes);

// "drop", "accept", "return", "continue", "jump", "goto", "queue" or "reject": what the rule, as nft prints it,
// ends in; empty for anything else, verdict maps included.
std::string nft_verdict(std::string_view rule);

// The same of an "-A chain ..." line of iptables-save.
std::string iptables_verdict(std::string_view rule);

// The chain, or iptables' extension, that the rule hands the packet to: after jump, goto, -j or -g. Empty when there is
// none, or several in a verdict map.
std::string nft_jump(std::string_view rule);
std::string iptables_jump(std::string_view rule);

// Whether an iptables line can stand for an nft line of the same rule. iptables-nft (1.8.9, say) prints rules
// that nft made with sets, maps or address ranges as if those were not there: `iifname { "a", "b" } drop`
// becomes `-j DROP`. Such a line is worse than none.
bool says_the_same(std::string_view iptables_rule, std::string_view nft_rule);

} // namespace tsdroptrace::resolve_rule
