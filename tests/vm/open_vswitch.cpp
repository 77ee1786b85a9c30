// SPDX-License-Identifier: GPL-2.0-only
#include "open_vswitch.h"

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include <arpa/inet.h>
#include <libmnl/libmnl.h>
#include <linux/genetlink.h>
#include <linux/openvswitch.h>
#include <net/if.h>
#include <netinet/in.h>

namespace {

constexpr std::uint16_t action_drop = 24; // OVS_ACTION_ATTR_DROP, from 6.7
constexpr std::uint32_t meter_id = 1;

[[noreturn]] void fail(const std::string& what) {
    std::perror(what.c_str());
    std::exit(1);
}

// A request that is being written.
class Message {
public:
    Message(std::uint16_t type, std::uint8_t command, std::uint8_t version, std::uint16_t flags) : buffer_(4096) {
        header_ = mnl_nlmsg_put_header(buffer_.data());
        header_->nlmsg_type = type;
        header_->nlmsg_flags = static_cast<std::uint16_t>(NLM_F_REQUEST | flags);
        auto* generic = static_cast<genlmsghdr*>(mnl_nlmsg_put_extra_header(header_, sizeof(genlmsghdr)));
        generic->cmd = command;
        generic->version = version;
    }
    void datapath(int index) {
        static_cast<ovs_header*>(mnl_nlmsg_put_extra_header(header_, sizeof(ovs_header)))->dp_ifindex = index;
    }
    template <typename T>
    void put(std::uint16_t attribute, const T& value) {
        mnl_attr_put(header_, attribute, sizeof(value), &value);
    }
    void put_flag(std::uint16_t attribute) { mnl_attr_put(header_, attribute, 0, nullptr); }
    void put_text(std::uint16_t attribute, const char* text) { mnl_attr_put_strz(header_, attribute, text); }
    void nest(std::uint16_t attribute, const std::function<void()>& fill) {
        nlattr* begin = mnl_attr_nest_start(header_, attribute);
        fill();
        mnl_attr_nest_end(header_, begin);
    }
    nlmsghdr* header() { return header_; }

private:
    std::vector<char> buffer_;
    nlmsghdr* header_;
};

using OnAttribute = std::function<void(const nlattr*)>;

// Calls `each` for the attributes of one level. (libmnl's loops are macros that only C takes.)
void each_attribute(const void* begin, const void* end, const OnAttribute& each) {
    const auto* attribute = static_cast<const nlattr*>(begin);
    while (mnl_attr_ok(attribute,
                       static_cast<int>(static_cast<const char*>(end) - reinterpret_cast<const char*>(attribute)))) {
        each(attribute);
        attribute = mnl_attr_next(attribute);
    }
}
void each_attribute(const nlmsghdr* message, std::size_t offset, const OnAttribute& each) {
    each_attribute(mnl_nlmsg_get_payload_offset(message, offset), mnl_nlmsg_get_payload_tail(message), each);
}
void each_attribute(const nlattr* nest, const OnAttribute& each) {
    const auto* begin = static_cast<const char*>(mnl_attr_get_payload(nest));
    each_attribute(begin, begin + mnl_attr_get_payload_len(nest), each);
}

class Netlink {
public:
    Netlink() : socket_(mnl_socket_open(NETLINK_GENERIC)) {
        if (!socket_ || mnl_socket_bind(socket_, 0, MNL_SOCKET_AUTOPID))
            fail("netlink");
    }
    ~Netlink() { mnl_socket_close(socket_); }
    Netlink(const Netlink&) = delete;
    Netlink& operator=(const Netlink&) = delete;

    // Returns 0 or the error.
    int ask(Message& message, const std::function<void(const nlmsghdr*)>& on_answer = {}) {
        if (mnl_socket_sendto(socket_, message.header(), message.header()->nlmsg_len) < 0)
            fail("sendto");
        std::vector<char> buffer(65536);
        for (;;) {
            const ssize_t size = mnl_socket_recvfrom(socket_, buffer.data(), buffer.size());
            if (size < 0)
                fail("recvfrom");
            int left = static_cast<int>(size);
            for (auto* one = reinterpret_cast<nlmsghdr*>(buffer.data()); mnl_nlmsg_ok(one, left);
                 one = mnl_nlmsg_next(one, &left)) {
                if (one->nlmsg_type == NLMSG_ERROR)
                    return -static_cast<const nlmsgerr*>(mnl_nlmsg_get_payload(one))->error;
                if (one->nlmsg_type == NLMSG_DONE)
                    return 0;
                if (on_answer)
                    on_answer(one);
            }
        }
    }

    std::uint16_t family(const char* name) {
        Message message(GENL_ID_CTRL, CTRL_CMD_GETFAMILY, 1, NLM_F_ACK);
        message.put_text(CTRL_ATTR_FAMILY_NAME, name);
        std::uint16_t id = 0;
        errno = ask(message, [&](const nlmsghdr* answer) {
            each_attribute(answer, sizeof(genlmsghdr), [&](const nlattr* attribute) {
                if (mnl_attr_get_type(attribute) == CTRL_ATTR_FAMILY_ID)
                    id = mnl_attr_get_u16(attribute);
            });
        });
        if (!id)
            fail(name);
        return id;
    }

private:
    mnl_socket* socket_;
};

void done(int error, const std::string& what) {
    errno = error;
    if (error)
        fail(what);
}

struct Flow {
    std::uint32_t in_port = 0;
    std::uint16_t udp_port = 0;
    std::vector<std::pair<std::string, std::uint32_t>> actions;
};

Flow parse(const std::string& text) {
    Flow flow;
    std::size_t at = 0;
    for (int field = 0; at <= text.size(); ++field) {
        const std::size_t end = std::min(text.find(':', at), text.size());
        const std::string part = text.substr(at, end - at);
        const std::size_t sign = std::min(part.find('='), part.size());
        const auto number = static_cast<std::uint32_t>(
            std::strtoul(part.c_str() + (field < 2 ? 0 : std::min(sign + 1, part.size())), nullptr, 10));
        if (field == 0)
            flow.in_port = number;
        else if (field == 1)
            flow.udp_port = static_cast<std::uint16_t>(number);
        else
            flow.actions.emplace_back(part.substr(0, sign), number);
        at = end + 1;
    }
    return flow;
}

void put_key(Message& message, std::uint16_t attribute, const Flow& flow, bool mask) {
    message.nest(attribute, [&] {
        ovs_key_ethernet ethernet{};
        ovs_key_ipv4 ipv4{};
        ipv4.ipv4_proto = mask ? 0xff : IPPROTO_UDP;
        ovs_key_udp udp{};
        udp.udp_dst = mask ? 0xffff : htons(flow.udp_port);
        message.put(OVS_KEY_ATTR_IN_PORT, mask ? ~0U : flow.in_port);
        message.put(OVS_KEY_ATTR_ETHERNET, ethernet);
        message.put<std::uint16_t>(OVS_KEY_ATTR_ETHERTYPE, mask ? 0xffff : htons(ETH_P_IP));
        message.put(OVS_KEY_ATTR_IPV4, ipv4);
        message.put(OVS_KEY_ATTR_UDP, udp);
    });
}

void put_action(Message& message, const std::string& action, std::uint32_t number) {
    if (action == "out")
        message.put(OVS_ACTION_ATTR_OUTPUT, number);
    else if (action == "drop")
        message.put(action_drop, number);
    else if (action == "meter")
        message.put(OVS_ACTION_ATTR_METER, number);
    else if (action == "recirc")
        message.put(OVS_ACTION_ATTR_RECIRC, number);
    else if (action == "ttl") // what is to be done with a packet whose TTL runs out: nothing
        message.nest(OVS_ACTION_ATTR_DEC_TTL, [&] { message.put_flag(OVS_DEC_TTL_ATTR_ACTION | NLA_F_NESTED); });
    else if (action == "ct")
        message.nest(OVS_ACTION_ATTR_CT, [&] {
            message.put_flag(OVS_CT_ATTR_COMMIT);
            message.put(OVS_CT_ATTR_ZONE, static_cast<std::uint16_t>(number));
        });
    else
        done(EINVAL, action);
}

// A kilobit each second.
void add_meter(Netlink& netlink, int datapath) {
    Message message(netlink.family(OVS_METER_FAMILY), OVS_METER_CMD_SET, OVS_METER_VERSION, NLM_F_ACK);
    message.datapath(datapath);
    message.put(OVS_METER_ATTR_ID, meter_id);
    message.put_flag(OVS_METER_ATTR_KBPS);
    message.nest(OVS_METER_ATTR_BANDS, [&] {
        message.nest(OVS_BAND_ATTR_UNSPEC, [&] {
            message.put<std::uint32_t>(OVS_BAND_ATTR_TYPE, OVS_METER_BAND_TYPE_DROP);
            message.put<std::uint32_t>(OVS_BAND_ATTR_RATE, 1);
            message.put<std::uint32_t>(OVS_BAND_ATTR_BURST, 0);
        });
    });
    done(netlink.ask(message), "OVS_METER_CMD_SET");
}

constexpr std::size_t headers = sizeof(genlmsghdr) + sizeof(ovs_header); // before an answer's attributes

// Who asks for upcalls: nobody does.
constexpr std::uint32_t nobody = 0;

void add(const char* name, const char* device, int count, char** flows) {
    Netlink netlink;
    {
        Message message(netlink.family(OVS_DATAPATH_FAMILY), OVS_DP_CMD_NEW, OVS_DATAPATH_VERSION, NLM_F_ACK);
        message.datapath(0);
        message.put_text(OVS_DP_ATTR_NAME, name);
        message.put(OVS_DP_ATTR_UPCALL_PID, nobody);
        done(netlink.ask(message), "OVS_DP_CMD_NEW");
    }
    const int datapath = static_cast<int>(if_nametoindex(name));
    {
        Message message(netlink.family(OVS_VPORT_FAMILY), OVS_VPORT_CMD_NEW, OVS_VPORT_VERSION, NLM_F_ACK);
        message.datapath(datapath);
        message.put<std::uint32_t>(OVS_VPORT_ATTR_PORT_NO, 1);
        message.put<std::uint32_t>(OVS_VPORT_ATTR_TYPE, OVS_VPORT_TYPE_NETDEV);
        message.put_text(OVS_VPORT_ATTR_NAME, device);
        message.put(OVS_VPORT_ATTR_UPCALL_PID, nobody);
        done(netlink.ask(message), "OVS_VPORT_CMD_NEW");
    }
    add_meter(netlink, datapath);
    const std::uint16_t flow_family = netlink.family(OVS_FLOW_FAMILY);
    for (int i = 0; i < count; ++i) {
        const Flow flow = parse(flows[i]);
        Message message(flow_family, OVS_FLOW_CMD_NEW, OVS_FLOW_VERSION, NLM_F_ACK | NLM_F_CREATE);
        message.datapath(datapath);
        put_key(message, OVS_FLOW_ATTR_KEY, flow, false);
        put_key(message, OVS_FLOW_ATTR_MASK, flow, true);
        message.nest(OVS_FLOW_ATTR_ACTIONS, [&] {
            for (const auto& [action, number] : flow.actions)
                put_action(message, action, number);
        });
        if (const int error = netlink.ask(message))
            std::fprintf(stderr, "%s: %s\n", flows[i], std::strerror(error));
    }
}

template <typename T>
T value_of(const nlattr* attribute) {
    T value{};
    std::memcpy(&value, mnl_attr_get_payload(attribute),
                std::min<std::size_t>(sizeof(value), mnl_attr_get_payload_len(attribute)));
    return value;
}

// "flow IN_PORT UDP_PORT PACKETS" each, "missed N", "lost N" (missed, and nobody to hand it to), "meter N" (dropped)
void show(const char* name) {
    Netlink netlink;
    const int datapath = static_cast<int>(if_nametoindex(name));
    Message flows(netlink.family(OVS_FLOW_FAMILY), OVS_FLOW_CMD_GET, OVS_FLOW_VERSION, NLM_F_DUMP);
    flows.datapath(datapath);
    done(netlink.ask(flows,
                     [](const nlmsghdr* message) {
                         Flow flow;
                         std::uint64_t packets = 0;
                         each_attribute(message, headers, [&](const nlattr* attribute) {
                             if (mnl_attr_get_type(attribute) == OVS_FLOW_ATTR_STATS)
                                 packets = value_of<ovs_flow_stats>(attribute).n_packets;
                             if (mnl_attr_get_type(attribute) != OVS_FLOW_ATTR_KEY)
                                 return;
                             each_attribute(attribute, [&](const nlattr* key) {
                                 if (mnl_attr_get_type(key) == OVS_KEY_ATTR_IN_PORT)
                                     flow.in_port = mnl_attr_get_u32(key);
                                 if (mnl_attr_get_type(key) == OVS_KEY_ATTR_UDP)
                                     flow.udp_port = ntohs(value_of<ovs_key_udp>(key).udp_dst);
                             });
                         });
                         std::printf("flow %u %u %llu\n", flow.in_port, flow.udp_port,
                                     static_cast<unsigned long long>(packets));
                     }),
         "OVS_FLOW_CMD_GET");
    Message counts(netlink.family(OVS_DATAPATH_FAMILY), OVS_DP_CMD_GET, OVS_DATAPATH_VERSION, NLM_F_ACK);
    counts.datapath(datapath);
    done(netlink.ask(counts,
                     [](const nlmsghdr* message) {
                         each_attribute(message, headers, [](const nlattr* attribute) {
                             if (mnl_attr_get_type(attribute) != OVS_DP_ATTR_STATS)
                                 return;
                             const auto stats = value_of<ovs_dp_stats>(attribute);
                             std::printf("missed %llu\nlost %llu\n", static_cast<unsigned long long>(stats.n_missed),
                                         static_cast<unsigned long long>(stats.n_lost));
                         });
                     }),
         "OVS_DP_CMD_GET");
    Message meter(netlink.family(OVS_METER_FAMILY), OVS_METER_CMD_GET, OVS_METER_VERSION, NLM_F_ACK);
    meter.datapath(datapath);
    meter.put(OVS_METER_ATTR_ID, meter_id);
    done(netlink.ask(meter,
                     [](const nlmsghdr* message) {
                         each_attribute(message, headers, [](const nlattr* attribute) {
                             if (mnl_attr_get_type(attribute) != OVS_METER_ATTR_BANDS)
                                 return;
                             each_attribute(attribute, [](const nlattr* band) {
                                 each_attribute(band, [](const nlattr* field) {
                                     if (mnl_attr_get_type(field) == OVS_BAND_ATTR_STATS)
                                         std::printf("meter %llu\n", static_cast<unsigned long long>(
                                                                         value_of<ovs_flow_stats>(field).n_packets));
                                 });
                             });
                         });
                     }),
         "OVS_METER_CMD_GET");
}

void remove_datapath(const char* name) {
    Netlink netlink;
    Message message(netlink.family(OVS_DATAPATH_FAMILY), OVS_DP_CMD_DEL, OVS_DATAPATH_VERSION, NLM_F_ACK);
    message.datapath(static_cast<int>(if_nametoindex(name)));
    done(netlink.ask(message), "OVS_DP_CMD_DEL");
}

} // namespace

int open_vswitch(int count, char** arguments) {
    const std::string what = count > 0 ? arguments[0] : "";
    if (what == "add" && count >= 3)
        add(arguments[1], arguments[2], count - 3, arguments + 3);
    else if (what == "show" && count == 2)
        show(arguments[1]);
    else if (what == "del" && count == 2)
        remove_datapath(arguments[1]);
    else
        return 2;
    return 0;
}
