// SPDX-License-Identifier: GPL-2.0-only
#include "attach/kernel_types.h"

#include <bitset>
#include <cerrno>
#include <cstring>

#include <fmt/format.h>

#include "attach/btf.h"
#include "attach/reason_names.h"
#include "attach/type_excerpt.h"

namespace tsdroptrace::attach {
namespace {

// What lies within struct nft_chain, nft_base_chain and nft_table of 5.10.
struct TypeSize {
    const char* name;
    unsigned size;
};
constexpr TypeSize sizes_of_5_10[] = {{"list_head", 16}, {"rhlist_head", 16}, {"rhltable", 136}, {"nf_hook_ops", 40}};

bool sizes_are_those_of_5_10(const btf* types) {
    for (const TypeSize& wanted : sizes_of_5_10) {
        const int id = btf__find_by_name_kind(types, wanted.name, BTF_KIND_STRUCT);
        if (id < 0 || btf__type_by_id(types, static_cast<unsigned>(id))->size != wanted.size)
            return false;
    }
    return true;
}

bool has_value(const btf* types, const btf_type* type, std::string_view wanted) {
    const struct btf_enum* values = btf_enum(type);
    for (int i = 0; i < btf_vlen(type); ++i)
        if (const char* name = btf__name_by_offset(types, values[i].name_off); name && name == wanted)
            return true;
    return false;
}

// Netfilter's modules, and those that define drop reasons of their own: other modules need not be read.
constexpr std::string_view module_prefixes[] = {"nf_",        "nft_",       "nfnetlink",  "x_tables", "ip_tables",
                                                "ip6_tables", "arp_tables", "ebt",        "xt_",      "ipt_",
                                                "ip6t_",      "mac80211",   "openvswitch"};

bool of_interest(std::string_view module) {
    for (const std::string_view prefix : module_prefixes)
        if (module.starts_with(prefix))
            return true;
    return false;
}

} // namespace

namespace {

// A set of names that is asked for a hundred thousand others: most of them differ in how they begin.
class NameSet {
public:
    explicit NameSet(const KernelTypes::Names& names) : names_(names.begin(), names.end()) {
        for (const std::string_view name : names_)
            beginnings_.set(beginning(name.data()));
    }
    // The name as it is in the set; nullptr when it is not. `name` ends with a zero.
    const std::string_view* find(const char* name) const {
        if (!beginnings_.test(beginning(name)))
            return nullptr;
        const auto found = names_.find(name);
        return found == names_.end() ? nullptr : &*found;
    }

private:
    static std::size_t beginning(const char* name) { // no name is empty
        return static_cast<unsigned char>(name[0]) << 8 | static_cast<unsigned char>(name[1]);
    }
    std::unordered_set<std::string_view> names_;
    std::bitset<1 << 16> beginnings_;
};

} // namespace

struct KernelTypes::Search {
    NameSet functions, types;
    std::unordered_set<std::string_view> found; // of types, in vmlinux: as libbpf, modules are not asked for these
    TypeExcerpt excerpt;
    bool excerpt_complete = true;
};

void KernelTypes::read(Search& search, const btf* types, unsigned from, int btf_object) {
    const unsigned end = btf__type_cnt(types);
    for (unsigned id = from; id < end; ++id) {
        const btf_type* type = btf__type_by_id(types, id);
        // Functions, and what is looked up as they are: variables, and tracepoints.
        bool is_function = btf_is_func(type) || btf_is_var(type);
        if (!is_function && !btf_is_composite(type) && !btf_is_any_enum(type) && !btf_is_typedef(type))
            continue;
        const char* name = btf__name_by_offset(types, type->name_off);
        if (!name || !*name)
            continue;
        is_function |= btf_is_typedef(type) && std::string_view(name).starts_with("btf_trace_");
        if (is_function) {
            if (search.functions.find(name))
                functions_.try_emplace(name, FunctionId{btf_object, id});
            continue;
        }
        add_reasons(types, type, names_);
        if (btf_is_enum(type) && std::string_view(name) == "bpf_func_id")
            has_bpf_loop_ = has_value(types, type, "BPF_FUNC_loop");
        const std::string_view* wanted = search.types.find(name);
        if (!wanted || (btf_object && search.found.contains(*wanted)))
            continue;
        if (!btf_object) {
            search.found.insert(*wanted);
            if (btf_is_struct(type))
                vmlinux_structs_.try_emplace(name, id);
        }
        search.excerpt_complete &= search.excerpt.add(types, id, static_cast<unsigned>(modules_.size()), from);
    }
}

KernelTypes::KernelTypes(const Names& functions, const Names& types, const Names& more_modules) {
    const Btf vmlinux(btf__load_vmlinux_btf());
    if (!vmlinux)
        return;
    Search search{NameSet(functions), NameSet(types), {}, {}};
    read(search, vmlinux.get(), 1, 0);
    if (!has_bpf_loop_)
        lays_out_like_5_10_ = sizes_are_those_of_5_10(vmlinux.get());
    const auto wanted = [&](std::string_view name) { return of_interest(name) || more_modules.contains(std::string(name)); };
    for_each_module(vmlinux.get(), wanted, [&](Fd object, const btf* module) {
        const int btf_object = object.get();
        modules_.push_back(std::move(object));
        read(search, module, btf__type_cnt(vmlinux.get()), btf_object);
    });
    if (search.excerpt_complete)
        excerpt_ = search.excerpt.to_file();
}

KernelTypes::~KernelTypes() = default;

std::optional<FunctionId> KernelTypes::function(std::string_view name) const {
    const auto found = functions_.find(name);
    if (found == functions_.end())
        return std::nullopt;
    return found->second;
}

unsigned KernelTypes::vmlinux_type(std::string_view name) const {
    const auto found = vmlinux_structs_.find(name);
    return found == vmlinux_structs_.end() ? 0 : found->second;
}

std::optional<std::string> KernelTypes::path() const {
    if (!excerpt_)
        return std::nullopt;
    return fmt::format("/proc/self/fd/{}", excerpt_->get());
}

} // namespace tsdroptrace::attach
