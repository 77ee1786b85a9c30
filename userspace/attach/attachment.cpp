// SPDX-License-Identifier: GPL-2.0-only
#include "attach/attachment.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <fstream>
#include <map>
#include <string>
#include <system_error>
#include <thread>

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <linux/perf_event.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace tsdroptrace::attach {
namespace {

// What comes behind the kind: a function or a tracepoint.
std::string_view place_of(const bpf_program* program) {
    const std::string_view section = bpf_program__section_name(program);
    return section.substr(section.find('/') + 1);
}

bool is_at_end(const bpf_program* program) {
    const std::string_view section = bpf_program__section_name(program);
    return section.starts_with("fexit/") || section.starts_with("kretprobe/");
}

// libbpf would give the function's name, for which 5.10 goes through all of its symbols, several times.
bpf_link* attach_kprobe(const bpf_program* program, std::uint64_t address, bool at_return) {
    perf_event_attr attributes{};
    attributes.size = sizeof(attributes);
    attributes.config = at_return; // /sys/bus/event_source/devices/kprobe/format/retprobe
    attributes.kprobe_addr = address;
    if (!(std::ifstream("/sys/bus/event_source/devices/kprobe/type") >> attributes.type)) {
        errno = ENODEV;
        return nullptr;
    }
    const auto event = static_cast<int>(syscall(SYS_perf_event_open, &attributes, -1, 0, -1, PERF_FLAG_FD_CLOEXEC));
    bpf_link* link = event < 0 ? nullptr : bpf_program__attach_perf_event(program, event);
    if (!link && event >= 0) {
        const int error = errno;
        close(event);
        errno = error;
    }
    return link; // which closes the event
}

bpf_link* attach(const Attachment& attachment) {
    const std::string_view section = bpf_program__section_name(attachment.program);
    const bool at_return = section.starts_with("kretprobe/");
    if (at_return || section.starts_with("kprobe/"))
        return attach_kprobe(attachment.program, attachment.address, at_return);
    if (bpf_program__type(attachment.program) == BPF_PROG_TYPE_RAW_TRACEPOINT)
        return bpf_program__attach_raw_tracepoint(attachment.program,
                                                  std::string(place_of(attachment.program)).c_str());
    return bpf_program__attach_trace(attachment.program);
}

} // namespace

void LinkDeleter::operator()(bpf_link* link) const {
    bpf_link__destroy(link);
}

std::string_view function_of(const bpf_program* program) {
    const std::string_view section = bpf_program__section_name(program);
    for (const std::string_view prefix : function_sections)
        if (section.starts_with(prefix))
            return section.substr(prefix.size());
    return {};
}

std::string tracepoint_of(const bpf_program* program) {
    constexpr std::string_view prefix = "tp_btf/";
    const std::string_view section = bpf_program__section_name(program);
    return section.starts_with(prefix) ? "btf_trace_" + std::string(section.substr(prefix.size())) : std::string{};
}

// Attaching to a function waits for grace periods of the kernel, tens of milliseconds and more on a busy machine: by
// several threads for several functions, these pass together.
void attach_all(std::vector<Attachment>& attachments) {
    std::map<std::string_view, std::vector<Attachment*>> by_place;
    for (Attachment& attachment : attachments)
        by_place[place_of(attachment.program)].push_back(&attachment);
    std::vector<std::vector<Attachment*>> places;
    for (auto& [name, all] : by_place)
        places.push_back(std::move(all));
    // A function's end first: what has begun before both are there would never end.
    for (auto& all : places)
        std::stable_partition(all.begin(), all.end(),
                              [](const Attachment* attachment) { return is_at_end(attachment->program); });

    std::atomic<std::size_t> next = 0;
    const auto work = [&] {
        for (std::size_t place; (place = next++) < places.size();)
            for (Attachment* attachment : places[place]) {
                attachment->link.reset(attach(*attachment));
                if (!attachment->link)
                    attachment->error = errno;
            }
    };
    std::vector<std::jthread> helpers;
    try {
        while (helpers.size() < std::min<std::size_t>(places.size(), 8))
            helpers.emplace_back(work);
    } catch (const std::system_error&) {
        // No more threads to be had: it takes longer.
    }
    work();
}

} // namespace tsdroptrace::attach
