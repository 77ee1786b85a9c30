// SPDX-License-Identifier: GPL-2.0-only
// The user's own entries: files in a directory that only root can write to.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include <sys/types.h>

#include "explain/catalogue.h"

namespace tsdroptrace::explain {

inline constexpr const char* explain_dir = "/etc/tsdroptrace/explain.d";

struct OwnEntries {
    std::shared_ptr<const OwnedCatalogue> catalogue; // null: there are none
    std::vector<std::string> warnings;               // at most one for each file, and one for the directory
};

// The entries of this machine's user, with each warning logged. Null: there are none.
std::shared_ptr<const OwnedCatalogue> own_entries();

// Reads *.yaml of the directory in the order of their names; hidden files are passed over. Directory and files must
// belong to `owner`, and nobody else may be able to write to them: what they say is printed as commands to paste into
// a root shell. A directory that is not there is no problem.
OwnEntries read_explain_dir(const std::string& directory = explain_dir, uid_t owner = 0);

} // namespace tsdroptrace::explain
