// SPDX-License-Identifier: GPL-2.0-only
#include "resolve_rule/nft_counters.h"

#include <cerrno>
#include <cstring>
#include <functional>
#include <string_view>
#include <vector>

#include <arpa/inet.h>
#include <endian.h>
#include <fmt/format.h>
#include <linux/netfilter/nf_tables.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netlink.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include "util/fd.h"

namespace tsdroptrace::resolve_rule {
namespace {

using Bytes = std::span<const std::byte>;

template <typename T>
bool load(Bytes bytes, T& value) {
    if (bytes.size() < sizeof(T))
        return false;
    std::memcpy(&value, bytes.data(), sizeof(T));
    return true;
}

constexpr std::size_t aligned(std::size_t length) {
    return (length + NLA_ALIGNTO - 1) & ~std::size_t{NLA_ALIGNTO - 1};
}

// Hands over type and contents of each attribute. False: what is there is cut.
bool each_attribute(Bytes bytes, const std::function<void(int, Bytes)>& visit) {
    while (!bytes.empty()) {
        nlattr head;
        if (!load(bytes, head) || head.nla_len < sizeof(head) || head.nla_len > bytes.size())
            return false;
        visit(head.nla_type & NLA_TYPE_MASK, bytes.subspan(sizeof(head), head.nla_len - sizeof(head)));
        bytes = bytes.subspan(std::min(aligned(head.nla_len), bytes.size()));
    }
    return true;
}

std::string_view text(Bytes bytes) {
    const auto* chars = reinterpret_cast<const char*>(bytes.data());
    return {chars, strnlen(chars, bytes.size())};
}

std::uint64_t number(Bytes bytes) {
    std::uint64_t value = 0;
    return load(bytes, value) ? be64toh(value) : 0;
}

// NFTA_LIST_ELEM: if it is a counter, its values.
void read_expression(Bytes expression, Counts& counts) {
    bool is_counter = false;
    Bytes data;
    each_attribute(expression, [&](int type, Bytes value) {
        if (type == NFTA_EXPR_NAME)
            is_counter = text(value) == "counter";
        else if (type == NFTA_EXPR_DATA)
            data = value;
    });
    if (!is_counter)
        return;
    counts = {};
    each_attribute(data, [&](int type, Bytes value) {
        if (type == NFTA_COUNTER_PACKETS)
            counts.packets = number(value);
        else if (type == NFTA_COUNTER_BYTES)
            counts.bytes = number(value);
    });
}

struct Request {
    nlmsghdr head;
    nfgenmsg body;
};

class Connection {
public:
    Connection() : socket_(::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_NETFILTER)) {
        const timeval patience{2, 0};
        if (socket_)
            setsockopt(socket_.get(), SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
    }

    // Sends one request and hands over each message of the answer. Fails with an errno, EINTR when the ruleset has
    // changed in the middle of it.
    int ask(int message, int flags, const std::function<void(Bytes)>& visit) {
        if (!socket_)
            return errno;
        Request request{};
        request.head.nlmsg_len = sizeof(request);
        request.head.nlmsg_type = static_cast<std::uint16_t>(NFNL_SUBSYS_NFTABLES << 8 | message);
        request.head.nlmsg_flags = static_cast<std::uint16_t>(NLM_F_REQUEST | flags);
        request.head.nlmsg_seq = ++sequence_;
        request.body.nfgen_family = AF_UNSPEC;
        request.body.version = NFNETLINK_V0;
        if (::send(socket_.get(), &request, sizeof(request), 0) < 0)
            return errno;
        buffer_.resize(64 * 1024);
        bool interrupted = false;
        for (;;) {
            const ssize_t size = ::recv(socket_.get(), buffer_.data(), buffer_.size(), 0);
            if (size < 0 && errno == EINTR)
                continue;
            if (size < 0)
                return errno == EAGAIN ? ETIMEDOUT : errno;
            Bytes rest(buffer_.data(), static_cast<std::size_t>(size));
            nlmsghdr head;
            while (load(rest, head) && head.nlmsg_len >= sizeof(head) && head.nlmsg_len <= rest.size()) {
                const Bytes body = rest.subspan(sizeof(head), head.nlmsg_len - sizeof(head));
                rest = rest.subspan(std::min(aligned(head.nlmsg_len), rest.size()));
                if (head.nlmsg_seq != sequence_)
                    continue;
                interrupted |= (head.nlmsg_flags & NLM_F_DUMP_INTR) != 0;
                if (head.nlmsg_type == NLMSG_DONE)
                    return interrupted ? EINTR : 0;
                if (head.nlmsg_type == NLMSG_ERROR) {
                    int error = 0;
                    load(body, error);
                    return -error;
                }
                visit(body);
                if (!(flags & NLM_F_DUMP))
                    return 0;
            }
        }
    }

private:
    Fd socket_;
    std::uint32_t sequence_ = 0;
    std::vector<std::byte> buffer_;
};

int ask_generation(Connection& connection, std::uint32_t& generation) {
    bool found = false;
    const int error = connection.ask(NFT_MSG_GETGEN, 0, [&](Bytes message) {
        if (message.size() < sizeof(nfgenmsg))
            return;
        each_attribute(message.subspan(sizeof(nfgenmsg)), [&](int type, Bytes value) {
            std::uint32_t number = 0;
            if (type == NFTA_GEN_ID && load(value, number)) {
                generation = ntohl(number);
                found = true;
            }
        });
    });
    return error ? error : found ? 0 : EPROTO;
}

} // namespace

bool read_nft_rule(Bytes message, NftCounters& counters) {
    nfgenmsg head;
    if (!load(message, head))
        return false;
    NftRuleId id;
    id.family = head.nfgen_family;
    Counts counts{Look::no_counter, Look::no_counter};
    bool anonymous = false;
    const bool whole = each_attribute(message.subspan(sizeof(head)), [&](int type, Bytes value) {
        switch (type) {
        case NFTA_RULE_TABLE:
            id.table = text(value);
            break;
        case NFTA_RULE_CHAIN:
            anonymous = text(value).starts_with("__chain");
            break;
        case NFTA_RULE_HANDLE:
            id.handle = number(value);
            break;
        case NFTA_RULE_EXPRESSIONS: // of several counters the last one counts what came furthest
            each_attribute(value, [&](int, Bytes expression) { read_expression(expression, counts); });
            break;
        default:
            break;
        }
    });
    if (!whole || id.handle == 0)
        return false;
    if (anonymous)
        ++counters.anonymous;
    else
        counters.rules.insert_or_assign(std::move(id), counts);
    return true;
}

Result<NftCounters> read_nft_counters() {
    constexpr int max_attempts = 3;
    Connection connection;
    int error = 0;
    for (int attempt = 0; attempt < max_attempts; attempt++) {
        NftCounters counters;
        std::uint32_t after = 0;
        bool whole = true;
        error = ask_generation(connection, counters.generation);
        if (error == 0)
            error = connection.ask(NFT_MSG_GETRULE, NLM_F_DUMP,
                                   [&](Bytes message) { whole &= read_nft_rule(message, counters); });
        if (error == 0)
            error = ask_generation(connection, after);
        if (error == 0 && whole && after == counters.generation)
            return counters;
        if (error != 0 && error != EINTR)
            break;
    }
    return Error{ErrorKind::other,
                 error == 0 || error == EINTR
                     ? "the nf_tables rules kept changing while their counters were read"
                     : fmt::format("cannot read the counters of nf_tables' rules: {}", std::strerror(error))};
}

} // namespace tsdroptrace::resolve_rule
