// SPDX-License-Identifier: GPL-2.0-only
// A recording: what the kernel said in one run and what is needed to read it, so that another machine gives the
// same answer.
//
//   file   = header frame*
//   frame  = type (u32), length of the payload in bytes (u32), payload
//
// Integers and the structs of bpf/event.h are in the byte order of the recording machine, which the header
// shows; their layout is the same on every architecture that tsdroptrace runs on. META comes first, END last;
// a file without END was cut. A new frame type or another layout needs a new format version; after another layout, no
// older file can be read.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

#include "bpf/event.h"
#include "decode/decode.h"
#include "evidence/evidence.h"
#include "model.h"
#include "resolve_rule/look.h"
#include "resolve_rule/ruleset.h"
#include "util/result.h"

namespace tsdroptrace::recording {

constexpr std::uint32_t format_version = 9, oldest_readable = 8; // which lacks some types of frames

struct Header {
    std::array<char, 8> magic = {'T', 'S', 'D', 'T', 'R', 'E', 'C', '\n'};
    std::uint32_t byte_order = 0x01020304;
    std::uint32_t version = format_version;
    // Sizes in bytes: a struct that grew without a new version is noticed before it is misread.
    std::uint32_t drop_size = sizeof(tsdt_drop);
    std::uint32_t cause_size = sizeof(tsdt_cause);
    std::uint32_t flow_size = sizeof(tsdt_flow_key);
    std::uint32_t pad = 0;
};
static_assert(sizeof(Header) == 32);

enum class FrameType : std::uint32_t {
    meta = 1,     // JSON of Meta
    snapshot = 2, // JSON of resolve_rule::Snapshot
    cause = 3,    // tsdt_cause; may come again with higher counts: the last one of a key counts
    drop = 4,     // tsdt_drop
    flow = 5,     // Flow; as with causes the last one counts
    lost = 6,     // LostCounts; the last one counts
    end = 7,      // End
    netns = 8,    // JSON of NetnsName, before the first drop in that namespace
    ruleset = 9,  // JSON of RulesetChange
    look = 10,    // JSON of resolve_rule::Look, after its snapshot
    seen = 11,    // tsdt_seen_count, at the end
    // JSON of evidence::Entry, before the first drop that it belongs to; where that one waits for a look: before the
    // look
    evidence = 12,
    stopped = 13, // JSON of Stopped
    way = 14,     // JSON of Way, at the end
    reasons = 15, // JSON of KernelNames, before the first drop for a reason that the names of META lack
};

struct FrameHeader {
    std::uint32_t type = 0; // FrameType
    std::uint32_t length = 0;
};

// Payloads larger than this are neither written nor read: 100000 rules fit into the largest.
constexpr std::uint32_t max_meta = 1u << 20;
constexpr std::uint32_t max_snapshot = 32u << 20;
constexpr std::uint32_t max_evidence = 64u << 10;

// What holds for the whole run.
struct Meta {
    decode::Machine machine;
    Start start;
};

struct Flow {
    tsdt_flow_key key{};
    std::uint32_t pad = 0;
    std::uint64_t packets = 0;
};
static_assert(sizeof(Flow) == 56);

// The name of a network namespace, as `ip netns` shows it.
struct NetnsName {
    std::uint32_t inode = 0;
    std::string name;
};

using LostCounts = std::array<std::uint64_t, TSDT_LOST_MAX>; // by tsdt_lost, since the start

struct End {
    std::int64_t time_ns = 0; // CLOCK_REALTIME when tracing stopped
};

// One line of JSON. Bytes that are not UTF-8 become U+FFFD, as in every output.
std::string to_json(const Meta&);
std::string to_json(const resolve_rule::Snapshot&);
std::string to_json(const resolve_rule::Look&); // without its snapshot

std::string to_json(const NetnsName&);
std::string to_json(const decode::KernelNames&);
std::string to_json(const evidence::Entry&);
// Without what the pipeline fills in: name of the namespace, owners. (Which chains differ is for Stopped alone.)
std::string to_json(const RulesetChange&);
std::string to_json(const Stopped&); // also without its packet
std::string to_json(const Way&);

// The opposite. `text` may be anything: fails, with one sentence, when it is not such JSON. Memory is bounded by
// some twenty times the length of `text`.
Result<Meta> meta_from_json(std::string_view text);
Result<resolve_rule::Snapshot> snapshot_from_json(std::string_view text);
Result<resolve_rule::Look> look_from_json(std::string_view text);
Result<NetnsName> netns_from_json(std::string_view text);
Result<decode::KernelNames> reasons_from_json(std::string_view text);
Result<RulesetChange> ruleset_from_json(std::string_view text);
Result<Stopped> stopped_from_json(std::string_view text);
Result<Way> way_from_json(std::string_view text);
Result<evidence::Entry> evidence_from_json(std::string_view text);

} // namespace tsdroptrace::recording
