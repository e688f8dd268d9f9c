// pointwise copy, add, fill: output = input, output += input, output = value; 16-bit or f32, channel pitches may differ.
// input [rows][input_pitch], output [rows][output_pitch]
// grid    x: tiles of rows   y: columns of channels
// block   256 threads: column / VECTOR along channels, the rest along rows; BATCH rows of a thread are loaded at once
// needs   rows below 2^30; VECTOR > 1: channels, column, pitches and addresses multiples of VECTOR elements
// add may be of the memory to itself. Elements between the channels of two rows are left alone. Sums are rounded once.
//
// pointwise cast: output = input * scale, from one type to another, scale from device memory. Arrays without gaps.
// grid x: blocks of 256 x 8 elements   block 256 threads   output is overwritten; it may not overlap the input
#include "../common/block_map.cuh"
#include "../common/vector_io.cuh"
#include "params.cuh"

constexpr int THREADS = 256;
constexpr int BATCH = 4;
constexpr int CAST = 8;  // elements of a thread

// ---- rows ------------------------------------------------------------------------------------------------------------

enum Method { COPY, ADD, FILL };

template <class T, int VECTOR, Method METHOD>
__device__ __forceinline__ void pointwise(const PointwiseParams& p) {
    const BlockMap map(THREADS, VECTOR, p.column, int(blockIdx.y) * p.column, p.channels);
    if (!map.works) return;
    const RowRange tile = range_of_tile(p.tiles, int(blockIdx.x));
    const T* input = reinterpret_cast<const T*>(p.input) + element_at(tile.first_row, p.input_pitch, map.channel);
    T* output = reinterpret_cast<T*>(p.output) + element_at(tile.first_row, p.output_pitch, map.channel);
    float filled[VECTOR];
    set_all(filled, p.value);
    for (int row = map.row_thread; row < tile.num_rows; row += BATCH * map.row_threads) {
        Vec<T, VECTOR> raw[BATCH], old[BATCH];
#pragma unroll
        for (int r = 0; r < BATCH; r++) {
            // Rows beyond the end read the first one again: no other thread writes it.
            const int next = row + r * map.row_threads;
            const int at = next < tile.num_rows ? next : row;
            if constexpr (METHOD != FILL) raw[r] = load_vector<T, VECTOR>(input + element_at(at, p.input_pitch, 0));
            if constexpr (METHOD == ADD) old[r] = load_vector<T, VECTOR>(output + element_at(at, p.output_pitch, 0));
        }
#pragma unroll
        for (int r = 0; r < BATCH; r++) {
            const int at = row + r * map.row_threads;
            if (at >= tile.num_rows) break;
            T* to = output + element_at(at, p.output_pitch, 0);
            if constexpr (METHOD == COPY) *reinterpret_cast<Vec<T, VECTOR>*>(to) = raw[r];
            if constexpr (METHOD == FILL) store_vector<T, VECTOR>(to, filled);
            if constexpr (METHOD == ADD) {
                float a[VECTOR], b[VECTOR];
                unpack(a, old[r]), unpack(b, raw[r]);
#pragma unroll
                for (int i = 0; i < VECTOR; i++) a[i] += b[i];
                store_vector<T, VECTOR>(to, a);
            }
        }
    }
}

// ---- casts -----------------------------------------------------------------------------------------------------------

// Eight elements, by vectors of 16 bytes.
template <class T>
__device__ __forceinline__ void load_eight(float (&to)[CAST], const T* from) {
    constexpr int WIDTH = 16 / sizeof(T) < CAST ? 16 / sizeof(T) : CAST;
#pragma unroll
    for (int i = 0; i < CAST; i += WIDTH) {
        const Vec<T, WIDTH> v = load_vector<T, WIDTH>(from + i);
#pragma unroll
        for (int j = 0; j < WIDTH; j++) to[i + j] = to_f32(v.e[j]);
    }
}
template <class T>
__device__ __forceinline__ void store_eight(T* to, const float (&from)[CAST]) {
    constexpr int WIDTH = 16 / sizeof(T) < CAST ? 16 / sizeof(T) : CAST;
#pragma unroll
    for (int i = 0; i < CAST; i += WIDTH) {
        Vec<T, WIDTH> v;
#pragma unroll
        for (int j = 0; j < WIDTH; j++) v.e[j] = from_f32<T>(from[i + j]);
        *reinterpret_cast<Vec<T, WIDTH>*>(to + i) = v;
    }
}

template <class From, class To>
__device__ __forceinline__ void cast(const CastParams& p) {
    const int64_t first = (int64_t(blockIdx.x) * THREADS + threadIdx.x) * CAST;
    if (first >= p.len) return;
    const From* from = reinterpret_cast<const From*>(p.input) + first;
    To* to = reinterpret_cast<To*>(p.output) + first;
    const float scale = p.scale ? *reinterpret_cast<const float*>(p.scale) : 1.0f;
    if (p.is_aligned && first + CAST <= p.len) {
        float values[CAST];
        load_eight(values, from);
#pragma unroll
        for (int i = 0; i < CAST; i++) values[i] *= scale;
        store_eight(to, values);
        return;
    }
    for (int i = 0; i < CAST && first + i < p.len; i++) to[i] = from_f32<To>(to_f32(from[i]) * scale);
}

// ---- variants --------------------------------------------------------------------------------------------------------

#define POINTWISE_VARIANT(name, T, VECTOR, METHOD)                                                          \
    extern "C" __global__ void __launch_bounds__(THREADS) name(const __grid_constant__ PointwiseParams p) { \
        begin_grid();                                                                                       \
        pointwise<T, VECTOR, METHOD>(p);                                                                    \
    }                                                                                                       \
    SIMT_EXPORT(name)
#define POINTWISE_VARIANTS(suffix, T, VECTOR)                       \
    POINTWISE_VARIANT(pointwise_copy_##suffix, T, VECTOR, COPY)     \
    POINTWISE_VARIANT(pointwise_add_##suffix, T, VECTOR, ADD)       \
    POINTWISE_VARIANT(pointwise_fill_##suffix, T, VECTOR, FILL)
#define CAST_VARIANT(name, From, To)                                                                   \
    extern "C" __global__ void __launch_bounds__(THREADS) name(const __grid_constant__ CastParams p) { \
        begin_grid();                                                                                  \
        cast<From, To>(p);                                                                             \
    }                                                                                                  \
    SIMT_EXPORT(name)

POINTWISE_VARIANTS(vector8_bf16, __nv_bfloat16, 8)
POINTWISE_VARIANTS(vector8_f16, __half, 8)
POINTWISE_VARIANTS(vector4_f32, float, 4)
POINTWISE_VARIANTS(scalar_bf16, __nv_bfloat16, 1)
POINTWISE_VARIANTS(scalar_f16, __half, 1)
POINTWISE_VARIANTS(scalar_f32, float, 1)

CAST_VARIANT(pointwise_cast_f32_to_f32, float, float)
CAST_VARIANT(pointwise_cast_f32_to_bf16, float, __nv_bfloat16)
CAST_VARIANT(pointwise_cast_f32_to_f16, float, __half)
CAST_VARIANT(pointwise_cast_bf16_to_f32, __nv_bfloat16, float)
CAST_VARIANT(pointwise_cast_f16_to_f32, __half, float)
