// What a convolution would make of its source on load, stored: for convolutions whose tiles cannot store it on their way.
// source [positions][source_pitch], second [positions][second_pitch] -> store [positions][store_pitch], 16-bit
// grid    x: any number of blocks, which stride over chunks of VECTOR channels              block: 256 threads
// needs   VECTOR 8: channels and pitches multiples of 8, addresses of 16 bytes
// store is overwritten in its channels. f32 arithmetic, rounded once. Deterministic.
#include "prologue.cuh"

// ---- kernel ------------------------------------------------------------------------------------------------------------

template <class T>
__device__ __forceinline__ void store_vectors(const PrologueOnlyParams& p) {
    const PrologueParams& f = p.prologue;
    const uint64_t chunks = f.channels / 8, all = p.positions * chunks;
    for (uint64_t i = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < all; i += uint64_t(gridDim.x) * blockDim.x) {
        const int64_t position = int64_t(i / chunks);
        const int c = int(i - position * chunks) * 8, split = int(position / p.positions_per_split);
        JoinChunk factors;
        load_factors(factors, f, split, c);
        const auto x = *reinterpret_cast<const Vec<T, 8>*>(reinterpret_cast<const T*>(p.source) +
                                                           element_of(position, c, p.source_pitch));
        const auto y = *reinterpret_cast<const Vec<T, 8>*>(reinterpret_cast<const T*>(f.second) +
                                                           element_of(position, c, f.second_pitch));
        *reinterpret_cast<Vec<T, 8>*>(reinterpret_cast<T*>(f.store) + element_of(position, c, f.store_pitch)) =
            transformed(x, y, factors, f.has_relu);
    }
}

template <class T>
__device__ __forceinline__ void store_scalars(const PrologueOnlyParams& p) {
    const PrologueParams& f = p.prologue;
    const uint64_t all = p.positions * f.channels;
    for (uint64_t i = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < all; i += uint64_t(gridDim.x) * blockDim.x) {
        const int64_t position = int64_t(i / f.channels);
        const int c = int(i - position * f.channels), split = int(position / p.positions_per_split);
        const float* table = reinterpret_cast<const float*>(f.table) + int64_t(split) * f.table_rows * f.channels + c;
        const float* second_table = reinterpret_cast<const float*>(f.second_table) + int64_t(split) * 2 * f.channels + c;
        float scale = 1.0f, shift = table[(f.table_rows - 1) * f.channels];
        if (f.table_rows == 3) scale = table[f.channels];
        else if (f.second_table) scale = second_table[0], shift += second_table[f.channels];
        const float x = to_f32(reinterpret_cast<const T*>(p.source)[element_of(position, c, p.source_pitch)]);
        const float y = to_f32(reinterpret_cast<const T*>(f.second)[element_of(position, c, f.second_pitch)]);
        const float v = fmaf(table[0], x, fmaf(scale, y, shift));
        reinterpret_cast<T*>(f.store)[element_of(position, c, f.store_pitch)] = from_f32<T>(f.has_relu ? relu(v) : v);
    }
}

// ---- variants ----------------------------------------------------------------------------------------------------------

#define CONV3D_PROLOGUE(name, T, store)                                                                     \
    extern "C" __global__ void __launch_bounds__(256) name(const __grid_constant__ PrologueOnlyParams p) {  \
        begin_grid();                                                                                       \
        store<T>(p);                                                                                        \
    }                                                                                                       \
    SIMT_EXPORT(name)

CONV3D_PROLOGUE(conv3d_prologue_vector8_bf16, __nv_bfloat16, store_vectors)
CONV3D_PROLOGUE(conv3d_prologue_vector8_f16, __half, store_vectors)
CONV3D_PROLOGUE(conv3d_prologue_scalar_bf16, __nv_bfloat16, store_scalars)
CONV3D_PROLOGUE(conv3d_prologue_scalar_f16, __half, store_scalars)
