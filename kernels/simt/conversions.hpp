// 16-bit floats to f32, one and eight at a time.
#pragma once
#include <cstdint>
#include <cstring>

#include <immintrin.h>

namespace simt {

template <bool BF16>
inline __m256 to_f32x8(const uint16_t* p) {
    const __m128i v = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    if constexpr (BF16)
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(v), 16));
    else
        return _mm256_cvtph_ps(v);
}

template <bool BF16>
inline float to_f32(uint16_t bits) {
    if constexpr (!BF16) return _cvtsh_ss(bits);
    const uint32_t wide = uint32_t(bits) << 16;
    float f;
    memcpy(&f, &wide, sizeof f);
    return f;
}

}  // namespace simt
