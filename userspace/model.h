// SPDX-License-Identifier: GPL-2.0-only
// The values that travel through the pipeline: attach > decode > resolve_rule > evidence > explain > aggregate >
// output.
// Each stage fills in its part of a Drop; none of them looks back.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace tsdroptrace {

// ---- decode: what the kernel said ----

enum class IpFamily { ipv4, ipv6, other };

struct Address {
    IpFamily family = IpFamily::other;
    std::array<std::uint8_t, 16> bytes{}; // network order; IPv4 in the first four
    std::string text() const;             // "100.100.2.136", "fd7a::1", "" for other
    auto operator<=>(const Address&) const = default;
};

enum class Direction { to, from }; // toward the traced range, or coming from it

// Why a packet has no ports although its protocol may have some (enum tsdt_no_ports).
enum class NoPorts { none, fragment, unread };

// The packet that an ICMP error is about, as far as the error quotes it.
struct Quoted {
    std::uint8_t proto = 0; // IPPROTO_*
    Address src, dst;
    std::optional<std::uint16_t> sport, dport; // host order
};

struct Packet {
    IpFamily family = IpFamily::other;
    std::uint8_t proto = 0; // IPPROTO_*; meaningless for family other
    Address src, dst;
    std::optional<std::uint16_t> sport, dport; // host order
    NoPorts no_ports = NoPorts::none;
    std::optional<Quoted> quoted;
    std::uint32_t length = 0;
    std::uint8_t ttl = 0;
    std::optional<std::uint8_t> tcp_flags, icmp_type, icmp_code;
    std::uint32_t mark = 0;
    std::uint16_t ethertype = 0; // host order
    Direction direction = Direction::to;
    bool received = false; // it came in through a device
    // What conntrack thinks of it: enum ip_conntrack_info; nullopt when it has not seen the packet.
    // 0 established, 1 related, 2 new, 3 established in the reply direction, 4 related in the reply direction.
    std::optional<std::uint8_t> ctinfo;
    std::optional<std::string> in_dev, out_dev;
};

struct Netns {
    std::uint32_t inode = 0;
    std::optional<std::string> name; // as `ip netns` shows it
    bool initial = false;            // the namespace that tsdroptrace itself runs in
};

enum class DropKind { rule, policy, hook, kernel };
enum class Hook { prerouting, input, forward, output, postrouting, ingress, egress };

struct Process {
    std::uint32_t pid = 0;
    std::string comm;
};

// A function that is registered at a hook of netfilter.
struct HookFunction {
    std::string name;                        // "ipv4_conntrack_in"
    std::optional<std::string> module;       // none: built in
    std::optional<std::uint32_t> program_id; // of the BPF program that it runs, as bpftool counts them
    std::string program;                     // its name

    std::string text() const; // "ipv4_conntrack_in [nf_conntrack]"
};

enum class QueueFate { nobody, full, refused, unknown, verdict, closed };

// What became of a packet that a rule had handed to a program in userspace (NFQUEUE).
struct Queue {
    std::optional<std::uint16_t> number;
    QueueFate fate = QueueFate::unknown;
    std::optional<Process> process; // that gave the verdict

    std::string text() const; // a sentence without a full stop
};

struct DropSite {
    DropKind kind = DropKind::kernel;
    std::string reason; // the running kernel's own name, without SKB_DROP_REASON_; the number where it has none
    std::uint32_t reason_code = 0;
    std::string location; // "nft_do_chain+0x5d8/0x650 [nf_tables]"
    std::optional<Hook> hook;
    // For kind hook: why no rule is named, one sentence without a full stop; empty where the function is known.
    std::string unknown;
    std::optional<HookFunction> hook_function = {}; // that has dropped the packet, where it has no rules
    std::optional<Queue> queue = {};
};

// ---- resolve_rule: which rule, as the user's own tool prints it ----

enum class Backend { iptables_legacy, iptables_nft, nftables };
enum class RuleFamily { ip, ip6, inet, arp, bridge, netdev };
enum class Confidence { exact, inferred };

struct PathStep {
    std::string chain;
    std::optional<std::uint32_t> number; // 1-based
    std::optional<std::uint64_t> handle; // nf_tables only
};

// An element of a set or a verdict map that holds a packet's value.
struct SetElement {
    std::optional<std::string> set; // its name; none: it is an anonymous one, written in the rule
    std::string text;               // as nft prints it, without counters and the time that is left: "7017 : drop"
    bool operator==(const SetElement&) const = default;
};

// The verdict of a rule of which a match has dropped the packet by itself.
inline constexpr std::string_view verdict_of_match = "hotdrop";

struct Rule {
    Backend backend = Backend::nftables;
    RuleFamily family = RuleFamily::ip;
    std::string table, chain;
    std::optional<std::uint32_t> number;
    std::optional<std::uint64_t> handle;
    std::optional<std::string> text;
    std::vector<PathStep> path; // base chain first, the dropping rule last; for a policy the base chain alone
    std::string verdict = "drop";
    Confidence confidence = Confidence::exact;
    std::string evidence = {}; // what it is inferred from, a sentence without a full stop; empty when it is exact
    bool stale = false;
    std::vector<std::string> jumps = {}; // of a policy: the chains that its base chain jumps to, in their order
    bool has_twin = false;               // iptables-legacy: its chain has another rule with this text
};

// ---- evidence: what this machine itself says about a drop, asked once for each cause and far end ----

// How a packet to the far end leaves this machine, as the kernel answers (ip route get).
struct Route {
    // As ip calls it: "unicast", "local", "unreachable", "blackhole", "prohibit"...; "none" where no route leads there
    // or a rule of type unreachable says so, which the kernel's answer does not tell apart.
    std::string type;
    std::optional<std::string> dev;
    std::optional<Address> gateway;
    std::uint32_t table = 0;                // 254 is main, 52 Tailscale's; 0: not told
    std::string matched;                    // the entry of that table: "100.64.0.7/32", "default"; empty: not told
    std::optional<std::uint32_t> rule = {}; // priority of the ip rule that leads to that table; none: not told
};

inline constexpr std::uint32_t tailscale_table = 52; // where Tailscale puts its routes

// "rule 5270"; empty for those that every machine has, and where it is not told.
std::string rule_words(const Route&);

// Each is empty where it was not asked for or could not be had.
struct Evidence {
    std::optional<Route> route;                 // to the far end
    std::optional<bool> tailnet_peer;           // the far end has a route of its own in Tailscale's table
    std::optional<bool> socket_waits;           // a socket here is bound to the packet's local address and port
    std::optional<Process> waiting;             // whose it is: a process that holds it, where one was found
    std::map<std::string, std::string> sysctls; // those that the catalogue asks for, by name: "net.ipv4.ip_forward"
};

// ---- explain: whose, why, what to do ----

struct Fix {
    std::string action; // "do" in the JSON: a command or a setting
    std::string risk;   // what it costs
};

struct Explanation {
    std::string id;             // "tailscale-cgnat", stable across versions
    std::string summary;        // one or two sentences
    std::vector<Fix> fixes;     // best first
    std::string reference = {}; // an address, an issue ("tailscale/tailscale#15863") or a page of the manual
};

struct Owner {
    std::string name;          // "Tailscale"
    std::string evidence;      // "chain ts-input"
    std::string configured_by; // "tailscale set --netfilter-mode", may be empty
};

struct RulesetChange;

// ---- one dropped packet, complete ----

struct Drop {
    std::int64_t time_ns = 0;  // CLOCK_REALTIME
    std::uint64_t mono_ns = 0; // CLOCK_MONOTONIC
    std::uint32_t cpu = 0;
    std::uint32_t cause_id = 0; // of the kernel's cause; the same rule, reason and location
    Netns netns;
    Packet packet;
    DropSite site;
    std::shared_ptr<const Rule> rule; // null: none, or not known
    // Of the rule's lookups, as far as it is known: deduced from the ruleset and the packet, not seen.
    std::vector<SetElement> elements = {};
    std::optional<Owner> owner;
    std::shared_ptr<const RulesetChange> written; // that brought the rule, where it was seen; without its lists
    std::optional<Process> process;
    std::shared_ptr<const Evidence> evidence;       // null: nothing was asked
    std::shared_ptr<const Explanation> explanation; // null: nothing known
    bool noise = false; // a healthy machine does this all day: counted, not shown by default
};

// True for what this machine sends, as far as the hook tells.
bool leaves_this_machine(const Drop&);

// The far end: where the packet comes from, for what enters; where it goes, for what leaves. In between, on the
// forwarding path, the end that the user asked about.
bool peer_is_source(const Drop&);
const Address& peer(const Drop&);

// ---- aggregate: exact counts, from the kernel ----

struct Flow {
    std::uint8_t proto = 0;
    Address src, dst;
    std::uint16_t sport = 0, dport = 0; // host order
    std::uint64_t packets = 0;
};

// One cause as the summary shows it. Counts come from the kernel's maps and are exact.
struct Cause {
    std::uint32_t id = 0;
    Drop example; // everything that the packets of this cause share, and one packet of them
    std::uint64_t packets = 0, bytes = 0;
    std::int64_t first_ns = 0, last_ns = 0;           // CLOCK_REALTIME
    std::vector<Flow> flows;                          // most packets first, at most Summary::max_flows
    std::uint64_t other_flows = 0, other_packets = 0; // beyond those
};

// Packets of the filter that passed a device, by its name.
struct SeenWay {
    std::uint64_t packets = 0;
    std::map<std::string, std::uint64_t> by_dev;
    std::optional<std::int64_t> first_ns, last_ns; // CLOCK_REALTIME; none: there was no packet
};

// Toward the range: handed to the device's driver. From the range: come in by the device, before anything could drop
// them.
struct Seen {
    SeenWay sent, received;
};

// How a packet into a range of the filter leaves this machine, by the route to one address of it.
struct Way {
    std::string range; // "100.100.0.0/16"
    Address to;
    Route route;
};

struct Summary {
    static constexpr std::size_t max_flows = 10, max_ways = 4;
    bool final = false;
    std::int64_t since_ns = 0, until_ns = 0;     // CLOCK_REALTIME
    std::vector<Cause> causes;                   // most packets first, without the noise
    std::optional<Seen> seen;                    // none: packets that pass are not counted
    std::vector<Way> ways;                       // of the last one, where `seen` makes one ask
    std::map<std::string, std::uint64_t> lost;   // where -> events
    std::map<std::string, std::uint64_t> hidden; // reason -> packets of noise
    std::uint64_t packets() const;
};

struct Lost {
    std::uint64_t count = 0;
    std::string where;
    std::int64_t since_ns =
        0; // CLOCK_REALTIME: nothing was lost at `where` between the start (or the last such line) and then
};

// ---- tsdroptrace check ----

enum class Reached { yes, dropped_here, lost_elsewhere };

struct CheckVerdict {
    std::string target; // "100.100.2.136:53/udp"
    Reached reached = Reached::lost_elsewhere;
    std::string text; // a sentence without a full stop
};

// ---- a ruleset changed ----

struct ChangedRule {
    Rule rule;                        // its path is the rule alone: many ways may lead to it
    std::optional<std::uint32_t> was; // the number that it had, where it has moved
    std::optional<Owner> owner;
};

struct Changer {
    Process process;
    std::optional<Process> parent; // the process that started it
    std::uint64_t changes = 0;
};

struct ChainName {
    RuleFamily family = RuleFamily::ip;
    std::string table, name;
};

// Rules and policies that drop, and now do so, no longer do so, or have another number.
struct DropChanges {
    static constexpr std::size_t max_rules = 100; // in each list; the rest is counted
    std::vector<ChangedRule> added, removed, moved;
    std::uint64_t more_added = 0, more_removed = 0, more_moved = 0;
    static constexpr std::size_t max_chains = 256;
    // Base chains whose packets may meet a rule that differs, also one that does not drop.
    std::vector<ChainName> chains;
    bool more_chains = false;
};

// What one look at a ruleset shows that the one before did not.
struct RulesetChange : DropChanges {
    static constexpr std::size_t max_changers = 8;
    std::int64_t time_ns = 0; // CLOCK_REALTIME of the last of its changes
    Netns netns;
    Backend backend = Backend::nftables;
    std::uint32_t generation = 0;
    std::vector<Changer> changers;   // who changed it since the look before, in that order
    std::uint64_t other_changes = 0; // by others, or by whom is not known
    std::string unknown;             // why the lists are not known; empty where they are
    // Null when several may have.
    const Changer* by() const { return changers.size() == 1 && other_changes == 0 ? &changers[0] : nullptr; }
    bool drops_differ() const { return !added.empty() || !removed.empty() || !moved.empty(); }
};

// ---- a rule drops no more, since a ruleset changed ----

// That it was the change is inferred from the times; that the rule dropped nothing since is counted.
struct Stopped {
    std::int64_t time_ns = 0;       // CLOCK_REALTIME, when it was known
    Cause cause;                    // a rule or a policy, with all that it dropped; without flows
    RulesetChange change;           // the first on the packets' way since the last drop; its lists of rules are empty
    std::optional<ChainName> chain; // by which they meet what it did; none: that is not known
    std::uint64_t changes = 1;      // as many were there on the packets' way since the last drop
    std::int64_t seen_since_ns = 0; // CLOCK_REALTIME, shortly after the change
    Seen seen;                      // packets of the filter since then; first_ns is not told
};

// ---- attach: what this kernel lets us see ----

enum class Exactness { exact, inferred, unavailable };

struct Capability {
    Exactness exactness = Exactness::unavailable;
    std::string reason; // why it is not exact; empty when it is
};

struct Capabilities {
    Capability iptables_legacy, iptables_nft, nftables;
};

struct Start {
    std::int64_t time_ns = 0;
    std::string version, kernel, host;
    std::string filter; // as a person would write it: "100.100.0.0/16, both ways"
    Capabilities capabilities;
    bool counts_seen = false; // packets that pass are counted
};

// ---- names, as the contract spells them ----

std::string_view to_string(IpFamily);
std::string_view to_string(Direction);
std::string_view to_string(NoPorts);
std::string_view to_string(DropKind);
std::string_view to_string(Hook);
std::string_view to_string(QueueFate);
std::string_view to_string(Backend);
std::string_view to_string(RuleFamily);
std::string_view to_string(Confidence);
std::string_view to_string(Exactness);
std::string_view to_string(Reached);
// "udp", "tcp", "icmp", "icmpv6", "sctp"...; the number as a string for the rest.
std::string proto_name(std::uint8_t proto);

} // namespace tsdroptrace
