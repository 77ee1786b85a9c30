// SPDX-License-Identifier: GPL-2.0-only
// A file with a text, as long as this lives: in the place of one of the kernel's.
#pragma once

#include <cstdio>
#include <fstream>
#include <string>

#include <unistd.h>

struct File {
    std::string path;
    explicit File(const char* text, const char* name = "kallsyms")
        : path(std::string("/tmp/") + name + "." + std::to_string(getpid())) {
        std::ofstream(path) << text;
    }
    ~File() { std::remove(path.c_str()); }
};
