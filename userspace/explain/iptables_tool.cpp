// SPDX-License-Identifier: GPL-2.0-only
#include "explain/iptables_tool.h"

#include <filesystem>

namespace tsdroptrace::explain {

std::optional<Backend> backend_of_binary(std::string_view name) {
    if (name == "xtables-nft-multi")
        return Backend::iptables_nft;
    if (name == "xtables-legacy-multi" || name == "xtables-multi")
        return Backend::iptables_legacy;
    return std::nullopt;
}

std::optional<Backend> plain_iptables() {
    for (const char* command : {"/usr/sbin/iptables", "/sbin/iptables", "/usr/bin/iptables"}) {
        std::error_code error;
        const auto file = std::filesystem::canonical(command, error);
        if (!error)
            return backend_of_binary(file.filename().native());
    }
    return std::nullopt;
}

} // namespace tsdroptrace::explain
