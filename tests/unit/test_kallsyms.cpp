// SPDX-License-Identifier: GPL-2.0-only
#include "catch.h"

#include "file.h"
#include "util/kallsyms.h"

using namespace tsdroptrace;

namespace {

// As /proc/kallsyms is written: vmlinux in order, per-CPU variables first, then each module in whatever order.
constexpr const char* listing = "0000000000000000 A fixed_percpu_data\n"
                                "0000000000000000 A this_cpu_off\n"
                                "ffffffff81000000 T _text\n"
                                "ffffffff81a00000 T nf_hook_slow_list\n"
                                "ffffffff81a00080 T nf_hook_slow\n"
                                "ffffffff81a00130 T nf_hook_slow_alias\n"
                                "ffffffff81a00130 t nf_hook_entries_free\n"
                                "ffffffff82000000 D __per_cpu_offset\n"
                                "ffffffffc0a02000 t twice\t[one]\n"
                                "ffffffffc0b00400 t nft_lookup_eval\t[nf_tables]\n"
                                "ffffffffc0b00100 T nft_do_chain\t[nf_tables]\n"
                                "ffffffffc0b03000 d nft_imm_ops\t[nf_tables]\n"
                                "ffffffffc0c02000 t twice\t[other]\n"
                                "no line of this file\n";

} // namespace

TEST_CASE("kallsyms: where symbols are") {
    const File file(listing);
    const auto found = find_symbols(
        {"nf_hook_slow", "__per_cpu_offset", "nft_do_chain", "twice", "this_cpu_off", "none"}, file.path.c_str());
    REQUIRE(found.size() == 3);
    CHECK(found.at("nf_hook_slow").address == 0xffffffff81a00080);
    CHECK(found.at("nf_hook_slow").size == 0xb0);
    CHECK(found.at("nf_hook_slow").module.empty());
    CHECK(found.at("nft_do_chain").module == "[nf_tables]");
    CHECK(found.at("__per_cpu_offset").address == 0xffffffff82000000);
    CHECK(found.at("nft_do_chain").address == 0xffffffffc0b00100);
    // Two modules have a function of that name: a probe by name would be on one of them. And 0 is no address.
    CHECK(found.count("twice") == 0);
    CHECK(found.count("this_cpu_off") == 0);
}

TEST_CASE("kallsyms: an address in the kernel's own words") {
    const File file(listing);
    const char* path = file.path.c_str();
    const File modules_file("other 16384 0 - Live 0xffffffffc0c02000\n"
                            "nf_tables 12288 2 nft_ct,nft_nat, Live 0xffffffffc0b00000\n",
                            "modules");
    const char* modules = modules_file.path.c_str();
    CHECK(describe_address(0xffffffff81a00113, path) == "nf_hook_slow+0x93/0xb0");
    const std::string in_module = describe_address(0xffffffffc0b00155, path, modules);
    CHECK(in_module == "nft_do_chain+0x55/0x300 [nf_tables]");
    CHECK(module_of(in_module) == "nf_tables");
    CHECK(module_of("nf_hook_slow+0x93/0xb0").empty());
    CHECK(describe_address(0xffffffff81a00080, path) == "nf_hook_slow+0x0/0xb0");
    CHECK(describe_address(0x1000, path).empty());             // before all code
    CHECK(describe_address(0xffffffffffffff00, path).empty()); // behind all
    // Where a module was: between two that are there, and between vmlinux and them.
    CHECK(describe_address(0xffffffffc0b80000, path, modules).empty());
    CHECK(describe_address(0xffffffffc0000000, path, modules).empty());
    CHECK(lies_in_module(0xffffffffc0b02fff, "nf_tables", modules));
    CHECK_FALSE(lies_in_module(0xffffffffc0b03000, "nf_tables", modules));
    CHECK_FALSE(lies_in_module(0xffffffffc0b00155, "other", modules));
    CHECK_FALSE(lies_in_module(0xffffffffc0b00155, "gone", modules));
}

TEST_CASE("kallsyms: hidden addresses are no addresses") {
    const File file("0000000000000000 T nf_hook_slow\n0000000000000000 T nft_do_chain\t[nf_tables]\n");
    CHECK(find_symbols({"nf_hook_slow", "nft_do_chain"}, file.path.c_str()).empty());
    CHECK(describe_address(0xffffffff81a00113, file.path.c_str()).empty());
    CHECK(find_symbols({"nf_hook_slow"}, "/no/such/file").empty());
}

TEST_CASE("kallsyms: function and module of a described address") {
    CHECK(symbol_of("nft_do_chain+0x5d8/0x650 [nf_tables]") == "nft_do_chain");
    CHECK(symbol_of("ip_rcv_finish_core.constprop.0+0x1/0x2") == "ip_rcv_finish_core");
    CHECK(symbol_of("") == "");
    CHECK(module_of("nft_do_chain+0x5d8/0x650 [nf_tables]") == "nf_tables");
    CHECK(module_of("ip_rcv_finish_core.constprop.0+0x1/0x2") == "");
}
