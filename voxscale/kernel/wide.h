// WIDE before a function: wider vectors where the machine has them, told apart when the library is loaded. Without fused
// multiply-add, which would round otherwise.
#pragma once

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#define WIDE __attribute__((target_clones("avx2", "default")))
#else
#define WIDE
#endif
