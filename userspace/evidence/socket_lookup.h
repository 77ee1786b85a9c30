// SPDX-License-Identifier: GPL-2.0-only
// Which socket the kernel would hand a packet to, in the network namespace of the calling thread, and whose it is.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string_view>

#include "evidence/netlink.h"
#include "model.h"

namespace tsdroptrace::evidence {

struct SocketFound {
    bool waits = false;
    std::uint64_t inode = 0; // of the socket; 0: no process has it (yet), or not told
};

// For a packet that this machine has received, of TCP, UDP or UDP-Lite, with ports. nullopt: it cannot be told.
// Loads no module: where the kernel's socket diagnosis is not at hand, /proc/net is read instead.
std::optional<SocketFound> find_socket(const Packet&);

// The kernel's answer about one socket, which must be one for this packet.
std::optional<SocketFound> read_socket(const nlmsghdr&, const Packet&);

// A table of sockets as in /proc/net/tcp or udp6: `family` is that of its addresses. `waits` false: none is there for
// the packet. nullopt: it cannot be told, since one may take IPv4 as well or not.
std::optional<SocketFound> search_sockets(std::string_view table, IpFamily family, const Packet&);

// A process that holds the socket. Looks at the newest ones first, and not for longer than `patience`.
std::optional<Process> process_of_socket(std::uint64_t inode,
                                         std::chrono::milliseconds patience = std::chrono::milliseconds(20));

} // namespace tsdroptrace::evidence
