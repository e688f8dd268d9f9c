// conv3d backward, 1x1x1 at unit stride: the gradients of input and filter of one convolution from one reading of what both need.
// 16-bit in, f32 sums, 16-bit gradient of the input, f32 gradient of the filter.
// dy = A g + B y + C [rows][c_out], rounded    x = relu(s y_prev + b) [rows][c_in], rounded; or both as they lie in memory
// dx = dy W [rows][c_in]                       dW = dy' x [c_out][c_in]
// gemm 1: m = rows    n = c_in    k = c_out    then what grad_input does on store: add, mask, rounding, sums of batch norms
// gemm 2: m = c_out   n = c_in    k = rows     its sums stay in registers from tile to tile
//
// A block makes CI input channels of the rows of one part, tile by tile of M rows. While a tile is worked on, the rows of the next
// one come by cp.async, all that is read of them: g, y, x, what is added, what other batch norms normalised. Each element of dx and
// of x is the business of one lane, in the layout of the products: it takes what lies in shared memory before the prologue for
// mask and sums, and then leaves x there. dx goes through shared memory, so that it is stored in vectors.
//
// grid    x: columns, which share the rows of g and y   y: parts of a split   z: splits        block: 8 warps
// shared  filter [CO][CI], tables, two stages (src/ops/conv3d/backward/plan.rs counts the bytes); chunks swizzled: mma_tile.cuh
// needs   c_out <= CO; channels and pitches multiples of 8, addresses of 16 bytes; less than 2^31 rows; at most 2 batch norms;
//         the mask is that of the input: of the prologue's ReLU, or of an input that a ReLU has made
// grad_filter is overwritten, or added to (accumulates), by conv3d_backward_sum_f32 from the sums of the parts, in the order of the
// splits and of their parts. dy and dx are rounded as conv3d grad_input rounds them. Tickets are zero before the launch and after it.
// Deterministic: all orders are fixed by the rows of the whole batch, none depends on which block is last.
#include "../batch_norm/finalise.cuh"
#include "../common/mma_tile.cuh"
#include "../common/reduce.cuh"
#include "../common/ticket.cuh"
#include "backward_params.cuh"
#include "prologue.cuh"

constexpr int THREADS = 256;
// Warps that share the parts of a split where they are added up.
constexpr int SUM_WARPS = 8;

template <int ROWS, int OUT, int IN, int WARPS_OUT>
struct Shape {
    static constexpr int M = ROWS, CO = OUT, CI = IN, CHUNKS_O = CO / 8, CHUNKS_I = CI / 8;
    static constexpr int WARPS_M = M / 16, WARPS_N = 8 / WARPS_M, NS = CI / 8 / WARPS_N;                      // gemm 1
    static constexpr int MS2 = CO / 16 / WARPS_OUT, WARPS_N2 = 8 / WARPS_OUT, NS2 = CI / 8 / WARPS_N2;  // gemm 2
    static_assert(WARPS_M * WARPS_N == 8 && NS * WARPS_N * 8 == CI && NS % 2 == 0, "gemm 1");
    static_assert(MS2 * WARPS_OUT * 16 == CO && NS2 * WARPS_N2 * 8 == CI && THREADS % CHUNKS_O == 0, "gemm 2");
};

// Factors of the block's channels in its split.
template <class S>
struct Tables {
    float a[S::CO], b[S::CO], c[S::CO];
    float scale[S::CI], shift[S::CI];
    float origin[2][S::CI];
    uint32_t flag[4];
};

struct Block {
    int first_c, left;  // its first input channel; channels from there on
    int split;
    uint8_t* shared;
};

// ---- loads -------------------------------------------------------------------------------------------------------------

// Rows first_row .. first_row + M of 8 CHUNKS channels from first_c on; zero behind the last row and the last channel.
template <class T, int M, int CHUNKS>
__device__ __forceinline__ void copy_rows(uint8_t* to, uint64_t from, int pitch, int first_row, int num_rows, int first_c, int left) {
#pragma unroll
    for (int i = threadIdx.x; i < M * CHUNKS; i += THREADS) {
        const int row = i / CHUNKS, chunk = i % CHUNKS;
        const bool exists = row < num_rows && chunk * 8 < left;
        const T* at = reinterpret_cast<const T*>(from) + (exists ? place_at(first_row + row, pitch, first_c + chunk * 8) : 0);
        cp_async16(smem_u32(to + chunk_offset<CHUNKS>(row, chunk)), at, exists ? 16 : 0);
    }
}

template <class T, class S>
__device__ __forceinline__ void copy_tile(const ConvBackwardParams& p, const Block& b, int first_row, int num_rows, int slot) {
    uint8_t* stage = b.shared + p.stages_at + slot * p.stage_bytes;
    copy_rows<T, S::M, S::CHUNKS_O>(stage, p.g, p.g_pitch, first_row, num_rows, 0, p.c_out);
    if (p.grad_table) copy_rows<T, S::M, S::CHUNKS_O>(stage + p.y_at, p.y, p.y_pitch, first_row, num_rows, 0, p.c_out);
    copy_rows<T, S::M, S::CHUNKS_I>(stage + p.x_at, p.x, p.x_pitch, first_row, num_rows, b.first_c, b.left);
    if (p.add)
        copy_rows<T, S::M, S::CHUNKS_I>(b.shared + p.result_at + slot * p.result_step, p.add, p.add_pitch, first_row, num_rows,
                                        b.first_c, b.left);
    for (int k = 0; k < p.num_norms; k++)
        if (p.norm_at[k] != p.x_at)
            copy_rows<T, S::M, S::CHUNKS_I>(stage + p.norm_at[k], p.norms[k].y, p.norms[k].y_pitch, first_row, num_rows,
                                            b.first_c, b.left);
}

template <class T, class S>
__device__ __forceinline__ void load_tables(const ConvBackwardParams& p, const Block& b, Tables<S>& to) {
    for (int c = threadIdx.x; c < S::CO && p.grad_table; c += THREADS) {
        const float* from = batch_norm::floats(p.grad_table) + int64_t(b.split) * 3 * p.c_out + c;
        const bool exists = c < p.c_out;
        to.a[c] = exists ? from[0] : 0.0f, to.b[c] = exists ? from[p.c_out] : 0.0f, to.c[c] = exists ? from[2 * p.c_out] : 0.0f;
    }
    for (int c = threadIdx.x; c < S::CI; c += THREADS) {
        const bool exists = c < b.left;
        const float* from = batch_norm::floats(p.scale_shift) + int64_t(b.split) * 2 * p.c_in + b.first_c + c;
        to.scale[c] = exists && p.scale_shift ? from[0] : 1.0f, to.shift[c] = exists && p.scale_shift ? from[p.c_in] : 0.0f;
        for (int k = 0; k < p.num_norms; k++) {
            const float* mean = batch_norm::floats(p.norms[k].to.stats) + int64_t(b.split) * 3 * p.c_in + b.first_c + c;
            to.origin[k][c] = exists ? origin_near<T>(*mean) : 0.0f;
        }
    }
}

// The thread's own chunks of g become dy; rows that do not exist stay zero.
template <class T, class S>
__device__ __forceinline__ void form_dy(uint8_t* g, const uint8_t* y, const Tables<S>& tables, int num_rows) {
    JoinChunk factors;
    const int chunk = threadIdx.x % S::CHUNKS_O;
    load8(factors.scale, tables.a + chunk * 8);
    load8(factors.second_scale, tables.b + chunk * 8);
    load8(factors.shift, tables.c + chunk * 8);
#pragma unroll
    for (int row = threadIdx.x / S::CHUNKS_O; row < S::M; row += THREADS / S::CHUNKS_O) {
        const uint32_t at = chunk_offset<S::CHUNKS_O>(row, chunk);
        auto* own = reinterpret_cast<Vec<T, 8>*>(g + at);
        if (row < num_rows) *own = transformed(*own, *reinterpret_cast<const Vec<T, 8>*>(y + at), factors, false);
    }
}

// ---- what grad_input does on store -------------------------------------------------------------------------------------

// Sums over the rows of a part, of a lane's columns.
template <class S>
struct NormSums {
    float total[S::NS * 2], products[2][S::NS * 2];
};

template <class T, class S>
__device__ __forceinline__ void finish_rows(const ConvBackwardParams& p, const float (&acc)[1][S::NS][4], const Tables<S>& tables,
                                            uint8_t* stage, uint8_t* result, int num_rows, NormSums<S>& sums) {
    using Pair = Vec<T, 2>;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int first_row = warp / S::WARPS_N * 16 + lane / 4, first_c = warp % S::WARPS_N * S::NS * 8 + lane % 4 * 2;
#pragma unroll
    for (int j = 0; j < S::NS; j++) {
        const int c = first_c + j * 8;
        const float2 scale = *reinterpret_cast<const float2*>(tables.scale + c);
        const float2 shift = *reinterpret_cast<const float2*>(tables.shift + c);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int row = first_row + half * 8;
            if (row >= num_rows) continue;
            const uint32_t at = chunk_offset<S::CHUNKS_I>(row, c / 8) + lane % 4 * 4;
            float v[2] = {acc[0][j][half * 2], acc[0][j][half * 2 + 1]};
            Pair* to = reinterpret_cast<Pair*>(result + at);
            if (p.add) {
                const Pair other = *to;
                v[0] += to_f32(other.e[0]), v[1] += to_f32(other.e[1]);
            }
            Pair* x = reinterpret_cast<Pair*>(stage + p.x_at + at);
            float open[2] = {to_f32(x->e[0]), to_f32(x->e[1])};
            if (p.scale_shift) open[0] = fmaf(scale.x, open[0], shift.x), open[1] = fmaf(scale.y, open[1], shift.y);
            Pair stored;
#pragma unroll
            for (int i = 0; i < 2; i++) {
                if (p.has_mask) v[i] = open[i] > 0.0f ? v[i] : 0.0f;
                stored.e[i] = from_f32<T>(v[i]), v[i] = to_f32(stored.e[i]);
                sums.total[j * 2 + i] += v[i];
            }
            *to = stored;
#pragma unroll
            for (int k = 0; k < 2; k++) {
                if (k >= p.num_norms) break;
                const Pair y = *reinterpret_cast<const Pair*>(stage + p.norm_at[k] + at);
                const float2 origin = *reinterpret_cast<const float2*>(tables.origin[k] + c);
                sums.products[k][j * 2] = fmaf(v[0], to_f32(y.e[0]) - origin.x, sums.products[k][j * 2]);
                sums.products[k][j * 2 + 1] = fmaf(v[1], to_f32(y.e[1]) - origin.y, sums.products[k][j * 2 + 1]);
            }
            if (p.scale_shift) *x = {from_f32<T>(relu(open[0])), from_f32<T>(relu(open[1]))};
        }
    }
}

template <class T, class S>
__device__ __forceinline__ void store_result(const ConvBackwardParams& p, const Block& b, const uint8_t* result, int first_row,
                                             int num_rows) {
#pragma unroll
    for (int i = threadIdx.x; i < S::M * S::CHUNKS_I; i += THREADS) {
        const int row = i / S::CHUNKS_I, chunk = i % S::CHUNKS_I;
        if (row >= num_rows || chunk * 8 >= b.left) continue;
        T* to = reinterpret_cast<T*>(p.grad_input) + place_at(first_row + row, p.grad_input_pitch, b.first_c + chunk * 8);
        *reinterpret_cast<Vec<T, 8>*>(to) =
            *reinterpret_cast<const Vec<T, 8>*>(result + chunk_offset<S::CHUNKS_I>(row, chunk));
    }
}

// ---- sums of batch norms -----------------------------------------------------------------------------------------------

// From the lanes to one partial sum of the part for each channel. scratch: f64 [3][WARPS_M][CI]; nobody uses it before.
template <class T, class S>
__device__ __forceinline__ void store_norm_sums(const ConvBackwardParams& p, const Block& b, int part, const NormSums<S>& sums,
                                                double* scratch) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int row = 0; row < 3; row++) {
        if (row > p.num_norms) break;
#pragma unroll
        for (int i = 0; i < S::NS * 2; i++) {
            const float own = row == 0 ? sums.total[i] : sums.products[row > 0 ? row - 1 : 0][i];
            const double sum = warp_reduce<32, 4>(double(own), Sum());
            const int c = (warp % S::WARPS_N * S::NS + i / 2) * 8 + lane * 2 + i % 2;
            if (lane < 4) scratch[(row * S::WARPS_M + warp / S::WARPS_N) * S::CI + c] = sum;
        }
    }
    __syncthreads();
    const int c = threadIdx.x;
    if (c >= S::CI || c >= b.left) return;
    float* to = batch_norm::floats(p.norm_partials) + int64_t(part) * (1 + p.num_norms) * p.c_in + b.first_c + c;
    double total = 0.0;
    for (int row = 0; row <= p.num_norms; row++) {
        double sum = 0.0;
        for (int i = 0; i < S::WARPS_M; i++) sum += scratch[(row * S::WARPS_M + i) * S::CI + c];
        if (row == 0) {
            to[0] = float(sum), total = sum;
        } else {
            const float mean = batch_norm::floats(p.norms[row - 1].to.stats)[int64_t(b.split) * 3 * p.c_in + b.first_c + c];
            to[row * p.c_in] = sum_about_mean<T>(sum, total, mean);
        }
    }
}

// The tables of the batch norms from the parts of all splits, by the column's last block. scratch: f64 [THREADS][3].
template <class S>
__device__ __noinline__ void write_grad_tables(const ConvBackwardParams& p, int first_c, int left, double* scratch) {
    constexpr int SHARES = THREADS / S::CI;
    const int in_tile = threadIdx.x % S::CI, share = threadIdx.x / S::CI, c = first_c + in_tile;
    double* own = scratch + threadIdx.x * 3;
    for (int split = 0; split < p.splits; split++) {
        const int first = split * p.parts_per_split, parts = min(p.parts_per_split, p.num_parts - first);
        double sums[3] = {};
        if (in_tile < left)
            for (int part = first + parts * share / SHARES; part < first + parts * (share + 1) / SHARES; part++)
                for (int row = 0; row <= p.num_norms; row++)
                    sums[row] += double(__ldcg(batch_norm::floats(p.norm_partials) + (int64_t(part) * (1 + p.num_norms) + row) * p.c_in + c));
        __syncthreads();
        own[0] = sums[0], own[1] = sums[1], own[2] = sums[2];
        __syncthreads();
        if (share > 0 || in_tile >= left) continue;
        for (int other = 1; other < SHARES; other++)
            for (int row = 0; row < 3; row++) sums[row] += own[other * S::CI * 3 + row];
        const int rows = min(p.rows_per_split, p.rows - split * p.rows_per_split);
        for (int k = 0; k < p.num_norms; k++) GradientOfChannel().split(p.norms[k].to, split, c, double(rows), sums[0], sums[1 + k]);
    }
}

// ---- kernel ------------------------------------------------------------------------------------------------------------

template <class T, class S>
__device__ __forceinline__ void backward_pointwise(const ConvBackwardParams& p) {
    DYN_SMEM(uint8_t, shared);
    const int split = int(blockIdx.z), part = split * p.parts_per_split + int(blockIdx.y), column = int(blockIdx.x);
    const PartRows rows = rows_of_part(p, split, int(blockIdx.y), S::M);
    if (rows.first == rows.end) return;
    const Block b = {column * S::CI, p.c_in - column * S::CI, split, shared};
    Tables<S>& tables = *reinterpret_cast<Tables<S>*>(shared + p.tables_at);
    const int warp = threadIdx.x / 32;

    copy_rows<T, S::CO, S::CHUNKS_I>(shared, p.filter, p.c_in, 0, p.c_out, b.first_c, b.left);
    copy_tile<T, S>(p, b, rows.first, min(S::M, rows.end - rows.first), 0);
    cp_async_commit();
    load_tables<T, S>(p, b, tables);
    __syncthreads();

    float grad_filter[S::MS2][S::NS2][4] = {};
    NormSums<S> sums = {};
    int slot = 0;
#pragma unroll 1
    for (int row = rows.first; row < rows.end; row += S::M, slot ^= 1) {
        const int num_rows = min(S::M, rows.end - row);
        uint8_t* stage = shared + p.stages_at + slot * p.stage_bytes;
        uint8_t* result = shared + p.result_at + slot * p.result_step;
        cp_async_wait<0>();
        if (p.grad_table) form_dy<T, S>(stage, stage + p.y_at, tables, num_rows);
        __syncthreads();
        // The other stage is free: all have come here, behind their products of the tile before.
        if (row + S::M < rows.end) copy_tile<T, S>(p, b, row + S::M, min(S::M, rows.end - row - S::M), slot ^ 1);
        cp_async_commit();

        float acc[1][S::NS][4] = {};
#pragma unroll 4
        for (int k = 0; k < S::CO; k += 16)
            mma_step<T, true, S::CHUNKS_O, false, S::CHUNKS_I>(acc, stage, warp / S::WARPS_N * 16, shared,
                                                               warp % S::WARPS_N * S::NS * 8, k);
        finish_rows<T, S>(p, acc, tables, stage, result, num_rows, sums);
        __syncthreads();
#pragma unroll
        for (int k = 0; k < S::M; k += 16)
            mma_step<T, false, S::CHUNKS_O, false, S::CHUNKS_I>(grad_filter, stage, warp / S::WARPS_N2 * S::MS2 * 16, stage + p.x_at,
                                                                warp % S::WARPS_N2 * S::NS2 * 8, k);
        store_result<T, S>(p, b, result, row, num_rows);
    }

    const int lane = threadIdx.x % 32;
    float* to = batch_norm::floats(p.partials) + (int64_t(part) * p.columns + column) * (S::CO * S::CI);
#pragma unroll
    for (int i = 0; i < S::MS2; i++)
#pragma unroll
        for (int j = 0; j < S::NS2; j++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int co = (warp / S::WARPS_N2 * S::MS2 + i) * 16 + half * 8 + lane / 4;
                const int ci = (warp % S::WARPS_N2 * S::NS2 + j) * 8 + lane % 4 * 2;
                const float* d = grad_filter[i][j] + half * 2;
                __stcs(reinterpret_cast<float2*>(to + co * S::CI + ci), make_float2(d[0], d[1]));
            }
    if (p.num_norms == 0) return;
    __syncthreads();
    double* scratch = reinterpret_cast<double*>(shared + p.stages_at);
    store_norm_sums<T, S>(p, b, part, sums, scratch);
    uint32_t* ticket = reinterpret_cast<uint32_t*>(p.tickets) + column;
    if (is_last(BlockTeam(), ticket, p.num_parts, tables.flag)) write_grad_tables<S>(p, b.first_c, b.left, scratch);
}

// Adds up the filter's gradient over the parts. The warps of a block share the parts of a split, in order; the first adds up their
// sums, and these to those of the splits before.
// grid   x: 128 elements of a column's [CO][CI] each   y: columns        block: SUM_WARPS warps
// shared f32 [SUM_WARPS][32][4]
__device__ __forceinline__ void backward_sum(const ConvBackwardParams& p) {
    DYN_SMEM(float4, shared);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, column = int(blockIdx.y);
    const int in_tile = (int(blockIdx.x) * 32 + lane) * 4, co = in_tile / p.tile_ci, ci = column * p.tile_ci + in_tile % p.tile_ci;
    const bool is_used = co < p.c_out && ci < p.c_in;
    const int64_t size = int64_t(p.tile_co) * p.tile_ci;
    float* to = batch_norm::floats(p.grad_filter) + int64_t(co) * p.c_in + ci;
    float total[4] = {};
    if (warp == 0 && is_used && p.accumulates)
        for (int i = 0; i < 4; i++) total[i] = to[i];
    for (int split = 0; split < p.splits; split++) {
        const int first = split * p.parts_per_split, parts = min(p.parts_per_split, p.num_parts - first);
        float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (is_used)
#pragma unroll 4
            for (int part = first + parts * warp / SUM_WARPS; part < first + parts * (warp + 1) / SUM_WARPS; part++) {
                const float* from = batch_norm::floats(p.partials) + (int64_t(part) * p.columns + column) * size + in_tile;
                const float4 v = __ldcs(reinterpret_cast<const float4*>(from));
                sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
            }
        shared[warp * 32 + lane] = sum;
        __syncthreads();
        if (warp == 0) {
            for (int i = 1; i < SUM_WARPS; i++) {
                const float4 v = shared[i * 32 + lane];
                sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
            }
            total[0] += sum.x, total[1] += sum.y, total[2] += sum.z, total[3] += sum.w;
        }
        __syncthreads();
    }
    if (warp == 0 && is_used)
        for (int i = 0; i < 4; i++) to[i] = total[i];
}

// ---- variants ----------------------------------------------------------------------------------------------------------

#define CONV3D_BACKWARD(name, T, M, CO, CI, WARPS_OUT, BLOCKS)                                                     \
    extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) name(const __grid_constant__ ConvBackwardParams p) { \
        begin_grid();                                                                                              \
        backward_pointwise<T, Shape<M, CO, CI, WARPS_OUT>>(p);                                                     \
    }                                                                                                              \
    SIMT_EXPORT(name)
#define CONV3D_BACKWARD_TYPES(CO, CI, M, WARPS_OUT, BLOCKS)                                                       \
    CONV3D_BACKWARD(conv3d_backward_pointwise##CO##x##CI##_bf16, __nv_bfloat16, M, CO, CI, WARPS_OUT, BLOCKS)    \
    CONV3D_BACKWARD(conv3d_backward_pointwise##CO##x##CI##_f16, __half, M, CO, CI, WARPS_OUT, BLOCKS)

CONV3D_BACKWARD_TYPES(64, 16, 128, 4, 2)
CONV3D_BACKWARD_TYPES(128, 32, 64, 4, 2)
CONV3D_BACKWARD_TYPES(64, 128, 32, 2, 2)
CONV3D_BACKWARD_TYPES(128, 128, 32, 2, 1)
CONV3D_BACKWARD_TYPES(256, 64, 32, 4, 1)

extern "C" __global__ void __launch_bounds__(32 * SUM_WARPS) conv3d_backward_sum_f32(const __grid_constant__ ConvBackwardParams p) {
    begin_grid();
    backward_sum(p);
}
SIMT_EXPORT(conv3d_backward_sum_f32)
