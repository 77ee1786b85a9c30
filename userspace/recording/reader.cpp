// SPDX-License-Identifier: GPL-2.0-only
#include "recording/reader.h"

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <optional>
#include <span>
#include <vector>

#include <fmt/format.h>

#include "util/text.h"

namespace tsdroptrace::recording {
namespace {

// Reads as many of `size` bytes as there are. `bytes` grows with what arrives, not with what the file claims.
std::vector<std::byte> read_bytes(std::istream& in, std::size_t size) {
    constexpr std::size_t step = 64 * 1024;
    std::vector<std::byte> bytes;
    while (bytes.size() < size && in) {
        const std::size_t before = bytes.size();
        bytes.resize(before + std::min(step, size - before));
        in.read(reinterpret_cast<char*>(bytes.data() + before), static_cast<std::streamsize>(bytes.size() - before));
        bytes.resize(before + static_cast<std::size_t>(in.gcount()));
    }
    return bytes;
}

// nullopt when `bytes` is shorter than a T.
template <typename T>
std::optional<T> copy(std::span<const std::byte> bytes) {
    if (bytes.size() < sizeof(T)) {
        return std::nullopt;
    }
    T value;
    std::memcpy(&value, bytes.data(), sizeof value);
    return value;
}

std::string_view text(std::span<const std::byte> bytes) {
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

std::optional<std::string> header_problem(const std::optional<Header>& header) {
    const Header ours;
    if (!header || header->magic != ours.magic) {
        return "is not a tsdroptrace recording: expected a file that tsdroptrace --record wrote";
    }
    if (header->byte_order != ours.byte_order) {
        return "was made on a machine of the other byte order: replay it on one like that";
    }
    if (header->version > format_version) {
        return fmt::format("was made by a newer tsdroptrace (format {}, this one reads {}): replay it with that one",
                           header->version, format_version);
    }
    if (header->version < oldest_readable || header->drop_size != ours.drop_size ||
        header->cause_size != ours.cause_size || header->flow_size != ours.flow_size) {
        return fmt::format("was made by another build of tsdroptrace (format {}): replay it with that one",
                           header->version);
    }
    return std::nullopt;
}

struct FrameKind {
    FrameType type;
    std::uint32_t min_length, max_length;
};

constexpr FrameKind frame_kinds[] = {
    {FrameType::meta, 2, max_meta},
    {FrameType::snapshot, 2, max_snapshot},
    {FrameType::cause, sizeof(tsdt_cause), sizeof(tsdt_cause)},
    {FrameType::drop, sizeof(tsdt_drop), sizeof(tsdt_drop)},
    {FrameType::flow, sizeof(Flow), sizeof(Flow)},
    {FrameType::seen, sizeof(tsdt_seen_count), sizeof(tsdt_seen_count)},
    {FrameType::lost, sizeof(LostCounts), sizeof(LostCounts)},
    {FrameType::end, sizeof(End), sizeof(End)},
    {FrameType::netns, 2, max_meta},
    {FrameType::reasons, 2, max_meta},
    {FrameType::ruleset, 2, max_snapshot},
    {FrameType::look, 2, max_snapshot},
    {FrameType::evidence, 2, max_evidence},
    {FrameType::stopped, 2, max_meta},
    {FrameType::way, 2, max_evidence},
};

std::optional<std::string> frame_problem(const FrameHeader& frame) {
    const auto kind = std::find_if(std::begin(frame_kinds), std::end(frame_kinds), [&](const FrameKind& candidate) {
        return static_cast<std::uint32_t>(candidate.type) == frame.type;
    });
    if (kind == std::end(frame_kinds)) {
        return fmt::format("type {} does not exist", frame.type);
    }
    if (frame.length < kind->min_length || frame.length > kind->max_length) {
        return fmt::format("a record of type {} has {} bytes", frame.type, frame.length);
    }
    return std::nullopt;
}

// Hands `value` over, or says why it cannot be.
template <typename T, typename Deliver>
std::optional<std::string> deliver(Result<T> value, Deliver deliver) {
    if (!value) {
        return value.error().message;
    }
    deliver(std::move(*value));
    return std::nullopt;
}

// The frames of one recording, in their order.
class Frames {
public:
    Frames(std::istream& in, Visitor& visitor) : in_(in), visitor_(visitor) {}

    // Reads one frame and hands it over; says what is wrong with the file if that cannot be done.
    std::optional<std::string> next();

    bool described() const { return described_; } // META was there
    bool ended() const { return ended_; }         // END was there

private:
    // `payload` has a length that frame_problem accepts.
    std::optional<std::string> deliver_frame(FrameType type, std::span<const std::byte> payload);

    std::istream& in_;
    Visitor& visitor_;
    std::uint64_t position_ = sizeof(Header); // of the next frame, in bytes
    bool described_ = false, ended_ = false;
};

std::optional<std::string> Frames::next() {
    const auto head = read_bytes(in_, sizeof(FrameHeader));
    if (head.empty()) {
        return fmt::format("ends without its end mark at byte {}: what came later was not recorded", position_);
    }
    const auto cut_at = [](std::uint64_t byte) {
        return fmt::format("ends in the middle of a record at byte {}: what came later is missing", byte);
    };
    const auto damaged = [this](std::string_view how) {
        return fmt::format("is damaged at byte {}: {}", position_, how);
    };

    const auto frame = copy<FrameHeader>(head);
    if (!frame) {
        return cut_at(position_ + head.size());
    }
    if (const auto problem = frame_problem(*frame)) {
        return damaged(*problem);
    }
    const auto payload = read_bytes(in_, frame->length);
    if (payload.size() < frame->length) {
        return cut_at(position_ + head.size() + payload.size());
    }
    const auto type = static_cast<FrameType>(frame->type);
    if ((type == FrameType::meta) == described_) {
        return damaged(described_ ? "it describes the run twice" : "it does not begin with a description of the run");
    }
    if (const auto problem = deliver_frame(type, payload)) {
        return damaged(*problem);
    }
    position_ += head.size() + payload.size();
    return std::nullopt;
}

std::optional<std::string> Frames::deliver_frame(FrameType type, std::span<const std::byte> payload) {
    switch (type) {
    case FrameType::meta:
        return deliver(meta_from_json(text(payload)), [&](Meta meta) {
            described_ = true;
            visitor_.meta(std::move(meta));
        });
    case FrameType::snapshot:
        return deliver(snapshot_from_json(text(payload)),
                       [&](resolve_rule::Snapshot snapshot) { visitor_.snapshot(std::move(snapshot)); });
    case FrameType::cause:
        return deliver(decode::read_cause(payload), [&](const tsdt_cause& cause) { visitor_.cause(cause); });
    case FrameType::drop:
        return deliver(decode::read_drop(payload), [&](const tsdt_drop& drop) { visitor_.drop(drop); });
    case FrameType::flow: {
        const auto flow = copy<Flow>(payload);
        visitor_.flow(flow->key, flow->packets);
        return std::nullopt;
    }
    case FrameType::seen:
        return deliver(decode::read_seen(payload), [&](const tsdt_seen_count& count) { visitor_.seen(count); });
    case FrameType::lost:
        visitor_.lost(*copy<LostCounts>(payload));
        return std::nullopt;
    case FrameType::netns:
        return deliver(netns_from_json(text(payload)), [&](const NetnsName& netns) { visitor_.netns(netns); });
    case FrameType::reasons:
        return deliver(reasons_from_json(text(payload)),
                       [&](decode::KernelNames names) { visitor_.reasons(std::move(names)); });
    case FrameType::ruleset:
        return deliver(ruleset_from_json(text(payload)),
                       [&](RulesetChange change) { visitor_.ruleset(std::move(change)); });
    case FrameType::look:
        return deliver(look_from_json(text(payload)), [&](resolve_rule::Look look) { visitor_.look(std::move(look)); });
    case FrameType::stopped:
        return deliver(stopped_from_json(text(payload)),
                       [&](Stopped stopped) { visitor_.stopped(std::move(stopped)); });
    case FrameType::way:
        return deliver(way_from_json(text(payload)), [&](Way way) { visitor_.way(std::move(way)); });
    case FrameType::evidence:
        return deliver(evidence_from_json(text(payload)),
                       [&](evidence::Entry entry) { visitor_.evidence(std::move(entry)); });
    case FrameType::end:
        ended_ = true;
        visitor_.end(copy<End>(payload)->time_ns);
        return std::nullopt;
    }
    return std::nullopt;
}

} // namespace

Result<ReadResult> read(const std::string& path, Visitor& visitor) {
    errno = 0;
    std::ifstream in(path, std::ios::binary);
    if (!in) {
        return Error{ErrorKind::other, fmt::format("--replay {}: {}", printable(path),
                                                   errno ? std::strerror(errno) : "cannot be opened")};
    }
    return read(in, path, visitor);
}

Result<ReadResult> read(std::istream& in, const std::string& name, Visitor& visitor) {
    const std::string shown = printable(name);
    if (const auto problem = header_problem(copy<Header>(read_bytes(in, sizeof(Header))))) {
        return Error{ErrorKind::other, fmt::format("{} {}", shown, *problem)};
    }
    Frames frames(in, visitor);
    while (!frames.ended()) {
        if (const auto problem = frames.next()) {
            std::string line = fmt::format("{} {}", shown, *problem);
            if (!frames.described()) { // without it nothing can be replayed
                return Error{ErrorKind::other, std::move(line)};
            }
            return ReadResult{std::move(line)};
        }
    }
    return ReadResult{};
}

} // namespace tsdroptrace::recording
