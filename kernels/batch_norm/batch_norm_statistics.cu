// batch_norm statistics: mean and variance of each split and channel of activations, f32, from stored (rounded) values.
// input [rows][input_pitch] -> stats [splits][3][channels], scale_shift [splits][2][channels], running pair, skip flag
// grid    x: tiles of rows   y: columns of channels
// block   256 threads: lanes = column / VECTOR along channels, 256 / lanes along rows
// shared  256 x (2 VECTOR + 1) f32 while threads are joined, 256 x 32 bytes while tiles are; 16 bytes for the ticket's flag
// needs   rows below 2^30; VECTOR > 1: channels, column, pitch and address multiples of VECTOR elements
// workspace: tickets (zero, left zero), partials. Each byte of the input is read once. The tables are overwritten.
//
// A thread takes BATCH rows at a time: their mean, then the squared distances from it, joined with what it has: Chan's
// formula throughout, so a mean that is large against the deviation costs no digits. All joins are in the order of the rows:
// deterministic.
//
// batch_norm finalise: the same tables, or those of a gradient, from partial sums that another kernel has formed over tiles.
// partials [tiles][2][channels]   grid x: columns of 64 channels   block 256 threads   shared 256 x 32 bytes
//
// batch_norm running: the running pair from stats, unless the step is skipped; scale and shift from the running pair. A thread a
// channel.
#include "../common/block_map.cuh"
#include "../common/vector_io.cuh"
#include "finish.cuh"
#include "params.cuh"

constexpr int THREADS = 256;
constexpr int BATCH = 4;
constexpr int FLAG_BYTES = 16;

// ---- statistics ------------------------------------------------------------------------------------------------------

// Of the rows that a thread has seen, for each of its channels.
template <int N>
struct MomentsOfThread {
    float count = 0.0f, mean[N] = {}, m2[N] = {};

    // `valid` rows of values.
    __device__ __forceinline__ void add(const float (&values)[BATCH][N], int valid) {
        const float batch = float(valid), all = count + batch, share = batch / all, weight = count * share;
        const float inverse = 1.0f / batch;
#pragma unroll
        for (int i = 0; i < N; i++) {
            float sum = values[0][i];
#pragma unroll
            for (int r = 1; r < BATCH; r++) sum += r < valid ? values[r][i] : 0.0f;
            const float mean_of_batch = sum * inverse, delta = mean_of_batch - mean[i];
            float squares = 0.0f, rest = 0.0f;
#pragma unroll
            for (int r = 0; r < BATCH; r++) {
                const float d = r < valid ? values[r][i] - mean_of_batch : 0.0f;
                squares = fmaf(d, d, squares), rest += d;
            }
            // The mean is rounded: `rest` is what that left of the sum of distances.
            mean[i] = fmaf(delta, share, mean[i]);
            m2[i] += fmaf(delta * delta, weight, fmaf(-rest, rest * inverse, squares));
        }
        count = all;
    }
    __device__ __forceinline__ void put(float* shared, int slot) const {
        shared[2 * N * THREADS + slot] = count;
#pragma unroll
        for (int i = 0; i < N; i++) shared[i * THREADS + slot] = mean[i], shared[(N + i) * THREADS + slot] = m2[i];
    }
    __device__ __forceinline__ void take(const float* shared, int slot) {
        const float other = shared[2 * N * THREADS + slot];
        if (other == 0.0f) return;
        const float all = count + other, share = other / all, weight = count * share;
#pragma unroll
        for (int i = 0; i < N; i++) {
            const float delta = shared[i * THREADS + slot] - mean[i];
            mean[i] = fmaf(delta, share, mean[i]);
            m2[i] += fmaf(delta * delta, weight, shared[(N + i) * THREADS + slot]);
        }
        count = all;
    }
};

template <class T, int VECTOR>
__device__ __forceinline__ void statistics(const NormStatisticsParams& p) {
    DYN_SMEM(unsigned char, shared);
    const int channels = p.to.channels, first_channel = int(blockIdx.y) * p.column;
    const BlockMap map(THREADS, VECTOR, p.column, first_channel, channels);
    const RowRange tile = range_of_tile(p.tiles, int(blockIdx.x));

    MomentsOfThread<VECTOR> own;
    if (map.works) {
        const T* from = reinterpret_cast<const T*>(p.input) + element_at(tile.first_row, p.input_pitch, map.channel);
        for (int row = map.row_thread; row < tile.num_rows; row += BATCH * map.row_threads) {
            Vec<T, VECTOR> raw[BATCH];
            int valid = 0;
#pragma unroll
            for (int r = 0; r < BATCH; r++) {
                const int at = row + r * map.row_threads;
                // Rows beyond the end read the first one again; they are not counted.
                const bool exists = at < tile.num_rows;
                valid += exists;
                raw[r] = load_vector<T, VECTOR>(from + element_at(exists ? at : row, p.input_pitch, 0));
            }
            float values[BATCH][VECTOR];
#pragma unroll
            for (int r = 0; r < BATCH; r++) unpack(values[r], raw[r]);
            own.add(values, valid);
        }
    }
    join_rows(own, map, reinterpret_cast<float*>(shared + FLAG_BYTES));
    if (map.works && map.row_thread == 0) {
        float* to = batch_norm::floats(p.at.partials) + int64_t(blockIdx.x) * 2 * channels + map.channel;
#pragma unroll
        for (int i = 0; i < VECTOR; i++) to[i] = own.mean[i], to[channels + i] = own.m2[i];
    }
    finish<JoinStatistics>(BlockTeam(), p.tiles, p.at, p.to, tile, int(blockIdx.y), first_channel,
                           min(p.column, channels - first_channel), reinterpret_cast<uint32_t*>(shared), shared + FLAG_BYTES);
}

// ---- tables from sums, and from tables -------------------------------------------------------------------------------

constexpr int FINALISE_COLUMN = 64;

template <class Join>
__device__ __forceinline__ void finalise(const NormFinaliseParams& p, const typename Join::Tables& tables) {
    DYN_SMEM(unsigned char, shared);
    const int first = int(blockIdx.x) * FINALISE_COLUMN;
    write_tables<Join>(BlockTeam(), p.tiles, p.partials, tables, first, min(FINALISE_COLUMN, tables.channels - first), shared);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    batch_norm_finalise_statistics_f32(const __grid_constant__ NormFinaliseParams p) {
    begin_grid();
    finalise<JoinStatistics>(p, p.statistics);
}
SIMT_EXPORT(batch_norm_finalise_statistics_f32)

extern "C" __global__ void __launch_bounds__(THREADS)
    batch_norm_finalise_gradient_f32(const __grid_constant__ NormFinaliseParams p) {
    begin_grid();
    finalise<JoinGradients>(p, p.gradient);
}
SIMT_EXPORT(batch_norm_finalise_gradient_f32)

// The running pair of channel c moves towards the means over the splits.
template <class Norm>
__device__ __forceinline__ void move_running(const Norm& n, int c, float momentum) {
    double mean = 0.0, var = 0.0;
    for (int split = 0; split < n.splits; split++) {
        const float* stats = batch_norm::floats(n.stats) + int64_t(split) * 3 * n.channels + c;
        mean += double(stats[0]), var += double(stats[2 * int64_t(n.channels)]);
    }
    float* running_mean = batch_norm::floats(n.running_mean) + c;
    float* running_var = batch_norm::floats(n.running_var) + c;
    *running_mean = batch_norm::moved(*running_mean, mean / n.splits, momentum);
    *running_var = batch_norm::moved(*running_var, var / n.splits, momentum);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    batch_norm_update_running_f32(const __grid_constant__ NormRunningParams p) {
    begin_grid();
    const int c = int(blockIdx.x) * THREADS + int(threadIdx.x);
    if (c < p.channels) move_running(p, c, p.momentum);
}
SIMT_EXPORT(batch_norm_update_running_f32)

// Grid: x: channels of the widest norm, y: norms.
extern "C" __global__ void __launch_bounds__(THREADS)
    batch_norm_update_running_all_f32(const __grid_constant__ NormRunningAllParams p) {
    begin_grid();
    if (p.skipped && *reinterpret_cast<const uint32_t*>(p.skipped) != 0) return;
    const NormRunningEntry norm = reinterpret_cast<const NormRunningEntry*>(p.entries)[blockIdx.y];
    const int c = int(blockIdx.x) * THREADS + int(threadIdx.x);
    if (c < norm.channels) move_running(norm, c, p.momentum);
}
SIMT_EXPORT(batch_norm_update_running_all_f32)

extern "C" __global__ void __launch_bounds__(THREADS)
    batch_norm_running_scale_shift_f32(const __grid_constant__ NormRunningParams p) {
    begin_grid();
    const int c = int(blockIdx.x) * THREADS + int(threadIdx.x);
    if (c >= p.channels) return;
    const double mean = double(batch_norm::floats(p.running_mean)[c]), var = double(batch_norm::floats(p.running_var)[c]);
    const float scale = float(double(batch_norm::floats(p.gamma)[c]) / sqrt(var + double(p.eps)));
    float* to = batch_norm::floats(p.scale_shift) + c;
    to[0] = scale, to[p.channels] = float(fma(-mean, double(scale), double(batch_norm::floats(p.beta)[c])));
}
SIMT_EXPORT(batch_norm_running_scale_shift_f32)

// ---- variants --------------------------------------------------------------------------------------------------------

#define STATISTICS_VARIANT(name, T, VECTOR)                                                                      \
    extern "C" __global__ void __launch_bounds__(THREADS) name(const __grid_constant__ NormStatisticsParams p) { \
        begin_grid();                                                                                            \
        statistics<T, VECTOR>(p);                                                                                \
    }                                                                                                            \
    SIMT_EXPORT(name)

STATISTICS_VARIANT(batch_norm_statistics_vector8_bf16, __nv_bfloat16, 8)
STATISTICS_VARIANT(batch_norm_statistics_vector8_f16, __half, 8)
STATISTICS_VARIANT(batch_norm_statistics_vector4_f32, float, 4)
STATISTICS_VARIANT(batch_norm_statistics_scalar_bf16, __nv_bfloat16, 1)
STATISTICS_VARIANT(batch_norm_statistics_scalar_f16, __half, 1)
STATISTICS_VARIANT(batch_norm_statistics_scalar_f32, float, 1)
