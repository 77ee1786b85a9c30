// SPDX-License-Identifier: GPL-2.0-only
// A table of ip_tables, ip6_tables or arp_tables as the kernel hands it out: what IPT_SO_GET_INFO and
// IPT_SO_GET_ENTRIES of linux/netfilter_ipv4/ip_tables.h, and their likes, return, unchanged since Linux 2.4.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string_view>

#include "resolve_rule/look.h"
#include "resolve_rule/ruleset.h"
#include "util/result.h"

namespace tsdroptrace::resolve_rule {

// Of struct ipt_getinfo and its likes; host byte order. (ARP has three hooks.)
struct BlobInfo {
    std::uint32_t valid_hooks = 0; // bits
    std::array<std::uint32_t, 5> hook_entry{}, underflow{};
    std::uint32_t num_entries = 0;
    bool operator==(const BlobInfo&) const = default;
};

// The chains of the table, its rules at the offsets by which the kernel's side names them. Family is ip,
// ip6 or arp. Text is a plain "-A chain ..." line with what every rule has (-s -d -i -o -p -f, names of matches,
// target); details that only a match or target knows are shown as "[...]". Fails, with what was wrong, when
// the bytes are not such a blob; never reads past them.
Result<SnapshotTable> parse_ipt_blob(RuleFamily family, std::string_view name, const BlobInfo& info,
                                     std::span<const std::byte> bytes);

// Takes the counters of all entries out of the blob, by offset, and leaves zeros there: what then remains is the same
// as long as the rules are. Stops where the bytes are no such blob.
std::map<std::uint32_t, Counts> take_counters(RuleFamily family, std::span<std::byte> bytes);

} // namespace tsdroptrace::resolve_rule
