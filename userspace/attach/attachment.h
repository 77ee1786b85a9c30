// SPDX-License-Identifier: GPL-2.0-only
// Attaches programs to the functions and tracepoints that their sections name.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

struct bpf_link;
struct bpf_program;

namespace tsdroptrace::attach {

struct LinkDeleter {
    void operator()(bpf_link* link) const; // detaches
};
using Link = std::unique_ptr<bpf_link, LinkDeleter>;

inline constexpr std::string_view function_sections[] = {"fentry/", "fexit/", "kprobe/", "kretprobe/"};

// "fentry/nft_do_chain" -> "nft_do_chain", as do the kinds above; empty for a program that is not on a function.
std::string_view function_of(const bpf_program* program);

// "tp_btf/kfree_skb" -> "btf_trace_kfree_skb", the name that the kernel's types have for it; empty for another program.
std::string tracepoint_of(const bpf_program* program);

struct Attachment {
    bpf_program* program = nullptr; // loaded
    std::uint64_t address = 0;      // kprobes: of the function
    Link link = {};                 // set by attach_all(); or else
    int error = 0;                  // an errno
};

// Programs at the same function are attached in their order.
void attach_all(std::vector<Attachment>& attachments);

} // namespace tsdroptrace::attach
