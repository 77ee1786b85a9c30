// SPDX-License-Identifier: GPL-2.0-only
// What real kernels said of real causes (tests/fixtures/recordings), explained again.
#include "catch.h"

#include <filesystem>
#include <fstream>
#include <regex>
#include <sstream>
#include <string>
#include <vector>

#include <fcntl.h>
#include <nlohmann/json.hpp>
#include <unistd.h>
#include <zlib.h>

#include "options.h"
#include "replay.h"

using namespace tsdroptrace;
using nlohmann::json;

namespace {

struct Directory {
    Directory() { REQUIRE(mkdtemp(path.data()) != nullptr); }
    ~Directory() { std::filesystem::remove_all(path); }
    std::string path = (std::filesystem::temp_directory_path() / "tsdroptrace-test-XXXXXX").string();
};

std::string unpacked(const std::string& path) {
    const gzFile file = gzopen(path.c_str(), "rb");
    REQUIRE(file != nullptr);
    std::string out;
    std::vector<char> buffer(1 << 16);
    for (int size; (size = gzread(file, buffer.data(), static_cast<unsigned>(buffer.size()))) > 0;)
        out.append(buffer.data(), static_cast<std::size_t>(size));
    gzclose(file);
    return out;
}

std::vector<json> drops_of(const std::string& recording) {
    const Directory directory;
    Options options;
    options.replay = directory.path + "/recording";
    options.json_file = directory.path + "/json";
    options.quiet = true;
    std::ofstream(*options.replay, std::ios::binary) << recording;
    // The terminal is the tests' own.
    const int terminal = dup(STDOUT_FILENO), nowhere = open("/dev/null", O_WRONLY);
    dup2(nowhere, STDOUT_FILENO);
    const auto replayed = run_replay(options, false);
    dup2(terminal, STDOUT_FILENO);
    close(terminal);
    close(nowhere);
    // Of another format: build it anew, as tests/fixtures/recordings/make says.
    INFO((replayed ? "" : replayed.error().message));
    REQUIRE(replayed);
    std::vector<json> drops;
    std::ifstream in(*options.json_file);
    for (std::string line; std::getline(in, line);)
        if (json one = json::parse(line); one["type"] == "drop")
            drops.push_back(std::move(one));
    return drops;
}

struct Told {
    std::string address, port, entry, fix;
};

std::vector<Told> told() {
    std::vector<Told> all;
    std::ifstream in(std::string(TSDROPTRACE_FIXTURES) + "/recordings/explanations.txt");
    for (std::string line; std::getline(in, line);) {
        std::istringstream words(line);
        Told one;
        std::getline(words, one.address, '\t');
        std::getline(words, one.port, '\t');
        std::getline(words, one.entry, '\t');
        std::getline(words, one.fix);
        all.push_back(one);
    }
    return all;
}

bool is_of(const json& drop, const Told& one) {
    const json& packet = drop["packet"];
    const bool by_port = one.port.find_first_not_of("0123456789") == std::string::npos && one.port.size() == 4;
    return packet["dst"] == one.address &&
           (by_port ? packet["dport"].is_number() && packet["dport"] == std::stoi(one.port)
                    : packet["proto"] == one.port);
}

} // namespace

TEST_CASE("recorded drops have the explanation that the test in the VM demands", "[replay]") {
    const auto drops = drops_of(unpacked(std::string(TSDROPTRACE_FIXTURES) + "/recordings/explanations.recording.gz"));
    const auto wanted = told();
    CHECK(wanted.size() > 90);
    for (const Told& one : wanted) {
        std::string found;
        bool right = false; // packets that a rule refuses are met again, in the ICMP errors about them
        for (const json& drop : drops) {
            if (!is_of(drop, one) || drop["explanation"].is_null())
                continue;
            const json& fixes = drop["explanation"]["fixes"];
            const std::string entry = drop["explanation"]["id"], fix = fixes.empty() ? "" : fixes[0]["do"];
            found += entry + ": " + fix + '\n';
            right |= std::regex_match(entry, std::regex(one.entry)) && (one.fix.empty() || one.fix == fix);
        }
        INFO(one.address << ' ' << one.port << ": " << one.entry << ": " << one.fix << "\nfound:\n" << found);
        CHECK(right);
    }
}
