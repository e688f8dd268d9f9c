// What happens to a chunk of 8 neighbouring channels between memory and the tensor cores: f32 arithmetic on 16-bit values,
// rounded to 16 bits again. Chunks outside of the tensor are not touched: they stay exactly zero.
//
// One tensor:   relu(s x + b)
// Two tensors:  s x + u y + c, with or without ReLU: the residual joins (u = 1, c = b; or u = s2, c = b + b2) and the
//               gradient of batch norm dy = A g + B y + C.
// Two side by side:  the first tensor's channels as they are, then those of relu(s x + b); each split has a filter of its own.
// A ReLU lets a NaN pass.
#pragma once
#include "../common/vector_io.cuh"
#include "params.cuh"

enum Prologue { PLAIN = 0, AFFINE = 1, JOIN = 2, BESIDE = 3 };  // none; relu(s x + b); two tensors; two side by side

// Per-channel factors of one chunk, in registers.
struct AffineChunk {
    float scale[8], shift[8];
};
struct JoinChunk {
    float scale[8], second_scale[8], shift[8];
};

__device__ __forceinline__ void load8(float (&to)[8], const float* from) {
    const float4 low = *reinterpret_cast<const float4*>(from), high = *reinterpret_cast<const float4*>(from + 4);
    to[0] = low.x, to[1] = low.y, to[2] = low.z, to[3] = low.w;
    to[4] = high.x, to[5] = high.y, to[6] = high.z, to[7] = high.w;
}

// Factors of the channels c .. c + 7 in split `split`: c and p.channels are multiples of 8.
__device__ __forceinline__ void load_factors(AffineChunk& to, const PrologueParams& p, int split, int c) {
    const float* table = reinterpret_cast<const float*>(p.table) + int64_t(split) * p.table_rows * p.channels + c;
    load8(to.scale, table);
    load8(to.shift, table + p.channels);
}
__device__ __forceinline__ void load_factors(JoinChunk& to, const PrologueParams& p, int split, int c) {
    const float* table = reinterpret_cast<const float*>(p.table) + int64_t(split) * p.table_rows * p.channels + c;
    load8(to.scale, table);
    if (p.table_rows == 3) {  // A, B, C
        load8(to.second_scale, table + p.channels);
        load8(to.shift, table + 2 * p.channels);
        return;
    }
    load8(to.shift, table + p.channels);
    if (p.second_table == 0) {
#pragma unroll
        for (int i = 0; i < 8; i++) to.second_scale[i] = 1.0f;
        return;
    }
    const float* second = reinterpret_cast<const float*>(p.second_table) + int64_t(split) * 2 * p.channels + c;
    float shift[8];
    load8(to.second_scale, second);
    load8(shift, second + p.channels);
#pragma unroll
    for (int i = 0; i < 8; i++) to.shift[i] += shift[i];
}

template <class T>
__device__ __forceinline__ Vec<T, 8> transformed(const Vec<T, 8>& x, const AffineChunk& f) {
    Vec<T, 8> to;
#pragma unroll
    for (int i = 0; i < 8; i++) to.e[i] = from_f32<T>(relu(fmaf(f.scale[i], to_f32(x.e[i]), f.shift[i])));
    return to;
}
template <class T>
__device__ __forceinline__ Vec<T, 8> transformed(const Vec<T, 8>& x, const Vec<T, 8>& y, const JoinChunk& f,
                                                 bool has_relu) {
    Vec<T, 8> to;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const float v = fmaf(f.scale[i], to_f32(x.e[i]), fmaf(f.second_scale[i], to_f32(y.e[i]), f.shift[i]));
        to.e[i] = from_f32<T>(has_relu ? relu(v) : v);
    }
    return to;
}
