// SPDX-License-Identifier: GPL-2.0-only
// Programs are fitted to the running kernel while they are loaded: where they are attached, and what some of their
// instructions stand for, is looked up in the types that were found once, rather than by libbpf for each of them.
#pragma once

#include <string_view>

#include "attach/bpf_object.h"
#include "attach/kernel_types.h"

namespace tsdroptrace::attach {

// What bpf/seen.h needs to read a header with one load (6.2): KernelTypes::function() says whether it is there.
inline constexpr const char* rdonly_cast = "bpf_rdonly_cast";

// Makes libbpf leave to us the lookup for programs on fentry, fexit and tp_btf, and know those of the section
// "syscall". To be called before the first object is opened; more often does no harm.
void register_lookup();

// Adds the names that instructions may stand for (enum tsdt_placeholder of bpf/event.h) to those that KernelTypes looks
// for. One that it does not find becomes 0 in the program.
void add_placeholders(KernelTypes::Names& functions, KernelTypes::Names& types);

// Loads the programs of the object that are set to be (autoload), with its maps. `types` were looked through for
// what its programs are on; templates are loaded for `template_function`. Returns 0 or a negative error: -ESRCH where a
// function is not among `types`, else the kernel's own.
int load_programs(const BpfObject& object, const KernelTypes& types, std::string_view template_function = {});

} // namespace tsdroptrace::attach
