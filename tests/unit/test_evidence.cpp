// SPDX-License-Identifier: GPL-2.0-only
#include "evidence/evidence.h"
#include "evidence/live_evidence.h"
#include "evidence/route_lookup.h"
#include "evidence/socket_lookup.h"
#include "evidence/sysctls.h"

#include <cerrno>
#include <cstring>
#include <string>
#include <vector>

#include <arpa/inet.h>
#include <linux/fib_rules.h>
#include <linux/inet_diag.h>
#include <linux/rtnetlink.h>
#include <linux/sock_diag.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "address.h"
#include "catch.h"

using namespace tsdroptrace;
using namespace tsdroptrace::evidence;

namespace {

constexpr std::uint64_t second = 1'000'000'000, noon = 1000 * second;

// The answer of a resolver, dropped on its way in.
Drop incident() {
    Drop drop;
    drop.cause_id = 1;
    drop.mono_ns = noon;
    drop.packet.family = IpFamily::ipv4;
    drop.packet.proto = IPPROTO_UDP;
    drop.packet.src = address("100.100.2.136");
    drop.packet.dst = address("10.0.0.2");
    drop.packet.sport = 53;
    drop.packet.dport = 41873;
    drop.packet.direction = Direction::from;
    drop.packet.received = true;
    drop.packet.in_dev = "eth0";
    drop.site = {DropKind::rule, "NETFILTER_DROP", 8, "nf_hook_slow+0x9b/0xd0", Hook::input, ""};
    return drop;
}

// ---- answers as the kernel gave them (Linux 6.18, RTM_GETROUTE), the routes as `ip route` lists them ----

// default via 10.0.0.1 dev eth0
const char* const route4 = "7000000018000000010000006a3e000002200000fe0000010002000008000f00fe000000080001006464028808"
                           "00040002000000080007000a000002080005000a000001080019000000000024000c0002000000000000000000"
                           "00000000000000000000000000000000000000000000";
const char* const match4 =
    "3400000018000000010000006a3e000002000000fe0300010000000008000f00fe000000080005000a0000010800040002000000";
// 100.101.102.104 dev tailscale0 table 52
const char* const match_peer =
    "3400000018000000010000006a3e0000022000003403fd010000000008000f003400000008000100646566680800040003000000";
// 192.0.2.0/24 via inet6 2001:db8::1 dev eth0
const char* const route_via =
    "8000000018000000010000006a3e000002200000fe0000010002000008000f00fe00000008000100c0000209"
    "0800040002000000080007000a000002160012000a0020010db800000000000000000000000100000800190000"
    "00000024000c000200000000000000000000000000000000000000000000000000000000000000";
// 2001:db8:5::/48 via 2001:db8::1 dev eth0
const char* const match6 =
    "880000001800000001000000444000000a300000fe0300010000000008000f00fe0000001400010020010db80005"
    "0000000000000000000008000600000400001400050020010db80000000000000000000000010800040002000000"
    "24000c0000000000000000000000000000000000000000000000000000000000000000000500140000000000";
// unreachable 198.51.100.0/24: -EHOSTUNREACH
const char* const unreachable = "3800000002000000010000006a3e00008fffffff24000000";

std::vector<std::byte> bytes_of(std::string_view hex) {
    std::vector<std::byte> bytes;
    for (std::size_t i = 0; i + 1 < hex.size(); i += 2)
        bytes.push_back(static_cast<std::byte>(std::stoi(std::string(hex.substr(i, 2)), nullptr, 16)));
    return bytes;
}

// The message with the length that it now has.
std::vector<std::byte> resized(std::vector<std::byte> bytes, std::size_t size) {
    bytes.resize(size);
    const auto length = static_cast<std::uint32_t>(size);
    std::memcpy(bytes.data(), &length, sizeof(length));
    return bytes;
}

// Of the last message that says something about a route.
std::optional<RouteAnswer> route_in(const std::vector<std::byte>& bytes, bool whole = true) {
    std::optional<RouteAnswer> answer;
    CHECK(for_each_message(bytes, [&](const nlmsghdr& message) { answer = read_route(message); }) == whole);
    return answer;
}

const nlmsghdr& message_of(const std::vector<std::byte>& bytes) {
    return *reinterpret_cast<const nlmsghdr*>(bytes.data());
}

std::vector<std::byte> error_message(int error) {
    std::vector<std::byte> bytes(sizeof(nlmsghdr) + sizeof(nlmsgerr));
    const nlmsghdr head{static_cast<std::uint32_t>(bytes.size()), NLMSG_ERROR, 0, 1, 1};
    std::memcpy(bytes.data(), &head, sizeof(head));
    error = -error;
    std::memcpy(bytes.data() + sizeof(head), &error, sizeof(error));
    return bytes;
}

std::vector<std::byte> socket_message(std::uint16_t port, std::uint8_t state, std::uint32_t inode) {
    std::vector<std::byte> bytes(sizeof(nlmsghdr) + sizeof(inet_diag_msg));
    const nlmsghdr head{static_cast<std::uint32_t>(bytes.size()), SOCK_DIAG_BY_FAMILY, 0, 1, 1};
    inet_diag_msg socket{};
    socket.idiag_state = state;
    socket.id.idiag_sport = htons(port);
    socket.idiag_inode = inode;
    std::memcpy(bytes.data(), &head, sizeof(head));
    std::memcpy(bytes.data() + sizeof(head), &socket, sizeof(socket));
    return bytes;
}

Evidence some_evidence(std::uint64_t number) {
    Evidence evidence;
    evidence.sysctls["number"] = std::to_string(number);
    return evidence;
}

// What the explanation wants to know: something for each cause.
std::set<std::string> wanted(const Drop& drop) {
    return {"net.cause" + std::to_string(drop.cause_id)};
}

// A machine that answers at once, and counts how often it was asked.
struct Machine {
    std::uint64_t now = noon, cost = 0;
    unsigned asked = 0, asked_all = 0;
    std::vector<Entry> entries;
    std::vector<std::set<std::string>> sysctls_asked;
    LiveEvidence evidence{
        [this](const Entry& entry) { entries.push_back(entry); },
        [this](const Drop&, const Evidence* known, const std::set<std::string>& sysctls, bool with_socket) {
            ++asked;
            asked_all += known == nullptr;
            sysctls_asked.push_back(sysctls);
            now += cost;
            Evidence answer = known ? *known : some_evidence(asked);
            if (with_socket) {
                answer.socket_waits = true;
                answer.waiting = Process{asked, "dig"};
            }
            return answer;
        },
        [this] { return now; }};
};

} // namespace

// ---- routes ----

TEST_CASE("evidence: routes are read as the kernel tells them") {
    auto answer = route_in(bytes_of(route4));
    REQUIRE(answer);
    CHECK(answer->error == 0);
    CHECK(route_type(*answer) == "unicast");
    CHECK(answer->table == 254);
    CHECK(answer->out_dev == 2);
    CHECK(answer->gateway == address("10.0.0.1"));

    answer = route_in(bytes_of(match4));
    REQUIRE(answer);
    CHECK(matched_text(*answer, IpFamily::ipv4) == "default");
    CHECK(answer->table == 254);

    answer = route_in(bytes_of(match_peer));
    REQUIRE(answer);
    CHECK(matched_text(*answer, IpFamily::ipv4) == "100.101.102.104/32");
    CHECK(answer->table == tailscale_table);
    CHECK_FALSE(answer->gateway);

    answer = route_in(bytes_of(route_via));
    REQUIRE(answer);
    CHECK(answer->gateway == address("2001:db8::1"));

    answer = route_in(bytes_of(match6));
    REQUIRE(answer);
    CHECK(matched_text(*answer, IpFamily::ipv6) == "2001:db8:5::/48");
    CHECK(answer->gateway == address("2001:db8::1"));
    CHECK(answer->out_dev == 2);
    // Not what was asked for: an entry of the other family.
    CHECK(matched_text(*answer, IpFamily::ipv4).empty());
}

TEST_CASE("evidence: a route that refuses is known by its error") {
    const auto answer = route_in(bytes_of(unreachable), false); // these are the first bytes of the answer alone
    CHECK_FALSE(answer);
    const auto type = [](int error) { return route_type(*route_in(error_message(error))); };
    CHECK(type(EHOSTUNREACH) == "unreachable");
    CHECK(type(EACCES) == "prohibit");
    CHECK(type(EINVAL) == "blackhole");
    CHECK(type(ENETUNREACH) == "none");
    CHECK(type(EPERM).empty());
    CHECK(error_of(message_of(resized(bytes_of(unreachable), 24))) == EHOSTUNREACH);
    CHECK(error_of(message_of(resized(bytes_of(unreachable), 18))) == 0);
}

TEST_CASE("evidence: answers that are short or damaged are read as far as they go") {
    for (const char* hex : {route4, match_peer, route_via, match6}) {
        const auto whole = bytes_of(hex);
        for (std::size_t size = 0; size < whole.size(); ++size) {
            // Cut, with the old length: no message at all.
            CHECK_FALSE(route_in({whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(size)}, size == 0));
            if (size < sizeof(nlmsghdr))
                continue;
            // Cut, with a length that fits.
            const auto answer = route_in(resized(whole, size));
            CHECK(bool(answer) == (size >= sizeof(nlmsghdr) + sizeof(rtmsg)));
        }
    }
    // Each byte wrong in turn: whatever comes of it, nothing is read that is not there.
    const auto whole = bytes_of(route_via);
    for (std::size_t at = sizeof(nlmsghdr); at < whole.size(); ++at) {
        for (const int value : {0, 1, 3, 0x7f, 0xff}) {
            auto bytes = whole;
            bytes[at] = static_cast<std::byte>(value);
            CHECK(route_in(bytes));
        }
    }
}

TEST_CASE("evidence: attributes that are unknown or of a wrong length are passed over") {
    auto bytes = bytes_of(match_peer);
    const std::size_t table = sizeof(nlmsghdr) + sizeof(rtmsg); // RTA_TABLE is the first
    bytes[table + 2] = std::byte{99};
    auto answer = route_in(bytes);
    REQUIRE(answer);
    CHECK(answer->table == 52); // of the header
    CHECK(answer->to == address("100.101.102.104"));
    bytes = bytes_of(match_peer);
    bytes[table + 2] = std::byte{RTA_GATEWAY};
    CHECK(route_in(bytes)->gateway); // four bytes may be an address
    bytes[table] = std::byte{7};
    CHECK_FALSE(route_in(bytes)->gateway); // three are none
    CHECK(route_in(bytes)->out_dev == 3);

    CHECK_FALSE(read_route(message_of(socket_message(1, 1, 1))));
    CHECK_FALSE(read_link(message_of(bytes_of(route4))));
}

TEST_CASE("evidence: the ip rule that leads to a table is told by what it asks for") {
    struct Asks {
        std::uint32_t priority, table, mark = 0, mask = 0;
        const char* in_dev = nullptr;
        std::uint8_t to_bits = 0; // of 100.100.0.0
        std::uint16_t other = 0;  // an attribute
        std::uint8_t action = FR_ACT_TO_TBL;
        std::uint32_t flags = 0;
    };
    const auto rule = [](const Asks& asks) {
        alignas(4) std::byte room[256]{};
        nlmsghdr* head = mnl_nlmsg_put_header(room);
        head->nlmsg_type = RTM_NEWRULE;
        auto* of = static_cast<fib_rule_hdr*>(mnl_nlmsg_put_extra_header(head, sizeof(fib_rule_hdr)));
        of->action = asks.action;
        of->dst_len = asks.to_bits;
        of->flags = asks.flags;
        mnl_attr_put_u32(head, FRA_PRIORITY, asks.priority);
        mnl_attr_put_u32(head, FRA_TABLE, asks.table);
        mnl_attr_put_u32(head, FRA_SUPPRESS_PREFIXLEN, ~std::uint32_t{0});
        if (asks.mask != 0) {
            mnl_attr_put_u32(head, FRA_FWMARK, asks.mark);
            mnl_attr_put_u32(head, FRA_FWMASK, asks.mask);
        }
        if (asks.in_dev)
            mnl_attr_put_strz(head, FRA_IIFNAME, asks.in_dev);
        if (asks.to_bits != 0)
            mnl_attr_put(head, FRA_DST, 4, "\x64\x64\0\0");
        if (asks.other != 0)
            mnl_attr_put_u32(head, asks.other, 1);
        const auto read = read_rule(*head);
        REQUIRE(read);
        return *read;
    };
    RouteQuestion question;
    question.to = address("100.100.2.136");
    const auto leads = [&](const Asks& asks) { return rule_to(52, question, std::vector{rule(asks)}); };
    CHECK(leads({5270, 52}) == 5270u);
    CHECK_FALSE(leads({32766, 254}));
    CHECK_FALSE(leads({5270, 52, 0, 0, nullptr, 0, 0, FR_ACT_UNREACHABLE}));
    CHECK(leads({5270, 52, 0, 0, nullptr, 16}) == 5270u);
    CHECK(leads({5270, 52, 0, 0, nullptr, 17}) == 5270u); // 100.100.0.0/17 holds it
    CHECK_FALSE(leads({5270, 52, 0, 0, nullptr, 23}));    // 100.100.0.0/23 does not
    CHECK_FALSE(leads({5210, 52, 0x80000, 0xff0000}));    // another mark
    CHECK(leads({5210, 52, 0, 0xff0000}) == 5210u);
    CHECK(leads({5, 52, 0, 0, "lo"}) == 5u); // this machine's own packets
    CHECK_FALSE(leads({5, 52, 0, 0, "eth0"}));
    CHECK_FALSE(leads({5, 52, 0, 0, nullptr, 0, FRA_UID_RANGE}));
    CHECK_FALSE(leads({5, 52, 0, 0, nullptr, 0, 0, FR_ACT_TO_TBL, FIB_RULE_INVERT}));
    question.mark = 0x80000;
    question.in_dev = "eth0";
    CHECK(leads({5210, 52, 0x80000, 0xff0000}) == 5210u);
    CHECK(leads({5, 52, 0, 0, "eth0"}) == 5u);
    CHECK_FALSE(leads({5, 52, 0, 0, "lo"}));
    // The first that fits; and none where another one may have come before it.
    CHECK(rule_to(52, question, std::vector{rule({1, 254}), rule({2, 52}), rule({3, 52})}) == 2u);
    CHECK_FALSE(rule_to(52, question, std::vector{rule({1, 52, 0, 0, nullptr, 0, FRA_UID_RANGE}), rule({2, 52})}));
    CHECK_FALSE(read_rule(message_of(socket_message(1, 1, 1))));
}

TEST_CASE("evidence: a device's VRF is found in its description") {
    const auto link = [](std::uint16_t kind, const std::string& name) {
        alignas(4) std::byte room[256]{};
        nlmsghdr* head = mnl_nlmsg_put_header(room);
        head->nlmsg_type = RTM_NEWLINK;
        auto* info = static_cast<ifinfomsg*>(mnl_nlmsg_put_extra_header(head, sizeof(ifinfomsg)));
        info->ifi_index = 7;
        mnl_attr_put_u32(head, IFLA_MASTER, 9);
        nlattr* nest = mnl_attr_nest_start(head, IFLA_LINKINFO);
        mnl_attr_put_strz(head, kind, name.c_str());
        mnl_attr_nest_end(head, nest);
        return read_link(*head);
    };
    CHECK(link(IFLA_INFO_KIND, "veth")->vrf == 0);
    CHECK(link(IFLA_INFO_KIND, "vrf")->vrf == 7);
    CHECK(link(IFLA_INFO_SLAVE_KIND, "vrf")->vrf == 9);
    CHECK(link(IFLA_INFO_SLAVE_KIND, "bridge")->vrf == 0); // the member of a bridge
    CHECK(link(IFLA_INFO_SLAVE_KIND, "vrfx")->index == 7);
    CHECK(link(IFLA_INFO_SLAVE_KIND, "vrfx")->vrf == 0);
}

// ---- sockets ----

TEST_CASE("evidence: the kernel's answer about a socket is taken when it is the packet's") {
    Packet packet = incident().packet;
    auto found = read_socket(message_of(socket_message(41873, 7, 4711)), packet);
    REQUIRE(found);
    CHECK(found->waits);
    CHECK(found->inode == 4711);
    CHECK_FALSE(read_socket(message_of(socket_message(53, 7, 4711)), packet)); // another port's
    found = read_socket(message_of(error_message(ENOENT)), packet);
    REQUIRE(found);
    CHECK_FALSE(found->waits);
    CHECK_FALSE(read_socket(message_of(error_message(EPERM)), packet));
    for (std::size_t size = sizeof(nlmsghdr); size < sizeof(nlmsghdr) + sizeof(inet_diag_msg); ++size)
        CHECK_FALSE(read_socket(message_of(resized(socket_message(41873, 7, 4711), size)), packet));
    // A connection that is over.
    packet.proto = IPPROTO_TCP;
    found = read_socket(message_of(socket_message(41873, 6, 0)), packet);
    REQUIRE(found);
    CHECK_FALSE(found->waits);
}

TEST_CASE("evidence: sockets are found in /proc/net's tables") {
    const std::string head =
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout "
        "inode ref pointer drops\n";
    const std::string rest = " 00000000:00000000 00:00000000 00000000     0        0 ";
    const auto line = [&](const char* own, const char* other, const char* state, int inode) {
        return "  100: " + std::string(own) + ' ' + other + ' ' + state + rest + std::to_string(inode) + " 2 0 0\n";
    };
    const Packet packet = incident().packet; // to 10.0.0.2:41873
    const auto inode = [&](const std::string& table, IpFamily family = IpFamily::ipv4) {
        const auto found = search_sockets(table, family, packet);
        return found ? found->waits ? static_cast<int>(found->inode) : 0 : -1;
    };
    const std::string any = line("00000000:A391", "00000000:0000", "07", 1);
    const std::string own = line("0200000A:A391", "00000000:0000", "07", 2);
    const std::string connected = line("0200000A:A391", "88026464:0035", "01", 3);
    CHECK(inode(head) == 0);
    CHECK(inode("") == 0);
    CHECK(inode(head + any) == 1);
    CHECK(inode(head + own + any) == 2);
    CHECK(inode(head + any + connected + own) == 3);
    CHECK(inode(head + line("0200000A:A392", "00000000:0000", "07", 4)) == 0); // another port
    CHECK(inode(head + line("0300000A:A391", "00000000:0000", "07", 4)) == 0); // another address
    CHECK(inode(head + line("0200000A:A391", "88026464:0036", "01", 4)) == 0); // connected to someone else
    CHECK(inode(head + "  1: 0200000A:A391 00000000:0000\n" + "x\n\n") == 0);  // cut short
    CHECK(inode(head + line("0200000A:A39", "00000000:0000", "07", 4)) == 0);  // damaged
    CHECK(inode(head + line("0200000G:A391", "00000000:0000", "07", 4)) == 0);
    CHECK(inode(head + line("0200000A:A391", "00000000:0000", "07", 4).substr(0, 40)) == 0);
    // A socket of IPv6 may take IPv4, and says so only once it has an address.
    CHECK(inode(head + line("00000000000000000000000000000000:A391", "00000000000000000000000000000000:0000", "07", 5),
                IpFamily::ipv6) == -1);
    CHECK(inode(head + line("0000000000000000FFFF00000200000A:A391", "00000000000000000000000000000000:0000", "07", 6),
                IpFamily::ipv6) == 6);
    CHECK(inode(head + line("0000000000000000FFFF00000200000A:A391", "0000000000000000FFFF000088026464:0035", "01", 7),
                IpFamily::ipv6) == 7);
}

TEST_CASE("evidence: a socket of this process, and that it is ours") {
    const int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    REQUIRE(fd >= 0);
    sockaddr_in at{};
    at.sin_family = AF_INET;
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof(at);
    REQUIRE(bind(fd, reinterpret_cast<sockaddr*>(&at), sizeof(at)) == 0);
    REQUIRE(getsockname(fd, reinterpret_cast<sockaddr*>(&at), &size) == 0);
    struct stat status {};
    REQUIRE(fstat(fd, &status) == 0);

    Packet packet = incident().packet;
    packet.in_dev.reset();
    packet.src = packet.dst = address("127.0.0.1");
    packet.dport = ntohs(at.sin_port);
    const auto found = find_socket(packet);
    REQUIRE(found);
    CHECK(found->waits);
    CHECK(found->inode == status.st_ino);
    const auto process = process_of_socket(status.st_ino, std::chrono::seconds(5));
    REQUIRE(process);
    CHECK(process->pid == static_cast<std::uint32_t>(getpid()));
    CHECK(process->comm == "unit_tests");
    CHECK_FALSE(process_of_socket(status.st_ino, std::chrono::milliseconds(0)));

    close(fd);
    const auto nobody = find_socket(packet);
    REQUIRE(nobody);
    CHECK_FALSE(nobody->waits);
    CHECK_FALSE(process_of_socket(status.st_ino, std::chrono::seconds(5)));
    packet.proto = IPPROTO_ICMP;
    CHECK_FALSE(find_socket(packet));
}

// ---- sysctls ----

TEST_CASE("evidence: files and values of sysctls") {
    CHECK(sysctl_path("net.ipv4.conf.eth0/7.rp_filter") == "/proc/sys/net/ipv4/conf/eth0.7/rp_filter");
    CHECK(sysctl_path("net.ipv4.ip_forward") == "/proc/sys/net/ipv4/ip_forward");
    for (const char* name : {"", ".", "//", "/", "net.", "net..ip_forward", ".net.ipv4", "//.//.etc.hostname",
                             "net.//.a", "net./.ipv4.ip_forward"})
        CHECK(sysctl_path(name).empty());
    // Each process has these, in whatever namespace; what is not there is left out.
    const auto values = read_sysctls({"kernel.ostype", "net.ipv4.no_such_thing", "//.//.etc.hostname"});
    CHECK(values == std::map<std::string, std::string>{{"kernel.ostype", "Linux"}});

    CHECK(sysctl_value("1\n") == "1");
    CHECK(sysctl_value("4096\t131072\t6291456\n") == "4096 131072 6291456");
    CHECK_FALSE(sysctl_value(""));
    CHECK_FALSE(sysctl_value("\n"));
    CHECK_FALSE(sysctl_value("a\nb\n"));
    CHECK_FALSE(sysctl_value("\x1b[2J"));
    CHECK_FALSE(sysctl_value("\xff"));
    CHECK(sysctl_value(std::string(64, '1')));
    CHECK_FALSE(sysctl_value(std::string(65, '1')));
}

// ---- what is asked, when, and how long it holds ----

TEST_CASE("evidence: what an answer belongs to") {
    auto keys = keys_of(incident());
    REQUIRE(keys);
    CHECK(keys->far_end.far_end == address("100.100.2.136"));
    CHECK(keys->far_end.near_end == address("10.0.0.2"));
    REQUIRE(keys->flow);
    CHECK(keys->flow->near_port == 41873);
    CHECK(keys->flow->far_port == 53);

    Drop drop = incident();
    drop.site.hook = Hook::output;
    keys = keys_of(drop);
    CHECK(keys->far_end.far_end == address("10.0.0.2")); // where it goes
    CHECK_FALSE(keys->flow);
    drop.site.hook = Hook::forward;
    CHECK_FALSE(keys_of(drop)->flow);
    drop = incident();
    drop.packet.proto = IPPROTO_ICMP;
    CHECK_FALSE(keys_of(drop)->flow);
    drop = incident();
    drop.packet.dport.reset(); // a later fragment
    CHECK_FALSE(keys_of(drop)->flow);
    drop = incident();
    drop.packet.received = false;
    CHECK_FALSE(keys_of(drop)->flow);
    CHECK_FALSE(keys_of(Drop{}));
}

TEST_CASE("evidence: answers make room for newer ones, and are forgotten in time") {
    Answers answers;
    const auto key = [](std::uint32_t cause) {
        Key key;
        key.cause_id = cause;
        return key;
    };
    const auto put = [&](std::uint32_t cause, std::uint64_t mono_ns) {
        answers.put({key(cause), mono_ns, std::make_shared<const Evidence>(some_evidence(cause))});
    };
    constexpr std::uint32_t more = 100;
    for (std::uint32_t i = 0; i < Answers::max_entries + more; ++i)
        put(i, noon);
    CHECK(answers.size() == Answers::max_entries);
    CHECK_FALSE(answers.find(key(more - 1), noon));
    CHECK(answers.find(key(more), noon));
    CHECK(answers.find(key(more), noon)->sysctls.at("number") == "100");
    // One that was asked again is not an old one.
    put(more, noon + 1);
    put(9999, noon);
    CHECK(answers.find(key(more), noon));
    CHECK_FALSE(answers.find(key(more + 1), noon));
    for (int i = 0; i < 5000; ++i)
        put(7, noon);
    CHECK(answers.size() <= Answers::max_entries);
    CHECK(answers.find(key(7), noon));

    CHECK(answers.find(key(7), noon + Answers::max_age_ns));
    CHECK_FALSE(answers.find(key(7), noon + Answers::max_age_ns + 1));
    CHECK(answers.find(key(7), noon - second)); // CPUs are not in order

    Key flow = key(7);
    flow.proto = 17;
    answers.put({flow, noon, std::make_shared<const Evidence>(some_evidence(7))});
    CHECK(answers.find(flow, noon + Answers::max_flow_age_ns));
    CHECK_FALSE(answers.find(flow, noon + Answers::max_flow_age_ns + 1));
}

TEST_CASE("evidence: asked once for each far end and flow, not for each packet") {
    Machine machine;
    Drop drop = incident();
    const auto first = machine.evidence.get(drop, wanted);
    REQUIRE(first);
    CHECK(first->waiting->pid == 1);
    for (int i = 0; i < 100; ++i)
        CHECK(machine.evidence.get(drop, wanted) == first);
    CHECK(machine.asked == 1);

    drop.packet.dport = 41874; // another question of the same resolver: its socket alone
    CHECK(machine.evidence.get(drop, wanted)->waiting->pid == 2);
    CHECK(machine.asked == 2);
    CHECK(machine.asked_all == 1);
    const std::string of_first = *wanted(drop).begin();
    drop.cause_id = 2;
    CHECK(machine.evidence.get(drop, wanted)->sysctls.at("number") == "3");
    CHECK(machine.asked_all == 2);

    // Sysctls that the explanation wants, together with the rest.
    CHECK(machine.sysctls_asked == std::vector<std::set<std::string>>{{of_first}, {}, {"net.cause2"}});

    // Without a socket of its own the packet has no other's.
    drop = incident();
    drop.packet.dport.reset();
    CHECK_FALSE(machine.evidence.get(drop, wanted)->socket_waits);
    CHECK(machine.asked == 3);

    // Some seconds later another process may wait, by the same route.
    drop = incident();
    machine.now = drop.mono_ns = noon + 3 * second;
    CHECK(machine.evidence.get(drop, wanted)->waiting->pid == 4);
    CHECK(machine.asked_all == 2);

    // An hour later the routes may be others.
    drop = incident();
    machine.now = drop.mono_ns = noon + 3600 * second;
    CHECK(machine.evidence.get(drop, wanted)->sysctls.at("number") == "5");
    CHECK_FALSE(machine.evidence.get(Drop{}, wanted));

    // All of it was seen by the recorder, and a replay gives the same.
    CHECK(machine.entries.size() == 3 + 2 + 1 + 2);
    RecordedEvidence recorded;
    CHECK_FALSE(recorded.get(drop, wanted));
    for (const Entry& entry : machine.entries)
        recorded.add(entry);
    REQUIRE(recorded.get(drop, wanted));
    CHECK(recorded.get(drop, wanted)->waiting->pid == 5);
    drop.packet.dport = 9; // a flow that was not asked for: what holds for all of them
    REQUIRE(recorded.get(drop, wanted));
    CHECK(recorded.get(drop, wanted)->sysctls.at("number") == "5");
    CHECK_FALSE(recorded.get(drop, wanted)->socket_waits);
}

TEST_CASE("evidence: a flood of flows is not slowed down by questions") {
    Machine machine;
    Drop drop = incident();
    unsigned with_socket = 0;
    for (std::uint16_t port = 1; port <= 1000; ++port) {
        drop.packet.dport = port;
        const auto found = machine.evidence.get(drop, wanted);
        REQUIRE(found); // the far end is known
        with_socket += found->socket_waits.has_value();
    }
    CHECK(machine.asked == LiveEvidence::max_lookups);
    CHECK(with_socket == LiveEvidence::max_lookups);
    drop.packet.src = address("100.100.2.138"); // unknown, and too much for this second
    CHECK_FALSE(machine.evidence.get(drop, wanted));
    machine.now += second;
    CHECK(machine.evidence.get(drop, wanted));

    SECTION("nor by slow ones") {
        machine.now += second;
        drop.mono_ns = machine.now;
        machine.cost = LiveEvidence::max_time_ns / 2;
        machine.asked = 0;
        for (std::uint16_t port = 2001; port <= 2010; ++port) {
            drop.packet.dport = port;
            machine.evidence.get(drop, wanted);
        }
        CHECK(machine.asked == 2);
    }
    SECTION("nor when records wait already") {
        machine.asked = 0;
        machine.now = drop.mono_ns + LiveEvidence::max_wait_ns + 1;
        drop.cause_id = 7;
        drop.packet.dport = 3001;
        CHECK_FALSE(machine.evidence.get(drop, wanted));
        CHECK(machine.asked == 0);
        // Who waited for it may have given up: that is not asked late.
        drop.mono_ns = machine.now - LiveEvidence::max_wait_socket_ns - 1;
        REQUIRE(machine.evidence.get(drop, wanted));
        CHECK_FALSE(machine.evidence.get(drop, wanted)->socket_waits);
        CHECK(machine.asked == 1);
        drop.mono_ns = machine.now;
        CHECK(machine.evidence.get(drop, wanted)->socket_waits);
        CHECK(machine.asked == 2);
    }
}
