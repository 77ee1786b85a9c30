// SPDX-License-Identifier: GPL-2.0-only
#include "attach/filter.h"

#include <algorithm>
#include <cstring>
#include <string_view>

#include <arpa/inet.h>
#include <bpf/bpf.h>
#include <fmt/format.h>

#include "attach/program_loading.h"
#include "bpf/event.h"

namespace tsdroptrace::attach {
namespace {

int fill_ranges(const std::vector<Cidr>& ranges, int map4, int map6) {
    for (const Cidr& range : ranges) {
        struct {
            std::uint32_t prefix;
            std::uint8_t address[16];
        } key{};
        const bool v4 = range.family == IpFamily::ipv4;
        const std::uint8_t present = 1;
        key.prefix = range.prefix;
        std::memcpy(key.address, range.network.data(), v4 ? 4 : 16);
        if (const int error = bpf_map_update_elem(v4 ? map4 : map6, &key, &present, BPF_ANY))
            return error;
    }
    return 0;
}

template <typename T>
int fill_choices(int map, tsdt_choice what, const std::vector<T>& values) {
    for (const T value : values) {
        const tsdt_choice_key key{what, value};
        const std::uint8_t present = 1;
        if (const int error = bpf_map_update_elem(map, &key, &present, BPF_ANY))
            return error;
    }
    return 0;
}

int fill_devices(int map, const std::vector<std::string>& devices) {
    for (const std::string& device : devices) {
        char name[TSDT_IFNAME_LEN] = "";
        const std::uint8_t present = 1;
        device.copy(name, sizeof(name) - 1);
        if (const int error = bpf_map_update_elem(map, name, &present, BPF_ANY))
            return error;
    }
    return 0;
}

} // namespace

void set_filter_constants(const BpfObject& object, const Filter& filter) {
    object.set_constant("match_all", filter.all);
    object.set_constant("match_to", filter.to);
    object.set_constant("match_from", filter.from);
    object.set_constant("by_local", !filter.locals.empty());
    object.set_constant("by_proto", !filter.protos.empty());
    object.set_constant("by_port", !filter.ports.empty());
    object.set_constant("by_reason", !filter.reasons.empty());
    object.set_constant("by_netns", !filter.netns.empty());
    object.set_constant("by_device", !filter.devices.empty());
    object.set_constant("rules_only", filter.rules_only);
}

std::vector<std::uint8_t> first_bits(const Filter& filter, IpFamily family) {
    std::vector<std::uint8_t> bits(1 << 16, filter.all);
    for (const Cidr& range : filter.ranges) {
        if (range.family != family)
            continue;
        const unsigned base = static_cast<unsigned>(range.network[0] << 8 | range.network[1]);
        const unsigned count = range.prefix >= 16 ? 1 : 1u << (16 - range.prefix);
        for (unsigned value = base; value < base + count; ++value)
            bits[htons(static_cast<std::uint16_t>(value))] = 1;
    }
    return bits;
}

void set_seen_constants(const BpfObject& object, const Filter& filter) {
    const auto set = [&](const char* name, IpFamily family) {
        const auto bits = first_bits(filter, family);
        object.set_constant(name, bits.data(), bits.size());
    };
    set("first_bits4", IpFamily::ipv4);
    set("first_bits6", IpFamily::ipv6);
}

void choose_seen(const BpfObject& object, const Filter& filter, const KernelTypes& types, bool any) {
    const bool by_call = !types.function(rdonly_cast);
    const bool ipv4 = !filter.all && std::ranges::all_of(filter.ranges, [](const Cidr& range) {
        return range.family == IpFamily::ipv4;
    });
    const std::string_view chosen = by_call ? "by_call" : ipv4 ? "ipv4" : "any";
    for (const std::string_view kind : {"by_call", "any", "ipv4"})
        for (const std::string_view way : {"sent", "received"})
            object.set_autoload(fmt::format("{}_{}", way, kind).c_str(), any && kind == chosen);
}

int fill_filter(const BpfObject& object, const Filter& filter, const std::vector<std::uint32_t>& reasons) {
    const int choices = object.fd("choices");
    for (const int error :
         {fill_ranges(filter.ranges, object.fd("ranges4"), object.fd("ranges6")),
          fill_ranges(filter.locals, object.fd("locals4"), object.fd("locals6")),
          fill_choices(choices, TSDT_CHOICE_PROTO, filter.protos),
          fill_choices(choices, TSDT_CHOICE_PORT, filter.ports), fill_choices(choices, TSDT_CHOICE_REASON, reasons),
          fill_choices(choices, TSDT_CHOICE_NETNS, filter.netns), fill_devices(object.fd("devices"), filter.devices)})
        if (error)
            return error;
    return 0;
}

} // namespace tsdroptrace::attach
