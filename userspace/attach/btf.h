// SPDX-License-Identifier: GPL-2.0-only
// The kernel's type information (BTF), of vmlinux and of its modules.
#pragma once

#include <functional>
#include <memory>
#include <string_view>

#include <bpf/btf.h>

#include "util/fd.h"

namespace tsdroptrace::attach {

struct BtfDeleter {
    void operator()(btf* value) const { btf__free(value); }
};
using Btf = std::unique_ptr<btf, BtfDeleter>;

// Hands over the types of each module that is there now and whose name is `wanted`: the kernel's object, and the types,
// numbered from btf__type_cnt(vmlinux) on, which live as long as the call. One whose types cannot be read is left out.
// Kernels before 5.11 have none.
void for_each_module(btf* vmlinux, const std::function<bool(std::string_view)>& wanted,
                     const std::function<void(Fd object, const btf* types)>& each);

} // namespace tsdroptrace::attach
