// The matrix tile of a block: its place in the convolution, its shared memory, and the products.
#pragma once
#include "../common/storage.cuh"
#include "params.cuh"

constexpr int THREADS = 256;
constexpr int TILE_K = 64;
constexpr int CHUNKS_K = TILE_K / 8;

// Eight warps; each makes WARP_M x WARP_N of the tile.
template <int TILE_N>
struct Tile {
    static_assert(TILE_N == 128 || TILE_N == 64 || TILE_N == 32 || TILE_N == 16 || TILE_N == 8, "warps and mmas fill it");
    static constexpr int N = TILE_N, M = N >= 32 ? 128 : 4096 / N;
    static constexpr int WARP_N = N >= 32 ? 32 : N, WARPS_N = N / WARP_N, WARP_M = M * WARPS_N / 8;
    static constexpr int MMAS_M = WARP_M / 16, MMAS_N = WARP_N / 8;
    static constexpr int CHUNKS_N = N / 8;
    static constexpr int A_BYTES = M * TILE_K * 2, B_BYTES = N * TILE_K * 2;
    // The f32 sums on their way out: rows of N + 8 floats, so that four rows of 8 floats lie in different banks.
    static constexpr int SUMS_PITCH = N + 8;
    static constexpr int SUMS_BYTES = M * SUMS_PITCH * 4;
    // What the threads of a column bring together, one f64 quadruple a thread at most.
    static constexpr int SCRATCH_BYTES = THREADS * 32;
};

constexpr int TILE_M = Tile<128>::M;  // of all tiles of 32 columns and more

// What a block keeps in shared memory for all of its work, before the stages. src/ops/conv3d/plan.rs counts the bytes.
struct BlockMemory {
    Place* rows;        // [TILE_M] where a row reads with a tap at distance 0; OUTSIDE where there is no such row
    uint32_t* targets;  // [TILE_M] position of the target
    uint32_t* flag;
    Place* taps;          // [taps] distance of each tap of the row class
    int32_t* filter_tap;  // [taps] its number in the filter
    uint8_t* stages;
};
HOST_DEVICE int32_t block_memory_bytes(int32_t taps) { return (TILE_M * 20 + 16 + taps * 20 + 127) / 128 * 128; }

__device__ __forceinline__ BlockMemory block_memory(uint8_t* shared, int taps) {
    Place* rows = reinterpret_cast<Place*>(shared);
    Place* tap_places = rows + TILE_M + 1;
    uint32_t* flag = reinterpret_cast<uint32_t*>(rows + TILE_M);
    int32_t* filter_tap = reinterpret_cast<int32_t*>(tap_places + taps);
    return {rows, reinterpret_cast<uint32_t*>(filter_tap + taps), flag, tap_places, filter_tap,
            shared + block_memory_bytes(taps)};
}

// Fills rows, targets and taps; a __syncthreads lies before their use.
__device__ __forceinline__ void set_up(const BlockMemory& m, const ConvGather& g, const Run& tile,
                                       const RowClass& cls) {
    const bool grad = g.is_grad;
    const int st = grad ? g.t.output : g.t.input, sh = grad ? g.h.output : g.h.input, sw = grad ? g.w.output : g.w.input;
    const int tt = grad ? g.t.input : g.t.output, th = grad ? g.h.input : g.h.output, tw = grad ? g.w.input : g.w.output;
#pragma unroll 1
    for (int r = threadIdx.x; r < TILE_M; r += THREADS) {
        m.rows[r] = {0, OUTSIDE, OUTSIDE, 0};
        m.targets[r] = 0;
        if (r >= int(tile.num_rows)) continue;
        const Position q = position_of_row(tile.first_row + r, cls.t.rows, cls.h.rows, cls.w.rows);
        m.rows[r] = place(q.n, q.t * cls.t.row_step, q.h * cls.h.row_step, q.w * cls.w.row_step, st, sh, sw);
        const Position to = {q.n, cls.t.target(q.t), cls.h.target(q.h), cls.w.target(q.w)};
        m.targets[r] = uint32_t(row_of_position(to, tt, th, tw));
    }
    const int per_frame = cls.h.taps * cls.w.taps;
#pragma unroll 1
    for (int j = threadIdx.x; j < cls.t.taps * per_frame; j += THREADS) {
        const int jt = j / per_frame, jh = (j - jt * per_frame) / cls.w.taps, jw = j - (jt * cls.h.taps + jh) * cls.w.taps;
        m.taps[j] = place(0, cls.t.offset(jt), cls.h.offset(jh), cls.w.offset(jw), st, sh, sw);
        m.filter_tap[j] = (cls.t.tap(jt) * g.h.filter + cls.h.tap(jh)) * g.w.filter + cls.w.tap(jw);
    }
}

// ---- products ----------------------------------------------------------------------------------------------------------

template <class T>
constexpr bool IS_BF16 = false;
template <>
constexpr bool IS_BF16<__nv_bfloat16> = true;

// acc += A B over the first `chunks` of TILE_K. a: [TILE_M][TILE_K]; b: [N][TILE_K], or [TILE_K][N] where B_IS_K_MAJOR.
template <class T, int N, bool B_IS_K_MAJOR>
__device__ __forceinline__ void multiply(float (&acc)[Tile<N>::MMAS_M][Tile<N>::MMAS_N][4], uint32_t a, uint32_t b, int chunks) {
    using Tile = Tile<N>;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int warp_m = warp / Tile::WARPS_N * Tile::WARP_M, warp_n = warp % Tile::WARPS_N * 32;
#pragma unroll
    for (int k = 0; k < CHUNKS_K; k += 2) {
        if (k >= chunks) break;
        uint32_t fa[Tile::MMAS_M][4], fb[2][4];
#pragma unroll
        for (int i = 0; i < Tile::MMAS_M; i++)
            ldmatrix<4, false>(fa[i], a + chunk_byte<CHUNKS_K>(warp_m + i * 16 + lane % 16, k + lane / 16));
#pragma unroll
        for (int j = 0; j < 2; j++) {
            const int n = warp_n + j * 16;
            if constexpr (B_IS_K_MAJOR)
                ldmatrix<4, true>(fb[j], b + chunk_byte<Tile::CHUNKS_N>(k * 8 + lane % 16, n / 8 + lane / 16));
            else
                ldmatrix<4, false>(fb[j], b + chunk_byte<CHUNKS_K>(n + lane / 16 * 8 + lane % 8, k + lane / 8 % 2));
        }
#pragma unroll
        for (int i = 0; i < Tile::MMAS_M; i++)
#pragma unroll
            for (int j = 0; j < 4; j++)
                mma_m16n8k16<IS_BF16<T>>(acc[i][j], fa[i],
                                         *reinterpret_cast<const uint32_t(*)[2]>(&fb[j / 2][j % 2 * 2]));
    }
}

// The sums of the tile to shared memory: [TILE_M][SUMS_PITCH].
template <int N>
__device__ __forceinline__ void store_sums(float* to, const float (&acc)[Tile<N>::MMAS_M][Tile<N>::MMAS_N][4]) {
    using Tile = Tile<N>;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int row = warp / Tile::WARPS_N * Tile::WARP_M + lane / 4, column = warp % Tile::WARPS_N * Tile::WARP_N + lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < Tile::MMAS_M; i++)
#pragma unroll
        for (int j = 0; j < Tile::MMAS_N; j++)
#pragma unroll
            for (int half = 0; half < 2; half++)
                *reinterpret_cast<float2*>(to + (row + i * 16 + half * 8) * Tile::SUMS_PITCH + column + j * 8) =
                    make_float2(acc[i][j][half * 2], acc[i][j][half * 2 + 1]);
}
