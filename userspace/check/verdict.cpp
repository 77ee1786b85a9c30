// SPDX-License-Identifier: GPL-2.0-only
#include "check/verdict.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

#include <fmt/format.h>

#include "explain/tunnel.h"

namespace tsdroptrace::check {
namespace {

bool is_ours(const Flow& flow, const Answer& answer) {
    const auto has = [&](std::uint16_t port) {
        return std::ranges::find(answer.local_ports, port) != answer.local_ports.end();
    };
    return (flow.sport == 0 && flow.dport == 0) || has(flow.sport) || has(flow.dport);
}

struct Dropped {
    std::uint64_t packets = 0;
    const Cause* by = nullptr; // of most of them
};

Dropped dropped_of(const Answer& answer, const Summary& summary) {
    Dropped dropped;
    std::uint64_t most = 0;
    for (const Cause& cause : summary.causes) {
        std::uint64_t packets = 0;
        for (const Flow& flow : cause.flows)
            packets += is_ours(flow, answer) ? flow.packets : 0;
        dropped.packets += packets;
        if (packets > most) {
            most = packets;
            dropped.by = &cause;
        }
    }
    return dropped;
}

// "ts-input rule 5 (filter)", "the policy of INPUT (filter)", "NO_SOCKET"
std::string dropped_by(const Drop& drop) {
    if (const Rule* rule = drop.rule.get()) {
        if (drop.site.kind == DropKind::policy)
            return fmt::format("the policy of {} (table {})", rule->chain, rule->table);
        const std::string place = rule->number   ? fmt::format("rule {}", *rule->number)
                                  : rule->handle ? fmt::format("rule with handle {}", *rule->handle)
                                                 : std::string("a rule");
        return fmt::format("{}, {} (table {})", rule->chain, place, rule->table);
    }
    if (drop.site.hook_function)
        return drop.site.hook_function->text();
    return drop.site.kind == DropKind::kernel ? drop.site.reason : "netfilter, by a rule that is not known";
}

std::string devices(const SeenWay& way) {
    std::string out;
    for (const auto& [name, packets] : way.by_dev)
        out += (out.empty() ? "" : ", ") + name;
    return out;
}

// The kernel sees nothing of what becomes of it there.
std::string behind_tunnel(const Summary& summary) {
    const auto& devices = summary.seen->sent.by_dev;
    if (std::ranges::none_of(devices, [](const auto& dev) { return explain::is_of_tailscale(dev.first); }))
        return ". The program behind that tunnel, on this machine, may have dropped them";
    std::string out = ". tailscaled, on this machine, may have dropped them, or their answers: tailscale metrics print "
                      "(tailscaled_inbound_dropped_packets_total); else they are lost beyond it";
    for (const Way& way : summary.ways)
        out += explain::accepted_route_words(way);
    return out;
}

std::string packets_text(std::uint64_t count) {
    return fmt::format("{} packet{}", count, count == 1 ? "" : "s");
}

std::string icmp_text(const Answer& answer) {
    std::string out = "with an ICMP error";
    if (answer.icmp)
        out = fmt::format("with ICMP type {} code {}", answer.icmp->type, answer.icmp->code);
    return answer.error_number ? fmt::format("{} ({})", out, std::strerror(answer.error_number)) : out;
}

} // namespace

CheckVerdict verdict(const Target& target, const Answer& answer, const Summary& summary) {
    const Dropped dropped = dropped_of(answer, summary);
    const std::string what = target.text();
    const std::string ours = dropped.by
                                 ? fmt::format("{} of the check {} dropped here by {}", packets_text(dropped.packets),
                                               dropped.packets == 1 ? "was" : "were", dropped_by(dropped.by->example))
                                 : std::string();
    CheckVerdict out;
    out.target = what;
    const auto say = [&](Reached reached, std::string text) {
        out.reached = reached;
        out.text = std::move(text);
        return out;
    };
    const bool sent_here =
        answer.icmp && (answer.icmp->from == answer.local || answer.icmp->from.family == IpFamily::other);
    switch (answer.outcome) {
    case Outcome::answered:
        return say(Reached::yes, fmt::format("{} is reachable: it answered{}", what, ours.empty() ? "" : "; " + ours));
    case Outcome::reset:
        return say(Reached::yes,
                   fmt::format("{} is reachable and answered with a reset: nobody listens on that port, or "
                               "somebody on the way refuses it",
                               what));
    case Outcome::error:
        if (sent_here)
            return say(Reached::dropped_here,
                       ours.empty()
                           ? fmt::format("{} was not reached: this machine itself answered {}", what, icmp_text(answer))
                           : ours);
        return say(Reached::lost_elsewhere,
                   fmt::format("{} was not reached: {} answered {}: the loss is not on this machine", what,
                               answer.icmp ? answer.icmp->from.text() : "somebody", icmp_text(answer)));
    case Outcome::local:
        return say(Reached::dropped_here, !ours.empty()
                                              ? ours
                                              : fmt::format("{} was not asked: this machine could not send ({})", what,
                                                            std::strerror(answer.error_number)));
    case Outcome::silence:
        break;
    }
    if (!ours.empty())
        return say(Reached::dropped_here, ours);
    if (!summary.seen || summary.seen->sent.packets == 0)
        return say(
            Reached::dropped_here,
            fmt::format("{} did not answer, and no packet to it left this machine: perhaps the next hop does not "
                        "answer on the link (ip neigh)",
                        what));
    const SeenWay &sent = summary.seen->sent, &received = summary.seen->received;
    if (received.packets != 0)
        return say(Reached::lost_elsewhere,
                   fmt::format("{} did not answer what was asked: {} left by {}, {} came in from there, and none was "
                               "dropped here",
                               what, packets_text(sent.packets), devices(sent), packets_text(received.packets)));
    const bool tunnel = explain::left_by_tunnel(sent);
    std::string text =
        fmt::format("{} did not answer: {} left by {}, none came back{}", what, packets_text(sent.packets),
                    devices(sent), tunnel ? behind_tunnel(summary) : ": the loss is not on this machine");
    if (target.kind == Kind::udp && target.port != 53)
        text += ", or that service has nothing to say to a packet that it does not understand";
    return say(Reached::lost_elsewhere, std::move(text));
}

} // namespace tsdroptrace::check
