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
    // Looks for `functions` in vmlinux and in the modules that are loaded now. Finds nothing on a kernel without
    // BTF; modules have theirs from 5.11.
    explicit KernelTypes(const std::set<std::string, std::less<>>& functions);
    ~KernelTypes();
    KernelTypes(const KernelTypes&) = delete;
    KernelTypes& operator=(const KernelTypes&) = delete;

    std::optional<FunctionId> function(std::string_view name) const;

    // Whether BPF programs may call bpf_loop (5.17): without it the programs on fentry cannot be loaded.
    bool has_bpf_loop() const { return has_bpf_loop_; }
    // Whether vmlinux's types that lie within nf_tables' structures have the sizes that bpf/module_types_5_10.h
    // was written for. Asked of kernels whose modules have no types.
    bool lays_out_like_5_10() const { return lays_out_like_5_10_; }

    // Drop reasons by number: enum skb_drop_reason (5.17) and the enums of its subsystems (6.4), those of modules
    // included where the module is loaded. Empty on a kernel without reasons.
    const decode::KernelNames& names() const { return names_; }

private:
    void read(const btf* types, unsigned from, int btf_object, const std::set<std::string, std::less<>>& functions);

    decode::KernelNames names_;
    bool has_bpf_loop_ = false, lays_out_like_5_10_ = false;
    std::map<std::string, FunctionId, std::less<>> functions_;
    std::vector<Fd> modules_;
};

} // namespace tsdroptrace::attach
