// SPDX-License-Identifier: GPL-2.0-only
#define CATCH_CONFIG_RUNNER // Catch2 2; version 3 ignores it
#include "catch.h"

int main(int argc, char** argv) {
    return Catch::Session().run(argc, argv);
}
