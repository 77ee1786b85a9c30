// SPDX-License-Identifier: GPL-2.0-only
// Network namespaces by the inode that the kernel reports with a packet.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "util/fd.h"
#include "util/result.h"

namespace tsdroptrace {

// Inode of the calling thread's network namespace; 0 when /proc is not mounted.
std::uint32_t current_netns();

struct NetnsName {
    std::string name; // as it is: it comes from outside
    std::string path; // leads to the namespace
};

// The name under which `ip netns` shows the namespace that had this number at `since_ns` (CLOCK_REALTIME); nullopt when it
// has none, is gone, or when names have come or gone since then: the number may be that of another one by now.
std::optional<NetnsName> netns_name(std::uint32_t inode, std::int64_t since_ns);

// The name of the oldest process that lives in it, that of a container mostly: "nginx[1234]"; nullopt, too, when that one
// began after `since_ns`. Looks at no more than 65,536 processes.
std::optional<NetnsName> netns_process(std::uint32_t inode, std::int64_t since_ns);

// Whether the path still leads to it. An inode's number is given to another namespace as soon as it is free.
bool leads_to_netns(const std::string& path, std::uint32_t inode);

// The inode of the namespace that the user means: a path (anything with a slash), a name of `ip netns`, or the number
// of its inode, which is taken as it is. Fails with one sentence that quotes `text`: ErrorKind::command_line when it is
// none of these, ErrorKind::unsupported when we may not look. The caller adds where `text` came from.
Result<std::uint32_t> resolve_netns(const std::string& text);

// An open handle on the namespace: by a name in /run/netns (ip netns) or /run/docker/netns, else through a
// process that lives in it. Looks at no more than 65,536 processes. Fails when it is gone, or when nothing
// but a socket or a foreign mount keeps it.
Result<Fd> open_netns(std::uint32_t inode);

// Runs `work` on a thread of its own that has entered the namespace, so that the caller's threads never leave
// theirs, and waits for it; in the caller's own namespace runs it right here. Children that `work` starts
// live there too, sockets stay there. /proc/net shows the namespace of the main thread: read
// /proc/thread-self/net instead. Needs CAP_SYS_ADMIN.
Status run_in_netns(std::uint32_t inode, const std::function<void()>& work);

} // namespace tsdroptrace
