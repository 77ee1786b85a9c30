// SPDX-License-Identifier: GPL-2.0-only
#include "evidence/evidence.h"

#include <netinet/in.h>

namespace tsdroptrace::evidence {
namespace {

// Whether the packet may have been on its way to a socket of this machine, and names one.
bool may_meet_socket(const Drop& drop) {
    constexpr std::uint8_t with_sockets[] = {IPPROTO_TCP, IPPROTO_UDP, IPPROTO_UDPLITE};
    const Packet& packet = drop.packet;
    if (!packet.received || leaves_this_machine(drop) || drop.site.hook == Hook::forward)
        return false;
    if (!packet.sport || !packet.dport)
        return false;
    for (const std::uint8_t proto : with_sockets)
        if (proto == packet.proto)
            return true;
    return false;
}

} // namespace

std::optional<Keys> keys_of(const Drop& drop) {
    const Packet& packet = drop.packet;
    if (packet.family == IpFamily::other)
        return std::nullopt;
    Keys keys;
    keys.far_end.cause_id = drop.cause_id;
    keys.far_end.far_end = peer(drop);
    keys.far_end.near_end = peer_is_source(drop) ? packet.dst : packet.src;
    keys.far_end.mark = packet.mark;
    keys.far_end.in_dev = packet.in_dev.value_or("");
    keys.far_end.out_dev = packet.out_dev.value_or("");
    if (may_meet_socket(drop)) {
        keys.flow = keys.far_end;
        keys.flow->proto = packet.proto;
        keys.flow->far_port = *packet.sport;
        keys.flow->near_port = *packet.dport;
    }
    return keys;
}

void Answers::put(Entry entry) {
    const std::uint64_t number = ++last_number_;
    order_.emplace_back(number, entry.key);
    entries_.insert_or_assign(std::move(entry.key), Answer{entry.mono_ns, number, std::move(entry.evidence)});
    // One that was asked again leaves its old place in the order behind: those are not counted forever either.
    while (entries_.size() > max_entries || order_.size() > 2 * max_entries) {
        const auto oldest = entries_.find(order_.front().second);
        if (oldest != entries_.end() && oldest->second.number == order_.front().first)
            entries_.erase(oldest);
        order_.pop_front();
    }
}

std::shared_ptr<const Evidence> Answers::find(const Key& key, std::uint64_t mono_ns) const {
    const auto found = entries_.find(key);
    const std::uint64_t max_age = key.proto ? max_flow_age_ns : max_age_ns;
    // CPUs report in an order that is only nearly that of time: a packet may have died before that one.
    if (found == entries_.end() || (mono_ns > found->second.mono_ns && mono_ns - found->second.mono_ns > max_age))
        return nullptr;
    return found->second.evidence;
}

std::shared_ptr<const Evidence> RecordedEvidence::get(const Drop& drop, const WantedSysctls&) {
    const auto keys = keys_of(drop);
    if (!keys)
        return nullptr;
    if (keys->flow)
        if (auto of_flow = answers_.find(*keys->flow, drop.mono_ns))
            return of_flow;
    return answers_.find(keys->far_end, drop.mono_ns);
}

} // namespace tsdroptrace::evidence
