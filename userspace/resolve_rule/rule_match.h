// SPDX-License-Identifier: GPL-2.0-only
// Whether a rule could have matched a packet, and whether it could have dropped it, going by its text. In doubt: yes.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "model.h"
#include "resolve_rule/ruleset.h"

namespace tsdroptrace::resolve_rule {

// What a rule asks of the headers and devices of a packet, as far as it is understood: addresses, protocol, ports and
// devices. Sets by name, marks, states and all the rest are not looked at.
class RuleMatch {
public:
    RuleMatch() = default;
    // `backend` says whose words the text is in.
    RuleMatch(std::string_view text, Backend backend);

    // False: that packet cannot have matched. `devices_known`: its devices are those that netfilter was told.
    bool may_match(const Packet& packet, bool devices_known) const;

private:
    enum class What { src, dst, in_dev, out_dev, proto, sport, dport };
    struct Range {
        std::array<std::uint8_t, 16> low{}, high{}; // addresses; numbers in the last two bytes
    };
    struct Condition {
        What what;
        bool inverted = false;
        IpFamily family = IpFamily::other; // of addresses
        std::vector<Range> ranges;
        std::vector<std::string> names; // of devices; a + or * at the end stands for anything
    };

    void read_iptables(std::string_view text);
    void read_nft(std::string_view text);
    bool add(What what, bool inverted, const std::vector<std::string_view>& values);
    static bool holds(const Condition& condition, const Packet& packet, bool devices_known);

    std::vector<Condition> conditions_;
};

// Whether a packet may die by that rule: it drops or rejects, or it can: a verdict map, or a target that drops when it
// fails.
bool may_drop(const SnapshotRule& rule, Backend backend);

// The chains of nf_tables that the rule may lead to, by name; `any`: by a map whose elements are not listed.
struct JumpTargets {
    std::vector<std::string> chains;
    bool any = false;
};
JumpTargets jump_targets(const SnapshotRule& rule, Backend backend);

} // namespace tsdroptrace::resolve_rule
