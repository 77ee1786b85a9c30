// SPDX-License-Identifier: GPL-2.0-only
#include "attach/kernel_types.h"

#include <cerrno>
#include <cstring>

#include <bpf/bpf.h>
#include <bpf/btf.h>

namespace tsdroptrace::attach {
namespace {

struct BtfDeleter {
    void operator()(btf* value) const { btf__free(value); }
};
using Btf = std::unique_ptr<btf, BtfDeleter>;

constexpr std::string_view core_prefix = "SKB_DROP_REASON_";

void add_reasons(const btf* types, const btf_type* type, decode::KernelNames& names) {
    const struct btf_enum* values = btf_enum(type); // libbpf has a function of that name, too
    for (int i = 0; i < btf_vlen(type); ++i) {
        const char* name = btf__name_by_offset(types, values[i].name_off);
        if (!name || !*name)
            continue;
        std::string_view reason = name;
        if (reason.starts_with(core_prefix))
            reason.remove_prefix(core_prefix.size());
        names.reasons.emplace(static_cast<std::uint32_t>(values[i].val), reason);
    }
}

// Netfilter's modules, and those that define drop reasons of their own: other modules need not be read.
constexpr std::string_view module_prefixes[] = {"nf_", "nft_", "nfnetlink", "x_tables", "ip_tables",  "ip6_tables",
                                                "xt_", "ipt_", "ip6t_",     "mac80211", "openvswitch"};

bool of_interest(std::string_view module) {
    for (const std::string_view prefix : module_prefixes)
        if (module.starts_with(prefix))
            return true;
    return false;
}

} // namespace

void KernelTypes::read(const btf* types, unsigned from, int btf_object,
                       const std::set<std::string, std::less<>>& functions) {
    const unsigned end = btf__type_cnt(types);
    for (unsigned id = from; id < end; ++id) {
        const btf_type* type = btf__type_by_id(types, id);
        if (!btf_is_func(type) && !btf_is_enum(type))
            continue;
        const char* name = btf__name_by_offset(types, type->name_off);
        if (!name || !*name)
            continue;
        if (btf_is_enum(type)) {
            if (std::string_view(name).ends_with("_drop_reason"))
                add_reasons(types, type, names_);
        } else if (functions.contains(std::string_view(name))) {
            functions_.try_emplace(name, FunctionId{btf_object, id});
        }
    }
}

KernelTypes::KernelTypes(const std::set<std::string, std::less<>>& functions,
                         const std::set<std::string, std::less<>>& more_modules) {
    const Btf vmlinux(btf__load_vmlinux_btf());
    if (!vmlinux)
        return;
    read(vmlinux.get(), 1, 0, functions);
    std::uint32_t id = 0;
    while (bpf_btf_get_next_id(id, &id) == 0) {
        Fd object(bpf_btf_get_fd_by_id(id));
        char name[64] = "";
        bpf_btf_info info{};
        info.name = reinterpret_cast<std::uintptr_t>(name);
        info.name_len = sizeof(name);
        std::uint32_t size = sizeof(info);
        if (!object || bpf_obj_get_info_by_fd(object.get(), &info, &size) || !info.kernel_btf ||
            (!of_interest(name) && !more_modules.contains(std::string_view(name))))
            continue;
        const Btf types(btf__load_from_kernel_by_id_split(id, vmlinux.get()));
        if (!types)
            continue;
        read(types.get(), btf__type_cnt(vmlinux.get()), object.get(), functions);
        modules_.push_back(std::move(object));
    }
}

KernelTypes::~KernelTypes() = default;

std::optional<FunctionId> KernelTypes::function(std::string_view name) const {
    const auto found = functions_.find(name);
    if (found == functions_.end())
        return std::nullopt;
    return found->second;
}

} // namespace tsdroptrace::attach
