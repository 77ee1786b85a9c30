// SPDX-License-Identifier: GPL-2.0-only
#include "evidence/socket_lookup.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include <arpa/inet.h>
#include <dirent.h>
#include <fcntl.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <fmt/core.h>
#include <linux/inet_diag.h>
#include <linux/sock_diag.h>
#include <spdlog/spdlog.h>

namespace tsdroptrace::evidence {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int time_wait = 6; // TCP_TIME_WAIT: no program waits there any more

std::size_t size_of(IpFamily family) {
    return family == IpFamily::ipv6 ? 16 : 4;
}

// ---- asked of the kernel ----

struct Protocol {
    std::uint8_t number;
    const char* module; // that answers
    const char* table4;
    const char* table6;
    bool swapped; // its question names the far end first
};

constexpr Protocol protocols[] = {
    {IPPROTO_TCP, "/sys/module/tcp_diag", "/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6", false},
    {IPPROTO_UDP, "/sys/module/udp_diag", "/proc/thread-self/net/udp", "/proc/thread-self/net/udp6", true},
    {IPPROTO_UDPLITE, "/sys/module/udp_diag", "/proc/thread-self/net/udplite", "/proc/thread-self/net/udplite6", true},
};

void put(const Address& address, __be32 (&out)[4]) {
    std::memcpy(out, address.bytes.data(), size_of(address.family));
}

std::optional<SocketFound> ask_kernel(const Protocol& protocol, const Packet& packet) {
    Request request(SOCK_DIAG_BY_FAMILY, 0);
    auto& question = request.extra<inet_diag_req_v2>();
    question.sdiag_family = packet.family == IpFamily::ipv6 ? AF_INET6 : AF_INET;
    question.sdiag_protocol = protocol.number;
    question.idiag_states = ~0U;
    inet_diag_sockid& id = question.id;
    id.idiag_cookie[0] = id.idiag_cookie[1] = INET_DIAG_NOCOOKIE;
    put(protocol.swapped ? packet.src : packet.dst, id.idiag_src);
    put(protocol.swapped ? packet.dst : packet.src, id.idiag_dst);
    id.idiag_sport = htons(protocol.swapped ? *packet.sport : *packet.dport);
    id.idiag_dport = htons(protocol.swapped ? *packet.dport : *packet.sport);
    id.idiag_if = packet.in_dev ? if_nametoindex(packet.in_dev->c_str()) : 0;

    std::optional<SocketFound> found;
    Netlink netlink(NETLINK_SOCK_DIAG);
    netlink.ask(request, [&](std::span<const std::byte> datagram) {
        for_each_message(datagram, [&](const nlmsghdr& message) { found = read_socket(message, packet); });
        return true;
    });
    return found;
}

// ---- read from /proc/net ----

// nullopt: it is too long to be read in that time, or at all.
std::optional<std::string> read_table(const char* path, Clock::time_point deadline) {
    constexpr std::size_t max_size = 4u << 20;
    const Fd file(open(path, O_RDONLY | O_CLOEXEC));
    std::string text;
    std::array<char, 16 * 1024> buffer;
    while (file && text.size() < max_size && Clock::now() < deadline) {
        const ssize_t size = read(file.get(), buffer.data(), buffer.size());
        if (size == 0)
            return text;
        if (size < 0)
            break;
        text.append(buffer.data(), static_cast<std::size_t>(size));
    }
    return std::nullopt;
}

struct Endpoint {
    Address address;
    std::uint16_t port = 0;
};

template <typename T>
bool read_number(std::string_view text, T& number, int base) {
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number, base);
    return error == std::errc{} && end == text.data() + text.size();
}

// "0100007F:0035": words of 32 bits as this machine reads them, and the port.
std::optional<Endpoint> read_endpoint(std::string_view text, IpFamily family) {
    constexpr std::size_t word = 8;
    const std::size_t digits = 2 * size_of(family);
    Endpoint end;
    end.address.family = family;
    if (text.size() != digits + 5 || text[digits] != ':' || !read_number(text.substr(digits + 1), end.port, 16))
        return std::nullopt;
    for (std::size_t at = 0; at < digits; at += word) {
        std::uint32_t value = 0;
        if (!read_number(text.substr(at, word), value, 16))
            return std::nullopt;
        std::memcpy(end.address.bytes.data() + at / 2, &value, sizeof(value));
    }
    return end;
}

std::vector<std::string_view> words_of(std::string_view line) {
    std::vector<std::string_view> words;
    for (std::size_t at = line.find_first_not_of(' '); at < line.size(); at = line.find_first_not_of(' ', at)) {
        const std::size_t end = std::min(line.find(' ', at), line.size());
        words.push_back(line.substr(at, end - at));
        at = end;
    }
    return words;
}

bool is_any(const Address& address) {
    return std::ranges::all_of(address.bytes, [](std::uint8_t byte) { return byte == 0; });
}

// An IPv4 address as sockets of IPv6 have it: ::ffff:192.0.2.1.
Address in_table(const Address& address, IpFamily table) {
    if (address.family == table)
        return address;
    Address mapped;
    mapped.family = IpFamily::ipv6;
    mapped.bytes[10] = mapped.bytes[11] = 0xff;
    std::copy_n(address.bytes.begin(), 4, mapped.bytes.begin() + 12);
    return mapped;
}

// ---- whose it is ----

struct CloseDirectory {
    void operator()(DIR* directory) const { closedir(directory); }
};
using Directory = std::unique_ptr<DIR, CloseDirectory>;

std::vector<std::uint32_t> processes() {
    constexpr std::size_t max_processes = 32768;
    std::vector<std::uint32_t> pids;
    const Directory proc(opendir("/proc"));
    while (const dirent* entry = proc ? readdir(proc.get()) : nullptr) {
        std::uint32_t pid = 0;
        if (read_number(std::string_view(entry->d_name), pid, 10) && pids.size() < max_processes)
            pids.push_back(pid);
    }
    // The newest first: in an incident that is the program with which somebody tries.
    std::ranges::sort(pids, std::ranges::greater{});
    return pids;
}

bool holds(std::uint32_t pid, std::string_view socket, Clock::time_point deadline) {
    const Directory fds(opendir(fmt::format("/proc/{}/fd", pid).c_str()));
    while (const dirent* entry = fds ? readdir(fds.get()) : nullptr) {
        std::array<char, 32> target; // longer than "socket:[18446744073709551615]"
        const ssize_t size = readlinkat(dirfd(fds.get()), entry->d_name, target.data(), target.size());
        if (size > 0 && std::string_view(target.data(), static_cast<std::size_t>(size)) == socket)
            return true;
        if (Clock::now() >= deadline)
            return false;
    }
    return false;
}

} // namespace

std::optional<SocketFound> read_socket(const nlmsghdr& message, const Packet& packet) {
    if (error_of(message) == ENOENT)
        return SocketFound{};
    if (message.nlmsg_type != SOCK_DIAG_BY_FAMILY)
        return std::nullopt;
    const auto socket = read_message<inet_diag_msg>(message);
    // A kernel that read the question the other way round has found another packet's socket.
    if (!socket || ntohs(socket->first.id.idiag_sport) != packet.dport)
        return std::nullopt;
    if (packet.proto == IPPROTO_TCP && socket->first.idiag_state == time_wait)
        return SocketFound{};
    return SocketFound{true, socket->first.idiag_inode};
}

std::optional<SocketFound> search_sockets(std::string_view table, IpFamily family, const Packet& packet) {
    constexpr std::size_t near = 1, far = 2, state = 3, inode = 9; // columns
    const Address local = in_table(packet.dst, family), remote = in_table(packet.src, family);
    SocketFound best;
    int best_score = -1;
    bool unsure = false;
    for (std::size_t at = table.find('\n'); at < table.size();) {
        const std::size_t begin = at + 1, end = std::min(table.find('\n', begin), table.size());
        at = end;
        const auto words = words_of(table.substr(begin, end - begin));
        if (words.size() <= inode)
            continue;
        const auto own = read_endpoint(words[near], family), other = read_endpoint(words[far], family);
        int status = 0;
        std::uint64_t number = 0;
        if (!own || !other || own->port != packet.dport || !read_number(words[state], status, 16) ||
            !read_number(words[inode], number, 10))
            continue;
        const bool connected = other->port != 0;
        if ((own->address != local && !is_any(own->address)) ||
            (connected && (other->port != packet.sport || other->address != remote)))
            continue;
        if (family != packet.family && is_any(own->address)) { // it may be for IPv6 alone
            unsure = true;
            continue;
        }
        const int score = 2 * connected + !is_any(own->address);
        if (score <= best_score)
            continue;
        best_score = score;
        best = packet.proto == IPPROTO_TCP && status == time_wait ? SocketFound{} : SocketFound{true, number};
    }
    return best_score < 0 && unsure ? std::nullopt : std::optional(best);
}

std::optional<SocketFound> find_socket(const Packet& packet) {
    const auto* protocol = std::ranges::find(protocols, packet.proto, &Protocol::number);
    if (protocol == std::end(protocols) || !packet.sport || !packet.dport)
        return std::nullopt;
    // Where the module that answers is not there, asking would load it.
    if (access(protocol->module, F_OK) == 0)
        return ask_kernel(*protocol, packet);
    const auto deadline = Clock::now() + std::chrono::milliseconds(20);
    std::optional<SocketFound> found;
    for (const auto& [path, family] :
         {std::pair(protocol->table4, IpFamily::ipv4), std::pair(protocol->table6, IpFamily::ipv6)}) {
        if (family == IpFamily::ipv4 && packet.family == IpFamily::ipv6)
            continue;
        const auto table = read_table(path, deadline);
        if (!table && family == IpFamily::ipv6 && packet.family == IpFamily::ipv4 && access(path, F_OK) != 0)
            break; // no IPv6 here
        found = table ? search_sockets(*table, family, packet) : std::nullopt;
        if (!found || found->waits)
            break;
    }
    return found;
}

std::optional<Process> process_of_socket(std::uint64_t inode, std::chrono::milliseconds patience) {
    const auto deadline = Clock::now() + patience;
    const std::string socket = fmt::format("socket:[{}]", inode);
    for (const std::uint32_t pid : processes()) {
        if (Clock::now() >= deadline)
            break;
        if (!holds(pid, socket, deadline))
            continue;
        const Fd file(open(fmt::format("/proc/{}/comm", pid).c_str(), O_RDONLY | O_CLOEXEC));
        std::array<char, 64> comm;
        const ssize_t size = file ? read(file.get(), comm.data(), comm.size()) : -1;
        if (size <= 0)
            return std::nullopt; // it has just ended
        std::string_view name(comm.data(), static_cast<std::size_t>(size));
        if (name.ends_with('\n'))
            name.remove_suffix(1);
        return Process{pid, std::string(name)};
    }
    return std::nullopt;
}

} // namespace tsdroptrace::evidence
