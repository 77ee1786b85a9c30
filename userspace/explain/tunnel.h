// SPDX-License-Identifier: GPL-2.0-only
// Packets that left by a tunnel, whose program on this machine takes them: the kernel does not see what becomes of
// them.
#pragma once

#include <string>
#include <string_view>

#include "model.h"

namespace tsdroptrace::explain {

// Going by a device's name.
bool is_of_tailscale(std::string_view dev);
bool is_tunnel(std::string_view dev); // of a program (TUN), not of the kernel

// Whether packets left by a tunnel. `sent`: of Seen.
bool left_by_tunnel(const SeenWay& sent);

// ". Table 52 has 100.100.0.0/16 for it ...": where Tailscale's table leads to the range by a route to a whole network,
// so that it need not be the tailnet that is meant: what that is, and how to get around it. Empty elsewhere.
std::string accepted_route_words(const Way&);

} // namespace tsdroptrace::explain
