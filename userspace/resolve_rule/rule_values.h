// SPDX-License-Identifier: GPL-2.0-only
// Values that rules compare with, as ranges of bytes: addresses in network order, numbers at the end.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string_view>

#include "model.h"

namespace tsdroptrace::resolve_rule {

using ValueBytes = std::array<std::uint8_t, 16>;

struct ValueRange {
    ValueBytes low{}, high{};
    bool holds(const ValueBytes& value) const { return low <= value && value <= high; }
};

struct AddressRange {
    IpFamily family = IpFamily::other;
    ValueBytes low{}, high{};
};

ValueBytes as_bytes(std::uint32_t value);

// A decimal number of 16 bits; nullopt for anything else.
std::optional<std::uint16_t> number(std::string_view text);

// The number of a protocol that is given by its name or number.
std::optional<std::uint16_t> protocol(std::string_view text);

// "10.0.0.0/8", "10.0.0.1-10.0.0.9" or one address; nullopt for anything else, also for a mask that is no prefix.
std::optional<AddressRange> address_range(std::string_view text);

// Without the double quotes around it, if it has any.
std::string_view unquote(std::string_view word);

} // namespace tsdroptrace::resolve_rule
