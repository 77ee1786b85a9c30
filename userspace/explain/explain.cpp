// SPDX-License-Identifier: GPL-2.0-only
#include "explain/explain.h"

#include <algorithm>
#include <fmt/format.h>

#include "explain/condition.h"
#include "explain/match.h"
#include "explain/noise.h"
#include "explain/words.h"
#include "util/kallsyms.h"
#include "util/text.h"

namespace tsdroptrace::explain {

namespace {

void add_sentence(std::string& summary, std::string_view text) {
    if (!summary.empty())
        summary += ' ';
    summary += text;
}

void add_sentences(std::string& summary, std::span<const Sentence> sentences, const Subject& subject) {
    for (const Sentence& sentence : sentences)
        if (all_hold(sentence.conditions, subject))
            if (const auto filled = fill(sentence.text, subject, Use::sentence))
                add_sentence(summary, *filled);
}

// What these tools say and do depends on the network namespace that they run in. (Of net.core's sysctls only somaxconn
// does; the others are not there in another one than the first.)
bool is_for_a_netns(std::string_view command) {
    constexpr std::string_view tools[] = {"arptables*", "bridge",     "conntrack", "ebtables*", "ethtool",
                                          "ip",         "ip6tables*", "iptables*", "ipvsadm",   "nft",
                                          "nstat",      "nsenter",    "ss",        "tc",        "tcpdump"};
    constexpr std::string_view sysctls[] = {" net.ipv", " net.netfilter.", " net.core.somaxconn"};
    const auto names = [&](std::string_view what) { return command.find(what) != std::string_view::npos; };
    const std::string_view tool = command.substr(0, command.find(' '));
    return std::ranges::any_of(tools, [&](std::string_view known) { return matches(known, tool); }) ||
           (tool == "sysctl" && std::ranges::any_of(sysctls, names)) || (tool == "cat" && names(" /proc/net/")) ||
           command.starts_with("bpftool net");
}

// A command for another network namespace must not run in this one by mistake: without a name it has a
// placeholder that makes it fail until it is replaced.
void move_to_netns(Fix& fix, const Netns& netns) {
    if (netns.initial || !is_for_a_netns(fix.action))
        return;
    if (netns.inode == 0) {
        fix.risk += "; in the packet's network namespace, and which one that is is not known";
        return;
    }
    const std::string there =
        netns.name ? fmt::format("ip netns exec {} ", shell_word(*netns.name)) : "nsenter -t PID -n ";
    for (std::size_t at = 0; at != std::string::npos; at = fix.action.find("; ", at)) {
        at += at == 0 ? 0 : 2;
        fix.action.insert(at, there);
        at += there.size();
    }
    if (!netns.name)
        fix.risk += fmt::format("; PID is any process in network namespace {} (lsns -t net)", netns.inode);
}

std::vector<Fix> fill_fixes(std::span<const FixTemplate> templates, const Subject& subject) {
    std::vector<Fix> fixes;
    for (const FixTemplate& fix : templates) {
        if (!all_hold(fix.conditions, subject))
            continue;
        auto action = fill(fix.action, subject, Use::command);
        auto risk = fill(fix.risk, subject, Use::sentence);
        if (!action || !risk)
            continue;
        if (const std::string warning = shadow_warning(*action, subject.drop); !warning.empty())
            *risk += "; " + warning;
        move_to_netns(fixes.emplace_back(Fix{std::move(*action), std::move(*risk)}), subject.drop.netns);
    }
    return fixes;
}

// The name of the first ipset that a rule of iptables asks; empty when there is none.
std::string_view set_name(const Rule& rule) {
    constexpr std::string_view option = "--match-set ";
    const std::size_t at = rule.text ? rule.text->find(option) : std::string::npos;
    if (at == std::string::npos)
        return {};
    const std::string_view rest = std::string_view(*rule.text).substr(at + option.size());
    return rest.substr(0, rest.find(' '));
}

bool is_clue(const OwnerPattern& pattern, const Rule& rule) {
    switch (pattern.clue) {
    case Clue::comment:
        return rule.text && rule.text->find(pattern.pattern) != std::string::npos;
    case Clue::chain:
        return matches(pattern.pattern, rule.chain);
    case Clue::set:
        return matches(pattern.pattern, set_name(rule));
    case Clue::table: {
        const std::size_t space = pattern.pattern.find(' ');
        return matches(pattern.pattern.substr(0, space), to_string(rule.family)) &&
               matches(pattern.pattern.substr(space + 1), rule.table);
    }
    }
    return false;
}

std::string clue_text(Clue clue, const Rule& rule) {
    switch (clue) {
    case Clue::comment:
        return "its comment";
    case Clue::chain:
        return "chain " + rule.chain;
    case Clue::set:
        return fmt::format("set {}", set_name(rule));
    case Clue::table:
        return fmt::format("table {} {}", to_string(rule.family), rule.table);
    }
    return {};
}

// The reasons that the cause asks for; none when it may be another.
std::span<const std::string_view> exact_reasons(const KnownCause& cause) {
    const auto asks = std::ranges::find_if(cause.conditions,
                                           [](const Condition& c) { return c.field == Field::reason && !c.negated; });
    const bool exact =
        asks != cause.conditions.end() &&
        std::ranges::none_of(asks->values, [](std::string_view reason) { return reason.ends_with('*'); });
    return exact ? asks->values : std::span<const std::string_view>{};
}

bool may_be(const KnownCause& cause, DropKind kind) {
    return std::ranges::all_of(cause.conditions, [&](const Condition& c) {
        return c.field != Field::kind || (std::ranges::find(c.values, to_string(kind)) != c.values.end()) != c.negated;
    });
}

// What an entry knows by the name of a table or chain, or by a rule's text, it knows of IP, unless it asks for a
// family: the legacy tables of ARP and of bridges have tables and chains of the same names.
bool may_speak_of(const KnownCause& cause, const Drop& drop) {
    constexpr Field of_ip[] = {Field::table, Field::chain, Field::path, Field::jumps, Field::text};
    if (!drop.rule || other_legacy_tool(*drop.rule).empty())
        return true;
    const auto asks = [&](Field field) {
        return std::ranges::find(cause.conditions, field, &Condition::field) != cause.conditions.end();
    };
    return asks(Field::family) || std::ranges::none_of(of_ip, asks);
}

// What follows from a rule that nobody saw dropping the packet says so, each sentence for itself.
void add_doubt(Explanation& explanation, const Drop& drop) {
    if (!drop.rule || drop.rule->confidence == Confidence::exact)
        return;
    const std::string_view what = drop.site.kind == DropKind::policy ? "policy" : "rule";
    explanation.summary = fmt::format("If it was this {}, which is inferred from its counter and was not seen: {}",
                                      what, explanation.summary);
    for (Fix& fix : explanation.fixes)
        if (!fix.risk.starts_with("none"))
            fix.risk = fmt::format("helps only if it was this {}; {}", what, fix.risk);
}

} // namespace

Explainer::Explainer(std::optional<Backend> plain_iptables, std::shared_ptr<const OwnedCatalogue> own)
    : plain_iptables_(plain_iptables), own_(std::move(own)) {
    if (own_)
        catalogues_.push_back(own_->view());
    catalogues_.push_back(builtin_catalogue());
    for (const Catalogue& catalogue : catalogues_)
        for (const Service& service : catalogue.services)
            if (const auto network = network_of(service.cidr))
                services_.emplace_back(*network, &service);
    for (const Catalogue& catalogue : catalogues_)
        for (const KnownCause& cause : catalogue.causes)
            add(cause);
}

void Explainer::add(const KnownCause& cause) {
    for (const DropKind kind : {DropKind::rule, DropKind::policy, DropKind::hook})
        if (may_be(cause, kind))
            causes_[static_cast<std::size_t>(kind)].push_back(&cause);
    if (!may_be(cause, DropKind::kernel))
        return;
    auto& of_any_reason = causes_[static_cast<std::size_t>(DropKind::kernel)];
    const auto reasons = exact_reasons(cause);
    for (const std::string_view reason : reasons)
        by_reason_.try_emplace(reason, of_any_reason).first->second.push_back(&cause);
    if (!reasons.empty())
        return;
    of_any_reason.push_back(&cause);
    for (auto& [reason, causes] : by_reason_)
        causes.push_back(&cause);
}

const std::vector<const KnownCause*>& Explainer::candidates(const DropSite& site) const {
    if (site.kind == DropKind::kernel)
        if (const auto found = by_reason_.find(reason_of(site)); found != by_reason_.end())
            return found->second;
    return causes_[static_cast<std::size_t>(site.kind)];
}

std::optional<Owner> Explainer::owner(const Rule& rule) const {
    for (const Catalogue& catalogue : catalogues_)
        for (const OwnerPattern& pattern : catalogue.owners)
            if (is_clue(pattern, rule))
                return Owner{std::string(pattern.name), clue_text(pattern.clue, rule),
                             std::string(pattern.configured_by)};
    return std::nullopt;
}

Subject Explainer::subject_of(const Drop& drop) const {
    const auto lives_there = [&](const auto& service) { return contains(service.first, peer(drop)); };
    const auto service = std::ranges::find_if(services_, lives_there);
    return {drop, drop.owner || !drop.rule ? drop.owner : owner(*drop.rule), plain_iptables_,
            service == services_.end() ? nullptr : service->second};
}

const KnownCause* Explainer::cause_of(const Drop& drop) const {
    return cause_of(subject_of(drop));
}

const KnownCause* Explainer::cause_of(const Subject& subject) const {
    const auto& candidates = this->candidates(subject.drop.site);
    // An entry may need a value that this packet lacks; then a more general one may still do.
    const auto says_something = [&](const Sentence& sentence) {
        return all_hold(sentence.conditions, subject) && fill(sentence.text, subject, Use::sentence);
    };
    const auto found = std::ranges::find_if(candidates, [&](const KnownCause* cause) {
        return may_speak_of(*cause, subject.drop) && all_hold(cause->conditions, subject) &&
               std::ranges::any_of(cause->sentences, says_something);
    });
    return found == candidates.end() ? nullptr : *found;
}

std::shared_ptr<const Explanation> Explainer::explain(const Drop& drop) const {
    const Subject subject = subject_of(drop);
    const KnownCause* cause = cause_of(subject);
    if (cause == nullptr)
        return nullptr;
    auto out = std::make_shared<Explanation>();
    out->id = cause->id;
    add_sentences(out->summary, cause->sentences, subject);
    for (const Catalogue& catalogue : catalogues_)
        add_sentences(out->summary, catalogue.notes, subject);
    out->fixes = fill_fixes(cause->fixes, subject);
    out->reference = cause->reference;
    add_doubt(*out, drop);
    return out;
}

std::set<std::string> Explainer::wanted_sysctls(const Drop& drop) const {
    const Subject subject = subject_of(drop);
    std::set<std::string> names;
    // Whatever can be told without asking holds, or may hold for another packet that the answer is for, too.
    const auto possible = [&](std::span<const Condition> conditions) {
        return std::ranges::all_of(conditions, [&](const Condition& c) {
            return is_evidence(c.field) || is_of_one_packet(c.field) || holds(c, subject);
        });
    };
    const auto ask = [&](std::span<const Condition> conditions) {
        if (!possible(conditions))
            return;
        for (const Condition& condition : conditions)
            if (condition.field == Field::sysctl)
                if (std::string name = sysctl_name(condition.argument, drop); !name.empty())
                    names.insert(std::move(name));
    };
    for (const KnownCause* cause : candidates(drop.site)) {
        if (!may_speak_of(*cause, drop) || !possible(cause->conditions))
            continue;
        ask(cause->conditions);
        for (const Sentence& sentence : cause->sentences)
            ask(sentence.conditions);
        for (const FixTemplate& fix : cause->fixes)
            ask(fix.conditions);
    }
    for (const Catalogue& catalogue : catalogues_)
        for (const Sentence& note : catalogue.notes)
            ask(note.conditions);
    return names;
}

bool Explainer::is_noise(const Drop& drop) const {
    if (drop.site.kind != DropKind::kernel)
        return false;
    const std::string_view reason = reason_of(drop.site), symbol = symbol_of(drop.site.location);
    return std::ranges::any_of(noise(), [&](const Noise& n) {
        return n.reason == reason && (n.symbol.empty() || n.symbol == symbol) &&
               (n.icmp_type == Noise::any_icmp_type || drop.packet.icmp_type == n.icmp_type);
    });
}

} // namespace tsdroptrace::explain
