// SPDX-License-Identifier: GPL-2.0-only
#include "attach/tracer.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <numeric>
#include <set>
#include <system_error>
#include <thread>
#include <utility>

#include <bpf/bpf.h>
#include <bpf/btf.h>
#include <bpf/libbpf.h>
#include <fmt/format.h>
#include <linux/netfilter.h>
#include <linux/netfilter_arp.h>
#include <linux/netfilter_bridge.h>
#include <spdlog/spdlog.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "attach/kernel_types.h"
#include "attach/lost_changes.h"
#include "tsdroptrace.skel.h"
#include "util/fd.h"
#include "util/netns.h"

namespace tsdroptrace::attach {
namespace {

struct ObjectDeleter {
    void operator()(tsdroptrace_bpf* object) const { tsdroptrace_bpf::destroy(object); } // detaches and unloads
};

struct LinkDeleter {
    void operator()(bpf_link* link) const { bpf_link__destroy(link); }
};

int to_log(libbpf_print_level level, const char* format, va_list arguments) {
    // What libbpf warns of is often expected here (a function that this kernel does not have).
    if (level == LIBBPF_DEBUG || !spdlog::should_log(spdlog::level::debug))
        return 0;
    va_list again;
    va_copy(again, arguments);
    std::string text(static_cast<std::size_t>(std::max(std::vsnprintf(nullptr, 0, format, again), 0)), '\0');
    va_end(again);
    const int length = std::vsnprintf(text.data(), text.size() + 1, format, arguments);
    std::string_view line = text;
    while (line.ends_with('\n'))
        line.remove_suffix(1);
    spdlog::debug("{}", line);
    return length;
}

bool readable(const std::string& path) {
    return access(path.c_str(), R_OK) == 0;
}

bool module_is_loaded(const char* module) {
    return readable(std::string("/sys/module/") + module);
}

struct KernelVersion {
    unsigned major = 0, minor = 0;
    auto operator<=>(const KernelVersion&) const = default;
};

KernelVersion running_kernel() {
    utsname name{};
    KernelVersion version;
    if (uname(&name) == 0)
        (void)std::sscanf(name.release, "%u.%u", &version.major, &version.minor);
    return version;
}

std::optional<std::uint64_t> effective_capabilities() {
    std::ifstream status("/proc/self/status");
    for (std::string line; std::getline(status, line);) {
        if (line.starts_with("CapEff:"))
            return std::strtoull(line.c_str() + 7, nullptr, 16);
    }
    return std::nullopt;
}

// The contents of /sys/kernel/security/lockdown with the active mode in brackets; "" where there is none.
std::string lockdown_mode() {
    std::ifstream file("/sys/kernel/security/lockdown");
    std::string line;
    std::getline(file, line);
    const auto open = line.find('['), close = line.find(']');
    if (open == std::string::npos || close == std::string::npos || close < open)
        return "";
    return line.substr(open + 1, close - open - 1);
}

Error explain_load_failure(int error) {
    constexpr std::uint64_t cap_sys_admin = 1ULL << 21, cap_perfmon = 1ULL << 38, cap_bpf = 1ULL << 39;
    const std::uint64_t capabilities = effective_capabilities().value_or(0);
    const bool privileged =
        (capabilities & cap_sys_admin) || ((capabilities & cap_bpf) && (capabilities & cap_perfmon));

    if ((error == EPERM || error == EACCES) && !privileged)
        return {ErrorKind::unsupported,
                "not allowed to load BPF programs: needs root, or CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN; "
                "run it with sudo"};
    if (error == EPERM && lockdown_mode() == "confidentiality")
        return {ErrorKind::unsupported, "this kernel is locked down (confidentiality): BPF may not read kernel memory; "
                                        "boot with lockdown=integrity or without lockdown"};
    return {ErrorKind::unsupported,
            fmt::format("cannot load the BPF program for the tracepoint kfree_skb: {} (error {}); needs a kernel "
                        "from 5.17 with BPF and BTF; --verbose shows the kernel's own words",
                        std::strerror(error), error)};
}

constexpr std::size_t candidate_bytes = 32, chunk_candidates = 32;

// How many chunks of candidate rules each CPU gets, per address family: 4 MB in all, 8192 rules at most.
std::uint32_t pool_chunks(int cpus) {
    constexpr std::size_t budget = 4 << 20, chunk = candidate_bytes * chunk_candidates;
    return static_cast<std::uint32_t>(
        std::clamp<std::size_t>(budget / (chunk * static_cast<std::size_t>(cpus)), 8, 256));
}

struct Attachment {
    bpf_program* program = nullptr;
    bpf_link* link = nullptr;
    int error = 0;
};

// "fentry/nft_do_chain" -> "nft_do_chain"
std::string_view place_of(const bpf_program* program) {
    const std::string_view section = bpf_program__section_name(program);
    return section.substr(section.find('/') + 1);
}

bpf_link* attach(const bpf_program* program) {
    if (bpf_program__type(program) == BPF_PROG_TYPE_RAW_TRACEPOINT)
        return bpf_program__attach_raw_tracepoint(program, std::string(place_of(program)).c_str());
    return bpf_program__attach_trace(program);
}

// Attaching to a function waits for grace periods of the kernel, tens of milliseconds and more on a busy machine: by
// several threads for several functions, these pass together. Programs at the same place stay in their order.
void attach_all(std::vector<Attachment>& attachments) {
    std::map<std::string_view, std::vector<Attachment*>> by_place;
    for (Attachment& attachment : attachments)
        by_place[place_of(attachment.program)].push_back(&attachment);
    std::vector<std::vector<Attachment*>> places;
    for (auto& [name, all] : by_place)
        places.push_back(std::move(all));

    std::atomic<std::size_t> next = 0;
    const auto work = [&] {
        for (std::size_t place; (place = next++) < places.size();)
            for (Attachment* attachment : places[place])
                if (!(attachment->link = attach(attachment->program)))
                    attachment->error = errno;
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

// As place_of(); empty for a program that is not on a function.
std::string_view function_of(const bpf_program* program) {
    const std::string_view section = bpf_program__section_name(program);
    return section.starts_with("fentry/") || section.starts_with("fexit/") ? place_of(program) : std::string_view();
}

// Every function that a program of the object can be attached to.
KernelTypes::Names functions_of(const tsdroptrace_bpf& object) {
    KernelTypes::Names functions;
    bpf_program* program;
    bpf_object__for_each_program (program, object.obj)
        if (const std::string_view function = function_of(program); !function.empty())
            functions.emplace(function);
    return functions;
}

// Every type of the object that the kernel may know. "___flavour" is no part of the kernel's name.
KernelTypes::Names types_of(const tsdroptrace_bpf& object) {
    KernelTypes::Names names;
    const btf* types = bpf_object__btf(object.obj);
    for (unsigned id = 1; types && id < btf__type_cnt(types); ++id) {
        const btf_type* type = btf__type_by_id(types, id);
        if (!btf_is_composite(type) && !btf_is_any_enum(type) && !btf_is_typedef(type))
            continue;
        const std::string_view name = btf__name_by_offset(types, type->name_off);
        if (!name.empty())
            names.emplace(name.substr(0, name.find("___")));
    }
    return names;
}

// Programs that are attached only when something has died that they can explain (bpf/hook_function.h).
bool is_hook_function_program(std::string_view function) {
    return function == "hook_function" || function == "nf_hook_run_bpf";
}

// Programs on functions of the kernel itself that are of use only where a rule can hand packets to a queue: its module
// is there then.
bool is_queue_program(std::string_view function) {
    return function == "nf_queue" || function == "nf_register_queue_handler" || function == "nf_reinject";
}

bool rules_may_queue(const KernelTypes& types) {
    return types.function("nft_queue_eval") || types.function("nfqueue_tg_v3");
}

// At which hook nf_hook_slow is called by which function (bpf/hook_function.h). Not those that call it for several.
struct HookCaller {
    const char* name;
    std::uint8_t pf, hook;
};
constexpr HookCaller hook_callers[] = {
    {"ip_rcv", NFPROTO_IPV4, NF_INET_PRE_ROUTING},
    {"ip_sublist_rcv", NFPROTO_IPV4, NF_INET_PRE_ROUTING},
    {"ip_list_rcv", NFPROTO_IPV4, NF_INET_PRE_ROUTING},
    {"ip_local_deliver", NFPROTO_IPV4, NF_INET_LOCAL_IN},
    {"ip_forward", NFPROTO_IPV4, NF_INET_FORWARD},
    {"__ip_local_out", NFPROTO_IPV4, NF_INET_LOCAL_OUT},
    {"raw_sendmsg", NFPROTO_IPV4, NF_INET_LOCAL_OUT},
    {"raw_send_hdrinc", NFPROTO_IPV4, NF_INET_LOCAL_OUT},
    {"ip_output", NFPROTO_IPV4, NF_INET_POST_ROUTING},
    {"ip_mc_output", NFPROTO_IPV4, NF_INET_POST_ROUTING},
    {"ipv6_rcv", NFPROTO_IPV6, NF_INET_PRE_ROUTING},
    {"ip6_sublist_rcv", NFPROTO_IPV6, NF_INET_PRE_ROUTING},
    {"ipv6_list_rcv", NFPROTO_IPV6, NF_INET_PRE_ROUTING},
    {"ip6_input", NFPROTO_IPV6, NF_INET_LOCAL_IN},
    {"ip6_forward", NFPROTO_IPV6, NF_INET_FORWARD},
    {"__ip6_local_out", NFPROTO_IPV6, NF_INET_LOCAL_OUT},
    {"ip6_xmit", NFPROTO_IPV6, NF_INET_LOCAL_OUT},
    {"rawv6_sendmsg", NFPROTO_IPV6, NF_INET_LOCAL_OUT},
    {"rawv6_send_hdrinc", NFPROTO_IPV6, NF_INET_LOCAL_OUT},
    {"ip6_output", NFPROTO_IPV6, NF_INET_POST_ROUTING},
    {"arp_rcv", NFPROTO_ARP, NF_ARP_IN},
    {"arp_xmit", NFPROTO_ARP, NF_ARP_OUT},
    {"br_pass_frame_up", NFPROTO_BRIDGE, NF_BR_LOCAL_IN},
    {"br_forward_finish", NFPROTO_BRIDGE, NF_BR_POST_ROUTING},
    {"__netif_receive_skb_core", NFPROTO_NETDEV, NF_NETDEV_INGRESS},
    {"__dev_queue_xmit", NFPROTO_NETDEV, NF_NETDEV_EGRESS},
};

// How many functions may be traced so in one run.
constexpr std::size_t max_hook_functions = 32;

// The types that functions are looked up in while an object is being loaded, and the function that stands for
// "hook_function" then.
thread_local const KernelTypes* types_for_loading = nullptr;
thread_local std::string_view hook_function_for_loading;

int set_attach_target(bpf_program* program, bpf_prog_load_opts* options, long) {
    std::string_view name = function_of(program);
    if (name == "hook_function")
        name = hook_function_for_loading;
    const auto id = types_for_loading->function(name);
    if (!id)
        return -ESRCH;
    options->attach_btf_id = id->type_id;
    options->attach_btf_obj_fd = static_cast<__u32>(id->btf_object);
    return 0;
}

// libbpf looks each function up in vmlinux once more for each module that is loaded: seconds on a machine with
// many. These handlers, which it asks before its own, use what KernelTypes has found in one go.
void register_lookup() {
    static bool done = false;
    if (std::exchange(done, true))
        return;
    LIBBPF_OPTS(libbpf_prog_handler_opts, handler);
    handler.prog_prepare_load_fn = set_attach_target;
    libbpf_register_prog_handler("fentry/", BPF_PROG_TYPE_TRACING, BPF_TRACE_FENTRY, &handler);
    libbpf_register_prog_handler("fexit/", BPF_PROG_TYPE_TRACING, BPF_TRACE_FEXIT, &handler);
}

// The modules that have types of their own, and so functions to attach to.
std::set<std::string> modules_with_btf() {
    std::set<std::string> modules;
    std::error_code ignored;
    for (const auto& entry : std::filesystem::directory_iterator("/sys/kernel/btf", ignored))
        modules.insert(entry.path().filename());
    return modules;
}

} // namespace

// The programs are loaded as one object. When a module appears later, its programs come with another copy of the
// object, which shares the maps of the first.
struct Tracer::State {
    using Object = std::unique_ptr<tsdroptrace_bpf, ObjectDeleter>;

    Filter filter;
    std::vector<std::uint32_t> reasons; // of the filter
    int cpus = 1;
    KernelVersion kernel;

    std::vector<Object> objects;        // the first one owns the maps
    tsdroptrace_bpf* emitter = nullptr; // the one whose programs on kfree_skb are active
    std::vector<std::unique_ptr<bpf_link, LinkDeleter>> links;
    std::set<std::string, std::less<>> attached;       // sections: "fentry/nft_do_chain"
    std::uint64_t missed_before = 0;                   // by earlier emitters
    std::string problem;                               // why fentry is not to be had, once that is known
    std::set<std::string, std::less<>> hook_functions; // asked for so far, attached or not
    std::vector<Object> hook_objects;                  // their programs
    bpf_program* hook_program = nullptr;               // which the others are copies of
    std::vector<Fd> hook_links;                        // of the copies
    std::set<std::string> modules;
    std::unique_ptr<const KernelTypes> types; // while starting
    decode::KernelNames names;

    struct RingDeleter {
        void operator()(ring_buffer* ring) const { ring_buffer__free(ring); }
    };
    std::unique_ptr<ring_buffer, RingDeleter> ring, changes_ring;
    const std::function<bool(std::span<const std::byte>)>* sink = nullptr;
    const std::function<void(std::span<const std::byte>)>* changes_sink = nullptr;

    bool traces(std::string_view function) const {
        return attached.contains(fmt::format("fentry/{}", function)) ||
               attached.contains(fmt::format("fexit/{}", function));
    }
    const tsdroptrace_bpf& maps_of() const { return *objects.front(); }
    std::uint64_t missed() const; // how often on_kfree_skb of the emitter could not be run
    void forget_lost_changes();

    std::array<LostChanges, TSDT_GENERATION_MAX> lost_changes;

    int add(bool with_functions, bool with_emitter);
    bool choose_functions(tsdroptrace_bpf& object) const;
    static Object open();
    int share_maps(tsdroptrace_bpf& object) const;
    int fill_filter(const tsdroptrace_bpf& object) const;
    int fill_hook_callers(const tsdroptrace_bpf& object) const;
    int add_hook_function(const std::string& name);
    int copy_hook_program(const std::string& name);
    void watch_queue_handler() const;
};

// Turns off the programs of functions that this kernel does not have (now), or that are traced already. True when
// any is left.
bool Tracer::State::choose_functions(tsdroptrace_bpf& object) const {
    bool any = false;
    bpf_program* program;
    bpf_object__for_each_program (program, object.obj) {
        const std::string_view function = function_of(program);
        if (function.empty())
            continue; // on_kfree_skb and its like: load() knows
        if (is_hook_function_program(function)) {
            bpf_program__set_autoload(program, false);
            continue;
        }
        // From 6.7 nft_do_chain frees what it drops itself: nothing is to be learnt at its end.
        const bool needed = program != object.progs.nft_do_chain_end || kernel < KernelVersion{6, 7};
        if (is_queue_program(function) && !rules_may_queue(*types_for_loading)) {
            bpf_program__set_autoload(program, false);
            continue;
        }
        const bool load = needed && !attached.contains(bpf_program__section_name(program)) &&
                          types_for_loading->function(function).has_value();
        bpf_program__set_autoload(program, load);
        any |= load;
    }
    return any;
}

// Another copy of the object, to be fitted to `types_for_loading`.
Tracer::State::Object Tracer::State::open() {
    const auto path = types_for_loading->path();
    LIBBPF_OPTS(bpf_object_open_opts, options);
    options.btf_custom_path = path ? path->c_str() : nullptr;
    return Object(tsdroptrace_bpf::open(&options));
}

// Creates the map of an object's variables, which are all zero: libbpf would copy these megabytes of zeros into it.
int create_variables(const tsdroptrace_bpf& object) {
    LIBBPF_OPTS(bpf_map_create_opts, options);
    options.map_flags = BPF_F_MMAPABLE;
    const Fd map(bpf_map_create(BPF_MAP_TYPE_ARRAY, "tsdroptr.bss", sizeof(std::uint32_t),
                                bpf_map__value_size(object.maps.bss), 1, &options));
    return map ? bpf_map__reuse_fd(object.maps.bss, map.get()) : -errno; // which keeps a descriptor of its own
}

int Tracer::State::share_maps(tsdroptrace_bpf& object) const {
    bpf_map* map;
    bpf_object__for_each_map (map, object.obj) {
        if ((bpf_map__is_internal(map) && map != object.maps.bss) || map == object.maps.emit_call)
            continue; // constants, and the program that emits: each object has its own
        const bpf_map* ours = map == object.maps.bss ? maps_of().maps.bss
                                                     : bpf_object__find_map_by_name(maps_of().obj, bpf_map__name(map));
        if (const int error = bpf_map__reuse_fd(map, bpf_map__fd(ours)))
            return error;
    }
    return 0;
}

int fill_ranges(const std::vector<Cidr>& ranges, const bpf_map* map4, const bpf_map* map6) {
    for (const Cidr& range : ranges) {
        struct {
            std::uint32_t prefix;
            std::uint8_t address[16];
        } key{};
        const bool v4 = range.family == IpFamily::ipv4;
        const std::uint8_t present = 1;
        key.prefix = range.prefix;
        std::memcpy(key.address, range.network.data(), v4 ? 4 : 16);
        if (const int error = bpf_map_update_elem(bpf_map__fd(v4 ? map4 : map6), &key, &present, BPF_ANY))
            return error;
    }
    return 0;
}

template <typename T>
int fill_choices(const bpf_map* map, tsdt_choice what, const std::vector<T>& values) {
    for (const T value : values) {
        const tsdt_choice_key key{what, value};
        const std::uint8_t present = 1;
        if (const int error = bpf_map_update_elem(bpf_map__fd(map), &key, &present, BPF_ANY))
            return error;
    }
    return 0;
}

int fill_devices(const bpf_map* map, const std::vector<std::string>& devices) {
    for (const std::string& device : devices) {
        char name[TSDT_IFNAME_LEN] = "";
        const std::uint8_t present = 1;
        device.copy(name, sizeof(name) - 1);
        if (const int error = bpf_map_update_elem(bpf_map__fd(map), name, &present, BPF_ANY))
            return error;
    }
    return 0;
}

int Tracer::State::fill_hook_callers(const tsdroptrace_bpf& object) const {
    for (const HookCaller& caller : hook_callers) {
        char key[24] = ""; // struct hook_caller
        std::strncpy(key, caller.name, sizeof(key) - 1);
        const std::uint32_t hook = static_cast<std::uint32_t>(caller.pf << 8 | caller.hook);
        if (const int error = bpf_map_update_elem(bpf_map__fd(object.maps.hook_callers), key, &hook, BPF_ANY))
            return error;
    }
    return 0;
}

int Tracer::State::fill_filter(const tsdroptrace_bpf& object) const {
    const auto& maps = object.maps;
    for (const int error :
         {fill_ranges(filter.ranges, maps.ranges4, maps.ranges6),
          fill_ranges(filter.locals, maps.locals4, maps.locals6),
          fill_choices(maps.choices, TSDT_CHOICE_PROTO, filter.protos),
          fill_choices(maps.choices, TSDT_CHOICE_PORT, filter.ports),
          fill_choices(maps.choices, TSDT_CHOICE_REASON, reasons),
          fill_choices(maps.choices, TSDT_CHOICE_NETNS, filter.netns), fill_devices(maps.devices, filter.devices)})
        if (error)
            return error;
    return 0;
}

// Set first, then looked: a module that comes in between takes it back itself.
void Tracer::State::watch_queue_handler() const {
    std::uint32_t* absent = &maps_of().bss->queue_handler_absent;
    if (!traces("nf_register_queue_handler") || __atomic_load_n(absent, __ATOMIC_SEQ_CST))
        return;
    __atomic_store_n(absent, 1, __ATOMIC_SEQ_CST);
    if (module_is_loaded("nfnetlink_queue") || traces("nfqnl_enqueue_packet")) // or built in
        __atomic_store_n(absent, 0, __ATOMIC_SEQ_CST);
}

// To load the object again for each function would take long.
int Tracer::State::copy_hook_program(const std::string& name) {
    const auto id = types_for_loading->function(name);
    if (!id)
        return -ESRCH;
    LIBBPF_OPTS(bpf_prog_load_opts, options);
    options.expected_attach_type = BPF_TRACE_FEXIT;
    options.attach_btf_id = id->type_id;
    options.attach_btf_obj_fd = static_cast<__u32>(id->btf_object);
    const Fd program(bpf_prog_load(BPF_PROG_TYPE_TRACING, bpf_program__name(hook_program), "GPL",
                                   bpf_program__insns(hook_program), bpf_program__insn_cnt(hook_program), &options));
    if (!program)
        return -errno;
    Fd link(bpf_link_create(program.get(), 0, BPF_TRACE_FEXIT, nullptr));
    if (!link)
        return -errno;
    hook_links.push_back(std::move(link));
    return 0;
}

// Attaches a program of its own to one function, which `types_for_loading` holds. Returns 0 or a negative error.
int Tracer::State::add_hook_function(const std::string& name) {
    const bool runs_bpf = name == "nf_hook_run_bpf";
    if (hook_program && !runs_bpf)
        return copy_hook_program(name);
    Object object = open();
    if (!object)
        return -errno;
    bpf_program* ours = runs_bpf ? object->progs.nf_hook_run_bpf_end : object->progs.hook_function_end;
    bpf_program* program;
    bpf_object__for_each_program (program, object->obj)
        bpf_program__set_autoload(program, program == ours);
    bpf_map__set_max_entries(object->maps.pool, 2 * pool_chunks(cpus));
    bpf_map__set_max_entries(object->maps.verdicts, 1024 + 256 * static_cast<std::uint32_t>(cpus));
    hook_function_for_loading = name;
    if (const int error = share_maps(*object))
        return error;
    if (const int error = tsdroptrace_bpf::load(object.get()))
        return error;
    hook_objects.push_back(std::move(object));
    if (!runs_bpf)
        hook_program = ours;
    bpf_link* link = bpf_program__attach_trace(ours);
    if (!link)
        return -errno;
    links.emplace_back(link);
    return 0;
}

// The kernel does not run a program on top of itself on one CPU, but counts these.
std::uint64_t Tracer::State::missed() const {
    bpf_prog_info info{};
    std::uint32_t size = sizeof(info);
    if (bpf_obj_get_info_by_fd(bpf_program__fd(emitter->progs.on_kfree_skb), &info, &size))
        return 0;
    return info.recursion_misses;
}

void Tracer::State::forget_lost_changes() {
    for (std::size_t which = 0; which < lost_changes.size(); ++which) {
        const std::uint32_t generation = __atomic_load_n(&maps_of().bss->generations[which], __ATOMIC_ACQUIRE);
        auto& changing = maps_of().bss->changing[which];
        auto under_way = __atomic_load_n(&changing, __ATOMIC_ACQUIRE);
        if (lost_changes[which].are_there(generation, under_way, std::chrono::steady_clock::now()) &&
            __atomic_compare_exchange_n(&changing, &under_way, 0, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
            spdlog::debug("the end of {} changes of a ruleset was missed", under_way);
    }
}

// Loads and attaches one more object: the programs on functions that are not traced yet, the program on kfree_skb,
// or both. Returns 0 or a negative error.
int Tracer::State::add(bool with_functions, bool with_emitter) {
    std::optional<KernelTypes> read_now;
    if (!types) // read at the start; later anew, since modules have come
        read_now.emplace(functions_of(maps_of()), types_of(maps_of()));
    types_for_loading = types ? types.get() : &*read_now;
    Object object = open();
    if (!object)
        return -errno;
    bool any = false;
    if (with_functions) {
        any = choose_functions(*object);
    } else {
        bpf_program* program;
        bpf_object__for_each_program (program, object->obj)
            bpf_program__set_autoload(program, false);
    }
    if (!any && !with_emitter)
        return 0;
    const auto instance = static_cast<std::uint32_t>(objects.size());
    object->rodata->instance = instance;
    object->rodata->match_all = filter.all;
    object->rodata->match_to = filter.to;
    object->rodata->match_from = filter.from;
    object->rodata->by_local = !filter.locals.empty();
    object->rodata->by_proto = !filter.protos.empty();
    object->rodata->by_port = !filter.ports.empty();
    object->rodata->by_reason = !filter.reasons.empty();
    object->rodata->by_netns = !filter.netns.empty();
    object->rodata->by_device = !filter.devices.empty();
    object->rodata->rules_only = filter.rules_only;
    object->rodata->own_netns = current_netns();
    object->rodata->percpu_counters = cpus > 1;
    object->rodata->cpus = static_cast<std::uint32_t>(cpus);
    object->rodata->pool_chunks = pool_chunks(cpus);
    const bool adds_nft = bpf_program__autoload(object->progs.nft_do_chain_begin);
    const bool adds_legacy = bpf_program__autoload(object->progs.ipt_do_table_begin) ||
                             bpf_program__autoload(object->progs.ip6t_do_table_begin);
    const bool had_legacy = traces("ipt_do_table") || traces("ip6t_do_table");
    object->rodata->traces_nft = adds_nft || traces("nft_do_chain");
    object->rodata->traces_legacy = adds_legacy || had_legacy;
    bpf_map__set_max_entries(object->maps.pool, 2 * pool_chunks(cpus));
    bpf_map__set_max_entries(object->maps.verdicts, 1024 + 256 * static_cast<std::uint32_t>(cpus));
    // A program on kfree_skb that did not know a backend's types makes room for one that does.
    with_emitter |= adds_nft || (adds_legacy && !had_legacy);
    bpf_program__set_autoload(object->progs.emit, with_emitter);
    bpf_program__set_autoload(object->progs.on_kfree_skb, with_emitter);
    bpf_program__set_autoload(object->progs.on_kfree_skb_again, with_emitter && cpus <= TSDT_MAX_CPUS);
    bpf_program__set_autoload(object->progs.on_sched_migrate_task,
                              (adds_nft || adds_legacy) &&
                                  !attached.contains(bpf_program__section_name(object->progs.on_sched_migrate_task)));
    bpf_program__set_autoload(object->progs.on_module_load, objects.empty()); // not there: no module can come

    if (const int error = objects.empty() ? create_variables(*object) : share_maps(*object))
        return error;
    if (const int error = tsdroptrace_bpf::load(object.get()))
        return error;
    if (objects.empty())
        if (const int error = fill_filter(*object); error || fill_hook_callers(*object))
            return error ? error : -errno;

    if (with_emitter) {
        const std::uint32_t zero = 0;
        const int emit = bpf_program__fd(object->progs.emit);
        if (const int error = bpf_map_update_elem(bpf_map__fd(object->maps.emit_call), &zero, &emit, BPF_ANY))
            return error;
    }

    std::vector<Attachment> attachments;
    bpf_program* program;
    bpf_object__for_each_program (program, object->obj)
        if (bpf_program__autoload(program) && program != object->progs.emit)
            attachments.push_back({.program = program});
    attach_all(attachments);
    int failed = 0;
    for (auto& [program, link, error] : attachments) {
        if (!link) {
            spdlog::debug("{}: not attached: {}", bpf_program__name(program), std::strerror(error));
            if (program == object->progs.on_kfree_skb)
                failed = -error;
            if (const std::string_view function = function_of(program); !function.empty())
                problem = fmt::format("{} cannot be traced: {}", function, std::strerror(error));
            continue;
        }
        if (program == object->progs.on_kfree_skb)
            object->links.on_kfree_skb = link; // the others stay for as long as the object does
        else if (program == object->progs.on_kfree_skb_again)
            object->links.on_kfree_skb_again = link;
        else
            links.emplace_back(link);
        attached.emplace(bpf_program__section_name(program));
    }
    if (failed)
        return failed;
    if (with_emitter) {
        const std::uint32_t zero = 0;
        if (const int error = bpf_map_update_elem(bpf_map__fd(object->maps.control), &zero, &instance, BPF_ANY))
            return error;
        if (emitter) {
            missed_before += missed();
            bpf_link__destroy(std::exchange(emitter->links.on_kfree_skb, nullptr));
            bpf_link__destroy(std::exchange(emitter->links.on_kfree_skb_again, nullptr));
        }
        emitter = object.get();
    }
    objects.push_back(std::move(object));
    return 0;
}

Tracer::Tracer(std::unique_ptr<State> state) : state_(std::move(state)) {}
Tracer::~Tracer() = default;

Result<std::unique_ptr<Tracer>> Tracer::start(const Filter& filter) {
    libbpf_set_print(to_log);
    if (!readable("/sys/kernel/btf/vmlinux"))
        return Error{ErrorKind::unsupported,
                     "this kernel has no type information (/sys/kernel/btf/vmlinux is missing): needs a kernel built "
                     "with CONFIG_DEBUG_INFO_BTF=y, as the distributions' own are"};

    auto state = std::make_unique<State>();
    state->filter = filter;
    state->cpus = std::max(libbpf_num_possible_cpus(), 1);
    state->kernel = running_kernel();
    state->modules = modules_with_btf();
    register_lookup();
    if (const State::Object object{tsdroptrace_bpf::open()})
        state->types = std::make_unique<const KernelTypes>(functions_of(*object), types_of(*object));
    else
        return Error{ErrorKind::other, fmt::format("cannot open the BPF programs: {}", std::strerror(errno))};
    state->names = state->types->names();
    auto reasons = decode::reason_codes(filter.reasons, state->names);
    if (!reasons)
        return reasons.error();
    state->reasons = std::move(*reasons);
    if (state->cpus > TSDT_MAX_CPUS)
        state->problem = fmt::format("this kernel has room for more than {} CPUs", TSDT_MAX_CPUS);
    if (const int error = state->add(state->problem.empty(), true)) {
        // Without the functions of netfilter there are still the drops themselves.
        if (const int drops_error = state->add(false, true))
            return explain_load_failure(-drops_error);
        state->problem =
            -error == EPERM
                ? "this kernel does not let BPF be attached to functions (fentry: not permitted)"
                : fmt::format("the programs on netfilter's functions cannot be loaded: {}", std::strerror(-error));
    }

    state->types.reset();
    state->watch_queue_handler();

    const auto on_record = [](void* context, void* data, std::size_t size) -> int {
        const auto* self = static_cast<State*>(context);
        return (*self->sink)({static_cast<const std::byte*>(data), size}) ? 0 : -ECANCELED;
    };
    state->ring.reset(ring_buffer__new(bpf_map__fd(state->maps_of().maps.events), on_record, state.get(), nullptr));
    const auto on_change = [](void* context, void* data, std::size_t size) -> int {
        (*static_cast<State*>(context)->changes_sink)({static_cast<const std::byte*>(data), size});
        return 0;
    };
    state->changes_ring.reset(
        ring_buffer__new(bpf_map__fd(state->maps_of().maps.changes), on_change, state.get(), nullptr));
    if (!state->ring || !state->changes_ring)
        return Error{ErrorKind::other, fmt::format("cannot map the ring buffer: {}", std::strerror(errno))};
    return std::unique_ptr<Tracer>(new Tracer(std::move(state)));
}

void Tracer::stop() {
    const std::uint32_t zero = 0, nobody = ~0u;
    bpf_map_update_elem(bpf_map__fd(state_->maps_of().maps.control), &zero, &nobody, BPF_ANY);
}

void Tracer::refresh() {
    state_->forget_lost_changes();
    if (!state_->problem.empty())
        return;
    auto& seen = *state_->maps_of().bss;
    const auto loaded = std::atomic_ref(seen.expressions_loaded).load(); // a module is listed before it is counted
    auto modules = modules_with_btf();
    if (modules != state_->modules) {
        state_->modules = std::move(modules);
        const auto before = state_->attached.size();
        if (const int error = state_->add(true, false)) {
            spdlog::warn("a netfilter module has been loaded, but its rules cannot be named: {}",
                         std::strerror(-error));
            return;
        }
        if (state_->attached.size() != before) {
            state_->watch_queue_handler();
            spdlog::info("a netfilter module has been loaded: it is traced from now on");
        }
    }
    std::atomic_ref(seen.expressions_traced).store(loaded);
}

void Tracer::trace_hook_functions(const std::vector<HookFunction>& functions) {
    if (!state_->problem.empty())
        return;
    KernelTypes::Names names, modules;
    for (const HookFunction& function : functions) {
        if (state_->hook_functions.size() >= max_hook_functions || state_->traces(function.name) ||
            !state_->hook_functions.insert(function.name).second)
            continue;
        names.insert(function.name);
        if (function.module)
            modules.insert(*function.module);
    }
    if (names.empty())
        return;
    const KernelTypes types(names, types_of(state_->maps_of()), modules);
    types_for_loading = &types;
    for (const std::string& name : names) {
        const int error = types.function(name) ? state_->add_hook_function(name) : -ESRCH;
        if (error)
            spdlog::debug("the hook function {} cannot be traced: {}", name, std::strerror(-error));
    }
    types_for_loading = nullptr;
}

Status Tracer::poll(std::chrono::milliseconds timeout, const std::function<bool(std::span<const std::byte>)>& sink) {
    state_->sink = &sink;
    const int got = ring_buffer__poll(state_->ring.get(), static_cast<int>(timeout.count()));
    state_->sink = nullptr;
    if (got < 0 && got != -EINTR && got != -ECANCELED)
        return Error{ErrorKind::other, fmt::format("cannot read the ring buffer: {}", std::strerror(-got))};
    return Ok{};
}

Status Tracer::poll_changes(const std::function<void(std::span<const std::byte>)>& sink) {
    state_->changes_sink = &sink;
    const int got = ring_buffer__consume(state_->changes_ring.get());
    state_->changes_sink = nullptr;
    if (got < 0)
        return Error{ErrorKind::other, fmt::format("cannot read the ring buffer of changes: {}", std::strerror(-got))};
    return Ok{};
}

bool Tracer::traces(std::string_view function) const {
    return state_->traces(function);
}

const decode::KernelNames& Tracer::names() const {
    return state_->names;
}

Capabilities Tracer::capabilities() const {
    const auto backend = [&](const char* module, std::initializer_list<const char*> needed) -> Capability {
        if (std::ranges::all_of(needed, [&](const char* function) { return state_->traces(function); }))
            return {Exactness::exact, ""};
        if (!state_->problem.empty())
            return {Exactness::unavailable, state_->problem};
        if (!module_is_loaded(module))
            return {Exactness::exact, fmt::format("{} is not loaded: no rules yet; watched for", module)};
        for (const char* function : needed)
            if (!state_->traces(function))
                return {Exactness::unavailable, fmt::format("this kernel does not let {} be traced", function)};
        return {};
    };
    Capabilities capabilities;
    capabilities.nftables = backend("nf_tables", {"nft_do_chain", "nft_immediate_eval", "nf_tables_commit"});
    capabilities.iptables_nft = capabilities.nftables;
    capabilities.iptables_legacy = backend("ip_tables", {"ipt_do_table", "do_ipt_set_ctl", "xt_register_table"});
    return capabilities;
}

std::optional<tsdt_cause> Tracer::cause(const tsdt_cause_key& key) const {
    tsdt_cause cause{};
    if (bpf_map_lookup_elem(bpf_map__fd(state_->maps_of().maps.causes), &key, &cause))
        return std::nullopt;
    return cause;
}

std::vector<tsdt_cause> Tracer::causes() const {
    std::vector<tsdt_cause> all;
    const int map = bpf_map__fd(state_->maps_of().maps.causes);
    tsdt_cause_key key{};
    for (int more = bpf_map_get_next_key(map, nullptr, &key); more == 0; more = bpf_map_get_next_key(map, &key, &key))
        if (auto value = cause(key))
            all.push_back(*value);
    return all;
}

std::vector<FlowCount> Tracer::flows() const {
    std::vector<FlowCount> all;
    const int map = bpf_map__fd(state_->maps_of().maps.flows);
    FlowCount flow{};
    for (int more = bpf_map_get_next_key(map, nullptr, &flow.key); more == 0;
         more = bpf_map_get_next_key(map, &flow.key, &flow.key))
        if (bpf_map_lookup_elem(map, &flow.key, &flow.packets) == 0)
            all.push_back(flow);
    return all;
}

std::array<std::uint64_t, TSDT_LOST_MAX> Tracer::lost_by_place() const {
    std::array<std::uint64_t, TSDT_LOST_MAX> lost{};
    std::vector<std::uint64_t> per_cpu(static_cast<std::size_t>(state_->cpus));
    for (std::uint32_t place = 0; place < TSDT_LOST_MAX; ++place)
        if (bpf_map_lookup_elem(bpf_map__fd(state_->maps_of().maps.lost), &place, per_cpu.data()) == 0)
            lost[place] = std::accumulate(per_cpu.begin(), per_cpu.end(), std::uint64_t{0});
    return lost;
}

std::map<std::string, std::uint64_t> Tracer::lost() const {
    std::map<std::string, std::uint64_t> lost;
    const auto by_place = lost_by_place();
    for (std::size_t place = 0; place < by_place.size(); ++place)
        if (by_place[place])
            lost.emplace(decode::lost_place_name(place), by_place[place]);
    // on_kfree_skb_again stands in for on_kfree_skb where it can.
    const std::uint64_t missed = state_->missed_before + state_->missed();
    const std::uint64_t stood_in = __atomic_load_n(&state_->maps_of().bss->stood_in, __ATOMIC_ACQUIRE);
    if (missed > stood_in)
        lost["recursion"] = missed - stood_in;
    return lost;
}

resolve_rule::Generation Tracer::generation(RulesetKind kind) const {
    const auto& bss = *state_->maps_of().bss;
    const auto which = static_cast<std::size_t>(kind);
    // In this order: a change that begins in between shows.
    const std::uint32_t number = __atomic_load_n(&bss.generations[which], __ATOMIC_ACQUIRE);
    return {number, __atomic_load_n(&bss.changing[which], __ATOMIC_ACQUIRE) > 0};
}

decode::ChangeCounts Tracer::change_counts() const {
    const auto& bss = *state_->maps_of().bss;
    decode::ChangeCounts counts;
    counts.told = __atomic_load_n(&bss.changes_told, __ATOMIC_ACQUIRE);
    for (std::size_t i = 0; i < counts.untold.size(); ++i)
        counts.untold[i] = __atomic_load_n(&bss.changes_untold[i], __ATOMIC_ACQUIRE);
    return counts;
}

std::uint64_t Tracer::map_memory() const {
    std::uint64_t sum = 0;
    const bpf_map* map;
    bpf_object__for_each_map (map, state_->maps_of().obj) {
        std::ifstream fdinfo(fmt::format("/proc/self/fdinfo/{}", bpf_map__fd(map)));
        for (std::string line; std::getline(fdinfo, line);)
            if (line.starts_with("memlock:"))
                sum += std::strtoull(line.c_str() + 8, nullptr, 10);
    }
    return sum;
}

} // namespace tsdroptrace::attach
