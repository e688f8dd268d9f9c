// gram statistics: batch norm's tables of y = W x from mean and covariance of x. f32 and 16-bit in, f32 out.
// moments [splits][channels + channels * channels]    filter [c_out][channels]    mean_o = <w_o, m>    var_o = w_o' Cov w_o
//
// A block makes T = W Cov for TILE output channels and TILE columns of the covariance, on the tensor cores: an f32 of the covariance is
// the sum of three bf16, exactly, and a filter element of one (bf16) or two (f16), so that all products are exact and the sums are
// those of f32. Then the dot products of its columns of T and of the mean with the filter, in f64; the last block of a tile of output
// channels adds up those of all columns and writes the tables.
//
// grid   x: tiles of columns   y: tiles of output channels   z: splits        block: 8 warps, 4 (output channels) x 2 (columns)
// shared (3 + 1 or 2) x TILE x TILE bf16, f64 [2][2][TILE], flag
// needs  channels % 8 == 0, moments and filter aligned to 16 bytes
// partials f64 [splits][tiles of columns][2][c_out]; tickets u32 [splits][tiles of output channels], zero before and after
// stats [splits][3][c_out] and scale_shift [splits][2][c_out] are overwritten; the skip flag's bit 0 is set where one is not finite.
// A variance below 0 counts as 0. Deterministic.
#include "../batch_norm/finalise.cuh"
#include "../common/mma_tile.cuh"
#include "../common/reduce.cuh"
#include "../common/ticket.cuh"
#include "../common/vector_io.cuh"
#include "params.cuh"

constexpr int THREADS = 256;
constexpr int TILE = 64, CHUNKS = TILE / 8, TILE_BYTES = TILE * TILE * 2;
constexpr int COPIES = TILE * CHUNKS / THREADS;
constexpr int COV_PARTS = 3;
using Bf16 = __nv_bfloat16;

// ---- exact parts -------------------------------------------------------------------------------------------------------

// v[i] as the sum of PARTS bf16, largest first, to chunk `chunk` of line `line` of so many tiles.
template <int PARTS>
__device__ __forceinline__ void store_parts(unsigned char* tiles, int line, int chunk, float (&v)[8]) {
#pragma unroll
    for (int part = 0; part < PARTS; part++) {
        Vec<Bf16, 8> rounded;
#pragma unroll
        for (int i = 0; i < 8; i++) rounded.e[i] = from_f32<Bf16>(v[i]), v[i] -= to_f32(rounded.e[i]);
        *reinterpret_cast<Vec<Bf16, 8>*>(tiles + part * TILE_BYTES + chunk_offset<CHUNKS>(line, chunk)) = rounded;
    }
}

// Elements row .. of a matrix of f32 or 16-bit values, eight columns from `column` on; 0 outside.
template <class T>
__device__ __forceinline__ void load_eight(float (&to)[8], const T* matrix, int row, int rows, int column, int columns) {
    set_all(to, 0.0f);
    if (row >= rows || column >= columns) return;
    const T* from = matrix + int64_t(row) * columns + column;
    constexpr int N = 16 / int(sizeof(T));
#pragma unroll
    for (int i = 0; i < 8; i += N) {
        const auto v = load_vector<T, N>(from + i);
#pragma unroll
        for (int e = 0; e < N; e++) to[i + e] = to_f32(v.e[e]);
    }
}

// ---- kernel ------------------------------------------------------------------------------------------------------------

template <class T>
struct GramStatistics {
    static constexpr int FILTER_PARTS = IS_BF16<T> ? 1 : 2;
    using Sums = float[1][4][4];  // 16 output channels, 32 columns

    // The block's tile of W Cov.
    static __device__ __forceinline__ void product(const GramStatisticsParams& p, const float* cov, unsigned char* shared, Sums& sums) {
        const int warp = int(threadIdx.x) / 32, c = p.channels;
        unsigned char* filter_tiles = shared + COV_PARTS * TILE_BYTES;
        for (int k = 0; k < c; k += TILE) {
            float of_cov[COPIES][8], of_filter[COPIES][8];
#pragma unroll
            for (int i = 0; i < COPIES; i++) {
                const int line = (int(threadIdx.x) + i * THREADS) / CHUNKS, column = int(threadIdx.x) % CHUNKS * 8;
                load_eight(of_cov[i], cov, k + line, c, int(blockIdx.x) * TILE + column, c);
                load_eight(of_filter[i], reinterpret_cast<const T*>(p.filter), int(blockIdx.y) * TILE + line, p.to.channels,
                           k + column, c);
            }
            __syncthreads();  // the tiles before have been read
#pragma unroll
            for (int i = 0; i < COPIES; i++) {
                const int line = (int(threadIdx.x) + i * THREADS) / CHUNKS, chunk = int(threadIdx.x) % CHUNKS;
                store_parts<COV_PARTS>(shared, line, chunk, of_cov[i]);
                store_parts<FILTER_PARTS>(filter_tiles, line, chunk, of_filter[i]);
            }
            __syncthreads();
#pragma unroll 1
            for (int step = 0; step < min(TILE, c - k); step += 16)
#pragma unroll
                for (int a = FILTER_PARTS - 1; a >= 0; a--)
#pragma unroll
                    for (int b = COV_PARTS - 1; b >= 0; b--)
                        mma_step<Bf16, true, CHUNKS, false, CHUNKS>(sums, filter_tiles + a * TILE_BYTES, warp / 2 * 16,
                                                                    shared + b * TILE_BYTES, warp % 2 * 32, step);
        }
    }

    // Dot products with the filter over the block's columns: [mean, variance] of output channel `thread` of the tile, for threads
    // below TILE. shared: f64 [2 warps][2][TILE].
    static __device__ __forceinline__ void dot(const GramStatisticsParams& p, const float* mean, const Sums& sums, double* shared,
                                               double (&result)[2]) {
        const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
        const int column = int(blockIdx.x) * TILE + warp % 2 * 32 + lane % 4 * 2;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int of_tile = warp / 2 * 16 + half * 8 + lane / 4, row = int(blockIdx.y) * TILE + of_tile;
            const T* filter = reinterpret_cast<const T*>(p.filter) + int64_t(row) * p.channels;
            double parts[2] = {};
#pragma unroll
            for (int n = 0; n < 4; n++)
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    const int j = column + n * 8 + e;
                    if (row >= p.to.channels || j >= p.channels) continue;
                    const double w = double(to_f32(filter[j]));
                    parts[0] = fma(w, double(mean[j]), parts[0]);
                    parts[1] = fma(w, double(sums[0][n][half * 2 + e]), parts[1]);
                }
#pragma unroll
            for (int i = 0; i < 2; i++) {
                parts[i] = warp_reduce<4>(parts[i], Sum());
                if (lane % 4 == 0) shared[(warp % 2 * 2 + i) * TILE + of_tile] = parts[i];
            }
        }
        __syncthreads();
#pragma unroll
        for (int i = 0; i < 2; i++)
            result[i] = threadIdx.x < TILE ? shared[i * TILE + threadIdx.x] + shared[(2 + i) * TILE + threadIdx.x] : 0.0;
    }

    static __device__ __forceinline__ void run(const GramStatisticsParams& p, unsigned char* shared) {
        const int split = int(blockIdx.z), tiles = int(gridDim.x), c_out = p.to.channels;
        const float* mean = reinterpret_cast<const float*>(p.moments) + int64_t(split) * p.channels * (p.channels + 1);
        Sums sums = {};
        product(p, mean + p.channels, shared, sums);
        double* scratch = reinterpret_cast<double*>(shared + (COV_PARTS + FILTER_PARTS) * TILE_BYTES);
        uint32_t* flag = reinterpret_cast<uint32_t*>(scratch + 4 * TILE);
        double result[2];
        dot(p, mean, sums, scratch, result);

        const int o = int(blockIdx.y) * TILE + int(threadIdx.x);
        const bool exists = threadIdx.x < TILE && o < c_out;
        double* partials = reinterpret_cast<double*>(p.partials) + int64_t(split) * tiles * 2 * c_out + o;
        if (exists)
#pragma unroll
            for (int i = 0; i < 2; i++) partials[(int64_t(blockIdx.x) * 2 + i) * c_out] = result[i];
        uint32_t* ticket = reinterpret_cast<uint32_t*>(p.tickets) + split * gridDim.y + blockIdx.y;
        if (!is_last(BlockTeam(), ticket, uint32_t(tiles), flag) || !exists) return;
        double mean_o = 0.0, var = 0.0;
        for (int tile = 0; tile < tiles; tile++) {
            mean_o += partials[int64_t(tile) * 2 * c_out];
            var += partials[(int64_t(tile) * 2 + 1) * c_out];
        }
        const int rows = split + 1 < p.to.splits ? p.rows_per_split : p.rows - split * p.rows_per_split;
        StatisticsOfChannel of_channel;
        // A NaN stays one.
        of_channel.split(p.to, split, o, double(rows), mean_o, (var < 0.0 ? 0.0 : var) * double(rows));
        of_channel.end(p.to, o);
    }
};

// ---- variants ----------------------------------------------------------------------------------------------------------

extern "C" __global__ void __launch_bounds__(THREADS) gram_statistics_mma64_bf16(const __grid_constant__ GramStatisticsParams p) {
    begin_grid();
    DYN_SMEM(unsigned char, shared);
    GramStatistics<__nv_bfloat16>::run(p, shared);
}
SIMT_EXPORT(gram_statistics_mma64_bf16)

extern "C" __global__ void __launch_bounds__(THREADS) gram_statistics_mma64_f16(const __grid_constant__ GramStatisticsParams p) {
    begin_grid();
    DYN_SMEM(unsigned char, shared);
    GramStatistics<__half>::run(p, shared);
}
SIMT_EXPORT(gram_statistics_mma64_f16)
