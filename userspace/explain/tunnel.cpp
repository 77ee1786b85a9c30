// SPDX-License-Identifier: GPL-2.0-only
#include "explain/tunnel.h"

#include <algorithm>

#include <fmt/format.h>

namespace tsdroptrace::explain {
namespace {

bool may_be_of_others(const Route& route) {
    const bool host = route.matched.ends_with("/32") || route.matched.ends_with("/128");
    return route.table == tailscale_table && route.matched.find('/') != std::string::npos && !host &&
           !route.matched.starts_with("fd7a:115c:a1e0:");
}

} // namespace

bool is_of_tailscale(std::string_view dev) {
    return dev.starts_with("tailscale");
}

bool is_tunnel(std::string_view dev) {
    return is_of_tailscale(dev) || dev.starts_with("tun") || dev.starts_with("utun");
}

bool left_by_tunnel(const SeenWay& sent) {
    return std::ranges::any_of(sent.by_dev,
                               [](const auto& device) { return device.second > 0 && is_tunnel(device.first); });
}

std::string accepted_route_words(const Way& way) {
    if (!may_be_of_others(way.route))
        return {};
    return fmt::format(
        ". Table {} has {} for it: a route that Tailscale accepted. If {} is a network of your own or of "
        "your provider: ip rule add to {} lookup main pref 5200 (then nothing of it is reached by the "
        "tailnet, and it is gone after a reboot), or tailscale set --accept-routes=false (no route of a "
        "peer is used)",
        way.route.table, way.route.matched, way.range, way.range);
}

} // namespace tsdroptrace::explain
