// SPDX-License-Identifier: GPL-2.0-only
// What the tracer keeps, for the files that are the tracer: tracer.cpp (its life), tracer_functions.cpp,
// tracer_late.cpp and tracer_counts.cpp.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <bpf/libbpf.h>

#include "attach/attachment.h"
#include "attach/bpf_object.h"
#include "attach/filter.h"
#include "attach/kernel_types.h"
#include "attach/locations.h"
#include "attach/lost_changes.h"
#include "attach/running_kernel.h"
#include "attach/tracer.h"
#include "bpf/event.h"
#include "decode/decode.h"
#include "util/fd.h"
#include "util/kallsyms.h"

namespace tsdroptrace::attach {

// The programs are loaded as one object. When a module appears later, its programs come with another copy of the
// object, which shares the maps of the first.
struct Tracer::State {
    // What the programs count in variables, which all copies of the object share.
    struct Counts {
        std::array<std::uint32_t, TSDT_GENERATION_MAX>* generations = nullptr;
        std::array<std::int32_t, TSDT_GENERATION_MAX>* changing = nullptr;
        std::uint64_t* changes_told = nullptr;
        std::array<std::uint64_t, TSDT_NETNS_CLASSES>* changes_untold = nullptr;
        std::uint32_t *expressions_loaded = nullptr, *expressions_traced = nullptr;
        std::uint32_t* matches_traced = nullptr;
        std::uint32_t* module_loads_lost = nullptr;    // on 5.10 alone
        std::uint32_t* queue_handler_absent = nullptr; // not on 5.10
        std::uint64_t* unseen = nullptr;
        std::uint32_t* bridge_targets_traced = nullptr;
        std::uint64_t *rule_site = nullptr, *policy_site = nullptr;
        std::uint64_t* stood_in = nullptr; // not where a program is run on top of itself: on 5.10
    };

    Filter filter;
    std::vector<std::uint32_t> reasons; // of the filter
    int cpus = 1;
    KernelVersion kernel;

    ObjectKind kind = ObjectKind::fentry;
    std::vector<BpfObject> objects; // the first one owns the maps
    Counts counts;
    const bpf_program* emitter = nullptr; // the program on kfree_skb that is active
    std::vector<Link> emitter_links;
    std::map<std::string, Link, std::less<>> links; // by section: "fentry/nft_do_chain"
    std::uint64_t missed_before = 0;                // by earlier emitters
    bool without_functions = false;                 // none can be traced
    std::string problem;                            // why functions cannot be traced, once that is known
    std::set<std::string> modules;
    std::unique_ptr<const KernelTypes> types; // while starting; on 5.10 always: no module brings types there
    decode::KernelNames names;
    std::optional<std::set<std::string>> reasons_of; // the modules that have been asked for names of reasons; none: few

    std::map<std::string, Symbol, std::less<>> symbols; // kprobes: of the functions, as of the last look
    std::map<std::string, std::uint64_t> loads;         // kprobes: of the modules, then
    Locations locations{[this](std::string_view module) { return loaded_ns(module); }}; // 5.10
    bool nf_tables_at_start = false;
    std::string nft_problem; // 5.11 to 5.16: why nf_tables cannot be traced

    std::set<std::string, std::less<>> late_functions;          // asked for so far, attached or not
    std::map<std::string, BpfObject, std::less<>> late_objects; // their programs, by what those are written for
    Fd fentry_link;                                             // of try_fentry()
    std::vector<Fd> late_links;                                 // of copies of templates; the others are in `links`

    struct RingDeleter {
        void operator()(ring_buffer* ring) const { ring_buffer__free(ring); }
    };
    std::unique_ptr<ring_buffer, RingDeleter> ring, changes_ring;
    const std::function<bool(std::span<const std::byte>)>* sink = nullptr;
    const std::function<void(std::span<const std::byte>)>* changes_sink = nullptr;

    std::array<LostChanges, TSDT_GENERATION_MAX> lost_changes;

    const BpfObject& shared() const { return objects.front(); }
    // From 6.7 nft_do_chain frees what it drops itself: nothing is to be learnt at its end.
    bool chain_frees() const { return kernel >= KernelVersion{6, 7}; }
    bool on_kprobes() const { return kind != ObjectKind::fentry; }
    bool modules_have_types() const { return kind != ObjectKind::linux_5_10; }

    // tracer.cpp: its life. What returns an int returns 0 or a negative error.
    int start();
    void begin_anew(ObjectKind with);
    int add(bool with_functions, bool with_emitter);
    BpfObject open(const KernelTypes& types_now) const;
    void set_constants(const BpfObject& object, const KernelTypes& types_now, std::uint32_t instance);
    std::uint32_t reason_told_elsewhere(const KernelTypes& types_now) const;

    // tracer_functions.cpp: the functions of the kernel that are there, and those that are traced.
    bool traces(std::string_view function) const;
    bool traces_functions() const; // any
    std::set<std::string> modules_now() const;
    void find_symbols(const BpfObject& object);
    std::uint64_t address_of(const bpf_program* program) const; // kprobes; else 0
    bool is_there(std::string_view function, const KernelTypes& types_now) const;
    bool choose_functions(const BpfObject& object, const KernelTypes& types_now) const;
    void watch_queue_handler() const;
    void tell_bridge_targets() const;
    bool traces_matches() const;

    // tracer_late.cpp: functions that are traced only when something has died that they can explain.
    void trace_late(const std::string& function, std::string_view programs, const KernelTypes& types_now);
    int add_late(const std::string& function, std::string_view programs, const KernelTypes& types_now);
    int copy_template(const BpfObject& object, const std::string& function, const KernelTypes& types_now);

    // tracer_counts.cpp: what the programs count.
    void keep_counts(const BpfObject& object);
    std::uint64_t missed() const; // how often the emitter could not be run
    std::uint64_t loaded_ns(std::string_view module) const;
    void forget_lost_changes();
};

} // namespace tsdroptrace::attach
