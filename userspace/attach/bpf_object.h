// SPDX-License-Identifier: GPL-2.0-only
// One opened copy of one of the BPF objects that are built into this program, asked by name: what one of them does not
// have is simply not there.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <type_traits>

#include "attach/kernel_types.h"

struct bpf_map;
struct bpf_object;
struct bpf_object_skeleton;
struct bpf_program;

namespace tsdroptrace::attach {

enum class ObjectKind {
    fentry,     // bpf/tsdroptrace.bpf.c
    kprobe,     // bpf/tsdroptrace_kprobe.bpf.c
    linux_5_10, // bpf/tsdroptrace_5_10.bpf.c: kprobes, too
};

class BpfObject {
public:
    // `types_path`: KernelTypes::path(), which must hold until load() has returned, or nullptr. An object that could
    // not be opened is false; errno says why.
    static BpfObject open(ObjectKind kind, const char* types_path);

    explicit operator bool() const { return object_ != nullptr; }
    bpf_object* get() const { return object_; } // for what libbpf alone can do
    ObjectKind kind() const { return kind_; }

    bpf_program* program(const char* name) const;
    // What exists only in some objects need not be asked for first: these do nothing where it is not.
    void set_autoload(const char* program, bool load) const;
    bool autoload(const char* program) const;

    bpf_map* map(const char* name) const; // ".bss" and the like, too
    int fd(const char* map) const;        // after load(); negative where there is none
    void set_max_entries(const char* map, std::uint32_t entries) const;

    // Gives a `const volatile` variable its value, before load(). One that is not there, or has another size, is a
    // programming error: std::logic_error.
    template <typename T>
    void set_constant(std::string_view name, T value) const {
        static_assert(std::is_trivially_copyable_v<T>);
        set_constant(name, &value, sizeof(value));
    }

    void set_constant(std::string_view name, const void* value, std::size_t size) const;

    // The kernel's copy of a variable, from load() on and for as long as this lives; nullptr where there is none. One
    // of another size is a programming error.
    template <typename T>
    T* variable(std::string_view name) const {
        return static_cast<T*>(variable(name, sizeof(T)));
    }

    int load() const; // 0 or a negative error

    // What the object may find in the kernel: functions and tracepoints to attach to, and types. "___flavour" is no part of a name.
    KernelTypes::Names functions() const;
    KernelTypes::Names types() const;

private:
    void* variable(std::string_view name, std::size_t size) const;

    ObjectKind kind_ = ObjectKind::fentry;
    std::shared_ptr<void> owner_; // of the rest: detaches and unloads
    bpf_object* object_ = nullptr;
    bpf_object_skeleton* skeleton_ = nullptr;
};

} // namespace tsdroptrace::attach
