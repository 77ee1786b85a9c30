// SPDX-License-Identifier: GPL-2.0-only
// Where the kernel does not let a backend's rules be seen dropping: which rule has most likely dropped a packet, going
// by the counters of all rules before it died and after. Pure: looks and packets in, answers out.
//
// The answer is what is left over. Of the rules and policies of the ruleset those are out that do not drop, that do not
// stand at the packet's hook, that cannot match it, and whose counter has not moved. If one is left, and it has a
// counter that has moved by at least as many packets and bytes as have died by it, it is the answer, marked inferred.
// Rules without a counter are always left: beside one of these it must have moved by just as many. If none or several
// are left, or one without a counter, or the ruleset is another one, there is no answer, but a sentence.
#pragma once

#include <cstdint>
#include <deque>
#include <list>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "bpf/event.h"
#include "model.h"
#include "resolve_rule/look.h"

namespace tsdroptrace::resolve_rule {

// The backends whose rules are inferred.
struct InferredBackends {
    bool legacy = false, nf_tables = false;
};

// What is asked of one dropped packet.
struct Question {
    std::vector<SnapshotKind> kinds; // the rulesets that may have dropped it
    std::uint32_t netns = 0;
    std::uint8_t pf = 0; // NFPROTO_* of the hook, 0 when not known
    std::optional<Hook> hook;
    std::int64_t mono_ns = 0; // when it died
    Packet packet;
};

// nullopt: no rule of these backends has dropped the packet, or the kernel has named it. `kernel`: its release, which
// tells where nf_tables' packets are freed.
std::optional<Question> question_of(const Drop& drop, const tsdt_cause& cause, std::string_view kernel,
                                    InferredBackends backends);

struct Answer {
    std::shared_ptr<const Rule> rule; // null: not known
    bool policy = false;
    std::string unknown; // why not: a sentence without a full stop
};

class RulesetIndex;

// Keeps the last few looks at each ruleset. Not thread-safe.
class Inference {
public:
    Inference();
    ~Inference();
    Inference(Inference&&) noexcept;
    Inference& operator=(Inference&&) noexcept;

    static constexpr std::size_t max_rulesets = 64; // kinds times namespaces; the longest unused one goes first
    // A rule counts a packet before the packet dies: this long at most.
    static constexpr std::int64_t margin_ns = 1'000'000;

    // A look whose counters do not fit its snapshot counts as one with a problem.
    void add(Look look);

    // Whether the looks that are needed to answer are there.
    bool ready(const Question& question) const;

    // The answers to questions that are ready, in their order. All that can be answered belong into one call: packets
    // share what the counters have moved by.
    std::vector<Answer> answer(const std::vector<const Question*>& questions);

    // Without having looked.
    static Answer not_looked();

private:
    struct Seen {
        Look look;
        std::shared_ptr<const RulesetIndex> index;
        std::map<std::size_t, Counts> spent; // by place: what packets of the time until the next look have taken
    };
    struct Ruleset {
        SnapshotKind kind;
        std::uint32_t netns;
        std::deque<Seen> seen; // oldest first
    };
    struct Window; // two looks
    struct Candidate;
    static constexpr std::size_t max_seen = 4;

    Ruleset* find(SnapshotKind kind, std::uint32_t netns);
    const Ruleset* find(SnapshotKind kind, std::uint32_t netns) const;
    std::string candidates(const Question& question, std::vector<Candidate>& out);
    static Answer told(const Question& question, const Candidate& candidate, const Counts& moved, bool beside_silent);

    std::list<Ruleset> rulesets_; // most recently used first
};

} // namespace tsdroptrace::resolve_rule
