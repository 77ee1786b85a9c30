// SPDX-License-Identifier: GPL-2.0-only
#include "packets.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <iterator>
#include <thread>

#include <arpa/inet.h>
#include <fcntl.h>
#include <sched.h>
#include <sys/socket.h>
#include <sys/time.h>

#include "fail.h"

namespace bench {
namespace {

using tsdroptrace::Fd;
using Clock = std::chrono::steady_clock; // CLOCK_MONOTONIC

constexpr const char* host = "10.0.0.2";
constexpr const char* other_namespace = "/run/netns/provider";
constexpr std::uint16_t port = 5353;
constexpr std::array<char, 48> payload{}; // of a short DNS answer

Fd udp_socket(const char* address) {
    Fd socket(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    const int again = 1;
    sockaddr_in local{};
    local.sin_family = AF_INET;
    local.sin_port = htons(port);
    inet_pton(AF_INET, address, &local.sin_addr);
    if (!socket || setsockopt(socket.get(), SOL_SOCKET, SO_REUSEADDR, &again, sizeof(again)) ||
        bind(socket.get(), reinterpret_cast<sockaddr*>(&local), sizeof(local)))
        fail("no socket on {}: {}", address, std::strerror(errno));
    return socket;
}

void enter_namespace(const char* path) {
    const Fd space(open(path, O_RDONLY | O_CLOEXEC));
    if (!space || setns(space.get(), CLONE_NEWNET))
        fail("{}: {}", path, std::strerror(errno));
}

template <typename Function>
double time_each(unsigned count, const Function& function) {
    const auto begin = Clock::now();
    for (unsigned i = 0; i < count; ++i)
        function();
    return std::chrono::duration<double, std::nano>(Clock::now() - begin).count() / count;
}

} // namespace

Packets::Packets(const char* source) : receiver_(udp_socket(host)) {
    enter_namespace(other_namespace);
    sender_ = udp_socket(source);
    enter_namespace("/proc/1/ns/net");

    sockaddr_in remote{};
    remote.sin_family = AF_INET;
    remote.sin_port = htons(port);
    inet_pton(AF_INET, host, &remote.sin_addr);
    const timeval patience{.tv_sec = 1, .tv_usec = 0};
    if (connect(sender_.get(), reinterpret_cast<sockaddr*>(&remote), sizeof(remote)) ||
        setsockopt(receiver_.get(), SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience)))
        fail("cannot set up the sockets: {}", std::strerror(errno));
}

double Packets::accepted(unsigned count) {
    return time_each(count, [this] {
        send_one();
        std::array<char, 64> buffer;
        if (recv(receiver_.get(), buffer.data(), buffer.size(), 0) != std::ssize(payload))
            fail("a packet that the rules accept did not arrive");
    });
}

double Packets::dropped(unsigned count) {
    const double each = time_each(count, [this] { send_one(); });
    std::array<char, 64> buffer;
    if (recv(receiver_.get(), buffer.data(), buffer.size(), MSG_DONTWAIT) >= 0)
        fail("a packet that the rules drop has arrived");
    return each;
}

void Packets::send_one() {
    if (send(sender_.get(), payload.data(), payload.size(), 0) != std::ssize(payload))
        fail("cannot send: {}", std::strerror(errno));
}

double settle() {
    constexpr auto pause = std::chrono::milliseconds(300);
    // /proc/stat: "cpu  user nice system idle iowait irq softirq steal", in ticks
    const auto ticks = [] {
        std::ifstream file("/proc/stat");
        std::string cpu;
        std::array<long, 8> spent{};
        file >> cpu;
        for (long& each : spent)
            file >> each;
        return spent;
    };
    const auto begin = Clock::now();
    for (auto before = ticks();;) {
        std::this_thread::sleep_for(pause);
        const auto now = ticks();
        long idle = now[3] - before[3] + now[4] - before[4], all = 0;
        for (std::size_t i = 0; i < now.size(); ++i)
            all += now[i] - before[i];
        const auto passed = Clock::now() - begin;
        if (idle * 20 >= all * 19 || passed > std::chrono::seconds(10))
            return std::max(std::chrono::duration<double>(passed - pause).count(), 0.0);
        before = now;
    }
}

std::string grouped(double value) {
    std::string digits = fmt::format("{:.0f}", value);
    for (auto at = static_cast<std::ptrdiff_t>(digits.size()) - 3; at > (value < 0 ? 1 : 0); at -= 3)
        digits.insert(static_cast<std::size_t>(at), 1, ',');
    return digits;
}

} // namespace bench
