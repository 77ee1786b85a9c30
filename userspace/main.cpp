// SPDX-License-Identifier: GPL-2.0-only
#include <csignal>
#include <cstdio>
#include <cstdlib>

#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include "live.h"
#include "options.h"
#include "output/schema.h"
#include "replay.h"

using namespace tsdroptrace;

int main(int argc, char** argv) {
    // Diagnostics go to standard error; events never do.
    spdlog::set_default_logger(spdlog::stderr_logger_st("tsdroptrace"));
    spdlog::set_pattern("tsdroptrace: %v");
    std::signal(SIGPIPE, SIG_IGN);

    const Environment environment{.stdout_is_tty = isatty(STDOUT_FILENO) == 1, .no_color = std::getenv("NO_COLOR")};
    const auto parsed = parse(argc, argv, environment);
    if (!parsed) {
        spdlog::error("{}", parsed.error().message);
        return static_cast<int>(parsed.error().kind);
    }
    if (const auto* print = std::get_if<PrintAndExit>(&*parsed)) {
        const std::string text = print->what == PrintAndExit::What::schema ? output::schema() : print->text;
        return std::fwrite(text.data(), 1, text.size(), stdout) == text.size() && std::fflush(stdout) == 0
                   ? EXIT_SUCCESS
                   : static_cast<int>(ErrorKind::other);
    }
    const auto& options = std::get<Options>(*parsed);
    if (options.verbose)
        spdlog::set_level(spdlog::level::debug);

    const Result<int> done =
        options.replay ? run_replay(options, environment.stdout_is_tty) : run_live(options, environment.stdout_is_tty);
    if (done)
        return *done;
    if (!done.error().message.empty())
        spdlog::error("{}", done.error().message);
    return static_cast<int>(done.error().kind);
}
