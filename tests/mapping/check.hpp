// A check that names its line and ends the program.
#pragma once
#include <cstdio>
#include <cstdlib>
#include <initializer_list>

#define CHECK(condition)                                                          \
    do {                                                                          \
        if (!(condition)) {                                                       \
            std::printf("%s:%d: not true: %s\n", __FILE__, __LINE__, #condition); \
            std::exit(1);                                                         \
        }                                                                         \
    } while (0)
