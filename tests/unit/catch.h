// SPDX-License-Identifier: GPL-2.0-only
// Debian 12 has Catch2 2, newer ones have 3: the same tests, another header.
#pragma once

#if __has_include(<catch2/catch_all.hpp>)
#include <catch2/catch_all.hpp>
#else
#include <catch2/catch.hpp>
#endif
