// SPDX-License-Identifier: GPL-2.0-only
// Whose rule it was, why the packet died, and what to do about it. Pure: a drop in, words out. What is
// known is data, one file each: owners.cpp, services.cpp, causes.cpp, reasons.cpp, noise.cpp.
#pragma once

#include <memory>
#include <optional>

#include "model.h"

namespace tsdroptrace::explain {

class Explainer {
public:
    // `plain_iptables`: which backend the bare command `iptables` edits on this machine, so that fixes can
    // use the name that people type; where it is not known they say iptables-legacy or iptables-nft.
    explicit Explainer(std::optional<Backend> plain_iptables = std::nullopt) : plain_iptables_(plain_iptables) {}

    // Reads packet, site, netns, rule and owner of the drop; the rest need not be filled in yet.
    // Null when nothing is known about it. Fixes quote outside names for a shell; they are not escaped for a
    // terminal, which is the output's business.
    std::shared_ptr<const Explanation> explain(const Drop&) const;

    // By the name of the chain or table, or by the rule's comment: evidence, not proof. nullopt: none known.
    std::optional<Owner> owner(const Rule&) const;

    // True for what a healthy machine drops all day. A netfilter drop is never noise.
    bool is_noise(const Drop&) const;

private:
    std::optional<Backend> plain_iptables_;
};

} // namespace tsdroptrace::explain
