// pool3d forward: largest or mean value of windows over (t, h, w); 16-bit or f32, computed in f32, rounded once.
// input [n][t][h][w][from_pitch] -> output [n][to][ho][wo][to_pitch], indices [n][to][ho][wo][channels] (max, u8 or u32, t-major)
// grid    x: tiles of the output's rows   y: columns of channels
// block   256 threads: column / VECTOR along channels, the rest along rows; a thread makes one output position at a time
// max     padding does not count; the first of equal values wins, a NaN over all. With a table the input is
//         relu(scale x + shift) per split and channel: batch norm, ReLU and pool in one pass, the input is read once.
// average no padding. Values of a row of the window are summed first, then these sums.
// needs   rows below 2^30; VECTOR > 1: channels, column, pitches multiples of VECTOR, all addresses of 16 bytes
// output and indices are overwritten. No workspace. Deterministic.
//
// pool3d forward global: the mean of all positions of each clip. grid x: clips   y: columns of channels
// shared 256 x VECTOR f32. Each byte is read once.
#include "../common/block_map.cuh"
#include "../common/vector_io.cuh"
#include "params.cuh"

constexpr int THREADS = 256;
constexpr int TAPS = 3;   // positions along w that are loaded at once
constexpr int BATCH = 4;  // rows that are loaded at once, global

// ---- indices ---------------------------------------------------------------------------------------------------------

template <class Index, int N>
__device__ __forceinline__ void store_indices(uint64_t indices, int64_t at, const int (&won)[N]) {
    constexpr int WIDTH = sizeof(Index) * N <= 16 ? N : 16 / sizeof(Index);
#pragma unroll
    for (int i = 0; i < N; i += WIDTH) {
        Vec<Index, WIDTH> v;
#pragma unroll
        for (int j = 0; j < WIDTH; j++) v.e[j] = Index(won[i + j]);
        *reinterpret_cast<Vec<Index, WIDTH>*>(reinterpret_cast<Index*>(indices) + at + i) = v;
    }
}

// ---- windows ---------------------------------------------------------------------------------------------------------

// Calls visit(values of a thread's channels, number of the position in the window) for each position of an output's window in
// t-major order, and end_row() after each run along w.
template <class T, int VECTOR, class Visit, class EndRow>
__device__ __forceinline__ void for_window(const PoolParams& p, int row, int channel, Visit visit, EndRow end_row) {
    const PoolPosition at = position_of(p.t, p.h, p.w, row);
    const PoolRange ts = inputs_of(p.t, at.t), hs = inputs_of(p.h, at.h), ws = inputs_of(p.w, at.w);
    const T* from = reinterpret_cast<const T*>(p.from) + channel;
    for (int t = ts.begin; t < ts.end; t++) {
        for (int h = hs.begin; h < hs.end; h++) {
            const int64_t line = ((int64_t(at.n) * p.t.input + t) * p.h.input + h) * p.w.input;
            const int first_tap = (tap_of(p.t, at.t, t) * p.h.kernel + tap_of(p.h, at.h, h)) * p.w.kernel;
            for (int w = ws.begin; w < ws.end; w += TAPS) {
                Vec<T, VECTOR> raw[TAPS];
#pragma unroll
                for (int i = 0; i < TAPS; i++)
                    raw[i] = load_vector<T, VECTOR>(from + (line + min(w + i, ws.end - 1)) * p.from_pitch);
#pragma unroll
                for (int i = 0; i < TAPS; i++) {
                    if (w + i >= ws.end) break;
                    float values[VECTOR];
                    unpack(values, raw[i]);
                    visit(values, first_tap + tap_of(p.w, at.w, w + i));
                }
            }
            end_row();
        }
    }
}

template <class T, int VECTOR>
__device__ __forceinline__ void forward_max(const PoolParams& p) {
    const BlockMap map(THREADS, VECTOR, p.column, int(blockIdx.y) * p.column, p.channels);
    if (!map.works) return;
    const RowRange tile = range_of_tile(p.tiles, int(blockIdx.x));
    float scale[VECTOR] = {}, shift[VECTOR] = {};
    if (p.table) {
        load_row(scale, p.table, int64_t(tile.split) * 2 * p.channels + map.channel);
        load_row(shift, p.table, (int64_t(tile.split) * 2 + 1) * p.channels + map.channel);
    }
    for (int r = map.row_thread; r < tile.num_rows; r += map.row_threads) {
        const int row = tile.first_row + r;
        float best[VECTOR] = {};
        int won[VECTOR] = {};
        bool is_first = true;
        const auto visit = [&](float(&values)[VECTOR], int tap) {
#pragma unroll
            for (int i = 0; i < VECTOR; i++) {
                const float v = p.table ? relu(fmaf(values[i], scale[i], shift[i])) : values[i];
                const bool wins = is_first || v > best[i] || v != v;
                best[i] = wins ? v : best[i];
                won[i] = wins ? tap : won[i];
            }
            is_first = false;
        };
        for_window<T, VECTOR>(p, row, map.channel, visit, [] {});
        store_vector<T, VECTOR>(reinterpret_cast<T*>(p.to) + element_at(row, p.to_pitch, map.channel), best);
        if (!p.indices) continue;
        if (p.index_bytes == 1)
            store_indices<uint8_t>(p.indices, element_at(row, p.channels, map.channel), won);
        else
            store_indices<uint32_t>(p.indices, element_at(row, p.channels, map.channel), won);
    }
}

template <class T, int VECTOR>
__device__ __forceinline__ void forward_average(const PoolParams& p) {
    const BlockMap map(THREADS, VECTOR, p.column, int(blockIdx.y) * p.column, p.channels);
    if (!map.works) return;
    const RowRange tile = range_of_tile(p.tiles, int(blockIdx.x));
    for (int r = map.row_thread; r < tile.num_rows; r += map.row_threads) {
        const int row = tile.first_row + r;
        float sum[VECTOR], part[VECTOR];
        set_all(sum, 0.0f), set_all(part, 0.0f);
        const auto visit = [&](float(&values)[VECTOR], int) {
#pragma unroll
            for (int i = 0; i < VECTOR; i++) part[i] += values[i];
        };
        const auto end_row = [&] {
#pragma unroll
            for (int i = 0; i < VECTOR; i++) sum[i] += part[i], part[i] = 0.0f;
        };
        for_window<T, VECTOR>(p, row, map.channel, visit, end_row);
#pragma unroll
        for (int i = 0; i < VECTOR; i++) sum[i] *= p.scale;
        store_vector<T, VECTOR>(reinterpret_cast<T*>(p.to) + element_at(row, p.to_pitch, map.channel), sum);
    }
}

// ---- all positions of a clip -----------------------------------------------------------------------------------------

template <int N>
struct Sums {
    float sum[N] = {};

    __device__ __forceinline__ void put(float* shared, int slot) const {
#pragma unroll
        for (int i = 0; i < N; i++) shared[i * THREADS + slot] = sum[i];
    }
    __device__ __forceinline__ void take(const float* shared, int slot) {
#pragma unroll
        for (int i = 0; i < N; i++) sum[i] += shared[i * THREADS + slot];
    }
};

template <class T, int VECTOR>
__device__ __forceinline__ void forward_global(const PoolParams& p) {
    DYN_SMEM(float, shared);
    const BlockMap map(THREADS, VECTOR, p.column, int(blockIdx.y) * p.column, p.channels);
    const RowRange clip = range_of_tile(p.tiles, int(blockIdx.x));
    Sums<VECTOR> own;
    if (map.works) {
        const T* from = reinterpret_cast<const T*>(p.from) + element_at(clip.first_row, p.from_pitch, map.channel);
        for (int row = map.row_thread; row < clip.num_rows; row += BATCH * map.row_threads) {
            Vec<T, VECTOR> raw[BATCH];
#pragma unroll
            for (int r = 0; r < BATCH; r++) {
                const int next = row + r * map.row_threads;
                raw[r] = load_vector<T, VECTOR>(from + element_at(next < clip.num_rows ? next : row, p.from_pitch, 0));
            }
            float part[VECTOR];
            set_all(part, 0.0f);
#pragma unroll
            for (int r = 0; r < BATCH; r++) {
                if (row + r * map.row_threads >= clip.num_rows) break;
                float values[VECTOR];
                unpack(values, raw[r]);
#pragma unroll
                for (int i = 0; i < VECTOR; i++) part[i] += values[i];
            }
#pragma unroll
            for (int i = 0; i < VECTOR; i++) own.sum[i] += part[i];
        }
    }
    join_rows(own, map, shared);
    if (!map.works || map.row_thread != 0) return;
#pragma unroll
    for (int i = 0; i < VECTOR; i++) own.sum[i] *= p.scale;
    store_vector<T, VECTOR>(reinterpret_cast<T*>(p.to) + element_at(int(blockIdx.x), p.to_pitch, map.channel), own.sum);
}

// ---- variants --------------------------------------------------------------------------------------------------------

#define FORWARD_VARIANTS(method)                                                     \
    FORWARD_VARIANT(pool3d_forward_##method##_vector8_bf16, method, __nv_bfloat16, 8) \
    FORWARD_VARIANT(pool3d_forward_##method##_vector8_f16, method, __half, 8)         \
    FORWARD_VARIANT(pool3d_forward_##method##_vector4_f32, method, float, 4)          \
    FORWARD_VARIANT(pool3d_forward_##method##_scalar_bf16, method, __nv_bfloat16, 1)  \
    FORWARD_VARIANT(pool3d_forward_##method##_scalar_f16, method, __half, 1)          \
    FORWARD_VARIANT(pool3d_forward_##method##_scalar_f32, method, float, 1)
#define FORWARD_VARIANT(name, method, T, VECTOR)                                                       \
    extern "C" __global__ void __launch_bounds__(THREADS, 3) name(const __grid_constant__ PoolParams p) { \
        begin_grid();                                                                                     \
        forward_##method<T, VECTOR>(p);                                                                \
    }                                                                                                  \
    SIMT_EXPORT(name)

FORWARD_VARIANTS(max)
FORWARD_VARIANTS(average)
FORWARD_VARIANTS(global)
