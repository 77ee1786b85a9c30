// SPDX-License-Identifier: GPL-2.0-only
#include "decode/decode.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include <arpa/inet.h>

#include "catch.h"

using namespace tsdroptrace;
using namespace tsdroptrace::decode;

namespace {

template <std::size_t N>
void set(char (&target)[N], std::string_view text) {
    std::memset(target, 0, N);
    std::memcpy(target, text.data(), std::min(N, text.size()));
}

// The answer of the cloud's name server that Tailscale's rule drops, with the reason numbers of Linux 6.8.
tsdt_drop dns_answer() {
    tsdt_drop record{};
    record.key.netns = 4026531840;
    record.key.reason = 8;
    record.key.source = TSDT_SOURCE_LEGACY_RULE;
    record.key.hook = 1;
    record.key.pf = 2;
    record.mono_ns = 5'000'000'042;
    record.cpu = 3;
    record.cause_id = 7;
    record.family = 4;
    record.proto = 17;
    inet_pton(AF_INET, "100.100.2.136", record.saddr);
    inet_pton(AF_INET, "172.16.0.5", record.daddr);
    record.sport = htons(53);
    record.dport = htons(40123);
    record.has_ports = record.has_l4 = record.from_range = record.received = 1;
    record.length = 120;
    record.ttl = 64;
    record.ctinfo = 3;
    record.ethertype = 0x0800;
    set(record.in_dev, "eth0");
    return record;
}

tsdt_cause cause_of(const tsdt_drop& record) {
    tsdt_cause cause{};
    cause.key = record.key;
    cause.id = record.cause_id;
    cause.first_ns = 4'000'000'000;
    cause.last_ns = 6'000'000'000;
    set(cause.location, "nf_hook_slow+0x93/0x110");
    return cause;
}

const Machine machine = {{{{2, "NOT_SPECIFIED"}, {8, "NETFILTER_DROP"}}},
                         1'700'000'000'000'000'000,
                         4026531840,
                         {{4026532500, "blue"}},
                         "h",
                         "6.8",
                         "0"};

Drop decoded(const tsdt_drop& record) {
    return decode_drop(record, cause_of(record), machine);
}

template <typename Record>
std::span<const std::byte> bytes(const Record& record) {
    return std::as_bytes(std::span(&record, 1));
}

} // namespace

TEST_CASE("decode: an ICMP error carries the packet that it is about") {
    auto record = dns_answer();
    record.proto = 1;
    record.has_ports = 0;
    record.icmp_type = 3;
    record.quoted.family = 4;
    record.quoted.proto = 17;
    inet_pton(AF_INET, "172.16.0.5", record.quoted.saddr);
    inet_pton(AF_INET, "100.100.2.136", record.quoted.daddr);
    record.quoted.sport = htons(40123);
    record.quoted.dport = htons(53);
    record.quoted.has_ports = 1;
    const auto packet = decoded(record).packet;
    REQUIRE(packet.quoted);
    CHECK(packet.quoted->proto == 17);
    CHECK(packet.quoted->src.text() == "172.16.0.5");
    CHECK(packet.quoted->dst.text() == "100.100.2.136");
    CHECK(packet.quoted->sport == 40123);
    CHECK(packet.quoted->dport == 53);
    CHECK_FALSE(packet.sport);

    record.quoted.has_ports = 0; // a later fragment is quoted: 0 is no port
    CHECK_FALSE(decoded(record).packet.quoted->sport);
    CHECK_FALSE(decoded(dns_answer()).packet.quoted);
}

TEST_CASE("decode: why a packet has no ports") {
    auto record = dns_answer();
    CHECK(decoded(record).packet.no_ports == NoPorts::none);
    record.has_ports = 0;
    record.no_ports = TSDT_NO_PORTS_FRAGMENT;
    CHECK(decoded(record).packet.no_ports == NoPorts::fragment);
    record.no_ports = TSDT_NO_PORTS_UNREAD;
    CHECK(decoded(record).packet.no_ports == NoPorts::unread);
    CHECK_FALSE(decoded(record).packet.sport);
}

TEST_CASE("decode: reasons by name, as people type them") {
    const KernelNames names = {{{3, "NO_SOCKET"}, {8, "NETFILTER_DROP"}, {9, "SOCKET_FILTER"}, {0x20001, "NO_SOCKET"}}};
    CHECK(*reason_codes({"NETFILTER_DROP", "SKB_DROP_REASON_SOCKET_FILTER"}, names) ==
          std::vector<std::uint32_t>{8, 9});
    CHECK(*reason_codes({"no_socket"}, names) == std::vector<std::uint32_t>{3, 0x20001}); // a module's as well
    CHECK(reason_codes({}, names)->empty());
    CHECK(reason_codes({}, {})->empty());
    // What a queue refuses: the kernel's one word for all of them, and each by its own.
    const KernelNames of_queues = {{{67, "QDISC_DROP"},
                                    {68, "QDISC_DROP_OF_THE_CORE"},
                                    {0x30000, "__QDISC_DROP_REASON"},
                                    {0x30001, "QDISC_DROP_GENERIC"},
                                    {0x30002, "QDISC_DROP_OVERLIMIT"}}};
    CHECK(*reason_codes({"QDISC_DROP"}, of_queues) == std::vector<std::uint32_t>{67, 0x30001, 0x30002});
    CHECK(*reason_codes({"qdisc_drop_overlimit"}, of_queues) == std::vector<std::uint32_t>{0x30002});

    const auto refused = [&](const std::string& name) {
        const auto codes = reason_codes({"NO_SOCKET", name}, names);
        REQUIRE_FALSE(codes);
        CHECK(codes.error().kind == ErrorKind::command_line);
        return codes.error().message;
    };
    CHECK(refused("NETFILTER_DORP") ==
          "--reason NETFILTER_DORP: this kernel has no such drop reason: did you mean NETFILTER_DROP?");
    CHECK(refused("socket").find("did you mean NO_SOCKET, NO_SOCKET or SOCKET_FILTER?") == std::string::npos);
    CHECK(refused("socket").find("did you mean NO_SOCKET or SOCKET_FILTER?") != std::string::npos);
    CHECK(refused("SOMETHING_ELSE_ALTOGETHER").find("expected one such as NETFILTER_DROP") != std::string::npos);
    CHECK(reason_codes({"NO_SOCKET"}, {}).error().kind == ErrorKind::unsupported);
}

TEST_CASE("decode: the answer of a name server that a legacy rule drops") {
    const auto record = read_drop(bytes(dns_answer()));
    REQUIRE(record);
    const Drop drop = decoded(*record);
    CHECK(drop.time_ns == 1'700'000'005'000'000'042);
    CHECK(drop.mono_ns == 5'000'000'042);
    CHECK(drop.cpu == 3);
    CHECK(drop.cause_id == 7);
    CHECK(drop.netns.inode == 4026531840);
    CHECK(drop.netns.initial);
    CHECK_FALSE(drop.netns.name);
    CHECK(drop.packet.family == IpFamily::ipv4);
    CHECK(drop.packet.src.text() == "100.100.2.136");
    CHECK(drop.packet.dst.text() == "172.16.0.5");
    CHECK(drop.packet.sport == 53);
    CHECK(drop.packet.dport == 40123);
    CHECK(drop.packet.proto == 17);
    CHECK(drop.packet.length == 120);
    CHECK(drop.packet.ttl == 64);
    CHECK(drop.packet.ethertype == 0x0800);
    CHECK_FALSE(drop.packet.tcp_flags);
    CHECK_FALSE(drop.packet.icmp_type);
    CHECK(drop.packet.ctinfo == 3);
    CHECK(drop.packet.received);
    CHECK(drop.packet.direction == Direction::from);
    CHECK(drop.packet.in_dev == "eth0");
    CHECK_FALSE(drop.packet.out_dev);
    CHECK(drop.site.kind == DropKind::rule);
    CHECK(drop.site.reason == "NETFILTER_DROP");
    CHECK(drop.site.reason_code == 8);
    CHECK(drop.site.location == "nf_hook_slow+0x93/0x110");
    CHECK(drop.site.hook == Hook::input);
    CHECK(drop.site.unknown.empty());
    CHECK_FALSE(drop.process);
    CHECK_FALSE(drop.rule);
}

TEST_CASE("decode: records of another size are errors") {
    const std::vector<std::byte> large(sizeof(tsdt_cause) + 1);
    for (std::size_t size = 0; size <= sizeof(tsdt_drop) + 8; ++size) {
        CHECK(bool(read_drop(std::span(large).first(size))) == (size == sizeof(tsdt_drop)));
    }
    CHECK_FALSE(read_cause(std::span(large).first(sizeof(tsdt_cause) - 1)));
    CHECK_FALSE(read_cause(large));
    CHECK(read_drop({}).error().message == "a record of a dropped packet has 0 bytes: expected 248");
}

TEST_CASE("decode: who changed a ruleset") {
    tsdt_ruleset_change record{};
    record.netns = 4026531840;
    record.pid = 900;
    record.parent_pid = 812;
    record.ruleset = TSDT_RULESET_IP6_TABLES;
    set(record.comm, "ip6tables-legacy"); // 16 bytes: fills the array
    set(record.parent_comm, "tailscaled");
    const auto read = read_ruleset_change(bytes(record));
    REQUIRE(read);
    const Changer changer = decode_changer(*read);
    CHECK(changer.process.pid == 900);
    CHECK(changer.process.comm == "ip6tables-legacy");
    REQUIRE(changer.parent);
    CHECK(changer.parent->pid == 812);
    CHECK(changer.parent->comm == "tailscaled");
    CHECK(changer.changes == 1);

    record.parent_pid = 0;
    CHECK_FALSE(decode_changer(record).parent);
    record.ruleset = TSDT_RULESET_MAX;
    CHECK(read_ruleset_change(bytes(record)).error().message ==
          "a record of a changed ruleset is inconsistent: the kind of its ruleset is 6");
    const std::vector<std::byte> large(sizeof(record) + 1);
    for (std::size_t size = 0; size <= large.size(); ++size)
        CHECK(bool(read_ruleset_change(std::span(large).first(size))) == (size == sizeof(record)));
}

TEST_CASE("decode: records that contradict themselves are errors") {
    const auto spoiled = [](auto change) {
        tsdt_drop record = dns_answer();
        change(record);
        return bool(read_drop(bytes(record)));
    };
    CHECK(spoiled([](auto&) {}));
    CHECK_FALSE(spoiled([](auto& r) { r.family = 5; }));
    CHECK_FALSE(spoiled([](auto& r) { r.key.source = TSDT_SOURCE_HOOK_FUNCTION + 1; }));
    CHECK_FALSE(spoiled([](auto& r) { r.key.unknown = TSDT_UNKNOWN_MANY_POLICIES + 1; }));
    CHECK_FALSE(spoiled([](auto& r) { r.key.queue = 7; })); // a number, and nothing became of it
    CHECK_FALSE(spoiled([](auto& r) { r.key.queue = TSDT_QUEUE_WHY | TSDT_QUEUE_NUMBERED | 7; }));
    CHECK_FALSE(spoiled([](auto& r) { r.has_ports = 2; }));
    CHECK_FALSE(spoiled([](auto& r) { r.to_range = 0xff; }));
    CHECK_FALSE(spoiled([](auto& r) { r.no_ports = 3; }));
    CHECK_FALSE(spoiled([](auto& r) { r.quoted.family = 5; }));
    CHECK_FALSE(spoiled([](auto& r) { r.quoted.has_ports = 2; }));
    CHECK_FALSE(spoiled([](auto& r) { r.quoted.no_ports = 3; }));

    tsdt_cause cause = cause_of(dns_answer());
    CHECK(read_cause(bytes(cause)));
    cause.steps = TSDT_PATH_MAX + 1;
    CHECK_FALSE(read_cause(bytes(cause)));
    cause.steps = TSDT_PATH_MAX;
    cause.id = 0;
    CHECK_FALSE(read_cause(bytes(cause)));
}

TEST_CASE("decode: a packet that may have waited is not said to be of the process that is at work when it dies") {
    const auto has_sender = [](const std::string& reason, const char* location, std::uint8_t source) {
        tsdt_drop record = dns_answer();
        record.received = 0;
        record.pid = 4711;
        set(record.comm, "iperf");
        record.key.source = source;
        record.key.reason = 9;
        tsdt_cause cause = cause_of(record);
        std::memset(cause.location, 0, sizeof cause.location);
        std::strcpy(cause.location, location);
        Machine of_reason = machine;
        of_reason.names.reasons[9] = reason;
        return decode_drop(record, cause, of_reason).process.has_value();
    };
    CHECK(has_sender("IP_OUTNOROUTES", "ip_output+0x1/0x2", TSDT_SOURCE_KERNEL));
    CHECK(has_sender("NETFILTER_DROP", "nf_hook_slow+0x1/0x2", TSDT_SOURCE_NETFILTER));
    CHECK_FALSE(
        has_sender("QDISC_DROP", "__dev_queue_xmit+0x1/0x2", TSDT_SOURCE_KERNEL)); // fq_codel: of the fattest flow
    CHECK_FALSE(has_sender("QDISC_DROP_OVERLIMIT", "__dev_queue_xmit+0x1/0x2", TSDT_SOURCE_KERNEL));
    CHECK_FALSE(has_sender("NEIGH_QUEUEFULL", "__neigh_event_send+0x1/0x2", TSDT_SOURCE_KERNEL)); // the oldest
    CHECK_FALSE(has_sender("FULL_RING", "tun_net_xmit+0x1/0x2 [tun]", TSDT_SOURCE_KERNEL));
    // ip link set down
    CHECK_FALSE(has_sender("NOT_SPECIFIED", "__rtnl_unlock+0x1/0x2", TSDT_SOURCE_KERNEL));
    CHECK_FALSE(has_sender("QUEUE_PURGE", "qdisc_reset+0x1/0x2", TSDT_SOURCE_KERNEL));
    CHECK_FALSE(has_sender("NOT_SPECIFIED", "pfifo_fast_reset+0x1/0x2", TSDT_SOURCE_KERNEL));
    // 5.10
    CHECK_FALSE(has_sender("NOT_SPECIFIED", "kfree_skb_list+0x1/0x2", TSDT_SOURCE_KERNEL));
    CHECK_FALSE(has_sender("NOT_SPECIFIED", "__neigh_event_send+0x1/0x2", TSDT_SOURCE_KERNEL));
    CHECK(has_sender("NEIGH_FAILED", "__neigh_event_send+0x1/0x2", TSDT_SOURCE_KERNEL)); // its own
}

TEST_CASE("decode: text need not be NUL-terminated") {
    tsdt_drop record = dns_answer();
    record.pid = 4711;
    set(record.comm, "sixteen-letters!");
    set(record.in_dev, "interface-of-16b");
    tsdt_cause cause = cause_of(record);
    std::memset(cause.location, 'x', sizeof cause.location);
    const Drop drop = decode_drop(record, cause, machine);
    REQUIRE(drop.process);
    CHECK(drop.process->pid == 4711);
    CHECK(drop.process->comm == "sixteen-letters!");
    CHECK(drop.packet.in_dev == "interface-of-16b");
    CHECK(drop.site.location == std::string(96, 'x'));
}

TEST_CASE("decode: hooks by family, as netfilter numbers them") {
    const auto hook = [](std::uint8_t pf, std::uint8_t number) {
        tsdt_drop record = dns_answer();
        record.key.pf = pf;
        record.key.hook = number;
        return decoded(record).site.hook;
    };
    for (const std::uint8_t pf : {1, 2, 7, 10}) { // inet, ip, bridge, ip6
        CHECK(hook(pf, 0) == Hook::prerouting);
        CHECK(hook(pf, 1) == Hook::input);
        CHECK(hook(pf, 2) == Hook::forward);
        CHECK(hook(pf, 3) == Hook::output);
        CHECK(hook(pf, 4) == Hook::postrouting);
        CHECK_FALSE(hook(pf, 0xff));
    }
    CHECK(hook(1, 5) == Hook::ingress);
    CHECK(hook(3, 0) == Hook::input);
    CHECK(hook(3, 1) == Hook::output);
    CHECK(hook(3, 2) == Hook::forward);
    CHECK(hook(5, 0) == Hook::ingress);
    CHECK(hook(2, 5) == Hook::ingress); // of an inet chain
    CHECK(hook(10, 5) == Hook::ingress);
    CHECK_FALSE(hook(2, 6));
    CHECK_FALSE(hook(7, 5));
    CHECK(hook(5, 1) == Hook::egress);
    CHECK_FALSE(hook(5, 2));
    CHECK_FALSE(hook(0, 1)); // the family is not known
    CHECK_FALSE(hook(12, 0));
}

TEST_CASE("decode: sources become kinds, and only a hook says why no rule is known") {
    const auto site = [](std::uint8_t source, std::uint8_t unknown) {
        tsdt_drop record = dns_answer();
        record.key.source = source;
        record.key.unknown = unknown;
        return decoded(record).site;
    };
    CHECK(site(TSDT_SOURCE_KERNEL, 0).kind == DropKind::kernel);
    CHECK(site(TSDT_SOURCE_NETFILTER, 1).kind == DropKind::hook);
    CHECK(site(TSDT_SOURCE_NFT_RULE, 0).kind == DropKind::rule);
    CHECK(site(TSDT_SOURCE_NFT_POLICY, 0).kind == DropKind::policy);
    CHECK(site(TSDT_SOURCE_LEGACY_RULE, 0).kind == DropKind::rule);
    CHECK(site(TSDT_SOURCE_LEGACY_POLICY, 0).kind == DropKind::policy);
    CHECK(site(TSDT_SOURCE_HOOK_FUNCTION, 0).kind == DropKind::hook);
    CHECK(site(TSDT_SOURCE_KERNEL, TSDT_UNKNOWN_NOT_TRACED).unknown.empty());
    std::vector<std::string> sentences;
    for (std::uint8_t unknown = 0; unknown <= TSDT_UNKNOWN_MANY_POLICIES; ++unknown) {
        sentences.push_back(site(TSDT_SOURCE_NETFILTER, unknown).unknown);
        CHECK_FALSE(sentences.back().empty());
        CHECK(sentences.back().back() != '.');
        CHECK(std::count(sentences.begin(), sentences.end(), sentences.back()) == 1);
    }
    CHECK(sentences[TSDT_UNKNOWN_NO_COUNTER].find("extension target") != std::string::npos);
    CHECK(sentences[TSDT_UNKNOWN_NOT_SEEN].find("probe the kernel skipped") != std::string::npos);
}

TEST_CASE("decode: a function at a hook has a name, a module, and perhaps a BPF program") {
    tsdt_cause cause{};
    cause.id = 1;
    cause.key.source = TSDT_SOURCE_HOOK_FUNCTION;
    cause.steps = 1;
    std::strcpy(cause.step[0].chain, "ipv4_conntrack_in+0x0/0x20 [nf_conntrack]");
    DropSite site = decode_cause(cause, {}).site;
    REQUIRE(site.hook_function);
    CHECK(site.unknown.empty());
    CHECK(site.hook_function->name == "ipv4_conntrack_in");
    CHECK(site.hook_function->module == "nf_conntrack");
    CHECK(site.hook_function->text() == "ipv4_conntrack_in [nf_conntrack]");
    CHECK_FALSE(site.hook_function->program_id);

    std::strcpy(cause.step[0].chain, "nf_hook_run_bpf+0x0/0xb0");
    std::strcpy(cause.table, "drops_all");
    cause.key.offset = 12;
    site = decode_cause(cause, {}).site;
    CHECK_FALSE(site.hook_function->module);
    CHECK(site.hook_function->text() == "nf_hook_run_bpf (BPF program 12, drops_all)");
    std::memset(cause.step[0].chain, 'x', sizeof(cause.step[0].chain)); // cut, without its end
    CHECK(decode_cause(cause, {}).site.hook_function->name == std::string(TSDT_NAME_LEN, 'x'));
}

TEST_CASE("decode: before the function is known, those that may have dropped the packet are") {
    tsdt_cause cause{};
    cause.key.source = TSDT_SOURCE_NETFILTER;
    cause.key.unknown = TSDT_UNKNOWN_NOT_TRACED;
    CHECK_FALSE(suspects(cause));
    CHECK(decode_cause(cause, {}).site.unknown.find("hook function") != std::string::npos);
    cause.steps = 2;
    std::strcpy(cause.step[0].chain, "ipv4_conntrack_defrag+0x0/0xa0 [nf_defrag_ipv4]");
    std::strcpy(cause.step[1].chain, "ipv4_conntrack_in+0x0/0x20 [nf_conntrack]");
    REQUIRE(suspects(cause));
    CHECK(suspects(cause)->kind == Suspects::Kind::hook_functions);
    CHECK(suspects(cause)->functions.size() == 2);
    const DropSite site = decode_cause(cause, {}).site;
    CHECK_FALSE(site.hook_function);
    CHECK(site.unknown.ends_with("ipv4_conntrack_defrag [nf_defrag_ipv4], ipv4_conntrack_in [nf_conntrack]"));
    cause.key.unknown = TSDT_UNKNOWN_NOT_SEEN; // kprobes
    REQUIRE(suspects(cause));
    CHECK(suspects(cause)->kind == Suspects::Kind::hook_functions);
    CHECK(decode_cause(cause, {}).site.unknown.starts_with(site.unknown));
    CHECK(decode_cause(cause, {}).site.unknown.find("probe the kernel skipped") != std::string::npos);
    cause.steps = 60000; // read_cause refuses it, and nothing is read past the end here either
    CHECK(suspects(cause)->functions.size() == TSDT_PATH_MAX);
    cause.key.unknown = TSDT_UNKNOWN_NO_BASELINE; // a table: what its steps hold is something else
    CHECK_FALSE(suspects(cause));
    cause.key.unknown = TSDT_UNKNOWN_NO_COUNTER;
    cause.key.source = TSDT_SOURCE_LEGACY_RULE;
    CHECK_FALSE(suspects(cause));
}

TEST_CASE("decode: matches that may have dropped the packet by themselves are suspects, no more") {
    tsdt_cause cause{};
    cause.key.source = TSDT_SOURCE_NETFILTER;
    cause.key.unknown = TSDT_UNKNOWN_NO_COUNTER;
    cause.steps = 2;
    std::strcpy(cause.step[0].chain, "udp_mt+0x0/0xd0 [xt_tcpudp]");
    std::strcpy(cause.step[1].chain, "hashlimit_mt+0x0/0x90 [xt_hashlimit]");
    REQUIRE(suspects(cause));
    CHECK(suspects(cause)->kind == Suspects::Kind::legacy_matches);
    CHECK(suspects(cause)->functions.back().module == "xt_hashlimit");
    DropSite site = decode_cause(cause, {}).site;
    CHECK(site.unknown.find("perhaps") != std::string::npos);
    CHECK(site.unknown.ends_with("udp_mt [xt_tcpudp], hashlimit_mt [xt_hashlimit]"));
    CHECK_FALSE(site.hook_function);

    cause.key.unknown = TSDT_UNKNOWN_EXPRESSION;
    cause.steps = 1;
    CHECK(suspects(cause)->kind == Suspects::Kind::nft_matches);
    site = decode_cause(cause, {}).site;
    CHECK(site.unknown.find("either the policy") != std::string::npos);
    CHECK(site.unknown.ends_with("such as udp_mt [xt_tcpudp]"));
}

TEST_CASE("decode: ARP has addresses, and is no IP packet") {
    tsdt_drop record = dns_answer();
    record.family = 0;
    record.ethertype = 0x0806;
    CHECK(decoded(record).packet.src.text().empty());
    record.is_arp = 1;
    const Packet packet = decoded(record).packet;
    CHECK(packet.family == IpFamily::other);
    CHECK(packet.src.text() == "100.100.2.136");
    CHECK(packet.dst.text() == "172.16.0.5");
}

TEST_CASE("decode: queues, and whose word it was") {
    tsdt_drop record = dns_answer();
    record.key.source = TSDT_SOURCE_NETFILTER;
    record.key.unknown = TSDT_UNKNOWN_QUEUE;
    record.key.queue = TSDT_QUEUE_VERDICT | TSDT_QUEUE_NUMBERED | 5;
    record.pid = 321;
    std::strcpy(record.comm, "suricata");
    Drop drop = decoded(record);
    REQUIRE(drop.site.queue);
    CHECK(drop.site.queue->number == 5);
    CHECK(drop.site.queue->fate == QueueFate::verdict);
    REQUIRE(drop.site.queue->process);
    CHECK(drop.site.queue->process->pid == 321);
    CHECK_FALSE(drop.process); // it did not send the packet
    CHECK(drop.site.unknown == "the program that listens on queue 5 dropped it: suricata (pid 321)");

    record.key.queue = TSDT_QUEUE_NOBODY | TSDT_QUEUE_NUMBERED | 0;
    drop = decoded(record);
    CHECK(drop.site.queue->number == 0);
    CHECK(drop.site.unknown == "it was handed to queue 0, and no program listens there");
    CHECK(drop.process); // and here that process is the sender

    record.key.queue = TSDT_QUEUE_CLOSED;
    CHECK_FALSE(decoded(record).site.queue->number);

    record.key.source = TSDT_SOURCE_NFT_RULE; // the rule is known: nothing is unknown
    record.key.queue = TSDT_QUEUE_FULL | TSDT_QUEUE_NUMBERED | 65535;
    drop = decoded(record);
    CHECK(drop.site.kind == DropKind::rule);
    CHECK(drop.site.unknown.empty());
    CHECK(drop.site.queue->number == 65535);
    CHECK(drop.site.queue->fate == QueueFate::full);
}

TEST_CASE("decode: reasons have the running kernel's names") {
    const auto reason = [](std::uint32_t code, const KernelNames& names) {
        tsdt_drop record = dns_answer();
        record.key.reason = code;
        return decode_drop(record, cause_of(record), Machine{names, 0, 0, {}, "", "", ""}).site.reason;
    };
    CHECK(reason(8, machine.names) == "NETFILTER_DROP");
    CHECK(reason(77, machine.names) == "77");
    CHECK(reason(0x10001, machine.names) == "65537"); // a subsystem's own
    CHECK(reason(0, machine.names) == "0");
    CHECK(reason(0, {}) == "NOT_SPECIFIED"); // 5.10 has none
    CHECK(reason(5, {}) == "5");
}

TEST_CASE("decode: direction") {
    const auto direction = [](bool to, bool from, bool received) {
        tsdt_drop record = dns_answer();
        record.to_range = to;
        record.from_range = from;
        record.received = received;
        return decoded(record).packet.direction;
    };
    CHECK(direction(true, false, true) == Direction::to);
    CHECK(direction(false, true, false) == Direction::from);
    CHECK(direction(true, true, true) == Direction::to);
    CHECK(direction(false, false, true) == Direction::from); // --all
    CHECK(direction(false, false, false) == Direction::to);
}

TEST_CASE("decode: layer 4 only where it was read") {
    tsdt_drop record = dns_answer();
    record.tcp_flags = 0x12; // SYN, ACK
    record.icmp_type = 3;
    record.icmp_code = 13;

    record.proto = 6;
    CHECK(decoded(record).packet.tcp_flags == 0x12);
    CHECK_FALSE(decoded(record).packet.icmp_type);
    record.has_l4 = 0;
    record.has_ports = 0; // a later fragment
    CHECK_FALSE(decoded(record).packet.tcp_flags);
    CHECK_FALSE(decoded(record).packet.sport);
    CHECK_FALSE(decoded(record).packet.dport);

    for (const std::uint8_t proto : {1, 58}) {
        record.proto = proto;
        record.has_l4 = 1;
        CHECK(decoded(record).packet.icmp_type == 3);
        CHECK(decoded(record).packet.icmp_code == 13);
        CHECK_FALSE(decoded(record).packet.tcp_flags);
        record.has_l4 = 0;
        CHECK_FALSE(decoded(record).packet.icmp_type);
    }
}

TEST_CASE("decode: IPv6, other families, namespaces and conntrack") {
    tsdt_drop record = dns_answer();
    record.family = 6;
    inet_pton(AF_INET6, "fd7a:115c:a1e0::53", record.saddr);
    record.key.netns = 4026532500;
    record.ctinfo = 7; // IP_CT_UNTRACKED
    Drop drop = decoded(record);
    CHECK(drop.packet.family == IpFamily::ipv6);
    CHECK(drop.packet.src.text() == "fd7a:115c:a1e0::53");
    CHECK(drop.netns.name == "blue");
    CHECK_FALSE(drop.netns.initial);
    CHECK_FALSE(drop.packet.ctinfo);

    record.family = 0;
    record.ethertype = 0x0806;
    record.ctinfo = 0xff;
    drop = decoded(record);
    CHECK(drop.packet.family == IpFamily::other);
    CHECK(drop.packet.src.text().empty());
    CHECK(drop.packet.ethertype == 0x0806);
    CHECK_FALSE(drop.packet.ctinfo);
}

TEST_CASE("decode: a cause of which no packet was seen") {
    const Drop drop = decode_cause(cause_of(dns_answer()), machine);
    CHECK(drop.packet.family == IpFamily::other);
    CHECK_FALSE(drop.packet.sport);
    CHECK(drop.cause_id == 7);
    CHECK(drop.mono_ns == 6'000'000'000);
    CHECK(drop.time_ns == 1'700'000'006'000'000'000);
    CHECK(drop.site.kind == DropKind::rule);
    CHECK(drop.site.hook == Hook::input);
    CHECK(drop.site.reason == "NETFILTER_DROP");
    CHECK(drop.netns.initial);
}

TEST_CASE("decode: a location without a symbol is its address") {
    tsdt_cause cause = cause_of(dns_answer());
    cause.location[0] = '\0';
    cause.key.location = 0xffffffff81a2b3c4;
    CHECK(decode_cause(cause, machine).site.location == "0xffffffff81a2b3c4");
    cause.key.location = 0;
    CHECK(decode_cause(cause, machine).site.location.empty());
}

TEST_CASE("decode: what comes in while the stack has not noted so yet does not leave") {
    tsdt_drop record = dns_answer();
    record.received = 0;
    set(record.in_dev, "");
    set(record.out_dev, "tun0");
    tsdt_cause cause = cause_of(record);
    const auto told = [&](std::string_view location) {
        set(cause.location, location);
        return decode_drop(record, cause, machine).packet;
    };
    for (const char* location :
         {"tun_get_user+0x7f5/0xf30 [tun]", "vxlan_rcv+0x4c/0x9b0 [vxlan]", "enqueue_to_backlog.isra.0+0x1/0x2"}) {
        INFO(location);
        CHECK(told(location).in_dev == "tun0");
        CHECK_FALSE(told(location).out_dev);
        CHECK(told(location).received);
    }
    for (const char* location : {"tun_net_xmit+0x1/0x2 [tun]", "vxlan_xmit+0x1/0x2 [vxlan]", ""}) {
        INFO(location);
        CHECK(told(location).out_dev == "tun0");
        CHECK_FALSE(told(location).in_dev);
        CHECK_FALSE(told(location).received);
    }
    set(record.in_dev, "eth0"); // netfilter's state says it
    CHECK(told("vxlan_rcv+0x4c/0x9b0 [vxlan]").out_dev == "tun0");
}

TEST_CASE("decode: times that no clock shows do not overflow") {
    tsdt_drop record = dns_answer();
    record.mono_ns = ~0ull;
    Machine other = machine;
    other.realtime_minus_mono_ns = INT64_MAX;
    CHECK(decode_drop(record, cause_of(record), other).mono_ns == ~0ull);
}
