// SPDX-License-Identifier: GPL-2.0-only
// What attach does without a kernel.
#include "attach/reason_names.h"
#include "attach/type_excerpt.h"

#include <memory>
#include <string>

#include <bpf/btf.h>
#include <fmt/format.h>

#include "catch.h"

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
    const auto* core = add(
        "skb_drop_reason", {{"SKB_NOT_DROPPED_YET", 0}, {"SKB_CONSUMED", 1}, {"SKB_DROP_REASON_NO_SOCKET", 3}});
    add_reasons(types, core, names);
    add_reasons(types, add("___mac80211_drop_reason", {{"___RX_CONTINUE", 1}, {"___RX_DROP_U_REPLAY", 0x10002}}), names);
    add_reasons(types, add("mac80211_drop_reason", {{"RX_CONTINUE", 1}, {"RX_DROP_U_REPLAY", 0x10002}}), names);
    add_reasons(types, add("something_else", {{"OTHER", 0x40001}}), names);
    CHECK(names.reasons == std::map<std::uint32_t, std::string>{{0, "SKB_NOT_DROPPED_YET"},
                                                                {1, "SKB_CONSUMED"},
                                                                {3, "NO_SOCKET"},
                                                                {0x10002, "RX_DROP_U_REPLAY"},
                                                                {0x30001, "QDISC_DROP_GENERIC"}});
}
