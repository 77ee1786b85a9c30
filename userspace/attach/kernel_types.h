// SPDX-License-Identifier: GPL-2.0-only
// What the running kernel's own type information (BTF) tells: the names of drop reasons, and which functions can
// be attached to. Read once: it is the largest part of starting up.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <string_view>

#include "decode/decode.h"
#include "util/fd.h"

struct btf;

namespace tsdroptrace::attach {

struct FunctionId {
    int btf_object = 0; // descriptor of the module's BTF, owned by KernelTypes; 0 for vmlinux
    unsigned type_id = 0;
};

class KernelTypes {
public:
    // Looks for `functions` in vmlinux and in the modules that are loaded now: netfilter's, and `more_modules`. Finds
    // nothing on a kernel without BTF; modules have theirs from 5.11.
    explicit KernelTypes(const std::set<std::string, std::less<>>& functions,
                         const std::set<std::string, std::less<>>& more_modules = {});
    ~KernelTypes();
    KernelTypes(const KernelTypes&) = delete;
    KernelTypes& operator=(const KernelTypes&) = delete;

    std::optional<FunctionId> function(std::string_view name) const;

    // Drop reasons by number: enum skb_drop_reason (5.17) and the enums of its subsystems (6.4), those of modules
    // included where the module is loaded. Empty on a kernel without reasons.
    const decode::KernelNames& names() const { return names_; }

private:
    void read(const btf* types, unsigned from, int btf_object, const std::set<std::string, std::less<>>& functions);

    decode::KernelNames names_;
    std::map<std::string, FunctionId, std::less<>> functions_;
    std::vector<Fd> modules_;
};

} // namespace tsdroptrace::attach
