// SPDX-License-Identifier: GPL-2.0-only
#include "evidence/netlink.h"

#include <array>
#include <cerrno>
#include <cstring>

#include <linux/netlink.h>
#include <sys/socket.h>
#include <sys/time.h>

namespace tsdroptrace::evidence {

Request::Request(std::uint16_t type, std::uint16_t flags) : bytes{}, head(mnl_nlmsg_put_header(bytes)) {
    head->nlmsg_type = type;
    head->nlmsg_flags = static_cast<std::uint16_t>(NLM_F_REQUEST | flags);
}

Netlink::Netlink(int bus) : socket_(::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, bus)) {
    if (!socket_)
        return;
    // The kernel answers while we ask; this is for the day when it does not.
    const timeval patience{0, 100'000};
    setsockopt(socket_.get(), SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
    // A list of one table's routes then holds no others.
    const int on = 1;
    setsockopt(socket_.get(), SOL_NETLINK, NETLINK_GET_STRICT_CHK, &on, sizeof(on));
}

bool Netlink::ask(Request& request, const std::function<bool(std::span<const std::byte>)>& more) {
    request.head->nlmsg_seq = ++sequence_;
    sockaddr_nl kernel{};
    kernel.nl_family = AF_NETLINK;
    if (!socket_ || sendto(socket_.get(), request.bytes, request.head->nlmsg_len, 0,
                           reinterpret_cast<const sockaddr*>(&kernel), sizeof(kernel)) < 0)
        return false;
    alignas(nlmsghdr) std::array<std::byte, 32 * 1024> buffer;
    for (;;) {
        sockaddr_nl from{};
        socklen_t from_size = sizeof(from);
        const ssize_t size = recvfrom(socket_.get(), buffer.data(), buffer.size(), MSG_TRUNC,
                                      reinterpret_cast<sockaddr*>(&from), &from_size);
        if (size < 0 && errno == EINTR)
            continue;
        if (size <= 0 || static_cast<std::size_t>(size) > buffer.size())
            return false;
        if (from.nl_pid != 0) // not from the kernel
            continue;
        const std::span datagram(buffer.data(), static_cast<std::size_t>(size));
        bool ours = false, last = false;
        const bool whole = for_each_message(datagram, [&](const nlmsghdr& message) {
            ours |= message.nlmsg_seq == sequence_;
            last |= (message.nlmsg_flags & NLM_F_MULTI) == 0 || message.nlmsg_type == NLMSG_DONE;
        });
        if (!whole)
            return false;
        if (!ours)
            continue;
        if (!more(datagram) || last)
            return true;
    }
}

bool for_each_message(std::span<const std::byte> datagram, const std::function<void(const nlmsghdr&)>& on_message) {
    int left = static_cast<int>(datagram.size());
    const auto* message = reinterpret_cast<const nlmsghdr*>(datagram.data());
    while (mnl_nlmsg_ok(message, left)) {
        on_message(*message);
        message = mnl_nlmsg_next(message, &left);
    }
    return left <= 0;
}

int error_of(const nlmsghdr& message) {
    if ((message.nlmsg_type != NLMSG_ERROR && message.nlmsg_type != NLMSG_DONE) ||
        mnl_nlmsg_get_payload_len(&message) < sizeof(int))
        return 0;
    int error = 0;
    std::memcpy(&error, mnl_nlmsg_get_payload(&message), sizeof(error));
    return error < 0 ? -error : error;
}

std::optional<std::uint32_t> read_u32(std::span<const std::byte> value) {
    std::uint32_t number = 0;
    if (value.size() != sizeof(number))
        return std::nullopt;
    std::memcpy(&number, value.data(), sizeof(number));
    return number;
}

} // namespace tsdroptrace::evidence
