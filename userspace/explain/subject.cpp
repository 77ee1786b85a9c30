// SPDX-License-Identifier: GPL-2.0-only
#include "explain/subject.h"

#include "util/text.h"

namespace tsdroptrace::explain {

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
