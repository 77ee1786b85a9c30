// SPDX-License-Identifier: GPL-2.0-only
#include "attach/locations.h"

#include <algorithm>
#include <chrono>
#include <cstddef>

#include "util/kallsyms.h"

namespace tsdroptrace::attach {

std::string Locations::locate(std::uint64_t address, std::uint64_t died_ns) {
    constexpr std::size_t max_addresses = 4096, max_times = 16; // what is forgotten is looked up again
    if (locations_.size() >= max_addresses && !locations_.contains(address))
        locations_.clear();
    std::vector<Location>& known = locations_[address];
    const auto then = [&] {
        return std::ranges::find_if(known, [&](const Location& location) {
            return location.from_ns <= died_ns && died_ns <= location.until_ns;
        });
    };
    if (const auto found = then(); found != known.end())
        return found->text;
    const std::chrono::nanoseconds since_boot = std::chrono::steady_clock::now().time_since_epoch();
    const auto now = static_cast<std::uint64_t>(since_boot.count());
    if (!known.empty() && !known.back().text.empty()) {
        Location& last = known.back();
        const std::string_view module = module_of(last.text);
        if (module.empty() || (loaded_ns_(module) == last.from_ns && lies_in_module(address, module, modules_)))
            last.until_ns = now; // it still is
        if (const auto found = then(); found != known.end())
            return found->text;
    }
    if (known.size() >= max_times)
        known.erase(known.begin());
    std::string text = describe_address(address, kallsyms_, modules_);
    const std::uint64_t since = loaded_ns_(module_of(text));
    if (text.empty() || since > died_ns)
        known.push_back({died_ns, died_ns, ""});
    else
        known.push_back({since, now, std::move(text)});
    return known.back().text;
}

} // namespace tsdroptrace::attach
