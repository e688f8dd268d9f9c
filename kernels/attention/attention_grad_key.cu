// attention grad_key: gradients of the keys and of the values, after grad_query. In its words, [keys][queries] throughout:
//   softmax      grad_value = p' grad_output            grad_key = scale ds' query
//   dot product  grad_value = (scale s)' grad_output    grad_key = scale dp' query
// grid    x: tiles of RESIDENT keys   y: clips        block: 8 warps
// shared  keys, values [RESIDENT][D], queries, their grad_output [STREAMED][D], p and ds [RESIDENT][STREAMED], 16 bit;
//         2 x STREAMED f32. RESIDENT = STREAMED = 64, or 32 with D = 512. 145 KB at most
// needs   as forward, whose log2_sum it reads, and the delta of grad_query
// p and ds are rounded to 16 bit before they meet grad_output and the queries.
// grad_key and grad_value are overwritten. Deterministic: one block has all queries of its keys. No workspace.
#include "tile.cuh"

template <class T, int D>
struct GradKey {
    static constexpr int ROWS = D <= 256 ? 64 : 32;
    using Tile = ::Tile<T, D, ROWS, ROWS>;
    static constexpr int KEYS = Tile::RESIDENT, QUERIES = Tile::STREAMED;

    unsigned char *key, *value, *query, *grad, *probabilities, *scores;
    float *log2_sum, *delta;  // [QUERIES]

    __device__ __forceinline__ explicit GradKey(unsigned char* shared)
        : key(shared),
          value(key + Tile::RESIDENT_BYTES),
          query(value + Tile::RESIDENT_BYTES),
          grad(query + Tile::STREAMED_BYTES),
          probabilities(grad + Tile::STREAMED_BYTES),
          scores(probabilities + Tile::SCORES_BYTES),
          log2_sum(reinterpret_cast<float*>(scores + Tile::SCORES_BYTES)),
          delta(log2_sum + QUERIES) {}

    // A tile of queries and what the softmax's gradient needs of each; those that are not there have a probability of zero.
    __device__ __forceinline__ void load_queries(const AttentionParams& p, int first) const {
        Tile::template load<QUERIES>(query, p.query, first, p.queries, p.depth);
        Tile::template load<QUERIES>(grad, p.grad_output, first, p.queries, p.depth);
        cp_async_commit();
        const int row = threadIdx.x;
        if (!p.is_softmax || row >= QUERIES) return;
        const int64_t at = row_at(int(blockIdx.y), p.queries, first + row);
        const bool is_there = first + row < p.queries;
        log2_sum[row] = is_there ? reinterpret_cast<const float*>(p.log2_sum)[at] : __uint_as_float(0x7f800000u);
        delta[row] = is_there ? reinterpret_cast<const float*>(p.delta)[at] : 0.0f;
    }

    // Scores become probabilities, dp becomes ds.
    __device__ __forceinline__ void differentiate(const AttentionParams& p, typename Tile::Scores& s,
                                                  typename Tile::Scores& dp) const {
#pragma unroll
        for (int n = 0; n < Tile::NS; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int column = Tile::score_column(n) + (i & 1);
                if (p.is_softmax) {
                    s[0][n][i] = exp2f(fmaf(s[0][n][i], p.scale * LOG2_E, -log2_sum[column]));
                    dp[0][n][i] = s[0][n][i] * (dp[0][n][i] - delta[column]);
                } else {
                    s[0][n][i] *= p.scale;
                }
            }
    }

    __device__ __forceinline__ void run(const AttentionParams& p) const {
        const int first = int(blockIdx.x) * KEYS;
        typename Tile::Sums of_keys = {}, of_values = {};
        Tile::template load<KEYS>(key, p.key, first, p.keys, p.depth);
        Tile::template load<KEYS>(value, p.value, first, p.keys, p.depth);
        load_queries(p, 0);
        for (int begin = 0; begin < p.queries; begin += QUERIES) {
            cp_async_wait<0>();
            __syncthreads();  // the queries are there
            typename Tile::Scores s, dp;
            Tile::multiply(s, key, query);
            Tile::multiply(dp, value, grad);
            differentiate(p, s, dp);
            Tile::store_scores(probabilities, s);
            Tile::store_scores(scores, dp);
            __syncthreads();  // p and ds are there
            Tile::accumulate(of_values, probabilities, grad);
            Tile::accumulate(of_keys, scores, query);
            __syncthreads();  // nothing of this tile is needed any more
            if (begin + QUERIES < p.queries) load_queries(p, begin + QUERIES);
        }
        Tile::store(p.grad_key, key, of_keys, p.scale, first, p.keys, p.depth);
        Tile::store(p.grad_value, value, of_values, 1.0f, first, p.keys, p.depth);
    }
};

// ---- variants --------------------------------------------------------------------------------------------------------

#define ATTENTION_GRAD_KEY(name, T, D)                                                              \
    extern "C" __global__ void __launch_bounds__(THREADS) name(const __grid_constant__ AttentionParams p) { \
        begin_grid();                                                                                       \
        DYN_SMEM(unsigned char, shared);                                                            \
        GradKey<T, D>(shared).run(p);                                                               \
    }                                                                                               \
    SIMT_EXPORT(name)

ATTENTION_GRAD_KEY(attention_grad_key_mma64_bf16, __nv_bfloat16, 64)
ATTENTION_GRAD_KEY(attention_grad_key_mma128_bf16, __nv_bfloat16, 128)
ATTENTION_GRAD_KEY(attention_grad_key_mma256_bf16, __nv_bfloat16, 256)
ATTENTION_GRAD_KEY(attention_grad_key_mma512_bf16, __nv_bfloat16, 512)
ATTENTION_GRAD_KEY(attention_grad_key_mma64_f16, __half, 64)
ATTENTION_GRAD_KEY(attention_grad_key_mma128_f16, __half, 128)
ATTENTION_GRAD_KEY(attention_grad_key_mma256_f16, __half, 256)
ATTENTION_GRAD_KEY(attention_grad_key_mma512_f16, __half, 512)
