// SPDX-License-Identifier: GPL-2.0-only
// Whose rule it was, why the packet died, and what to do about it. Pure: a drop in, words out. What is
// known is data: catalogue.h.
#pragma once

#include <memory>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "explain/catalogue.h"
#include "explain/match.h"
#include "model.h"

namespace tsdroptrace::explain {

struct Subject;

class Explainer {
public:
    // `plain_iptables`: which backend the bare command `iptables` edits on this machine, so that fixes can
    // use the name that people type; where it is not known they say iptables-legacy or iptables-nft.
    // `own`: the user's entries, which come before those of the program.
    explicit Explainer(std::optional<Backend> plain_iptables = std::nullopt,
                       std::shared_ptr<const OwnedCatalogue> own = nullptr);

    // Reads packet, site, netns, rule, owner, process and evidence of the drop; the rest need not be filled in yet.
    // Null when nothing is known about it. Fixes quote outside names for a shell; they are not escaped for a
    // terminal, which is the output's business.
    std::shared_ptr<const Explanation> explain(const Drop&) const;

    // By the name of the chain or table, or by the rule's comment: evidence, not proof. nullopt: none known.
    std::optional<Owner> owner(const Rule&) const;

    // The sysctls that could change the explanation of this drop: for Evidence::sysctls. Mostly none.
    std::set<std::string> wanted_sysctls(const Drop&) const;

    // True for what a healthy machine drops all day. A netfilter drop is never noise.
    bool is_noise(const Drop&) const;

    // The entry that fits; null when none does. For tests: explain() puts it in words.
    const KnownCause* cause_of(const Drop&) const;

private:
    void add(const KnownCause&);
    const std::vector<const KnownCause*>& candidates(const DropSite&) const;
    Subject subject_of(const Drop&) const;
    const KnownCause* cause_of(const Subject&) const;

    std::optional<Backend> plain_iptables_;
    std::shared_ptr<const OwnedCatalogue> own_;
    std::vector<std::pair<Network, const Service*>> services_; // all of them, in their order
    std::vector<Catalogue> catalogues_;                        // the user's first
    // In their order. By DropKind: most entries are for one kind, and most of those of the kernel for one reason;
    // of DropKind::kernel only those for any.
    std::vector<const KnownCause*> causes_[4];
    std::unordered_map<std::string_view, std::vector<const KnownCause*>> by_reason_;
};

} // namespace tsdroptrace::explain
