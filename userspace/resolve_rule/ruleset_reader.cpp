// SPDX-License-Identifier: GPL-2.0-only
#include "resolve_rule/ruleset_reader.h"

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <functional>
#include <mutex>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

// libc's headers first: the kernel's then leave out what both define.
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/time.h>

#include <fmt/core.h>
#include <linux/netfilter_arp/arp_tables.h>
#include <linux/netfilter_bridge/ebtables.h>
#include <linux/netfilter_ipv4/ip_tables.h>
#include <linux/netfilter_ipv6/ip6_tables.h>
#include <nftables/libnftables.h>

#include "resolve_rule/ebt_blob.h"
#include "resolve_rule/iptables_save.h"
#include "resolve_rule/legacy_blob.h"
#include "resolve_rule/nft_listing.h"
#include "resolve_rule/rule_match.h"
#include "resolve_rule/rule_words.h"
#include "util/fd.h"
#include "util/netns.h"
#include "util/subprocess.h"

namespace tsdroptrace::resolve_rule {
namespace {

// ---- iptables' own programs ----

std::optional<std::string> find_program(std::string_view name) {
    static constexpr const char* directories[] = {"/usr/sbin", "/sbin", "/usr/local/sbin"};
    for (const char* directory : directories) {
        std::string path = fmt::format("{}/{}", directory, name);
        if (access(path.c_str(), X_OK) == 0)
            return path;
    }
    return std::nullopt;
}

// The -save program of one backend ("nft" or "legacy") for ip or ip6. Where only the plain name exists, its
// version tells which backend it is for; before iptables 1.8 there was nothing but legacy to tell.
std::optional<std::string> find_save_program(RuleFamily family, std::string_view backend) {
    std::string_view command = family == RuleFamily::ip6 ? "ip6tables" : "iptables";
    if (auto path = find_program(fmt::format("{}-{}-save", command, backend)))
        return path;
    auto path = find_program(fmt::format("{}-save", command));
    if (!path)
        return std::nullopt;
    auto version = run_program(*path, {"-V"});
    if (!version || version->exit_code != 0)
        return std::nullopt;
    bool is_nft = version->out.find("nf_tables") != std::string::npos;
    return is_nft == (backend == "nft") ? path : std::nullopt;
}

// Puts iptables' words on one table, as far as its program prints it. Whether it is complete is told by the
// words themselves, not by the exit code: 3 means that it met a rule which it cannot print.
void ask_iptables(const std::string& program, SnapshotTable& table, std::vector<std::string>& problems) {
    auto saved = run_program(program, {"-t", table.name});
    if (saved)
        use_iptables_words(table, read_iptables_save(saved->out));
    else
        problems.push_back(saved.error().message);
}

// The same with the words of a program that lists: `options` are for that.
void ask_for_listing(const std::string& program, const std::vector<std::string>& options, SnapshotTable& table,
                     std::vector<std::string>& problems) {
    std::vector<std::string> arguments{"-t", table.name};
    arguments.insert(arguments.end(), options.begin(), options.end());
    auto listed = run_program(program, arguments);
    if (listed)
        use_iptables_words(table, read_legacy_listing(listed->out));
    else
        problems.push_back(listed.error().message);
}

// ---- nf_tables ----

struct NftContext {
    nft_ctx* ctx = nft_ctx_new(NFT_CTX_DEFAULT);
    ~NftContext() { nft_ctx_free(ctx); }
};

bool write_all(std::string_view text) {
    while (!text.empty()) {
        ssize_t count = write(STDOUT_FILENO, text.data(), text.size());
        if (count <= 0)
            return false;
        text.remove_prefix(static_cast<std::size_t>(count));
    }
    return true;
}

// In a child; through libnftables' own buffer, since it flushes a stream after every word.
std::optional<std::string> nft_listing(const std::string& command, unsigned flags) {
    NftContext nft;
    if (!nft.ctx || nft_ctx_buffer_output(nft.ctx) != 0)
        return std::nullopt;
    nft_ctx_set_error(nft.ctx, stderr);
    nft_ctx_output_set_flags(nft.ctx, flags);
    if (nft_run_cmd_from_buffer(nft.ctx, command.c_str()) != 0)
        return std::nullopt;
    return nft_ctx_get_output_buffer(nft.ctx);
}

int list_nft_ruleset() {
    const auto text =
        nft_listing("list ruleset", NFT_CTX_OUTPUT_HANDLE | NFT_CTX_OUTPUT_STATELESS | NFT_CTX_OUTPUT_TERSE);
    return text && write_all(*text) ? 0 : 1;
}

constexpr std::string_view too_large = "too large"; // instead of a listing

// The command that lists the set; empty for a name that is not nft's own kind of word. Programs may give names that a
// command would be something else with.
std::string list_command(const SnapshotTable& table, const SnapshotSet& set) {
    constexpr auto is_letter = [](char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); };
    const auto is_word = [&](const std::string& name) {
        return !name.empty() && is_letter(name[0]) && std::ranges::all_of(name, [&](char c) {
            return is_letter(c) || (c >= '0' && c <= '9') || c == '_' || c == '-' || c == '.';
        });
    };
    if (!is_word(table.name) || !is_word(set.name))
        return {};
    return fmt::format("list {} {} {} {}", set.is_map ? "map" : "set", to_string(table.family), table.name, set.name);
}

// The sets of the table that its rules which may drop look up, and some other words.
std::set<std::string, std::less<>> named_in_rules(const SnapshotTable& table) {
    std::set<std::string, std::less<>> names;
    for (const SnapshotChain& chain : table.chains) {
        for (const SnapshotRule& rule : chain.rules) {
            if (rule.text.find('@') == std::string::npos || !may_drop(rule, chain.backend))
                continue;
            for (const std::string_view word : split_rule(rule.text, false))
                if (word.starts_with('@'))
                    names.emplace(word.substr(1));
        }
    }
    return names;
}

// In a child: what nft prints of each set, and a 0 behind it. A set whose listing is too long is left empty, as is all
// that the child has not come to when its time is up.
int list_nft_sets(const std::vector<std::string>& commands) {
    constexpr std::size_t max_listing = 4 * max_set_size; // with what indents its lines
    constexpr itimerval processor{{0, 0}, {1, 0}}, clock{{0, 0}, {3, 0}};
    for (int signal : {SIGPROF, SIGALRM})
        std::signal(signal, [](int) { _exit(0); });
    setitimer(ITIMER_PROF, &processor, nullptr);
    setitimer(ITIMER_REAL, &clock, nullptr);
    for (const std::string& command : commands) {
        const auto text = nft_listing(command, NFT_CTX_OUTPUT_STATELESS);
        const bool too_long = text && text->size() > max_listing;
        if (!write_all(too_long ? too_large : text.value_or("")) || !write_all({"", 1}))
            return 1;
    }
    return 0;
}

// Sets that took too long, or too much room, are not read again: they would take as long each time that the ruleset
// changes.
bool is_left_out(const std::string& set, bool from_now_on = false) {
    constexpr std::size_t max_left_out = 1024;
    static std::mutex mutex;
    static std::set<std::string> left_out;
    const std::lock_guard lock(mutex);
    if (from_now_on && left_out.size() < max_left_out)
        left_out.insert(set);
    return left_out.contains(set);
}

void read_sets(Snapshot& snapshot, std::uint32_t netns) {
    std::vector<SnapshotSet*> sets;
    std::vector<std::string> commands;
    const auto key = [netns](const std::string& command) { return fmt::format("{} {}", netns, command); };
    for (SnapshotTable& table : snapshot.tables) {
        const auto names = table.sets.empty() ? std::set<std::string, std::less<>>{} : named_in_rules(table);
        for (SnapshotSet& set : table.sets) {
            std::string command = names.contains(set.name) ? list_command(table, set) : "";
            if (command.empty() || sets.size() >= max_read_sets || is_left_out(key(command)))
                continue;
            sets.push_back(&set);
            commands.push_back(std::move(command));
        }
    }
    const auto listed =
        commands.empty() ? Result<ChildOutput>(ChildOutput{}) : run_forked([&] { return list_nft_sets(commands); });
    std::string_view rest = listed ? std::string_view(listed->out) : std::string_view{};
    std::size_t size = 0;
    for (std::size_t i = 0; i < sets.size(); i++) {
        const std::size_t end = rest.find('\0');
        if (end == rest.npos) {
            if (listed) // its time was up
                is_left_out(key(commands[i]), true);
            break;
        }
        const std::string_view text = rest.substr(0, end);
        std::string elements = read_set_elements(text, max_set_size);
        rest.remove_prefix(end + 1);
        if (text == too_large || (elements.empty() && text.size() > max_set_size))
            is_left_out(key(commands[i]), true);
        if (size + elements.size() > max_sets_size)
            continue;
        size += elements.size();
        sets[i]->elements = std::move(elements);
    }
    for (SnapshotTable& table : snapshot.tables)
        std::erase_if(table.sets, [](const SnapshotSet& set) { return set.elements.empty(); });
}

// A table that iptables-nft would use.
bool is_iptables_table(const SnapshotTable& table) {
    static constexpr std::string_view names[] = {"raw", "mangle", "nat", "filter", "security"};
    return (table.family == RuleFamily::ip || table.family == RuleFamily::ip6) &&
           std::find(std::begin(names), std::end(names), table.name) != std::end(names);
}

Result<Snapshot> read_nf_tables(std::uint32_t netns, std::size_t max_rules) {
    auto listing = run_forked(list_nft_ruleset);
    if (!listing)
        return listing.error();
    if (listing->exit_code != 0)
        return Error{ErrorKind::other, fmt::format("libnftables cannot list the ruleset: {}",
                                                   listing->err.substr(0, listing->err.find('\n')))};
    Snapshot snapshot;
    snapshot.kind = SnapshotKind::nf_tables;
    read_nft_listing(listing->out, max_rules, snapshot);
    listing->out = {}; // may be megabytes
    read_sets(snapshot, netns);

    for (RuleFamily family : {RuleFamily::ip, RuleFamily::ip6}) {
        auto of_iptables = [&](const SnapshotTable& t) { return t.family == family && is_iptables_table(t); };
        if (std::none_of(snapshot.tables.begin(), snapshot.tables.end(), of_iptables))
            continue;
        auto program = find_save_program(family, "nft");
        if (!program) {
            snapshot.problems.push_back("iptables-nft-save is not installed: its rules are shown as nft prints them");
            continue;
        }
        for (SnapshotTable& table : snapshot.tables)
            if (of_iptables(table))
                ask_iptables(*program, table, snapshot.problems);
    }
    return snapshot;
}

// ---- ip_tables, ip6_tables, arp_tables ----

// How each of them is asked. struct ipt_get_entries and its likes are the same.
struct IpTables {
    using Info = ipt_getinfo;
    static constexpr int level = SOL_IP, get_info = IPT_SO_GET_INFO, get_entries = IPT_SO_GET_ENTRIES;
};
struct Ip6Tables {
    using Info = ip6t_getinfo;
    static constexpr int level = SOL_IPV6, get_info = IP6T_SO_GET_INFO, get_entries = IP6T_SO_GET_ENTRIES;
};
struct ArpTables {
    using Info = arpt_getinfo;
    static constexpr int level = SOL_IP, get_info = ARPT_SO_GET_INFO, get_entries = ARPT_SO_GET_ENTRIES;
};
static_assert(sizeof(ipt_get_entries) == sizeof(ip6t_get_entries) &&
              sizeof(ipt_get_entries) == sizeof(arpt_get_entries));

constexpr std::size_t max_blob = 64u << 20;
constexpr std::size_t max_tables = 16; // five exist

struct Blob {
    BlobInfo info;
    std::vector<std::byte> bytes; // struct ipt_get_entries and what follows it
    std::span<const std::byte> entries() const { return std::span(bytes).subspan(sizeof(ipt_get_entries)); }
};

template <typename Tables>
Result<Blob> read_blob(int socket, const std::string& table) {
    for (int attempt = 0; attempt < 3; attempt++) {
        typename Tables::Info info{};
        table.copy(info.name, sizeof info.name - 1);
        socklen_t size = sizeof info;
        if (getsockopt(socket, Tables::level, Tables::get_info, &info, &size) != 0)
            return Error{ErrorKind::other, fmt::format("table {}: {}", table, std::strerror(errno))};
        if (info.size > max_blob)
            return Error{ErrorKind::other, fmt::format("table {}: {} bytes are too many", table, info.size)};

        Blob blob;
        blob.info.valid_hooks = info.valid_hooks;
        std::copy(std::begin(info.hook_entry), std::end(info.hook_entry), blob.info.hook_entry.begin());
        std::copy(std::begin(info.underflow), std::end(info.underflow), blob.info.underflow.begin());
        blob.info.num_entries = info.num_entries;
        blob.bytes.resize(sizeof(ipt_get_entries) + info.size);
        std::memcpy(blob.bytes.data() + offsetof(ipt_get_entries, name), info.name, sizeof info.name);
        std::memcpy(blob.bytes.data() + offsetof(ipt_get_entries, size), &info.size, sizeof info.size);
        size = static_cast<socklen_t>(blob.bytes.size());
        if (getsockopt(socket, Tables::level, Tables::get_entries, blob.bytes.data(), &size) == 0)
            return blob;
        if (errno != EAGAIN) // the table was replaced by one of another size
            break;
    }
    return Error{ErrorKind::other, fmt::format("table {}: {}", table, std::strerror(errno))};
}

// What is different from one of these to the next.
struct LegacyFamily {
    SnapshotKind kind;
    RuleFamily family;
    const char* names; // of its tables, below /proc/thread-self/net
    int socket_family;
    Result<Blob> (*read)(int socket, const std::string& table);
};
constexpr LegacyFamily legacy_families[] = {
    {SnapshotKind::ip_tables, RuleFamily::ip, "ip_tables_names", AF_INET, read_blob<IpTables>},
    {SnapshotKind::ip6_tables, RuleFamily::ip6, "ip6_tables_names", AF_INET6, read_blob<Ip6Tables>},
    {SnapshotKind::arp_tables, RuleFamily::arp, "arp_tables_names", AF_INET, read_blob<ArpTables>},
};

// Only tables that are there: asking for another one would create it.
std::vector<std::string> table_names(const LegacyFamily& legacy, std::vector<std::string>& problems) {
    const std::string path = fmt::format("/proc/thread-self/net/{}", legacy.names);
    std::ifstream file(path);
    if (!file)
        problems.push_back(fmt::format("cannot read {}: {}", path, std::strerror(errno)));
    std::vector<std::string> names;
    for (std::string name; names.size() < max_tables && std::getline(file, name);)
        if (!name.empty() && name.size() < XT_TABLE_MAXNAMELEN)
            names.push_back(name);
    return names;
}

Result<Fd> raw_socket(int family) {
    Fd socket(::socket(family, SOCK_RAW | SOCK_CLOEXEC, IPPROTO_RAW));
    if (!socket)
        return Error{ErrorKind::other, fmt::format("cannot open a raw socket: {}", std::strerror(errno))};
    return socket;
}

Result<Snapshot> read_legacy(const LegacyFamily& legacy, std::size_t max_rules) {
    Snapshot snapshot;
    snapshot.kind = legacy.kind;
    std::vector<std::string> names = table_names(legacy, snapshot.problems);
    if (names.empty())
        return snapshot;
    const auto socket = raw_socket(legacy.socket_family);
    if (!socket)
        return socket.error();

    const bool is_arp = legacy.family == RuleFamily::arp;
    auto program = is_arp ? find_program("arptables-legacy") : find_save_program(legacy.family, "legacy");
    if (!program)
        snapshot.problems.push_back(fmt::format("{} is not installed: matches and targets lack their details",
                                                is_arp ? "arptables-legacy" : "iptables-legacy-save"));
    std::size_t rules = 0;
    for (const std::string& name : names) {
        auto blob = legacy.read(socket->get(), name);
        auto table = blob ? parse_ipt_blob(legacy.family, name, blob->info, blob->entries())
                          : Result<SnapshotTable>(blob.error());
        if (!table) {
            snapshot.problems.push_back(table.error().message);
            continue;
        }
        for (const SnapshotChain& chain : table->chains)
            rules += chain.rules.size();
        if (rules > max_rules) {
            snapshot.problems.push_back(fmt::format("more than {} rules: table {} was left out", max_rules, name));
            break;
        }
        if (program && is_arp)
            ask_for_listing(*program, {"-L", "-n"}, *table, snapshot.problems);
        else if (program)
            ask_iptables(*program, *table, snapshot.problems);
        snapshot.tables.push_back(std::move(*table));
    }
    return snapshot;
}

// ---- ebtables ----

Result<std::vector<std::byte>> read_ebt_blob(int socket, const std::string& table) {
    std::vector<std::byte> blob;
    for (int attempt = 0; attempt < 3; attempt++) {
        ebt_replace request{};
        table.copy(request.name, sizeof request.name - 1);
        socklen_t size = sizeof request;
        if (getsockopt(socket, SOL_IP, EBT_SO_GET_INFO, &request, &size) != 0)
            break;
        if (request.entries_size > max_blob)
            return Error{ErrorKind::other, fmt::format("table {}: {} bytes are too many", table, request.entries_size)};
        blob.resize(request.entries_size);
        request.entries = reinterpret_cast<char*>(blob.data());
        request.num_counters = 0;
        size = static_cast<socklen_t>(sizeof request + request.entries_size);
        if (getsockopt(socket, SOL_IP, EBT_SO_GET_ENTRIES, &request, &size) == 0)
            return blob;
        if (errno != EINVAL) // the table was replaced by one of another size
            break;
    }
    return Error{ErrorKind::other, fmt::format("bridge table {}: {}", table, std::strerror(errno))};
}

// Whether the table's module has been unloaded: to ask for it would load it again.
bool bridge_table_is_gone(const std::string& table) {
    const auto is_module = [](const std::string& name) {
        return access(fmt::format("/sys/module/{}/initstate", name).c_str(), F_OK) == 0;
    };
    return is_module("ebtables") && !is_module("ebtable_" + table);
}

// Only where the table is known to be there: see ruleset_reader.h.
Result<Snapshot> read_bridge_table(SnapshotKind kind, std::size_t max_rules) {
    const std::string name = kind == SnapshotKind::bridge_nat ? "nat" : "filter";
    if (bridge_table_is_gone(name))
        return Error{ErrorKind::other, fmt::format("bridge table {} is not there any more", name)};
    const auto socket = raw_socket(AF_INET);
    if (!socket)
        return socket.error();
    auto blob = read_ebt_blob(socket->get(), name);
    auto table = blob ? parse_ebt_blob(name, *blob) : Result<SnapshotTable>(blob.error());
    if (!table)
        return table.error();
    std::size_t rules = 0;
    for (const SnapshotChain& chain : table->chains)
        rules += chain.rules.size();
    if (rules > max_rules)
        return Error{ErrorKind::other, fmt::format("bridge table {}: more than {} rules", name, max_rules)};
    Snapshot snapshot;
    snapshot.kind = kind;
    if (auto program = find_program("ebtables-legacy"))
        ask_for_listing(*program, {"-L"}, *table, snapshot.problems);
    else
        snapshot.problems.push_back("ebtables-legacy is not installed: matches and targets lack their details");
    snapshot.tables.push_back(std::move(*table));
    return snapshot;
}

} // namespace

Result<std::vector<LegacyTable>> read_legacy_tables(RuleFamily family) {
    std::vector<std::string> problems;
    std::vector<LegacyTable> tables;
    const LegacyFamily& legacy = *std::ranges::find(legacy_families, family, &LegacyFamily::family);
    const std::vector<std::string> names = table_names(legacy, problems);
    if (names.empty())
        return tables;
    const auto socket = raw_socket(legacy.socket_family);
    if (!socket)
        return socket.error();
    for (const std::string& name : names) {
        auto blob = legacy.read(socket->get(), name);
        if (!blob)
            return blob.error();
        const auto entries = blob->entries();
        tables.push_back({name, blob->info, {entries.begin(), entries.end()}});
    }
    return tables;
}

Result<Snapshot> read_ruleset(SnapshotKind kind, std::uint32_t netns, std::size_t max_rules) {
    Result<Snapshot> snapshot = Error{};
    Status entered = run_in_netns(netns, [&] {
        if (kind == SnapshotKind::nf_tables)
            snapshot = read_nf_tables(netns, max_rules);
        else if (kind == SnapshotKind::bridge_filter || kind == SnapshotKind::bridge_nat)
            snapshot = read_bridge_table(kind, max_rules);
        for (const LegacyFamily& legacy : legacy_families)
            if (legacy.kind == kind)
                snapshot = read_legacy(legacy, max_rules);
    });
    if (!entered)
        return entered.error();
    if (snapshot)
        snapshot->netns = netns;
    return snapshot;
}

} // namespace tsdroptrace::resolve_rule
