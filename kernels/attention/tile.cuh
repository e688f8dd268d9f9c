// What the attention kernels share: rows of D elements in shared memory, scores between two tiles of rows, sums over rows.
//
// A block of 8 warps keeps RESIDENT rows (queries forward and for their gradient, keys for theirs) and lets the other rows stream
// past, STREAMED at a time. Scores [RESIDENT][STREAMED] are formed by warps in a grid of WARPS_M x WARPS_N; what is summed
// with them, [RESIDENT][D], is cut by columns: each warp has D / 8 of them for all rows, so that the streamed tile is read once.
#pragma once
#include "../common/mma_tile.cuh"
#include "params.cuh"

constexpr int THREADS = 256;
constexpr float LOG2_E = 1.44269504088896340736f;

template <class T, int D_, int RESIDENT_, int STREAMED_>
struct Tile {
    static constexpr int D = D_, RESIDENT = RESIDENT_, STREAMED = STREAMED_;
    static constexpr int WARPS_M = RESIDENT / 16, WARPS_N = 8 / WARPS_M;
    static constexpr int COLUMNS = STREAMED / WARPS_N, NS = COLUMNS / 8;  // of a warp's scores
    static constexpr int WARP_D = D / 8, MS_D = RESIDENT / 16, NS_D = WARP_D / 8;
    static constexpr int CHUNKS = D / 8, SCORE_CHUNKS = STREAMED / 8;
    static constexpr int RESIDENT_BYTES = RESIDENT * D * 2, STREAMED_BYTES = STREAMED * D * 2;
    static constexpr int SCORES_BYTES = RESIDENT * STREAMED * 2;
    static_assert(WARPS_M * WARPS_N == 8 && NS >= 1 && NS_D >= 1, "8 warps");
    using Scores = float[1][NS][4];      // of a warp: rows 16 (warp / WARPS_N), columns COLUMNS (warp % WARPS_N)
    using Sums = float[MS_D][NS_D][4];   // of a warp: all rows, columns WARP_D warp

    static __device__ __forceinline__ int warp() { return int(threadIdx.x) / 32; }
    static __device__ __forceinline__ int lane() { return int(threadIdx.x) % 32; }
    // Row of elements 2 half, 2 half + 1 of the scores, and column of the first of them in n.
    static __device__ __forceinline__ int score_row(int half) { return warp() / WARPS_N * 16 + lane() / 4 + half * 8; }
    static __device__ __forceinline__ int score_column(int n) { return warp() % WARPS_N * COLUMNS + n * 8 + lane() % 4 * 2; }

    // The rows of one clip.
    static __device__ __forceinline__ const T* rows_of(const AttentionTensor& tensor, int rows) {
        return reinterpret_cast<const T*>(tensor.address) + place_at(row_at(int(blockIdx.y), rows, 0), tensor.pitch, 0);
    }
    template <int LINES>
    static __device__ __forceinline__ void load(unsigned char* tile, const AttentionTensor& tensor, int first, int rows,
                                                int depth) {
        load_tile<T, LINES, CHUNKS, THREADS>(tile, rows_of(tensor, rows), tensor.pitch, tensor.is_aligned, first, rows, 0,
                                             depth);
    }

    // scores = resident rows times streamed rows.
    static __device__ __forceinline__ void multiply(Scores& scores, const unsigned char* resident,
                                                    const unsigned char* streamed) {
#pragma unroll
        for (int n = 0; n < NS; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) scores[0][n][i] = 0.0f;
#pragma unroll 2
        for (int k = 0; k < D; k += 16)
            mma_step<T, true, CHUNKS, true, CHUNKS>(scores, resident, warp() / WARPS_N * 16, streamed,
                                                    warp() % WARPS_N * COLUMNS, k);
    }

    // The scores, rounded, to shared memory: [RESIDENT][STREAMED].
    static __device__ __forceinline__ void store_scores(unsigned char* tile, const Scores& scores) {
#pragma unroll
        for (int n = 0; n < NS; n++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int column = score_column(n);
                Vec<T, 2> pair;
                pair.e[0] = from_f32<T>(scores[0][n][half * 2]);
                pair.e[1] = from_f32<T>(scores[0][n][half * 2 + 1]);
                const uint32_t at = chunk_offset<SCORE_CHUNKS>(score_row(half), column / 8) + column % 8 * 2;
                *reinterpret_cast<Vec<T, 2>*>(tile + at) = pair;
            }
    }

    // sums += scores [RESIDENT][STREAMED] times streamed rows [STREAMED][D].
    static __device__ __forceinline__ void accumulate(Sums& sums, const unsigned char* scores,
                                                      const unsigned char* streamed) {
#pragma unroll
        for (int k = 0; k < STREAMED; k += 16)
            mma_step<T, true, SCORE_CHUNKS, false, CHUNKS>(sums, scores, 0, streamed, warp() * WARP_D, k);
    }

    // The sums times `factor`, rounded, to rows first .. of a clip, through shared memory that nobody else uses.
    static __device__ __forceinline__ void store(const AttentionTensor& tensor, unsigned char* tile, const Sums& sums,
                                                 float factor, int first, int rows, int depth) {
#pragma unroll
        for (int m = 0; m < MS_D; m++)
#pragma unroll
            for (int n = 0; n < NS_D; n++)
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    const int row = m * 16 + lane() / 4 + half * 8, column = warp() * WARP_D + n * 8 + lane() % 4 * 2;
                    Vec<T, 2> pair;
                    pair.e[0] = from_f32<T>(sums[m][n][half * 2] * factor);
                    pair.e[1] = from_f32<T>(sums[m][n][half * 2 + 1] * factor);
                    const uint32_t at = chunk_offset<CHUNKS>(row, column / 8) + column % 8 * 2;
                    *reinterpret_cast<Vec<T, 2>*>(tile + at) = pair;
                }
        __syncthreads();
        T* to = const_cast<T*>(rows_of(tensor, rows));
        for (int i = threadIdx.x; i < RESIDENT * CHUNKS; i += THREADS) {
            const int row = i / CHUNKS, column = i % CHUNKS * 8, left = min(depth - column, 8);
            if (first + row >= rows || left <= 0) continue;
            const Vec<T, 8> v = *reinterpret_cast<const Vec<T, 8>*>(tile + chunk_offset<CHUNKS>(row, i % CHUNKS));
            T* at = to + place_at(first + row, tensor.pitch, column);
            if (tensor.is_aligned && left == 8) {
                *reinterpret_cast<Vec<T, 8>*>(at) = v;
            } else {
#pragma unroll
                for (int e = 0; e < 8; e++)
                    if (e < left) at[e] = v.e[e];
            }
        }
    }
};
