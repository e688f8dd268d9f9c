// Device functions that the toolkit's headers do not offer to a host compiler. The fast ones are computed exactly here;
// hardware's results differ in the last bits.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#include "machine.hpp"

// ---- minimum and maximum ----------------------------------------------------------------------------
#define SIMT_MIN_MAX(T)                              \
    inline T min(T a, T b) { return b < a ? b : a; } \
    inline T max(T a, T b) { return a < b ? b : a; }
SIMT_MIN_MAX(int)
SIMT_MIN_MAX(unsigned)
SIMT_MIN_MAX(long)
SIMT_MIN_MAX(unsigned long)
SIMT_MIN_MAX(long long)
SIMT_MIN_MAX(unsigned long long)
#undef SIMT_MIN_MAX
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }

// ---- loads and stores with cache hints --------------------------------------------------------------
#define SIMT_LOAD(name)                                        \
    template <class T>                                         \
    __attribute__((always_inline)) inline T name(const T* p) { \
        return *p;                                             \
    }
#define SIMT_STORE(name)                                         \
    template <class T>                                           \
    __attribute__((always_inline)) inline void name(T* p, T v) { \
        *p = v;                                                  \
    }
SIMT_LOAD(__ldg)
SIMT_LOAD(__ldcs)
SIMT_LOAD(__ldcg)
SIMT_LOAD(__ldca)
SIMT_LOAD(__ldlu)
SIMT_STORE(__stcs)
SIMT_STORE(__stcg)
SIMT_STORE(__stwb)
SIMT_STORE(__stwt)
#undef SIMT_LOAD
#undef SIMT_STORE

// ---- arithmetic with a stated rounding --------------------------------------------------------------
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float a) { return sqrtf(a); }
inline float __frcp_rn(float a) { return 1.0f / a; }
inline double __fma_rn(double a, double b, double c) { return fma(a, b, c); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline float __fdividef(float a, float b) { return a / b; }
inline float __expf(float a) { return expf(a); }
inline float __logf(float a) { return logf(a); }
inline float __saturatef(float a) { return a > 0.0f ? (a < 1.0f ? a : 1.0f) : 0.0f; }
inline float rsqrtf(float a) { return 1.0f / sqrtf(a); }
inline float __frsqrt_rn(float a) { return float(1.0 / sqrt(double(a))); }

// ---- conversions ------------------------------------------------------------------------------------
// NaN becomes 0 and values out of range saturate, as on the device.
inline int simt_to_int(float a) {
    if (a != a) return 0;
    if (a >= 2147483648.0f) return INT32_MAX;
    return a < -2147483648.0f ? INT32_MIN : int(a);
}
inline int __float2int_rz(float a) { return simt_to_int(truncf(a)); }
inline int __float2int_rd(float a) { return simt_to_int(floorf(a)); }
inline int __float2int_ru(float a) { return simt_to_int(ceilf(a)); }
inline int __float2int_rn(float a) { return simt_to_int(rintf(a)); }
inline unsigned __float2uint_rn(float a) { return a > 0.0f ? unsigned(llrintf(fminf(a, 4294967040.0f))) : 0u; }
inline float __int2float_rn(int a) { return float(a); }
inline float __uint2float_rn(unsigned a) { return float(a); }

template <class To, class From>
To simt_bit_cast(From from) {
    static_assert(sizeof(To) == sizeof(From), "bit casts keep the size");
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}
inline float __int_as_float(int a) { return simt_bit_cast<float>(a); }
inline float __uint_as_float(unsigned a) { return simt_bit_cast<float>(a); }
inline int __float_as_int(float a) { return simt_bit_cast<int>(a); }
inline unsigned __float_as_uint(float a) { return simt_bit_cast<unsigned>(a); }

// ---- integers and bits ------------------------------------------------------------------------------
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned(uint64_t(a) * b >> 32); }
inline int __mulhi(int a, int b) { return int(int64_t(a) * b >> 32); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned long long)((unsigned __int128)a * b >> 64);
}
inline int __popc(unsigned a) { return __builtin_popcount(a); }
inline int __ffs(int a) { return __builtin_ffs(a); }
inline int __clz(int a) { return a ? __builtin_clz(unsigned(a)) : 32; }
inline unsigned __brev(unsigned a) {
    unsigned r = 0;
    for (int i = 0; i < 32; i++) r |= (a >> i & 1u) << (31 - i);
    return r;
}
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
    const uint64_t bytes = uint64_t(b) << 32 | a;
    unsigned r = 0;
    for (int i = 0; i < 4; i++) {
        const unsigned select = selector >> 4 * i & 15;
        unsigned byte = unsigned(bytes >> (select & 7) * 8) & 255;
        if (select & 8) byte = byte & 128 ? 255 : 0;  // replicates the sign
        r |= byte << 8 * i;
    }
    return r;
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
    return unsigned((uint64_t(high) << 32 | low) << (shift & 31) >> 32);
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
    return unsigned((uint64_t(high) << 32 | low) >> (shift & 31));
}

inline size_t __cvta_generic_to_shared(const void* p) { return simt::shared_address(p); }
inline void __trap() { simt::fail("__trap()"); }
