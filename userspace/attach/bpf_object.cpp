// SPDX-License-Identifier: GPL-2.0-only
#include "attach/bpf_object.h"

#include <cstring>
#include <optional>
#include <stdexcept>
#include <vector>

#include <bpf/bpf.h>
#include <bpf/btf.h>
#include <bpf/libbpf.h>
#include <fmt/format.h>

#include "attach/attachment.h"
#include "tsdroptrace.skel.h"
#include "tsdroptrace_5_10.skel.h"
#include "tsdroptrace_kprobe.skel.h"

namespace tsdroptrace::attach {
namespace {

template <typename Skeleton>
std::shared_ptr<Skeleton> open_skeleton(const bpf_object_open_opts& options) {
    Skeleton* skeleton = Skeleton::open(&options);
    if (!skeleton)
        return nullptr;
    return {skeleton, [](Skeleton* opened) { Skeleton::destroy(opened); }};
}

struct Place {
    std::uint32_t offset, size;
};

// Where a variable lies in a section of data.
std::optional<Place> place_in(const bpf_object* object, const char* section, std::string_view name) {
    const btf* types = bpf_object__btf(object);
    const int id = types ? btf__find_by_name_kind(types, section, BTF_KIND_DATASEC) : -1;
    if (id < 0)
        return std::nullopt;
    const btf_type* all = btf__type_by_id(types, static_cast<unsigned>(id));
    const btf_var_secinfo* variables = btf_var_secinfos(all);
    for (int i = 0; i < btf_vlen(all); ++i) {
        const btf_type* variable = btf__type_by_id(types, variables[i].type);
        if (name == btf__name_by_offset(types, variable->name_off))
            return Place{variables[i].offset, variables[i].size};
    }
    return std::nullopt;
}

[[noreturn]] void no_such(std::string_view name) {
    throw std::logic_error(fmt::format("the BPF object has no variable {} of that size", name));
}

} // namespace

BpfObject BpfObject::open(ObjectKind kind, const char* types_path) {
    LIBBPF_OPTS(bpf_object_open_opts, options);
    options.btf_custom_path = types_path;
    BpfObject opened;
    opened.kind_ = kind;
    const auto take = [&](const auto& skeleton) {
        if (!skeleton)
            return;
        opened.object_ = skeleton->obj;
        opened.skeleton_ = skeleton->skeleton;
        opened.owner_ = skeleton;
    };
    switch (kind) {
    case ObjectKind::fentry: take(open_skeleton<tsdroptrace_bpf>(options)); break;
    case ObjectKind::kprobe: take(open_skeleton<tsdroptrace_kprobe_bpf>(options)); break;
    case ObjectKind::linux_5_10: take(open_skeleton<tsdroptrace_5_10_bpf>(options)); break;
    }
    return opened;
}

bpf_program* BpfObject::program(const char* name) const {
    return bpf_object__find_program_by_name(object_, name);
}

void BpfObject::set_autoload(const char* name, bool load) const {
    if (bpf_program* found = program(name))
        bpf_program__set_autoload(found, load);
}

bool BpfObject::autoload(const char* name) const {
    const bpf_program* found = program(name);
    return found && bpf_program__autoload(found);
}

bpf_map* BpfObject::map(const char* name) const {
    return bpf_object__find_map_by_name(object_, name);
}

int BpfObject::fd(const char* name) const {
    const bpf_map* found = map(name);
    return found ? bpf_map__fd(found) : -1;
}

void BpfObject::set_max_entries(const char* name, std::uint32_t entries) const {
    if (bpf_map* found = map(name))
        bpf_map__set_max_entries(found, entries);
}

void BpfObject::set_constant(std::string_view name, const void* value, std::size_t size) const {
    bpf_map* constants = map(".rodata");
    const auto place = place_in(object_, ".rodata", name);
    std::size_t all = 0;
    const auto* begin = constants ? static_cast<const std::byte*>(bpf_map__initial_value(constants, &all)) : nullptr;
    if (!begin || !place || place->size != size || place->offset + size > all)
        no_such(name);
    std::vector<std::byte> bytes(begin, begin + all);
    std::memcpy(bytes.data() + place->offset, value, size);
    if (bpf_map__set_initial_value(constants, bytes.data(), all))
        throw std::logic_error(fmt::format("{} was to be set after its BPF object was loaded", name));
}

void* BpfObject::variable(std::string_view name, std::size_t size) const {
    bpf_map* variables = map(".bss");
    const auto place = place_in(object_, ".bss", name);
    std::size_t all = 0;
    auto* begin =
        variables ? static_cast<std::byte*>(const_cast<void*>(bpf_map__initial_value(variables, &all))) : nullptr;
    if (!begin || !place)
        return nullptr;
    if (place->size != size || place->offset + size > all)
        no_such(name);
    return begin + place->offset;
}

int BpfObject::load() const {
    return bpf_object__load_skeleton(skeleton_); // maps .bss where bpf_map__initial_value() says, too
}

KernelTypes::Names BpfObject::functions() const {
    KernelTypes::Names functions;
    bpf_program* program;
    bpf_object__for_each_program (program, object_)
        if (const std::string_view function = function_of(program); !function.empty())
            functions.emplace(function);
        else if (std::string name = tracepoint_of(program); !name.empty())
            functions.insert(std::move(name));
    return functions;
}

KernelTypes::Names BpfObject::types() const {
    KernelTypes::Names names;
    const btf* types = bpf_object__btf(object_);
    for (unsigned id = 1; types && id < btf__type_cnt(types); ++id) {
        const btf_type* type = btf__type_by_id(types, id);
        if (!btf_is_composite(type) && !btf_is_any_enum(type) && !btf_is_typedef(type))
            continue;
        const std::string_view name = btf__name_by_offset(types, type->name_off);
        if (!name.empty())
            names.emplace(name.substr(0, name.find("___")));
    }
    return names;
}

} // namespace tsdroptrace::attach
