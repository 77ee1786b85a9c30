// SPDX-License-Identifier: GPL-2.0-only
#include "replay.h"

#include <algorithm>
#include <cstdlib>
#include <deque>
#include <map>
#include <optional>

#include "explain/explain_dir.h"
#include "outputs.h"
#include "pipeline.h"
#include "recording/reader.h"

namespace tsdroptrace {
namespace {

// What the recorder kept: the snapshots that were read until then, in their order.
class RecordedSnapshots : public resolve_rule::SnapshotSource {
public:
    void add(resolve_rule::Snapshot snapshot) {
        constexpr std::size_t kept = 16; // as the live side
        auto& of_ruleset = snapshots_[{snapshot.kind, snapshot.netns}];
        of_ruleset.push_back(std::make_shared<const resolve_rule::Snapshot>(std::move(snapshot)));
        if (of_ruleset.size() > kept)
            of_ruleset.pop_front();
    }

    std::shared_ptr<const resolve_rule::Snapshot> get(resolve_rule::SnapshotKind kind, std::uint32_t netns,
                                                      std::uint32_t generation) override {
        const auto of_ruleset = snapshots_.find({kind, netns});
        if (of_ruleset == snapshots_.end())
            return nullptr;
        const auto same = std::ranges::find_if(
            of_ruleset->second, [&](const auto& snapshot) { return snapshot->generation == generation; });
        return same != of_ruleset->second.end() ? *same : of_ruleset->second.back();
    }

private:
    std::map<std::pair<resolve_rule::SnapshotKind, std::uint32_t>,
             std::deque<std::shared_ptr<const resolve_rule::Snapshot>>>
        snapshots_;
};

class Replay : public recording::Visitor {
public:
    Replay(const Options& options, bool stdout_is_tty) : options_(options), stdout_is_tty_(stdout_is_tty) {}

    void meta(recording::Meta meta) override {
        meta_ = std::move(meta);
        until_ns_ = meta_.start.time_ns;
        pipeline_.emplace(meta_.machine, snapshots_, evidence_,
                          explain::Explainer(meta_.machine.plain_iptables, explain::own_entries()),
                          meta_.start.time_ns);
        if (const auto added = add_outputs(options_, stdout_is_tty_, *pipeline_); !added) {
            error_ = added.error();
            return;
        }
        if (meta_.start.counts_seen)
            passing_.emplace();
        pipeline_->start(meta_.start);
    }

    void snapshot(resolve_rule::Snapshot snapshot) override { snapshots_.add(std::move(snapshot)); }

    void look(resolve_rule::Look look) override {
        if (error_)
            return;
        look.snapshot = snapshots_.get(look.kind, look.netns, look.generation);
        if (look.snapshot && look.snapshot->generation != look.generation)
            look.snapshot = nullptr;
        pipeline_->look(std::move(look));
    }

    void netns(const recording::NetnsName& netns) override {
        constexpr std::size_t max_names = 1024; // as the live side
        if (meta_.machine.netns_names.size() < max_names)
            meta_.machine.netns_names.insert_or_assign(netns.inode, netns.name);
    }

    void reasons(decode::KernelNames names) override { meta_.machine.names = std::move(names); }

    void evidence(evidence::Entry entry) override { evidence_.add(std::move(entry)); }

    void ruleset(RulesetChange change) override {
        if (finished())
            return;
        until_ns_ = std::max(until_ns_, change.time_ns);
        pipeline_->ruleset(std::move(change));
    }

    void stopped(Stopped stopped) override {
        if (finished())
            return;
        until_ns_ = std::max(until_ns_, stopped.time_ns);
        pipeline_->stopped(std::move(stopped));
    }

    void way(Way way) override {
        if (ways_.size() < Summary::max_ways)
            ways_.push_back(std::move(way));
    }

    void cause(const tsdt_cause& cause) override { causes_.insert_or_assign(cause.id, cause); }

    void drop(const tsdt_drop& record) override {
        const auto cause = causes_.find(record.cause_id);
        if (cause == causes_.end() || finished())
            return;
        ++seen_[record.cause_id];
        until_ns_ =
            std::max(until_ns_, static_cast<std::int64_t>(record.mono_ns) + meta_.machine.realtime_minus_mono_ns);
        if (pipeline_->drop(record, cause->second))
            ++shown_;
    }

    void flow(const tsdt_flow_key& key, std::uint64_t packets) override { flows_.emplace_back(key, packets); }

    void seen(const tsdt_seen_count& count) override {
        if (passing_)
            passing_->push_back(count);
    }

    void lost(const recording::LostCounts& counts) override {
        for (std::size_t place = 0; place < counts.size(); ++place)
            if (counts[place])
                lost_[std::string(decode::lost_place_name(place))] = counts[place];
    }

    void end(std::int64_t time_ns) override { until_ns_ = time_ns; }

    Status finish() {
        if (error_)
            return *error_;
        if (!pipeline_)
            return Ok{};
        KernelCounts counts{{}, std::move(flows_), lost_, std::move(passing_), std::move(ways_)};
        for (auto& [id, cause] : causes_) {
            cause.packets =
                std::max<std::uint64_t>(cause.packets, seen_[id]); // a recording that was cut has no last counts
            counts.causes.push_back(cause);
        }
        pipeline_->stop_waiting();
        for (const auto& [where, count] : lost_)
            pipeline_->lost({count, where, meta_.start.time_ns});
        pipeline_->summary(counts, until_ns_, true);
        if (pipeline_->output_error())
            return Error{ErrorKind::other, ""};
        return Ok{};
    }

private:
    bool finished() const {
        return error_ || pipeline_->reader_gone() || (options_.count && shown_ >= *options_.count);
    }

    const Options& options_;
    bool stdout_is_tty_;
    recording::Meta meta_;
    RecordedSnapshots snapshots_;
    evidence::RecordedEvidence evidence_;
    std::optional<Pipeline> pipeline_;
    std::map<std::uint32_t, tsdt_cause> causes_;
    std::map<std::uint32_t, std::uint64_t> seen_;
    decltype(KernelCounts::seen) passing_;
    std::vector<std::pair<tsdt_flow_key, std::uint64_t>> flows_;
    std::map<std::string, std::uint64_t> lost_;
    std::vector<Way> ways_;
    std::int64_t until_ns_ = 0;
    std::uint64_t shown_ = 0;
    std::optional<Error> error_;
};

} // namespace

Result<int> run_replay(const Options& options, bool stdout_is_tty) {
    Replay replay(options, stdout_is_tty);
    const auto read = recording::read(*options.replay, replay);
    if (!read)
        return read.error();
    if (const Status finished = replay.finish(); !finished)
        return finished.error();
    if (!read->warning.empty())
        return Error{ErrorKind::other, read->warning};
    return EXIT_SUCCESS;
}

} // namespace tsdroptrace
