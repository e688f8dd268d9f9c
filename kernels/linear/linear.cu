// linear forward, grad_input, grad_weight: bf16 or f16 in, f32 sums, 16-bit or f32 out, for few rows and any sizes.
// C[m][n] = sum over k of A(m, k) B(n, k)
//   forward      m positions, n c_out,  k c_in        A input  [p][c_in]    B weight [c_out][c_in]   + bias [c_out]
//   grad_input   m positions, n c_in,   k c_out       A grad   [p][c_out]   B weight [c_out][c_in]
//   grad_weight  m c_out,     n c_in,   k positions   A grad   [p][c_out]   B input  [p][c_in]       and grad_bias [c_out]
// grid    x: tiles of n, and one more column of blocks for grad_bias   y: tiles of m   z: splits of k
// block   4 warps: 2 x 2 with TILE_M 64, 1 x 4 with TILE_M 16
// shared  STAGES x (TILE_M + TILE_N) x TILE_K 16-bit elements, chunks of 16 bytes exchanged by line
// needs   sizes below 2^30; lines that are multiples of 16 bytes are copied by cp.async, others element by element
// output and grad_bias are overwritten; those of grad_weight may be added to (accumulates), so that a batch whose clips come in
// several launches has the bits of one. Deterministic: the last block of a tile adds the splits' partial sums in their order.
// With several splits the workspace holds partial sums, and tickets that are zero before and after.
#include "../common/mma_tile.cuh"
#include "../common/ticket.cuh"
#include "mapping.cuh"
#include "params.cuh"

constexpr int THREADS = 128;
constexpr int TILE_N = 64;
constexpr int TILE_K = 64;
constexpr int STAGES = 3;

template <class T, int TILE_M_, bool A_HAS_K, bool B_HAS_K>
struct Linear {
    static constexpr int TILE_M = TILE_M_;
    static constexpr int WARPS_M = TILE_M == 64 ? 2 : 1, WARPS_N = 4 / WARPS_M;
    static constexpr int ROWS = TILE_M / WARPS_M, COLUMNS = TILE_N / WARPS_N;  // of a warp
    static constexpr int MS = ROWS / 16, NS = COLUMNS / 8;
    static constexpr int A_LINES = A_HAS_K ? TILE_M : TILE_K, A_CHUNKS = (A_HAS_K ? TILE_K : TILE_M) / 8;
    static constexpr int B_LINES = B_HAS_K ? TILE_N : TILE_K, B_CHUNKS = (B_HAS_K ? TILE_K : TILE_N) / 8;
    static constexpr int A_BYTES = TILE_M * TILE_K * 2, STAGE_BYTES = A_BYTES + TILE_N * TILE_K * 2;
    using Sums = float[MS][NS][4];  // of a warp's tile, as mma leaves them

    // ---- products ----------------------------------------------------------------------------------------------------

    static __device__ __forceinline__ void load(const LinearParams& p, unsigned char* stage, const KRange& range) {
        const int k = range.begin;
        const int m = int(blockIdx.y) * TILE_M, n = int(blockIdx.x) * TILE_N;
        load_tile<T, A_LINES, A_CHUNKS, THREADS>(stage, reinterpret_cast<const T*>(p.a.address), p.a.pitch,
                                                 p.a.is_aligned, A_HAS_K ? m : k, A_HAS_K ? p.m : range.end, A_HAS_K ? k : m,
                                                 A_HAS_K ? range.end : p.m);
        load_tile<T, B_LINES, B_CHUNKS, THREADS>(stage + A_BYTES, reinterpret_cast<const T*>(p.b.address), p.b.pitch,
                                                 p.b.is_aligned, B_HAS_K ? n : k, B_HAS_K ? p.n : range.end, B_HAS_K ? k : n,
                                                 B_HAS_K ? range.end : p.n);
    }

    static __device__ __forceinline__ void multiply(Sums& sums, const unsigned char* stage, int num_k) {
        const int warp = int(threadIdx.x) / 32;
#pragma unroll
        for (int k = 0; k < TILE_K; k += 16) {
            if (k >= num_k) break;
            mma_step<T, A_HAS_K, A_CHUNKS, B_HAS_K, B_CHUNKS>(sums, stage, warp / WARPS_N * ROWS, stage + A_BYTES,
                                                              warp % WARPS_N * COLUMNS, k);
        }
    }

    // The products of this block's split.
    static __device__ __forceinline__ void sum_products(const LinearParams& p, unsigned char* shared, Sums& sums) {
        const KRange range = k_range(p.k, p.k_per_split, int(blockIdx.z));
        const int tiles = num_stages(range, p.k_together, TILE_K);
        const auto stage = [&](int i) { return stage_range(range, p.k_together, TILE_K, i); };
        for (int i = 0; i < STAGES - 1; i++) {
            if (i < tiles) load(p, shared + i * STAGE_BYTES, stage(i));
            cp_async_commit();
        }
        for (int i = 0; i < tiles; i++) {
            cp_async_wait<STAGES - 2>();
            __syncthreads();
            const int next = i + STAGES - 1;
            if (next < tiles) load(p, shared + next % STAGES * STAGE_BYTES, stage(next));
            cp_async_commit();
            const KRange now = stage(i);
            multiply(sums, shared + i % STAGES * STAGE_BYTES, now.end - now.begin);
        }
        cp_async_wait<0>();
    }

    // ---- splits ------------------------------------------------------------------------------------------------------

    // Whether this block has the sums of all splits and stores them.
    static __device__ __forceinline__ bool join_splits(const LinearParams& p, uint32_t* flag, Sums& sums) {
        const int splits = gridDim.z, tile = int(blockIdx.y) * p.n_tiles + int(blockIdx.x);
        constexpr int TILE = TILE_M * TILE_N;
        float* partials = reinterpret_cast<float*>(p.partials) + threadIdx.x;
        float* own = partials + partial_at(tile, splits, int(blockIdx.z), TILE);
        float* flat = &sums[0][0][0];
#pragma unroll
        for (int i = 0; i < MS * NS * 4; i++) own[i * THREADS] = flat[i];
        if (!is_last(BlockTeam(), reinterpret_cast<uint32_t*>(p.tickets) + tile, splits, flag)) return false;
#pragma unroll
        for (int i = 0; i < MS * NS * 4; i++) flat[i] = 0.0f;
        for (int split = 0; split < splits; split++) {
            const float* from = partials + partial_at(tile, splits, split, TILE);
#pragma unroll
            for (int i = 0; i < MS * NS * 4; i++) flat[i] += from[i * THREADS];
        }
        return true;
    }

    // ---- stores ------------------------------------------------------------------------------------------------------

    template <class Out>
    static __device__ __forceinline__ void store(const LinearParams& p, const Sums& sums) {
        const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
        const int first_row = int(blockIdx.y) * TILE_M + warp / WARPS_N * ROWS + lane / 4;
        const int first_column = int(blockIdx.x) * TILE_N + warp % WARPS_N * COLUMNS + lane % 4 * 2;
        const float* bias = reinterpret_cast<const float*>(p.bias);
#pragma unroll
        for (int n = 0; n < NS; n++) {
            const int column = first_column + n * 8;
            if (column >= p.n) continue;
            const bool has_second = column + 1 < p.n;
            const float of_first = bias ? bias[column] : 0.0f, of_second = bias && has_second ? bias[column + 1] : 0.0f;
#pragma unroll
            for (int i = 0; i < MS * 2; i++) {
                const int row = first_row + i * 8;
                if (row >= p.m) continue;
                Out* to = reinterpret_cast<Out*>(p.output) + place_at(row, p.output_pitch, column);
                Vec<Out, 2> pair;
                pair.e[0] = from_f32<Out>(sums[i / 2][n][i % 2 * 2] + of_first);
                pair.e[1] = from_f32<Out>(sums[i / 2][n][i % 2 * 2 + 1] + of_second);
                if (p.are_pairs && has_second) {
                    *reinterpret_cast<Vec<Out, 2>*>(to) = pair;
                } else {
                    to[0] = pair.e[0];
                    if (has_second) to[1] = pair.e[1];
                }
            }
        }
    }

    // Goes on from the f32 output.
    static __device__ __forceinline__ void load_sums(const LinearParams& p, Sums& sums) {
        const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
        const int first_row = int(blockIdx.y) * TILE_M + warp / WARPS_N * ROWS + lane / 4;
        const int first_column = int(blockIdx.x) * TILE_N + warp % WARPS_N * COLUMNS + lane % 4 * 2;
#pragma unroll
        for (int n = 0; n < NS; n++) {
#pragma unroll
            for (int i = 0; i < MS * 4; i++) {
                const int row = first_row + i / 2 * 8, column = first_column + n * 8 + i % 2;
                if (row < p.m && column < p.n)
                    sums[i / 4][n][i % 4] = reinterpret_cast<const float*>(p.output)[place_at(row, p.output_pitch, column)];
            }
        }
    }

    // Sums of A over k: each thread takes every GROUPS-th line of one row of the output, then the groups are added in order; all of
    // it for each k_together lines, whose sums are added in order.
    static __device__ __forceinline__ void sum_bias(const LinearParams& p, float* shared) {
        constexpr int GROUPS = THREADS / TILE_M;
        const int column = int(threadIdx.x) % TILE_M, group = int(threadIdx.x) / TILE_M;
        const int m = int(blockIdx.y) * TILE_M + column;
        const T* from = reinterpret_cast<const T*>(p.a.address) + m;
        float* to = reinterpret_cast<float*>(p.grad_bias) + m;
        const bool stores = group == 0 && m < p.m;
        float total = stores && p.accumulates ? *to : 0.0f;
        for (int first = 0; first < p.k; first += p.k_together) {
            const int end = min(p.k - first, p.k_together) + first;
            float sum = 0.0f;
            if (m < p.m)
                for (int k = first + group; k < end; k += GROUPS) sum += to_f32(from[place_at(k, p.a.pitch, 0)]);
            shared[threadIdx.x] = sum;
            __syncthreads();
            for (int other = 1; other < GROUPS; other++) sum += shared[other * TILE_M + column];
            total += sum;
            __syncthreads();  // the next round writes where this one reads
        }
        if (stores) *to = total;
    }

    static __device__ __forceinline__ void run(const LinearParams& p) {
        DYN_SMEM(unsigned char, shared);  // [STAGES][STAGE_BYTES]
        if constexpr (!A_HAS_K) {
            if (int(blockIdx.x) == p.n_tiles) {
                if (blockIdx.z == 0) sum_bias(p, reinterpret_cast<float*>(shared));
                return;
            }
        }
        Sums sums = {};
        if constexpr (!A_HAS_K)
            if (p.accumulates) load_sums(p, sums);
        sum_products(p, shared, sums);
        __syncthreads();  // the flag takes the place of a tile
        if (gridDim.z > 1 && !join_splits(p, reinterpret_cast<uint32_t*>(shared), sums)) return;
        if (p.is_output_f32) store<float>(p, sums);
        else store<T>(p, sums);
    }
};

// ---- variants --------------------------------------------------------------------------------------------------------

#define LINEAR_VARIANT(name, T, TILE_M, A_HAS_K, B_HAS_K)                                            \
    extern "C" __global__ void __launch_bounds__(THREADS) name(const __grid_constant__ LinearParams p) { \
        begin_grid();                                                                                    \
        Linear<T, TILE_M, A_HAS_K, B_HAS_K>::run(p);                                                 \
    }                                                                                                \
    SIMT_EXPORT(name)

LINEAR_VARIANT(linear_forward_mma16x64_bf16, __nv_bfloat16, 16, true, true)
LINEAR_VARIANT(linear_forward_mma64x64_bf16, __nv_bfloat16, 64, true, true)
LINEAR_VARIANT(linear_forward_mma16x64_f16, __half, 16, true, true)
LINEAR_VARIANT(linear_forward_mma64x64_f16, __half, 64, true, true)
LINEAR_VARIANT(linear_grad_input_mma16x64_bf16, __nv_bfloat16, 16, true, false)
LINEAR_VARIANT(linear_grad_input_mma64x64_bf16, __nv_bfloat16, 64, true, false)
LINEAR_VARIANT(linear_grad_input_mma16x64_f16, __half, 16, true, false)
LINEAR_VARIANT(linear_grad_input_mma64x64_f16, __half, 64, true, false)
LINEAR_VARIANT(linear_grad_weight_mma16x64_bf16, __nv_bfloat16, 16, false, false)
LINEAR_VARIANT(linear_grad_weight_mma64x64_bf16, __nv_bfloat16, 64, false, false)
LINEAR_VARIANT(linear_grad_weight_mma16x64_f16, __half, 16, false, false)
LINEAR_VARIANT(linear_grad_weight_mma64x64_f16, __half, 64, false, false)
