// Division by a number that the host knows: a product and a shift (Granlund and Montgomery 1994), for dividends below 2^31.
// Plain C++; the host's half is in src/ops/divide.rs.
#pragma once
#include <cstdint>

#ifdef __CUDACC__
#define DIVIDE_FUNCTION __host__ __device__ __forceinline__
#else
#define DIVIDE_FUNCTION inline
#endif

struct Divider {
    uint32_t divisor, multiplier, shift;

    DIVIDE_FUNCTION int32_t quotient(int32_t n) const {
        return int32_t((uint32_t(uint64_t(uint32_t(n)) * multiplier >> 32) + uint32_t(n)) >> shift);
    }
};
static_assert(sizeof(Divider) == 12, "mirrored in Rust");
