// pool3d grad_input: each input position asks the windows that hold it, in their order; f32 sums, rounded once.
// grad_output [n][to][ho][wo][from_pitch] (and indices [n][to][ho][wo][channels] for max) -> grad_input [n][t][h][w][to_pitch]
// grid    x: tiles of the input's rows   y: columns of channels
// block   256 threads: column / VECTOR along channels, the rest along rows; a thread makes one input position at a time
// needs   rows below 2^30; VECTOR > 1: channels, column, pitches multiples of VECTOR, all addresses of 16 bytes
// grad_input is overwritten, or added to where `accumulates` says so. No workspace. Deterministic, no atomics.
//
// pool3d grad_norm: the same for a max pool over relu(scale y + shift), y going into a batch norm. g, the gradient where the ReLU
// was open, need not be stored (to = 0): its sums, of g and of g (y - mean), become A, B, C of dy = A g + B y + C and the gradients
// of gamma and beta, [splits][3][channels] and [channels]. The sums are of g before it is rounded.
// shared  256 x 2 VECTOR f32 while threads are joined, 256 x 32 bytes while tiles are; 16 bytes for the ticket's flag
// workspace: tickets (zero, left zero), partials.
#include "../batch_norm/finish.cuh"
#include "../common/block_map.cuh"
#include "../common/vector_io.cuh"
#include "params.cuh"

constexpr int THREADS = 256;
constexpr int WINDOWS = 2;  // along w, that are loaded at once: all of them for the stem's 3 x 3 with stride 2
constexpr int FLAG_BYTES = 16;

// ---- one position ----------------------------------------------------------------------------------------------------

// Winning positions of a window, as they are stored.
template <int N>
__device__ __forceinline__ void load_indices(int (&won)[N], const PoolParams& p, int64_t at) {
    if (p.index_bytes == 1) {
        const Vec<uint8_t, N> v = load_vector<uint8_t, N>(reinterpret_cast<const uint8_t*>(p.indices) + at);
#pragma unroll
        for (int i = 0; i < N; i++) won[i] = v.e[i];
        return;
    }
    constexpr int WIDTH = N < 4 ? N : 4;
#pragma unroll
    for (int i = 0; i < N; i += WIDTH) {
        const Vec<uint32_t, WIDTH> v = load_vector<uint32_t, WIDTH>(reinterpret_cast<const uint32_t*>(p.indices) + at + i);
#pragma unroll
        for (int j = 0; j < WIDTH; j++) won[i + j] = int(v.e[j]);
    }
}

// Sum over the windows that hold the input position `row`: of what the position won, or of all.
template <class T, int VECTOR, bool IS_MAX>
__device__ __forceinline__ void gather(float (&sums)[VECTOR], const PoolParams& p, int row, int channel) {
    const PoolPosition at = position_of(p.t, p.h, p.w, row);
    const PoolRange ts = windows_of(p.t, at.t), hs = windows_of(p.h, at.h), ws = windows_of(p.w, at.w);
    const T* from = reinterpret_cast<const T*>(p.from) + channel;
    set_all(sums, 0.0f);
    for (int t = ts.begin; t < ts.end; t++) {
        for (int h = hs.begin; h < hs.end; h++) {
            const int64_t line = ((int64_t(at.n) * p.t.output + t) * p.h.output + h) * p.w.output;
            const int first_tap = (tap_of(p.t, t, at.t) * p.h.kernel + tap_of(p.h, h, at.h)) * p.w.kernel;
            for (int w = ws.begin; w < ws.end; w += WINDOWS) {
                Vec<T, VECTOR> raw[WINDOWS];
                int won[WINDOWS][VECTOR];
#pragma unroll
                for (int i = 0; i < WINDOWS; i++) {
                    const int64_t output = line + min(w + i, ws.end - 1);
                    raw[i] = load_vector<T, VECTOR>(from + output * p.from_pitch);
                    if constexpr (IS_MAX) load_indices(won[i], p, output * p.channels + channel);
                }
#pragma unroll
                for (int i = 0; i < WINDOWS; i++) {
                    if (w + i >= ws.end) break;
                    const int tap = first_tap + tap_of(p.w, w + i, at.w);
                    float values[VECTOR];
                    unpack(values, raw[i]);
#pragma unroll
                    for (int j = 0; j < VECTOR; j++) {
                        if constexpr (IS_MAX)
                            sums[j] += won[i][j] == tap ? values[j] : 0.0f;
                        else
                            sums[j] += values[j];
                    }
                }
            }
        }
    }
}

// ---- gradient --------------------------------------------------------------------------------------------------------

template <class T, int VECTOR, bool IS_MAX>
__device__ __forceinline__ void grad_input(const PoolParams& p) {
    const BlockMap map(THREADS, VECTOR, p.column, int(blockIdx.y) * p.column, p.channels);
    if (!map.works) return;
    const RowRange tile = range_of_tile(p.tiles, int(blockIdx.x));
    for (int r = map.row_thread; r < tile.num_rows; r += map.row_threads) {
        const int row = tile.first_row + r;
        T* to = reinterpret_cast<T*>(p.to) + element_at(row, p.to_pitch, map.channel);
        float sums[VECTOR];
        gather<T, VECTOR, IS_MAX>(sums, p, row, map.channel);
        if constexpr (!IS_MAX) {
#pragma unroll
            for (int i = 0; i < VECTOR; i++) sums[i] *= p.scale;
        }
        if (p.accumulates) {
            float old[VECTOR];
            unpack(old, load_vector<T, VECTOR>(to));
#pragma unroll
            for (int i = 0; i < VECTOR; i++) sums[i] += old[i];
        }
        store_vector<T, VECTOR>(to, sums);
    }
}

// ---- gradient and sums for the batch norm before ---------------------------------------------------------------------

template <class T, int VECTOR>
__device__ __forceinline__ void grad_norm(const PoolNormParams& p) {
    DYN_SMEM(unsigned char, shared);
    const PoolParams& pool = p.pool;
    const int channels = pool.channels, first_channel = int(blockIdx.y) * pool.column;
    const BlockMap map(THREADS, VECTOR, pool.column, first_channel, channels);
    const RowRange tile = range_of_tile(pool.tiles, int(blockIdx.x));

    PairSums<VECTOR, THREADS> own;
    if (map.works) {
        float scale[VECTOR], shift[VECTOR], origin[VECTOR];
        load_row(scale, pool.table, int64_t(tile.split) * 2 * channels + map.channel);
        load_row(shift, pool.table, (int64_t(tile.split) * 2 + 1) * channels + map.channel);
        load_row(origin, p.norm.stats, int64_t(tile.split) * 3 * channels + map.channel);
#pragma unroll
        for (int i = 0; i < VECTOR; i++) origin[i] = origin_near<T>(origin[i]);
        for (int r = map.row_thread; r < tile.num_rows; r += map.row_threads) {
            const int row = tile.first_row + r;
            const Vec<T, VECTOR> raw_y = load_vector<T, VECTOR>(reinterpret_cast<const T*>(p.y) + element_at(row, p.y_pitch, map.channel));
            float g[VECTOR], y[VECTOR];
            gather<T, VECTOR, true>(g, pool, row, map.channel);
            unpack(y, raw_y);
#pragma unroll
            for (int i = 0; i < VECTOR; i++) {
                g[i] = relu_gradient(g[i], fmaf(y[i], scale[i], shift[i]));
                own.first[i] += g[i];
                own.second[i] = fmaf(g[i], y[i] - origin[i], own.second[i]);
            }
            if (pool.to) store_vector<T, VECTOR>(reinterpret_cast<T*>(pool.to) + element_at(row, pool.to_pitch, map.channel), g);
        }
    }
    join_rows(own, map, reinterpret_cast<float*>(shared + FLAG_BYTES));
    if (map.works && map.row_thread == 0) {
        float mean[VECTOR], *to = batch_norm::floats(p.at.partials) + int64_t(blockIdx.x) * 2 * channels + map.channel;
        load_row(mean, p.norm.stats, int64_t(tile.split) * 3 * channels + map.channel);
#pragma unroll
        for (int i = 0; i < VECTOR; i++) {
            to[i] = own.first[i];
            to[channels + i] = sum_about_mean<T>(own.second[i], own.first[i], mean[i]);
        }
    }
    finish<JoinGradients>(BlockTeam(), pool.tiles, p.at, p.norm, tile, int(blockIdx.y), first_channel,
                          min(pool.column, channels - first_channel), reinterpret_cast<uint32_t*>(shared),
                          shared + FLAG_BYTES);
}

// ---- variants --------------------------------------------------------------------------------------------------------

#define GRAD_VARIANT(name, Params, call)                                                           \
    extern "C" __global__ void __launch_bounds__(THREADS, 2) name(const __grid_constant__ Params p) { \
        begin_grid();                                                                                 \
        call(p);                                                                                   \
    }                                                                                              \
    SIMT_EXPORT(name)
#define GRAD_VARIANTS(suffix, T, VECTOR)                                                                     \
    GRAD_VARIANT(pool3d_grad_input_max_##suffix, PoolParams, (grad_input<T, VECTOR, true>))                  \
    GRAD_VARIANT(pool3d_grad_input_average_##suffix, PoolParams, (grad_input<T, VECTOR, false>))             \
    GRAD_VARIANT(pool3d_grad_norm_max_##suffix, PoolNormParams, (grad_norm<T, VECTOR>))

GRAD_VARIANTS(vector8_bf16, __nv_bfloat16, 8)
GRAD_VARIANTS(vector8_f16, __half, 8)
GRAD_VARIANTS(vector4_f32, float, 4)
GRAD_VARIANTS(scalar_bf16, __nv_bfloat16, 1)
GRAD_VARIANTS(scalar_f16, __half, 1)
GRAD_VARIANTS(scalar_f32, float, 1)
