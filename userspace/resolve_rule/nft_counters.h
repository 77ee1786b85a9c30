// SPDX-License-Identifier: GPL-2.0-only
// The counters of nf_tables' rules, straight from the kernel: a listing takes a hundred times as long.
#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>

#include "resolve_rule/look.h"
#include "util/result.h"

namespace tsdroptrace::resolve_rule {

struct NftRuleId {
    std::uint8_t family = 0; // NFPROTO_*
    std::string table;
    std::uint64_t handle = 0;
    auto operator<=>(const NftRuleId&) const = default;
};

struct NftCounters {
    std::uint32_t generation = 0;      // the kernel's own, of this namespace: the same number, the same ruleset
    std::map<NftRuleId, Counts> rules; // `packets` is Look::no_counter where a rule has none
    std::size_t anonymous = 0;         // rules of chains without a name: not among them
};

// Of the calling thread's network namespace. Fails when the kernel does not answer, or the ruleset kept changing.
Result<NftCounters> read_nft_counters();

// One message of the kernel's answer to NFT_MSG_GETRULE, from its struct nfgenmsg on. False: it is cut or has no
// handle.
bool read_nft_rule(std::span<const std::byte> message, NftCounters& counters);

} // namespace tsdroptrace::resolve_rule
