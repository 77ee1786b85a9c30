// SPDX-License-Identifier: GPL-2.0-only
// Rule texts are those of iptables-save and `nft list ruleset` on hosts that run the owner in question.
#include "address.h"
#include "catch.h"

#include <algorithm>
#include <arpa/inet.h>

#include "explain/explain.h"
#include "explain/iptables_tool.h"
#include "explain/match.h"
#include "util/text.h"

using namespace tsdroptrace;
using namespace tsdroptrace::explain;

namespace {

// The founding incident: the answer of Alibaba Cloud's DNS dies on INPUT.
Drop incident(Backend backend, const char* rule_text) {
    Drop drop;
    drop.netns = {4026531840, std::nullopt, true};
    drop.packet.family = IpFamily::ipv4;
    drop.packet.proto = 17;
    drop.packet.src = address("100.100.2.136");
    drop.packet.dst = address("10.0.0.2");
    drop.packet.sport = 53;
    drop.packet.dport = 41873;
    drop.packet.direction = Direction::from;
    drop.packet.received = true;
    drop.packet.ctinfo = 3;
    drop.packet.in_dev = "eth0";
    drop.site = {DropKind::rule, "NETFILTER_DROP", 8, "nf_hook_slow+0x9b/0xd0", Hook::input, ""};
    Rule rule;
    rule.backend = backend;
    rule.family = RuleFamily::ip;
    rule.table = "filter";
    rule.chain = "ts-input";
    rule.number = 3;
    if (rule_text != nullptr)
        rule.text = rule_text;
    rule.path = {{"INPUT", 1, std::nullopt}, {"ts-input", 3, std::nullopt}};
    drop.rule = std::make_shared<Rule>(rule);
    return drop;
}

Drop incident() {
    return incident(Backend::iptables_legacy, "-A ts-input -s 100.64.0.0/10 ! -i tailscale0 -j DROP");
}

void edit_rule(Drop& drop, auto edit) {
    Rule rule = *drop.rule;
    edit(rule);
    drop.rule = std::make_shared<Rule>(rule);
}

Drop kernel_drop(const char* reason, const char* location) {
    Drop drop = incident();
    drop.rule = nullptr;
    drop.packet.ctinfo.reset();
    drop.site = {DropKind::kernel, reason, 3, location, std::nullopt, ""};
    return drop;
}

std::vector<std::string> actions(const Explanation& explanation) {
    std::vector<std::string> out;
    for (const Fix& fix : explanation.fixes)
        out.push_back(fix.action);
    return out;
}

bool has(const std::string& text, std::string_view part) {
    return text.find(part) != std::string::npos;
}

} // namespace

TEST_CASE("Tailscale's CGNAT drop is known in the form of every backend", "[explain]") {
    struct Form {
        Backend backend;
        const char* text;
        const char* accept;
    };
    const Form form = GENERATE(
        Form{Backend::iptables_legacy, "-A ts-input -s 100.64.0.0/10 ! -i tailscale0 -j DROP",
             "iptables-legacy -I INPUT 1 -i eth0 -s 100.100.0.0/16 -j ACCEPT"},
        Form{Backend::iptables_nft, "-A ts-input -s 100.64.0.0/10 ! -i tailscale0 -j DROP",
             "iptables-nft -I INPUT 1 -i eth0 -s 100.100.0.0/16 -j ACCEPT"},
        Form{Backend::nftables, "iifname != \"tailscale0*\" ip saddr 100.64.0.0/10 counter packets 3 bytes 252 drop",
             "nft insert rule ip filter INPUT iifname \"eth0\" ip saddr 100.100.0.0/16 accept"},
        Form{Backend::nftables, nullptr,
             "nft insert rule ip filter INPUT iifname \"eth0\" ip saddr 100.100.0.0/16 accept"});
    const auto explanation = Explainer().explain(incident(form.backend, form.text));
    REQUIRE(explanation);
    CHECK(explanation->id == "tailscale-cgnat");
    // The commands are Tailscale's own and the users' advice.
    CHECK(actions(*explanation) ==
          std::vector<std::string>{"node attribute disable-linux-cgnat-drop-rule, and rp_filter=1", form.accept,
                                   "tailscale set --netfilter-mode=nodivert", "tailscale set --netfilter-mode=off",
                                   "use another resolver than 100.100.2.136"});
    CHECK(has(explanation->summary, "100.100.2.136 is Alibaba Cloud's DNS."));
    CHECK(has(explanation->summary, "This packet had reached eth0."));
    CHECK(has(explanation->summary, "an answer to this machine's own request (conntrack)"));
    CHECK(has(explanation->fixes[1].risk, "until tailscaled restarts"));
    CHECK(has(explanation->fixes[3].risk, "CVE-2019-14899"));
}

TEST_CASE("what follows from a rule that is inferred says so", "[explain]") {
    Drop drop = incident();
    const auto exact = Explainer().explain(drop);
    edit_rule(drop, [](Rule& rule) { rule.confidence = Confidence::inferred; });
    const auto inferred = Explainer().explain(drop);
    REQUIRE(exact);
    REQUIRE(inferred);
    CHECK(inferred->id == exact->id);
    CHECK(inferred->summary ==
          "If it was this rule, which is inferred from its counter and was not seen: " + exact->summary);
    REQUIRE(inferred->fixes.size() == exact->fixes.size());
    for (std::size_t i = 0; i < exact->fixes.size(); i++)
        CHECK(inferred->fixes[i].risk == "helps only if it was this rule; " + exact->fixes[i].risk);
    CHECK_FALSE(has(exact->summary, "inferred"));
    // The kernel's own drops are no rule's.
    CHECK_FALSE(has(Explainer().explain(kernel_drop("NO_SOCKET", "udp_queue_rcv_skb+0x1/0x2"))->summary, "inferred"));
}

TEST_CASE("a fix uses the name that people type when that name edits the right backend", "[explain]") {
    const auto same = Explainer(Backend::iptables_legacy).explain(incident());
    CHECK(same->fixes[1].action == "iptables -I INPUT 1 -i eth0 -s 100.100.0.0/16 -j ACCEPT");
    const auto other = Explainer(Backend::iptables_nft).explain(incident());
    CHECK(other->fixes[1].action == "iptables-legacy -I INPUT 1 -i eth0 -s 100.100.0.0/16 -j ACCEPT");
    CHECK(backend_of_binary("xtables-nft-multi") == Backend::iptables_nft);
    CHECK(backend_of_binary("xtables-legacy-multi") == Backend::iptables_legacy);
    CHECK(!backend_of_binary("busybox"));
}

TEST_CASE("evidence is claimed only when the event holds it", "[explain]") {
    Drop drop = incident();
    drop.packet.ctinfo = 2; // new
    const auto by_port = Explainer().explain(drop);
    CHECK(!has(by_port->summary, "own request"));
    CHECK(has(by_port->summary, "from port 53 (DNS, by its port)"));

    drop.packet.ctinfo.reset();
    drop.packet.sport = 443;
    drop.packet.src = address("100.70.1.2"); // nobody that we know of
    const auto nothing = Explainer().explain(drop);
    CHECK(!has(nothing->summary, "The packet is"));
    CHECK(!has(nothing->summary, "DNS"));
    CHECK(nothing->fixes.size() == 4); // no resolver to replace
    CHECK(nothing->fixes[1].action == "iptables-legacy -I INPUT 1 -i eth0 -s 100.70.1.2 -j ACCEPT");
}

TEST_CASE("nobody is told to let MagicDNS in from outside", "[explain]") {
    Drop drop = incident();
    drop.packet.src = address("100.100.100.100");
    const auto explanation = Explainer().explain(drop);
    CHECK(has(explanation->summary, "Tailscale's own MagicDNS"));
    for (const std::string& action : actions(*explanation))
        CHECK(!has(action, "ACCEPT"));
}

TEST_CASE("names from outside cannot smuggle a command into a fix", "[explain]") {
    Drop drop = incident();
    drop.packet.in_dev = "$(reboot)"; // a name that the kernel takes for a device
    CHECK(Explainer().explain(drop)->fixes[1].action ==
          "iptables-legacy -I INPUT 1 -i '$(reboot)' -s 100.100.0.0/16 -j ACCEPT");
    drop.packet.in_dev = "it's;x";
    CHECK(has(Explainer().explain(drop)->fixes[1].action, "-i 'it'\\''s;x' "));
    drop = incident(Backend::nftables, nullptr);
    drop.packet.in_dev = "a`b`";
    CHECK(has(Explainer().explain(drop)->fixes[1].action, "iifname '\"a`b`\"' ip saddr"));
    // A value is not a template: braces in a name stay.
    drop = incident();
    edit_rule(drop, [](Rule& rule) {
        rule.chain = "{src}";
        rule.text = "-A {src} -j DROP";
    });
    CHECK(has(Explainer().explain(drop)->summary, "The chain {src} has no known owner"));
}

TEST_CASE("a fix for another network namespace cannot run in this one by mistake", "[explain]") {
    Drop drop = incident();
    drop.netns = {4026532281, "blue", false};
    CHECK(has(Explainer().explain(drop)->fixes[1].action, "ip netns exec blue iptables-legacy -I INPUT"));
    drop.netns.name.reset();
    const Fix fix = Explainer().explain(drop)->fixes[1];
    CHECK(has(fix.action, "nsenter -t PID -n iptables-legacy -I INPUT"));
    CHECK(has(fix.risk, "4026532281"));
    drop.netns.inode = 0; // not known: UDP has overwritten the packet's device, for example
    const Fix unknown = Explainer().explain(drop)->fixes[1];
    CHECK(unknown.action.starts_with("iptables-legacy -I INPUT"));
    CHECK(has(unknown.risk, "network namespace, and which one that is is not known"));
}

TEST_CASE("what looks at a network namespace looks at the packet's", "[explain]") {
    const auto all = [](Drop drop) {
        drop.netns = {4026532281, "blue", false};
        return actions(*Explainer().explain(drop));
    };
    const auto contains = [](const std::vector<std::string>& all, const char* one) {
        return std::ranges::find(all, one) != all.end();
    };
    Drop full = incident();
    full.rule = nullptr;
    full.site.kind = DropKind::hook;
    full.site.hook_function = HookFunction{"ipv4_conntrack_in", std::nullopt, std::nullopt, ""};
    CHECK(contains(all(full),
                   "ip netns exec blue sysctl net.netfilter.nf_conntrack_count net.netfilter.nf_conntrack_max"));
    full.site.hook_function.reset();
    full.site.queue = Queue{5, QueueFate::full, std::nullopt};
    CHECK(contains(all(full), "ip netns exec blue cat /proc/net/netfilter/nfnetlink_queue"));
    CHECK(contains(all(kernel_drop("XDP", "")), "ip netns exec blue bpftool net show dev eth0"));
    const auto overflow = all(kernel_drop("TCP_LISTEN_OVERFLOW", ""));
    CHECK(contains(overflow, "ip netns exec blue ss -lntp"));
    CHECK(contains(overflow, "ip netns exec blue sysctl net.core.somaxconn"));
    // The machine has one of these; it is not there in another namespace.
    CHECK(contains(all(kernel_drop("CPU_BACKLOG", "")), "sysctl net.core.netdev_max_backlog"));
    CHECK(contains(all(kernel_drop("SOCKET_RCVBUFF", "")), "sysctl net.core.rmem_max"));
}

TEST_CASE("a rule of nobody we know gets a plain explanation and its own tool", "[explain]") {
    Drop drop = incident();
    edit_rule(drop, [](Rule& rule) {
        rule.chain = "INPUT";
        rule.text = "-A INPUT -s 192.0.2.0/24 -j DROP";
        rule.path = {{"INPUT", 7, std::nullopt}};
    });
    drop.packet.src = address("192.0.2.9");
    auto explanation = Explainer().explain(drop);
    CHECK(explanation->id == "unowned-rule");
    CHECK(actions(*explanation) ==
          std::vector<std::string>{"iptables-legacy -t filter -L INPUT -n -v --line-numbers",
                                   "iptables-legacy -I INPUT 1 -i eth0 -s 192.0.2.9 -p udp --sport 53 -j ACCEPT"});

    // The same on the way out, over IPv6, in nftables.
    drop.packet.family = IpFamily::ipv6;
    drop.packet.src = address("2001:db8::1");
    drop.packet.dst = address("2001:db8::2");
    drop.packet.direction = Direction::to;
    drop.packet.received = false;
    drop.packet.in_dev.reset();
    drop.packet.out_dev = "eth1";
    drop.site.hook = Hook::output;
    edit_rule(drop, [](Rule& rule) {
        rule.backend = Backend::nftables;
        rule.family = RuleFamily::inet;
        rule.table = "mine";
        rule.chain = "out";
        rule.path = {{"out", 1, 4}};
    });
    explanation = Explainer().explain(drop);
    CHECK(actions(*explanation) ==
          std::vector<std::string>{
              "nft -a list chain inet mine out",
              "nft insert rule inet mine out oifname \"eth1\" ip6 daddr 2001:db8::2 udp sport 53 accept"});
    CHECK(has(explanation->fixes.back().risk, "lets out udp from port 53 that is sent to 2001:db8::2 this way"));
}

TEST_CASE("a policy is explained as one", "[explain]") {
    Drop drop = incident();
    drop.site.kind = DropKind::policy;
    edit_rule(drop, [](Rule& rule) {
        rule.chain = "INPUT";
        rule.number.reset();
        rule.text.reset();
        rule.path = {{"INPUT", std::nullopt, std::nullopt}};
    });
    CHECK(Explainer().explain(drop)->id == "policy");
    CHECK(has(Explainer().explain(drop)->summary, "No rule of the chain INPUT took the packet"));

    drop.site.hook = Hook::forward;
    drop.packet.out_dev = "docker0";
    edit_rule(drop, [](Rule& rule) {
        rule.chain = "FORWARD";
        rule.path = {{"FORWARD", std::nullopt, std::nullopt}};
    });
    const auto forward = Explainer().explain(drop);
    CHECK(forward->id == "forward-policy");
    CHECK(forward->fixes[0].action ==
          "iptables-legacy -I FORWARD 1 -i eth0 -o docker0 -s 100.100.2.136 -p udp --sport 53 -j ACCEPT");
}

TEST_CASE("legacy tables of ARP and of bridges have tools of their own", "[explain]") {
    struct Form {
        RuleFamily family;
        const char* show;
    };
    const Form form = GENERATE(Form{RuleFamily::arp, "arptables-legacy -t filter -L FORWARD -n -v --line-numbers"},
                               Form{RuleFamily::bridge, "ebtables-legacy -t filter -L FORWARD --Ln --Lc"});
    Drop drop = incident();
    drop.site.hook = Hook::forward;
    edit_rule(drop, [&](Rule& rule) {
        rule.family = form.family;
        rule.chain = "FORWARD";
        rule.path = {{"FORWARD", 3, std::nullopt}};
    });
    // No command of iptables would do anything there.
    auto explanation = Explainer().explain(drop);
    REQUIRE(explanation);
    CHECK(explanation->id == "unowned-rule");
    CHECK(actions(*explanation) == std::vector<std::string>{form.show});

    // And the chain that Docker gives a policy to is another one.
    drop.site.kind = DropKind::policy;
    edit_rule(drop, [](Rule& rule) {
        rule.number.reset();
        rule.text.reset();
        rule.path = {{"FORWARD", std::nullopt, std::nullopt}};
    });
    explanation = Explainer().explain(drop);
    REQUIRE(explanation);
    CHECK(explanation->id == "policy");
    CHECK(actions(*explanation) == std::vector<std::string>{form.show});
}

TEST_CASE("a hook without a rule says what is not known", "[explain]") {
    Drop drop = incident();
    drop.rule = nullptr;
    drop.site.kind = DropKind::hook;
    drop.site.unknown = "an expression that is not traced set the verdict";
    const auto explanation = Explainer().explain(drop);
    CHECK(explanation->id == "hook-without-rule");
    CHECK(has(explanation->summary, "No rule is named: an expression that is not traced set the verdict."));
}

TEST_CASE("a match that drops by itself is not blamed on what the rule is for", "[explain]") {
    Drop drop = incident();
    CHECK(Explainer().explain(drop)->id == "tailscale-cgnat");
    edit_rule(drop, [](Rule& rule) { rule.verdict = "hotdrop"; });
    CHECK(Explainer().explain(drop)->id == "match-dropped");
    CHECK(has(Explainer().explain(drop)->summary, "A match of this rule dropped the packet by itself"));
    edit_rule(drop, [](Rule& rule) { rule.text = "-A ts-input -p udp -m hashlimit --hashlimit-name x -j ACCEPT"; });
    CHECK(Explainer().explain(drop)->id == "match-no-room");
    edit_rule(drop, [](Rule& rule) { rule.verdict = "drop"; });
    CHECK(Explainer().explain(drop)->id != "match-no-room");
}

TEST_CASE("functions at hooks are told by their names", "[explain]") {
    const auto id = [](const char* name, const char* module) {
        Drop drop = incident();
        drop.rule = nullptr;
        drop.site.kind = DropKind::hook;
        drop.site.hook_function = HookFunction{name, module, std::nullopt, ""};
        const auto explanation = Explainer().explain(drop);
        CHECK(has(explanation->summary, module));
        return explanation->id;
    };
    CHECK(id("ipv4_conntrack_in", "nf_conntrack") == "conntrack-in");
    CHECK(id("ipv6_conntrack_local", "nf_conntrack") == "conntrack-in");
    CHECK(id("nf_confirm", "nf_conntrack") == "conntrack-confirm");
    CHECK(id("ip_vs_in_hook", "ip_vs") == "ipvs");
    CHECK(id("made_by_somebody", "their_module") == "hook-function");

    Drop drop = incident();
    drop.rule = nullptr;
    drop.site.kind = DropKind::hook;
    drop.site.hook_function = HookFunction{"nf_hook_run_bpf", std::nullopt, 12, "drops_all"};
    CHECK(Explainer().explain(drop)->fixes[0].action == "bpftool prog show id 12");
}

TEST_CASE("queues: who does not listen, who does not keep up, who said so", "[explain]") {
    Drop drop = incident();
    drop.owner.reset();
    drop.site.queue = Queue{5, QueueFate::nobody, std::nullopt};
    CHECK(Explainer().explain(drop)->id != "hook-without-rule");
    drop.rule = nullptr;
    drop.site.kind = DropKind::hook;
    CHECK(Explainer().explain(drop)->id == "queue-nobody");
    CHECK(has(Explainer().explain(drop)->summary, "queue 5"));
    drop.site.queue->fate = QueueFate::full;
    CHECK(Explainer().explain(drop)->id == "queue-full");
    drop.site.queue = Queue{5, QueueFate::verdict, Process{321, "suricata"}};
    CHECK(Explainer().explain(drop)->id == "queue-verdict");
    CHECK(has(Explainer().explain(drop)->summary, "suricata (pid 321)"));
}

TEST_CASE("owners go by comment, chain and table, in that order", "[explain]") {
    const Explainer explainer;
    Rule rule = *incident().rule;
    auto owner = explainer.owner(rule);
    REQUIRE(owner);
    CHECK(owner->name == "Tailscale");
    CHECK(owner->evidence == "chain ts-input");
    CHECK(owner->configured_by == "tailscale set --netfilter-mode");

    rule.text = "-A ts-input -m comment --comment \"cali:abc\" -j DROP";
    CHECK(explainer.owner(rule)->name == "Calico");

    rule = Rule{};
    rule.family = RuleFamily::inet;
    rule.table = "firewalld";
    rule.chain = "filter_INPUT";
    CHECK(explainer.owner(rule)->name == "firewalld");
    CHECK(explainer.owner(rule)->evidence == "table inet firewalld");
    rule.table = "mullvad";
    CHECK(explainer.owner(rule)->name == "Mullvad VPN");
    rule.family = RuleFamily::ip; // Mullvad's table is inet
    CHECK(!explainer.owner(rule));
    rule.table = "filter";
    rule.chain = "DOCKER-USER"; // the one chain that is not Docker's to fill
    CHECK(explainer.owner(rule)->name == "the administrator");
    rule.chain = "tsunami";
    CHECK(!explainer.owner(rule));
}

TEST_CASE("kernel drops are explained by reason and function", "[explain]") {
    const Explainer explainer;
    auto explanation = explainer.explain(kernel_drop("IP_RPFILTER", "ip_rcv_finish_core.isra.0+0x1b2/0x4a0"));
    REQUIRE(explanation);
    CHECK(explanation->id == "kernel-ip-rpfilter");
    CHECK(has(explanation->summary, "the route back to 100.100.2.136 does not leave by eth0"));
    CHECK(actions(*explanation)[1] == "sysctl -w net.ipv4.conf.eth0.rp_filter=2");

    explanation = explainer.explain(kernel_drop("IP_INADDRERRORS", "ip_error+0x5c/0x2a0"));
    CHECK(has(explanation->summary, "forwarding is off on eth0"));
    CHECK(actions(*explanation)[0] == "sysctl -w net.ipv4.ip_forward=1");

    CHECK(has(explainer.explain(kernel_drop("IP_INHDR", "ip_forward+0x1/0x2"))->summary, "TTL ran out"));
    CHECK(has(explainer.explain(kernel_drop("IP_INHDR", "ip_rcv_core+0x1/0x2"))->summary, "header is broken"));
    CHECK(has(explainer.explain(kernel_drop("NO_SOCKET", ""))->summary, "10.0.0.2:41873"));

    Drop vlan = kernel_drop("IP_RPFILTER", "");
    vlan.packet.in_dev = "eth0.100"; // sysctl(8): the dot within a name is a slash
    CHECK(actions(*explainer.explain(vlan))[1] == "sysctl -w net.ipv4.conf.eth0/100.rp_filter=2");

    CHECK(has(explainer.explain(kernel_drop("NOT_SPECIFIED", "sch_direct_xmit+0x1/0x2"))->summary, "sch_direct_xmit"));
    CHECK(has(explainer.explain(kernel_drop("", ""))->summary, "not known either")); // before 5.17
}

TEST_CASE("noise is a reason at a place, and never netfilter", "[explain]") {
    const Explainer explainer;
    CHECK(explainer.is_noise(kernel_drop("NO_SOCKET", "ping_rcv+0x9f/0x100")));
    CHECK(!explainer.is_noise(kernel_drop("NO_SOCKET", "__udp4_lib_rcv+0x4f2/0xd40")));
    CHECK(!explainer.is_noise(kernel_drop("NO_SOCKET", "")));
    CHECK(explainer.is_noise(kernel_drop("QUEUE_PURGE", "skb_queue_purge_reason+0x1/0x2")));
    CHECK(explainer.is_noise(kernel_drop("NOT_SPECIFIED", "ip6_mc_input+0x1/0x2")));
    CHECK(!explainer.is_noise(kernel_drop("NOT_SPECIFIED", "ip6_input+0x1/0x2")));
    CHECK(explainer.is_noise(kernel_drop("NOT_SPECIFIED", "inet_rtm_getroute+0x471/0x8d0")));
    CHECK(explainer.is_noise(kernel_drop("NOT_SPECIFIED", "icmpv6_rcv+0x258/0x690")));
    CHECK(!explainer.is_noise(kernel_drop("ICMP_CSUM", "icmpv6_rcv+0x258/0x690")));
    CHECK(!explainer.is_noise(kernel_drop("NOT_SPECIFIED", "icmp_rcv+0x1/0x2")));
    Drop drop = incident();
    drop.site.reason = "QUEUE_PURGE";
    CHECK(!explainer.is_noise(drop));
}

TEST_CASE("CIDRs hold what they should", "[explain]") {
    CHECK(contains("100.64.0.0/10", address("100.64.0.0")));
    CHECK(contains("100.64.0.0/10", address("100.127.255.255")));
    CHECK(!contains("100.64.0.0/10", address("100.128.0.0")));
    CHECK(!contains("100.64.0.0/10", address("100.63.255.255")));
    CHECK(contains("fd7a:115c:a1e0::/48", address("fd7a:115c:a1e0:ab12::1")));
    CHECK(!contains("fd7a:115c:a1e0::/48", address("fd7a:115c:a1e1::1")));
    CHECK(!contains("0.0.0.0/0", address("::1")));
    CHECK(!contains("nonsense", address("10.0.0.1")));
}
