// SPDX-License-Identifier: GPL-2.0-only
// What the running kernel's own type information (BTF) tells: the names of drop reasons, which functions can be
// attached to, and the structs that our programs are fitted to (CO-RE). Read once: it is a large part of starting up.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_set>
#include <vector>

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
    using Names = std::unordered_set<std::string>;

    // Looks for `functions`, variables and tracepoints ("btf_trace_kfree_skb") among them, and for the structs, unions, enums and typedefs of `types`, in vmlinux and in the modules
    // that are loaded now: netfilter's, and `more_modules`. Finds nothing on a kernel without BTF; modules have theirs
    // from 5.11.
    KernelTypes(const Names& functions, const Names& types, const Names& more_modules = {});
    ~KernelTypes();
    KernelTypes(const KernelTypes&) = delete;
    KernelTypes& operator=(const KernelTypes&) = delete;

    std::optional<FunctionId> function(std::string_view name) const;
    unsigned vmlinux_type(std::string_view name) const; // of a struct among `types`; 0: not found

    // Whether BPF programs may call bpf_loop (5.17): without it the programs on fentry cannot be loaded.
    bool has_bpf_loop() const { return has_bpf_loop_; }
    // Whether vmlinux's types that lie within nf_tables' structures have the sizes that bpf/module_types_5_10.h
    // was written for. Asked of kernels whose modules have no types.
    bool lays_out_like_5_10() const { return lays_out_like_5_10_; }

    // Drop reasons by number, those of the modules that are read included. Empty on a kernel without reasons.
    const decode::KernelNames& names() const { return names_; }

    // Of the file with the types that were found, for bpf_object_open_opts.btf_custom_path; as long as this lives.
    // Nothing when it could not be written: libbpf then reads the kernel's own.
    std::optional<std::string> path() const;

private:
    struct Search;
    void read(Search& search, const btf* types, unsigned from, int btf_object);

    decode::KernelNames names_;
    bool has_bpf_loop_ = false, lays_out_like_5_10_ = false;
    std::map<std::string, FunctionId, std::less<>> functions_;
    std::map<std::string, unsigned, std::less<>> vmlinux_structs_;
    std::vector<Fd> modules_;
    std::optional<Fd> excerpt_;
};

} // namespace tsdroptrace::attach
