// SPDX-License-Identifier: GPL-2.0-only
#include "util/text.h"

#include <algorithm>
#include <array>
#include <ctime>
#include <fmt/format.h>
#include <numeric>

namespace tsdroptrace {

namespace {

constexpr std::int64_t ns_per_s = 1'000'000'000;
constexpr char32_t invalid = 0xffffffff;
constexpr std::string_view replacement = "\xEF\xBF\xBD"; // U+FFFD

struct CodePoint {
    char32_t value;
    std::size_t length; // bytes; 1 for an invalid byte
};

// The first code point of non-empty text. Overlong forms, surrogates and values past U+10FFFF are invalid.
CodePoint first_code_point(std::string_view text) {
    const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
    const unsigned char lead = byte(0);
    if (lead < 0x80)
        return {lead, 1};
    const std::size_t length = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : 2;
    if (lead < 0xc2 || lead > 0xf4 || text.size() < length)
        return {invalid, 1};
    char32_t value = lead & (0x7f >> length);
    for (std::size_t i = 1; i < length; ++i) {
        if ((byte(i) & 0xc0) != 0x80)
            return {invalid, 1};
        value = value << 6 | (byte(i) & 0x3f);
    }
    constexpr std::array<char32_t, 5> smallest{0, 0, 0x80, 0x800, 0x10000};
    if (value < smallest[length] || value > 0x10ffff || (value >= 0xd800 && value <= 0xdfff))
        return {invalid, 1};
    return {value, length};
}

struct Range {
    char32_t first, last;
};

// Invisible characters that can make a line read as something else.
constexpr std::array<Range, 7> deceptive{{
    {0x00ad, 0x00ad}, // soft hyphen
    {0x061c, 0x061c}, // Arabic letter mark
    {0x200b, 0x200f}, // zero width, direction marks
    {0x2028, 0x202e}, // line and paragraph separator, direction overrides
    {0x2060, 0x206f}, // word joiner, direction isolates
    {0xfeff, 0xfeff}, // byte order mark
    {0xfff9, 0xfffb}, // interlinear annotation
}};

bool is_deceptive(char32_t c) {
    return std::any_of(deceptive.begin(), deceptive.end(),
                       [c](Range range) { return c >= range.first && c <= range.last; });
}

bool is_control(char32_t c) {
    return c < 0x20 || (c >= 0x7f && c < 0xa0);
}

// Everything that may take two columns starts above this (Hangul Jamo).
std::size_t width_of(char32_t c) {
    return c < 0x1100 || c == 0xfffd ? 1 : 2;
}

// Bytes at the beginning of the text that fit the width: whole code points, at least one.
std::size_t prefix_that_fits(std::string_view text, std::size_t width) {
    std::size_t used = 0;
    for (std::size_t at = 0; at < text.size();) {
        const CodePoint c = first_code_point(text.substr(at));
        used += width_of(c.value);
        if (used > width)
            return std::max(at, c.length);
        at += c.length;
    }
    return text.size();
}

} // namespace

std::string printable(std::string_view text) {
    std::string out;
    out.reserve(text.size());
    while (!text.empty()) {
        const CodePoint c = first_code_point(text);
        if (c.value == invalid)
            out += replacement;
        else if (is_control(c.value))
            out += fmt::format("\\x{:02x}", static_cast<unsigned>(c.value));
        else if (is_deceptive(c.value))
            out += fmt::format("\\u{:04x}", static_cast<unsigned>(c.value));
        else
            out += text.substr(0, c.length);
        text.remove_prefix(c.length);
    }
    return out;
}

std::size_t columns(std::string_view text) {
    std::size_t sum = 0;
    while (!text.empty()) {
        const CodePoint c = first_code_point(text);
        sum += width_of(c.value);
        text.remove_prefix(c.length);
    }
    return sum;
}

std::string cut(std::string_view text, std::size_t width) {
    constexpr std::string_view dots = "...";
    if (columns(text) <= width)
        return std::string(text);
    if (width <= dots.size())
        return std::string(dots.substr(0, width));
    return std::string(text.substr(0, prefix_that_fits(text, width - dots.size()))) + std::string(dots);
}

std::vector<std::string> wrap(std::string_view text, std::size_t width) {
    width = std::max<std::size_t>(width, 1);
    std::vector<std::string> lines(1);
    std::size_t used = 0; // columns of the last line
    while (!text.empty()) {
        const std::size_t end = std::min(text.find(' '), text.size());
        std::string_view word = text.substr(0, end);
        text.remove_prefix(std::min(end + 1, text.size()));
        if (used > 0 && used + 1 + columns(word) > width) {
            lines.emplace_back();
            used = 0;
        }
        if (used > 0) {
            lines.back() += ' ';
            ++used;
        }
        while (columns(word) > width) { // only at the beginning of a line
            const std::size_t length = prefix_that_fits(word, width);
            lines.back() = word.substr(0, length);
            lines.emplace_back();
            word.remove_prefix(length);
        }
        lines.back() += word;
        used += columns(word);
    }
    return lines;
}

std::size_t edit_distance(std::string_view a, std::string_view b) {
    std::vector<std::size_t> row(b.size() + 1);
    std::iota(row.begin(), row.end(), std::size_t{0});
    for (std::size_t i = 0; i < a.size(); ++i) {
        std::size_t diagonal = row[0];
        row[0] = i + 1;
        for (std::size_t j = 0; j < b.size(); ++j) {
            const std::size_t replaced = diagonal + (a[i] != b[j]);
            diagonal = row[j + 1];
            row[j + 1] = std::min({replaced, row[j] + 1, diagonal + 1});
        }
    }
    return row.back();
}

std::string shell_word(std::string_view text) {
    constexpr std::string_view plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_./:@%+-,";
    if (!text.empty() && text.find_first_not_of(plain) == std::string_view::npos)
        return std::string(text);
    std::string out = "'";
    for (const char c : text) {
        if (c == '\'')
            out += "'\\''";
        else
            out += c;
    }
    return out + "'";
}

std::string rfc3339_utc(std::int64_t time_ns) {
    std::int64_t fraction = time_ns % ns_per_s;
    std::time_t seconds = time_ns / ns_per_s;
    if (fraction < 0) {
        fraction += ns_per_s;
        --seconds;
    }
    std::tm tm{};
    gmtime_r(&seconds, &tm); // cannot fail: 64 bits of nanoseconds end in the year 2262
    return fmt::format("{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:09}Z", tm.tm_year + 1900, tm.tm_mon + 1, tm.tm_mday,
                       tm.tm_hour, tm.tm_min, tm.tm_sec, fraction);
}

std::string clock_local(std::int64_t time_ns) {
    const std::time_t seconds = time_ns / ns_per_s;
    std::tm tm{};
    localtime_r(&seconds, &tm);
    return fmt::format("{:02}:{:02}:{:02}", tm.tm_hour, tm.tm_min, tm.tm_sec);
}

std::string duration_text(std::int64_t duration_ns) {
    const std::int64_t ms = std::max<std::int64_t>(duration_ns, 0) / 1'000'000;
    const std::int64_t s = ms / 1000;
    if (s < 1)
        return fmt::format("{} ms", ms);
    if (s < 60)
        return fmt::format("{} s", s);
    if (s < 3600)
        return fmt::format("{} min {} s", s / 60, s % 60);
    return fmt::format("{} h {} min", s / 3600, s / 60 % 60);
}

std::string sysctl_device(std::string_view device) {
    std::string name(device);
    std::ranges::replace(name, '.', '/');
    return name;
}

std::string counted(std::uint64_t number, std::string_view noun) {
    return fmt::format("{} {}{}", number, noun, number == 1 ? "" : "s");
}

} // namespace tsdroptrace
