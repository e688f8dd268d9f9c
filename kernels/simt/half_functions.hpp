// Half-precision functions that the toolkit's headers leave to the device compiler.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace simt {

// a * b + c of three halves with one rounding: the product is exact in double; where the sum is not, it is rounded to
// odd, so that the rounding to a half that follows cannot see a tie that is none.
inline double fused_half(float a, float b, float c) {
    const double product = double(a) * double(b), sum = product + double(c);
    if (!std::isfinite(sum)) return sum;
    const double part = sum - product;
    const double error = (product - (sum - part)) + (double(c) - part);
    int64_t bits;
    memcpy(&bits, &sum, sizeof bits);
    if (error != 0.0 && !(bits & 1)) bits += (error > 0.0) == (sum > 0.0) ? 1 : -1;
    double odd;
    memcpy(&odd, &bits, sizeof odd);
    return odd;
}

}  // namespace simt

inline __half __hfma(__half a, __half b, __half c) {
    return __double2half(simt::fused_half(__half2float(a), __half2float(b), __half2float(c)));
}
inline __nv_bfloat16 __hfma(__nv_bfloat16 a, __nv_bfloat16 b, __nv_bfloat16 c) {
    return __double2bfloat16(simt::fused_half(__bfloat162float(a), __bfloat162float(b), __bfloat162float(c)));
}
inline __half2 __hfma2(__half2 a, __half2 b, __half2 c) {
    return __halves2half2(__hfma(__low2half(a), __low2half(b), __low2half(c)),
                          __hfma(__high2half(a), __high2half(b), __high2half(c)));
}
inline __nv_bfloat162 __hfma2(__nv_bfloat162 a, __nv_bfloat162 b, __nv_bfloat162 c) {
    return __halves2bfloat162(__hfma(__low2bfloat16(a), __low2bfloat16(b), __low2bfloat16(c)),
                              __hfma(__high2bfloat16(a), __high2bfloat16(b), __high2bfloat16(c)));
}
