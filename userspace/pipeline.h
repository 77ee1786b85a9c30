// SPDX-License-Identifier: GPL-2.0-only
// The way of one dropped packet through the stages: decode > resolve_rule > evidence > explain > aggregate > output.
// Where the records come from, a running kernel (live.cpp) or a recording (replay.cpp), makes no difference here.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "aggregate/aggregate.h"
#include "bpf/event.h"
#include "decode/decode.h"
#include "evidence/evidence.h"
#include "explain/explain.h"
#include "output/output.h"
#include "resolve_rule/resolve_rule.h"
#include "util/result.h"

namespace tsdroptrace {

// What the kernel has counted, at one moment.
struct KernelCounts {
    std::vector<tsdt_cause> causes;
    std::vector<std::pair<tsdt_flow_key, std::uint64_t>> flows;
    std::map<std::string, std::uint64_t> lost; // where -> events
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

    // One packet and its cause. Returns true when it was shown, false when it is noise.
    bool drop(const tsdt_drop& record, const tsdt_cause& cause);

    // Last counts of causes that the kernel has forgotten: they stay in the summary. All their drops were handed over.
    void retire(const KernelCounts& counts, std::int64_t now_ns);

    void lost(const Lost& lost);
    void ruleset(RulesetChange change); // netns name and owners are filled in here
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
    Counts decode_counts(const KernelCounts& counts, std::int64_t now_ns, bool final);
    Summary summarize(const KernelCounts& counts, std::int64_t now_ns, bool final);
    void complete(Drop& drop, const tsdt_cause& cause, const tsdt_drop& record);
    void check(const Status& status);

    const decode::Machine& machine_;
    resolve_rule::Resolver resolver_;
    evidence::Source& evidence_;
    explain::Explainer explainer_;
    aggregate::Aggregator aggregator_;
    std::vector<std::unique_ptr<output::Output>> outputs_;
    std::set<std::uint32_t> known_causes_; // tsdt_cause.id; the kernel's map bounds how many there are
    std::optional<Error> output_error_;
    bool reader_gone_ = false;
};

} // namespace tsdroptrace
