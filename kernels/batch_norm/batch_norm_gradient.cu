// batch_norm gradient_sums: sum g and sum g (y - mean) of each split and channel, and from them A, B, C of dy = A g + B y + C and
// the gradients of gamma and beta. g is grad_output where the ReLU was open.
// input (y) [rows][input_pitch], grad_output [rows][grad_output_pitch], mask [rows][mask_pitch] -> grad_table [splits][3][channels],
// grad_gamma, grad_beta [channels]
// grid    x: tiles of rows   y: columns of channels
// block   256 threads: column / VECTOR along channels, the rest along rows
// shared  256 x 2 VECTOR f32 while threads are joined, 256 x 32 bytes while tiles are; 16 bytes for the ticket's flag
// workspace: tickets (zero, left zero), partials. Sums are f32 in a tile, f64 over tiles, in the order of the rows.
//
// batch_norm gradient: grad_input = A g + B y + C, and g itself for the residual (overwritten, or added to).
// grid, block as above; no shared memory, no workspace. grad_input may be the memory of grad_output; so may grad_residual where
// it is overwritten.
//
// needs   rows below 2^30; VECTOR > 1: channels, column, pitches and addresses multiples of VECTOR elements. Deterministic.
#include "../common/block_map.cuh"
#include "../common/vector_io.cuh"
#include "finish.cuh"
#include "params.cuh"

constexpr int THREADS = 256;
constexpr int BATCH = 2;  // rows of three tensors at once: enough bytes under way, and two blocks fit an SM
constexpr int FLAG_BYTES = 16;

// ---- the ReLU --------------------------------------------------------------------------------------------------------

// The masked gradient of BATCH rows of a thread's channels, from grad_output and y, loaded at once.
template <class T, int VECTOR, class Params>
struct MaskedRows {
    const T *input, *grad_output, *mask;
    float scale[VECTOR], shift[VECTOR];
    Vec<T, VECTOR> raw_y[BATCH], raw_g[BATCH], raw_mask[BATCH];

    __device__ __forceinline__ MaskedRows(const Params& p, const RowRange& tile, int channel, int channels) {
            input = reinterpret_cast<const T*>(p.input) + element_at(tile.first_row, p.input_pitch, channel);
        grad_output = reinterpret_cast<const T*>(p.grad_output) + element_at(tile.first_row, p.grad_output_pitch, channel);
        mask = reinterpret_cast<const T*>(p.mask) + element_at(tile.first_row, p.mask_pitch, channel);
        if (p.mask_table) {
            load_row(scale, p.mask_table, int64_t(tile.split) * 2 * channels + channel);
            load_row(shift, p.mask_table, (int64_t(tile.split) * 2 + 1) * channels + channel);
        }
    }
    // Rows beyond the end read the first one again: no other thread writes it.
    __device__ __forceinline__ void load(const Params& p, const RowRange& tile, int row, int step) {
#pragma unroll
        for (int r = 0; r < BATCH; r++) {
            const int next = row + r * step;
            const int at = next < tile.num_rows ? next : row;
            raw_y[r] = load_vector<T, VECTOR>(input + element_at(at, p.input_pitch, 0));
            raw_g[r] = load_vector<T, VECTOR>(grad_output + element_at(at, p.grad_output_pitch, 0));
            if (p.mask) raw_mask[r] = load_vector<T, VECTOR>(mask + element_at(at, p.mask_pitch, 0));
        }
    }
    __device__ __forceinline__ void get(const Params& p, int r, float (&g)[VECTOR], float (&y)[VECTOR]) const {
        unpack(y, raw_y[r]);
        unpack(g, raw_g[r]);
        if (p.mask) {
            float open[VECTOR];
            unpack(open, raw_mask[r]);
#pragma unroll
            for (int i = 0; i < VECTOR; i++) g[i] = relu_gradient(g[i], open[i]);
        }
        if (p.mask_table) {
#pragma unroll
            for (int i = 0; i < VECTOR; i++) g[i] = relu_gradient(g[i], fmaf(y[i], scale[i], shift[i]));
        }
    }
};

// ---- sums ------------------------------------------------------------------------------------------------------------

template <class T, int VECTOR>
__device__ __forceinline__ void gradient_sums(const NormGradientSumsParams& p) {
    DYN_SMEM(unsigned char, shared);
    const int channels = p.to.channels, first_channel = int(blockIdx.y) * p.column;
    const BlockMap map(THREADS, VECTOR, p.column, first_channel, channels);
    const RowRange tile = range_of_tile(p.tiles, int(blockIdx.x));

    PairSums<VECTOR, THREADS> own;
    if (map.works) {
        MaskedRows<T, VECTOR, NormGradientSumsParams> rows(p, tile, map.channel, channels);
        float origin[VECTOR];
        load_row(origin, p.to.stats, int64_t(tile.split) * 3 * channels + map.channel);
#pragma unroll
        for (int i = 0; i < VECTOR; i++) origin[i] = origin_near<T>(origin[i]);
        for (int row = map.row_thread; row < tile.num_rows; row += BATCH * map.row_threads) {
            rows.load(p, tile, row, map.row_threads);
#pragma unroll
            for (int r = 0; r < BATCH; r++) {
                if (row + r * map.row_threads >= tile.num_rows) break;
                float g[VECTOR], y[VECTOR];
                rows.get(p, r, g, y);
#pragma unroll
                for (int i = 0; i < VECTOR; i++) {
                    own.first[i] += g[i];
                    own.second[i] = fmaf(g[i], y[i] - origin[i], own.second[i]);
                }
            }
        }
    }
    join_rows(own, map, reinterpret_cast<float*>(shared + FLAG_BYTES));
    if (map.works && map.row_thread == 0) {
        float mean[VECTOR], *to = batch_norm::floats(p.at.partials) + int64_t(blockIdx.x) * 2 * channels + map.channel;
        load_row(mean, p.to.stats, int64_t(tile.split) * 3 * channels + map.channel);
#pragma unroll
        for (int i = 0; i < VECTOR; i++) {
            to[i] = own.first[i];
            to[channels + i] = sum_about_mean<T>(own.second[i], own.first[i], mean[i]);
        }
    }
    finish<JoinGradients>(BlockTeam(), p.tiles, p.at, p.to, tile, int(blockIdx.y), first_channel,
                          min(p.column, channels - first_channel), reinterpret_cast<uint32_t*>(shared), shared + FLAG_BYTES);
}

// ---- gradient --------------------------------------------------------------------------------------------------------

template <class T, int VECTOR>
__device__ __forceinline__ void gradient(const NormGradientParams& p) {
    const BlockMap map(THREADS, VECTOR, p.column, int(blockIdx.y) * p.column, p.channels);
    if (!map.works) return;
    const RowRange tile = range_of_tile(p.tiles, int(blockIdx.x));
    MaskedRows<T, VECTOR, NormGradientParams> rows(p, tile, map.channel, p.channels);
    float a[VECTOR], b[VECTOR], c[VECTOR], mean[VECTOR];
    const int64_t table = int64_t(tile.split) * 3 * p.channels + map.channel;
    load_row(a, p.table, table), load_row(b, p.table, table + p.channels), load_row(c, p.table, table + 2 * int64_t(p.channels));
    set_all(mean, 0.0f);
    if (p.stats) load_row(mean, p.stats, table);
    T* grad_input = reinterpret_cast<T*>(p.grad_input) + element_at(tile.first_row, p.grad_input_pitch, map.channel);
    T* grad_residual = reinterpret_cast<T*>(p.grad_residual) + element_at(tile.first_row, p.grad_residual_pitch, map.channel);
    for (int row = map.row_thread; row < tile.num_rows; row += BATCH * map.row_threads) {
        rows.load(p, tile, row, map.row_threads);
#pragma unroll
        for (int r = 0; r < BATCH; r++) {
            const int at = row + r * map.row_threads;
            if (at >= tile.num_rows) break;
            float g[VECTOR], y[VECTOR];
            rows.get(p, r, g, y);
#pragma unroll
            for (int i = 0; i < VECTOR; i++) y[i] = fmaf(a[i], g[i], fmaf(b[i], y[i] - mean[i], c[i]));
            store_vector<T, VECTOR>(grad_input + element_at(at, p.grad_input_pitch, 0), y);
            if (!p.grad_residual) continue;
            if (p.accumulates) {
                float old[VECTOR];
                unpack(old, load_vector<T, VECTOR>(grad_residual + element_at(at, p.grad_residual_pitch, 0)));
#pragma unroll
                for (int i = 0; i < VECTOR; i++) g[i] += old[i];
            }
            store_vector<T, VECTOR>(grad_residual + element_at(at, p.grad_residual_pitch, 0), g);
        }
    }
}

// ---- variants --------------------------------------------------------------------------------------------------------

#define SUMS_VARIANT(name, T, VECTOR)                                                                              \
    extern "C" __global__ void __launch_bounds__(THREADS) name(const __grid_constant__ NormGradientSumsParams p) { \
        begin_grid();                                                                                              \
        gradient_sums<T, VECTOR>(p);                                                                               \
    }                                                                                                              \
    SIMT_EXPORT(name)
#define GRADIENT_VARIANT(name, T, VECTOR)                                                                      \
    extern "C" __global__ void __launch_bounds__(THREADS) name(const __grid_constant__ NormGradientParams p) { \
        begin_grid();                                                                                          \
        gradient<T, VECTOR>(p);                                                                                \
    }                                                                                                          \
    SIMT_EXPORT(name)

SUMS_VARIANT(batch_norm_gradient_sums_vector8_bf16, __nv_bfloat16, 8)
SUMS_VARIANT(batch_norm_gradient_sums_vector8_f16, __half, 8)
SUMS_VARIANT(batch_norm_gradient_sums_vector4_f32, float, 4)
SUMS_VARIANT(batch_norm_gradient_sums_scalar_bf16, __nv_bfloat16, 1)
SUMS_VARIANT(batch_norm_gradient_sums_scalar_f16, __half, 1)
SUMS_VARIANT(batch_norm_gradient_sums_scalar_f32, float, 1)
GRADIENT_VARIANT(batch_norm_gradient_vector8_bf16, __nv_bfloat16, 8)
GRADIENT_VARIANT(batch_norm_gradient_vector8_f16, __half, 8)
GRADIENT_VARIANT(batch_norm_gradient_vector4_f32, float, 4)
GRADIENT_VARIANT(batch_norm_gradient_scalar_bf16, __nv_bfloat16, 1)
GRADIENT_VARIANT(batch_norm_gradient_scalar_f16, __half, 1)
GRADIENT_VARIANT(batch_norm_gradient_scalar_f32, float, 1)
