// attention forward: output = softmax(scale * query key') value, or scale * query key' value; bf16 or f16, f32 sums.
// query [clips][queries][d], key and value [clips][keys][d] -> output [clips][queries][d], log2_sum [clips][queries] f32
// grid    x: tiles of 64 queries   y: clips        block: 8 warps
// shared  queries [64][D], keys and values [STREAMED][D], scores [64][STREAMED], 16 bit; 3 x 64 f32. 136 KB at most
// needs   d <= D (64, 128, 256 or 512); rows that are multiples of 16 bytes are copied by cp.async, others by element
// Keys stream past: no more than one tile of scores exists. The largest score so far and the sum of exponentials are f32; when
// the largest grows, what was summed shrinks. Probabilities are rounded to 16 bit before they meet the values.
// output and log2_sum (softmax only) are overwritten. Deterministic. No workspace.
#include "tile.cuh"

template <class T, int D>
struct Forward {
    using Tile = ::Tile<T, D, 64, (D <= 256 ? 64 : 32)>;
    static constexpr int QUERIES = Tile::RESIDENT, KEYS = Tile::STREAMED;
    static_assert(Tile::WARPS_N == 2, "two halves of a row");

    unsigned char *query, *key, *value, *scores;
    float *row_max, *shrink;  // [2][QUERIES], [QUERIES]

    __device__ __forceinline__ explicit Forward(unsigned char* shared)
        : query(shared),
          key(query + Tile::RESIDENT_BYTES),
          value(key + Tile::STREAMED_BYTES),
          scores(value + Tile::STREAMED_BYTES),
          row_max(reinterpret_cast<float*>(scores + Tile::SCORES_BYTES)),
          shrink(row_max + 2 * QUERIES) {}

    // ---- one tile of keys --------------------------------------------------------------------------------------------

    // Scales the scores, in units of log2, and gives keys that are not there a probability of zero.
    static __device__ __forceinline__ void scale(typename Tile::Scores& s, float factor, int keys_left, float outside) {
#pragma unroll
        for (int n = 0; n < Tile::NS; n++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                s[0][n][i] = Tile::score_column(n) + (i & 1) < keys_left ? s[0][n][i] * factor : outside;
    }

    // The largest score of this warp's half of each row; to be read after a barrier.
    __device__ __forceinline__ void leave_max(const typename Tile::Scores& s) const {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float largest = s[0][0][half * 2];
#pragma unroll
            for (int n = 0; n < Tile::NS; n++)
                largest = fmaxf(largest, fmaxf(s[0][n][half * 2], s[0][n][half * 2 + 1]));
            largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 1));
            largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 2));
            if (Tile::lane() % 4 == 0) row_max[Tile::warp() % 2 * QUERIES + Tile::score_row(half)] = largest;
        }
    }

    // Scores become exponentials; `largest` and this thread's share of their `sum` follow.
    __device__ __forceinline__ void exponentials(typename Tile::Scores& s, float (&largest)[2], float (&sum)[2]) const {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int row = Tile::score_row(half);
            const float now = fmaxf(largest[half], fmaxf(row_max[row], row_max[QUERIES + row]));
            const float factor = exp2f(largest[half] - now);
            largest[half] = now;
            sum[half] *= factor;
#pragma unroll
            for (int n = 0; n < Tile::NS; n++)
#pragma unroll
                for (int i = half * 2; i < half * 2 + 2; i++) {
                    s[0][n][i] = exp2f(s[0][n][i] - now);
                    sum[half] += s[0][n][i];
                }
            if (Tile::warp() % 2 == 0 && Tile::lane() % 4 == 0) shrink[row] = factor;
        }
    }

    // Every row of the sums times its factor.
    static __device__ __forceinline__ void multiply_rows(typename Tile::Sums& sums, const float* factors) {
#pragma unroll
        for (int m = 0; m < Tile::MS_D; m++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float factor = factors[m * 16 + Tile::lane() / 4 + i / 2 * 8];
#pragma unroll
                for (int n = 0; n < Tile::NS_D; n++) sums[m][n][i] *= factor;
            }
    }

    // ---- the end of a row --------------------------------------------------------------------------------------------

    // Both halves of each row: 1 / sum to `shrink`, the logarithm to memory.
    __device__ __forceinline__ void finish(const AttentionParams& p, int first, const float (&largest)[2], float (&sum)[2]) const {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            sum[half] += __shfl_xor_sync(~0u, sum[half], 1);
            sum[half] += __shfl_xor_sync(~0u, sum[half], 2);
            if (Tile::lane() % 4 == 0) row_max[Tile::warp() % 2 * QUERIES + Tile::score_row(half)] = sum[half];
        }
        __syncthreads();
        float* log2_sum = reinterpret_cast<float*>(p.log2_sum) + row_at(int(blockIdx.y), p.queries, first);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int row = Tile::score_row(half);
            if (Tile::warp() % 2 != 0 || Tile::lane() % 4 != 0) continue;
            const float all = row_max[row] + row_max[QUERIES + row];
            shrink[row] = 1.0f / all;
            if (first + row < p.queries) log2_sum[row] = largest[half] + log2f(all);
        }
        __syncthreads();
    }

    __device__ __forceinline__ void run(const AttentionParams& p) const {
        const int first = int(blockIdx.x) * QUERIES;
        const float factor = p.is_softmax ? p.scale * LOG2_E : p.scale;
        const float outside = p.is_softmax ? -__uint_as_float(0x7f800000u) : 0.0f;
        float largest[2] = {outside, outside}, sum[2] = {0.0f, 0.0f};
        typename Tile::Sums sums = {};
        Tile::template load<QUERIES>(query, p.query, first, p.queries, p.depth);
        Tile::template load<KEYS>(key, p.key, 0, p.keys, p.depth);
        cp_async_commit();
        for (int begin = 0; begin < p.keys; begin += KEYS) {
            cp_async_wait<0>();
            __syncthreads();  // the keys are there; the last values and scores are not needed any more
            Tile::template load<KEYS>(value, p.value, begin, p.keys, p.depth);
            cp_async_commit();
            typename Tile::Scores s;
            Tile::multiply(s, query, key);
            scale(s, factor, p.keys - begin, outside);
            if (p.is_softmax) leave_max(s);
            __syncthreads();  // the keys are not needed any more
            if (begin + KEYS < p.keys) Tile::template load<KEYS>(key, p.key, begin + KEYS, p.keys, p.depth);
            cp_async_commit();
            if (p.is_softmax) exponentials(s, largest, sum);
            Tile::store_scores(scores, s);
            cp_async_wait<1>();
            __syncthreads();  // values, scores and factors are there
            if (p.is_softmax) multiply_rows(sums, shrink);
            Tile::accumulate(sums, scores, value);
        }
        cp_async_wait<0>();
        __syncthreads();
        if (p.is_softmax) {
            finish(p, first, largest, sum);
            multiply_rows(sums, shrink);
        }
        Tile::store(p.output, query, sums, 1.0f, first, p.queries, p.depth);
    }
};

// ---- variants --------------------------------------------------------------------------------------------------------

#define ATTENTION_FORWARD(name, T, D)                                                                   \
    extern "C" __global__ void __launch_bounds__(THREADS, D <= 256 ? 2 : 1) name(const __grid_constant__ AttentionParams p) { \
        begin_grid();                                                                                                         \
        DYN_SMEM(unsigned char, shared);                                                                \
        Forward<T, D>(shared).run(p);                                                                   \
    }                                                                                                   \
    SIMT_EXPORT(name)

ATTENTION_FORWARD(attention_forward_mma64_bf16, __nv_bfloat16, 64)
ATTENTION_FORWARD(attention_forward_mma128_bf16, __nv_bfloat16, 128)
ATTENTION_FORWARD(attention_forward_mma256_bf16, __nv_bfloat16, 256)
ATTENTION_FORWARD(attention_forward_mma512_bf16, __nv_bfloat16, 512)
ATTENTION_FORWARD(attention_forward_mma64_f16, __half, 64)
ATTENTION_FORWARD(attention_forward_mma128_f16, __half, 128)
ATTENTION_FORWARD(attention_forward_mma256_f16, __half, 256)
ATTENTION_FORWARD(attention_forward_mma512_f16, __half, 512)
