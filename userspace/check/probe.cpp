// SPDX-License-Identifier: GPL-2.0-only
#include "check/probe.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <random>
#include <span>

#include <fmt/format.h>
#include <linux/errqueue.h>
#include <netinet/icmp6.h>
#include <netinet/in.h>
#include <netinet/ip.h>
#include <netinet/ip_icmp.h>
#include <sys/socket.h>

#include "util/fd.h"

namespace tsdroptrace::check {
namespace {

struct SocketAddress {
    sockaddr_storage storage{};
    socklen_t size = sizeof(sockaddr_storage);
    sockaddr* get() { return reinterpret_cast<sockaddr*>(&storage); }
    const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&storage); }
};

SocketAddress socket_address(const Address& address, std::uint16_t port) {
    SocketAddress made;
    if (address.family == IpFamily::ipv4) {
        sockaddr_in v4{};
        v4.sin_family = AF_INET;
        v4.sin_port = htons(port);
        std::memcpy(&v4.sin_addr, address.bytes.data(), sizeof(v4.sin_addr));
        std::memcpy(&made.storage, &v4, made.size = sizeof(v4));
    } else {
        sockaddr_in6 v6{};
        v6.sin6_family = AF_INET6;
        v6.sin6_port = htons(port);
        std::memcpy(&v6.sin6_addr, address.bytes.data(), sizeof(v6.sin6_addr));
        std::memcpy(&made.storage, &v6, made.size = sizeof(v6));
    }
    return made;
}

// Address and port.
std::pair<Address, std::uint16_t> read_address(const sockaddr_storage& storage) {
    Address address;
    if (storage.ss_family == AF_INET) {
        sockaddr_in v4{};
        std::memcpy(&v4, &storage, sizeof(v4));
        address.family = IpFamily::ipv4;
        std::memcpy(address.bytes.data(), &v4.sin_addr, sizeof(v4.sin_addr));
        return {address, ntohs(v4.sin_port)};
    }
    if (storage.ss_family == AF_INET6) {
        sockaddr_in6 v6{};
        std::memcpy(&v6, &storage, sizeof(v6));
        address.family = IpFamily::ipv6;
        std::memcpy(address.bytes.data(), &v6.sin6_addr, sizeof(v6.sin6_addr));
        return {address, ntohs(v6.sin6_port)};
    }
    return {address, 0};
}

// A query for the root's name servers: the shortest question that every resolver has something to say to.
std::vector<std::byte> dns_query(std::uint16_t id) {
    const unsigned char query[] = {static_cast<unsigned char>(id >> 8),
                                   static_cast<unsigned char>(id),
                                   0x01,
                                   0x00,
                                   0,
                                   1,
                                   0,
                                   0,
                                   0,
                                   0,
                                   0,
                                   0, // one question
                                   0,
                                   0,
                                   2,
                                   0,
                                   1}; // ".", NS, IN
    const auto bytes = std::as_bytes(std::span(query));
    return {bytes.begin(), bytes.end()};
}

// Type, code, checksum (the kernel's for ping sockets and ICMPv6), identifier, number.
std::vector<std::byte> echo_request(IpFamily family, std::uint16_t id, std::uint16_t number) {
    std::array<std::uint8_t, 16> echo{};
    echo[0] = family == IpFamily::ipv4 ? ICMP_ECHO : ICMP6_ECHO_REQUEST;
    echo[4] = static_cast<std::uint8_t>(id >> 8), echo[5] = static_cast<std::uint8_t>(id);
    echo[6] = static_cast<std::uint8_t>(number >> 8), echo[7] = static_cast<std::uint8_t>(number);
    std::uint32_t sum = 0;
    for (std::size_t i = 0; i < echo.size(); i += 2)
        sum += static_cast<std::uint32_t>(echo[i] << 8 | echo[i + 1]);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = ~(sum + (sum >> 16));
    echo[2] = static_cast<std::uint8_t>(sum >> 8), echo[3] = static_cast<std::uint8_t>(sum);
    const auto bytes = std::as_bytes(std::span(echo));
    return {bytes.begin(), bytes.end()};
}

} // namespace

class Probe::State {
public:
    State(const Target& target, const Plan& plan)
        : target_(target), plan_(plan), id_(static_cast<std::uint16_t>(std::random_device{}() | 1)) {}

    Status open();
    std::optional<Answer> step(Clock::time_point now);

private:
    Result<Fd> make_socket();
    bool ipv4() const { return target_.address.family == IpFamily::ipv4; }
    std::optional<Answer> attempt();
    std::optional<Answer> look(const Fd& socket);
    std::optional<Answer> look_for_icmp(const Fd& socket);
    bool is_ours(std::span<const std::uint8_t> packet) const;
    void remember_name(const Fd& socket);
    Answer ended(Outcome outcome, int error = 0, std::optional<IcmpError> icmp = std::nullopt);

    Target target_;
    Plan plan_;
    std::uint16_t id_;        // of DNS queries and echoes
    bool raw_ = false;        // sees all echo replies of the machine, and their IPv4 headers
    std::vector<Fd> sockets_; // TCP: one for each attempt; else one
    Clock::time_point next_{};
    unsigned attempts_ = 0;
    Answer answer_;
};

Result<Fd> Probe::State::make_socket() {
    const int family = ipv4() ? AF_INET : AF_INET6, icmp = ipv4() ? int{IPPROTO_ICMP} : int{IPPROTO_ICMPV6};
    constexpr int flags = SOCK_CLOEXEC | SOCK_NONBLOCK;
    Fd made;
    switch (target_.kind) {
    case Kind::udp:
        made = Fd(socket(family, SOCK_DGRAM | flags, 0));
        break;
    case Kind::tcp:
        made = Fd(socket(family, SOCK_STREAM | flags, 0));
        break;
    case Kind::icmp:
        made = Fd(socket(family, SOCK_DGRAM | flags, icmp)); // a ping socket
        if (!made) {
            made = Fd(socket(family, SOCK_RAW | flags, icmp));
            raw_ = true;
        }
        break;
    }
    if (!made) {
        const bool denied = errno == EPERM || errno == EACCES;
        return Error{denied ? ErrorKind::unsupported : ErrorKind::other,
                     fmt::format("cannot open a socket for {}: {}{}", target_.text(), std::strerror(errno),
                                 denied ? "; run it with sudo" : "")};
    }
    const int on = 1;
    setsockopt(made.get(), ipv4() ? int{IPPROTO_IP} : int{IPPROTO_IPV6}, ipv4() ? IP_RECVERR : IPV6_RECVERR, &on,
               sizeof(on));
    return made;
}

Status Probe::State::open() {
    auto first = make_socket();
    if (!first)
        return first.error();
    sockets_.push_back(std::move(*first));
    return Ok{};
}

Answer Probe::State::ended(Outcome outcome, int error, std::optional<IcmpError> icmp) {
    answer_.outcome = outcome;
    answer_.error_number = error;
    answer_.icmp = icmp;
    return answer_;
}

void Probe::State::remember_name(const Fd& socket) {
    SocketAddress name;
    if (getsockname(socket.get(), name.get(), &name.size) != 0)
        return;
    const auto [address, port] = read_address(name.storage);
    answer_.local = address;
    const std::uint16_t tells =
        target_.kind == Kind::icmp && raw_ ? id_ : port; // a ping socket's port is its identifier
    if (std::ranges::find(answer_.local_ports, tells) == answer_.local_ports.end())
        answer_.local_ports.push_back(tells);
}

// Sends the next packet. An answer when that fails.
std::optional<Answer> Probe::State::attempt() {
    if (target_.kind == Kind::tcp && attempts_ > 0) {
        auto another = make_socket();
        if (!another)
            return ended(Outcome::local, errno);
        sockets_.push_back(std::move(*another));
    }
    ++attempts_;
    const Fd& socket = sockets_.back();
    if (target_.kind == Kind::tcp || attempts_ == 1) {
        const SocketAddress to = socket_address(target_.address, target_.port);
        const bool connected = connect(socket.get(), to.get(), to.size) == 0;
        const int error = errno;
        if (target_.kind == Kind::tcp && (connected || error == EINPROGRESS)) {
            ++answer_.sent;
            remember_name(socket);
            return std::nullopt;
        }
        if (!connected)
            return ended(target_.kind == Kind::tcp && error == ECONNREFUSED ? Outcome::reset : Outcome::local, error);
        remember_name(socket);
    }
    const std::vector<std::byte> packet =
        target_.kind == Kind::icmp ? echo_request(target_.address.family, id_, static_cast<std::uint16_t>(attempts_))
        : target_.port == 53       ? dns_query(id_)
                                   : std::vector{std::byte{'\n'}};
    ssize_t sent;
    do // an ICMP error of before is told at any call, once
        sent = send(socket.get(), packet.data(), packet.size(), MSG_NOSIGNAL);
    while (sent < 0 && errno == EINTR);
    if (sent >= 0) {
        ++answer_.sent;
        return std::nullopt;
    }
    const int error = errno;
    if (auto icmp = look_for_icmp(socket))
        return icmp;
    return ended(Outcome::local, error);
}

// A raw socket gets copies of all: whether this is the reply to an echo of ours.
bool Probe::State::is_ours(std::span<const std::uint8_t> packet) const {
    if (target_.kind == Kind::udp)
        return target_.port != 53 || (packet.size() >= 2 && (packet[0] << 8 | packet[1]) == id_);
    if (raw_ && ipv4())
        packet = packet.subspan(std::min<std::size_t>(packet.size(), packet.empty() ? 0 : (packet[0] & 0xf) * 4u));
    const int reply = ipv4() ? ICMP_ECHOREPLY : ICMP6_ECHO_REPLY;
    return packet.size() >= 8 && packet[0] == reply && (!raw_ || (packet[4] << 8 | packet[5]) == id_);
}

std::optional<Answer> Probe::State::look_for_icmp(const Fd& socket) {
    std::array<char, 512> payload, control;
    SocketAddress about;
    iovec into{payload.data(), payload.size()};
    msghdr message{};
    message.msg_name = &about.storage;
    message.msg_namelen = about.size;
    message.msg_iov = &into;
    message.msg_iovlen = 1;
    message.msg_control = control.data();
    message.msg_controllen = control.size();
    if (recvmsg(socket.get(), &message, MSG_ERRQUEUE) < 0)
        return std::nullopt;
    for (cmsghdr* header = CMSG_FIRSTHDR(&message); header; header = CMSG_NXTHDR(&message, header)) {
        const bool v4 = header->cmsg_level == IPPROTO_IP && header->cmsg_type == IP_RECVERR;
        const bool v6 = header->cmsg_level == IPPROTO_IPV6 && header->cmsg_type == IPV6_RECVERR;
        struct {
            sock_extended_err error;
            sockaddr_in6 offender; // or a sockaddr_in
        } told{};
        if ((!v4 && !v6) || header->cmsg_len < CMSG_LEN(sizeof(told.error)))
            continue;
        std::memcpy(&told, CMSG_DATA(header), std::min<std::size_t>(header->cmsg_len - CMSG_LEN(0), sizeof(told)));
        const int error = static_cast<int>(told.error.ee_errno);
        if (told.error.ee_origin != SO_EE_ORIGIN_ICMP && told.error.ee_origin != SO_EE_ORIGIN_ICMP6)
            return ended(Outcome::local, error);
        sockaddr_storage offender{};
        std::memcpy(&offender, &told.offender, sizeof(told.offender));
        return ended(Outcome::error, error,
                     IcmpError{told.error.ee_type, told.error.ee_code, read_address(offender).first});
    }
    return std::nullopt;
}

std::optional<Answer> Probe::State::look(const Fd& socket) {
    if (auto icmp = look_for_icmp(socket))
        return icmp;
    if (target_.kind == Kind::tcp) {
        int error = 0;
        socklen_t size = sizeof(error);
        if (getsockopt(socket.get(), SOL_SOCKET, SO_ERROR, &error, &size) == 0 && error != 0)
            return ended(error == ECONNREFUSED ? Outcome::reset : Outcome::error, error);
        SocketAddress peer;
        if (getpeername(socket.get(), peer.get(), &peer.size) == 0)
            return ended(Outcome::answered);
        return std::nullopt;
    }
    std::array<std::uint8_t, 2048> packet;
    for (ssize_t size; (size = recv(socket.get(), packet.data(), packet.size(), MSG_DONTWAIT)) >= 0;)
        if (is_ours(std::span(packet).first(static_cast<std::size_t>(size))))
            return ended(Outcome::answered);
    return std::nullopt;
}

std::optional<Answer> Probe::State::step(Clock::time_point now) {
    if (attempts_ > 0)
        for (const Fd& socket : sockets_)
            if (auto answer = look(socket))
                return answer;
    if (attempts_ > 0 && now < next_)
        return std::nullopt;
    if (attempts_ == plan_.attempts)
        return ended(Outcome::silence);
    next_ = now + plan_.each;
    return attempt();
}

Result<Probe> Probe::open(const Target& target, const Plan& plan) {
    auto state = std::make_unique<State>(target, plan);
    if (const Status opened = state->open(); !opened)
        return opened.error();
    return Probe(std::move(state));
}

Probe::Probe(std::unique_ptr<State> state) : state_(std::move(state)) {}
Probe::Probe(Probe&&) noexcept = default;
Probe::~Probe() = default;

std::optional<Answer> Probe::step(Clock::time_point now) {
    return state_->step(now);
}

} // namespace tsdroptrace::check
