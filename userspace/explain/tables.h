// SPDX-License-Identifier: GPL-2.0-only
// The shape of what is known. To teach tsdroptrace something, add a line to the table in the file of that
// name; the first line that matches wins.
//
// Sentences and fixes may hold placeholders, filled in from the packet (explain.cpp lists them all):
//   {src} {dst} {dst_end} {in_dev} {out_dev} {chain} {table} {base} {hook} {owner} {configured_by} {peer} ...
// A sentence or fix with a placeholder that has no value for this packet is left out, so nothing is claimed
// that the event does not hold.
#pragma once

#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "model.h"

namespace tsdroptrace::explain {

// `action` is a command on one line, or a setting in at most 67 columns: outputs never break it.
struct FixTemplate {
    std::string_view action, risk;
};

// ---- owners.cpp: who writes rules under this name ----

enum class Evidence { comment, chain, table };

struct OwnerPattern {
    Evidence evidence;
    // comment: text within the rule; chain: its name; table: "family name", as nft prints it. A * at the end
    // stands for anything, and so does a family of *.
    std::string_view pattern;
    std::string_view name;
    std::string_view configured_by; // a command or a setting, as in FixTemplate
};

std::span<const OwnerPattern> owners();

// ---- services.cpp: who lives at an address ----

inline constexpr std::string_view never_accept = "never";

struct Service {
    std::string_view cidr;
    std::string_view who; // "100.100.2.136 is ..."
    // What a rule that lets it in should name: a CIDR; empty for the single address; never_accept where
    // nothing with this source can rightly come from outside.
    std::string_view accept;
    bool dns = false;
};

std::span<const Service> services();

// ---- causes.cpp: drops by netfilter ----

enum class Owned { either, yes, no };

struct KnownCause {
    std::string_view id;
    DropKind kind = DropKind::rule;
    std::optional<Hook> hook{};
    std::string_view table{}, chain{};    // exact, or a beginning with * at the end; empty matches any
    std::vector<std::string_view> text{}; // all of them are in the rule's text
    std::string_view source{};            // CIDR that holds the packet's source; empty matches any
    std::string_view verdict{};           // of the rule; empty matches any
    Owned owned = Owned::either;
    // Beginning of the hook function's name; empty matches any drop, * those of which the function is known.
    std::string_view function{};
    std::optional<QueueFate> queue{};
    std::vector<std::string_view> sentences{};
    std::vector<FixTemplate> fixes{}; // best first
};

std::span<const KnownCause> causes();

// ---- reasons.cpp: drops by the rest of the kernel ----

struct KnownReason {
    std::string_view reason; // without SKB_DROP_REASON_
    std::string_view symbol; // function that freed the packet; * for any that is known, empty for any at all
    std::vector<std::string_view> sentences;
    std::vector<FixTemplate> fixes;
};

std::span<const KnownReason> reasons();

// ---- noise.cpp ----

struct Noise {
    std::string_view reason;
    std::string_view symbol;       // as in KnownReason
    int icmp_type = any_icmp_type; // only packets of this ICMP type

    static constexpr int any_icmp_type = -1;
};

std::span<const Noise> noise();

} // namespace tsdroptrace::explain
