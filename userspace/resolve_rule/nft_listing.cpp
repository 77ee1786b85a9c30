// SPDX-License-Identifier: GPL-2.0-only
#include "resolve_rule/nft_listing.h"

#include <algorithm>
#include <charconv>
#include <optional>

#include <fmt/core.h>

#include "resolve_rule/rule_words.h"

namespace tsdroptrace::resolve_rule {
namespace {

constexpr std::size_t max_rule_text = 64 * 1024;

template <typename Value, std::size_t size>
std::optional<Value> by_name(const std::pair<std::string_view, Value> (&names)[size], std::string_view name) {
    for (const auto& [key, value] : names)
        if (key == name)
            return value;
    return std::nullopt;
}

constexpr std::pair<std::string_view, RuleFamily> families[] = {
    {"ip", RuleFamily::ip},   {"ip6", RuleFamily::ip6},       {"inet", RuleFamily::inet},
    {"arp", RuleFamily::arp}, {"bridge", RuleFamily::bridge}, {"netdev", RuleFamily::netdev},
};
constexpr std::pair<std::string_view, Hook> hooks[] = {
    {"prerouting", Hook::prerouting},   {"input", Hook::input},
    {"forward", Hook::forward},         {"output", Hook::output},
    {"postrouting", Hook::postrouting}, {"ingress", Hook::ingress},
    {"egress", Hook::egress},
};

struct Handle {
    std::string_view before; // the text in front of " # handle N"
    std::uint64_t number;
    std::string_view after;
};

// The last "# handle N" of a line.
std::optional<Handle> find_handle(std::string_view line) {
    constexpr std::string_view mark = " # handle ";
    std::size_t at = line.rfind(mark);
    if (at == line.npos)
        return std::nullopt;
    const char* digits = line.data() + at + mark.size();
    const char* end = line.data() + line.size();
    std::uint64_t number = 0;
    auto [rest, error] = std::from_chars(digits, end, number);
    if (error != std::errc())
        return std::nullopt;
    return Handle{line.substr(0, at), number, {rest, static_cast<std::size_t>(end - rest)}};
}

std::string_view trim(std::string_view text) {
    constexpr std::string_view space = " \t";
    std::size_t begin = std::min(text.find_first_not_of(space), text.size());
    std::size_t end = text.find_last_not_of(space);
    return text.substr(begin, end == text.npos ? 0 : end + 1 - begin);
}

// Newer versions of nft put unusual names in quotes.
std::string_view unquote(std::string_view name) {
    if (name.size() >= 2 && name.starts_with('"') && name.ends_with('"'))
        return name.substr(1, name.size() - 2);
    return name;
}

struct Header {
    std::string_view name;
    std::uint64_t handle;
};

// "NAME { # handle N", with "progname X" after it for a table that a process owns.
std::optional<Header> read_header(std::string_view text) {
    auto handle = find_handle(text);
    if (!handle || !handle->before.ends_with(" {"))
        return std::nullopt;
    return Header{unquote(trim(handle->before.substr(0, handle->before.size() - 2))), handle->number};
}

std::optional<std::string_view> after(std::string_view text, std::string_view prefix) {
    return text.starts_with(prefix) ? std::optional(text.substr(prefix.size())) : std::nullopt;
}

class ListingReader {
public:
    ListingReader(std::size_t max_rules, Snapshot& snapshot) : max_rules_(max_rules), snapshot_(snapshot) {}

    void read(std::string_view listing) {
        while (!listing.empty()) {
            std::size_t end = std::min(listing.find('\n'), listing.size());
            if (!line(listing.substr(0, end))) {
                leave_out_table("more than {} nf_tables rules: table {} and what follows it were left out", max_rules_);
                return;
            }
            listing.remove_prefix(std::min(end + 1, listing.size()));
        }
        if (in_ != In::ruleset)
            leave_out_table("after {} nf_tables rules the listing ends, within table {}", rules_);
    }

private:
    enum class In { ruleset, table, chain, object, comment };

    void leave_out_table(fmt::format_string<std::size_t&, std::string&> why, std::size_t rules) {
        snapshot_.problems.push_back(fmt::format(why, rules, snapshot_.tables.back().name));
        snapshot_.tables.pop_back();
    }

    // False when there are too many rules.
    bool line(std::string_view text) {
        switch (in_) {
        case In::ruleset:
            in_ruleset(text);
            return true;
        case In::table:
            in_table(text);
            return true;
        case In::chain:
            return in_chain(text);
        case In::object:
            if (text == "\t}")
                in_ = In::table;
            else if (auto flags = after(text, "\t\tflags "))
                read_flags(*flags);
            else if (auto comment = after(text, "\t\tcomment \""))
                begin_comment(*comment);
            return true;
        case In::comment:
            if (text.ends_with('"'))
                in_ = after_comment_;
            return true;
        }
        return true;
    }

    // A comment of a table, chain or set; it may contain line breaks, and then anything.
    void begin_comment(std::string_view text) {
        if (text.ends_with('"'))
            return;
        after_comment_ = in_;
        in_ = In::comment;
    }

    void in_ruleset(std::string_view text) {
        auto rest = after(text, "table ");
        if (!rest)
            return;
        std::size_t space = rest->find(' ');
        auto family = by_name(families, rest->substr(0, space));
        auto header = space == rest->npos ? std::nullopt : read_header(rest->substr(space + 1));
        if (!family || !header) {
            snapshot_.problems.push_back("a table in nft's listing was not understood");
            return;
        }
        snapshot_.tables.push_back({*family, std::string(header->name), header->handle, {}});
        in_ = In::table;
    }

    void in_table(std::string_view text) {
        if (text == "}") {
            in_ = In::ruleset;
        } else if (auto comment = after(text, "\tcomment \"")) {
            begin_comment(*comment);
        } else if (auto header = read_header(text)) {
            auto name = after(header->name, "chain ");
            in_ = name ? In::chain : In::object;
            if (!name) {
                begin_object(header->name);
                return;
            }
            SnapshotChain chain;
            chain.name = unquote(*name);
            chain.handle = header->handle;
            snapshot_.tables.back().chains.push_back(std::move(chain));
            rule_.clear();
            in_rule_ = false;
        }
    }

    void begin_object(std::string_view text) {
        const bool is_map = text.starts_with("map ");
        in_set_ = (is_map || text.starts_with("set ")) && sets_ < max_sets;
        if (!in_set_)
            return;
        sets_++;
        snapshot_.tables.back().sets.push_back({std::string(unquote(text.substr(4))), is_map, false, {}});
    }

    // "interval,timeout"
    void read_flags(std::string_view text) {
        if (in_set_ && (text.find("dynamic") != text.npos || text.find("timeout") != text.npos))
            snapshot_.tables.back().sets.back().may_change = true;
    }

    bool in_chain(std::string_view text) {
        if (!in_rule_) {
            if (text == "\t}") {
                in_ = In::table;
                return true;
            }
            auto handle = find_handle(text);
            bool is_rule = handle && handle->after.empty();
            if (!is_rule) {
                if (auto comment = after(text, "\t\tcomment \"")) {
                    begin_comment(*comment);
                    return true;
                }
                if (auto type = after(text, "\t\ttype ")) {
                    read_hook(*type);
                    return true;
                }
            }
        }
        return add_to_rule(text);
    }

    // "filter hook input priority filter; policy accept;"
    void read_hook(std::string_view text) {
        constexpr std::string_view word = " hook ";
        std::size_t at = text.find(word);
        if (at == text.npos)
            return;
        text.remove_prefix(at + word.size());
        chain().hook = by_name(hooks, text.substr(0, text.find(' ')));
        constexpr std::string_view policy = "; policy ";
        if (std::size_t found = text.find(policy); found != text.npos) {
            text.remove_prefix(found + policy.size());
            chain().policy = text.substr(0, text.find(';'));
        }
    }

    bool add_to_rule(std::string_view text) {
        auto handle = find_handle(text);
        bool has_handle = handle && handle->after.empty();
        bool ends = has_handle && (!in_block_ || trim(text).starts_with('}'));
        append(has_handle ? handle->before : text);
        in_rule_ = !ends;
        if (ends)
            return finish_rule(handle->number);
        if (!rule_.ends_with('{') && !in_block_ && !in_quotes()) { // not a rule: something of a newer nft
            rule_.clear();
            in_rule_ = false;
        }
        return true;
    }

    bool in_quotes() const { return std::count(rule_.begin(), rule_.end(), '"') % 2 != 0; }

    void append(std::string_view text) {
        if (rule_.size() + text.size() > max_rule_text) {
            too_long_ = true;
            return;
        }
        if (!in_rule_) {
            rule_ = trim(text);
        } else if (in_block_) {
            std::string_view part = trim(text);
            rule_ += rule_.ends_with('{') || part.starts_with('}') ? " " : "; ";
            rule_ += part;
        } else {
            rule_ += '\n';
            rule_ += text;
        }
        in_block_ |= rule_.ends_with('{') && !in_quotes();
    }

    bool finish_rule(std::uint64_t handle) {
        if (rules_++ >= max_rules_)
            return false;
        SnapshotRule rule;
        rule.handle = handle;
        if (!too_long_) {
            rule.verdict = nft_verdict(rule_);
            rule.text = rule_;
        }
        chain().rules.push_back(std::move(rule));
        rule_.clear();
        in_block_ = too_long_ = false;
        return true;
    }

    SnapshotChain& chain() { return snapshot_.tables.back().chains.back(); }

    std::size_t max_rules_;
    Snapshot& snapshot_;
    std::size_t rules_ = 0, sets_ = 0;
    bool in_set_ = false; // the object is one, and is kept
    In in_ = In::ruleset, after_comment_ = In::table;
    std::string rule_; // what there is of it so far
    bool in_rule_ = false, in_block_ = false, too_long_ = false;
};

} // namespace

std::string read_set_elements(std::string_view listing, std::size_t max_size) {
    constexpr std::string_view begins = "\n\t\telements = { ", ends = " }\n\t}\n}";
    while (listing.ends_with('\n'))
        listing.remove_suffix(1);
    const std::size_t begin = listing.find(begins);
    if (begin == listing.npos || !listing.ends_with(ends))
        return {};
    listing.remove_suffix(ends.size());
    if (listing.size() < begin + begins.size())
        return {};
    listing.remove_prefix(begin + begins.size());
    std::string elements;
    bool quoted = false;
    for (std::size_t at = 0; at < listing.size() && elements.size() <= max_size; at++) {
        quoted ^= listing[at] == '"';
        if (listing[at] == '\n' && !quoted) { // the next line is indented
            elements += ' ';
            at = std::min(listing.find_first_not_of("\t ", at + 1), listing.size()) - 1;
        } else {
            elements += listing[at];
        }
    }
    return elements.size() <= max_size ? elements : std::string{};
}

void read_nft_listing(std::string_view listing, std::size_t max_rules, Snapshot& snapshot) {
    ListingReader(max_rules, snapshot).read(listing);
}

} // namespace tsdroptrace::resolve_rule
