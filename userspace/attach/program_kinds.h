// SPDX-License-Identifier: GPL-2.0-only
// Which programs are not simply attached when their function is there, by the functions that their sections name.
#pragma once

#include <algorithm>
#include <iterator>
#include <string_view>

#include "attach/kernel_types.h"

namespace tsdroptrace::attach {

// Programs that are attached only when something has died that they can explain (bpf/hook_function.h, bpf/match.h). The
// first two are templates, for functions of any name.
inline constexpr std::string_view hook_function_template = "hook_function", match_template = "match_function";
inline constexpr std::string_view nft_matches[] = {"nft_match_eval", "nft_match_large_eval"};

inline bool is_template(std::string_view function) {
    return function == hook_function_template || function == match_template;
}

inline bool is_late_program(std::string_view function) {
    return is_template(function) || function == "nf_hook_run_bpf" ||
           std::ranges::find(nft_matches, function) != std::end(nft_matches);
}

// Programs on functions of the kernel itself that are of use only where a rule can hand packets to a queue: its module
// is there then.
inline bool is_queue_program(std::string_view function) {
    return function == "nf_queue" || function == "nf_register_queue_handler" || function == "nf_reinject";
}

// Targets of ebtables that may drop: enum bridge_target of bpf/ebt_table.h, in its order. (ebtables-nft has them too,
// but there they need no program of their own.)
inline constexpr std::string_view bridge_targets[] = {"ebt_arpreply_tg", "ebt_dnat_tg", "ebt_snat_tg",
                                                      "ebt_redirect_tg", "ebt_mark_tg"};

inline bool is_bridge_target(std::string_view function) {
    return std::ranges::find(bridge_targets, function) != std::end(bridge_targets);
}

inline bool rules_may_queue(const KernelTypes& types) {
    return types.function("nft_queue_eval") || types.function("nfqueue_tg_v3");
}

} // namespace tsdroptrace::attach
