// SPDX-License-Identifier: GPL-2.0-only
#include "attach/btf.h"

#include <cstdint>
#include <utility>

#include <bpf/bpf.h>

namespace tsdroptrace::attach {

void for_each_module(btf* vmlinux, const std::function<bool(std::string_view)>& wanted,
                     const std::function<void(Fd object, const btf* types)>& each) {
    std::uint32_t id = 0;
    while (bpf_btf_get_next_id(id, &id) == 0) {
        Fd object(bpf_btf_get_fd_by_id(id));
        char name[64] = "";
        bpf_btf_info info{};
        info.name = reinterpret_cast<std::uintptr_t>(name);
        info.name_len = sizeof(name);
        std::uint32_t size = sizeof(info);
        if (!object || bpf_obj_get_info_by_fd(object.get(), &info, &size) || !info.kernel_btf ||
            std::string_view(name) == "vmlinux" || !wanted(name))
            continue;
        if (const Btf types(btf__load_from_kernel_by_id_split(id, vmlinux)); types)
            each(std::move(object), types.get());
    }
}

} // namespace tsdroptrace::attach
