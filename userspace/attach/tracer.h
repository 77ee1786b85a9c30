// SPDX-License-Identifier: GPL-2.0-only
// Loads the BPF programs, attaches them, and reads what they count. The only stage that needs a kernel.
#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "attach/filter.h"
#include "bpf/event.h"
#include "decode/decode.h"
#include "model.h"
#include "resolve_rule/ruleset.h"
#include "util/result.h"

namespace tsdroptrace::attach {

enum class RulesetKind { nf_tables = TSDT_GENERATION_NF_TABLES, x_tables = TSDT_GENERATION_X_TABLES };

struct FlowCount {
    tsdt_flow_key key;
    std::uint64_t packets;
};

struct Retired {
    std::vector<tsdt_cause> causes;
    std::vector<FlowCount> flows;
};

class Tracer {
public:
    // Attaches everything that this kernel allows. Needs BTF, and either bpf_loop (5.17) or 5.10; fentry and fexit, or
    // where those cannot be attached kprobes (then /proc/kallsyms too), decide which backends are exact. Fails with
    // ErrorKind::unsupported and one line that says what is missing and how to get it, or with ErrorKind::command_line
    // when this kernel does not know one of the reasons.
    static Result<std::unique_ptr<Tracer>> start(const Filter& filter);
    ~Tracer();
    Tracer(const Tracer&) = delete;
    Tracer& operator=(const Tracer&) = delete;

    Capabilities capabilities() const;
    bool traces(std::string_view function) const; // now
    bool has_nf_tables() const;                   // its module is there, or it is built in
    const decode::KernelNames& names() const;

    // Looks for the names of drop reasons that modules have brought since names() was last brought up to date. True:
    // there are more now. Cheap when no module has come.
    bool learn_reasons();

    // Hands records (struct tsdt_drop, not yet checked) to `sink` as they come, for at most
    // `timeout`, or until `sink` returns false. A signal ends it early. Fails only when the ring buffer itself does.
    Status poll(std::chrono::milliseconds timeout, const std::function<bool(std::span<const std::byte>)>& sink);

    // The same with the records of changed rulesets (struct tsdt_ruleset_change) that are there. Does not wait.
    Status poll_changes(const std::function<void(std::span<const std::byte>)>& sink);

    // No packet is counted or recorded any more; what the maps and the ring buffer hold stays readable.
    void stop();

    // Attaches to modules that have been loaded since, and forgets changes of rulesets whose end was missed. Cheap when
    // there are none; call it once a second.
    void refresh();

    // From now on, when one of these drops a packet, that is known. Only for those which may have dropped one already:
    // it costs something for each packet that they let pass. Those that this kernel does not let be traced, and any
    // beyond a fixed number, are left out.
    void trace_suspects(const decode::Suspects& suspects);

    std::optional<tsdt_cause> cause(const tsdt_cause_key& key) const;
    std::vector<tsdt_cause> causes() const; // with their counts now

    // Where many causes fill the kernel's map: takes out those that no packet can be counted in any more, and their
    // flows, and returns them with their last counts. That is so of a rule's cause when the rulesets have changed since
    // and its last packet died before `before_ns` (CLOCK_MONOTONIC; some seconds ago, so that no program is at work on
    // it).
    Retired retire_causes(std::uint64_t before_ns);

    std::vector<FlowCount> flows() const;
    // Packets of the filter that passed a device; nothing where they are not counted.
    std::optional<std::vector<tsdt_seen_count>> seen() const;
    std::map<std::string, std::uint64_t> lost() const; // where -> events, since the start
    std::array<std::uint64_t, TSDT_LOST_MAX>
    lost_by_place() const; // by tsdt_lost: what the programs counted themselves
    resolve_rule::Generation generation(RulesetKind kind) const;
    decode::ChangeCounts change_counts() const;

    // Bytes that the maps of all programs take.
    std::uint64_t map_memory() const;

private:
    struct State;
    explicit Tracer(std::unique_ptr<State> state);
    std::unique_ptr<State> state_;
};

} // namespace tsdroptrace::attach
