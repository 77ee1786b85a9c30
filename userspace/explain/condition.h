// SPDX-License-Identifier: GPL-2.0-only
// What an entry's `when` and `unless` may ask.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "explain/subject.h"

namespace tsdroptrace::explain {

bool holds(const Condition&, const Subject&);
bool all_hold(std::span<const Condition>, const Subject&);

// What is asked of the machine after the drop, not of the drop itself: routes, sockets, sysctls.
bool is_evidence(Field);

// What packets may differ in that share their evidence (evidence::Key).
bool is_of_one_packet(Field);

struct FieldInfo {
    Field field;
    std::string_view name;     // in `when`
    std::string_view expected; // what its values are, for whoever wrote another one
    bool (*valid)(std::string_view value);
    bool (*holds)(const Subject&, const Condition&, std::string_view value);
};

std::span<const FieldInfo> fields(); // in the order of Field

} // namespace tsdroptrace::explain
