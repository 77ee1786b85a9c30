// SPDX-License-Identifier: GPL-2.0-only
#include "explain/catalogue_yaml.h"

#include <algorithm>
#include <fmt/format.h>
#include <initializer_list>
#include <optional>
#include <set>
#include <yaml-cpp/yaml.h>

#include "explain/condition.h"
#include "explain/match.h"
#include "explain/words.h"
#include "util/text.h"

namespace tsdroptrace::explain {

namespace {

// The first thing that is wrong in an entry ends the reading of that entry.
[[noreturn]] void fail(const YAML::Node& at, std::string message) {
    throw Problem{at.Mark().line + 1, std::move(message), false};
}

std::string listed(const std::vector<std::string_view>& names) {
    return fmt::format("{}", fmt::join(names, ", "));
}

[[noreturn]] void fail_unknown(const YAML::Node& at, std::string_view what, const std::string& typed,
                               const std::vector<std::string_view>& names) {
    const auto nearest =
        std::ranges::min_element(names, {}, [&](std::string_view name) { return edit_distance(name, typed); });
    constexpr std::size_t a_slip = 2;
    if (nearest != names.end() && edit_distance(*nearest, typed) <= a_slip)
        fail(at, fmt::format("there is no {} \"{}\"; did you mean \"{}\"?", what, typed, *nearest));
    fail(at, fmt::format("there is no {} \"{}\"; expected one of {}", what, typed, listed(names)));
}

// ---- YAML's own shapes ----

std::string scalar(const YAML::Node& node, std::string_view what) {
    if (!node.IsScalar() || node.Scalar().empty())
        fail(node, fmt::format("{} must be text", what));
    std::string text = node.Scalar();
    std::ranges::replace(text, '\n', ' '); // of a folded text
    while (text.ends_with(' '))
        text.pop_back();
    return text;
}

YAML::Node sequence(const YAML::Node& node, std::string_view what) {
    if (!node.IsSequence())
        fail(node, fmt::format("{} must be a list: lines that begin with \"- \"", what));
    return node;
}

// Of a mapping, in the order of the file.
std::vector<std::pair<YAML::Node, YAML::Node>> pairs(const YAML::Node& map) {
    std::vector<std::pair<YAML::Node, YAML::Node>> out;
    for (auto it = map.begin(); it != map.end(); ++it)
        out.emplace_back(it->first, it->second);
    return out;
}

// A mapping, all of whose keys are known, none of them twice.
class Map {
public:
    Map(const YAML::Node& node, std::string_view what, std::initializer_list<std::string_view> keys)
        : node_(node), what_(what) {
        if (!node.IsMap())
            fail(node, fmt::format("{} must have keys: {}", what, listed(keys)));
        std::set<std::string> seen;
        for (const auto& entry : pairs(node)) {
            const YAML::Node& key = entry.first;
            if (!key.IsScalar())
                fail(key, fmt::format("a key of {} must be text", what));
            if (std::ranges::find(keys, key.Scalar()) == keys.end())
                fail_unknown(key, fmt::format("key of {}", what), key.Scalar(), keys);
            if (!seen.insert(key.Scalar()).second)
                fail(key, fmt::format("\"{}\" is there twice", key.Scalar()));
        }
    }

    std::optional<YAML::Node> find(const char* key) const {
        const YAML::Node value = node_[key];
        return value ? std::optional(value) : std::nullopt;
    }
    YAML::Node at(const char* key) const {
        const auto value = find(key);
        if (!value)
            fail(node_, fmt::format("{} needs \"{}\"", what_, key));
        return *value;
    }
    std::string text(const char* key) const { return scalar(at(key), fmt::format("\"{}\"", key)); }
    std::string text_or_empty(const char* key) const { return find(key) ? text(key) : std::string{}; }

private:
    YAML::Node node_;
    std::string what_;
};

// ---- placeholders ----

void check_placeholders(const YAML::Node& at, const std::string& text) {
    for (std::size_t open = 0; (open = text.find('{', open)) != std::string::npos;) {
        const std::size_t close = text.find('}', open);
        if (close == std::string::npos)
            fail(at, "a \"{\" without its \"}\"");
        const std::string name = text.substr(open + 1, close - open - 1);
        if (!is_placeholder(name))
            fail_unknown(at, "placeholder", name, placeholder_names());
        open = close;
    }
}

std::string template_text(const YAML::Node& node, std::string_view what) {
    std::string text = scalar(node, what);
    check_placeholders(node, text);
    return text;
}

// ---- conditions ----

class Reader {
public:
    explicit Reader(OwnedCatalogue& into) : into_(into) {}

    void cause(const YAML::Node& node) {
        const Map map(node, "a cause", {"id", "when", "unless", "say", "fixes", "see"});
        KnownCause cause;
        cause.id = into_.keep(id(map.at("id")));
        cause.conditions = conditions(map);
        cause.sentences = sentences(map.at("say"));
        if (const auto fixes = map.find("fixes"))
            cause.fixes = this->fixes(*fixes);
        cause.reference = into_.keep(map.text_or_empty("see"));
        into_.causes.push_back(cause);
    }

    void note(const YAML::Node& node) { into_.notes.push_back(sentence(node)); }

    void owner(const YAML::Node& node) {
        const Map map(node, "an owner", {"name", "comment", "chain", "set", "table", "configured_by"});
        const std::string name = map.text("name"), configured_by = map.text_or_empty("configured_by");
        const OwnerPattern owner{Clue::chain, {}, into_.keep(name), into_.keep(configured_by)};
        std::vector<OwnerPattern> patterns;
        for (const auto& [key, clue] : {std::pair{"comment", Clue::comment}, std::pair{"chain", Clue::chain},
                                        std::pair{"set", Clue::set}, std::pair{"table", Clue::table}})
            if (const auto found = map.find(key))
                for (const std::string_view pattern : values(*found, fmt::format("\"{}\"", key))) {
                    if (clue == Clue::table && pattern.find(' ') == std::string_view::npos)
                        fail(*found,
                             fmt::format("the table \"{}\" needs its family before it: \"inet {}\", or \"* {}\" "
                                         "for any family",
                                         pattern, pattern, pattern));
                    patterns.push_back(owner);
                    patterns.back().clue = clue;
                    patterns.back().pattern = pattern;
                }
        if (patterns.empty())
            fail(node, "an owner needs \"comment\", \"chain\", \"set\" or \"table\"");
        into_.owners.insert(into_.owners.end(), patterns.begin(), patterns.end());
    }

    void service(const YAML::Node& node) {
        const Map map(node, "a service", {"address", "is", "accept", "dns", "source"});
        Service service;
        service.cidr = into_.keep(cidr(map.at("address")));
        service.who = into_.keep(map.text("is"));
        if (const auto accept = map.find("accept"))
            service.accept = into_.keep(
                accept->IsScalar() && accept->Scalar() == never_accept ? std::string(never_accept) : cidr(*accept));
        if (const auto dns = map.find("dns")) {
            const std::string yes_or_no = scalar(*dns, "\"dns\"");
            if (yes_or_no != "yes" && yes_or_no != "no")
                fail(*dns, fmt::format("\"dns\" is \"{}\"; expected yes or no", yes_or_no));
            service.dns = yes_or_no == "yes";
        }
        service.source = into_.keep(map.text("source"));
        into_.services.push_back(service);
    }

private:
    static std::string id(const YAML::Node& node) {
        std::string text = scalar(node, "\"id\"");
        const bool plain = std::ranges::all_of(
            text, [](char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-'; });
        if (!plain)
            fail(node, fmt::format("the id \"{}\" must be of small letters, digits and \"-\"", text));
        return text;
    }

    static std::string cidr(const YAML::Node& node) {
        std::string text = scalar(node, "an address");
        if (!is_cidr(text))
            fail(node, fmt::format("\"{}\" is no CIDR; expected one such as 100.64.0.0/10, for a single address "
                                   "192.0.2.1/32",
                                   text));
        return text;
    }

    // One value, or a list of them.
    std::vector<std::string_view> values(const YAML::Node& node, std::string_view what) {
        std::vector<std::string_view> out;
        if (!node.IsSequence())
            return {into_.keep(scalar(node, what))};
        for (const YAML::Node& value : node)
            out.push_back(into_.keep(scalar(value, what)));
        if (out.empty())
            fail(node, fmt::format("{} needs a value", what));
        return out;
    }

    Condition condition(const FieldInfo& field, std::string_view argument, const YAML::Node& node, bool negated) {
        const std::string_view name = argument.empty() ? field.name : argument;
        const auto wanted = values(node, fmt::format("\"{}\"", name));
        for (const std::string_view value : wanted)
            if (!field.valid(value))
                fail(node,
                     fmt::format("\"{}\" is \"{}\"; expected {}{}", name, value,
                                 field.expected.find(", ") == std::string_view::npos ? "" : "one of ", field.expected));
        return {field.field, argument, into_.keep(wanted), negated};
    }

    void add_conditions(std::vector<Condition>& out, const YAML::Node& node, std::string_view what, bool negated) {
        if (!node.IsMap())
            fail(node, fmt::format("\"{}\" must have conditions, such as chain: ts-input", what));
        std::set<std::string> seen;
        for (const auto& [key, value] : pairs(node)) {
            const std::string name = scalar(key, "a condition");
            const auto field = std::ranges::find(fields(), name, &FieldInfo::name);
            if (field == fields().end()) {
                std::vector<std::string_view> names;
                std::ranges::transform(fields(), std::back_inserter(names), &FieldInfo::name);
                fail_unknown(key, "condition", name, names);
            }
            if (!seen.insert(name).second)
                fail(key, fmt::format("\"{}\" is there twice; several values are a list: [a, b]", name));
            if (field->field != Field::sysctl) {
                out.push_back(condition(*field, {}, value, negated));
                continue;
            }
            if (!value.IsMap())
                fail(value, fmt::format("\"sysctl\" must have {}", field->expected));
            for (const auto& [sysctl, wanted] : pairs(value))
                out.push_back(condition(*field, into_.keep(sysctl_pattern(sysctl)), wanted, negated));
        }
    }

    static std::string sysctl_pattern(const YAML::Node& node) {
        std::string name = scalar(node, "a sysctl's name");
        std::string rest = name;
        for (const std::string_view device : {"{in_dev}", "{out_dev}"})
            if (const std::size_t at = rest.find(device); at != std::string::npos)
                rest.erase(at, device.size());
        if (rest.find('{') != std::string::npos)
            fail(node, fmt::format("in the sysctl \"{}\" only {{in_dev}} and {{out_dev}} may stand", name));
        return name;
    }

    std::span<const Condition> conditions(const Map& map) {
        std::vector<Condition> out;
        if (const auto when = map.find("when"))
            add_conditions(out, *when, "when", false);
        if (const auto unless = map.find("unless"))
            add_conditions(out, *unless, "unless", true);
        // Entries are looked through for one kind of drop at a time: what tells them apart is asked first.
        std::stable_partition(out.begin(), out.end(), [](const Condition& c) { return c.field != Field::kind; });
        return into_.keep(std::move(out));
    }

    Sentence sentence(const YAML::Node& node) {
        if (node.IsScalar())
            return {into_.keep(template_text(node, "a sentence")), {}};
        const Map map(node, "a sentence", {"say", "when", "unless"});
        return {into_.keep(template_text(map.at("say"), "\"say\"")), conditions(map)};
    }

    std::span<const Sentence> sentences(const YAML::Node& node) {
        std::vector<Sentence> out;
        if (node.IsScalar())
            out.push_back(sentence(node));
        else
            for (const YAML::Node& one : sequence(node, "\"say\""))
                out.push_back(sentence(one));
        if (out.empty())
            fail(node, "\"say\" needs a sentence");
        return into_.keep(std::move(out));
    }

    std::span<const FixTemplate> fixes(const YAML::Node& node) {
        std::vector<FixTemplate> out;
        for (const YAML::Node& one : sequence(node, "\"fixes\"")) {
            const Map map(one, "a fix", {"do", "risk", "when", "unless"});
            FixTemplate fix;
            fix.action = into_.keep(template_text(map.at("do"), "\"do\""));
            fix.risk = into_.keep(template_text(map.at("risk"), "\"risk\""));
            fix.conditions = conditions(map);
            out.push_back(fix);
        }
        return into_.keep(std::move(out));
    }

    OwnedCatalogue& into_;
};

void read_document(const YAML::Node& document, Reader& reader, std::vector<Problem>& problems) {
    if (document.IsNull())
        return; // empty, or only comments
    const Map sections(document, "the file", {"causes", "notes", "owners", "services"});
    const auto each = [&](const char* section, void (Reader::*read)(const YAML::Node&)) {
        const auto entries = sections.find(section);
        if (!entries)
            return;
        for (const YAML::Node& entry : sequence(*entries, fmt::format("\"{}\"", section)))
            try {
                (reader.*read)(entry);
            } catch (Problem& problem) {
                problems.push_back(std::move(problem));
            }
    };
    each("causes", &Reader::cause);
    each("notes", &Reader::note);
    each("owners", &Reader::owner);
    each("services", &Reader::service);
}

} // namespace

std::vector<Problem> read_catalogue(std::string_view text, OwnedCatalogue& into) {
    std::vector<Problem> problems;
    try {
        Reader reader(into);
        for (const YAML::Node& document : YAML::LoadAll(std::string(text)))
            read_document(document, reader, problems);
    } catch (Problem& problem) {
        problem.whole_file = true;
        problems.insert(problems.begin(), std::move(problem));
    } catch (const YAML::Exception& error) {
        problems.insert(problems.begin(), {error.mark.line + 1, "this is not YAML: " + error.msg, true});
    }
    return problems;
}

} // namespace tsdroptrace::explain
