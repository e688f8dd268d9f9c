// conv3d grad_filter: 16-bit in, f32 sums and gradient.
// input [n][t][h][w][input_pitch], grad_output [n][to][ho][wo][grad_pitch], grad_filter [c_out][ft][fh][fw][c_in of a group]
// gemm_m = columns (tap, c_in)    gemm_n = c_out    gemm_k = n*to*ho*wo, cut into tiles that never straddle a split
//
// Both operands may be changed on their way in (prologue.cuh): the input is relu(s x + b) or a residual join, the gradient
// A g + B y + C, rounded to 16 bits; outside of the tensors they are zero.
//
// A block makes the sums of some columns (taps x a slab of channels) and output channels over the tiles of one part. Of each
// tile it copies the gradient's rows and the box of input positions that its taps read, once; every tap takes its rows from
// that box. Each warp has UNITS x 16 columns and OCTETS x 8 output channels; warps_k warps share the rows of a tile.
// Filters with taps in t and few output channels may have these on the other side: then a tile's rows are positions in frames of the
// input, and each tap of t reads the gradient's rows so many frames before. So the columns are those of h and w alone, and each
// fragment of the input is multiplied with all of them.
// With grad_bias a column of ones is added, whose sums are the bias' gradient.
// Kernels named `pool` are for a convolution whose batch norm and ReLU a max pool follows: grad_output is the pool's, and g is gathered
// from the windows on load. It is in memory nowhere.
//
// grid   x: tap blocks x slabs x blocks of output channels x groups   y: parts of a split   z: splits        block: warps_m x warps_n x warps_k warps
// shared two constant chunks, places of rows and box pixels, factors of the prologues, STAGES stages: [input box][second
//        tensor of its prologue][gradient rows][second tensor]; rows are swizzled by RowLayout
// needs  granule 16 (8): addresses and pitches that are multiples of 16 (8) bytes, and a group's first channels; granule 2: none
// grad_filter and grad_bias are overwritten, or added to (accumulates): sums run in the order of the splits, so that a batch whose
// splits come in several calls has the bits of one call. Deterministic. Either there is one part, whose sums go on from what the
// gradient holds; or each split has equally many, workspace holds their sums, and conv3d_grad_filter_sum_f32 adds them up in a
// fixed order: all, or where is_of_splits those of each split. (One block a tile would be too few to read them all.)
#include "grad_filter_load.cuh"
#include "grad_filter_store.cuh"

constexpr int STAGES = 4;
// So that a thread may have 255 registers.
constexpr int MAX_WARPS = 8;
constexpr int SUM_WARPS = 16;
// Bytes of shared memory before the places: a chunk of 1, 0, 0, …, a chunk of zeros.
constexpr int ROWS_OFFSET = 32;

// ---- set-up ----------------------------------------------------------------------------------------------------------

// What stays the same for all tiles of a block.
struct Block {
    unsigned char* shared;
    BoxPlace* rows;      // [p.grad_box_rows] coordinates of the gradient's rows
    int32_t* row_pixel;  // [p.rows] the pixel that a row reads with the block's lowest tap
    BoxPlace* box;       // [num_pixels]
    BoxPlace* windows;   // [p.pool.box_rows]
    float *input_factors, *grad_factors;
    unsigned char* stages;
    BlockTile tile;
    TapBox taps;
    int box_h, box_w, num_pixels;
};

template <class T, bool POOLED>
__device__ __forceinline__ Block set_up(const GradFilterParams& p, unsigned char* shared) {
    Block b;
    b.shared = shared;
    b.rows = reinterpret_cast<BoxPlace*>(shared + ROWS_OFFSET);
    b.row_pixel = reinterpret_cast<int32_t*>(b.rows + p.grad_box_rows);
    b.box = reinterpret_cast<BoxPlace*>(shared + p.box_offset);
    b.input_factors = reinterpret_cast<float*>(shared + p.factors_offset);
    b.grad_factors = b.input_factors + (p.input_prologue.table ? 24 * p.slab_chunks : 0);
    b.stages = shared + p.stages_offset;
    b.tile = block_tile(p, blockIdx.x);
    b.taps = box_of_taps(b.tile.first_tap, b.tile.num_taps, p.h.taps, p.w.taps);
    b.box_h = p.h.box_pixels(b.taps.h_hi - b.taps.h_lo + 1);
    b.box_w = p.w.box_pixels(b.taps.w_hi - b.taps.w_lo + 1);
    b.num_pixels = p.t.box_pixels(b.taps.t_hi - b.taps.t_lo + 1) * b.box_h * b.box_w;

    const int thread = threadIdx.x, threads = blockDim.x;
    if (thread < 16) reinterpret_cast<T*>(shared)[thread] = from_f32<T>(thread == 0 ? 1.0f : 0.0f);
    const int num_rows = p.t.tile * p.h.tile * p.w.tile;
    for (int i = thread; i < p.grad_box_rows; i += threads) {
        b.rows[i] = box_place(i, p.h.tile, p.w.tile, 1, 1, 1);
        if (i >= num_rows && p.grad_taps == 1) b.rows[i].h = NO_ROW;
    }
    for (int i = thread; i < p.rows; i += threads) {
        const BoxPlace place = box_place(i, p.h.tile, p.w.tile, 1, 1, 1);
        const int row_t = place.t * p.t.row_pixels, row_h = place.h * p.h.row_pixels, row_w = place.w * p.w.row_pixels;
        // Rows that do not exist meet a gradient of zero.
        b.row_pixel[i] = i < num_rows ? (row_t * b.box_h + row_h) * b.box_w + row_w : 0;
    }
    for (int i = thread; i < b.num_pixels; i += threads)
        b.box[i] = box_place(i, b.box_h, b.box_w, p.t.box_step, p.h.box_step, p.w.box_step);
    b.windows = reinterpret_cast<BoxPlace*>(shared + p.pool.places_offset);
    if (POOLED)
        for (int i = thread; i < p.pool.box_rows; i += threads)
            b.windows[i] = box_place(i, p.pool.box_h, p.pool.box_w, 1, 1, 1);
    return b;
}

// What a lane reads of the input with one of its warp's units: 32 times the pixel that the tap adds, plus the chunk; or, below
// zero, minus 1 minus the address of a constant chunk.
__device__ __forceinline__ int32_t column_of(const GradFilterParams& p, const Block& b, int octet) {
    const int of_taps = b.tile.num_taps * p.slab_chunks;
    if (octet >= of_taps) {
        const bool is_one = octet == of_taps && has_bias(p, b.tile);
        return -1 - (int32_t(smem_u32(b.shared)) + (is_one ? 0 : 16));
    }
    const int tap = octet / p.slab_chunks, t = (b.tile.first_tap + tap) / (p.h.taps * p.w.taps);
    const int h = (b.tile.first_tap + tap) / p.w.taps % p.h.taps, w = (b.tile.first_tap + tap) % p.w.taps;
    const int pixel_t = (t - b.taps.t_lo) * p.t.tap_pixels, pixel_h = (h - b.taps.h_lo) * p.h.tap_pixels;
    const int pixel_w = (w - b.taps.w_lo) * p.w.tap_pixels;
    return ((pixel_t * b.box_h + pixel_h) * b.box_w + pixel_w) * 32 + octet - tap * p.slab_chunks;
}

// What a lane reads of the gradient with one of its warp's pairs of octets: 32 times the rows that the tap adds, plus the chunk.
// Octets behind the last repeat it; nobody stores their sums.
__device__ __forceinline__ int32_t out_column_of(const GradFilterParams& p, int out_octet) {
    const int octet = min(out_octet, num_out_octets(p) - 1), tap = octet / p.out_chunks;
    return (p.grad_taps - 1 - tap) * p.grad_tap_rows * 32 + octet - tap * p.out_chunks;
}

// ---- tiles -----------------------------------------------------------------------------------------------------------

// A tile on its way in. Bit i: the thread's i-th row of the operand lies inside its tensor.
struct Arrival {
    uint32_t input_rows, grad_rows;
    int32_t split;
};

template <bool POOLED>
__device__ __forceinline__ Arrival copy_tile(const GradFilterParams& p, const Block& b, const Share& input, const Share& grad,
                                            int index, unsigned char* stage) {
    const Tile tile = tile_of(index, p.t, p.h, p.w);
    const bool is_last = tile.outer == p.num_outer - 1;
    Origin in, out;
    in.position = tile.outer * position_in_outer(p.t.input, 0, 0, p.h.input, p.w.input);
    in.t = p.t.box_first(tile.t, b.taps.t_lo);
    in.h = p.h.box_first(tile.h, b.taps.h_lo);
    in.w = p.w.box_first(tile.w, b.taps.w_lo);
    in.size_t_ = is_last ? p.last_input_t : p.t.input;
    in.size_h = p.h.input;
    in.size_w = p.w.input;
    out.position = tile.outer * position_in_outer(p.grad_t, 0, 0, p.h.output, p.w.output);
    out.t = tile.t + p.grad_first_t;
    out.h = tile.h;
    out.w = tile.w;
    out.size_t_ = is_last ? p.last_grad_t : p.grad_t;
    out.size_h = p.h.output;
    out.size_w = p.w.output;
    Arrival arrival = {0, 0, tile.outer / p.outer_per_split};
    if (p.has_pixel_pairs) copy_pixel_pairs(input, b.box, b.num_pixels, in, stage);
    else arrival.input_rows = copy_rows(input, b.box, b.num_pixels, in, stage);
    arrival.grad_rows = copy_rows(grad, b.rows, p.grad_box_rows, out, stage);
    if (POOLED) {
        out.position = tile.outer * position_in_outer(p.grad_t, 0, 0, p.pool.size_h, p.pool.size_w);
        out.h = first_window(tile.h, p.pool.kernel_h, p.pool.stride_h, p.pool.padding_h);
        out.w = first_window(tile.w, p.pool.kernel_w, p.pool.stride_w, p.pool.padding_w);
        out.size_h = p.pool.size_h;
        out.size_w = p.pool.size_w;
        copy_windows(p, grad, b.windows, out, stage);
    }
    return arrival;
}

// Brings the factors of a tile's split to shared memory, where `split` is the one whose factors lie there. Between two calls is a
// __syncthreads: nobody reads the old ones any more.
template <bool POOLED>
__device__ __forceinline__ void stage_tile_factors(const GradFilterParams& p, const Block& b, const Arrival& arrival, int& split) {
    if (arrival.split == split || (!p.input_prologue.table && !p.grad_prologue.table)) return;
    split = arrival.split;
    const BlockTile& t = b.tile;
    if (p.input_prologue.table)
        stage_factors(b.input_factors, p.input_prologue, split, t.group * p.c_in, t.slab_chunk, p.c_in, p.slab_chunks);
    if (p.grad_prologue.table)
        stage_factors(b.grad_factors, p.grad_prologue, split, t.group * p.c_out, t.out_chunk, p.c_out, p.out_chunks);
    if (POOLED) stage_mask(b.grad_factors + 24 * p.out_chunks, p, split, t.out_chunk);
    __syncthreads();
}

template <class T, bool POOLED>
__device__ __forceinline__ void transform_tile(const GradFilterParams& p, const Block& b, const Share& input, const Share& grad,
                                               const Arrival& arrival, int index, unsigned char* stage) {
    if (p.input_prologue.table)
        transform_rows<T>(input, b.input_factors, p.slab_chunks, arrival.input_rows, p.input_prologue.has_relu, stage);
    if (POOLED)
        transform_pooled_rows<T>(p, grad, b.rows, b.grad_factors, arrival.grad_rows, tile_of(index, p.t, p.h, p.w), stage);
    else if (p.grad_prologue.table)
        transform_rows<T>(grad, b.grad_factors, p.out_chunks, arrival.grad_rows, p.grad_prologue.has_relu, stage);
}

// The sums of a warp.
template <int UNITS, int OCTETS>
struct Sums {
    float d[UNITS][OCTETS][4];
};

// What a lane reads of both operands, and what of it is not idle.
template <int UNITS, int OCTETS>
struct Columns {
    int32_t input[UNITS], grad[OCTETS / 2];
    int num_units, num_octets;
};

// Adds the products of the warp's rows of one tile: every warps_k-th 16 rows.
template <bool BF16, int UNITS, int OCTETS>
__device__ __forceinline__ void multiply(const GradFilterParams& p, const Block& b, const Columns<UNITS, OCTETS>& columns,
                                         int warp_k, uint32_t input, uint32_t grad, Sums<UNITS, OCTETS>& sums) {
    const int lane = threadIdx.x % 32, grad_row = lane % 16, input_row = lane % 8 + lane / 16 * 8;
    for (int k = warp_k * 16; k < p.rows; k += p.warps_k * 16) {
        uint32_t outs[OCTETS][2];  // [out octet][rows 0-7, 8-15]
#pragma unroll
        for (int j = 0; j < OCTETS; j += 2) {
            if (j >= columns.num_octets) break;
            const int c = columns.grad[j / 2];
            uint32_t r[4];
            ldmatrix<4, true>(r, grad + p.grad_rows.byte_of(k + grad_row + c / 32, c % 32));
            outs[j][0] = r[0], outs[j][1] = r[1], outs[j + 1][0] = r[2], outs[j + 1][1] = r[3];
        }
        const int row_pixel = b.row_pixel[k + input_row];
#pragma unroll
        for (int i = 0; i < UNITS; i++) {
            if (i >= columns.num_units) break;
            const int c = columns.input[i], of_tile = p.input_rows.byte_of(row_pixel + c / 32, c % 32);
            const uint32_t address = c < 0 ? uint32_t(-1 - c) : input + uint32_t(of_tile);
            uint32_t a[4];  // [rows 0-7, 8-15][octet 0, 1]
            ldmatrix<4, true>(a, address);
#pragma unroll
            for (int j = 0; j < OCTETS; j += 2) {
                if (j >= columns.num_octets) break;
                mma_m16n8k16<BF16>(sums.d[i][j], a, outs[j]);
                // One octet of a pair may be idle: worth a question where a warp has no more.
                if (OCTETS > 2 || j + 1 < columns.num_octets) mma_m16n8k16<BF16>(sums.d[i][j + 1], a, outs[j + 1]);
            }
        }
    }
}

// ---- after the last tile ---------------------------------------------------------------------------------------------

// Adds up the sums of the warps that shared rows, in their order, to those of warp_k 0.
template <int UNITS, int OCTETS>
__device__ __forceinline__ void join_warps(const GradFilterParams& p, float* scratch, int warp_mn, int warp_k,
                                           Sums<UNITS, OCTETS>& sums) {
    float* mine = scratch + warp_mn * UNITS * OCTETS * 128 + threadIdx.x % 32;  // [warp_mn][UNITS * OCTETS * 4][32]
    for (int k = 1; k < p.warps_k; k++) {
        __syncthreads();
#pragma unroll
        for (int i = 0; i < UNITS * OCTETS * 4; i++)
            if (warp_k == k) mine[i * 32] = sums.d[i / 4 / OCTETS][i / 4 % OCTETS][i % 4];
        __syncthreads();
#pragma unroll
        for (int i = 0; i < UNITS * OCTETS * 4; i++)
            if (warp_k == 0) sums.d[i / 4 / OCTETS][i / 4 % OCTETS][i % 4] += mine[i * 32];
    }
}

template <int UNITS, int OCTETS>
__device__ __forceinline__ void store(const GradFilterParams& p, const Block& b, int num_units, int warp_m, int warp_n,
                                      const Sums<UNITS, OCTETS>& sums) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < UNITS; i++) {
        if (i >= num_units) break;
#pragma unroll
        for (int j = 0; j < OCTETS; j++) {
            const float(&d)[4] = sums.d[i][j];
            if (warp_n * OCTETS + j >= num_out_octets(p)) break;
            if (!p.partials) {
                store_fragment(p, b.tile, warp_m, warp_n, i, j, lane, d);
            } else {
                const int fragment = ((warp_m * p.warps_n + warp_n) * UNITS + i) * OCTETS + j;
                __stcs(partial(p, blockIdx.z * p.parts_per_split + blockIdx.y, blockIdx.x, fragment, lane), make_float4(d[0], d[1], d[2], d[3]));
            }
        }
    }
}

// The sums over the splits before, of a warp. Indexed by numbers that are not known when compiled, they lie in local memory until the
// first tile is multiplied: registers are short.
template <int UNITS, int OCTETS>
struct SumsBefore {
    float d[UNITS][OCTETS][4];

    __device__ __forceinline__ void load(const GradFilterParams& p) {
        const BlockTile tile = block_tile(p, blockIdx.x);
        const int warp_mn = threadIdx.x / 32, warp_m = warp_mn / p.warps_n, warp_n = warp_mn - warp_m * p.warps_n;
#pragma unroll 1
        for (int i = 0; i < UNITS * OCTETS; i++) {
            float(&sums)[4] = d[i / OCTETS][i % OCTETS];
            sums[0] = sums[1] = sums[2] = sums[3] = 0.0f;
            if (warp_n * OCTETS + i % OCTETS < num_out_octets(p))
                load_fragment(p, tile, warp_m, warp_n, i / OCTETS, i % OCTETS, threadIdx.x % 32, sums);
        }
    }
};

// ---- kernel ----------------------------------------------------------------------------------------------------------

template <class T, int UNITS, int OCTETS, bool POOLED>
__device__ __forceinline__ void grad_filter(const GradFilterParams& p) {
    // A thread's own copies have come when it transforms them. Windows are copied for others: they have to come a barrier earlier.
    constexpr int IN_FLIGHT = POOLED ? STAGES - 3 : STAGES - 2;
    constexpr bool IS_BF16 = sizeof(T) == 2 && !std::is_same<T, __half>::value;
    DYN_SMEM(unsigned char, shared);
    // One part that goes on has no warps that share rows, and no pool.
    SumsBefore<UNITS, OCTETS> before;
    if (!POOLED && p.accumulates && !p.partials) before.load(p);
    const Block b = set_up<T, POOLED>(p, shared);
    const int warp = threadIdx.x / 32, warps_mn = p.warps_m * p.warps_n;
    const int warp_k = warp / warps_mn, warp_mn = warp - warp_k * warps_mn;
    const int warp_m = warp_mn / p.warps_n, warp_n = warp_mn - warp_m * p.warps_n;

    const int in_base = b.tile.group * p.c_in, out_base = b.tile.group * p.c_out;
    Share input = share_of(p.input, p.input_pitch, p.input_prologue, in_base, b.tile.slab_chunk,
                           p.has_pixel_pairs ? 8 : p.c_in, p.slab_chunks, p.input_granule, p.input_rows);
    input.first_offset = 0;
    input.second_offset = p.second_input_offset;
    Share grad = share_of(POOLED ? p.grad_prologue.second : p.grad_output, POOLED ? p.grad_prologue.second_pitch : p.grad_pitch,
                          p.grad_prologue, out_base, b.tile.out_chunk, p.c_out, p.out_chunks, p.grad_granule, p.grad_rows);
    if (POOLED) grad.second = 0;
    grad.first_offset = p.grad_offset;
    grad.second_offset = p.second_grad_offset;

    Columns<UNITS, OCTETS> columns;
    columns.num_units = min(max((octets_of(p, b.tile) + 1) / 2 - warp_m * UNITS, 0), UNITS);
    columns.num_octets = min(max(num_out_octets(p) - warp_n * OCTETS, 0), OCTETS);
#pragma unroll
    for (int i = 0; i < UNITS; i++) columns.input[i] = column_of(p, b, (warp_m * UNITS + i) * 2 + threadIdx.x / 8 % 2);
#pragma unroll
    for (int j = 0; j < OCTETS / 2; j++)
        columns.grad[j] = out_column_of(p, warp_n * OCTETS + 2 * j + threadIdx.x / 16 % 2);
    __syncthreads();

    const TileRange tiles = tiles_of_part(blockIdx.z, blockIdx.y, p.tiles_per_part, p.tiles_per_split, p.num_tiles);
    if (tiles.first == tiles.end) return;
    const int first_tile = tiles.first, end_tile = tiles.end;
    Arrival arrivals[STAGES - 1] = {};
#pragma unroll
    for (int s = 0; s < STAGES - 1; s++) {
        if (first_tile + s < end_tile) arrivals[s] = copy_tile<POOLED>(p, b, input, grad, first_tile + s, b.stages + s * p.stage_bytes);
        cp_async_commit();
    }
    int split = -1, stage = 0;
    cp_async_wait<IN_FLIGHT>();
    stage_tile_factors<POOLED>(p, b, arrivals[0], split);
    transform_tile<T, POOLED>(p, b, input, grad, arrivals[0], first_tile, b.stages);
    __syncthreads();

    Sums<UNITS, OCTETS> sums = {};
    if (!POOLED && p.accumulates && !p.partials) {
#pragma unroll
        for (int i = 0; i < UNITS * OCTETS * 4; i++)
            sums.d[i / 4 / OCTETS][i / 4 % OCTETS][i % 4] = before.d[i / 4 / OCTETS][i / 4 % OCTETS][i % 4];
    }
    // While a tile is multiplied the next one is transformed, half of the warps doing the one first, half the other.
    for (int tile = first_tile; tile < end_tile; tile++) {
#pragma unroll
        for (int s = 0; s < STAGES - 2; s++) arrivals[s] = arrivals[s + 1];
        if (tile + STAGES - 1 < end_tile) {
            // The stage before this one: all have multiplied it.
            const int free = stage == 0 ? STAGES - 1 : stage - 1;
            arrivals[STAGES - 2] = copy_tile<POOLED>(p, b, input, grad, tile + STAGES - 1, b.stages + free * p.stage_bytes);
        }
        cp_async_commit();
        cp_async_wait<IN_FLIGHT>();
        const bool has_next = tile + 1 < end_tile;
        const int next = stage == STAGES - 1 ? 0 : stage + 1;
        if (has_next) stage_tile_factors<POOLED>(p, b, arrivals[0], split);
        const uint32_t at = smem_u32(b.stages) + stage * p.stage_bytes;
#pragma unroll 1
        for (int turn = 0; turn < 2; turn++) {
            if (turn == warp % 2)
                multiply<IS_BF16, UNITS, OCTETS>(p, b, columns, warp_k, at, at + p.grad_offset, sums);
            else if (has_next)
                transform_tile<T, POOLED>(p, b, input, grad, arrivals[0], tile + 1, b.stages + next * p.stage_bytes);
            __syncwarp();
        }
        __syncthreads();
        stage = next;
    }
    cp_async_wait<0>();
    join_warps(p, reinterpret_cast<float*>(b.stages), warp_mn, warp_k, sums);
    if (warp_k == 0) store(p, b, columns.num_units, warp_m, warp_n, sums);
}

// Adds up the parts. warps_per_sum warps share the parts of a fragment: warps_per_split those of a split, each takes as many. Then the
// first adds their sums to those of a split, and these to the gradient.
// grid   x: blocks of the kernel above, y: their fragments, SUM_WARPS / warps_per_sum a block, z: splits, where each has a gradient
// block  SUM_WARPS warps
__device__ __forceinline__ void grad_filter_sum(const GradFilterParams& p) {
    DYN_SMEM(float4, shared);  // [SUM_WARPS][32]
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int of_fragment = warp % p.warps_per_sum, fragment = (blockIdx.y * SUM_WARPS + warp) / p.warps_per_sum;
    BlockTile b = block_tile(p, blockIdx.x);
    // All parts; or, where each split has a gradient, those of the block's.
    b.split = blockIdx.z;
    const int first_part = b.split * p.parts_per_split;
    const int end_part = p.is_of_splits ? min(first_part + p.parts_per_split, p.num_parts) : p.num_parts;
    const int out_octet = fragment % p.out_octets, rest = fragment / p.out_octets;
    const int unit = rest % p.units, warp_mn = rest / p.units, warp_m = warp_mn / p.warps_n;
    const int warp_n = warp_mn - warp_m * p.warps_n;
    // Nobody wrote what lies behind the block's last octets.
    const bool is_used = warp_m < p.warps_m && (warp_m * p.units + unit) * 2 < octets_of(p, b) &&
                         warp_n * p.out_octets + out_octet < num_out_octets(p);
    const bool is_first = of_fragment == 0 && is_used;
    float total[4] = {};
    if (is_first && p.accumulates) load_fragment(p, b, warp_m, warp_n, unit, out_octet, lane, total);
    const int each = (p.parts_per_split + p.warps_per_split - 1) / p.warps_per_split;
    const int at_once = p.warps_per_sum / p.warps_per_split * p.parts_per_split;
    for (int begin = first_part; begin < end_part; begin += at_once) {
        const int of_split = begin + of_fragment / p.warps_per_split * p.parts_per_split;
        const int first = of_split + of_fragment % p.warps_per_split * each;
        const int end = min(min(first + each, of_split + p.parts_per_split), end_part);
        float sums[4] = {};
        if (is_used) add_parts(p, blockIdx.x, fragment, lane, first, end, sums);
        shared[warp * 32 + lane] = make_float4(sums[0], sums[1], sums[2], sums[3]);
        __syncthreads();
        for (int split = 0; is_first && split < p.warps_per_sum; split += p.warps_per_split) {
            float4 sum = shared[(warp + split) * 32 + lane];
            for (int i = 1; i < p.warps_per_split; i++) {
                const float4 v = shared[(warp + split + i) * 32 + lane];
                sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
            }
            total[0] += sum.x, total[1] += sum.y, total[2] += sum.z, total[3] += sum.w;
        }
        __syncthreads();  // the next round writes where this one reads
    }
    if (is_first) store_fragment(p, b, warp_m, warp_n, unit, out_octet, lane, total);
}

// ---- variants --------------------------------------------------------------------------------------------------------

#define GRAD_FILTER_VARIANT(name, T, UNITS, OCTETS, POOLED)                                                         \
    extern "C" __global__ void __launch_bounds__(32 * MAX_WARPS) name(const __grid_constant__ GradFilterParams p) { \
        begin_grid();                                                                                               \
        grad_filter<T, UNITS, OCTETS, POOLED>(p);                                                                   \
    }                                                                                                               \
    SIMT_EXPORT(name)

GRAD_FILTER_VARIANT(conv3d_grad_filter_mma64x64_bf16, __nv_bfloat16, 4, 8, false)
GRAD_FILTER_VARIANT(conv3d_grad_filter_mma64x64_f16, __half, 4, 8, false)
GRAD_FILTER_VARIANT(conv3d_grad_filter_mma64x32_bf16, __nv_bfloat16, 4, 4, false)
GRAD_FILTER_VARIANT(conv3d_grad_filter_mma64x32_f16, __half, 4, 4, false)
GRAD_FILTER_VARIANT(conv3d_grad_filter_mma144x16_bf16, __nv_bfloat16, 9, 2, false)
GRAD_FILTER_VARIANT(conv3d_grad_filter_mma144x16_f16, __half, 9, 2, false)
GRAD_FILTER_VARIANT(conv3d_grad_filter_pool_mma64x64_bf16, __nv_bfloat16, 4, 8, true)
GRAD_FILTER_VARIANT(conv3d_grad_filter_pool_mma64x64_f16, __half, 4, 8, true)

extern "C" __global__ void __launch_bounds__(32 * SUM_WARPS)
    conv3d_grad_filter_sum_f32(const __grid_constant__ GradFilterParams p) {
    begin_grid();
    grad_filter_sum(p);
}
SIMT_EXPORT(conv3d_grad_filter_sum_f32)
