// SPDX-License-Identifier: GPL-2.0-only
// Text on its way to a person: safe for a terminal, wrapped, and times as people and programs read them.
// All functions are pure except clock_local, which reads the time zone of the process.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace tsdroptrace {

// Makes text from outside (names of devices, chains, processes; comments) safe to print: control
// characters become \xNN, invisible ones that reorder or break lines become \uNNNN, and every byte
// that is not part of valid UTF-8 becomes U+FFFD. Never fails; printable text comes back as it was.
std::string printable(std::string_view text);

// Columns that printable text takes on a terminal; an upper bound (two for everything that may be wide).
std::size_t columns(std::string_view text);

// The text, or as much of its beginning as fits `width` columns with "..." at the end.
std::string cut(std::string_view text, std::size_t width);

// Breaks printable text at spaces into lines of at most `width` columns; a word that is longer is broken
// within. Spaces stay as they are, except where a line ends. Never returns an empty vector. A width of 0
// counts as 1.
std::vector<std::string> wrap(std::string_view text, std::size_t width);

// Levenshtein distance: how many letters to type differently.
std::size_t edit_distance(std::string_view a, std::string_view b);

// One word for a POSIX shell: as it is when nothing in it means anything to a shell, else in single quotes.
std::string shell_word(std::string_view text);

// A device within the name of a sysctl, where dots separate: the dot of a VLAN device is written as a slash, as
// sysctl(8) has it.
std::string sysctl_device(std::string_view device);

// CLOCK_REALTIME nanoseconds as "2026-08-01T12:00:01.000000042Z".
std::string rfc3339_utc(std::int64_t time_ns);

// CLOCK_REALTIME nanoseconds as "14:00:01" in the local time zone.
std::string clock_local(std::int64_t time_ns);

// A length of time: "850 ms", "12 s", "3 min 5 s", "2 h 10 min". Negative counts as 0.
std::string duration_text(std::int64_t duration_ns);

// "1 packet", "3 packets".
std::string counted(std::uint64_t number, std::string_view noun);

} // namespace tsdroptrace
