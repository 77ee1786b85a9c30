// SPDX-License-Identifier: GPL-2.0-only
// The oracle's hands in the guest: sends packets that the host has built, and writes down what nf_tables' own trace
// says of them, much faster than a process for each packet and `nft monitor trace` could.
//
//   oracle-agent PACKETS JSON TRACE [PAUSE [TABLES]]
//
// PACKETS  a packet on each line: where it comes from, the CPU that sends it, its bytes from the header of IP or ARP
//          on, in hexadecimal:  [prime:]out|NETNS[>XX] CPU HEX. "out" are this machine's own; the others come in by the
//          interface of that network namespace (provider, client, left or right), to the host whose MAC address ends in
//          XX, or to all (ff). Those of one CPU are sent by a process of their own, in their order.
//          "prime" are sent before all others, again and again, until tsdroptrace names the policy, or has the text of
//          the rule, that drops them: then it has read the rules. The last line is the sentinel: it is sent when all
//          others have been.
// JSON     what tsdroptrace writes: it has caught up with us when it has the sentinel's destination port there
// TRACE    a file for the trace, in the words of `nft -a monitor trace`; "-": none is asked for. The kernel's log,
// where
//          legacy tables are traced, is cleared when the packets begin.
//
// PAUSE    milliseconds after each packet; none if it is not given
// TABLES   "arp:filter,bridge:nat": the counters of their rules are read before all packets and after each, which are
//          then sent one by one
//
// On standard output: whether it was primed, the time (CLOCK_MONOTONIC, in ns) of the beginning and the end, and the
// processes that sent. With TABLES, the time of each packet, and a table's counters in the order of the kernel's
// entries, with the names of ARP's chains where they begin: "counters arp filter 1 0 4 @chain 0".
#include <array>
#include <cerrno>
#include <cinttypes>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <fstream>
#include <map>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include <arpa/inet.h>
#include <endian.h>
#include <fcntl.h>
#include <net/if.h> // before the kernel's headers, which leave out then what it has

#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/netfilter.h>
#include <linux/netfilter/nf_tables.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netfilter_arp/arp_tables.h>
#include <linux/netfilter_bridge/ebtables.h>
#include <linux/netlink.h>
#include <sched.h>
#include <sys/klog.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

namespace {

[[noreturn]] void fail(const char* what) {
    std::perror(what);
    std::exit(1);
}

std::uint64_t now() {
    timespec time{};
    clock_gettime(CLOCK_MONOTONIC, &time);
    return static_cast<std::uint64_t>(time.tv_sec) * 1'000'000'000 + static_cast<std::uint64_t>(time.tv_nsec);
}

void pause_ms(long milliseconds) {
    timespec time{milliseconds / 1000, milliseconds % 1000 * 1'000'000};
    nanosleep(&time, nullptr);
}

// ---- sending ----

struct Packet {
    std::string origin;
    bool prime = false;
    int cpu = 0;
    std::vector<std::uint8_t> bytes;
};

std::vector<Packet> read_packets(const char* path) {
    std::vector<Packet> packets;
    std::ifstream file(path);
    std::string hex;
    for (Packet packet; file >> packet.origin >> packet.cpu >> hex; packets.push_back(packet)) {
        packet.bytes.clear();
        packet.prime = packet.origin.rfind("prime:", 0) == 0;
        if (packet.prime)
            packet.origin.erase(0, std::strlen("prime:"));
        for (std::size_t i = 0; i + 1 < hex.size(); i += 2)
            packet.bytes.push_back(static_cast<std::uint8_t>(std::stoi(hex.substr(i, 2), nullptr, 16)));
    }
    if (packets.size() < 2) {
        std::fprintf(stderr, "%s: no packets\n", path);
        std::exit(1);
    }
    return packets;
}

bool is_arp(const Packet& packet) {
    return packet.bytes[0] == 0;
}

class Sender {
public:
    Sender() {
        for (int i = 0; i < 2; i++) {
            raw_[i] = socket(i == 0 ? AF_INET : AF_INET6, SOCK_RAW, IPPROTO_RAW);
            if (raw_[i] < 0)
                fail("raw socket");
        }
        int home = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
        for (const auto& [name, device, last] : {std::tuple{"provider", "eth0", 1},
                                                 {"client", "eth1", 3},
                                                 {"left", "eth0", 0x11},
                                                 {"right", "eth0", 0x12}}) {
            int there = open((std::string("/run/netns/") + name).c_str(), O_RDONLY | O_CLOEXEC);
            if (there < 0 && errno == ENOENT) // not in this scenario
                continue;
            if (there < 0 || setns(there, CLONE_NEWNET) < 0)
                fail(name);
            close(there);
            int link = socket(AF_PACKET, SOCK_DGRAM, 0);
            if (link < 0)
                fail("packet socket");
            sockaddr_ll to{};
            to.sll_family = AF_PACKET;
            to.sll_ifindex = static_cast<int>(if_nametoindex(device));
            to.sll_halen = ETH_ALEN;
            to.sll_addr[0] = 2; // 02:00:00:00:00:01, as tests/vm/guest/oracle.sh sets it
            to.sll_addr[5] = static_cast<std::uint8_t>(last);
            links_[name] = {link, to};
        }
        if (setns(home, CLONE_NEWNET) < 0)
            fail("setns");
        close(home);
    }

    void send(const Packet& packet) const {
        const std::uint8_t* bytes = packet.bytes.data();
        bool six = bytes[0] >> 4 == 6;
        ssize_t sent;
        if (packet.origin == "out") {
            if (six) {
                sockaddr_in6 to{};
                to.sin6_family = AF_INET6;
                std::memcpy(&to.sin6_addr, bytes + 24, 16);
                sent = sendto(raw_[1], bytes, packet.bytes.size(), 0, reinterpret_cast<sockaddr*>(&to), sizeof(to));
            } else {
                sockaddr_in to{};
                to.sin_family = AF_INET;
                std::memcpy(&to.sin_addr, bytes + 16, 4);
                sent = sendto(raw_[0], bytes, packet.bytes.size(), 0, reinterpret_cast<sockaddr*>(&to), sizeof(to));
            }
            if (sent < 0 && errno != EPERM && errno != ENOBUFS) // what rules do
                std::perror("sendto");
            return;
        }
        std::size_t end = packet.origin.find('>');
        auto [link, to] = links_.at(packet.origin.substr(0, end));
        if (end != std::string::npos)
            to.sll_addr[5] = static_cast<std::uint8_t>(std::stoi(packet.origin.substr(end + 1), nullptr, 16));
        if (to.sll_addr[5] == 0xff)
            std::memset(to.sll_addr, 0xff, ETH_ALEN);
        to.sll_protocol = htons(is_arp(packet) ? ETH_P_ARP : six ? ETH_P_IPV6 : ETH_P_IP);
        sent = sendto(link, bytes, packet.bytes.size(), 0, reinterpret_cast<sockaddr*>(&to), sizeof(to));
        if (sent < 0)
            std::perror("sendto");
    }

private:
    std::array<int, 2> raw_{};
    std::map<std::string, std::pair<int, sockaddr_ll>> links_;
};

// ---- nf_tables' trace ----

using Attributes = std::map<int, std::pair<const std::uint8_t*, std::size_t>>;

Attributes attributes(const std::uint8_t* at, std::size_t size) {
    Attributes found;
    while (size >= sizeof(nlattr)) {
        nlattr head;
        std::memcpy(&head, at, sizeof(head));
        if (head.nla_len < sizeof(head) || head.nla_len > size)
            break;
        found[head.nla_type & NLA_TYPE_MASK] = {at + sizeof(head), head.nla_len - sizeof(head)};
        std::size_t step = std::min<std::size_t>(size, NLA_ALIGN(head.nla_len));
        at += step;
        size -= step;
    }
    return found;
}

std::uint32_t be32(const Attributes& from, int name) {
    std::uint32_t value = 0;
    if (auto found = from.find(name); found != from.end() && found->second.second >= 4)
        std::memcpy(&value, found->second.first, 4);
    return ntohl(value);
}

std::string text(const Attributes& from, int name) {
    auto found = from.find(name);
    if (found == from.end())
        return {};
    auto* begin = reinterpret_cast<const char*>(found->second.first);
    return {begin, strnlen(begin, found->second.second)};
}

const char* family_name(int family) {
    switch (family) {
    case NFPROTO_INET:
        return "inet";
    case NFPROTO_IPV4:
        return "ip";
    case NFPROTO_IPV6:
        return "ip6";
    case NFPROTO_NETDEV:
        return "netdev";
    case NFPROTO_BRIDGE:
        return "bridge";
    case NFPROTO_ARP:
        return "arp";
    default:
        return "other";
    }
}

std::string verdict_text(const Attributes& trace) {
    auto nested = trace.find(NFTA_TRACE_VERDICT);
    if (nested == trace.end())
        return "none";
    Attributes verdict = attributes(nested->second.first, nested->second.second);
    auto code = static_cast<std::int32_t>(be32(verdict, NFTA_VERDICT_CODE));
    switch (code) {
    case NFT_CONTINUE:
        return "continue";
    case NFT_BREAK:
        return "break";
    case NFT_JUMP:
        return "jump " + text(verdict, NFTA_VERDICT_CHAIN);
    case NFT_GOTO:
        return "goto " + text(verdict, NFTA_VERDICT_CHAIN);
    case NFT_RETURN:
        return "return";
    default:
        break;
    }
    switch (code & NF_VERDICT_MASK) {
    case NF_DROP:
        return "drop";
    case NF_ACCEPT:
        return "accept";
    case NF_STOLEN:
        return "stolen";
    default:
        return std::to_string(code);
    }
}

std::string address(int family, const std::uint8_t* bytes) {
    char buffer[INET6_ADDRSTRLEN];
    return inet_ntop(family, bytes, buffer, sizeof(buffer));
}

unsigned be16(const std::uint8_t* at) {
    return static_cast<unsigned>(at[0]) << 8 | at[1];
}

// What nft prints of a packet, as far as the checks read it.
std::string packet_text(const Attributes& trace) {
    std::string line;
    char name[IF_NAMESIZE];
    for (auto [attribute, word] : {std::pair{NFTA_TRACE_IIF, "iif"}, {NFTA_TRACE_OIF, "oif"}})
        if (std::uint32_t index = be32(trace, attribute))
            line += std::string(word) + " \"" + (if_indextoname(index, name) ? name : "?") + "\" ";
    auto network = trace.find(NFTA_TRACE_NETWORK_HEADER);
    if (network == trace.end())
        return line;
    auto [ip, size] = network->second;
    unsigned proto = 0;
    if (ip[0] >> 4 == 4 && size >= 20) {
        line += "ip saddr " + address(AF_INET, ip + 12) + " ip daddr " + address(AF_INET, ip + 16) + " ip ttl " +
                std::to_string(ip[8]) + " ip length " + std::to_string(be16(ip + 2));
        proto = ip[9];
    } else if (ip[0] >> 4 == 6 && size >= 40) {
        line += "ip6 saddr " + address(AF_INET6, ip + 8) + " ip6 daddr " + address(AF_INET6, ip + 24) +
                " ip6 hoplimit " + std::to_string(ip[7]) + " ip6 length " + std::to_string(be16(ip + 4));
        proto = ip[6];
    } else if (ip[0] == 0 && size >= 28) { // ARP over Ethernet
        line += "arp saddr ip " + address(AF_INET, ip + 14) + " arp daddr ip " + address(AF_INET, ip + 24);
    }
    auto transport = trace.find(NFTA_TRACE_TRANSPORT_HEADER);
    if ((proto == IPPROTO_UDP || proto == IPPROTO_TCP) && transport != trace.end() && transport->second.second >= 4) {
        std::string protocol = proto == IPPROTO_UDP ? " udp " : " tcp ";
        line += protocol + "sport " + std::to_string(be16(transport->second.first)) + protocol + "dport " +
                std::to_string(be16(transport->second.first + 2));
    }
    return line;
}

class Trace {
public:
    explicit Trace(const char* path) {
        if (std::strcmp(path, "-") == 0)
            return;
        file_ = std::fopen(path, "w");
        if (!file_)
            fail(path);
        socket_ = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_NETFILTER);
        int size = 64 << 20, group = NFNLGRP_NFTRACE;
        sockaddr_nl here{};
        here.nl_family = AF_NETLINK;
        if (socket_ < 0 || setsockopt(socket_, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof(size)) < 0 ||
            bind(socket_, reinterpret_cast<sockaddr*>(&here), sizeof(here)) < 0 ||
            setsockopt(socket_, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, &group, sizeof(group)) < 0)
            fail("netlink");
    }

    void drain() {
        static std::uint8_t buffer[1 << 16];
        while (socket_ >= 0) {
            ssize_t got = recv(socket_, buffer, sizeof(buffer), MSG_DONTWAIT);
            if (got < 0 && errno == EAGAIN)
                return;
            if (got < 0)
                fail("the kernel's trace was lost");
            std::size_t left = static_cast<std::size_t>(got), at = 0;
            while (left >= sizeof(nlmsghdr)) {
                nlmsghdr head;
                std::memcpy(&head, buffer + at, sizeof(head));
                if (head.nlmsg_len < NLMSG_HDRLEN + sizeof(nfgenmsg) || head.nlmsg_len > left)
                    break;
                if (head.nlmsg_type == (NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_TRACE))
                    write(buffer + at + NLMSG_HDRLEN, head.nlmsg_len - NLMSG_HDRLEN);
                std::size_t step = std::min<std::size_t>(left, NLMSG_ALIGN(head.nlmsg_len));
                at += step;
                left -= step;
            }
        }
    }

    // What has been traced by now belongs to nobody's round, neither here nor in the kernel's log.
    void restart() {
        drain();
        klogctl(5, nullptr, 0); // SYSLOG_ACTION_CLEAR
        if (!file_)
            return;
        std::rewind(file_);
        if (ftruncate(fileno(file_), 0) < 0)
            fail("trace");
    }

    void finish() {
        drain();
        if (file_ && std::fclose(file_) != 0)
            fail("trace");
    }

private:
    void write(const std::uint8_t* message, std::size_t size) {
        nfgenmsg head;
        std::memcpy(&head, message, sizeof(head));
        Attributes trace = attributes(message + sizeof(head), size - sizeof(head));
        char start[256];
        std::snprintf(start, sizeof(start), "trace id %08" PRIx32 " %s %s %s", be32(trace, NFTA_TRACE_ID),
                      family_name(head.nfgen_family), text(trace, NFTA_TRACE_TABLE).c_str(),
                      text(trace, NFTA_TRACE_CHAIN).c_str());
        std::uint64_t handle = 0;
        if (auto found = trace.find(NFTA_TRACE_RULE_HANDLE); found != trace.end())
            std::memcpy(&handle, found->second.first, sizeof(handle));
        if (trace.count(NFTA_TRACE_NETWORK_HEADER) || trace.count(NFTA_TRACE_IIF) || trace.count(NFTA_TRACE_OIF))
            std::fprintf(file_, "%s packet: %s\n", start, packet_text(trace).c_str());
        switch (be32(trace, NFTA_TRACE_TYPE)) {
        case NFT_TRACETYPE_RULE:
            if (handle == 0) // the mark at the end of a chain, which is no rule
                break;
            std::fprintf(file_, "%s rule # handle %" PRIu64 " (verdict %s)\n", start, be64toh(handle),
                         verdict_text(trace).c_str());
            break;
        case NFT_TRACETYPE_POLICY:
            std::fprintf(file_, "%s policy %s\n", start, be32(trace, NFTA_TRACE_POLICY) == NF_DROP ? "drop" : "accept");
            break;
        case NFT_TRACETYPE_RETURN:
            std::fprintf(file_, "%s verdict %s\n", start, verdict_text(trace).c_str());
            break;
        default:
            break;
        }
    }

    std::FILE* file_ = nullptr;
    int socket_ = -1;
};

// ---- tsdroptrace's lines ----

class Lines {
public:
    explicit Lines(const char* path) : file_(path, std::ios::binary | std::ios::ate) {
        if (!file_)
            fail(path);
    }

    // The whole lines that have come since the last time it was asked.
    std::vector<std::string> read() {
        file_.clear();
        rest_.append(std::istreambuf_iterator<char>(file_), {});
        std::vector<std::string> lines;
        for (std::size_t end; (end = rest_.find('\n')) != std::string::npos; rest_.erase(0, end + 1))
            lines.push_back(rest_.substr(0, end));
        return lines;
    }

private:
    std::ifstream file_;
    std::string rest_;
};

bool holds(const std::string& line, const char* text) {
    return line.find(text) != std::string::npos;
}

// How tsdroptrace writes the packet's ports, or whom it asks for.
std::string ports_text(const Packet& packet) {
    if (is_arp(packet))
        return "\"dst\":\"" + address(AF_INET, packet.bytes.data() + 24) + "\",";
    const std::uint8_t* ports = packet.bytes.data() + (packet.bytes[0] >> 4 == 4 ? 20 : 40);
    return "\"dport\":" + std::to_string(be16(ports + 2)) + ",";
}

void wait_until_read(const Sender& sender, const Packet& packet, Lines& lines) {
    std::string wanted = ports_text(packet);
    // The other family's packet has the same ports, and a second line of it may still be to come.
    const char* family = is_arp(packet)              ? "\"family\":\"other\""
                         : packet.bytes[0] >> 4 == 4 ? "\"family\":\"ipv4\""
                                                     : "\"family\":\"ipv6\"";
    for (std::uint64_t end = now() + 30'000'000'000; now() < end;) {
        sender.send(packet);
        for (int wait = 0; wait < 20; wait++) {
            pause_ms(10);
            bool seen = false;
            for (const std::string& line : lines.read()) {
                if (!holds(line, wanted.c_str()) || !holds(line, family))
                    continue;
                seen = true;
                if (holds(line, "\"stale\":false") &&
                    (!holds(line, "\"text\":null") || holds(line, "\"kind\":\"policy\"")))
                    return;
            }
            if (seen)
                break;
        }
    }
    std::fprintf(stderr, "tsdroptrace did not read the rules: waited in vain for %s\n", wanted.c_str());
}

pid_t send_all(const Sender& sender, const std::vector<Packet>& packets, int cpu, long pause) {
    std::fflush(nullptr);
    pid_t pid = fork();
    if (pid < 0)
        fail("fork");
    if (pid > 0)
        return pid;
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(static_cast<unsigned>(cpu), &set);
    sched_setaffinity(0, sizeof(set), &set);
    for (std::size_t i = 0; i + 1 < packets.size(); i++)
        if (packets[i].cpu == cpu && !packets[i].prime) {
            sender.send(packets[i]);
            if (pause > 0)
                pause_ms(pause);
        }
    _exit(0);
}

// ---- counters of rules that no trace tells of ----

template <typename T>
void ask(int socket, int option, T* answer, std::size_t size) {
    auto length = static_cast<socklen_t>(size);
    if (getsockopt(socket, IPPROTO_IP, option, answer, &length) < 0)
        fail("getsockopt");
}

void print_arp_counters(int socket, const std::string& table) {
    arpt_getinfo info{};
    table.copy(info.name, sizeof(info.name) - 1);
    ask(socket, ARPT_SO_GET_INFO, &info, sizeof(info));
    std::vector<std::uint64_t> buffer((sizeof(arpt_get_entries) + info.size) / 8 + 1);
    auto* entries = reinterpret_cast<arpt_get_entries*>(buffer.data());
    table.copy(entries->name, sizeof(entries->name) - 1);
    entries->size = info.size;
    ask(socket, ARPT_SO_GET_ENTRIES, entries, sizeof(*entries) + info.size);
    for (unsigned at = 0; at < info.size;) {
        auto* entry = reinterpret_cast<const arpt_entry*>(reinterpret_cast<const char*>(entries->entrytable) + at);
        auto* target = reinterpret_cast<const char*>(entry) + entry->target_offset;
        if (std::strcmp(reinterpret_cast<const xt_entry_target*>(target)->u.user.name, XT_ERROR_TARGET) == 0)
            std::printf(" @%s", target + sizeof(xt_entry_target));
        else
            std::printf(" %" PRIu64, static_cast<std::uint64_t>(entry->counters.pcnt));
        at += entry->next_offset;
    }
}

void print_bridge_counters(int socket, const std::string& table) {
    ebt_replace info{};
    table.copy(info.name, sizeof(info.name) - 1);
    ask(socket, EBT_SO_GET_INFO, &info, sizeof(info));
    std::vector<char> entries(info.entries_size);
    std::vector<ebt_counter> counters(info.nentries);
    info.entries = entries.data();
    info.num_counters = info.nentries;
    info.counters = counters.data();
    // The kernel wants the length of all three together.
    ask(socket, EBT_SO_GET_ENTRIES, &info, sizeof(info) + entries.size() + counters.size() * sizeof(ebt_counter));
    for (const ebt_counter& counter : counters)
        std::printf(" %" PRIu64, static_cast<std::uint64_t>(counter.pcnt));
}

class Counters {
public:
    explicit Counters(const char* tables) : socket_(socket(AF_INET, SOCK_RAW, IPPROTO_RAW)) {
        std::istringstream list(tables);
        for (std::string table; std::getline(list, table, ',');)
            tables_.emplace_back(table.substr(0, table.find(':')), table.substr(table.find(':') + 1));
    }

    void print() const {
        for (const auto& [family, table] : tables_) {
            std::printf("counters %s %s", family.c_str(), table.c_str());
            family == "arp" ? print_arp_counters(socket_, table) : print_bridge_counters(socket_, table);
            std::printf("\n");
        }
    }

private:
    int socket_;
    std::vector<std::pair<std::string, std::string>> tables_;
};

void send_one_by_one(const Sender& sender, const std::vector<Packet>& packets, long pause, const char* tables) {
    Counters counters(tables);
    counters.print();
    for (std::size_t i = 0; i + 1 < packets.size(); i++) {
        if (packets[i].prime)
            continue;
        std::printf("packet %" PRIu64 "\n", now());
        sender.send(packets[i]);
        pause_ms(pause);
        counters.print();
    }
}

} // namespace

int main(int argc, char** argv) {
    if (argc < 4 || argc > 6) {
        std::fprintf(stderr, "usage: oracle-agent PACKETS JSON TRACE [PAUSE [TABLES]]\n");
        return 2;
    }
    long pause = argc > 4 ? std::atol(argv[4]) : 0;
    const char* tables = argc > 5 ? argv[5] : nullptr;
    std::vector<Packet> packets = read_packets(argv[1]);
    Sender sender;
    Lines lines(argv[2]);
    Trace trace(argv[3]);

    std::map<int, pid_t> senders;
    std::size_t to_send = 0;
    for (std::size_t i = 0; i + 1 < packets.size(); i++)
        if (packets[i].prime)
            wait_until_read(sender, packets[i], lines);
        else {
            if (!tables)
                senders[packets[i].cpu] = 0;
            to_send++;
        }
    trace.restart();
    if (packets.front().prime)
        std::printf("primed\n");
    std::printf("begin %" PRIu64 "\n", now());
    if (tables)
        send_one_by_one(sender, packets, pause, tables);
    for (auto& [cpu, pid] : senders) {
        pid = send_all(sender, packets, cpu, pause);
        std::printf("sender %d %d\n", static_cast<int>(pid), cpu);
    }
    for (std::size_t running = senders.size(); running > 0;) {
        trace.drain();
        int status = 0;
        if (waitpid(-1, &status, WNOHANG) > 0) {
            if (status != 0)
                return 1;
            running--;
        } else {
            pause_ms(5);
        }
    }
    std::printf("sent %zu\n", to_send);
    // What the packets have led to (answers, errors) may still be waiting for a softirq.
    for (int wait = 0; wait < 15; wait++) {
        pause_ms(10);
        trace.drain();
    }
    const Packet& last = packets.back();
    sender.send(last);
    std::string wanted = ports_text(last);
    bool caught_up = false;
    for (std::uint64_t end = now() + 30'000'000'000; !caught_up && now() < end; pause_ms(10)) {
        trace.drain();
        for (const std::string& line : lines.read())
            caught_up = caught_up || holds(line, wanted.c_str());
    }
    std::printf("end %" PRIu64 "\n", now());
    trace.finish();
    if (!caught_up)
        std::fprintf(stderr, "waited in vain for %s\n", wanted.c_str());
    return caught_up ? 0 : 1;
}
