// SPDX-License-Identifier: GPL-2.0-only
// Runs while the program is built: turns catalogue/*.yaml into tables of C++, so that reading them costs nothing when
// tsdroptrace starts. A file with a mistake fails the build, with file and line.
//
//   catalogue_tables OUTPUT FILE...
#include <fstream>
#include <iostream>
#include <iterator>

#include <fmt/format.h>

#include "explain/catalogue_yaml.h"
#include "explain/condition.h"

using namespace tsdroptrace::explain;

namespace {

std::string literal(std::string_view text) {
    std::string out = "\"";
    for (const char c : text) {
        if (c == '"' || c == '\\')
            out += '\\';
        out += c;
    }
    return out + '"';
}

class Tables {
public:
    explicit Tables(std::ostream& out) : out_(out) {}

    void write(const OwnedCatalogue& catalogue) {
        out_ << "// Made by catalogue_tables from the YAML files in userspace/explain/catalogue.\n"
                "#include \"explain/catalogue.h\"\n\nnamespace tsdroptrace::explain {\n\nnamespace {\n\n";
        const auto causes = table("KnownCause", catalogue.causes, [&](const KnownCause& cause) {
            const auto conditions = this->conditions(cause.conditions);
            const auto sentences = this->sentences(cause.sentences);
            const auto fixes = this->fixes(cause.fixes);
            return fmt::format("{}, {}, {}, {}, {}", literal(cause.id), conditions, sentences, fixes,
                               literal(cause.reference));
        });
        const auto notes = sentences(catalogue.notes);
        const auto owners = table("OwnerPattern", catalogue.owners, [&](const OwnerPattern& owner) {
            return fmt::format("Clue{{{}}}, {}, {}, {}", static_cast<int>(owner.clue), literal(owner.pattern),
                               literal(owner.name), literal(owner.configured_by));
        });
        const auto services = table("Service", catalogue.services, [&](const Service& service) {
            return fmt::format("{}, {}, {}, {}, {}", literal(service.cidr), literal(service.who),
                               literal(service.accept), service.dns, literal(service.source));
        });
        out_ << fmt::format("\nconstexpr Catalogue catalogue{{{}, {}, {}, {}}};\n\n}} // namespace\n\n"
                            "const Catalogue& builtin_catalogue() {{\n    return catalogue;\n}}\n\n"
                            "}} // namespace tsdroptrace::explain\n",
                            causes, notes, owners, services);
    }

private:
    // Writes an array, after those that its rows name, and returns its own name.
    std::string table(std::string_view type, const auto& rows, auto row_text) {
        if (std::empty(rows))
            return "{}";
        std::string text;
        for (const auto& row : rows)
            text += fmt::format("    {{{}}},\n", row_text(row));
        const std::string name = fmt::format("table_{}", tables_++);
        out_ << fmt::format("constexpr {} {}[] = {{\n{}}};\n", type, name, text);
        return name;
    }

    std::string conditions(std::span<const Condition> conditions) {
        return table("Condition", conditions, [&](const Condition& condition) {
            const auto values = table("std::string_view", condition.values, literal);
            return fmt::format("Field::{}, {}, {}, {}", fields()[static_cast<std::size_t>(condition.field)].name,
                               literal(condition.argument), values, condition.negated);
        });
    }

    std::string sentences(std::span<const Sentence> sentences) {
        return table("Sentence", sentences, [&](const Sentence& sentence) {
            return fmt::format("{}, {}", literal(sentence.text), conditions(sentence.conditions));
        });
    }

    std::string fixes(std::span<const FixTemplate> fixes) {
        return table("FixTemplate", fixes, [&](const FixTemplate& fix) {
            return fmt::format("{}, {}, {}", literal(fix.action), literal(fix.risk), conditions(fix.conditions));
        });
    }

    std::ostream& out_;
    int tables_ = 0;
};

} // namespace

int main(int argc, char** argv) {
    if (argc < 3) {
        std::cerr << "usage: catalogue_tables OUTPUT FILE...\n";
        return 2;
    }
    OwnedCatalogue catalogue;
    bool good = true;
    for (int i = 2; i < argc; i++) {
        std::ifstream file(argv[i], std::ios::binary);
        const std::string text{std::istreambuf_iterator<char>(file), {}};
        if (!file) {
            std::cerr << argv[i] << ": cannot be read\n";
            return 1;
        }
        for (const Problem& problem : read_catalogue(text, catalogue)) {
            std::cerr << argv[i] << ':' << problem.line << ": " << problem.message << '\n';
            good = false;
        }
    }
    if (!good)
        return 1;
    std::ofstream out(argv[1], std::ios::binary);
    Tables(out).write(catalogue);
    out.close();
    if (!out)
        std::cerr << argv[1] << ": cannot be written\n";
    return out ? 0 : 1;
}
