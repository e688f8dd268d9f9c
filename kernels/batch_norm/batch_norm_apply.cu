// batch_norm apply: output = relu(norm(input) + second), 16-bit or f32, computed in f32 and rounded once.
// input [rows][input_pitch], second [rows][second_pitch] (a residual, or a branch with a scale and shift of its own) -> output
// grid    x: tiles of rows   y: columns of channels
// block   256 threads: column / VECTOR along channels, the rest along rows; a thread keeps its channels' coefficients
// needs   rows below 2^30; VECTOR > 1: channels, column, pitches and addresses multiples of VECTOR elements
// output is overwritten; it may be the memory of the input or of the second. No workspace, no shared memory.
//
// norm(x) = (x - mean) * scale + shift from statistics: the mean is subtracted first, so that f32 keeps its digits where the
// mean is large. From a table scale * x + shift, as the prologues of other kernels have it.
#include "../common/block_map.cuh"
#include "../common/vector_io.cuh"
#include "params.cuh"

constexpr int THREADS = 256;
constexpr int BATCH = 4;

// norm(x) = (x - mean) * scale + shift, of a thread's channels.
template <int N>
struct Affine {
    float mean[N], scale[N], shift[N];

    __device__ __forceinline__ float operator()(float x, int i) const { return fmaf(x - mean[i], scale[i], shift[i]); }
};

template <int N>
__device__ __forceinline__ Affine<N> affine(const NormApplyParams& p, int split, int c) {
    Affine<N> a;
    const int64_t channels = p.channels;
    if (p.table_kind == NORM_SCALE_SHIFT) {
        set_all(a.mean, 0.0f);
        load_row(a.scale, p.table, split * 2 * channels + c);
        load_row(a.shift, p.table, (split * 2 + 1) * channels + c);
        return a;
    }
    if (p.table_kind == NORM_STATS) {
        load_row(a.mean, p.table, split * 3 * channels + c);
        load_row(a.scale, p.table, (split * 3 + 1) * channels + c);
    } else {
        load_row(a.mean, p.table, c);
        load_row(a.scale, p.var, c);
#pragma unroll
        for (int i = 0; i < N; i++) a.scale[i] = 1.0f / sqrtf(a.scale[i] + p.eps);
    }
    float gamma[N];
    load_row(gamma, p.gamma, c);
    load_row(a.shift, p.beta, c);
#pragma unroll
    for (int i = 0; i < N; i++) a.scale[i] *= gamma[i];
    return a;
}

template <class T, int VECTOR>
__device__ __forceinline__ void apply(const NormApplyParams& p) {
    const BlockMap map(THREADS, VECTOR, p.column, int(blockIdx.y) * p.column, p.channels);
    if (!map.works) return;
    const RowRange tile = range_of_tile(p.tiles, int(blockIdx.x));
    Affine<VECTOR> norm = affine<VECTOR>(p, tile.split, map.channel);
    float second_scale[VECTOR];
    set_all(second_scale, 1.0f);
    if (p.second_table) {
        float second_shift[VECTOR];
        load_row(second_scale, p.second_table, int64_t(tile.split) * 2 * p.channels + map.channel);
        load_row(second_shift, p.second_table, (int64_t(tile.split) * 2 + 1) * p.channels + map.channel);
#pragma unroll
        for (int i = 0; i < VECTOR; i++) norm.shift[i] += second_shift[i];
    }
    const T* input = reinterpret_cast<const T*>(p.input) + element_at(tile.first_row, p.input_pitch, map.channel);
    const T* second = reinterpret_cast<const T*>(p.second) + element_at(tile.first_row, p.second_pitch, map.channel);
    T* output = reinterpret_cast<T*>(p.output) + element_at(tile.first_row, p.output_pitch, map.channel);
    for (int row = map.row_thread; row < tile.num_rows; row += BATCH * map.row_threads) {
        Vec<T, VECTOR> raw[BATCH], raw_second[BATCH];
#pragma unroll
        for (int r = 0; r < BATCH; r++) {
            // Rows beyond the end read the first one again: no other thread writes it.
            const int next = row + r * map.row_threads;
            const int at = next < tile.num_rows ? next : row;
            raw[r] = load_vector<T, VECTOR>(input + element_at(at, p.input_pitch, 0));
            if (p.second) raw_second[r] = load_vector<T, VECTOR>(second + element_at(at, p.second_pitch, 0));
        }
#pragma unroll
        for (int r = 0; r < BATCH; r++) {
            const int at = row + r * map.row_threads;
            if (at >= tile.num_rows) break;
            float values[VECTOR], others[VECTOR];
            unpack(values, raw[r]);
#pragma unroll
            for (int i = 0; i < VECTOR; i++) values[i] = norm(values[i], i);
            if (p.second) {
                unpack(others, raw_second[r]);
#pragma unroll
                for (int i = 0; i < VECTOR; i++) values[i] = fmaf(others[i], second_scale[i], values[i]);
            }
            if (p.has_relu) {
#pragma unroll
                for (int i = 0; i < VECTOR; i++) values[i] = relu(values[i]);
            }
            store_vector<T, VECTOR>(output + element_at(at, p.output_pitch, 0), values);
        }
    }
}

// ---- variants --------------------------------------------------------------------------------------------------------

#define APPLY_VARIANT(name, T, VECTOR)                                                                      \
    extern "C" __global__ void __launch_bounds__(THREADS) name(const __grid_constant__ NormApplyParams p) { \
        begin_grid();                                                                                       \
        apply<T, VECTOR>(p);                                                                                \
    }                                                                                                       \
    SIMT_EXPORT(name)

APPLY_VARIANT(batch_norm_apply_vector8_bf16, __nv_bfloat16, 8)
APPLY_VARIANT(batch_norm_apply_vector8_f16, __half, 8)
APPLY_VARIANT(batch_norm_apply_vector4_f32, float, 4)
APPLY_VARIANT(batch_norm_apply_scalar_bf16, __nv_bfloat16, 1)
APPLY_VARIANT(batch_norm_apply_scalar_f16, __half, 1)
APPLY_VARIANT(batch_norm_apply_scalar_f32, float, 1)
