// SPDX-License-Identifier: GPL-2.0-only
#include "outputs.h"

#include <algorithm>
#include <ctime>
#include <sys/ioctl.h>
#include <unistd.h>

#include "output/text.h"

namespace tsdroptrace {
namespace {

unsigned terminal_width() {
    constexpr unsigned narrowest = 40, widest = 80;
    winsize size{};
    if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) || size.ws_col == 0)
        return widest;
    return std::clamp<unsigned>(size.ws_col, narrowest, widest);
}

} // namespace

std::int64_t realtime_ns() {
    timespec now{};
    clock_gettime(CLOCK_REALTIME, &now);
    return static_cast<std::int64_t>(now.tv_sec) * 1'000'000'000 + now.tv_nsec;
}

Result<output::JsonOutput*> add_outputs(const Options& options, bool stdout_is_tty, Pipeline& pipeline) {
    output::JsonOutput* file_output = nullptr;
    if (options.json_file) {
        auto file = output::Sink::open_file(*options.json_file);
        if (!file)
            return file.error();
        auto json = std::make_unique<output::JsonOutput>(std::move(*file), options.verbose, realtime_ns);
        file_output = json.get();
        pipeline.add_output(std::move(json));
    }
    auto standard_output = output::Sink::borrow(STDOUT_FILENO, "standard output");
    if (options.json)
        pipeline.add_output(
            std::make_unique<output::JsonOutput>(std::move(standard_output), options.verbose, realtime_ns));
    else
        pipeline.add_output(std::make_unique<output::TextOutput>(
            std::move(standard_output), output::TextOptions{.color = options.color,
                                                            // What a command has written is not ours to erase.
                                                            .tty = stdout_is_tty && options.command.empty(),
                                                            .verbose = options.verbose,
                                                            .quiet = options.quiet,
                                                            .width = stdout_is_tty ? terminal_width() : 80}));
    return file_output;
}

} // namespace tsdroptrace
