// SPDX-License-Identifier: GPL-2.0-only
#include "live.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <deque>
#include <map>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include <spdlog/spdlog.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "attach/tracer.h"
#include "check/probe.h"
#include "command/command.h"
#include "evidence/live_evidence.h"
#include "explain/explain_dir.h"
#include "explain/iptables_tool.h"
#include "explain/tunnel.h"
#include "outputs.h"
#include "pipeline.h"
#include "recording/writer.h"
#include "resolve_rule/live_looks.h"
#include "resolve_rule/live_snapshots.h"
#include "ruleset_watch.h"
#include "util/netns.h"

namespace tsdroptrace {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;
using std::chrono::seconds;

volatile std::sig_atomic_t stop_requested = 0; // the signal that last did
volatile std::sig_atomic_t reopen_requested = 0;
// How often each has come, ever. A terminal sends its SIGINT to the command as well.
volatile std::sig_atomic_t interrupts = 0, terminal_interrupts = 0, terminations = 0;

void on_stop(int signal, siginfo_t* info, void*) {
    stop_requested = signal;
    volatile std::sig_atomic_t& count = signal == SIGTERM            ? terminations
                                        : info->si_code == SI_KERNEL ? terminal_interrupts
                                                                     : interrupts;
    count = count + 1;
}

void watch_signals() {
    struct sigaction action {};
    action.sa_flags = SA_SIGINFO;
    action.sa_sigaction = on_stop;
    sigaction(SIGINT, &action, nullptr);
    sigaction(SIGTERM, &action, nullptr);
    action.sa_flags = 0;
    action.sa_handler = [](int) { reopen_requested = 1; };
    sigaction(SIGHUP, &action, nullptr);
    action.sa_flags = SA_RESTART; // waiting for events does end, nothing else does
    action.sa_handler = [](int) {};
    sigaction(SIGCHLD, &action, nullptr);
    action.sa_handler = SIG_IGN; // a closed pipe is an error of the write
    sigaction(SIGPIPE, &action, nullptr);
}

std::uint64_t monotonic_ns() {
    timespec monotonic{};
    clock_gettime(CLOCK_MONOTONIC, &monotonic);
    return static_cast<std::uint64_t>(monotonic.tv_sec) * 1'000'000'000 + static_cast<std::uint64_t>(monotonic.tv_nsec);
}

std::int64_t realtime_minus_monotonic() {
    return realtime_ns() - static_cast<std::int64_t>(monotonic_ns());
}

decode::Machine this_machine(const attach::Tracer& tracer) {
    decode::Machine machine;
    utsname name{};
    if (uname(&name) == 0) {
        machine.host = name.nodename;
        machine.kernel = name.release;
    }
    machine.version = TSDROPTRACE_VERSION;
    machine.own_netns = current_netns();
    machine.realtime_minus_mono_ns = realtime_minus_monotonic();
    machine.names = tracer.names();
    machine.plain_iptables = explain::plain_iptables();
    return machine;
}

Result<attach::Filter> filter_of(const Options& options) {
    attach::Filter filter;
    for (const std::string& typed : options.netns) {
        const auto inode = resolve_netns(typed);
        if (!inode)
            return Error{inode.error().kind, "--netns " + inode.error().message};
        if (!open_netns(*inode))
            spdlog::warn(
                "--netns {}: no name and no process leads to a network namespace with that inode now: if it is "
                "gone, nothing will be shown",
                *inode);
        filter.netns.push_back(*inode);
    }
    filter.all = options.all;
    filter.to = options.direction != DirectionFilter::from;
    filter.from = options.direction != DirectionFilter::to;
    filter.ranges = options.dst;
    filter.locals = options.src;
    filter.ports = options.ports;
    filter.protos = options.protos;
    filter.devices = options.devices;
    filter.reasons = options.reasons;
    filter.rules_only = options.rules_only;
    filter.seen = options.seen;
    return filter;
}

attach::RulesetKind ruleset_kind(resolve_rule::SnapshotKind kind) {
    return kind == resolve_rule::SnapshotKind::nf_tables ? attach::RulesetKind::nf_tables
                                                         : attach::RulesetKind::x_tables;
}

// The recording of a run, if one was asked for. The first failure is told once; the run goes on.
class Recorder {
public:
    explicit Recorder(std::optional<recording::Writer> writer) : writer_(std::move(writer)) {}

    template <typename... Arguments>
    void write(Status (recording::Writer::*what)(Arguments...), std::type_identity_t<Arguments>... arguments) {
        if (!writer_)
            return;
        if (const Status status = ((*writer_).*what)(arguments...); !status) {
            spdlog::error("{}", status.error().message);
            failed_ = true;
        }
    }
    bool failed() const { return failed_; }

private:
    std::optional<recording::Writer> writer_;
    bool failed_ = false;
};

// Calls that are due every so often, told by a clock that does not jump.
class Interval {
public:
    Interval(std::optional<milliseconds> period, Clock::time_point now) : period_(period), last_(now) {}
    bool due(Clock::time_point now) {
        if (!period_ || now - last_ < *period_)
            return false;
        last_ = now;
        return true;
    }

private:
    std::optional<milliseconds> period_; // none: never
    Clock::time_point last_;
};

// The command of this run, and what the signals that reach us mean for it.
class CommandWatch {
public:
    explicit CommandWatch(command::Command command) : command_(std::move(command)) {}

    void start() { command_.start(); }
    bool started() const { return command_.started(); }

    // Whether tracing is to end with it.
    bool over() {
        const auto now = Clock::now();
        pass_signals(now);
        const bool over = command_.over(now);
        tell_failure();
        return over;
    }

    // Returns its exit code, once it has one.
    int wait() {
        for (;;) {
            const auto now = Clock::now();
            pass_signals(now);
            if (command_.ended(now))
                break;
            poll(nullptr, 0, 100); // SIGCHLD ends it
        }
        tell_failure();
        return command_.exit_code();
    }

private:
    void pass_signals(Clock::time_point now) {
        for (; terminal_interrupts_ != terminal_interrupts; ++terminal_interrupts_)
            command_.interrupted(true, now);
        for (; interrupts_ != interrupts; ++interrupts_)
            command_.interrupted(false, now);
        for (; terminations_ != terminations; ++terminations_)
            command_.terminated();
    }
    void tell_failure() {
        if (command_.failure() && !std::exchange(told_, true))
            spdlog::error("{}", command_.failure()->message);
    }

    command::Command command_;
    std::sig_atomic_t interrupts_ = 0, terminal_interrupts_ = 0, terminations_ = 0; // passed on
    bool told_ = false;
};

constexpr std::size_t max_netns_names = 1024;

class LiveRun {
public:
    LiveRun(const Options& options, std::unique_ptr<attach::Tracer> tracer, decode::Machine machine, Recorder recorder,
            CommandWatch* command)
        : options_(options), command_(command), tracer_(std::move(tracer)), machine_(std::move(machine)),
          recorder_(std::move(recorder)),
          snapshots_([this](resolve_rule::SnapshotKind kind) { return tracer_->generation(ruleset_kind(kind)); },
                     [this](const resolve_rule::Snapshot& snapshot) {
                         recorder_.write(&recording::Writer::snapshot, snapshot);
                     }),
          watch_(
              snapshots_, [this](resolve_rule::SnapshotKind kind) { return tracer_->generation(ruleset_kind(kind)); },
              [this] { return tracer_->change_counts(); }, machine_.own_netns),
          evidence_([this](const evidence::Entry& entry) { recorder_.write(&recording::Writer::evidence, entry); }),
          pipeline_(machine_, snapshots_, evidence_,
                    explain::Explainer(machine_.plain_iptables, explain::own_entries()), realtime_ns()),
          looks_([this] { return tracer_->has_nf_tables(); }) {}

    Result<int> run(bool stdout_is_tty); // the exit code

private:
    bool stopping() const { return !command_ && stop_requested; }
    bool over() const { return command_ ? !command_->started() || command_->over() : stop_requested; }
    bool on_record(std::span<const std::byte> bytes);
    void on_ruleset_change(std::span<const std::byte> bytes);
    const tsdt_cause* cause_of(const tsdt_cause_key& key);
    void name_netns(std::uint32_t inode, std::int64_t died_ns);
    void name_reasons(std::span<const tsdt_cause> causes);
    void follow_clock();
    void watch_rulesets(bool at_start = false);
    void begin_to_infer(const Capabilities& capabilities);
    void look_at(resolve_rule::SnapshotKind kind, std::uint32_t netns);
    void look_for_waiting(bool last = false);
    void report_changes(bool last = false);
    void judge_changes(Clock::time_point now);
    void report_stopped(const KernelCounts& counts);
    void report_lost();
    void retire_causes();
    Status begin_check();
    void go_on_checking(Clock::time_point now);
    bool is_checked() const;
    void finish();
    KernelCounts cause_counts();
    KernelCounts counts();
    std::vector<Way> ways(const KernelCounts& last) const;
    void record(const KernelCounts& last);

    const Options& options_;
    CommandWatch* command_; // or none
    std::unique_ptr<attach::Tracer> tracer_;
    decode::Machine machine_;
    struct NamedBy {
        std::string path; // empty: it has no name
        Clock::time_point looked;
    };
    std::map<std::uint32_t, NamedBy> named_; // namespaces
    Clock::time_point next_process_look_;    // which costs something where there are many
    Recorder recorder_;
    resolve_rule::LiveSnapshots snapshots_;
    RulesetWatch watch_;
    std::set<resolve_rule::SnapshotKind> absent_; // had no module when the run began, so no rules
    evidence::LiveEvidence evidence_;
    Pipeline pipeline_;

    // Looks at counters, where rules are inferred. Those that no packet has needed (yet) are not recorded.
    using RulesetKey = std::pair<resolve_rule::SnapshotKind, std::uint32_t>; // with the namespace
    resolve_rule::LiveLooks looks_;
    std::map<RulesetKey, std::deque<resolve_rule::Look>> unrecorded_; // oldest first
    std::map<RulesetKey, std::uint32_t> recorded_;                    // generation of the last snapshot

    struct KeyLess {
        bool operator()(const tsdt_cause_key& a, const tsdt_cause_key& b) const {
            return std::memcmp(&a, &b, sizeof(a)) < 0;
        }
    };
    std::map<tsdt_cause_key, tsdt_cause, KeyLess> causes_; // seen so far; the kernel's map bounds how many
    std::uint64_t handled_ = 0;                            // records taken from the ring buffer
    std::uint64_t handled_until_ns_ = 0;                   // CLOCK_MONOTONIC: those of all packets that died before
    std::uint64_t retired_packets_ = 0;                    // of causes that are in the kernel's map no more
    std::uint64_t shown_ = 0;                              // without noise
    Clock::time_point slice_end_;
    bool rulesets_changed_ = false; // since counts were last judged
    Interval judging_{seconds(1), Clock::now()};
    std::optional<check::Probe> probe_; // of `check`
    std::optional<check::Answer> answer_;
    Clock::time_point answered_;
    int exit_code_ = EXIT_SUCCESS;
    std::map<std::string, std::uint64_t> lost_; // as last reported
    std::int64_t lost_checked_ns_ = 0;
};

const tsdt_cause* LiveRun::cause_of(const tsdt_cause_key& key) {
    const auto known = causes_.find(key);
    if (known != causes_.end())
        return &known->second;
    const auto cause = tracer_->cause(key);
    if (!cause)
        return nullptr;
    name_reasons({&*cause, 1});
    recorder_.write(&recording::Writer::cause, *cause);
    if (const auto suspects = decode::suspects(*cause))
        tracer_->trace_suspects(*suspects);
    return &causes_.emplace(key, *cause).first->second;
}

// A module that has come since the start may have brought reasons of its own.
void LiveRun::name_reasons(std::span<const tsdt_cause> causes) {
    const auto is_known = [this](const tsdt_cause& cause) { return machine_.names.reasons.contains(cause.key.reason); };
    if (std::ranges::all_of(causes, is_known) || !tracer_->learn_reasons())
        return;
    machine_.names = tracer_->names();
    recorder_.write(&recording::Writer::reasons, machine_.names);
}

void LiveRun::name_netns(std::uint32_t inode, std::int64_t died_ns) {
    using namespace std::chrono_literals;
    if (inode == machine_.own_netns || (!named_.contains(inode) && named_.size() >= max_netns_names))
        return;
    auto& [path, looked] = named_[inode];
    const Clock::time_point now = Clock::now();
    if (path.empty() ? now < looked + 1s : leads_to_netns(path, inode))
        return;
    looked = now;
    auto found = netns_name(inode, died_ns);
    if (!found && now >= next_process_look_) {
        found = netns_process(inode, died_ns);
        next_process_look_ = Clock::now() + 20 * (Clock::now() - now);
    }
    if (!found && path.empty())
        return;
    // Without a name from now on: it is gone, and its number may be another one's already.
    path = found ? found->path : "";
    recorder_.write(&recording::Writer::netns, recording::NetnsName{inode, found ? found->name : ""});
    machine_.netns_names.insert_or_assign(inode, found ? found->name : "");
}

void LiveRun::on_ruleset_change(std::span<const std::byte> bytes) {
    if (const auto record = decode::read_ruleset_change(bytes))
        watch_.changed(*record, Clock::now());
    else
        spdlog::error("this is a bug, please report it: {}", record.error().message);
}

// False: enough for now.
bool LiveRun::on_record(std::span<const std::byte> bytes) {
    const auto record = decode::read_drop(bytes);
    if (!record) {
        spdlog::error("this is a bug, please report it: {}", record.error().message);
        return true;
    }
    const tsdt_cause* cause = cause_of(record->key);
    if (!cause) {
        spdlog::error("this is a bug, please report it: a record of a cause that is not in the kernel's map");
        return true;
    }
    name_netns(record->key.netns, static_cast<std::int64_t>(record->mono_ns) + machine_.realtime_minus_mono_ns);
    ++handled_;
    // CPUs enter theirs in an order that is nearly that of time.
    constexpr std::uint64_t disorder_ns = 1'000'000'000;
    handled_until_ns_ = std::max<std::uint64_t>(
        handled_until_ns_, record->mono_ns - std::min<std::uint64_t>(record->mono_ns, disorder_ns));
    if (pipeline_.drop(*record, *cause))
        ++shown_;
    recorder_.write(&recording::Writer::drop, *record);
    if (const auto kind = resolve_rule::snapshot_kind(*cause)) // its ruleset has just been read
        watch_.watch(*kind, record->key.netns, Clock::now());
    return !(options_.count && shown_ >= *options_.count) && !stopping() && Clock::now() < slice_end_;
}

// Rulesets of our own namespace are read before anything is dropped by them, and again (report_changes) when they have
// changed: a rule that is gone by the time its drop is read still has its text.
void LiveRun::watch_rulesets(bool at_start) {
    using resolve_rule::SnapshotKind;
    constexpr struct {
        SnapshotKind kind;
        const char* function; // traced: the backend is in use
        const char* module;
    } kinds[] = {{SnapshotKind::nf_tables, "nft_do_chain", "/sys/module/nf_tables"},
                 {SnapshotKind::ip_tables, "ipt_do_table", "/sys/module/ip_tables"},
                 {SnapshotKind::ip6_tables, "ip6t_do_table", "/sys/module/ip6_tables"},
                 {SnapshotKind::arp_tables, "arpt_do_table", "/sys/module/arp_tables"}};
    for (const auto& [kind, function, module] : kinds) {
        if (tracer_->traces(function))
            watch_.watch(kind, machine_.own_netns, Clock::now(), absent_.contains(kind));
        else if (at_start && access(module, F_OK) != 0)
            absent_.insert(kind);
    }
}

// The first look, before the first packet that is shown has died. Namespaces that were not named by the user are looked
// at when something has died there.
void LiveRun::begin_to_infer(const Capabilities& capabilities) {
    using resolve_rule::SnapshotKind;
    std::vector<SnapshotKind> kinds;
    if (capabilities.iptables_legacy.exactness == Exactness::inferred)
        kinds = {SnapshotKind::ip_tables, SnapshotKind::ip6_tables};
    if (capabilities.nftables.exactness == Exactness::inferred)
        kinds.push_back(SnapshotKind::nf_tables);
    std::set<std::uint32_t> namespaces{machine_.own_netns};
    for (const std::string& typed : options_.netns)
        if (const auto inode = resolve_netns(typed))
            namespaces.insert(*inode);
    for (const std::uint32_t netns : namespaces)
        for (const SnapshotKind kind : kinds)
            look_at(kind, netns);
}

void LiveRun::look_at(resolve_rule::SnapshotKind kind, std::uint32_t netns) {
    constexpr std::size_t most = 3; // as many as an answer may go back to
    const RulesetKey key{kind, netns};
    auto look = looks_.look(kind, netns);
    auto& unrecorded = unrecorded_[key];
    if (unrecorded.size() >= most)
        unrecorded.pop_front();
    unrecorded.push_back(look);
    const bool needed = pipeline_.waiting().contains(key);
    pipeline_.look(std::move(look)); // first: a replay needs the evidence of what it shows before the look
    if (needed) {
        for (const resolve_rule::Look& one : unrecorded) {
            if (one.snapshot && std::exchange(recorded_[key], one.generation) != one.generation)
                recorder_.write(&recording::Writer::snapshot, *one.snapshot);
            recorder_.write(&recording::Writer::look, one);
        }
        unrecorded_.erase(key);
    }
}

// Looks again where packets are waiting for it, and where the last look is old: the less time lies between two looks,
// the fewer rules have counted in between.
void LiveRun::look_for_waiting(bool last) {
    // What died in a burst is looked at together: in the midst of it counters are ahead of the packets that are known.
    constexpr std::uint64_t burst_ns = 30'000'000;
    for (const auto& [ruleset, died_ns] : pipeline_.waiting()) {
        const auto& [kind, netns] = ruleset;
        if (last || (monotonic_ns() >= died_ns + burst_ns && looks_.may_look(kind, netns)))
            look_at(kind, netns);
    }
    if (last)
        pipeline_.stop_waiting();
    else
        for (const auto& [kind, netns] : looks_.outdated())
            look_at(kind, netns);
}

void LiveRun::report_changes(bool last) {
    const Status polled = tracer_->poll_changes([this](std::span<const std::byte> bytes) {
        on_ruleset_change(bytes);
        rulesets_changed_ = true;
    });
    if (!polled)
        spdlog::error("{}", polled.error().message);
    for (RulesetChange& change : watch_.look(Clock::now(), realtime_ns(), machine_.realtime_minus_mono_ns, last)) {
        recorder_.write(&recording::Writer::ruleset, change);
        pipeline_.ruleset(std::move(change));
    }
}

void add_flows(KernelCounts& counts, const std::vector<attach::FlowCount>& flows) {
    for (const attach::FlowCount& flow : flows)
        counts.flows.emplace_back(flow.key, flow.packets);
}

// Counts are read for it once a second, and only while a change may have stopped something. The first time is as soon
// as there is a record of the change: from then on packets that come speak for it.
void LiveRun::judge_changes(Clock::time_point now) {
    const bool needed = pipeline_.awaits_counts() || (rulesets_changed_ && pipeline_.may_stop(realtime_ns()));
    if (!options_.seen || !needed || !judging_.due(now))
        return;
    rulesets_changed_ = false;
    auto seen = tracer_->seen(); // before the causes: what is dropped in between must not look as if it had passed
    KernelCounts counts = cause_counts();
    counts.seen = std::move(seen);
    report_stopped(counts);
}

void LiveRun::report_stopped(const KernelCounts& counts) {
    for (Stopped& stopped : pipeline_.judge(counts, realtime_ns())) {
        recorder_.write(&recording::Writer::stopped, stopped);
        pipeline_.stopped(std::move(stopped));
    }
}

// Only a step of the clock counts: one moment must not read differently each time it is shown.
void LiveRun::follow_clock() {
    constexpr std::int64_t step_ns = 50'000'000;
    const std::int64_t now = realtime_minus_monotonic();
    if (std::abs(now - machine_.realtime_minus_mono_ns) > step_ns) {
        machine_.realtime_minus_mono_ns = now;
        pipeline_.clock_set();
    }
}

KernelCounts LiveRun::cause_counts() {
    KernelCounts counts{tracer_->causes(), {}, tracer_->lost()};
    name_reasons(counts.causes);
    counts.handled_until_ns = handled_until_ns_;
    return counts;
}

KernelCounts LiveRun::counts() {
    KernelCounts counts = cause_counts(); // before the flows: see Aggregator
    add_flows(counts, tracer_->flows());
    counts.seen = tracer_->seen();
    return counts;
}

// Where the ranges of the filter lead to, when nothing left for them, or what did went to a program behind a TUN.
std::vector<Way> LiveRun::ways(const KernelCounts& last) const {
    if (!last.seen || !options_.netns.empty())
        return {};
    const Seen seen = decode::decode_seen(*last.seen, machine_);
    const bool tunnel = explain::left_by_tunnel(seen.sent);
    if (seen.sent.packets != 0 && !tunnel)
        return {};
    std::vector<std::pair<std::string, Address>> ranges;
    for (const Cidr& cidr : options_.dst) {
        const bool ipv6 = cidr.family == IpFamily::ipv6;
        const int bits = ipv6 ? 128 : 32;
        if (cidr.prefix == 0 || ranges.size() >= Summary::max_ways)
            continue; // of everything, one address is no example
        Address first;
        first.family = cidr.family;
        first.bytes = cidr.network;
        if (cidr.prefix < bits - 1)
            first.bytes[ipv6 ? 15 : 3] |= 1;
        ranges.emplace_back(cidr.text(), first);
    }
    return evidence::ask_ways(ranges);
}

void LiveRun::record(const KernelCounts& last) {
    for (const tsdt_cause& cause : last.causes)
        recorder_.write(&recording::Writer::cause, cause);
    for (const auto& [key, packets] : last.flows)
        recorder_.write(&recording::Writer::flow, key, packets);
    if (last.seen)
        for (const tsdt_seen_count& count : *last.seen)
            recorder_.write(&recording::Writer::seen, count);
    for (const Way& way : last.ways)
        recorder_.write(&recording::Writer::way, way);
}

void LiveRun::report_lost() {
    const std::int64_t now = realtime_ns();
    for (const auto& [where, total] : tracer_->lost()) {
        std::uint64_t& reported = lost_[where];
        if (total > reported)
            pipeline_.lost({total - reported, where, lost_checked_ns_});
        reported = total;
    }
    lost_checked_ns_ = now;
}

// Where rules change and drop all the time, each ruleset brings new causes: those of the past make room.
void LiveRun::retire_causes() {
    constexpr std::uint64_t settled_ns = 3'000'000'000;
    const std::uint64_t now = monotonic_ns(), settled = now - std::min(now, settled_ns);
    attach::Retired retired = tracer_->retire_causes(std::min(settled, handled_until_ns_));
    if (retired.causes.empty())
        return;
    KernelCounts last{std::move(retired.causes), {}, {}};
    add_flows(last, retired.flows);
    pipeline_.retire(last);
    for (const tsdt_cause& cause : last.causes) {
        retired_packets_ += cause.packets;
        causes_.erase(cause.key);
    }
    record(last);
}

int exit_code_of(Reached reached) {
    constexpr int dropped_here = 10, lost_elsewhere = 11;
    return reached == Reached::yes ? EXIT_SUCCESS : reached == Reached::dropped_here ? dropped_here : lost_elsewhere;
}

// Nothing is counted any more: what is still in the ring buffer is shown, then the sums are final.
void LiveRun::finish() {
    constexpr auto patience = seconds(5);
    tracer_->stop();
    const auto deadline = Clock::now() + patience;
    const bool enough = options_.count && shown_ >= *options_.count;
    while (!enough && !pipeline_.reader_gone() && Clock::now() < deadline) {
        std::size_t records = 0;
        const Status polled = tracer_->poll(milliseconds(0), [&](std::span<const std::byte> bytes) {
            ++records;
            slice_end_ = deadline;
            on_record(bytes);
            return Clock::now() < deadline;
        });
        if (!polled || records == 0)
            break;
    }
    look_for_waiting(true);
    report_changes(true);
    report_lost();
    KernelCounts totals = counts();
    totals.ways = ways(totals);
    std::uint64_t recorded = retired_packets_;
    for (const tsdt_cause& cause : totals.causes)
        recorded += cause.packets;
    recorded -= std::min(recorded, tracer_->lost_by_place()[TSDT_LOST_RING]);
    if (recorded > handled_) { // patience or an output ended before the ring buffer did
        totals.lost["unread"] = recorded - handled_;
        pipeline_.lost({recorded - handled_, "unread", lost_checked_ns_});
    }
    if (options_.seen && pipeline_.awaits_counts())
        report_stopped(totals);
    if (answer_)
        exit_code_ = exit_code_of(pipeline_.check(*options_.check, *answer_, totals, realtime_ns()).reached);
    else if (options_.check)
        exit_code_ = EXIT_FAILURE; // stopped before it knew
    pipeline_.summary(totals, realtime_ns(), true);
    record(totals);
    recorder_.write(&recording::Writer::lost, tracer_->lost_by_place());
    recorder_.write(&recording::Writer::finish, realtime_ns());
}

// What `check` sends goes out once everything is attached.
Status LiveRun::begin_check() {
    if (!options_.check)
        return Ok{};
    auto probe = check::Probe::open(*options_.check);
    if (!probe)
        return probe.error();
    probe_.emplace(std::move(*probe));
    return Ok{};
}

void LiveRun::go_on_checking(Clock::time_point now) {
    if (!probe_ || answer_)
        return;
    answer_ = probe_->step(now);
    if (answer_)
        answered_ = now;
}

// What was dropped last may still be on its way to us.
bool LiveRun::is_checked() const {
    constexpr auto patience = milliseconds(150);
    return answer_ && Clock::now() - answered_ >= patience;
}

Result<int> LiveRun::run(bool stdout_is_tty) {
    const auto json_file = add_outputs(options_, stdout_is_tty, pipeline_);
    if (!json_file)
        return json_file.error();

    const Start start{realtime_ns(),         machine_.version,        machine_.kernel, machine_.host,
                      filter_text(options_), tracer_->capabilities(), options_.seen};
    recorder_.write(&recording::Writer::meta, recording::Meta{machine_, start});
    begin_to_infer(start.capabilities);
    pipeline_.start(start);
    watch_rulesets(true);
    lost_checked_ns_ = start.time_ns;

    if (command_ && !stop_requested && !pipeline_.reader_gone())
        command_->start();

    const auto began = Clock::now();
    Interval housekeeping(seconds(1), began);
    Interval screen(milliseconds(200), began);
    Interval summaries(options_.summary_every, began);
    if (const Status begun = begin_check(); !begun)
        return begun.error();
    while (!over() && !is_checked() && !(options_.count && shown_ >= *options_.count)) {
        auto patience = milliseconds(100);
        if (options_.duration) {
            const auto left = *options_.duration - std::chrono::duration_cast<milliseconds>(Clock::now() - began);
            if (left <= milliseconds(0))
                break;
            patience = std::min(patience, left);
        }
        if (!pipeline_.waiting().empty() || probe_)
            patience = std::min(patience, milliseconds(20));
        slice_end_ = Clock::now() + milliseconds(100);
        const std::uint64_t before_ns = monotonic_ns();
        const std::uint64_t handled_before = handled_;
        if (const Status polled =
                tracer_->poll(patience, [this](std::span<const std::byte> bytes) { return on_record(bytes); });
            !polled)
            return polled.error();
        go_on_checking(Clock::now());
        if (handled_ == handled_before)
            handled_until_ns_ = before_ns; // there was none

        look_for_waiting();
        report_changes();
        const auto now = Clock::now();
        judge_changes(now);
        if (reopen_requested && *json_file) {
            reopen_requested = 0;
            if (const Status reopened = (*json_file)->reopen(); !reopened)
                spdlog::error("{}", reopened.error().message);
        }
        if (summaries.due(now))
            pipeline_.summary(counts(), realtime_ns(), false);
        if (stdout_is_tty && !options_.json && shown_ > 0 && screen.due(now))
            pipeline_.progress(counts(), realtime_ns());
        if (housekeeping.due(now)) {
            follow_clock();
            tracer_->refresh();
            watch_rulesets();
            report_lost();
            retire_causes();
            recorder_.write(&recording::Writer::flush);
        }
        // Without a reader nobody is left to trace for; a full disk can be emptied again.
        if (pipeline_.reader_gone())
            break;
    }
    finish();
    if (pipeline_.output_error())
        return Error{ErrorKind::other, ""}; // told already
    if (recorder_.failed())
        return Error{ErrorKind::other, ""};
    return exit_code_;
}

// Not started yet: whoever is to run it, and a process for it.
Result<std::optional<CommandWatch>> prepare_command(const Options& options) {
    if (options.command.empty())
        return std::optional<CommandWatch>();
    auto user = command::choose_user(options.user, {getuid(), std::getenv("SUDO_UID"), std::getenv("SUDO_GID")});
    if (!user)
        return user.error();
    auto prepared = command::Command::prepare({options.command, std::move(*user), options.json});
    if (!prepared)
        return prepared.error();
    return std::optional<CommandWatch>(std::move(*prepared));
}

Result<int> trace(const Options& options, bool stdout_is_tty, CommandWatch* command) {
    const auto filter = filter_of(options); // refused before any file is made
    if (!filter)
        return filter.error();
    std::optional<recording::Writer> writer;
    if (options.record) {
        auto created = recording::Writer::create(*options.record);
        if (!created)
            return created.error();
        writer.emplace(std::move(*created));
    }
    if (options.json_file) // refused before anything is attached
        if (const auto file = output::Sink::open_file(*options.json_file); !file)
            return file.error();
    auto tracer = attach::Tracer::start(*filter);
    if (!tracer)
        return tracer.error();
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); // for the tools that print rules

    auto machine = this_machine(**tracer);
    LiveRun run(options, std::move(*tracer), std::move(machine), Recorder(std::move(writer)), command);
    return run.run(stdout_is_tty);
}

} // namespace

Result<int> run_live(const Options& options, bool stdout_is_tty) {
    auto command = prepare_command(options); // first of all: it inherits what we were given, and nothing of ours
    if (!command)
        return command.error();
    watch_signals();
    const Result<int> traced = trace(options, stdout_is_tty, *command ? &**command : nullptr);
    if (!*command || (!(*command)->started() && !traced))
        return traced;
    if (!(*command)->started()) // it was told to stop before
        return 128 + stop_requested;
    if (!traced && !traced.error().message.empty())
        spdlog::error("{}", traced.error().message);
    return (*command)->wait();
}

} // namespace tsdroptrace
