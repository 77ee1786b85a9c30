// SPDX-License-Identifier: GPL-2.0-only
#include "explain/subject.h"

#include <algorithm>

namespace tsdroptrace::explain {

bool leaves_this_machine(const Drop& drop) {
    return drop.site.hook == Hook::output || drop.site.hook == Hook::postrouting || drop.site.hook == Hook::egress;
}

bool peer_is_source(const Drop& drop) {
    if (leaves_this_machine(drop))
        return false;
    if (drop.site.hook == Hook::forward)
        return drop.packet.direction == Direction::from;
    return drop.packet.received || drop.site.hook.has_value();
}

const Address& peer(const Drop& drop) {
    return peer_is_source(drop) ? drop.packet.src : drop.packet.dst;
}

std::string sysctl_device(std::string_view device) {
    std::string name(device);
    std::ranges::replace(name, '.', '/');
    return name;
}

std::string sysctl_name(std::string_view pattern, const Drop& drop) {
    std::string name(pattern);
    for (const auto& [placeholder, device] : {std::pair{std::string_view("{in_dev}"), &drop.packet.in_dev},
                                              std::pair{std::string_view("{out_dev}"), &drop.packet.out_dev}}) {
        const std::size_t at = name.find(placeholder);
        if (at == std::string::npos)
            continue;
        if (!*device)
            return {};
        name.replace(at, placeholder.size(), sysctl_device(**device));
    }
    return name;
}

} // namespace tsdroptrace::explain
