// SPDX-License-Identifier: GPL-2.0-only
// What this machine itself says about a drop: the route to the far end, the socket that waits for the packet, settings.
// Asked from the running machine (live_evidence.h) or handed out again from a recording (RecordedEvidence).
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>

#include "model.h"

namespace tsdroptrace::evidence {

// The sysctls that could change the explanation of a drop. Packets that have a Key in common want the same.
using WantedSysctls = std::function<std::set<std::string>(const Drop&)>;

class Source {
public:
    virtual ~Source() = default;
    // Reads packet, site, netns, rule, owner and cause of the drop. Null: nothing was asked. `wanted` is called where
    // the machine is asked, which is seldom.
    virtual std::shared_ptr<const Evidence> get(const Drop&, const WantedSysctls& wanted) = 0;
};

// All that an answer depends on: packets that are the same in this share it.
struct Key {
    std::uint32_t cause_id = 0;
    Address far_end, near_end;
    std::uint32_t mark = 0;
    std::string in_dev, out_dev; // empty: none
    // Of what belongs to one flow, its socket; else 0.
    std::uint8_t proto = 0;
    std::uint16_t far_port = 0, near_port = 0;
    auto operator<=>(const Key&) const = default;
};

struct Keys {
    Key far_end;
    std::optional<Key> flow; // where a socket of this machine may wait for the packet
};

// nullopt: a packet that is not IP, of which nothing is asked.
std::optional<Keys> keys_of(const Drop&);

struct Entry {
    Key key;
    std::uint64_t mono_ns = 0; // CLOCK_MONOTONIC: when the packet died for which it was asked
    std::shared_ptr<const Evidence> evidence;
};

// Answers that still hold. Ages go by the times of packets, so that a replay finds what the live run found.
class Answers {
public:
    static constexpr std::size_t max_entries = 512; // the oldest goes first
    // Who waits at a socket may give up soon; routes and settings last longer.
    static constexpr std::uint64_t max_age_ns = 10'000'000'000, max_flow_age_ns = 2'000'000'000;

    void put(Entry);
    // Null: there is none for a packet that died at `mono_ns`.
    std::shared_ptr<const Evidence> find(const Key&, std::uint64_t mono_ns) const;
    std::size_t size() const { return entries_.size(); }

private:
    struct Answer {
        std::uint64_t mono_ns = 0, number = 0;
        std::shared_ptr<const Evidence> evidence;
    };
    std::map<Key, Answer> entries_;
    std::deque<std::pair<std::uint64_t, Key>> order_; // oldest first; those that were replaced have another number
    std::uint64_t last_number_ = 0;
};

// Hands out what the recording holds.
class RecordedEvidence : public Source {
public:
    void add(Entry entry) { answers_.put(std::move(entry)); }
    std::shared_ptr<const Evidence> get(const Drop&, const WantedSysctls& wanted) override;

private:
    Answers answers_;
};

} // namespace tsdroptrace::evidence
