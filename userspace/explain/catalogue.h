// SPDX-License-Identifier: GPL-2.0-only
// What is known about drops, as data: catalogue/*.yaml holds what comes with the program (compiled into it, see
// catalogue_tables.cpp), /etc/tsdroptrace/explain.d what the user adds. The first cause, owner or service that fits
// wins, the user's first.
//
// Sentences and fixes may hold placeholders, {src} for example, filled in from the drop; words.cpp lists them. A
// sentence or fix with a placeholder that has no value for this packet is left out, so nothing is claimed that the
// event does not hold.
#pragma once

#include <cstdint>
#include <deque>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace tsdroptrace::explain {

// What a condition looks at; condition.cpp says what each is.
enum class Field : std::uint8_t {
    kind,
    hook,
    backend,
    family,
    table,
    chain,
    path,
    jumps,
    text,
    verdict,
    confidence,
    source,
    destination,
    peer,
    owner,
    reason,
    symbol,
    function,
    queue,
    conntrack,
    answer,
    direction,
    received,
    sender,
    in_dev,
    out_dev,
    protocol,
    source_port,
    destination_port,
    icmp_type,
    mark,
    route_type,
    route_dev,
    route_table,
    tailnet_peer,
    socket_waits,
    sysctl,
};

// Holds when the field has one of the values, or, in `unless`, when it has none of them.
struct Condition {
    Field field = Field::kind;
    std::string_view argument; // of sysctl: its name, in which {in_dev} and {out_dev} may stand
    std::span<const std::string_view> values;
    bool negated = false; // in `unless`
};

struct Sentence {
    std::string_view text;
    std::span<const Condition> conditions;
};

// `action` is a command on one line, or a setting in at most 67 columns: outputs never break it.
struct FixTemplate {
    std::string_view action, risk;
    std::span<const Condition> conditions;
};

struct KnownCause {
    std::string_view id;
    std::span<const Condition> conditions; // all of them must hold
    std::span<const Sentence> sentences;
    std::span<const FixTemplate> fixes; // best first
    std::string_view reference;         // an address, or an issue: tailscale/tailscale#15863; may be empty
};

enum class Clue : std::uint8_t { comment, chain, set, table };

// Who writes rules under this name.
struct OwnerPattern {
    Clue clue = Clue::chain;
    // comment: text within the rule; chain: its name; set: the name of an ipset that the rule asks; table: "family
    // name", as nft prints it. A * at the end stands for anything, and so does a family of *.
    std::string_view pattern;
    std::string_view name;
    std::string_view configured_by; // a command or a setting, as in FixTemplate; may be empty
};

inline constexpr std::string_view never_accept = "never";

// Who lives at an address.
struct Service {
    std::string_view cidr;
    std::string_view who; // "100.100.2.136 is ..."
    // What a rule that lets it in should name: a CIDR; empty for the single address; never_accept where
    // nothing with this source can rightly come from outside.
    std::string_view accept;
    bool dns = false;
    std::string_view source; // who says so
};

struct Catalogue {
    std::span<const KnownCause> causes;
    std::span<const Sentence> notes; // said of whatever cause it is, where their conditions hold
    std::span<const OwnerPattern> owners;
    std::span<const Service> services;
};

// The one that comes with the program.
const Catalogue& builtin_catalogue();

// A catalogue that was read from text, and what its views point into.
class OwnedCatalogue {
public:
    OwnedCatalogue() = default;
    OwnedCatalogue(const OwnedCatalogue&) = delete;
    OwnedCatalogue& operator=(const OwnedCatalogue&) = delete;

    std::string_view keep(std::string text) { return texts_.emplace_back(std::move(text)); }
    std::span<const std::string_view> keep(std::vector<std::string_view> list) {
        return values_.emplace_back(std::move(list));
    }
    std::span<const Condition> keep(std::vector<Condition> list) { return conditions_.emplace_back(std::move(list)); }
    std::span<const Sentence> keep(std::vector<Sentence> list) { return sentences_.emplace_back(std::move(list)); }
    std::span<const FixTemplate> keep(std::vector<FixTemplate> list) { return fixes_.emplace_back(std::move(list)); }

    Catalogue view() const { return {causes, notes, owners, services}; }

    std::vector<KnownCause> causes;
    std::vector<Sentence> notes;
    std::vector<OwnerPattern> owners;
    std::vector<Service> services;

private:
    std::deque<std::string> texts_;
    std::deque<std::vector<std::string_view>> values_;
    std::deque<std::vector<Condition>> conditions_;
    std::deque<std::vector<Sentence>> sentences_;
    std::deque<std::vector<FixTemplate>> fixes_;
};

} // namespace tsdroptrace::explain
