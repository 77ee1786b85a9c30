// SPDX-License-Identifier: GPL-2.0-only
// Turns the kernel's counts into the summary. Pure: counts and examples in, a Summary out.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <tuple>
#include <unordered_map>
#include <vector>

#include "model.h"

namespace tsdroptrace::aggregate {

// The kernel's count for one of its causes.
struct CauseCount {
    std::uint32_t id = 0; // Drop::cause_id
    std::uint64_t packets = 0, bytes = 0;
    std::int64_t first_ns = 0, last_ns = 0; // CLOCK_REALTIME
};

// The kernel's count for one flow within one of its causes.
struct FlowCount {
    std::uint32_t cause_id = 0;
    Flow flow;
};

// The kernel tells causes apart by code address, path and ruleset generation; a person calls it one cause
// when namespace, kind, reason, function, hook and rule are the same. That is what is merged here.
class Aggregator {
public:
    static constexpr std::size_t max_causes = 4096;  // after merging
    static constexpr std::size_t max_merged = 65536; // before; the kernel's map holds fewer, a recording may hold more

    // Tracing began at since_ns (CLOCK_REALTIME).
    explicit Aggregator(std::int64_t since_ns) : since_ns_(since_ns) {}

    // Remembers the drop as the example of its cause, if it is the first of it, or the first whose rule has a text.
    // True when the cause, after merging, is new: the time to show it in full. False also when max_causes are
    // remembered already.
    bool first_of_cause(const Drop& drop);

    // The last counts of causes that the kernel counts no more: merged, they stay in all summaries.
    void retire(const std::vector<CauseCount>& causes, const std::vector<FlowCount>& flows);

    // The counts so far, at until_ns (CLOCK_REALTIME). Causes of which no drop was ever given to
    // first_of_cause (its details were lost) are in one cause with an empty reason, so that the sum is exact.
    Summary summarize(const std::vector<CauseCount>& causes, const std::vector<FlowCount>& flows,
                      std::map<std::string, std::uint64_t> lost, std::int64_t until_ns, bool final) const;

private:
    using FlowKey = std::tuple<Address, std::uint16_t, Address, std::uint16_t, std::uint8_t>;
    using Flows = std::map<FlowKey, Flow>;
    static constexpr std::size_t max_retired_flows = 8192; // beyond those only the packets are kept

    static FlowKey key_of(const Flow&);
    static void add(Flows&, const Flow&);
    static void add(CauseCount& sum, const CauseCount&);
    std::uint32_t stands_for(std::uint32_t cause_id) const;
    Cause cause_of(const CauseCount& sum, const Flows&) const;

    std::int64_t since_ns_;
    std::uint32_t last_id_ = 0;
    std::unordered_map<std::uint32_t, std::uint32_t> merged_; // the kernel's cause -> what a person calls one
    std::map<std::string, std::uint32_t> by_identity_;
    std::unordered_map<std::uint32_t, Drop> examples_; // by what a person calls one cause, as are those below
    std::map<std::uint32_t, CauseCount> retired_;
    std::map<std::uint32_t, Flows> retired_flows_;
    std::size_t retired_flow_count_ = 0;
};

} // namespace tsdroptrace::aggregate
