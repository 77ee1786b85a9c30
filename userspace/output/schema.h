// SPDX-License-Identifier: GPL-2.0-only
#pragma once

#include <string>

namespace tsdroptrace::output {

// The JSON Schema (draft 2020-12) of every line that json.h writes, pretty-printed, with a newline at its
// end: what --print-schema prints. Fields may be added to it within version 1; none is ever renamed, retyped
// or removed, so it allows properties that it does not name.
std::string schema();

} // namespace tsdroptrace::output
