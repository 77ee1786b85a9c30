// SPDX-License-Identifier: GPL-2.0-only
#include "explain/tables.h"

namespace tsdroptrace::explain {

namespace {

// ---- said more than once ----

constexpr std::string_view peer_is = "{peer} is {service}.";
constexpr std::string_view evidence = "The packet is {evidence}.";

const std::vector<FixTemplate> show_then_accept{
    {"{show}", "none, it only shows the chain"},
    {"{accept}", "{allowed}; gone when the rules are loaded again"},
};

// What works at once comes first: the reader is in the middle of an incident.
const std::vector<FixTemplate> tailscale_cgnat_fixes{
    {"{accept}",
     "holds until tailscaled restarts and puts its chain on top again; whoever reaches {in_dev} can claim an "
     "address in {peer_cidr}"},
    {"node attribute disable-linux-cgnat-drop-rule, and rp_filter=1",
     "needs Tailscale 1.98 and is set in the tailnet policy, on this host's tag; strict sysctl "
     "net.ipv4.conf.{sysctl_dev}.rp_filter=1 keeps the protection that the rule gave (some cloud images reset it "
     "to 0; all.rp_filter=2 would win over it); ts-forward's drop stays"},
    {"tailscale set --netfilter-mode=nodivert",
     "Tailscale keeps its chains but nothing jumps to them: its accepts are lost too, unless you add the jumps"},
    {"tailscale set --netfilter-mode=off",
     "loses the protection against spoofed tailnet addresses (CVE-2019-14899), masquerading for exit nodes, and the "
     "accepts for tailscale0 and Tailscale's UDP port"},
    {"use another resolver than {dns}",
     "treats the symptom: the provider's internal names, mirrors and databases stay out of reach"},
};

const FixTemplate docker_publish{"docker run --publish (or ports: in compose)",
                                 "the published port is reachable on this machine's own addresses"};

const std::vector<std::string_view> docker_direct_access{
    "The rule has the form of Docker's: version 28 and newer drop what is sent straight to a container's address from "
    "outside its bridge.",
    evidence};

const std::vector<FixTemplate> docker_direct_access_fixes{
    docker_publish,
    {"allow-direct-routing in /etc/docker/daemon.json", "containers become reachable by their own addresses"},
};

const std::vector<std::string_view> crowdsec{"CrowdSec blocks {src} by a decision of its own or of its community list.",
                                             evidence};

const std::vector<FixTemplate> crowdsec_fixes{
    {"cscli decisions delete --ip {src}", "it may be blocked again; an allowlist lasts"},
};

const std::vector<std::string_view> conntrack_in{
    "Conntrack ({hook_function}) dropped it: it did not take the connection in. Mostly its table is full; then the "
    "kernel's log says so (nf_conntrack: table full).",
    peer_is};

const std::vector<FixTemplate> conntrack_in_fixes{
    {"conntrack -S", "none, it shows the counters: drop and early_drop grow when the table is full"},
    {"sysctl -w net.netfilter.nf_conntrack_max=N", "each connection takes some 400 bytes of kernel memory"},
};

const std::vector<std::string_view> conntrack_confirm{
    "Conntrack ({hook_function}) dropped it: the new connection could not be entered in its table, since another one "
    "has the same addresses and ports. Mostly NAT has too few ports or addresses to choose from.",
    peer_is};

const std::vector<FixTemplate> conntrack_confirm_fixes{
    {"conntrack -S", "none, it shows the counters: insert_failed grows with each such drop"},
    {"widen the range of ports or addresses in the NAT rule", "more of them are taken on this machine's side"},
};

const std::vector<std::string_view> queue_nobody{
    "The rule hands packets to a program in userspace (queue {queue}), and no program listens there.", peer_is,
    evidence};

const std::vector<FixTemplate> queue_nobody_fixes{
    {"start the program that should listen on queue {queue}", "packets then pass or not as it says"},
    {"the rule's option bypass (iptables: --queue-bypass)", "packets pass unseen while the program does not run"},
};

const std::vector<std::string_view> queue_full{
    "The rule hands packets to a program in userspace (queue {queue}), which does not keep up: its queue or its socket "
    "is full.",
    peer_is};

const std::vector<FixTemplate> queue_full_fixes{
    {"cat /proc/net/netfilter/nfnetlink_queue", "none, it shows for each queue the port id of its program (mostly its "
                                                "pid), how many packets wait, and how many were "
                                                "dropped"},
    {"a longer queue, or fail-open, in the program's configuration", "fail-open lets packets pass unseen"},
};

const std::vector<FixTemplate> network_policy_fixes{
    {"kubectl get networkpolicies -A", "none, it shows the policies; one that allows the packet is the fix"},
};

const std::vector<std::string_view> conntrack_invalid{
    "The rule drops what conntrack cannot place in any connection: only one direction passes this machine, the "
    "connection is older than its table, or the table is full."};

const std::vector<FixTemplate> conntrack_invalid_fixes{
    {"{show}", "none, it only shows the chain"},
    {"sysctl net.netfilter.nf_conntrack_count net.netfilter.nf_conntrack_max",
     "none, it shows whether the table is full"},
    {"{accept}", "{allowed}, in a connection or not"},
};

const std::vector<std::string_view> reverse_path{
    "The rule drops packets whose source would not be answered by the device they came in by: the route back to {src} "
    "does not leave by {in_dev}.",
    evidence};

const std::vector<FixTemplate> reverse_path_fixes{
    {"ip route get {src}", "none, it shows the way back"},
    {"{accept}", "no protection against spoofed sources in {peer_cidr} on {in_dev}"},
};

const std::vector<FixTemplate> wg_quick_fixes{
    {"AllowedIPs = {src}",
     "for the peer in the WireGuard configuration: it may then send from it, and gets the answers"},
};

const std::vector<std::string_view> ufw{
    "A chain with ufw's name dropped it: no rule of ufw allows the packet, or one denies it.", peer_is, evidence};

// ---- the table: what is special first, what is said of any rule last ----

const std::vector<KnownCause> table_of_causes{
    // Tailscale
    {.id = "tailscale-cgnat",
     .chain = "ts-input",
     .text = {"100.64.0.0/10"},
     .sentences = {"Tailscale takes 100.64.0.0/10 for itself and drops whatever claims an address from it without "
                   "coming out of its tunnel.",
                   "This packet came in by {in_dev}.", peer_is, evidence},
     .fixes = tailscale_cgnat_fixes},
    {.id = "tailscale-cgnat", // the rule's text could not be read
     .chain = "ts-input",
     .source = "100.64.0.0/10",
     .sentences = {"Going by the chain's name and the packet's source: Tailscale drops whatever claims an address in "
                   "100.64.0.0/10 without coming out of its tunnel.",
                   "This packet came in by {in_dev}.", peer_is, evidence},
     .fixes = tailscale_cgnat_fixes},
    {.id = "tailscale-forward-cgnat",
     .chain = "ts-forward",
     .text = {"100.64.0.0/10"},
     .sentences = {"Tailscale drops what this machine would forward into the tailnet with a source in 100.64.0.0/10, "
                   "because such a source can only be a tailnet address that somebody else claims.",
                   peer_is, evidence},
     .fixes = {{"route {src} past tailscale0, or SNAT it", "the tailnet sees the translated address instead of {src}"},
               {"{accept}", "holds until tailscaled restarts and puts its chain on top again; tailnet peers get "
                            "packets whose source may collide with one of theirs"},
               {"tailscale set --netfilter-mode=nodivert",
                "Tailscale keeps its chains but nothing jumps to them: its accepts are lost too, unless you add the "
                "jumps"}}},
    {.id = "tailscale-stateful-filtering",
     .chain = "ts-forward",
     .text = {"state"},
     .sentences = {"Tailscale's stateful filtering forwards into the tailnet only what answers a connection that a "
                   "tailnet peer opened.",
                   evidence},
     .fixes = {{"tailscale set --stateful-filtering=false",
                "hosts behind this one can open connections into the tailnet; the tailnet policy still decides what "
                "they reach"}}},

    // Docker
    {.id = "docker-direct-access",
     .table = "raw",
     .chain = "PREROUTING",
     .text = {"! -i docker0"},
     .sentences = docker_direct_access,
     .fixes = docker_direct_access_fixes},
    {.id = "docker-direct-access",
     .table = "raw",
     .chain = "PREROUTING",
     .text = {"! -i br-"},
     .sentences = docker_direct_access,
     .fixes = docker_direct_access_fixes},
    {.id = "docker-user",
     .chain = "DOCKER-USER",
     .sentences = {"Docker makes the chain DOCKER-USER for the administrator's own rules, so this one is theirs.",
                   peer_is, evidence},
     .fixes = show_then_accept},
    {.id = "docker-isolation",
     .chain = "DOCKER-ISOLATION*",
     .sentences = {"Docker keeps its bridge networks apart: what comes from one may not enter another.", evidence},
     .fixes = {{"docker network connect NETWORK CONTAINER", "the container is then a member of both networks"},
               {"{iptables} -I DOCKER-USER -i {in_dev} -o {out_dev} -j ACCEPT",
                "everything between the two networks passes; gone after a reboot"}}},
    {.id = "docker-unpublished",
     .chain = "DOCKER",
     .sentences = {"Docker drops what enters a bridge network for a port that no container there publishes.", evidence},
     .fixes = {docker_publish}},
    {.id = "forward-policy",
     .kind = DropKind::policy,
     .hook = Hook::forward,
     .table = "filter",
     .chain = "FORWARD",
     .sentences =
         {"No rule of FORWARD took the packet, so the chain's policy dropped it.",
          "Docker sets this policy when it starts, and ufw does too; which of them, or who else, is not known.",
          peer_is, evidence},
     .fixes = {{"{accept}", "lets this machine forward whatever {peer_cidr} sends this way; gone after a reboot; where "
                            "the chain DOCKER-USER exists, put it there, so that Docker keeps it"},
               {"systemctl restart tailscaled", "if Tailscale should forward it: puts ts-forward on top again and "
                                                "interrupts the tailnet for a moment"}}},

    // What bans
    {.id = "fail2ban-ban",
     .chain = "f2b-*",
     .sentences = {"fail2ban has banned {src}: it failed to log in too often, or matched another of its filters.",
                   evidence},
     .fixes = {{"fail2ban-client unban {src}", "it may try again until it is banned again"},
               {"ignoreip = {src}",
                "in /etc/fail2ban/jail.local, with what is there already: it is never banned again"}}},
    {.id = "crowdsec-ban", .chain = "crowdsec*", .sentences = crowdsec, .fixes = crowdsec_fixes},
    {.id = "crowdsec-ban", .chain = "CROWDSEC_CHAIN*", .sentences = crowdsec, .fixes = crowdsec_fixes},

    // Kubernetes
    {.id = "kubernetes-no-endpoints",
     .text = {"has no endpoints"},
     .sentences = {"The rule's comment says that the Kubernetes service has no endpoints: no ready pod stands behind "
                   "{dst}."},
     .fixes = {{"kubectl get endpointslices,pods -A -o wide", "none, it shows which pods are not ready"}}},
    {.id = "kubernetes-network-policy",
     .chain = "KUBE-POD-FW*",
     .sentences = {"No NetworkPolicy of the pod allows this packet.", evidence},
     .fixes = network_policy_fixes},
    {.id = "kubernetes-network-policy",
     .chain = "cali-*",
     .sentences = {"A chain with Calico's name dropped it: no policy of the pod or host endpoint allows it, or one "
                   "denies it.",
                   evidence},
     .fixes = network_policy_fixes},

    // Shapes of rules, whoever wrote them
    {.id = "conntrack-invalid",
     .text = {"ctstate", "INVALID"},
     .sentences = conntrack_invalid,
     .fixes = conntrack_invalid_fixes},
    {.id = "conntrack-invalid",
     .text = {"ct state", "invalid"},
     .sentences = conntrack_invalid,
     .fixes = conntrack_invalid_fixes},
    {.id = "reverse-path-rule", .text = {"rpfilter"}, .sentences = reverse_path, .fixes = reverse_path_fixes},
    {.id = "reverse-path-rule", .text = {"fib saddr", "oif"}, .sentences = reverse_path, .fixes = reverse_path_fixes},
    {.id = "wg-quick-guard",
     .text = {"wg-quick(8) rule for"},
     .sentences = {"The rule's comment is wg-quick's: what is sent to the tunnel's own address {dst} must come out of "
                   "the tunnel.",
                   "This packet came in by {in_dev}."},
     .fixes = wg_quick_fixes},
    {.id = "wg-quick-guard",
     .table = "wg-quick-*",
     .sentences =
         {"The table's name is wg-quick's: what is sent to the tunnel's own address {dst} must come out of the "
          "tunnel.",
          "This packet came in by {in_dev}."},
     .fixes = wg_quick_fixes},

    // Firewall managers, whose rules are written again from their own configuration
    {.id = "ufw",
     .hook = Hook::input,
     .chain = "ufw*",
     .sentences = ufw,
     .fixes = {{"ufw allow from {peer_cidr}", "lets in whatever {peer_cidr} sends to this machine"}}},
    {.id = "ufw",
     .hook = Hook::forward,
     .chain = "ufw*",
     .sentences = ufw,
     .fixes = {{"ufw route allow from {peer_cidr}", "forwards whatever {peer_cidr} sends through this machine"}}},
    {.id = "ufw",
     .hook = Hook::output,
     .chain = "ufw*",
     .sentences = ufw,
     .fixes = {{"ufw allow out to {peer_cidr}", "lets every program here reach {peer_cidr}"}}},
    {.id = "firewalld",
     .table = "firewalld",
     .sentences = {"The table's name is firewalld's: no zone or policy of firewalld accepts the packet.", peer_is,
                   evidence},
     .fixes = {{"firewall-cmd --zone=trusted --add-source={peer_cidr}",
                "everything from {peer_cidr} is let in; add --permanent to keep it"},
               {"firewall-cmd --zone=trusted --add-interface={in_dev}",
                "everything that comes in by {in_dev} is let in"}}},

    // Rules that hand packets to a queue
    {.id = "queue-nobody", .queue = QueueFate::nobody, .sentences = queue_nobody, .fixes = queue_nobody_fixes},
    {.id = "queue-full", .queue = QueueFate::full, .sentences = queue_full, .fixes = queue_full_fixes},

    // Any rule with an owner, any rule without
    {.id = "owned-rule",
     .owned = Owned::yes,
     .sentences = {"Going by {owner_evidence}, the rule is written by {owner}, which writes it again when it restarts.",
                   peer_is, evidence},
     .fixes = {{"{configured_by}", "the place where {owner} keeps what it allows"},
               {"{show}", "none, it only shows the chain"},
               {"{accept}", "{allowed}; {owner} may write its rules above it again"}}},
    {.id = "unowned-rule",
     .owned = Owned::no,
     .sentences = {"The chain {chain} has no known owner: it may be the administrator's own.", peer_is, evidence},
     .fixes = show_then_accept},

    // Policies
    {.id = "owned-policy",
     .kind = DropKind::policy,
     .owned = Owned::yes,
     .sentences = {"No rule of the chain {chain} took the packet, so the chain's policy dropped it.",
                   "Going by {owner_evidence}, the chain is {owner}'s.", peer_is, evidence},
     .fixes = {{"{configured_by}", "the place where {owner} keeps what it allows"},
               {"{accept}", "{allowed}; {owner} may write its rules again"}}},
    {.id = "policy",
     .kind = DropKind::policy,
     .sentences =
         {"No rule of the chain {chain} took the packet, so the chain's policy dropped it: what is not allowed "
          "there is dropped.",
          peer_is, evidence},
     .fixes = show_then_accept},

    // Hook functions that have no rules, by their name
    {.id = "conntrack-in",
     .kind = DropKind::hook,
     .function = "ipv4_conntrack_*",
     .sentences = conntrack_in,
     .fixes = conntrack_in_fixes},
    {.id = "conntrack-in",
     .kind = DropKind::hook,
     .function = "ipv6_conntrack_*",
     .sentences = conntrack_in,
     .fixes = conntrack_in_fixes},
    {.id = "conntrack-confirm",
     .kind = DropKind::hook,
     .function = "nf_confirm",
     .sentences = conntrack_confirm,
     .fixes = conntrack_confirm_fixes},
    {.id = "conntrack-confirm",
     .kind = DropKind::hook,
     .function = "ipv4_confirm",
     .sentences = conntrack_confirm,
     .fixes = conntrack_confirm_fixes},
    {.id = "conntrack-confirm",
     .kind = DropKind::hook,
     .function = "ipv6_confirm",
     .sentences = conntrack_confirm,
     .fixes = conntrack_confirm_fixes},
    {.id = "ipvs",
     .kind = DropKind::hook,
     .function = "ip_vs_*",
     .sentences = {"The load balancer of the kernel, IPVS ({hook_function}), dropped it: mostly the service has no "
                   "server that is up.",
                   peer_is},
     .fixes = {{"ipvsadm -L -n", "none, it lists the services and their servers"}}},
    {.id = "legacy-arp-table",
     .kind = DropKind::hook,
     .function = "arpt_do_table",
     .sentences = {"A rule or a policy of the legacy ARP tables (arptables-legacy) dropped it. Which one is not known: "
                   "its module was loaded a moment before, and was not traced yet."},
     .fixes = {{"arptables-legacy -L -n -v", "none, it shows the rules with their counters"}}},
    {.id = "legacy-bridge-table",
     .kind = DropKind::hook,
     .function = "ebt_*",
     .sentences = {"A rule or a policy of the legacy bridge tables (ebtables-legacy) dropped it. Which one is not "
                   "known: its module was loaded a moment before, and was not traced yet."},
     .fixes = {{"ebtables-legacy -L --Lc", "none, it shows the rules of the table filter with their counters"}}},
    {.id = "bpf-netfilter",
     .kind = DropKind::hook,
     .function = "nf_hook_run_bpf",
     .sentences = {"A BPF program at netfilter's hook dropped it: {hook_function}.", peer_is},
     .fixes = {{"bpftool prog show id {program_id}", "none, it shows the program"},
               {"bpftool link show", "none, it shows which process holds it"}}},
    {.id = "hook-function",
     .kind = DropKind::hook,
     .function = "*",
     .sentences = {"A function at netfilter's hook that has no rules dropped it: {hook_function}.", peer_is, evidence},
     .fixes = {{"nft list hooks", "none, it lists who is registered at each hook (kernel 5.14, nft 1.0.3 or newer)"}}},

    // Queues
    {.id = "queue-verdict",
     .kind = DropKind::hook,
     .queue = QueueFate::verdict,
     .sentences = {"A rule hands packets to a program in userspace (queue {queue}), and that said drop: "
                   "{queue_process}.",
                   peer_is, evidence},
     .fixes = {{"look into the program's own log and rules", "none"}}},
    {.id = "queue-nobody",
     .kind = DropKind::hook,
     .queue = QueueFate::nobody,
     .sentences = queue_nobody,
     .fixes = queue_nobody_fixes},
    {.id = "queue-full",
     .kind = DropKind::hook,
     .queue = QueueFate::full,
     .sentences = queue_full,
     .fixes = queue_full_fixes},

    // A hook function without a rule
    {.id = "hook-without-rule",
     .kind = DropKind::hook,
     .sentences = {"Netfilter dropped it.", "No rule is named: {unknown}.", peer_is, evidence},
     .fixes = {{"nft list hooks", "none, it lists who is registered at each hook (kernel 5.14, nft 1.0.3 or newer)"}}},
};

} // namespace

std::span<const KnownCause> causes() {
    return table_of_causes;
}

} // namespace tsdroptrace::explain
