// Storage types: activations are stored as f32, bf16 or f16, and computed with as f32.
#pragma once
#include "ptx.cuh"

__device__ __forceinline__ float to_f32(float v) { return v; }
__device__ __forceinline__ float to_f32(__nv_bfloat16 v) { return __bfloat162float(v); }
__device__ __forceinline__ float to_f32(__half v) { return __half2float(v); }

template <class T>
__device__ __forceinline__ T from_f32(float v);
template <>
__device__ __forceinline__ float from_f32<float>(float v) { return v; }
template <>
__device__ __forceinline__ __nv_bfloat16 from_f32<__nv_bfloat16>(float v) { return __float2bfloat16_rn(v); }
template <>
__device__ __forceinline__ __half from_f32<__half>(float v) { return __float2half_rn(v); }

// N elements that are loaded and stored at once; aligned to their size.
template <class T, int N>
struct __align__(sizeof(T) * N) Vec {
    static_assert(sizeof(T) * N <= 16, "the widest access is 16 bytes");
    T e[N];
};
