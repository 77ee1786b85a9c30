// SPDX-License-Identifier: GPL-2.0-only
// Questions to the kernel by netlink, in the network namespace of the calling thread.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <optional>
#include <span>
#include <utility>

#include <libmnl/libmnl.h>
#include <linux/netlink.h>

#include "util/fd.h"

namespace tsdroptrace::evidence {

// Room for one question, laid out as libmnl wants it.
struct Request {
    Request(std::uint16_t type, std::uint16_t flags);
    Request(const Request&) = delete; // head points into bytes
    Request& operator=(const Request&) = delete;
    template <typename T>
    T& extra() {
        return *static_cast<T*>(mnl_nlmsg_put_extra_header(head, sizeof(T)));
    }
    void attribute(std::uint16_t type, std::span<const std::byte> value) {
        mnl_attr_put(head, type, value.size(), value.data());
    }
    void attribute(std::uint16_t type, std::uint32_t value) { mnl_attr_put_u32(head, type, value); }

    alignas(nlmsghdr) std::byte bytes[512];
    nlmsghdr* head;
};

class Netlink {
public:
    explicit Netlink(int bus); // NETLINK_ROUTE, NETLINK_SOCK_DIAG

    explicit operator bool() const { return bool(socket_); }

    // Sends the question and hands over each datagram of the answer until `more` returns false. True when the answer
    // came whole or `more` had enough; a question whose answer is given up leaves a socket that is not usable.
    bool ask(Request& request, const std::function<bool(std::span<const std::byte>)>& more);

private:
    Fd socket_;
    std::uint32_t sequence_ = 0;
};

// Calls `on_message` for each whole message in a datagram of an answer; false where a message is cut short or claims
// more than there is.
bool for_each_message(std::span<const std::byte> datagram, const std::function<void(const nlmsghdr&)>& on_message);

// The errno with which an answer ends, 0 for none; also for a message that is no end, or too short to tell.
int error_of(const nlmsghdr& message);

// Calls `on_attribute(type, value)` for each attribute. Stops at one that claims more than there is.
template <typename F>
void for_each_attribute(std::span<const std::byte> bytes, F on_attribute) {
    nlattr head;
    while (bytes.size() >= sizeof(head)) {
        std::memcpy(&head, bytes.data(), sizeof(head));
        if (head.nla_len < sizeof(head) || head.nla_len > bytes.size())
            return;
        on_attribute(static_cast<std::uint16_t>(head.nla_type & NLA_TYPE_MASK),
                     bytes.subspan(sizeof(head), head.nla_len - sizeof(head)));
        bytes = bytes.subspan(std::min<std::size_t>(NLA_ALIGN(head.nla_len), bytes.size()));
    }
}

// A message's own header of type T and, aligned, the attributes behind it; nullopt where that header is cut short.
template <typename T>
std::optional<std::pair<T, std::span<const std::byte>>> read_message(const nlmsghdr& message) {
    const std::size_t size = mnl_nlmsg_get_payload_len(&message);
    const std::span payload(static_cast<const std::byte*>(mnl_nlmsg_get_payload(&message)), size);
    if (size < sizeof(T))
        return std::nullopt;
    std::pair<T, std::span<const std::byte>> out{{},
                                                 payload.subspan(std::min<std::size_t>(NLMSG_ALIGN(sizeof(T)), size))};
    std::memcpy(&out.first, payload.data(), sizeof(T));
    return out;
}

// nullopt: a value of another length.
std::optional<std::uint32_t> read_u32(std::span<const std::byte> value);

} // namespace tsdroptrace::evidence
