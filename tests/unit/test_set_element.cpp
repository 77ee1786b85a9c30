// SPDX-License-Identifier: GPL-2.0-only
// The texts of rules and elements are what nft 1.0.6 and 1.1.3 print.
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "address.h"
#include "catch.h"
#include "resolve_rule/nft_listing.h"
#include "resolve_rule/set_element.h"

using namespace tsdroptrace;
using namespace tsdroptrace::resolve_rule;

namespace {

Packet udp(const std::string& src = "10.0.0.1", std::uint16_t sport = 5000, std::uint16_t dport = 7017) {
    Packet packet;
    packet.src = address(src);
    packet.dst = address(src.find(':') != std::string::npos ? "fd00::2" : "10.0.0.2");
    packet.family = packet.src.family;
    packet.proto = 17;
    packet.sport = sport;
    packet.dport = dport;
    packet.mark = 0x12;
    packet.in_dev = "wg0";
    return packet;
}

Packet tcp(std::uint16_t dport) {
    Packet packet = udp("10.0.0.1", 5000, dport);
    packet.proto = 6;
    return packet;
}

struct NamedSet {
    std::string elements;
    bool may_change = false;
};
using NamedSets = std::map<std::string, NamedSet>;

// "ELEMENT" or "SET: ELEMENT", one after the other.
std::string met(const std::string& rule, const Packet& packet, const NamedSets& sets = {}) {
    const auto named = [&](std::string_view name, const Selectors& selectors) -> std::shared_ptr<const SetElements> {
        const auto found = sets.find(std::string(name));
        if (found == sets.end())
            return nullptr;
        return std::make_shared<SetElements>(found->second.elements, selectors, found->second.may_change);
    };
    std::string out;
    for (const SetElement& element : RuleLookups(rule, named).elements(packet))
        out += (out.empty() ? "" : " | ") + (element.set ? *element.set + ": " : "") + element.text;
    return out;
}

} // namespace

TEST_CASE("set element: anonymous sets and verdict maps", "[set_element]") {
    const std::string ports = "udp dport { 53, 7000-7010 } counter packets 0 bytes 0 drop";
    CHECK(met(ports, udp("10.0.0.1", 1, 53)) == "53");
    CHECK(met(ports, udp("10.0.0.1", 1, 7000)) == "7000-7010");
    CHECK(met(ports, udp("10.0.0.1", 1, 7010)) == "7000-7010");
    CHECK(met(ports, udp("10.0.0.1", 53, 7011)) == "");
    CHECK(met(ports, tcp(53)) == ""); // another protocol's
    CHECK(met("th dport { 53, 7000-7010 } drop", tcp(53)) == "53");

    const std::string map = "tcp dport vmap { 22 : accept, 7017 : drop, 7018 : jump gone }";
    CHECK(met(map, tcp(7017)) == "7017 : drop");
    CHECK(met(map, tcp(22)) == "");   // then this rule has not dropped it
    CHECK(met(map, tcp(7018)) == ""); // nor here
    CHECK(met("meta l4proto { tcp, udp } tcp dport vmap { 22 : accept }", tcp(22)) == "");
    CHECK(met("ip saddr vmap { 10.0.0.1 : continue, 10.0.0.9 : accept } drop", tcp(1)) == "10.0.0.1 : continue");
    CHECK(met("ip saddr vmap { 10.0.0.9 : accept, * : drop }", tcp(1)) == "* : drop");
    CHECK(met("ip saddr vmap { 10.0.0.1 : drop, * : accept }", tcp(1)) == "10.0.0.1 : drop");
}

TEST_CASE("set element: sets with names", "[set_element]") {
    const NamedSets sets{
        {"blocked", {"10.0.0.0-10.0.0.9, 10.9.9.9, 192.168.0.0/16 comment \"a, b : c\", 198.51.100.0/24"}},
        {"lately",
         {"10.0.0.1 counter timeout 10m expires 9m59s comment \"x\", 10.0.0.2 counter packets 1 bytes 2", true}},
        {"verdicts", {"7026 : drop, 7027 : goto gone, 8000 comment \"x : y\" : drop"}},
        {"left", {"10.0.0.1 counter timeout 1h comment \"z\" : drop, 10.0.0.2 counter : jump gone, * : drop", true}},
    };
    const auto of = [&](const std::string& rule, const Packet& packet) { return met(rule, packet, sets); };
    CHECK(of("ip saddr @blocked drop", udp("198.51.100.7")) == "blocked: 198.51.100.0/24");
    CHECK(of("ip saddr @blocked drop", udp("10.0.0.9")) == "blocked: 10.0.0.0-10.0.0.9");
    CHECK(of("ip saddr @blocked drop", udp("192.168.3.4")) == "blocked: 192.168.0.0/16 comment \"a, b : c\"");
    CHECK(of("ip saddr @blocked drop", udp("10.0.0.10")) == "");
    CHECK(of("ip daddr @blocked drop", udp("198.51.100.7")) == "blocked: 10.0.0.0-10.0.0.9");
    CHECK(of("ip saddr == @blocked drop", udp("10.9.9.9")) == "blocked: 10.9.9.9");
    CHECK(of("ip saddr @lately drop", udp("10.0.0.1")) == "lately: 10.0.0.1 timeout 10m comment \"x\"");
    CHECK(of("ip saddr @lately drop", udp("10.0.0.2")) == "lately: 10.0.0.2");
    CHECK(of("ip saddr @lately drop", udp("10.0.0.3")) == ""); // it was there
    CHECK(of("udp dport vmap @verdicts", udp("10.0.0.1", 1, 7026)) == "verdicts: 7026 : drop");
    CHECK(of("udp dport vmap @verdicts", udp("10.0.0.1", 1, 7027)) == "");
    CHECK(of("udp dport vmap @verdicts", udp("10.0.0.1", 1, 8000)) == "verdicts: 8000 comment \"x : y\" : drop");
    CHECK(of("ip saddr vmap @left", udp("10.0.0.1")) == "left: 10.0.0.1 timeout 1h comment \"z\" : drop");
    CHECK(of("ip saddr vmap @left", udp("10.0.0.3")) == ""); // an element may have ended meanwhile
    CHECK(of("ip saddr @unknown drop", udp()) == "");
    CHECK(of("ip saddr @blocked udp dport vmap @verdicts", udp("10.0.0.1", 1, 7026)) ==
          "blocked: 10.0.0.0-10.0.0.9 | verdicts: 7026 : drop");
}

TEST_CASE("set element: what a rule may ask of a packet", "[set_element]") {
    CHECK(met("ip6 saddr { ::1, fd7a:115c:a1e0::/48 } drop", udp("fd7a:115c:a1e0::53")) == "fd7a:115c:a1e0::/48");
    CHECK(met("ip6 saddr { fe80::1-fe80::9 } drop", udp("fe80::9")) == "fe80::1-fe80::9");
    CHECK(met("ip6 saddr { fe80::1-fe80::9 } drop", udp("10.0.0.1")) == "");
    CHECK(met("ip saddr { 0.0.0.0/0 } drop", udp("fe80::9")) == "");
    CHECK(met("iifname { \"eth0\", \"wg*\" } drop", udp()) == "\"wg*\"");
    CHECK(met("iifname { \"eth0\", \"wg\\*\" } drop", udp()) == "");
    CHECK(met("iifname { \"wg\", \"wg01\" } drop", udp()) == "");
    CHECK(met("iif { \"lo\", \"wg0\" } drop", udp()) == "\"wg0\"");
    CHECK(met("iif { \"lo\", 99 } drop", udp()) == "");
    CHECK(met("oifname { \"wg*\" } drop", udp()) == "");
    CHECK(met("meta l4proto { icmp, ipencap, tcp, udp } drop", udp()) == "udp");
    CHECK(met("meta l4proto { 17, ospf } drop", udp()) == "17");
    CHECK(met("ip protocol { tcp, udp } drop", tcp(1)) == "tcp");
    CHECK(met("meta mark { 0x00000001, 0x00000010/28 } drop", udp()) == "0x00000010/28");
    CHECK(met("meta mark { 0x00000001, 0x00000010-0x0000001f } drop", udp()) == "0x00000010-0x0000001f");
    CHECK(met("meta mark { 0x00000001, 0x00000012 } drop", udp()) == "0x00000012");

    Packet ping = udp();
    ping.proto = 1;
    ping.sport = ping.dport = std::nullopt;
    ping.icmp_type = 8;
    CHECK(met("icmp type { echo-reply, destination-unreachable, echo-request, 42 } drop", ping) == "echo-request");
    CHECK(met("icmpv6 type { echo-request } drop", ping) == "");
    ping = udp("fe80::1");
    ping.proto = 58;
    ping.icmp_type = 135;
    CHECK(met("icmpv6 type { mld-listener-query, nd-neighbor-solicit } drop", ping) == "nd-neighbor-solicit");

    // What stands behind the IPv6 header need not be the packet's protocol.
    CHECK(met("ip6 nexthdr { tcp, udp } drop", udp("fe80::1")) == "udp");
    CHECK(met("ip6 nexthdr { tcp, udp, ipv6-frag } drop", udp("fe80::1")) == "");
    CHECK(met("ip6 nexthdr { 0-59 } drop", udp("fe80::1")) == "");

    CHECK(met("ct state { new } drop", udp()) == "");
    CHECK(met("ip dscp { cs0 } drop", udp()) == "");
}

TEST_CASE("set element: concatenations", "[set_element]") {
    const std::string rule = "ip saddr . tcp dport { 10.0.0.1 . 22, 10.0.0.0/24 . 1000-2000 } drop";
    CHECK(met(rule, tcp(22)) == "10.0.0.1 . 22");
    CHECK(met(rule, tcp(1500)) == "10.0.0.0/24 . 1000-2000");
    CHECK(met(rule, tcp(23)) == "");
    CHECK(met("iif . meta l4proto { \"lo\" . udp, \"wg0\" . udp } drop", udp()) == "\"wg0\" . udp");
    CHECK(met("ip saddr . meta l4proto . th dport @three drop", udp(), {{"three", {"10.0.0.1 . udp . 7017"}}}) ==
          "three: 10.0.0.1 . udp . 7017");
    CHECK(met("ip saddr . udp dport vmap @map", udp(), {{"map", {"10.0.0.0/8 . 22 : accept, * : drop"}}}) ==
          "map: * : drop");
    // With a part that is not known.
    CHECK(met("ip saddr . meta day { 10.0.0.1 . \"Monday\" } drop", udp()) == "");
    CHECK(met("ether saddr . ip saddr { 00:00:00:00:00:01 . 10.0.0.1 } drop", udp()) == "");
    CHECK(met("meta day . ip saddr { 10.0.0.1 } drop", udp()) == "");
    CHECK(met("ip saddr . meta day . udp dport { 7017 } drop", udp()) == "");
    // Of several that hold it, none.
    CHECK(met("ip saddr . udp dport @s drop", udp(), {{"s", {"10.0.0.0/8 . 7017, 10.0.0.1 . 7000-7020"}}}) == "");
}

TEST_CASE("set element: where nothing is to be said", "[set_element]") {
    CHECK(met("ip saddr != { 10.0.0.2, 10.0.0.1 } drop", udp()) == "");
    CHECK(met("ip saddr != @s drop", udp(), {{"s", {"10.0.0.1"}}}) == "");
    CHECK(met("ct original ip saddr { 10.0.0.1 } drop", udp()) == "");
    CHECK(met("udp dport 4789 vxlan ip saddr { 10.0.0.1 } drop", udp()) == "");
    CHECK(met("fib saddr . iif oif vmap { \"wg0\" : drop }", udp()) == "");
    CHECK(met("fib daddr type { local } udp dport { 7017 } drop", udp()) == "7017");
    // A map that is looked up as a set, for which newer kernels let it be used.
    CHECK(met("ip saddr @m drop", udp(), {{"m", {"10.0.0.1 : 0x00000001"}}}) == "m: 10.0.0.1 : 0x00000001");
    CHECK(met("jhash ip saddr mod 2 vmap { 0 : drop }", udp()) == "");
    CHECK(met("ip saddr & 255.255.255.0 vmap { 10.0.0.1 : drop }", udp()) == "");
    CHECK(met("meta mark set ip saddr map { 10.0.0.1 : 0x00000001 } udp dport { 7017 } drop", udp()) == "");
    CHECK(met("@nh,96,32 set 0x1020304 ip saddr { 10.0.0.1 } drop", udp()) == "");
    CHECK(met("add @s { ip saddr } drop", udp(), {{"s", {"10.0.0.1"}}}) == "");
    CHECK(met("add @s { ip saddr } udp dport { 7017 } drop", udp()) == "7017");
    // Behind what has dropped the packet.
    CHECK(met("udp dport { 7017 } jump { ip saddr { 10.0.0.1 } drop; accept }", udp()) == "7017");
    CHECK(met("tproxy to :80 udp dport { 7017 } accept", udp()) == "");
    CHECK(met("drop comment \"udp dport { 7017 }\"", udp()) == "");
    CHECK(met("log prefix \"udp dport { 7017 }\" drop", udp()) == "");
    CHECK(met("meta nftrace set 1 udp dport { 7017 } drop", udp()) == "7017");

    Packet fragment = udp();
    fragment.sport = fragment.dport = std::nullopt;
    fragment.no_ports = NoPorts::fragment;
    CHECK(met("udp dport { 0, 7017 } drop", fragment) == "");
    CHECK(met("ip saddr { 10.0.0.1 } drop", fragment) == "10.0.0.1");
    CHECK(met("ip saddr { 10.0.0.1 } drop", Packet{}) == "");
    CHECK(met("meta l4proto { ip } drop", Packet{}) == "");
}

TEST_CASE("set element: texts of any kind are survived", "[set_element]") {
    const std::string hard =
        "ip saddr . udp dport vmap { 10.0.0.1 . 7017 comment \"a } b\" timeout : drop, * } @x { \"";
    for (std::size_t length = 0; length <= hard.size(); length++)
        for (std::size_t from = 0; from <= length; from++)
            met(hard.substr(from, length - from), udp());
    CHECK(met("ip saddr { 10.0.0.1 comment \"" + std::string(SetElements::max_element_text, 'x') + "\" } drop",
              udp()) == "");
    std::string many;
    for (std::size_t i = 0; i < 2 * RuleLookups::max_lookups; i++)
        many += "ip saddr { 10.0.0.1 } ";
    CHECK(RuleLookups(many, {}).elements(udp()).size() == RuleLookups::max_lookups);
}

TEST_CASE("set element: the elements in a listing", "[set_element]") {
    const std::string listing = "table inet t {\n\tset iv {\n\t\ttype ipv4_addr\n\t\tflags interval\n"
                                "\t\telements = { 10.0.0.1-10.0.0.9, 10.9.9.9,\n"
                                "\t\t\t     192.168.0.0/16 comment \"a, b : c\", 198.51.100.0/24 }\n\t}\n}\n";
    const std::string elements = "10.0.0.1-10.0.0.9, 10.9.9.9, 192.168.0.0/16 comment \"a, b : c\", 198.51.100.0/24";
    CHECK(read_set_elements(listing, 1000) == elements);
    CHECK(read_set_elements(listing, elements.size()) == elements);
    CHECK(read_set_elements(listing, elements.size() - 1) == "");
    for (std::size_t length = 0; length + 1 < listing.size(); length++)
        CHECK(read_set_elements(listing.substr(0, length), 1000) == "");
    CHECK(read_set_elements("table inet t {\n\tset s {\n\t\ttype ipv4_addr\n\t}\n}\n", 1000) == "");

    Snapshot snapshot;
    read_nft_listing("table inet t { # handle 1\n\tset s { # handle 2\n\t\ttype ipv4_addr\n\t\tflags dynamic,timeout\n"
                     "\t\ttimeout 1h\n\t}\n\n\tcounter c { # handle 3\n\t}\n\n\tmap m { # handle 4\n"
                     "\t\ttype inet_service : verdict\n\t\tflags interval\n\t}\n}\n",
                     10, snapshot);
    REQUIRE(snapshot.tables.size() == 1);
    const auto& sets = snapshot.tables[0].sets;
    REQUIRE(sets.size() == 2);
    CHECK((sets[0].name == "s" && !sets[0].is_map && sets[0].may_change));
    CHECK((sets[1].name == "m" && sets[1].is_map && !sets[1].may_change));
}
