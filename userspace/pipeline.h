// SPDX-License-Identifier: GPL-2.0-only
// The way of one dropped packet through the stages: decode > resolve_rule > evidence > explain > aggregate > output.
// Where the records come from, a running kernel (live.cpp) or a recording (replay.cpp), makes no difference here.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "aggregate/aggregate.h"
#include "aggregate/stopped.h"
#include "bpf/event.h"
#include "check/probe.h"
#include "decode/decode.h"
#include "evidence/evidence.h"
#include "explain/explain.h"
#include "output/output.h"
#include "resolve_rule/inference.h"
#include "resolve_rule/resolve_rule.h"
#include "resolve_rule/rule_match.h"
#include "util/result.h"

namespace tsdroptrace {

// What the kernel has counted, at one moment.
struct KernelCounts {
    std::vector<tsdt_cause> causes;
    std::vector<std::pair<tsdt_flow_key, std::uint64_t>> flows;
    std::map<std::string, std::uint64_t> lost; // where -> events
    // Packets that pass; none: they are not counted.
    std::optional<std::vector<tsdt_seen_count>> seen = {};
    std::vector<Way> ways = {}; // of the last counts
    // CLOCK_MONOTONIC: the records of all packets that died before have been handed to the pipeline.
    std::uint64_t handled_until_ns = ~std::uint64_t{0};
};

class Pipeline {
public:
    // `machine`, `snapshots` and `evidence` must outlive the Pipeline; `machine` may be brought up to date between
    // calls.
    Pipeline(const decode::Machine& machine, resolve_rule::SnapshotSource& snapshots, evidence::Source& evidence,
             explain::Explainer explainer, std::int64_t since_ns)
        : machine_(machine), resolver_(snapshots), evidence_(evidence), explainer_(std::move(explainer)),
          aggregator_(since_ns) {}

    void add_output(std::unique_ptr<output::Output> output) { outputs_.push_back(std::move(output)); }

    void start(const Start& start);

    // One packet and its cause. Returns true when it was shown, or will be, false when it is noise. Where the rule is
    // to be inferred, it is shown once the counters have been looked at.
    bool drop(const tsdt_drop& record, const tsdt_cause& cause);

    // Last counts of causes that the kernel has forgotten: they stay in the summary. All their drops were handed over.
    void retire(const KernelCounts& counts);
    // The rulesets whose counters have to be looked at for packets that are waiting, and when the first of these has
    // died (CLOCK_MONOTONIC).
    std::map<std::pair<resolve_rule::SnapshotKind, std::uint32_t>, std::uint64_t> waiting() const;
    void look(resolve_rule::Look look);
    // There will be no look any more: what is waiting is shown without.
    void stop_waiting();

    void lost(const Lost& lost);
    void ruleset(RulesetChange change); // netns name and owners are filled in here
    // Whether changes of rulesets are waiting for counts, by which it may be known that they have stopped drops.
    bool awaits_counts() const { return stops_.open(); }
    // Whether a rule has dropped something so lately that a change which comes now may have stopped it.
    // (CLOCK_REALTIME)
    bool may_stop(std::int64_t now_ns) const { return now_ns - last_by_rule_ns_ <= aggregate::Stops::most_before_ns; }
    // What is known to have stopped by these counts (their flows do not matter): to be handed to stopped().
    std::vector<Stopped> judge(const KernelCounts& counts, std::int64_t now_ns);
    void stopped(Stopped stopped); // netns name and owner are filled in here
    // The clock was set: times before and after it do not compare.
    void clock_set() { stops_ = {}; }
    // Says what came of `tsdroptrace check`, by the last counts.
    CheckVerdict check(const check::Target& target, const check::Answer& answer, const KernelCounts& counts,
                       std::int64_t now_ns);
    void progress(const KernelCounts& counts, std::int64_t now_ns);
    void summary(const KernelCounts& counts, std::int64_t now_ns, bool final);

    // The first thing that an output could not do, if any; the others went on.
    const std::optional<Error>& output_error() const { return output_error_; }
    // An output's reader is gone: it will not come back, as room on a disk may.
    bool reader_gone() const { return reader_gone_; }

private:
    struct Counts {
        std::vector<aggregate::CauseCount> causes;
        std::vector<aggregate::FlowCount> flows;
    };
    Counts decode_counts(const KernelCounts& counts) const;
    void introduce(const KernelCounts& counts, std::vector<aggregate::CauseCount>& causes, bool final);
    Summary summarize(const KernelCounts& counts, std::int64_t now_ns, bool final);
    void complete(Drop& drop);
    void remember_writers(const RulesetChange& change);
    std::shared_ptr<const RulesetChange> written(const Drop& drop) const;
    void show(Drop& drop);
    bool cannot_have_matched(const Drop& drop);
    void disown(Drop& drop);
    void count_apart(Drop& drop);
    void settle(Drop& drop, resolve_rule::Answer answer);
    void check(const Status& status);

    const decode::Machine& machine_;
    resolve_rule::Resolver resolver_;
    evidence::Source& evidence_;
    explain::Explainer explainer_;
    aggregate::Aggregator aggregator_;
    aggregate::Stops stops_;
    std::int64_t last_by_rule_ns_ = 0; // CLOCK_REALTIME
    std::vector<std::unique_ptr<output::Output>> outputs_;
    // Which change has brought a rule that drops, as far as that was seen.
    static constexpr std::size_t max_written = 2048;
    std::map<std::string, std::shared_ptr<const RulesetChange>> written_;
    std::set<std::uint32_t> known_causes_; // tsdt_cause.id; the kernel's map bounds how many there are

    // Where rules are inferred, packets of one of the kernel's causes may have died by several rules, and by unknown
    // ones. Those of one rule are a cause of their own, taken out of the kernel's; so are packets that the kernel's
    // side has told of a rule which cannot have matched them.
    using FlowKey = std::tuple<Address, std::uint16_t, Address, std::uint16_t, std::uint8_t>;
    struct Part {
        std::uint32_t id = 0, of = 0; // the kernel's cause
        std::uint64_t packets = 0, bytes = 0;
        std::int64_t first_ns = 0, last_ns = 0; // CLOCK_REALTIME
        std::map<FlowKey, std::uint64_t> flows;
    };
    struct Waiting {
        Drop drop;
        resolve_rule::Question question;
    };
    static constexpr std::size_t max_waiting = 2048, max_parts = 1024, max_part_flows = 8192;
    static constexpr std::uint32_t first_part = 0x80000000; // the kernel's ids are smaller

    Part* part_of(const Drop& drop);
    void split(std::vector<aggregate::CauseCount>& causes, std::vector<aggregate::FlowCount>& flows, bool final) const;

    // What rules of iptables-legacy ask of a packet.
    static constexpr std::size_t max_matches = 1024;
    std::map<std::shared_ptr<const Rule>, resolve_rule::RuleMatch> matches_;

    resolve_rule::InferredBackends inferred_;
    resolve_rule::Inference inference_;
    std::deque<Waiting> waiting_;
    std::map<std::string, Part> parts_; // by the kernel's cause and the rule
    std::size_t part_flows_ = 0;

    std::optional<Error> output_error_;
    bool reader_gone_ = false;
};

} // namespace tsdroptrace
