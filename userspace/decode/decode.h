// SPDX-License-Identifier: GPL-2.0-only
// decode: what the BPF programs said, checked and in the words of the model. Pure: bytes in, values out.
// Text from the kernel comes out as it was, without its padding; who prints it escapes it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "bpf/event.h"
#include "model.h"
#include "util/result.h"

namespace tsdroptrace::decode {

// Names that are the running kernel's own.
struct KernelNames {
    // enum skb_drop_reason, without SKB_DROP_REASON_, as this kernel's BTF numbers it (the numbers move between
    // versions), and the enums of its subsystems, those of modules included that were there when they were read. Empty
    // before 5.17, which has no reasons.
    std::map<std::uint32_t, std::string> reasons;
};

// What must be known of the machine that dropped the packets to read its events; a recording carries it along.
struct Machine {
    KernelNames names;
    std::int64_t realtime_minus_mono_ns = 0;          // CLOCK_REALTIME - CLOCK_MONOTONIC
    std::uint32_t own_netns = 0;                      // inode of the namespace that tsdroptrace runs in
    std::map<std::uint32_t, std::string> netns_names; // inode -> name; empty: none
    std::string host, kernel, version;                // `version` is tsdroptrace's
    std::optional<Backend> plain_iptables = {}; // what the bare command `iptables` edits there; nullopt: not known
};

// What the kernel says of all that a queue refuses. The queue's own reason, QDISC_DROP_OVERLIMIT for one, newer kernels
// tell elsewhere (bpf/drop.h).
inline constexpr std::string_view queue_refused = "QDISC_DROP";

// The numbers of the drop reasons with these names: with or without SKB_DROP_REASON_, in whatever case. `queue_refused`
// stands for those of the queues' own as well, as it does in the kernel's words. Fails with one line for the user:
// ErrorKind::command_line for a name that the kernel does not have, with those that are near it; ErrorKind::unsupported on
// a kernel without reasons.
Result<std::vector<std::uint32_t>> reason_codes(const std::vector<std::string>& wanted, const KernelNames& names);

// Where details were lost, as the JSON lines call it; `place` is a tsdt_lost.
std::string_view lost_place_name(std::size_t place);

// One record of the ring buffer `events`. Fails when it is not a whole tsdt_drop or contradicts itself; the bytes are
// copied, so they may be unaligned and may go away.
Result<tsdt_drop> read_drop(std::span<const std::byte> bytes);

// Changes of rulesets since the start, as the kernel counts them.
struct ChangeCounts {
    std::uint64_t told = 0;                                 // each by a tsdt_ruleset_change
    std::array<std::uint64_t, TSDT_NETNS_CLASSES> untold{}; // without one, by tsdt_netns_class: they came too fast
};

// One record of the ring buffer `changes`. As read_drop.
Result<tsdt_ruleset_change> read_ruleset_change(std::span<const std::byte> bytes);

// Who made that change. `record` has passed read_ruleset_change. Never fails.
Changer decode_changer(const tsdt_ruleset_change& record);

// One value of the map `causes`. As read_drop.
Result<tsdt_cause> read_cause(std::span<const std::byte> bytes);
Result<tsdt_seen_count> read_seen(std::span<const std::byte> bytes);

// One dropped packet, its rule, owner and explanation still empty. `record` has passed read_drop and `cause`,
// the cause with that key, read_cause. Never fails.
Drop decode_drop(const tsdt_drop& record, const tsdt_cause& cause, const Machine& machine);

// The namespace with that inode.
Netns decode_netns(std::uint32_t inode, const Machine& machine);

// Functions that may have dropped the packets of a cause that no rule is known for.
struct Suspects {
    enum class Kind {
        hook_functions, // all that are registered at the hook: one of these did
        legacy_matches, // of the table's matches those that may drop by themselves
        nft_matches,    // one of the matches of iptables-nft that may
    };
    Kind kind;
    std::vector<HookFunction> functions; // never empty
};

// nullopt for a cause of which more is known, or for which the kernel could not list them.
std::optional<Suspects> suspects(const tsdt_cause& cause);
// The counts of packets that pass, of all namespaces that are in them, by the devices' names.
Seen decode_seen(const std::vector<tsdt_seen_count>& counts, const Machine& machine);


// What is known of a cause of which no packet's record reached us: its packet is empty (family other), its time
// that of the last packet.
Drop decode_cause(const tsdt_cause& cause, const Machine& machine);

} // namespace tsdroptrace::decode
