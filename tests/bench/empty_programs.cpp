// SPDX-License-Identifier: GPL-2.0-only
#include "empty_programs.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <memory>
#include <set>
#include <string_view>

#include <bpf/bpf.h>
#include <bpf/btf.h>
#include <bpf/libbpf.h>

#include "fail.h"

namespace bench {
namespace {

using tsdroptrace::Fd;

struct BtfDeleter {
    void operator()(btf* types) const { btf__free(types); }
};
using Btf = std::unique_ptr<btf, BtfDeleter>;

constexpr std::array<std::string_view, 3> table_functions = {"nft_do_chain", "ipt_do_table", "ip6t_do_table"};

std::string section_name(std::uint32_t attach_type, std::string_view name) {
    return fmt::format("{}/{}", attach_type == BPF_TRACE_FENTRY ? "fentry" : "fexit", name);
}

std::string name_of(std::uint32_t btf_object, std::uint32_t btf_id, btf* kernel_types) {
    const Btf types(btf__load_from_kernel_by_id_split(btf_object, kernel_types));
    const btf_type* type = types ? btf__type_by_id(types.get(), btf_id) : nullptr;
    if (!type)
        fail("no type {} in the types with id {}", btf_id, btf_object);
    return btf__name_by_offset(types.get(), type->name_off);
}

Fd load_empty(const Place& place) {
    bpf_insn set_result{}, exit{};
    set_result.code = BPF_ALU64 | BPF_MOV | BPF_K; // r0 = 0
    exit.code = BPF_JMP | BPF_EXIT;
    const bpf_insn program[] = {set_result, exit};

    const Fd types(place.btf_object ? bpf_btf_get_fd_by_id(place.btf_object) : -1);
    bpf_prog_load_opts options{};
    options.sz = sizeof(options);
    options.expected_attach_type = static_cast<bpf_attach_type>(place.attach_type);
    options.attach_btf_id = place.btf_id;
    options.attach_btf_obj_fd = types ? static_cast<std::uint32_t>(types.get()) : 0;
    Fd loaded(bpf_prog_load(BPF_PROG_TYPE_TRACING, "empty", "GPL", program, std::size(program), &options));
    if (!loaded)
        fail("cannot load an empty program for {}: {}", place.section, std::strerror(errno));
    return loaded;
}

} // namespace

std::vector<Place> attached_places() {
    const Btf kernel_types(btf__load_vmlinux_btf());
    if (!kernel_types)
        fail("this kernel has no type information");

    std::vector<Place> places;
    std::uint32_t id = 0;
    while (bpf_link_get_next_id(id, &id) == 0) {
        const Fd link(bpf_link_get_fd_by_id(id));
        std::array<char, 64> tracepoint{};
        bpf_link_info info{};
        info.raw_tracepoint.tp_name = reinterpret_cast<std::uintptr_t>(tracepoint.data());
        info.raw_tracepoint.tp_name_len = tracepoint.size();
        std::uint32_t size = sizeof(info);
        // Only a raw tracepoint has a buffer for the kernel to fill in; for the others these fields mean nothing.
        if (!link || bpf_obj_get_info_by_fd(link.get(), &info, &size))
            fail("cannot ask for the BPF link {}: {}", id, std::strerror(errno));

        if (info.type == BPF_LINK_TYPE_RAW_TRACEPOINT) {
            const std::string type = fmt::format("btf_trace_{}", tracepoint.data());
            const int btf_id = btf__find_by_name_kind(kernel_types.get(), type.c_str(), BTF_KIND_TYPEDEF);
            if (btf_id < 0)
                fail("{} is not among the kernel's types", type);
            places.push_back(
                {BPF_TRACE_RAW_TP, 0, static_cast<std::uint32_t>(btf_id), fmt::format("tp_btf/{}", tracepoint.data())});
        } else if (info.type == BPF_LINK_TYPE_TRACING) {
            const auto& tracing = info.tracing;
            places.push_back({tracing.attach_type, tracing.target_obj_id, tracing.target_btf_id,
                              section_name(tracing.attach_type,
                                           name_of(tracing.target_obj_id, tracing.target_btf_id, kernel_types.get()))});
        } else {
            fail("a BPF link of type {}, of which there is no empty counterpart here", info.type);
        }
    }
    if (places.empty())
        fail("tsdroptrace has attached no BPF program");
    std::ranges::sort(places, {}, &Place::section);
    return places;
}

std::vector<Place> pair_of(const std::vector<Place>& places) {
    std::vector<Place> pair;
    std::set<std::string_view> met;
    for (const Place& place : places) {
        const std::string_view function = std::string_view(place.section).substr(place.section.find('/') + 1);
        if (place.attach_type == BPF_TRACE_RAW_TP)
            pair.push_back(place);
        else if (std::ranges::find(table_functions, function) != table_functions.end() && met.insert(function).second)
            for (const std::uint32_t type : {BPF_TRACE_FENTRY, BPF_TRACE_FEXIT})
                pair.push_back({type, place.btf_object, place.btf_id, section_name(type, function)});
    }
    return pair;
}

EmptyPrograms::EmptyPrograms(const std::vector<Place>& places) {
    for (const Place& place : places) {
        const Fd program = load_empty(place);
        links_.emplace_back(bpf_raw_tracepoint_open(nullptr, program.get()));
        if (!links_.back())
            fail("cannot attach an empty program to {}: {}", place.section, std::strerror(errno));
    }
}

} // namespace bench
