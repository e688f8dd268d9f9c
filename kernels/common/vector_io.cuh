// Vectors of stored elements: moved 16 bytes at once where the variant is wide, computed with as f32.
#pragma once
#include "storage.cuh"

template <class T, int N>
__device__ __forceinline__ Vec<T, N> load_vector(const T* from) {
    return *reinterpret_cast<const Vec<T, N>*>(from);
}
template <class T, int N>
__device__ __forceinline__ void unpack(float (&to)[N], const Vec<T, N>& from) {
#pragma unroll
    for (int i = 0; i < N; i++) to[i] = to_f32(from.e[i]);
}
// Rounds.
template <class T, int N>
__device__ __forceinline__ void store_vector(T* to, const float (&from)[N]) {
    Vec<T, N> rounded;
#pragma unroll
    for (int i = 0; i < N; i++) rounded.e[i] = from_f32<T>(from[i]);
    *reinterpret_cast<Vec<T, N>*>(to) = rounded;
}

// N f32 of a table; its row starts at any element.
template <int N>
__device__ __forceinline__ void load_row(float (&to)[N], uint64_t table, int64_t first) {
    const float* from = reinterpret_cast<const float*>(table) + first;
#pragma unroll
    for (int i = 0; i < N; i++) to[i] = from[i];
}
template <int N>
__device__ __forceinline__ void set_all(float (&to)[N], float value) {
#pragma unroll
    for (int i = 0; i < N; i++) to[i] = value;
}

// A NaN passes: it must show.
__device__ __forceinline__ float relu(float v) { return v < 0.0f ? 0.0f : v; }
// What the ReLU lets through of a gradient, where its output is y.
__device__ __forceinline__ float relu_gradient(float g, float y) { return y <= 0.0f ? 0.0f : g; }
