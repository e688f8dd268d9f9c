// attention grad_query: gradient of the queries, and for the softmax `delta`, which the gradient of the keys needs too.
// With scores s = query key', probabilities p, and dp = grad_output value':
//   softmax      delta = sum over d of grad_output * output    ds = p (dp - delta)    grad_query = scale ds key
//   dot product                                                ds = dp                grad_query = scale ds key
// grid    x: tiles of RESIDENT queries   y: clips        block: 8 warps
// shared  queries, their grad_output [RESIDENT][D], keys, values [STREAMED][D], ds [RESIDENT][STREAMED], 16 bit; 2 x RESIDENT f32.
//         RESIDENT = STREAMED = 64, or 32 with D = 512. 137 KB at most
// needs   as forward, whose log2_sum and output it reads
// Scores are formed again from log2_sum; ds is rounded to 16 bit before it meets the keys.
// grad_query and delta are overwritten. Deterministic: one block has all keys of its queries. Workspace: delta.
#include "../common/reduce.cuh"
#include "tile.cuh"

template <class T, int D>
struct GradQuery {
    static constexpr int ROWS = D <= 256 ? 64 : 32;
    using Tile = ::Tile<T, D, ROWS, ROWS>;
    static constexpr int QUERIES = Tile::RESIDENT, KEYS = Tile::STREAMED;

    unsigned char *query, *grad, *key, *value, *scores;
    float *log2_sum, *delta;  // [QUERIES]

    __device__ __forceinline__ explicit GradQuery(unsigned char* shared)
        : query(shared),
          grad(query + Tile::RESIDENT_BYTES),
          key(grad + Tile::RESIDENT_BYTES),
          value(key + Tile::STREAMED_BYTES),
          scores(value + Tile::STREAMED_BYTES),
          log2_sum(reinterpret_cast<float*>(scores + Tile::SCORES_BYTES)),
          delta(log2_sum + QUERIES) {}

    // Product of grad_output and output of one row, by one warp; the same in all its lanes.
    static __device__ __forceinline__ float product_of_row(const AttentionParams& p, int row) {
        const T* a = Tile::rows_of(p.grad_output, p.queries) + place_at(row, p.grad_output.pitch, 0);
        const T* b = Tile::rows_of(p.output, p.queries) + place_at(row, p.output.pitch, 0);
        float sum = 0.0f;
        if (p.grad_output.is_aligned && p.output.is_aligned && p.depth % 8 == 0) {
            for (int c = Tile::lane() * 8; c < p.depth; c += 32 * 8) {
                const Vec<T, 8> x = *reinterpret_cast<const Vec<T, 8>*>(a + c), y = *reinterpret_cast<const Vec<T, 8>*>(b + c);
#pragma unroll
                for (int i = 0; i < 8; i++) sum = fmaf(to_f32(x.e[i]), to_f32(y.e[i]), sum);
            }
        } else {
            for (int c = Tile::lane(); c < p.depth; c += 32) sum = fmaf(to_f32(a[c]), to_f32(b[c]), sum);
        }
        return warp_sum(sum);
    }

    // What the softmax's gradient needs of each query; queries that are not there have a probability of zero.
    __device__ __forceinline__ void load_rows(const AttentionParams& p, int first) const {
        const int64_t clip = row_at(int(blockIdx.y), p.queries, 0);
        for (int row = Tile::warp(); row < QUERIES; row += 8) {
            const bool is_there = first + row < p.queries;
            const float of_row = is_there ? product_of_row(p, first + row) : 0.0f;
            if (Tile::lane() != 0) continue;
            delta[row] = of_row;
            log2_sum[row] = is_there ? reinterpret_cast<const float*>(p.log2_sum)[clip + first + row]
                                     : __uint_as_float(0x7f800000u);
            if (is_there) reinterpret_cast<float*>(p.delta)[clip + first + row] = of_row;
        }
    }

    // Scores and dp become ds.
    __device__ __forceinline__ void differentiate(const AttentionParams& p, const typename Tile::Scores& s,
                                                  typename Tile::Scores& dp, int keys_left) const {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int row = Tile::score_row(i / 2);
            const float log2_of_row = log2_sum[row], delta_of_row = delta[row];
#pragma unroll
            for (int n = 0; n < Tile::NS; n++) {
                const float probability = exp2f(fmaf(s[0][n][i], p.scale * LOG2_E, -log2_of_row));
                const bool is_there = Tile::score_column(n) + (i & 1) < keys_left;
                dp[0][n][i] = is_there ? probability * (dp[0][n][i] - delta_of_row) : 0.0f;
            }
        }
    }

    __device__ __forceinline__ void run(const AttentionParams& p) const {
        const int first = int(blockIdx.x) * QUERIES;
        typename Tile::Sums sums = {};
        if (p.is_softmax) Tile::template load<QUERIES>(query, p.query, first, p.queries, p.depth);
        Tile::template load<QUERIES>(grad, p.grad_output, first, p.queries, p.depth);
        Tile::template load<KEYS>(value, p.value, 0, p.keys, p.depth);
        Tile::template load<KEYS>(key, p.key, 0, p.keys, p.depth);
        cp_async_commit();
        if (p.is_softmax) load_rows(p, first);
        for (int begin = 0; begin < p.keys; begin += KEYS) {
            cp_async_wait<0>();
            __syncthreads();  // keys and values are there
            typename Tile::Scores s, dp;
            Tile::multiply(dp, grad, value);
            if (p.is_softmax) {
                Tile::multiply(s, query, key);
                differentiate(p, s, dp, p.keys - begin);
            }
            Tile::store_scores(scores, dp);
            __syncthreads();  // ds is there, the values are not needed any more
            const bool has_next = begin + KEYS < p.keys;
            if (has_next) Tile::template load<KEYS>(value, p.value, begin + KEYS, p.keys, p.depth);
            Tile::accumulate(sums, scores, key);
            __syncthreads();  // nor are the keys and ds
            if (has_next) Tile::template load<KEYS>(key, p.key, begin + KEYS, p.keys, p.depth);
            cp_async_commit();
        }
        Tile::store(p.grad_query, query, sums, p.scale, first, p.queries, p.depth);
    }
};

// ---- variants --------------------------------------------------------------------------------------------------------

#define ATTENTION_GRAD_QUERY(name, T, D)                                                            \
    extern "C" __global__ void __launch_bounds__(THREADS) name(const __grid_constant__ AttentionParams p) { \
        begin_grid();                                                                                       \
        DYN_SMEM(unsigned char, shared);                                                            \
        GradQuery<T, D>(shared).run(p);                                                             \
    }                                                                                               \
    SIMT_EXPORT(name)

ATTENTION_GRAD_QUERY(attention_grad_query_mma64_bf16, __nv_bfloat16, 64)
ATTENTION_GRAD_QUERY(attention_grad_query_mma128_bf16, __nv_bfloat16, 128)
ATTENTION_GRAD_QUERY(attention_grad_query_mma256_bf16, __nv_bfloat16, 256)
ATTENTION_GRAD_QUERY(attention_grad_query_mma512_bf16, __nv_bfloat16, 512)
ATTENTION_GRAD_QUERY(attention_grad_query_mma64_f16, __half, 64)
ATTENTION_GRAD_QUERY(attention_grad_query_mma128_f16, __half, 128)
ATTENTION_GRAD_QUERY(attention_grad_query_mma256_f16, __half, 256)
ATTENTION_GRAD_QUERY(attention_grad_query_mma512_f16, __half, 512)
