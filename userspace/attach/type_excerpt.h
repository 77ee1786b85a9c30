// SPDX-License-Identifier: GPL-2.0-only
// Copies types out of the kernel's type information (BTF) into a small BTF of their own. libbpf looks for each struct
// of our programs among all of the kernel's 150,000 types, and again in each module; there are a few hundred here.
#pragma once

#include <map>
#include <optional>
#include <utility>

#include "util/fd.h"

struct btf;

namespace tsdroptrace::attach {

class TypeExcerpt {
public:
    TypeExcerpt();
    ~TypeExcerpt();
    TypeExcerpt(const TypeExcerpt&) = delete;
    TypeExcerpt& operator=(const TypeExcerpt&) = delete;

    // Copies the type `id` of `types`, with all that lies in it. What its pointers point to is left out: a relocation
    // never follows one. Where `types` are a module's, `module` is a number of its own from 1, and ids below `shared`
    // are those of vmlinux, copied once for all; else both are 0. False when it could not: then the excerpt must not be
    // used.
    bool add(const btf* types, unsigned id, unsigned module, unsigned shared);

    // A file that bpf_object_open_opts.btf_custom_path can name, by /proc/self/fd. Nothing when it could not be made.
    std::optional<Fd> to_file() const;

private:
    struct Source {
        const btf* types;
        unsigned module, shared;
    };
    int copy(const Source& source, unsigned id, int depth);

    btf* excerpt_;
    std::map<std::pair<unsigned, unsigned>, int> copied_; // by module and id
};

} // namespace tsdroptrace::attach
