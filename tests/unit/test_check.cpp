// SPDX-License-Identifier: GPL-2.0-only
// Real sockets on the loopback device; and the verdict, by what might come of them.
#include "check/probe.h"
#include "check/target.h"
#include "check/verdict.h"

#include <cerrno>
#include <memory>
#include <thread>

#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <sys/socket.h>
#include <unistd.h>

#include "catch.h"
#include "util/fd.h"

using namespace tsdroptrace;
using namespace tsdroptrace::check;
using namespace std::chrono_literals;

namespace {

std::string refused(std::string_view text) {
    const auto target = parse_target(text);
    REQUIRE_FALSE(target);
    CHECK(target.error().kind == ErrorKind::command_line);
    return target.error().message;
}

// A socket on 127.0.0.1, and the port that it has got there.
std::pair<Fd, std::uint16_t> bound(int type) {
    Fd socket(::socket(AF_INET, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof(address);
    REQUIRE(bind(socket.get(), reinterpret_cast<sockaddr*>(&address), size) == 0);
    REQUIRE(getsockname(socket.get(), reinterpret_cast<sockaddr*>(&address), &size) == 0);
    return {std::move(socket), ntohs(address.sin_port)};
}

Target local(Kind kind, std::uint16_t port = 0) {
    return {{IpFamily::ipv4, {127, 0, 0, 1}}, kind, port};
}

// Steps it until it has an answer, and calls `meanwhile` in between.
template <typename Meanwhile>
Answer answer_of(Result<Probe> probe, Meanwhile meanwhile) {
    INFO((probe ? "" : probe.error().message));
    REQUIRE(probe);
    for (const auto end = Clock::now() + 20s; Clock::now() < end; poll(nullptr, 0, 2)) {
        if (auto answer = probe->step(Clock::now()))
            return *answer;
        meanwhile();
    }
    FAIL("no answer, and no end");
    return {};
}

Answer answer_of(const Target& target, const Plan& plan = {}) {
    return answer_of(Probe::open(target, plan), [] {});
}

} // namespace

TEST_CASE("check: a target is an address, a port and a protocol") {
    CHECK(*parse_target("100.100.2.136:53/udp") == Target{{IpFamily::ipv4, {100, 100, 2, 136}}, Kind::udp, 53});
    CHECK(*parse_target("[fd7a::53]:65535/tcp") ==
          Target{{IpFamily::ipv6, {0xfd, 0x7a, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x53}}, Kind::tcp, 65535});
    for (const char* text :
         {"100.100.2.136:53/udp", "[fd7a::53]:443/tcp", "100.100.2.136/icmp", "fd7a::53/icmp", "1.2.3.4:1/tcp"})
        CHECK(parse_target(text)->text() == text);
    CHECK(parse_target("[fd7a::53]/icmp")->text() == "fd7a::53/icmp");
}

TEST_CASE("check: what is no target is quoted, and said how to type") {
    for (const char* text : {"", "100.100.2.136", "100.100.2.136:53", "100.100.2.136:53/", "100.100.2.136:53/UDP",
                             "100.100.2.136:53/sctp", "/udp/", "100.100.2.0/24"})
        CHECK(refused(text).find("expected /udp, /tcp or /icmp at its end, as in 100.100.2.136:53/udp") !=
              std::string::npos);
    for (const char* text : {"/udp", ":53/udp", "dns.example:53/udp", "100.100.2:53/udp", "[100.100.2.136:53/udp",
                             "[fd7a::53]53/tcp", "fe80::1%eth0/icmp", "fd7a::53:/tcp", "10.0.0.0/8:53/udp"})
        CHECK(refused(text).find(": expected an address, as in ") != std::string::npos);
    for (const char* text : {"0.0.0.0:53/udp", "224.0.0.1/icmp", "255.255.255.255:53/udp", "::/icmp", "[ff02::1]/icmp",
                             "[::ffff:10.0.0.1]:53/udp"})
        CHECK(refused(text).find("is not the address of one host") != std::string::npos);
    for (const char* text :
         {"1.2.3.4/tcp", "1.2.3.4:/tcp", "1.2.3.4:0/tcp", "1.2.3.4:65536/tcp", "1.2.3.4:-1/tcp", "1.2.3.4:dns/tcp"})
        CHECK(refused(text).ends_with(": expected a port from 1 to 65535, as in 1.2.3.4:53/tcp"));
    CHECK(refused("fd7a::53/tcp").ends_with("as in [fd7a::53]:53/tcp"));
    CHECK(refused("1.2.3.4:53/icmp") == "1.2.3.4:53/icmp: ICMP has no ports: type 1.2.3.4/icmp");
    CHECK(refused("\x1b[31m/udp").find('\x1b') == std::string::npos);
    using namespace std::string_view_literals;
    CHECK(refused("1.2.3.4\0:53/udp"sv).find("expected an address") != std::string::npos);
}

TEST_CASE("check: UDP is answered, or nobody listens, or there is silence") {
    const auto [service, port] = bound(SOCK_DGRAM);
    unsigned came = 0;
    sockaddr_in from{};
    const auto serve = [&, socket = service.get()](bool answers) {
        char packet[16];
        socklen_t size = sizeof(from);
        if (recvfrom(socket, packet, sizeof(packet), 0, reinterpret_cast<sockaddr*>(&from), &size) < 0)
            return;
        ++came;
        if (answers)
            REQUIRE(sendto(socket, "yes", 3, 0, reinterpret_cast<sockaddr*>(&from), size) == 3);
    };
    const auto answered = answer_of(Probe::open(local(Kind::udp, port)), [&] { serve(true); });
    CHECK(answered.outcome == Outcome::answered);
    CHECK(answered.sent == 1);
    CHECK(answered.local.text() == "127.0.0.1");
    CHECK(answered.local_ports == std::vector<std::uint16_t>{ntohs(from.sin_port)});

    came = 0;
    const auto begin = Clock::now();
    const auto silence = answer_of(Probe::open(local(Kind::udp, port), {3, 100ms}), [&] { serve(false); });
    CHECK(silence.outcome == Outcome::silence);
    CHECK(silence.sent == 3);
    CHECK(came == 3);
    CHECK(Clock::now() - begin >= 300ms);

    const std::uint16_t closed = bound(SOCK_DGRAM).second;
    const auto refused = answer_of(local(Kind::udp, closed));
    CHECK(refused.outcome == Outcome::error);
    CHECK(refused.error_number == ECONNREFUSED);
    REQUIRE(refused.icmp);
    CHECK(*refused.icmp == IcmpError{3, 3, {IpFamily::ipv4, {127, 0, 0, 1}}}); // port unreachable
}

TEST_CASE("check: TCP is accepted, or reset, or there is silence") {
    const auto [service, port] = bound(SOCK_STREAM);
    const auto refused = answer_of(local(Kind::tcp, port));
    CHECK(refused.outcome == Outcome::reset);
    CHECK(refused.error_number == ECONNREFUSED);
    CHECK_FALSE(refused.icmp);

    REQUIRE(listen(service.get(), 0) == 0);
    const auto answered = answer_of(local(Kind::tcp, port));
    CHECK(answered.outcome == Outcome::answered);
    CHECK(answered.local_ports.size() == 1);
    // Nobody accepts, and there is room for one: the others are not answered.
    const auto silence = answer_of(local(Kind::tcp, port), {2, 100ms});
    CHECK(silence.outcome == Outcome::silence);
    CHECK(silence.sent == 2);
    CHECK(silence.local_ports.size() == 2);
}

TEST_CASE("check: an echo comes back, if it may be sent") {
    auto probe = Probe::open(local(Kind::icmp));
    if (!probe) {
        CHECK(probe.error().kind == ErrorKind::unsupported);
        WARN("no echo was tried: " << probe.error().message);
        return;
    }
    const auto answered = answer_of(std::move(probe), [] {});
    CHECK(answered.outcome == Outcome::answered);
    CHECK(answered.sent == 1);
    CHECK(answered.local_ports.size() == 1);
    CHECK(answer_of({{IpFamily::ipv6, {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1}}, Kind::icmp, 0}).outcome ==
          (access("/proc/sys/net/ipv6/conf/lo", F_OK) == 0 ? Outcome::answered : Outcome::local));
}

// ---- the verdict ----

namespace {

struct Question {
    Target target{{IpFamily::ipv4, {100, 100, 2, 136}}, Kind::udp, 53};
    Answer answer;
    Summary summary;

    Question() {
        answer.local = {IpFamily::ipv4, {10, 0, 0, 2}};
        answer.local_ports = {40001, 40002};
        summary.seen = Seen{};
        summary.seen->sent = {3, {{"eth0", 3}}, {}, {}};
    }
    void dropped(std::uint16_t local_port, std::uint64_t packets) {
        Cause cause;
        cause.packets = packets;
        cause.example.site.kind = DropKind::rule;
        Rule rule;
        rule.table = "filter";
        rule.chain = "ts-input";
        rule.number = 5;
        cause.example.rule = std::make_shared<Rule>(rule);
        cause.flows = {{17, {}, {}, 53, local_port, packets}};
        summary.causes.push_back(cause);
    }
    CheckVerdict verdict() const { return check::verdict(target, answer, summary); }
    bool says(const char* text) const { return verdict().text.find(text) != std::string::npos; }
};

} // namespace

TEST_CASE("check: silence is told apart by what was dropped, and by what left and came") {
    Question silence;
    CHECK(silence.verdict().reached == Reached::lost_elsewhere);
    CHECK(
        silence.verdict().text ==
        "100.100.2.136:53/udp did not answer: 3 packets left by eth0, none came back: the loss is not on this machine");

    Question here = silence;
    here.dropped(40002, 3);
    CHECK(here.verdict().reached == Reached::dropped_here);
    CHECK(here.verdict().text == "3 packets of the check were dropped here by ts-input, rule 5 (table filter)");
    Question others = silence;
    others.dropped(50000, 3); // somebody else's
    CHECK(others.verdict().reached == Reached::lost_elsewhere);

    Question unsent = silence;
    unsent.summary.seen->sent = {};
    CHECK(unsent.verdict().reached == Reached::dropped_here);
    CHECK(unsent.says("no packet to it left this machine"));

    Question came = silence;
    came.summary.seen->received = {1, {{"eth0", 1}}, {}, {}};
    CHECK(came.verdict().reached == Reached::lost_elsewhere);
    CHECK(came.says("1 packet came in from there, and none was dropped here"));

    Question service = silence;
    service.target.port = 4000;
    CHECK(service.says("or that service has nothing to say"));
}

TEST_CASE("check: what left by a tunnel may have been dropped on this machine") {
    Question silence;
    silence.summary.seen->sent.by_dev = {{"tailscale0", 3}};
    CHECK_FALSE(silence.says("the loss is not on this machine"));
    CHECK(silence.says("3 packets left by tailscale0, none came back. tailscaled, on this machine, may have dropped"));
    CHECK(silence.says("tailscale metrics print"));
    CHECK_FALSE(silence.says("ip rule"));
    silence.summary.ways = {
        {"100.100.2.136", silence.target.address, {"unicast", "tailscale0", std::nullopt, 52, "100.64.0.0/10"}}};
    CHECK(silence.says("Table 52 has 100.64.0.0/10 for it"));
    CHECK(silence.says("ip rule add to 100.100.2.136 lookup main pref 5200"));
    silence.summary.ways[0].route.matched = "100.100.2.136/32"; // a peer of the tailnet
    CHECK_FALSE(silence.says("ip rule"));
    silence.summary.seen->sent.by_dev = {{"tun7", 3}};
    CHECK_FALSE(silence.says("the loss is not on this machine"));
    CHECK_FALSE(silence.says("tailscale"));
    CHECK(silence.says("The program behind that tunnel"));
}

TEST_CASE("check: an answer, a reset and ICMP errors") {
    Question one;
    one.answer.outcome = Outcome::answered;
    CHECK(one.verdict().reached == Reached::yes);
    CHECK(one.verdict().text == "100.100.2.136:53/udp is reachable: it answered");
    one.dropped(40001, 1);
    CHECK(one.says("it answered; 1 packet of the check was dropped here by ts-input, rule 5"));

    Question reset;
    reset.answer.outcome = Outcome::reset;
    CHECK(reset.verdict().reached == Reached::yes);
    CHECK(reset.says("answered with a reset"));

    // A router on the way says so; or this machine itself, to which nobody answers on the link.
    Question error;
    error.answer.outcome = Outcome::error;
    error.answer.icmp = IcmpError{3, 1, {IpFamily::ipv4, {192, 0, 2, 1}}};
    error.answer.error_number = EHOSTUNREACH;
    CHECK(error.verdict().reached == Reached::lost_elsewhere);
    CHECK(error.says("192.0.2.1 answered with ICMP type 3 code 1"));
    CHECK(error.says("the loss is not on this machine"));
    error.answer.icmp->from = error.answer.local;
    CHECK(error.verdict().reached == Reached::dropped_here);
    CHECK(error.says("this machine itself answered with ICMP type 3 code 1"));
    error.dropped(40001, 3);
    CHECK(error.says("3 packets of the check were dropped here"));

    Question local;
    local.answer.outcome = Outcome::local;
    local.answer.error_number = ENETUNREACH;
    CHECK(local.verdict().reached == Reached::dropped_here);
    CHECK(local.says("this machine could not send"));
}

TEST_CASE("check: what this machine does not send is its own doing") {
    if (geteuid() != 0) {
        WARN("not root: a namespace without routes was not tried");
        return;
    }
    const Address nowhere{IpFamily::ipv4, {192, 0, 2, 1}};
    std::vector<std::optional<Answer>> answers;
    std::thread([&] { // alone in a namespace where nothing is up
        if (unshare(CLONE_NEWNET) != 0)
            return;
        for (const Target& target : {Target{nowhere, Kind::udp, 53}, Target{nowhere, Kind::tcp, 53},
                                     Target{nowhere, Kind::icmp, 0}, local(Kind::udp, 53)}) {
            auto probe = Probe::open(target);
            answers.push_back(probe ? probe->step(Clock::now()) : std::nullopt);
        }
    })
        .join();
    REQUIRE(answers.size() == 4);
    for (const auto& answer : answers) {
        REQUIRE(answer);
        CHECK(answer->outcome == Outcome::local);
        CHECK(answer->error_number == ENETUNREACH);
        CHECK(answer->sent == 0);
    }
}
