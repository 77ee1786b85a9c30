// SPDX-License-Identifier: GPL-2.0-only
#include "evidence/live_evidence.h"

#include <algorithm>
#include <ctime>

#include <spdlog/spdlog.h>

#include "evidence/route_lookup.h"
#include "evidence/socket_lookup.h"
#include "evidence/sysctls.h"
#include "util/netns.h"
#include "util/text.h"

namespace tsdroptrace::evidence {
namespace {

std::uint64_t monotonic_ns() {
    timespec now{};
    clock_gettime(CLOCK_MONOTONIC, &now);
    return static_cast<std::uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<std::uint64_t>(now.tv_nsec);
}

// The mark that counts for the way to the far end: the packet's own where it is the packet that goes there. For the way
// back of one that came in, the kernel looks at it only where src_valid_mark says so; a program's answer has none.
std::uint32_t mark_toward_peer(const Drop& drop) {
    const Packet& packet = drop.packet;
    if (!peer_is_source(drop) || packet.mark == 0)
        return packet.mark;
    std::set<std::string> names{"net.ipv4.conf.all.src_valid_mark"};
    if (packet.in_dev)
        names.insert("net.ipv4.conf." + sysctl_device(*packet.in_dev) + ".src_valid_mark");
    const auto is_on = [](const auto& sysctl) { return sysctl.second != "0"; };
    return packet.family == IpFamily::ipv4 && std::ranges::any_of(read_sysctls(names), is_on) ? packet.mark : 0;
}

// The way to the far end is asked for as the packet, or its answer, would ask.
void ask_routes(const Drop& drop, bool near_is_local, RouteLookup& routes, Evidence& evidence) {
    RouteQuestion question;
    const bool source = peer_is_source(drop);
    question.to = peer(drop);
    question.mark = mark_toward_peer(drop);
    const Address& near = source ? drop.packet.dst : drop.packet.src;
    if (drop.site.hook == Hook::forward) {
        question.from = near;
        question.in_dev = source ? drop.packet.out_dev : drop.packet.in_dev;
        if (!question.in_dev)
            return;
    } else {
        if (near_is_local)
            question.from = near;
        question.at_dev = source ? drop.packet.in_dev : drop.packet.out_dev;
    }
    evidence.route = routes.route(question);
    evidence.tailnet_peer = routes.has_host_route(question.to, tailscale_table, evidence.route);
}

} // namespace

Evidence ask_machine(const Drop& drop, const Evidence* known, const std::set<std::string>& sysctls, bool with_socket) {
    Evidence evidence = known ? *known : Evidence{};
    std::optional<SocketFound> socket;
    const Status entered = run_in_netns(drop.netns.inode, [&] {
        if (!known)
            evidence.sysctls = read_sysctls(sysctls);
        RouteLookup routes;
        const Address& near = peer_is_source(drop) ? drop.packet.dst : drop.packet.src;
        const bool near_is_local =
            routes.is_local(near, peer_is_source(drop) ? drop.packet.in_dev : drop.packet.out_dev);
        if (!known)
            ask_routes(drop, near_is_local, routes, evidence);
        // What is not for this machine meets no socket; a broadcast or a multicast may meet many.
        if (with_socket && near_is_local)
            socket = find_socket(drop.packet);
    });
    if (!entered)
        spdlog::debug("no evidence: {}", entered.error().message);
    if (!socket)
        return evidence;
    // Before prerouting is over the address may still be translated to that of another socket.
    const bool final_address = drop.site.hook != Hook::prerouting && drop.site.hook != Hook::ingress;
    if (socket->waits || final_address)
        evidence.socket_waits = socket->waits;
    if (socket->waits && socket->inode != 0)
        evidence.waiting = process_of_socket(socket->inode);
    return evidence;
}

std::vector<Way> ask_ways(const std::vector<std::pair<std::string, Address>>& ranges) {
    std::vector<Way> ways;
    RouteLookup routes;
    for (const auto& [range, to] : ranges) {
        RouteQuestion question;
        question.to = to;
        if (auto route = routes.route(question))
            ways.push_back({range, to, std::move(*route)});
    }
    return ways;
}

LiveEvidence::LiveEvidence(Observer on_entry, Ask ask, Now now)
    : on_entry_(std::move(on_entry)), ask_(std::move(ask)), now_(now ? std::move(now) : monotonic_ns) {}

bool LiveEvidence::may_ask() {
    constexpr std::uint64_t second_ns = 1'000'000'000;
    const std::uint64_t now = now_();
    if (now - second_began_ns_ >= second_ns) {
        second_began_ns_ = now;
        spent_ns_ = lookups_ = 0;
    }
    return lookups_ < max_lookups && spent_ns_ < max_time_ns;
}

void LiveEvidence::keep(const Key& key, const Drop& drop, std::shared_ptr<const Evidence> evidence) {
    const Entry entry{key, drop.mono_ns, std::move(evidence)};
    if (on_entry_)
        on_entry_(entry);
    answers_.put(entry);
}

std::shared_ptr<const Evidence> LiveEvidence::get(const Drop& drop, const WantedSysctls& wanted) {
    const auto keys = keys_of(drop);
    if (!keys)
        return nullptr;
    if (keys->flow)
        if (auto of_flow = answers_.find(*keys->flow, drop.mono_ns))
            return of_flow;
    auto of_far_end = answers_.find(keys->far_end, drop.mono_ns);
    const std::uint64_t began = now_();
    const std::uint64_t waited = began - std::min(began, drop.mono_ns);
    const bool with_socket = keys->flow && waited <= max_wait_socket_ns;
    if ((of_far_end && !with_socket) || waited > max_wait_ns || !may_ask())
        return of_far_end;

    const auto sysctls = of_far_end ? std::set<std::string>{} : wanted(drop);
    const auto answer = std::make_shared<const Evidence>(ask_(drop, of_far_end.get(), sysctls, with_socket));
    ++lookups_;
    spent_ns_ += now_() - began;
    if (!of_far_end) {
        auto of_all_flows = std::make_shared<Evidence>(*answer);
        of_all_flows->socket_waits.reset();
        of_all_flows->waiting.reset();
        keep(keys->far_end, drop, std::move(of_all_flows));
    }
    if (with_socket)
        keep(*keys->flow, drop, answer);
    return answer;
}

} // namespace tsdroptrace::evidence
