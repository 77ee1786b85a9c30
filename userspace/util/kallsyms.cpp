// SPDX-License-Identifier: GPL-2.0-only
#include "util/kallsyms.h"

#include <charconv>
#include <fstream>
#include <sstream>

#include <fmt/format.h>

namespace tsdroptrace {
namespace {

struct Line {
    std::uint64_t address = 0;
    std::string_view name, module; // "[nf_tables]" or nothing
    bool code = false;
};

// "ffffffffc0a1b2c0 t nft_do_chain\t[nf_tables]"
bool parse(std::string_view text, Line& line) {
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), line.address, 16);
    const auto at = static_cast<std::size_t>(end - text.data());
    if (error != std::errc{} || text.size() < at + 4 || text[at] != ' ' || text[at + 2] != ' ')
        return false;
    line.code = std::string_view("tTwW").find(text[at + 1]) != std::string_view::npos;
    text.remove_prefix(at + 3);
    const auto tab = text.find('\t');
    line.name = text.substr(0, tab);
    line.module = tab == std::string_view::npos ? std::string_view{} : text.substr(tab + 1);
    return line.address != 0;
}

} // namespace

std::map<std::string, Symbol, std::less<>> find_symbols(const std::set<std::string, std::less<>>& names,
                                                        const char* path) {
    std::map<std::string, Symbol, std::less<>> found;
    std::set<std::string, std::less<>> ambiguous;
    std::ifstream file(path);
    Symbol* last = nullptr; // waits for the symbol after it: vmlinux's are in order
    Line line;
    for (std::string text; std::getline(file, text);) {
        if (!parse(text, line))
            continue;
        if (last && line.address > last->address) {
            last->size = line.module.empty() ? line.address - last->address : 0;
            last = nullptr;
        }
        if (!names.contains(line.name))
            continue;
        const auto [entry, fresh] =
            found.try_emplace(std::string(line.name), Symbol{line.address, 0, std::string(line.module)});
        if (!fresh)
            ambiguous.emplace(line.name);
        last = &entry->second;
    }
    for (const std::string& name : ambiguous)
        found.erase(name);
    return found;
}

std::string_view symbol_of(std::string_view description) {
    description = description.substr(0, description.find_first_of("+ "));
    description = description.substr(0, description.find('.'));
    const bool is_name = !description.empty() && std::isdigit(static_cast<unsigned char>(description.front())) == 0;
    return is_name ? description : std::string_view{};
}

std::string_view module_of(std::string_view description) {
    const auto open = description.find('[');
    if (open == std::string_view::npos)
        return {};
    return description.substr(open + 1, description.find(']', open) - open - 1);
}

bool lies_in_module(std::uint64_t address, std::string_view module, const char* path) {
    std::ifstream file(path); // "nf_tables 249856 0 - Live 0xffffffffc0a1b000"
    for (std::string line; std::getline(file, line);) {
        std::istringstream words(line);
        std::string name, users, needed_by, state;
        std::uint64_t size = 0, begin = 0;
        if (words >> name >> std::dec >> size >> users >> needed_by >> state >> std::hex >> begin && name == module)
            return address - begin < size;
    }
    return false;
}

std::string describe_address(std::uint64_t address, const char* path, const char* modules_path) {
    constexpr std::uint64_t most = 1 << 20; // no function is as large: behind it there is something that has no symbol
    std::ifstream file(path);
    std::uint64_t best = 0, next = 0;
    std::string name, module;
    Line line;
    for (std::string text; std::getline(file, text);) {
        if (!parse(text, line))
            continue;
        if (line.address > address) {
            if (!next || line.address < next)
                next = line.address;
        } else if (line.code && line.address > best) {
            best = line.address;
            name = line.name;
            module = line.module;
        }
    }
    if (!best || !next || next - best > most)
        return "";
    if (!module.empty() && !lies_in_module(address, module_of(module), modules_path))
        return "";
    return fmt::format("{}+{:#x}/{:#x}{}{}", name, address - best, next - best, module.empty() ? "" : " ", module);
}

} // namespace tsdroptrace
