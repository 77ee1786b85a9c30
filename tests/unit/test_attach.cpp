// SPDX-License-Identifier: GPL-2.0-only
// What attach does without a kernel.
#include "attach/bpf_permission.h"
#include "attach/filter.h"
#include "attach/locations.h"
#include "attach/reason_names.h"
#include "attach/type_excerpt.h"

#include <chrono>
#include <cstring>
#include <fstream>
#include <limits>
#include <map>
#include <memory>
#include <string>

#include <bpf/btf.h>
#include <fmt/format.h>

#include "catch.h"
#include "file.h"

using namespace tsdroptrace;
using namespace tsdroptrace::attach;

namespace {

struct BtfDeleter {
    void operator()(btf* value) const { btf__free(value); }
};
using Btf = std::unique_ptr<btf, BtfDeleter>;

Btf read_back(const TypeExcerpt& excerpt) {
    const auto file = excerpt.to_file();
    REQUIRE(file);
    Btf types(btf__parse(fmt::format("/proc/self/fd/{}", file->get()).c_str(), nullptr));
    REQUIRE(types);
    return types;
}

const btf_type* find(const btf* types, const char* name, __u32 kind) {
    const int id = btf__find_by_name_kind(types, name, kind);
    INFO(name);
    REQUIRE(id > 0);
    return btf__type_by_id(types, static_cast<__u32>(id));
}

} // namespace

TEST_CASE("an excerpt of types has each field where it is in the kernel's, and nothing behind pointers") {
    const Btf kernel(btf__new_empty());
    btf* types = kernel.get();
    const int u32 = btf__add_int(types, "unsigned int", 4, 0);
    const int far = btf__add_struct(types, "far", 4);
    btf__add_field(types, "x", u32, 0, 0);
    const int pointer = btf__add_ptr(types, far);
    const int number = btf__add_typedef(types, "number", btf__add_const(types, u32));
    const int numbers = btf__add_array(types, u32, number, 3);
    const int anonymous = btf__add_union(types, nullptr, 4);
    btf__add_field(types, "either", u32, 0, 0);
    btf__add_field(types, "or", u32, 0, 0);
    const int kind = btf__add_enum(types, "kind", 4);
    btf__add_enum_value(types, "KIND_LOW", -2);
    btf__add_enum_value(types, "KIND_HIGH", 7);
    const int packet = btf__add_struct(types, "packet", 40);
    btf__add_field(types, "next", pointer, 0, 0);
    btf__add_field(types, "low", u32, 64, 3);
    btf__add_field(types, "high", u32, 67, 5);
    btf__add_field(types, "numbers", numbers, 96, 0);
    btf__add_field(types, nullptr, anonymous, 192, 0);
    btf__add_field(types, "kind", kind, 224, 0);
    REQUIRE(packet > 0);

    TypeExcerpt excerpt;
    REQUIRE(excerpt.add(types, static_cast<unsigned>(packet), 0, 0));
    REQUIRE(excerpt.add(types, static_cast<unsigned>(packet), 0, 0)); // once more is no more
    const Btf copy = read_back(excerpt);

    CHECK(btf__find_by_name_kind(copy.get(), "far", BTF_KIND_STRUCT) < 0);
    const btf_type* struct_packet = find(copy.get(), "packet", BTF_KIND_STRUCT);
    CHECK(struct_packet->size == 40);
    REQUIRE(btf_vlen(struct_packet) == 6);
    const __u32 offsets[] = {0, 64, 67, 96, 192, 224}, widths[] = {0, 3, 5, 0, 0, 0};
    const __s64 sizes[] = {8, 4, 4, 12, 4, 4};
    const char* const names[] = {"next", "low", "high", "numbers", "", "kind"};
    for (__u32 i = 0; i < 6; ++i) {
        INFO(i);
        CHECK(btf_member_bit_offset(struct_packet, i) == offsets[i]);
        CHECK(btf_member_bitfield_size(struct_packet, i) == widths[i]);
        const btf_member& member = btf_members(struct_packet)[i];
        CHECK(std::string(btf__name_by_offset(copy.get(), member.name_off)) == names[i]);
        CHECK(btf__resolve_size(copy.get(), member.type) == sizes[i]);
    }
    const btf_type* enum_kind = find(copy.get(), "kind", BTF_KIND_ENUM);
    REQUIRE(btf_vlen(enum_kind) == 2);
    CHECK(btf_enum(enum_kind)[0].val == -2);
    CHECK(btf_enum(enum_kind)[1].val == 7);
    int packets = 0;
    for (__u32 id = 1; id < btf__type_cnt(copy.get()); ++id)
        packets += std::string(btf__name_by_offset(copy.get(), btf__type_by_id(copy.get(), id)->name_off)) == "packet";
    CHECK(packets == 1);
}

TEST_CASE("an excerpt takes what modules share with vmlinux once, and what is their own from each") {
    const Btf vmlinux(btf__new_empty());
    const int number = btf__add_int(vmlinux.get(), "unsigned int", 4, 0);
    const Btf first(btf__new_empty_split(vmlinux.get())), second(btf__new_empty_split(vmlinux.get()));
    const unsigned shared = btf__type_cnt(vmlinux.get());
    // The same id in both.
    const int rule = btf__add_struct(first.get(), "rule", 4);
    btf__add_field(first.get(), "handle", number, 0, 0);
    const int table = btf__add_struct(second.get(), "table", 8);
    btf__add_field(second.get(), "flags", number, 32, 0);
    REQUIRE(rule == table);

    TypeExcerpt excerpt;
    REQUIRE(excerpt.add(first.get(), static_cast<unsigned>(rule), 1, shared));
    REQUIRE(excerpt.add(second.get(), static_cast<unsigned>(table), 2, shared));
    const Btf copy = read_back(excerpt);
    CHECK(btf__type_cnt(copy.get()) == 4); // void, and these
    CHECK(find(copy.get(), "rule", BTF_KIND_STRUCT)->size == 4);
    CHECK(find(copy.get(), "table", BTF_KIND_STRUCT)->size == 8);
    CHECK(btf_member_bit_offset(find(copy.get(), "table", BTF_KIND_STRUCT), 0) == 32);
}

TEST_CASE("an excerpt says when a type cannot be copied") {
    const Btf kernel(btf__new_empty());
    TypeExcerpt excerpt;
    CHECK_FALSE(excerpt.add(kernel.get(), 99, 0, 0));
    // A struct that holds itself, as only broken types do.
    const int broken = btf__add_struct(kernel.get(), "broken", 8);
    btf__add_field(kernel.get(), "self", broken, 0, 0);
    CHECK_FALSE(excerpt.add(kernel.get(), static_cast<unsigned>(broken), 0, 0));
}

TEST_CASE("reasons are called what the kernel calls them") {
    const Btf kernel(btf__new_empty());
    btf* types = kernel.get();
    const auto add = [&](const char* list, std::initializer_list<std::pair<const char*, __s64>> values) {
        const int id = btf__add_enum(types, list, 4);
        for (const auto& [name, value] : values)
            btf__add_enum_value(types, name, value);
        return btf__type_by_id(types, static_cast<__u32>(id));
    };
    decode::KernelNames names;
    // As they come: subsystems before the core (7.2), what is there for a checker before the real ones (6.12).
    add_reasons(types, add("qdisc_drop_reason", {{"QDISC_DROP_UNSPEC", 0}, {"QDISC_DROP_GENERIC", 0x30001}}), names);
    const auto* core =
        add("skb_drop_reason", {{"SKB_NOT_DROPPED_YET", 0}, {"SKB_CONSUMED", 1}, {"SKB_DROP_REASON_NO_SOCKET", 3}});
    add_reasons(types, core, names);
    add_reasons(types, add("___mac80211_drop_reason", {{"___RX_CONTINUE", 1}, {"___RX_DROP_U_REPLAY", 0x10002}}),
                names);
    add_reasons(types, add("mac80211_drop_reason", {{"RX_CONTINUE", 1}, {"RX_DROP_U_REPLAY", 0x10002}}), names);
    add_reasons(types, add("something_else", {{"OTHER", 0x40001}}), names);
    CHECK(names.reasons == std::map<std::uint32_t, std::string>{{0, "SKB_NOT_DROPPED_YET"},
                                                                {1, "SKB_CONSUMED"},
                                                                {3, "NO_SOCKET"},
                                                                {0x10002, "RX_DROP_U_REPLAY"},
                                                                {0x30001, "QDISC_DROP_GENERIC"}});
}

TEST_CASE("lockdown: the mode in brackets is the one that is active") {
    CHECK(lockdown_mode(File("[none] integrity confidentiality\n", "lockdown").path.c_str()) == "none");
    CHECK(lockdown_mode(File("none [integrity] confidentiality\n", "lockdown").path.c_str()) == "integrity");
    CHECK(lockdown_mode(File("none integrity [confidentiality]\n", "lockdown").path.c_str()) == "confidentiality");
    CHECK(lockdown_mode(File("none integrity confidentiality\n", "lockdown").path.c_str()).empty());
    CHECK(lockdown_mode(File("]none[\n", "lockdown").path.c_str()).empty());
    CHECK(lockdown_mode("/no/such/file").empty());
}

TEST_CASE("the first bits of an address let all through that a range may hold, and little else") {
    Filter filter;
    for (const char* range :
         {"100.64.0.0/10", "10.0.0.0/8", "172.16.16.0/20", "192.0.2.0/24", "198.51.100.7", "fd7a:115c:a1e0::/48"})
        filter.ranges.push_back(*parse_cidr(range));
    // As the programs read them: two bytes of the packet, as they lie in memory.
    const auto passes = [](const std::vector<std::uint8_t>& bits, unsigned first, unsigned second) {
        const std::uint8_t bytes[] = {static_cast<std::uint8_t>(first), static_cast<std::uint8_t>(second)};
        std::uint16_t index;
        std::memcpy(&index, bytes, sizeof(index));
        return bits[index] != 0;
    };
    const auto ipv4 = first_bits(filter, IpFamily::ipv4), ipv6 = first_bits(filter, IpFamily::ipv6);
    REQUIRE(ipv4.size() == 65536);
    REQUIRE(ipv6.size() == 65536);
    for (unsigned first = 0; first < 256; ++first)
        for (unsigned second = 0; second < 256; ++second) {
            INFO(first << "." << second);
            const bool in_range = (first == 100 && second >= 64 && second < 128) || first == 10 ||
                                  (first == 172 && second == 16) || (first == 192 && second == 0) ||
                                  (first == 198 && second == 51);
            if (passes(ipv4, first, second) != in_range ||
                passes(ipv6, first, second) != (first == 0xfd && second == 0x7a))
                FAIL();
        }

    filter.ranges = {*parse_cidr("0.0.0.0/0")};
    CHECK(first_bits(filter, IpFamily::ipv4) == std::vector<std::uint8_t>(65536, 1));
    CHECK(first_bits(filter, IpFamily::ipv6) == std::vector<std::uint8_t>(65536, 0));
    filter.all = true;
    CHECK(first_bits(filter, IpFamily::ipv6) == std::vector<std::uint8_t>(65536, 1));
}

TEST_CASE("where code lay when a packet died") {
    constexpr std::uint64_t in_vmlinux = 0xffffffff81a00010, in_module = 0xffffffffc0a00110;
    const std::string vmlinux = "ffffffff81000000 T _text\nffffffff81a00000 T ip_rcv\nffffffff81a00100 T ip_output\n";
    const File kallsyms(vmlinux.c_str()), modules("", "modules");
    std::map<std::string, std::uint64_t, std::less<>> loads;
    Locations locations([&](std::string_view module) { return module.empty() ? 0 : loads.find(module)->second; },
                        kallsyms.path.c_str(), modules.path.c_str());
    // At one address, one module after the other.
    const auto load = [&](const std::string& module, std::uint64_t when) {
        std::ofstream(kallsyms.path) << vmlinux << "ffffffffc0a00100 t " << module << "_hook\t[" << module << "]\n"
                                     << "ffffffffc0a00180 t " << module << "_exit\t[" << module << "]\n";
        std::ofstream(modules.path) << module << " 16384 0 - Live 0xffffffffc0a00000\n";
        loads[module] = when;
    };
    std::uint64_t last = 0;
    const auto now = [&last] { // never twice the same
        const auto clock = [] {
            return static_cast<std::uint64_t>(
                std::chrono::nanoseconds(std::chrono::steady_clock::now().time_since_epoch()).count());
        };
        while (clock() <= last) {
        }
        return last = clock();
    };

    load("first", 0); // before the start
    const auto with_first = now();
    CHECK(locations.locate(in_module, with_first) == "first_hook+0x10/0x80 [first]");
    CHECK(locations.locate(in_vmlinux, with_first) == "ip_rcv+0x10/0x100");
    const auto between = now();
    load("second", now());
    const auto with_second = now();
    CHECK(locations.locate(in_module, with_second) == "second_hook+0x10/0x80 [second]");
    CHECK(locations.locate(in_module, with_first) == "first_hook+0x10/0x80 [first]");
    CHECK(locations.locate(in_module, between).empty()); // the first one may have gone by then
    CHECK(locations.locate(in_vmlinux, between) == "ip_rcv+0x10/0x100");

    std::ofstream(kallsyms.path) << ""; // what is vmlinux's own stays where it is
    CHECK(locations.locate(in_vmlinux, now()) == "ip_rcv+0x10/0x100");
    CHECK(locations.locate(in_module + 1, now()).empty());

    load("third", std::numeric_limits<std::uint64_t>::max()); // it is not known when
    CHECK(locations.locate(in_module, now()).empty());
    CHECK(locations.locate(0x1000, now()).empty()); // no code
}
