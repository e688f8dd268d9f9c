// gram gradient: the backward pass of a batch norm behind y = W x, from small tables instead of y: see docs/gram_batch_norm.md.
// With P = sum of g (x - m)' over a split, n positions, and s = sum of g (y - mean) = <w_o, P_o>, of each split and output channel
//     A = gamma invstd    B = -A invstd^2 s / n    C = -A sum(g) / n - B mean            dy = A g + B y + C
//     dgamma = sum over splits of invstd s         dbeta = sum of g
//     dW = sum over splits of diag(A) P + diag(B) n W Cov
//     dx = g (A W) + x (W' diag(B) W) + C W
// products [splits][c_out][c_in] (of x, not of x - m), grad_sums [splits][c_out], moments [splits][c_in + c_in * c_in],
// filter 16-bit [c_out][c_in] -> grad_table, back_filter 16-bit [splits][c_out + c_in][c_in], back_shift, grad_filter, grad_gamma,
// grad_beta; gradients of parameters are f32 and overwritten, or added to, in the order of the splits.
//
// gram_gradient_rows      what belongs to an output channel: grad_table, grad_gamma, grad_beta, the rows A W.
// grid  x: c_out / WARPS, rounded up     block: WARPS warps, one a channel; no shared memory
// gram_gradient_products  dW, W' diag(B) W and C W, after the launch above. Tiles of TILE x TILE, sums f32 in the order of gemm_k.
// grid  x: tiles of dW, then those of all splits' W' diag(B) W     block: 256 threads, 2 x 2 sums each
// shared  two steps of operands of TILE x STEP_K f32
// Deterministic. No workspace, any c_in and c_out.
#include "../common/reduce.cuh"
#include "../common/storage.cuh"
#include "gradient_params.cuh"

constexpr int WARPS = 4;
constexpr int TILE = 32;
constexpr int STEP_K = 32;
constexpr int THREADS = 256;
static_assert(TILE == STEP_K, "an operand's step is a square");

__device__ __forceinline__ const float* read_f32(uint64_t address) { return reinterpret_cast<const float*>(address); }
__device__ __forceinline__ float* write_f32(uint64_t address) { return reinterpret_cast<float*>(address); }

__device__ __forceinline__ float rows_of(const GramGradientParams& p, int split) {
    return float(split == p.splits - 1 ? p.rows_of_last : p.rows_per_split);
}
__device__ __forceinline__ const float* mean_of(const GramGradientParams& p, int split) {
    return read_f32(p.moments) + int64_t(split) * (p.c_in + int64_t(p.c_in) * p.c_in);
}

template <class T>
__device__ __forceinline__ void gram_gradient_rows(const GramGradientParams& p) {
    const int lane = threadIdx.x % 32, o = blockIdx.x * WARPS + threadIdx.x / 32;
    if (o >= p.c_out) return;
    const T* w = reinterpret_cast<const T*>(p.filter) + int64_t(o) * p.c_in;
    const float gamma = read_f32(p.gamma)[o];
    // Lane 0 writes them: nobody else reads them.
    const bool goes_on = p.accumulates && lane == 0;
    float grad_gamma = goes_on ? read_f32(p.grad_gamma)[o] : 0.0f;
    float grad_beta = goes_on ? read_f32(p.grad_beta)[o] : 0.0f;
    for (int split = 0; split < p.splits; split++) {
        const float* products = read_f32(p.products) + (int64_t(split) * p.c_out + o) * p.c_in;
        const float *means = mean_of(p, split), *stats = read_f32(p.stats) + int64_t(split) * 3 * p.c_out + o;
        const float mean = stats[0], invstd = stats[p.c_out], n = rows_of(p, split);
        const float sum = read_f32(p.grad_sums)[int64_t(split) * p.c_out + o];
        // The sum of g (y - mean) is small beside those of g y: in f64 nothing more is lost than P has lost.
        double about_mean = 0.0;
        for (int i = lane; i < p.c_in; i += 32)
            about_mean += double(to_f32(w[i])) * fma(-double(sum), double(means[i]), double(products[i]));
        about_mean = warp_sum(about_mean);
        const float a = gamma * invstd, b = float(-double(a) * invstd * invstd * about_mean / n);
        const float c = fmaf(-b, mean, -a * sum / n);
        grad_gamma += float(invstd * about_mean);
        grad_beta += sum;
        if (lane == 0) {
            float* table = write_f32(p.grad_table) + int64_t(split) * 3 * p.c_out + o;
            table[0] = a, table[p.c_out] = b, table[2 * p.c_out] = c;
        }
        T* back = reinterpret_cast<T*>(p.back_filter) + (int64_t(split) * (p.c_out + p.c_in) + o) * p.c_in;
        for (int i = lane; i < p.c_in; i += 32) back[i] = from_f32<T>(a * to_f32(w[i]));
    }
    if (lane == 0) write_f32(p.grad_gamma)[o] = grad_gamma, write_f32(p.grad_beta)[o] = grad_beta;
}

// One step of both operands: left [STEP_K][TILE], right [STEP_K][TILE].
struct Operands {
    float left[STEP_K][TILE + 1], right[STEP_K][TILE + 1];
};

// Adds the products over gemm_k = 0 .. size_k - 1 of left(k, row) and right(k, column), of a thread's rows and columns: row y + 16 i,
// column x + 16 j. LEFT_IS_K_MINOR: neighbours in memory of the left operand are those along k.
template <bool LEFT_IS_K_MINOR, class Left, class Right>
__device__ __forceinline__ void multiply(Operands& shared, int size_k, Left left, Right right, float (&sums)[2][2]) {
    const int x = threadIdx.x % 16, y = threadIdx.x / 16;
    for (int first = 0; first < size_k; first += STEP_K) {
        __syncthreads();
        for (int i = threadIdx.x; i < STEP_K * TILE; i += THREADS) {
            const int k = i / TILE, at = i % TILE;
            const int left_k = LEFT_IS_K_MINOR ? at : k, left_at = LEFT_IS_K_MINOR ? k : at;
            shared.left[left_k][left_at] = first + left_k < size_k ? left(first + left_k, left_at) : 0.0f;
            shared.right[k][at] = first + k < size_k ? right(first + k, at) : 0.0f;
        }
        __syncthreads();
#pragma unroll 8
        for (int k = 0; k < STEP_K; k++)
#pragma unroll
            for (int i = 0; i < 2; i++)
#pragma unroll
                for (int j = 0; j < 2; j++)
                    sums[i][j] = fmaf(shared.left[k][y + 16 * i], shared.right[k][x + 16 * j], sums[i][j]);
    }
}

// A tile of dW: rows are output channels, columns those of the input.
template <class T>
__device__ __forceinline__ void grad_filter_tile(const GramGradientParams& p, Operands& shared, int first_o, int first_i) {
    const int x = threadIdx.x % 16, y = threadIdx.x / 16;
    const T* w = reinterpret_cast<const T*>(p.filter);
    float* grad_filter = write_f32(p.grad_filter);
    const auto for_each = [&](auto use) {
#pragma unroll
        for (int i = 0; i < 2; i++)
#pragma unroll
            for (int j = 0; j < 2; j++) {
                const int o = first_o + y + 16 * i, c = first_i + x + 16 * j;
                if (o < p.c_out && c < p.c_in) use(i, j, o, c);
            }
    };
    float sums[2][2] = {};
    if (p.accumulates) for_each([&](int i, int j, int o, int c) { sums[i][j] = grad_filter[int64_t(o) * p.c_in + c]; });
    for (int split = 0; split < p.splits; split++) {
        const float* table = read_f32(p.grad_table) + int64_t(split) * 3 * p.c_out;
        const float *means = mean_of(p, split), *covariance = means + p.c_in, n = rows_of(p, split);
        const float* grad_sums = read_f32(p.grad_sums) + int64_t(split) * p.c_out;
        const float* products = read_f32(p.products) + int64_t(split) * p.c_out * p.c_in;
        float of_covariance[2][2] = {};
        const auto left = [&](int k, int row) {
            return first_o + row < p.c_out ? to_f32(w[int64_t(first_o + row) * p.c_in + k]) : 0.0f;
        };
        const auto right = [&](int k, int column) {
            return first_i + column < p.c_in ? covariance[int64_t(k) * p.c_in + first_i + column] : 0.0f;
        };
        multiply<true>(shared, p.c_in, left, right, of_covariance);
        for_each([&](int i, int j, int o, int c) {
            const float about_mean = fmaf(-grad_sums[o], means[c], products[int64_t(o) * p.c_in + c]);
            sums[i][j] += fmaf(table[o], about_mean, table[p.c_out + o] * n * of_covariance[i][j]);
        });
    }
    for_each([&](int i, int j, int o, int c) { grad_filter[int64_t(o) * p.c_in + c] = sums[i][j]; });
}

// A tile of a split's W' diag(B) W; the first row of tiles makes C W too, as one more product.
template <class T>
__device__ __forceinline__ void back_filter_tile(const GramGradientParams& p, Operands& shared, int split, int first_row, int first_i) {
    const int x = threadIdx.x % 16, y = threadIdx.x / 16;
    const T* w = reinterpret_cast<const T*>(p.filter);
    const float* table = read_f32(p.grad_table) + int64_t(split) * 3 * p.c_out;
    const auto of_filter = [&](int o, int c) { return c < p.c_in ? to_f32(w[int64_t(o) * p.c_in + c]) : 0.0f; };
    const auto right = [&](int o, int column) { return of_filter(o, first_i + column); };
    float sums[2][2] = {};
    multiply<false>(shared, p.c_out, [&](int o, int row) { return table[p.c_out + o] * of_filter(o, first_row + row); }, right, sums);
    T* back = reinterpret_cast<T*>(p.back_filter) + (int64_t(split) * (p.c_out + p.c_in) + p.c_out) * p.c_in;
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
        for (int j = 0; j < 2; j++) {
            const int row = first_row + y + 16 * i, c = first_i + x + 16 * j;
            if (row < p.c_in && c < p.c_in) back[int64_t(row) * p.c_in + c] = from_f32<T>(sums[i][j]);
        }
    if (first_row > 0) return;
    float shift[2][2] = {};
    multiply<false>(shared, p.c_out, [&](int o, int row) { return row == 0 ? table[2 * p.c_out + o] : 0.0f; }, right, shift);
    if (y == 0)
#pragma unroll
        for (int j = 0; j < 2; j++)
            if (first_i + x + 16 * j < p.c_in)
                write_f32(p.back_shift)[int64_t(split) * p.c_in + first_i + x + 16 * j] = shift[0][j];
}

template <class T>
__device__ __forceinline__ void gram_gradient_products(const GramGradientParams& p) {
    __shared__ Operands shared;
    const int columns = (p.c_in + TILE - 1) / TILE, of_filter = (p.c_out + TILE - 1) / TILE * columns;
    const int tile = int(blockIdx.x) - of_filter;
    if (tile < 0) {
        grad_filter_tile<T>(p, shared, int(blockIdx.x) / columns * TILE, int(blockIdx.x) % columns * TILE);
    } else {
        const int split = tile / (columns * columns), of_split = tile % (columns * columns);
        back_filter_tile<T>(p, shared, split, of_split / columns * TILE, of_split % columns * TILE);
    }
}

#define GRAM_GRADIENT(suffix, T)                                                                                             \
    extern "C" __global__ void __launch_bounds__(32 * WARPS)                                                                 \
        gram_gradient_rows_##suffix(const __grid_constant__ GramGradientParams p) {                                          \
        begin_grid();                                                                                                        \
        gram_gradient_rows<T>(p);                                                                                            \
    }                                                                                                                        \
    SIMT_EXPORT(gram_gradient_rows_##suffix)                                                                                 \
    extern "C" __global__ void __launch_bounds__(THREADS, 2)                                                                 \
        gram_gradient_products_##suffix(const __grid_constant__ GramGradientParams p) {                                      \
        begin_grid();                                                                                                        \
        gram_gradient_products<T>(p);                                                                                        \
    }                                                                                                                        \
    SIMT_EXPORT(gram_gradient_products_##suffix)

GRAM_GRADIENT(bf16, __nv_bfloat16)
GRAM_GRADIENT(f16, __half)
