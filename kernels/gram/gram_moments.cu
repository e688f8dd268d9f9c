// gram moments: 16-bit in, f32 sums of products.
// x [rows][pitch], of which [rows][channels] are read; behind relu(scale x + shift), rounded, where there is a table.
// partials [slabs][channels + channels * channels]: sums of x, sums of x_i x_j where tile(i) <= tile(j)
//
// A slab is a run of rows of one split. A block makes a tile of products, TILE channels times TILE channels, over one slab; tiles below
// the diagonal are mirrored by the merge. Rows go through shared memory in stages; a thread changes what it copied itself. Warps that do
// not share the tile share the rows of a stage.
// An accumulator of the tensor cores takes FLUSH_ROWS rows before it is added to the slab's; everything after a slab is f64. So the mean
// is taken off in f64, and what rounding costs is what FLUSH_ROWS additions do: docs/gram_batch_norm.md.
//
// grid   x: slabs x pairs of channel tiles        block: 8 warps
// shared STAGES x (1 or 2: tiles of a pair) x ROWS x TILE 16-bit elements; after the last stage WARPS_K x TILE x TILE f32
// needs  channels % 8 == 0, pitch % 8 == 0, x aligned to 16 bytes        rows and channels that do not exist count as 0
// partials are overwritten. Deterministic: gram_merge_f32 adds up the slabs in order.
#include "../common/mma_tile.cuh"
#include "../common/reduce.cuh"
#include "../conv3d/prologue.cuh"
#include "params.cuh"

constexpr int THREADS = 256;
constexpr int STAGES = 4;
constexpr int FLUSH_ROWS = 256;
constexpr int MERGE_COLUMNS = 32, MERGE_GROUPS = THREADS / MERGE_COLUMNS;

// ---- tile --------------------------------------------------------------------------------------------------------------

template <int TILE_>
struct GramTile {
    static constexpr int TILE = TILE_, CHUNKS = TILE / 8;
    static constexpr int ROWS = 4096 / TILE, BYTES = ROWS * TILE * 2;  // of a stage
    static constexpr int ROW_STEP = THREADS / CHUNKS, COPIES = ROWS / ROW_STEP;  // of a thread
    static constexpr int MS = 1, NS = TILE < 32 ? TILE / 8 : 4;         // a warp makes 16 x 32 products, with TILE 16 16 x 16
    static constexpr int WARPS_M = TILE / 16, WARPS_N = TILE / (NS * 8), WARPS = WARPS_M * WARPS_N;
    static constexpr int WARPS_K = 8 / WARPS, ROWS_K = ROWS / WARPS_K;
    static constexpr int FLUSH_STAGES = FLUSH_ROWS / ROWS_K;
    static_assert(ROWS_K % 16 == 0 && COPIES == 2, "whole mmas, two chunks a thread");
};

// The tiles of channels of pair `pair`, the first not behind the second.
struct TilePair {
    int first, second;
};
__device__ __forceinline__ TilePair tile_pair(int pair, int tiles) {
    int first = 0;
    for (; pair >= tiles - first; first++) pair -= tiles - first;
    return {first, first + pair};
}

// One tile of channels on its way through shared memory, as one thread sees it.
template <class T, class Tile>
struct Column {
    const T* from;  // the thread's first row and chunk of the slab
    int64_t step;   // elements between its rows
    bool exists;    // whether its channels do
    const float* table;  // their scales and, `channels` on, their shifts; or none
    float sums[8];

    __device__ __forceinline__ void set_up(const GramMomentsParams& p, const RowRange& slab, int tile) {
        const int c = tile * Tile::TILE + int(threadIdx.x) % Tile::CHUNKS * 8, row = int(threadIdx.x) / Tile::CHUNKS;
        exists = c < p.channels;
        table = p.scale_shift ? reinterpret_cast<const float*>(p.scale_shift) + int64_t(slab.split) * 2 * p.channels + c : nullptr;
        from = reinterpret_cast<const T*>(p.x) + (exists ? element_at(slab.first_row + row, p.pitch, c) : 0);
        step = exists ? int64_t(p.pitch) * Tile::ROW_STEP : 0;
        set_all(sums, 0.0f);
    }
    // Rows first_row .. first_row + ROWS of the slab, of num_rows.
    __device__ __forceinline__ void load(unsigned char* stage, int first_row, int num_rows) const {
        const int chunk = int(threadIdx.x) % Tile::CHUNKS;
#pragma unroll
        for (int i = 0; i < Tile::COPIES; i++) {
            const int line = int(threadIdx.x) / Tile::CHUNKS + i * Tile::ROW_STEP;
            const bool is_inside = exists && first_row + line < num_rows;
            const T* source = is_inside ? from + (first_row / Tile::ROW_STEP + i) * step : from;
            cp_async16(smem_u32(stage + chunk_offset<Tile::CHUNKS>(line, chunk)), source, is_inside ? 16 : 0);
        }
    }
    // Prologue and sums of what this thread copied. Rows that do not exist stay 0.
    __device__ __forceinline__ void change(unsigned char* stage, int first_row, int num_rows, int channels, bool has_sums) {
        const int chunk = int(threadIdx.x) % Tile::CHUNKS;
        if (!exists || !(table || has_sums)) return;
        AffineChunk factors;  // from the first-level cache each time: for a whole slab they would take too many registers
        if (table) {
            load8(factors.scale, table);
            load8(factors.shift, table + channels);
        }
#pragma unroll
        for (int i = 0; i < Tile::COPIES; i++) {
            const int line = int(threadIdx.x) / Tile::CHUNKS + i * Tile::ROW_STEP;
            if (first_row + line >= num_rows) break;
            auto* at = reinterpret_cast<Vec<T, 8>*>(stage + chunk_offset<Tile::CHUNKS>(line, chunk));
            Vec<T, 8> v = *at;
            if (table) *at = v = transformed<T>(v, factors);
            if (has_sums)
#pragma unroll
                for (int e = 0; e < 8; e++) sums[e] += to_f32(v.e[e]);
        }
    }
};

// ---- slabs -------------------------------------------------------------------------------------------------------------

template <class Tile>
using Products = float[Tile::MS][Tile::NS][4];

template <class Tile>
__device__ __forceinline__ void flush(Products<Tile>& total, Products<Tile>& products) {
#pragma unroll
    for (int i = 0; i < Tile::MS * Tile::NS * 4; i++) {
        (&total[0][0][0])[i] += (&products[0][0][0])[i];
        (&products[0][0][0])[i] = 0.0f;
    }
}

// Adds up the warps' products in order; stores those of channels that exist.
template <class Tile>
__device__ __forceinline__ void store_products(const GramMomentsParams& p, const TilePair& pair, const Products<Tile>& total,
                                               float* shared, float* partial) {
    constexpr int TILE = Tile::TILE;
    const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32, of_tile = warp % Tile::WARPS;
    const int row = of_tile / Tile::WARPS_N * 16 + lane / 4;
    const int column = of_tile % Tile::WARPS_N * Tile::NS * 8 + lane % 4 * 2;
    float* own = shared + warp / Tile::WARPS * TILE * TILE;  // [WARPS_K][TILE][TILE]
#pragma unroll
    for (int m = 0; m < Tile::MS; m++)
#pragma unroll
        for (int n = 0; n < Tile::NS; n++)
#pragma unroll
            for (int e = 0; e < 4; e++)
                own[(row + m * 16 + e / 2 * 8) * TILE + column + n * 8 + e % 2] = total[m][n][e];
    __syncthreads();
    for (int i = threadIdx.x; i < TILE * TILE; i += THREADS) {
        const int a = pair.first * TILE + i / TILE, b = pair.second * TILE + i % TILE;
        if (a >= p.channels || b >= p.channels) continue;
        double sum = 0.0;
#pragma unroll
        for (int k = 0; k < Tile::WARPS_K; k++) sum += double(shared[k * TILE * TILE + i]);
        partial[p.channels + int64_t(a) * p.channels + b] = float(sum);
    }
}

// Adds up the threads' sums of each channel in order. shared: f64 [8 warps][TILE].
template <class Tile>
__device__ __forceinline__ void store_sums(const GramMomentsParams& p, int tile, const float (&sums)[8], double* shared,
                                           float* partial) {
    const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
#pragma unroll
    for (int e = 0; e < 8; e++) {
        const double sum = warp_reduce<32, Tile::CHUNKS>(double(sums[e]), Sum());
        if (lane < Tile::CHUNKS) shared[warp * Tile::TILE + lane * 8 + e] = sum;
    }
    __syncthreads();
    const int c = tile * Tile::TILE + int(threadIdx.x);
    if (threadIdx.x >= Tile::TILE || c >= p.channels) return;
    double sum = 0.0;
#pragma unroll
    for (int i = 0; i < 8; i++) sum += shared[i * Tile::TILE + threadIdx.x];
    partial[c] = float(sum);
}

template <class T, class Tile>
__device__ __forceinline__ void moments(const GramMomentsParams& p, unsigned char* shared) {
    const int tiles = (p.channels + Tile::TILE - 1) / Tile::TILE, pairs = tiles * (tiles + 1) / 2;
    const int slab_idx = int(blockIdx.x) / pairs;
    const TilePair pair = tile_pair(int(blockIdx.x) - slab_idx * pairs, tiles);
    const bool is_diagonal = pair.first == pair.second;
    const RowRange slab = range_of_tile(p.slabs, slab_idx);
    const int stage_bytes = (tiles > 1 ? 2 : 1) * Tile::BYTES, stages = (slab.num_rows + Tile::ROWS - 1) / Tile::ROWS;
    const int warp = int(threadIdx.x) / 32, of_tile = warp % Tile::WARPS;
    const int row = of_tile / Tile::WARPS_N * 16, column = of_tile % Tile::WARPS_N * Tile::NS * 8;
    const int first_k = warp / Tile::WARPS * Tile::ROWS_K;

    Column<T, Tile> first, second;
    first.set_up(p, slab, pair.first);
    second.set_up(p, slab, pair.second);
    const auto load = [&](int s) {
        if (s < stages) {
            unsigned char* stage = shared + s % STAGES * stage_bytes;
            first.load(stage, s * Tile::ROWS, slab.num_rows);
            if (!is_diagonal) second.load(stage + Tile::BYTES, s * Tile::ROWS, slab.num_rows);
        }
        cp_async_commit();
    };
    Products<Tile> total = {}, products = {};
    for (int s = 0; s < STAGES - 1; s++) load(s);
    for (int s = 0; s < stages; s++) {
        unsigned char* stage = shared + s % STAGES * stage_bytes;
        unsigned char* other = is_diagonal ? stage : stage + Tile::BYTES;
        cp_async_wait<STAGES - 2>();
        first.change(stage, s * Tile::ROWS, slab.num_rows, p.channels, is_diagonal);
        if (!is_diagonal) second.change(other, s * Tile::ROWS, slab.num_rows, p.channels, false);
        __syncthreads();
        load(s + STAGES - 1);
#pragma unroll
        for (int k = 0; k < Tile::ROWS_K; k += 16)
            mma_step<T, false, Tile::CHUNKS, false, Tile::CHUNKS>(products, stage + first_k * Tile::TILE * 2, row,
                                                                  other + first_k * Tile::TILE * 2, column, k);
        if ((s + 1) % Tile::FLUSH_STAGES == 0) flush<Tile>(total, products);
    }
    cp_async_wait<0>();
    flush<Tile>(total, products);
    __syncthreads();
    float* partial = reinterpret_cast<float*>(p.partials) + int64_t(slab_idx) * p.channels * (p.channels + 1);
    store_products<Tile>(p, pair, total, reinterpret_cast<float*>(shared), partial);
    if (!is_diagonal) return;
    __syncthreads();
    store_sums<Tile>(p, pair.first, first.sums, reinterpret_cast<double*>(shared), partial);
}

// ---- variants ----------------------------------------------------------------------------------------------------------

#define GRAM_MOMENTS(TILE, NAME, TYPE)                                                                 \
    extern "C" __global__ void __launch_bounds__(THREADS, 2)                                           \
        gram_moments_mma##TILE##_##NAME(const __grid_constant__ GramMomentsParams p) {                 \
        begin_grid();                                                                                  \
        DYN_SMEM(unsigned char, shared);                                                               \
        moments<TYPE, GramTile<TILE>>(p, shared);                                                      \
    }                                                                                                  \
    SIMT_EXPORT(gram_moments_mma##TILE##_##NAME)

GRAM_MOMENTS(16, bf16, __nv_bfloat16)
GRAM_MOMENTS(32, bf16, __nv_bfloat16)
GRAM_MOMENTS(64, bf16, __nv_bfloat16)
GRAM_MOMENTS(16, f16, __half)
GRAM_MOMENTS(32, f16, __half)
GRAM_MOMENTS(64, f16, __half)

// gram merge: from the sums of slabs to mean and biased covariance of each split, in f64, rounded once.
// partials [slabs][channels + channels * channels] as gram_moments leaves them        moments [splits][channels + channels * channels]
// grid   x: columns, 32 a block   y: row of the covariance   z: split        block: 32 columns x 8 groups of slabs
// shared f64 [8][3][32]
// moments is overwritten, on both sides of the diagonal. Deterministic: slabs in order within a group, then groups.
extern "C" __global__ void __launch_bounds__(THREADS) gram_merge_f32(const __grid_constant__ GramMergeParams p) {
    begin_grid();
    DYN_SMEM(double, shared);
    const int lane = int(threadIdx.x) % MERGE_COLUMNS, group = int(threadIdx.x) / MERGE_COLUMNS, c = p.channels;
    const int i = int(blockIdx.y), j = int(blockIdx.x) * MERGE_COLUMNS + lane, split = int(blockIdx.z);
    if (int(blockIdx.x + 1) * MERGE_COLUMNS <= i) return;
    const bool exists = j >= i && j < c;
    const int slabs = tiles_of_split(p.slabs, split);
    const int64_t pitch = int64_t(c) * (c + 1);
    const float* partials = reinterpret_cast<const float*>(p.partials) + int64_t(split) * p.slabs.tiles_per_split * pitch;
    double product = 0.0, sum_i = 0.0, sum_j = 0.0;
    if (exists)
#pragma unroll 4
        for (int slab = group; slab < slabs; slab += MERGE_GROUPS) {
            const float* from = partials + slab * pitch;
            product += double(from[c + i * c + j]);
            sum_i += double(from[i]);
            sum_j += double(from[j]);
        }
    double* own = shared + group * 3 * MERGE_COLUMNS + lane;
    own[0] = product, own[MERGE_COLUMNS] = sum_i, own[2 * MERGE_COLUMNS] = sum_j;
    __syncthreads();
    if (group > 0 || !exists) return;
    for (int g = 1; g < MERGE_GROUPS; g++) {
        const double* other = own + g * 3 * MERGE_COLUMNS;
        product += other[0], sum_i += other[MERGE_COLUMNS], sum_j += other[2 * MERGE_COLUMNS];
    }
    const double count = double(rows_of_split(p.slabs, split)), mean = sum_i / count;
    const float cov = float(fma(-mean, sum_j / count, product / count));
    float* to = reinterpret_cast<float*>(p.moments) + split * pitch;
    if (i == j) to[i] = float(mean);
    to[c + i * c + j] = cov;
    to[c + j * c + i] = cov;
}
SIMT_EXPORT(gram_merge_f32)
