// SPDX-License-Identifier: GPL-2.0-only
// Reads a file of the catalogue. The same for what comes with the program, at build time, and for the user's own
// files, at run time.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "explain/catalogue.h"

namespace tsdroptrace::explain {

struct Problem {
    int line = 0;        // 1-based
    std::string message; // what is wrong, and what was expected
    bool whole_file = false;
};

// Adds the file's entries to the catalogue. An entry with a problem is left out, and the others are still added; text
// that is not YAML adds nothing.
std::vector<Problem> read_catalogue(std::string_view text, OwnedCatalogue& into);

} // namespace tsdroptrace::explain
