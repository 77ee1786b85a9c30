// SPDX-License-Identifier: GPL-2.0-only
#include "attach/object_maps.h"

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>

#include <bpf/bpf.h>
#include <bpf/libbpf.h>

#include "attach/hook_callers.h"
#include "util/fd.h"

namespace tsdroptrace::attach {
namespace {

constexpr std::size_t candidate_bytes = 32, chunk_candidates = 32;

} // namespace

std::uint32_t pool_chunks(int cpus) {
    constexpr std::size_t budget = 4 << 20, chunk = candidate_bytes * chunk_candidates;
    return static_cast<std::uint32_t>(
        std::clamp<std::size_t>(budget / (chunk * static_cast<std::size_t>(cpus)), 8, 256));
}

std::uint32_t pool_chunks_small(int cpus) {
    return std::max(pool_chunks(cpus) / 8, 2u);
}

void set_sizes(const BpfObject& object, int cpus) {
    object.set_max_entries("pool", 2 * (pool_chunks(cpus) + pool_chunks_small(cpus)));
    object.set_max_entries("verdicts", 1024 + 256 * static_cast<std::uint32_t>(cpus));
    object.set_max_entries("calls", 1024 + 256 * static_cast<std::uint32_t>(cpus));
}

int create_variables(const BpfObject& object) {
    bpf_map* variables = object.map(".bss");
    LIBBPF_OPTS(bpf_map_create_opts, options);
    options.map_flags = BPF_F_MMAPABLE;
    const Fd map(bpf_map_create(BPF_MAP_TYPE_ARRAY, "tsdroptr.bss", sizeof(std::uint32_t),
                                bpf_map__value_size(variables), 1, &options));
    return map ? bpf_map__reuse_fd(variables, map.get()) : -errno; // which keeps a descriptor of its own
}

int share_maps(const BpfObject& object, const BpfObject& shared) {
    const bpf_map *bss = object.map(".bss"), *emit_call = object.map("emit_call");
    bpf_map* map;
    bpf_object__for_each_map (map, object.get()) {
        if ((bpf_map__is_internal(map) && map != bss) || map == emit_call)
            continue; // constants, and the program that emits: each object has its own
        if (const int error = bpf_map__reuse_fd(map, shared.fd(map == bss ? ".bss" : bpf_map__name(map))))
            return error;
    }
    return 0;
}

int fill_hook_callers(const BpfObject& object) {
    const int map = object.fd("hook_callers");
    if (map < 0)
        return 0;
    for (const HookCaller& caller : hook_callers) {
        char key[24] = ""; // struct hook_caller
        std::strncpy(key, caller.name, sizeof(key) - 1);
        const std::uint32_t hook = static_cast<std::uint32_t>(caller.pf << 8 | caller.hook);
        if (const int error = bpf_map_update_elem(map, key, &hook, BPF_ANY))
            return error;
    }
    return 0;
}

} // namespace tsdroptrace::attach
