// SPDX-License-Identifier: GPL-2.0-only
#include "attach/reason_names.h"

#include <cstdint>
#include <string_view>

#include "attach/btf.h"

namespace tsdroptrace::attach {
namespace {

void add_all(const btf* types, unsigned from, decode::KernelNames& names) {
    const unsigned end = btf__type_cnt(types);
    for (unsigned id = from; id < end; ++id)
        add_reasons(types, btf__type_by_id(types, id), names);
}

// Empty where the types have none there: they may come from a file.
std::string_view name_at(const btf* types, std::uint32_t offset) {
    const char* name = btf__name_by_offset(types, offset);
    return name ? name : "";
}

} // namespace

void add_reasons(const btf* types, const btf_type* type, decode::KernelNames& names) {
    constexpr std::string_view core_prefix = "SKB_DROP_REASON_", for_sparse = "___";
    if (!btf_is_enum(type))
        return;
    const std::string_view list = name_at(types, type->name_off);
    if (!list.ends_with("_drop_reason"))
        return;
    const struct btf_enum* values = btf_enum(type); // libbpf has a function of that name, too
    for (int i = 0; i < btf_vlen(type); ++i) {
        const auto code = static_cast<std::uint32_t>(values[i].val);
        // A subsystem's "none" (RX_CONTINUE, QDISC_DROP_UNSPEC) has a number that is the core's.
        if (list != "skb_drop_reason" && code <= 0xffff)
            continue;
        std::string_view reason = name_at(types, values[i].name_off);
        if (reason.starts_with(core_prefix))
            reason.remove_prefix(core_prefix.size());
        if (reason.starts_with(for_sparse)) // mac80211 has each of them twice, first as ___RX_DROP_U_REPLAY
            reason.remove_prefix(for_sparse.size());
        if (!reason.empty())
            names.reasons.emplace(code, reason);
    }
}

decode::KernelNames read_reasons() {
    decode::KernelNames names;
    const Btf vmlinux(btf__load_vmlinux_btf());
    if (!vmlinux)
        return names;
    add_all(vmlinux.get(), 1, names);
    for_each_module(
        vmlinux.get(), [](std::string_view) { return true; },
        [&](const Fd&, const btf* module) { add_all(module, btf__type_cnt(vmlinux.get()), names); });
    return names;
}

} // namespace tsdroptrace::attach
