// SPDX-License-Identifier: GPL-2.0-only
#include "recording/format.h"

#include <concepts>
#include <limits>
#include <map>
#include <optional>
#include <type_traits>
#include <vector>

#include <arpa/inet.h>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

namespace tsdroptrace::recording {
namespace {

using nlohmann::json;

// ---- the fields of each struct, listed once for both directions ----
// `archive` is a Save or a Load; it is called with the name and the field.

template <typename T, typename U>
concept Is = std::same_as<std::remove_const_t<T>, U>;

template <Is<resolve_rule::SnapshotRule> T>
void describe(auto& archive, T& rule) {
    archive("handle", rule.handle);
    archive("offset", rule.offset);
    archive("text", rule.text);
    archive("verdict", rule.verdict);
    archive("jump_offset", rule.jump_offset);
    archive("is_goto", rule.is_goto);
}

template <Is<resolve_rule::SnapshotChain> T>
void describe(auto& archive, T& chain) {
    archive("name", chain.name);
    archive("handle", chain.handle);
    archive("offset", chain.offset);
    archive("hook", chain.hook);
    archive("policy_offset", chain.policy_offset);
    archive("policy", chain.policy);
    archive("backend", chain.backend);
    archive("rules", chain.rules);
}

template <Is<resolve_rule::SnapshotSet> T>
void describe(auto& archive, T& set) {
    archive("name", set.name);
    archive("is_map", set.is_map);
    archive("may_change", set.may_change);
    archive("elements", set.elements);
}

template <Is<resolve_rule::SnapshotTable> T>
void describe(auto& archive, T& table) {
    archive("family", table.family);
    archive("name", table.name);
    archive("handle", table.handle);
    archive("chains", table.chains);
    archive("sets", table.sets);
}

template <Is<resolve_rule::Snapshot> T>
void describe(auto& archive, T& snapshot) {
    archive("kind", snapshot.kind);
    archive("netns", snapshot.netns);
    archive("generation", snapshot.generation);
    archive("tables", snapshot.tables);
    archive("problems", snapshot.problems);
}

template <Is<resolve_rule::Look> T>
void describe(auto& archive, T& look) {
    archive("kind", look.kind);
    archive("netns", look.netns);
    archive("generation", look.generation);
    archive("begin_ns", look.begin_ns);
    archive("end_ns", look.end_ns);
    archive("packets", look.packets);
    archive("bytes", look.bytes);
    archive("problem", look.problem);
}

template <Is<decode::KernelNames> T>
void describe(auto& archive, T& names) {
    archive("reasons", names.reasons);
}

template <Is<decode::Machine> T>
void describe(auto& archive, T& machine) {
    describe(archive, machine.names);
    archive("realtime_minus_mono_ns", machine.realtime_minus_mono_ns);
    archive("own_netns", machine.own_netns);
    archive("netns_names", machine.netns_names);
    archive("host", machine.host);
    archive("kernel", machine.kernel);
    archive("version", machine.version);
    archive("plain_iptables", machine.plain_iptables);
}

template <Is<NetnsName> T>
void describe(auto& archive, T& netns) {
    archive("inode", netns.inode);
    archive("name", netns.name);
}

template <Is<Capability> T>
void describe(auto& archive, T& capability) {
    archive("exactness", capability.exactness);
    archive("reason", capability.reason);
}

template <Is<Capabilities> T>
void describe(auto& archive, T& capabilities) {
    archive("iptables_legacy", capabilities.iptables_legacy);
    archive("iptables_nft", capabilities.iptables_nft);
    archive("nftables", capabilities.nftables);
}

template <Is<Start> T>
void describe(auto& archive, T& start) {
    archive("time_ns", start.time_ns);
    archive("version", start.version);
    archive("kernel", start.kernel);
    archive("host", start.host);
    archive("filter", start.filter);
    archive("capabilities", start.capabilities);
    archive("counts_seen", start.counts_seen);
}

template <Is<Process> T>
void describe(auto& archive, T& process) {
    archive("pid", process.pid);
    archive("comm", process.comm);
}

template <Is<Changer> T>
void describe(auto& archive, T& changer) {
    archive("process", changer.process);
    archive("parent", changer.parent);
    archive("changes", changer.changes);
}

template <Is<PathStep> T>
void describe(auto& archive, T& step) {
    archive("chain", step.chain);
    archive("number", step.number);
    archive("handle", step.handle);
}

template <Is<Rule> T>
void describe(auto& archive, T& rule) {
    archive("backend", rule.backend);
    archive("family", rule.family);
    archive("table", rule.table);
    archive("chain", rule.chain);
    archive("number", rule.number);
    archive("handle", rule.handle);
    archive("text", rule.text);
    archive("path", rule.path);
    archive("verdict", rule.verdict);
    archive("confidence", rule.confidence);
    archive("evidence", rule.evidence);
    archive("stale", rule.stale);
}

template <Is<ChangedRule> T>
void describe(auto& archive, T& changed) {
    archive("rule", changed.rule);
    archive("was", changed.was);
}

template <Is<RulesetChange> T>
void describe(auto& archive, T& change) {
    archive("time_ns", change.time_ns);
    archive("netns", change.netns.inode);
    archive("backend", change.backend);
    archive("generation", change.generation);
    archive("changers", change.changers);
    archive("other_changes", change.other_changes);
    archive("added", change.added);
    archive("removed", change.removed);
    archive("moved", change.moved);
    archive("more_added", change.more_added);
    archive("more_removed", change.more_removed);
    archive("more_moved", change.more_moved);
    archive("unknown", change.unknown);
}

template <Is<ChainName> T>
void describe(auto& archive, T& chain) {
    archive("family", chain.family);
    archive("table", chain.table);
    archive("chain", chain.name);
}

template <Is<SeenWay> T>
void describe(auto& archive, T& way) {
    archive("packets", way.packets);
    archive("by_dev", way.by_dev);
}

template <Is<Stopped> T>
void describe(auto& archive, T& stopped) {
    archive("time_ns", stopped.time_ns);
    archive("netns", stopped.cause.example.netns.inode);
    archive("kind", stopped.cause.example.site.kind);
    archive("reason", stopped.cause.example.site.reason);
    archive("hook", stopped.cause.example.site.hook);
    archive("rule", stopped.cause.example.rule);
    archive("packets", stopped.cause.packets);
    archive("first_ns", stopped.cause.first_ns);
    archive("last_ns", stopped.cause.last_ns);
    archive("change", stopped.change);
    archive("chain", stopped.chain);
    archive("changes", stopped.changes);
    archive("seen_since_ns", stopped.seen_since_ns);
    archive("sent", stopped.seen.sent);
    archive("received", stopped.seen.received);
}

template <Is<Route> T>
void describe(auto& archive, T& route) {
    archive("type", route.type);
    archive("dev", route.dev);
    archive("gateway", route.gateway);
    archive("table", route.table);
    archive("matched", route.matched);
    archive("rule", route.rule);
}

template <Is<Way> T>
void describe(auto& archive, T& way) {
    archive("range", way.range);
    archive("to", way.to);
    archive("route", way.route);
}

template <Is<Evidence> T>
void describe(auto& archive, T& evidence) {
    archive("route", evidence.route);
    archive("tailnet_peer", evidence.tailnet_peer);
    archive("socket_waits", evidence.socket_waits);
    archive("waiting", evidence.waiting);
    archive("sysctls", evidence.sysctls);
}

template <Is<evidence::Key> T>
void describe(auto& archive, T& key) {
    archive("cause", key.cause_id);
    archive("far_end", key.far_end);
    archive("near_end", key.near_end);
    archive("mark", key.mark);
    archive("in_dev", key.in_dev);
    archive("out_dev", key.out_dev);
    archive("proto", key.proto);
    archive("far_port", key.far_port);
    archive("near_port", key.near_port);
}

template <Is<evidence::Entry> T>
void describe(auto& archive, T& entry) {
    archive("key", entry.key);
    archive("mono_ns", entry.mono_ns);
    archive("evidence", entry.evidence);
}

template <Is<Meta> T>
void describe(auto& archive, T& meta) {
    archive("machine", meta.machine);
    archive("start", meta.start);
}

// ---- enumerators by name ----

std::string_view to_string(resolve_rule::SnapshotKind kind) {
    switch (kind) {
    case resolve_rule::SnapshotKind::nf_tables:
        return "nf_tables";
    case resolve_rule::SnapshotKind::ip_tables:
        return "ip_tables";
    case resolve_rule::SnapshotKind::ip6_tables:
        return "ip6_tables";
    case resolve_rule::SnapshotKind::arp_tables:
        return "arp_tables";
    case resolve_rule::SnapshotKind::bridge_filter:
        return "bridge_filter";
    case resolve_rule::SnapshotKind::bridge_nat:
        return "bridge_nat";
    }
    return "";
}
using tsdroptrace::to_string;

template <typename E>
constexpr E last;
template <>
constexpr Hook last<Hook> = Hook::egress;
template <>
constexpr Backend last<Backend> = Backend::nftables;
template <>
constexpr Confidence last<Confidence> = Confidence::inferred;
template <>
constexpr DropKind last<DropKind> = DropKind::policy; // those that a rule or its chain has
template <>
constexpr RuleFamily last<RuleFamily> = RuleFamily::netdev;
template <>
constexpr Exactness last<Exactness> = Exactness::unavailable;
template <>
constexpr resolve_rule::SnapshotKind last<resolve_rule::SnapshotKind> = resolve_rule::SnapshotKind::bridge_nat;

// ---- out: straight to text, since a ruleset may be large and the machine is in trouble already ----

class Save {
public:
    template <typename T>
    void operator()(std::string_view name, const T& value) {
        field(name);
        write(value);
    }
    template <typename T>
    void operator()(std::string_view name, const std::optional<T>& value) {
        if (value) {
            (*this)(name, *value);
        }
    }

    template <typename T>
    void write(const T& value) {
        if constexpr (std::is_enum_v<T>) {
            write(std::string(to_string(value)));
        } else if constexpr (std::same_as<T, bool>) {
            out += value ? "true" : "false";
        } else if constexpr (std::integral<T>) {
            out += std::to_string(value);
        } else {
            open('{');
            describe(*this, value);
            close('}');
        }
    }
    void write(const Address& address) { write(address.text()); }
    template <typename T>
    void write(const std::shared_ptr<const T>& value) {
        write(*value);
    }
    void write(const std::string& text) { out += json(text).dump(-1, ' ', false, json::error_handler_t::replace); }
    template <typename T>
    void write(const std::vector<T>& values) {
        open('[');
        for (const T& value : values) {
            separate();
            write(value);
        }
        close(']');
    }
    void write(const std::map<std::uint32_t, std::string>& values) {
        open('{');
        for (const auto& [number, text] : values) {
            (*this)(std::to_string(number), text);
        }
        close('}');
    }

    std::string out;

    template <typename T>
    void write(const std::map<std::string, T>& values) {
        open('{');
        for (const auto& [name, text] : values) {
            separate();
            write(name);
            out += ':';
            write(text);
        }
        close('}');
    }

private:
    void open(char bracket) {
        out += bracket;
        first_ = true;
    }
    void close(char bracket) {
        out += bracket;
        first_ = false;
    }
    void separate() {
        if (!first_) {
            out += ',';
        }
        first_ = false;
    }
    void field(std::string_view name) {
        separate();
        out += '"';
        out += name;
        out += "\":";
    }

    bool first_ = true;
};

// ---- in: nothing is believed ----

// Reads one JSON object. `problem` keeps the name of the first field that is missing or of the wrong type.
class Load {
public:
    Load(const json& object, std::string& problem) : object_(object), problem_(problem) {}

    template <typename T>
    void operator()(std::string_view name, T& value) {
        const auto found = object_.find(name);
        if (found == object_.end() || !read(*found, value)) {
            fail(name);
        }
    }
    template <typename T>
    void operator()(std::string_view name, std::optional<T>& value) {
        const auto found = object_.find(name);
        if (found != object_.end() && !read(*found, value.emplace())) {
            fail(name);
        }
    }

    // False when `in` has another type than `value`, or does not fit.
    template <typename T>
    bool read(const json& in, T& value) {
        if constexpr (std::is_enum_v<T>) {
            for (int i = 0; in.is_string() && i <= static_cast<int>(last<T>); ++i) {
                value = static_cast<T>(i);
                if (in.get_ref<const std::string&>() == to_string(value)) {
                    return true;
                }
            }
            return false;
        } else if constexpr (std::same_as<T, bool>) {
            value = in.is_boolean() && in.get<bool>();
            return in.is_boolean();
        } else if constexpr (std::unsigned_integral<T>) {
            value = in.is_number_unsigned() ? static_cast<T>(in.get<std::uint64_t>()) : T{};
            return in.is_number_unsigned() && in.get<std::uint64_t>() <= std::numeric_limits<T>::max();
        } else if constexpr (std::same_as<T, std::int64_t>) {
            const bool fits = in.is_number_integer() &&
                              (!in.is_number_unsigned() || in.get<std::uint64_t>() <= std::uint64_t{INT64_MAX});
            value = fits ? in.get<std::int64_t>() : 0;
            return fits;
        } else {
            if (!in.is_object()) {
                return false;
            }
            Load inner(in, problem_);
            describe(inner, value);
            return problem_.empty();
        }
    }
    bool read(const json& in, std::string& text) {
        if (!in.is_string()) {
            return false;
        }
        text = in.get_ref<const std::string&>();
        return true;
    }
    bool read(const json& in, Address& address) {
        std::string text;
        if (!read(in, text)) {
            return false;
        }
        const bool ipv6 = text.find(':') != std::string::npos;
        address.family = ipv6 ? IpFamily::ipv6 : IpFamily::ipv4;
        return inet_pton(ipv6 ? AF_INET6 : AF_INET, text.c_str(), address.bytes.data()) == 1;
    }
    template <typename T>
    bool read(const json& in, std::shared_ptr<const T>& shared) {
        T value;
        if (!read(in, value)) {
            return false;
        }
        shared = std::make_shared<const T>(std::move(value));
        return true;
    }
    template <typename T>
    bool read(const json& in, std::map<std::string, T>& values) {
        if (!in.is_object()) {
            return false;
        }
        for (const auto& [name, value] : in.items()) {
            if (!read(value, values[name])) {
                return false;
            }
        }
        return true;
    }
    template <typename T>
    bool read(const json& in, std::vector<T>& values) {
        if (!in.is_array()) {
            return false;
        }
        // One by one: an array of a million wrong elements must not become a million rules first.
        for (const json& element : in) {
            if (!read(element, values.emplace_back())) {
                return false;
            }
        }
        return true;
    }
    bool read(const json& in, std::map<std::uint32_t, std::string>& values) {
        if (!in.is_object()) {
            return false;
        }
        for (const auto& [key, value] : in.items()) {
            // As a JSON number it gets the checks of every other number.
            const json number = json::parse(key, nullptr, false);
            std::uint32_t index = 0;
            if (!read(number, index) || !read(value, values[index])) {
                return false;
            }
        }
        return true;
    }

private:
    void fail(std::string_view name) {
        if (problem_.empty()) {
            problem_ = name;
        }
    }

    const json& object_;
    std::string& problem_;
};

template <typename T>
std::string save(const T& value) {
    Save archive;
    archive.write(value);
    return std::move(archive.out);
}

template <typename T>
Result<T> load(std::string_view text, std::string_view what) {
    // Nothing of ours nests deeper. What does is skipped, else each '[' of a hostile file would cost a hundred bytes.
    constexpr int max_depth = 10;
    const auto shallow = [](int depth, json::parse_event_t, json&) { return depth <= max_depth; };
    const json in = json::parse(text.begin(), text.end(), shallow, false);
    T value;
    std::string problem;
    Load archive(in, problem);
    if (!archive.read(in, value)) {
        return Error{
            ErrorKind::other,
            fmt::format("the {} {}", what, problem.empty() ? "is not a JSON object" : "has a wrong or no " + problem)};
    }
    return value;
}

bool is_too_large(const RulesetChange& change) {
    return change.added.size() > RulesetChange::max_rules || change.removed.size() > RulesetChange::max_rules ||
           change.moved.size() > RulesetChange::max_rules || change.changers.size() > RulesetChange::max_changers;
}

} // namespace

std::string to_json(const Meta& meta) {
    return save(meta);
}

std::string to_json(const resolve_rule::Snapshot& snapshot) {
    return save(snapshot);
}

std::string to_json(const resolve_rule::Look& look) {
    return save(look);
}

std::string to_json(const NetnsName& netns) {
    return save(netns);
}

std::string to_json(const decode::KernelNames& names) {
    return save(names);
}

std::string to_json(const RulesetChange& change) {
    return save(change);
}

std::string to_json(const Stopped& stopped) {
    return save(stopped);
}

std::string to_json(const Way& way) {
    return save(way);
}

std::string to_json(const evidence::Entry& entry) {
    return save(entry);
}

Result<evidence::Entry> evidence_from_json(std::string_view text) {
    return load<evidence::Entry>(text, "evidence of a drop");
}

Result<RulesetChange> ruleset_from_json(std::string_view text) {
    auto change = load<RulesetChange>(text, "change of a ruleset");
    if (change && is_too_large(*change)) {
        return Error{ErrorKind::other, "the change of a ruleset has more rules or processes than there may be"};
    }
    return change;
}

Result<Stopped> stopped_from_json(std::string_view text) {
    auto stopped = load<Stopped>(text, "end of drops");
    if (stopped && is_too_large(stopped->change)) {
        return Error{ErrorKind::other, "the change that ended drops has more rules or processes than there may be"};
    }
    return stopped;
}

Result<Way> way_from_json(std::string_view text) {
    return load<Way>(text, "way to a range");
}

Result<NetnsName> netns_from_json(std::string_view text) {
    return load<NetnsName>(text, "name of a network namespace");
}

Result<decode::KernelNames> reasons_from_json(std::string_view text) {
    return load<decode::KernelNames>(text, "names of drop reasons");
}

Result<Meta> meta_from_json(std::string_view text) {
    return load<Meta>(text, "description of the run");
}

Result<resolve_rule::Snapshot> snapshot_from_json(std::string_view text) {
    return load<resolve_rule::Snapshot>(text, "ruleset");
}

Result<resolve_rule::Look> look_from_json(std::string_view text) {
    return load<resolve_rule::Look>(text, "look at the counters of a ruleset");
}

} // namespace tsdroptrace::recording
