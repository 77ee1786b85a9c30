// SPDX-License-Identifier: GPL-2.0-only
#include "output/json.h"

#include <nlohmann/json.hpp>

#include "util/text.h"

namespace tsdroptrace::output {

namespace {

using json = nlohmann::ordered_json;

// What a double cannot hold exactly is a string: many readers keep every number in a double.
json number(std::uint64_t value) {
    constexpr std::uint64_t largest_exact = std::uint64_t{1} << 53;
    return value <= largest_exact ? json(value) : json(std::to_string(value));
}

template <typename T>
json or_null(const std::optional<T>& value) {
    return value ? json(*value) : json(nullptr);
}

json number_or_null(const std::optional<std::uint64_t>& value) {
    return value ? number(*value) : json(nullptr);
}

json name_or_null(const std::optional<Hook>& hook) {
    return hook ? json(to_string(*hook)) : json(nullptr);
}

// enum ip_conntrack_info of the kernel.
json ct_state(std::optional<std::uint8_t> ctinfo) {
    if (!ctinfo)
        return nullptr;
    switch (*ctinfo) {
    case 0:
        return "established";
    case 1:
        return "related";
    case 2:
        return "new";
    case 3:
        return "established-reply";
    case 4:
        return "related-reply";
    case 7:
        return "untracked";
    default:
        return nullptr;
    }
}

json to_json(const Netns& netns) {
    return {{"inode", netns.inode}, {"name", or_null(netns.name)}};
}

json to_json(const std::optional<Quoted>& quoted) {
    if (!quoted)
        return nullptr;
    return {{"proto", proto_name(quoted->proto)},
            {"src", quoted->src.text()},
            {"sport", or_null(quoted->sport)},
            {"dst", quoted->dst.text()},
            {"dport", or_null(quoted->dport)}};
}

json to_json(const Packet& p) {
    return {{"family", to_string(p.family)},
            {"proto", proto_name(p.proto)},
            {"src", p.src.text()},
            {"sport", or_null(p.sport)},
            {"dst", p.dst.text()},
            {"dport", or_null(p.dport)},
            {"length", p.length},
            {"ttl", p.ttl},
            {"tcp_flags", or_null(p.tcp_flags)},
            {"icmp_type", or_null(p.icmp_type)},
            {"icmp_code", or_null(p.icmp_code)},
            {"mark", p.mark},
            {"direction", to_string(p.direction)},
            {"in_dev", or_null(p.in_dev)},
            {"out_dev", or_null(p.out_dev)},
            {"ct_state", ct_state(p.ctinfo)},
            {"no_ports", p.no_ports == NoPorts::none ? json(nullptr) : json(to_string(p.no_ports))},
            {"quoted", to_json(p.quoted)}};
}

json to_json(const Process& process) {
    return {{"pid", process.pid}, {"comm", process.comm}};
}

json to_json(const HookFunction& function) {
    json program = nullptr;
    if (function.program_id)
        program = {{"id", *function.program_id}, {"name", function.program}};
    return {{"name", function.name}, {"module", or_null(function.module)}, {"bpf_program", std::move(program)}};
}

json to_json(const Queue& queue) {
    return {{"number", or_null(queue.number)},
            {"fate", to_string(queue.fate)},
            {"process", queue.process ? to_json(*queue.process) : json(nullptr)}};
}

json to_json(const DropSite& site) {
    return {{"kind", to_string(site.kind)},
            {"reason", site.reason},
            {"reason_code", site.reason_code},
            {"location", site.location},
            {"hook", name_or_null(site.hook)},
            {"unknown", site.unknown.empty() ? json(nullptr) : json(site.unknown)},
            {"hook_function", site.hook_function ? to_json(*site.hook_function) : json(nullptr)},
            {"queue", site.queue ? to_json(*site.queue) : json(nullptr)}};
}

json to_json(const Rule* rule, const std::optional<Owner>& owner) {
    if (rule == nullptr)
        return nullptr;
    json path = json::array();
    for (const PathStep& step : rule->path)
        path.push_back(
            {{"chain", step.chain}, {"number", or_null(step.number)}, {"handle", number_or_null(step.handle)}});
    return {{"backend", to_string(rule->backend)},
            {"family", to_string(rule->family)},
            {"table", rule->table},
            {"chain", rule->chain},
            {"number", or_null(rule->number)},
            {"handle", number_or_null(rule->handle)},
            {"text", or_null(rule->text)},
            {"path", std::move(path)},
            {"verdict", rule->verdict},
            {"confidence", to_string(rule->confidence)},
            {"evidence", rule->evidence.empty() ? json(nullptr) : json(rule->evidence)},
            {"stale", rule->stale},
            {"owner", owner ? json(owner->name) : json(nullptr)}};
}

json to_json(const std::vector<SetElement>& elements) {
    json out = json::array();
    for (const SetElement& element : elements)
        out.push_back({{"set", or_null(element.set)}, {"element", element.text}});
    return out.empty() ? json(nullptr) : out;
}

json to_json(const Route& route) {
    return {{"type", route.type},
            {"dev", or_null(route.dev)},
            {"gateway", route.gateway ? json(route.gateway->text()) : json(nullptr)},
            {"table", route.table != 0 ? json(route.table) : json(nullptr)},
            {"matched", route.matched.empty() ? json(nullptr) : json(route.matched)},
            {"rule", or_null(route.rule)}};
}

json to_json(const Evidence* evidence) {
    if (evidence == nullptr)
        return nullptr;
    json socket = nullptr;
    if (evidence->socket_waits)
        socket = {{"waits", *evidence->socket_waits},
                  {"process", evidence->waiting ? to_json(*evidence->waiting) : json(nullptr)}};
    json sysctls = json::object();
    for (const auto& [name, value] : evidence->sysctls)
        sysctls[name] = value;
    return {{"route", evidence->route ? to_json(*evidence->route) : json(nullptr)},
            {"tailnet_peer", or_null(evidence->tailnet_peer)},
            {"socket", std::move(socket)},
            {"sysctls", std::move(sysctls)}};
}

json to_json(const Explanation* explanation) {
    if (explanation == nullptr)
        return nullptr;
    json fixes = json::array();
    for (const Fix& fix : explanation->fixes)
        fixes.push_back({{"do", fix.action}, {"risk", fix.risk}});
    return {{"id", explanation->id},
            {"summary", explanation->summary},
            {"fixes", std::move(fixes)},
            {"reference", explanation->reference.empty() ? json(nullptr) : json(explanation->reference)}};
}

json to_json(const Cause& cause) {
    const Drop& drop = cause.example;
    json flows = json::array();
    for (const Flow& flow : cause.flows)
        flows.push_back({{"proto", proto_name(flow.proto)},
                         {"src", flow.src.text()},
                         {"sport", flow.sport},
                         {"dst", flow.dst.text()},
                         {"dport", flow.dport},
                         {"packets", number(flow.packets)}});
    return {{"drop",
             {{"kind", to_string(drop.site.kind)},
              {"reason", drop.site.reason},
              {"hook", name_or_null(drop.site.hook)},
              {"hook_function", drop.site.hook_function ? to_json(*drop.site.hook_function) : json(nullptr)},
              {"queue", drop.site.queue ? to_json(*drop.site.queue) : json(nullptr)}}},
            {"rule", to_json(drop.rule.get(), drop.owner)},
            {"netns", to_json(drop.netns)},
            {"packets", number(cause.packets)},
            {"bytes", number(cause.bytes)},
            {"first", rfc3339_utc(cause.first_ns)},
            {"last", rfc3339_utc(cause.last_ns)},
            {"flows", std::move(flows)},
            {"flows_other", {{"flows", number(cause.other_flows)}, {"packets", number(cause.other_packets)}}}};
}

json to_json(const std::map<std::string, std::uint64_t>& counts) {
    json out = json::object();
    for (const auto& [name, count] : counts)
        out[name] = number(count);
    return out;
}

json to_json(const SeenWay& way) {
    const auto time = [](std::optional<std::int64_t> ns) { return ns ? json(rfc3339_utc(*ns)) : json(nullptr); };
    return {{"packets", number(way.packets)},
            {"by_dev", to_json(way.by_dev)},
            {"first", time(way.first_ns)},
            {"last", time(way.last_ns)}};
}

json to_json(const Capability& capability) {
    return {{"exactness", to_string(capability.exactness)},
            {"reason", capability.reason.empty() ? json(nullptr) : json(capability.reason)}};
}

json to_json(const Changer& changer) {
    json out = to_json(changer.process);
    out["parent"] = changer.parent ? to_json(*changer.parent) : json(nullptr);
    out["changes"] = number(changer.changes);
    return out;
}

json to_json(const std::vector<ChangedRule>& rules) {
    json out = json::array();
    for (const ChangedRule& changed : rules) {
        out.push_back(to_json(&changed.rule, changed.owner));
        if (changed.was)
            out.back()["was"] = *changed.was;
    }
    return out;
}

json line_head(const char* type, std::int64_t time_ns, const std::string& host) {
    return {{"schema_version", 1}, {"type", type}, {"time", rfc3339_utc(time_ns)}, {"host", host}};
}

std::string finish(const json& line) {
    constexpr bool ascii_only = true;
    return line.dump(-1, ' ', ascii_only, json::error_handler_t::replace) + '\n';
}

} // namespace

std::string json_line(const Start& start) {
    json line = line_head("start", start.time_ns, start.host);
    line["version"] = start.version;
    line["kernel"] = start.kernel;
    line["filter"] = start.filter;
    line["capabilities"] = {{"iptables-legacy", to_json(start.capabilities.iptables_legacy)},
                            {"iptables-nft", to_json(start.capabilities.iptables_nft)},
                            {"nftables", to_json(start.capabilities.nftables)}};
    return finish(line);
}

std::string json_line(const Drop& drop, const std::string& host) {
    json line = line_head("drop", drop.time_ns, host);
    line["mono_ns"] = number(drop.mono_ns);
    line["cpu"] = drop.cpu;
    line["netns"] = to_json(drop.netns);
    line["packet"] = to_json(drop.packet);
    line["drop"] = to_json(drop.site);
    line["rule"] = to_json(drop.rule.get(), drop.owner);
    if (drop.rule) // of this packet, so not in the summary's causes
        line["rule"]["elements"] = to_json(drop.elements);
    line["process"] = drop.process ? to_json(*drop.process) : json(nullptr);
    line["rule_written"] = nullptr;
    if (const RulesetChange* written = drop.written.get()) {
        json changers = json::array();
        for (const Changer& changer : written->changers)
            changers.push_back(to_json(changer));
        line["rule_written"] = {{"time", rfc3339_utc(written->time_ns)},
                                {"by", written->by() ? to_json(written->by()->process) : json(nullptr)},
                                {"changers", std::move(changers)}};
    }
    line["evidence"] = to_json(drop.evidence.get());
    line["explanation"] = to_json(drop.explanation.get());
    return finish(line);
}

std::string json_line(const Lost& lost, const std::string& host, std::int64_t time_ns) {
    json line = line_head("lost", time_ns, host);
    line["count"] = number(lost.count);
    line["where"] = lost.where;
    line["since"] = rfc3339_utc(lost.since_ns);
    return finish(line);
}

std::string json_line(const RulesetChange& change, const std::string& host) {
    json line = line_head("ruleset", change.time_ns, host);
    line["netns"] = to_json(change.netns);
    line["backend"] = to_string(change.backend);
    line["generation"] = change.generation;
    line["by"] = change.by() ? to_json(change.by()->process) : json(nullptr);
    line["changers"] = json::array();
    for (const Changer& changer : change.changers)
        line["changers"].push_back(to_json(changer));
    line["other_changes"] = number(change.other_changes);
    line["drops"] = nullptr;
    if (change.unknown.empty())
        line["drops"] = {{"added", to_json(change.added)},
                         {"removed", to_json(change.removed)},
                         {"moved", to_json(change.moved)},
                         {"more",
                          {{"added", number(change.more_added)},
                           {"removed", number(change.more_removed)},
                           {"moved", number(change.more_moved)}}}};
    line["unknown"] = change.unknown.empty() ? json(nullptr) : json(change.unknown);
    return finish(line);
}

std::string json_line(const Stopped& stopped, const std::string& host) {
    const Drop& drop = stopped.cause.example;
    json line = line_head("stopped", stopped.time_ns, host);
    line["netns"] = to_json(drop.netns);
    line["drop"] = {
        {"kind", to_string(drop.site.kind)}, {"reason", drop.site.reason}, {"hook", name_or_null(drop.site.hook)}};
    line["rule"] = to_json(drop.rule.get(), drop.owner);
    line["packets"] = number(stopped.cause.packets);
    line["first"] = rfc3339_utc(stopped.cause.first_ns);
    line["last"] = rfc3339_utc(stopped.cause.last_ns);
    json chain = nullptr;
    if (stopped.chain)
        chain = {{"family", to_string(stopped.chain->family)},
                 {"table", stopped.chain->table},
                 {"chain", stopped.chain->name}};
    const Changer* by = stopped.change.by();
    line["change"] = {{"time", rfc3339_utc(stopped.change.time_ns)},
                      {"backend", to_string(stopped.change.backend)},
                      {"generation", stopped.change.generation},
                      {"by", by ? to_json(by->process) : json(nullptr)},
                      {"chain", std::move(chain)},
                      {"changes", number(stopped.changes)},
                      {"confidence", to_string(Confidence::inferred)}};
    const auto way = [](const SeenWay& since) {
        return json{{"packets", number(since.packets)}, {"by_dev", to_json(since.by_dev)}};
    };
    line["seen"] = {{"since", rfc3339_utc(stopped.seen_since_ns)},
                    {"sent", way(stopped.seen.sent)},
                    {"received", way(stopped.seen.received)}};
    return finish(line);
}

std::string json_line(const Summary& summary, const std::string& host) {
    json line = line_head("summary", summary.until_ns, host);
    line["final"] = summary.final;
    line["since"] = rfc3339_utc(summary.since_ns);
    line["until"] = rfc3339_utc(summary.until_ns);
    line["causes"] = json::array();
    for (const Cause& cause : summary.causes)
        line["causes"].push_back(to_json(cause));
    line["seen"] = nullptr;
    if (const auto& seen = summary.seen)
        line["seen"] = {{"sent", to_json(seen->sent)}, {"received", to_json(seen->received)}};
    line["ways"] = json::array();
    for (const Way& way : summary.ways)
        line["ways"].push_back({{"range", way.range}, {"to", way.to.text()}, {"route", to_json(way.route)}});
    line["lost"] = to_json(summary.lost);
    line["hidden"] = to_json(summary.hidden);
    return finish(line);
}

std::string json_line(const CheckVerdict& verdict, const std::string& host, std::int64_t time_ns) {
    json line = line_head("check", time_ns, host);
    line["target"] = verdict.target;
    line["verdict"] = to_string(verdict.reached);
    line["text"] = verdict.text;
    return finish(line);
}

Status JsonOutput::start(const Start& start) {
    host_ = start.host;
    return write(json_line(start));
}

Status JsonOutput::drop(const Drop& drop, bool) {
    if (drop.noise && !noise_)
        return Ok{};
    return write(json_line(drop, host_));
}

Status JsonOutput::lost(const Lost& lost) {
    return write(json_line(lost, host_, now_()));
}

Status JsonOutput::ruleset(const RulesetChange& change) {
    return write(json_line(change, host_));
}

Status JsonOutput::stopped(const Stopped& stopped) {
    return write(json_line(stopped, host_));
}

Status JsonOutput::check(const CheckVerdict& verdict, std::int64_t time_ns) {
    return write(json_line(verdict, host_, time_ns));
}

Status JsonOutput::summary(const Summary& summary) {
    if (sink_.failed_lines() == 0)
        return write(json_line(summary, host_));
    Summary with_ours = summary;
    with_ours.lost["file"] += sink_.failed_lines();
    return write(json_line(with_ours, host_));
}

Status JsonOutput::write(const std::string& line) {
    const std::uint64_t failed = sink_.failed_lines();
    const std::int64_t now = now_();
    if (failed > reported_) {
        // On its own: the line after it may be larger, and fail where this one still fits. When this one
        // fails, the sink counts it, which is the count for the line that is not tried then.
        const Lost lost{failed - reported_, "file", last_written_ns_};
        if (Status status = sink_.write(json_line(lost, host_, now)); !status)
            return status;
        reported_ = failed;
    }
    Status status = sink_.write(line);
    if (status)
        last_written_ns_ = now;
    return status;
}

} // namespace tsdroptrace::output
