// SPDX-License-Identifier: GPL-2.0-only
// Evidence of the running machine. Looked up once for each cause and far end, and once for each flow that a socket here
// may wait for; never for each packet, and never so often that records pile up meanwhile.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "evidence/evidence.h"

namespace tsdroptrace::evidence {

// Asks the kernel, in the drop's own network namespace. `known`: what is there already of the far end, which is then
// not asked again; `sysctls`: else those that are wanted; `with_socket`: whether to ask for the socket as well. What
// cannot be had stays empty.
Evidence ask_machine(const Drop&, const Evidence* known, const std::set<std::string>& sysctls, bool with_socket);

// How a packet to the address of each range leaves this machine, in the network namespace of the calling thread.
// `ranges`: as text, and one address.
std::vector<Way> ask_ways(const std::vector<std::pair<std::string, Address>>& ranges);

// Not thread-safe.
class LiveEvidence : public Source {
public:
    using Observer = std::function<void(const Entry&)>;
    using Ask = std::function<Evidence(const Drop&, const Evidence* known, const std::set<std::string>& sysctls,
                                       bool with_socket)>;
    using Now = std::function<std::uint64_t()>; // CLOCK_MONOTONIC

    static constexpr unsigned max_lookups = 20;               // in a second
    static constexpr std::uint64_t max_time_ns = 200'000'000; // in a second; the look-up that passes it is the last
    // A packet that died longer ago has waited, and others do too: as old as an answer may be.
    static constexpr std::uint64_t max_wait_socket_ns = Answers::max_flow_age_ns, max_wait_ns = Answers::max_age_ns;

    // `on_entry` sees each answer before get() returns it for the first time. `ask` and `now` are for tests.
    explicit LiveEvidence(Observer on_entry = {}, Ask ask = ask_machine, Now now = {});

    std::shared_ptr<const Evidence> get(const Drop&, const WantedSysctls& wanted) override;

private:
    bool may_ask();
    void keep(const Key&, const Drop&, std::shared_ptr<const Evidence>);

    Observer on_entry_;
    Ask ask_;
    Now now_;
    Answers answers_;
    std::uint64_t second_began_ns_ = 0, spent_ns_ = 0;
    unsigned lookups_ = 0;
};

} // namespace tsdroptrace::evidence
