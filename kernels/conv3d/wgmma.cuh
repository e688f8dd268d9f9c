// The convolution as a product of matrices on wgmma: what the kernels of conv3d_forward_wgmma_sm90.cu and
// conv3d_grad_input_wgmma_sm90.cu share. Blocks are persistent. One thread of the producer's warpgroup starts the copies (TMA)
// of step after step, tile after tile; two warpgroups of consumers make 64 rows of a tile each.
//
// Unit stride and an output as large as the input: a row of the matrix is a position, with the tap (t, h, w) it reads the position
// a fixed distance on. So a tile's run of rows reads, with all taps of one frame of the filter, one longer run: the halo. It is
// loaded once, changed by the prologue in place and once, and all those taps multiply from it. What a row reads outside of its
// frame or clip is some other position: its fragment is set to zero.
//
// Forward of one tap without padding may have a stride: a tile's rows are then every so many positions, which TMA picks out (im2col
// without a filter), and the halo has no other.
//
// A step is 64 channels of one frame of the filter. Its halo has a place in one ring of shared memory, the filter's taps follow
// each other through another. A comes from the halo through registers, B by descriptor.
#pragma once
#include "epilogue.cuh"
#include "slices.cuh"
#include "wgmma_memory.cuh"

// ---- which tile --------------------------------------------------------------------------------------------------------

// 64 channels of one frame of the filter, frames first.
struct Step {
    int frames, chunk, frame;

    __device__ __forceinline__ Step(const Conv3dParams& p, int number)
        : frames(p.gather.t.filter), chunk(number / frames), frame(number - chunk * frames) {}
    __device__ __forceinline__ void advance() {
        if (++frame == frames) frame = 0, chunk++;
    }
};

// A block's piece of work: a slice of gemm_k of a tile of rows x COLUMNS tiles of target channels.
struct Work {
    BlockTile b;
    Run rows;
    int slice, first_step, last_step;
};

template <int N>
__device__ __forceinline__ uint32_t num_works(const Conv3dParams& p) {
    return uint32_t(p.tiles) * ((p.columns + WideTile<N>::COLUMNS - 1) / WideTile<N>::COLUMNS) * p.slices;
}
// Neighbouring blocks share rows.
template <int N>
__device__ __forceinline__ Work work_at(const Conv3dParams& p, uint32_t number) {
    Work to;
    const uint32_t columns = (p.columns + WideTile<N>::COLUMNS - 1) / WideTile<N>::COLUMNS;
    const uint32_t rest = number / columns;
    to.slice = int(rest / uint32_t(p.tiles));
    to.b.tile = rest - to.slice * uint32_t(p.tiles);
    to.b.column = int(number - rest * columns) * WideTile<N>::COLUMNS;
    to.b.number = tile_number(p.gather, to.b.tile, p.tiles_per_split, TILE_M);
    to.rows = run_of_tile(p.gather, to.b.number, TILE_M);
    to.b.num_rows = int(to.rows.num_rows);
    to.b.first_c = to.b.column * WideTile<N>::SUMS_N, to.b.left = p.target_channels - to.b.first_c;
    to.b.channels = p.target_channels;
    const int steps = p.gather.t.filter * ((p.source_channels + TILE_K - 1) / TILE_K);
    const int of_slice = (steps + p.slices - 1) / p.slices;
    to.first_step = min(steps, to.slice * of_slice), to.last_step = min(steps, to.first_step + of_slice);
    return to;
}

// ---- the producer ------------------------------------------------------------------------------------------------------

// Rows `row` .. of a box to shared memory.
__device__ __forceinline__ void load_rows(const Conv3dParams& p, uint32_t to, const void* map, uint32_t barrier, int channel, int row) {
    const ConvGather& g = p.gather;
    if (g.t.stride * g.h.stride * g.w.stride == 1) {
        tma_load_2d(to, map, barrier, channel, row);
    } else {
        const Position q = position_of_row(row, g.t.output, g.h.output, g.w.output);
        tma_load_im2col_5d(to, map, barrier, channel, q.w * g.w.stride, q.h * g.h.stride, q.t * g.t.stride, q.n, 0, 0, 0);
    }
}

// One thread.
template <int N, bool GRAD, int PROLOGUE>
__device__ __forceinline__ void produce(const Conv3dParams& p, const WideMemory& m, const void* source, const void* second,
                                        const void* filter) {
    constexpr int TENSORS = PROLOGUE == JOIN ? 2 : 1;
    const int taps = p.gather.h.filter * p.gather.w.filter;
    const int boxes = (p.halo_rows + 255) / 256, box_rows = p.halo_rows / boxes, halo_bytes = p.halo_rows * ROW_BYTES;
    prefetch_tensor_map(source), prefetch_tensor_map(filter);
    if constexpr (PROLOGUE == JOIN) prefetch_tensor_map(second);
    Ring halos(m.halo_barriers, p.source_stages), filters(m.filter_barriers, p.filter_stages);
    const auto load_halo = [&](const Work& work, const Step& at) {
        const int row = int(work.rows.first_row) + m.frames[at.frame];
        const uint32_t halo = smem_u32(m.halos) + halos.slot * TENSORS * halo_bytes;
        mbar_wait(halos.empty(), halos.phase ^ 1);
        mbar_arrive_expect_tx(halos.full(), TENSORS * halo_bytes);
#pragma unroll 1
        for (int box = 0; box < boxes; box++) {
            const uint32_t to = halo + box * box_rows * ROW_BYTES;
            load_rows(p, to, source, halos.full(), at.chunk * TILE_K, row + box * box_rows);
            if constexpr (PROLOGUE == JOIN)
                load_rows(p, to + halo_bytes, second, halos.full(), at.chunk * TILE_K, row + box * box_rows);
        }
        halos.advance();
    };
    // The next halo is asked for as early as this waits for nobody: two halos have room, and where the ring of filters holds those of
    // this step alone, the consumers have left the halo before.
    const int ahead = min(taps, p.filter_stages) - 1;
#pragma unroll 1
    for (uint32_t number = blockIdx.x; number < num_works<N>(p); number += gridDim.x) {
        const Work work = work_at<N>(p, number);
        Step at(p, work.first_step), next = at;
#pragma unroll 1
        for (int step = work.first_step; step < work.last_step; step++, at = next) {
            if (step == work.first_step) load_halo(work, at);
            next.advance();
#pragma unroll 1
            for (int j = 0; j < taps; j++) {
                const uint32_t to = smem_u32(m.filters) + filters.slot * WideTile<N>::FILTER_BYTES;
                const int tap = m.taps[at.frame * taps + j].filter_tap;
                mbar_wait(filters.empty(), filters.phase ^ 1);
                mbar_arrive_expect_tx(filters.full(), WideTile<N>::FILTER_BYTES);
                if constexpr (GRAD) {
#pragma unroll
                    for (int n = 0; n < N; n += TILE_K)
                        tma_load_3d(to + n * TILE_K * 2, filter, filters.full(), work.b.first_c + n, tap, at.chunk * TILE_K);
                } else {
                    tma_load_3d(to, filter, filters.full(), at.chunk * TILE_K, tap, work.b.first_c);
                }
                filters.advance();
                if (j == ahead && step + 1 < work.last_step) load_halo(work, next);
            }
        }
    }
}

// ---- the consumers -----------------------------------------------------------------------------------------------------

// Where a tile's rows go, and which taps they read: bit j of a frame's taps is that of tap frame * taps + j.
template <bool GRAD>
__device__ __forceinline__ void set_up_rows(const Conv3dParams& p, const WideMemory& m, const Run& rows) {
    const ConvGather& g = p.gather;
    const RowClass cls = row_class(g, 0);
    const int taps = cls.t.taps * cls.h.taps * cls.w.taps;
    const int row = int(threadIdx.x);
    if (row >= TILE_M) return;
    m.targets[row] = rows.first_row + row;
    uint32_t inside = 0;
    if (taps > 1 && row < int(rows.num_rows)) {
        const Position q = position_of_row(rows.first_row + row, cls.t.rows, cls.h.rows, cls.w.rows);
        const Place at = place(0, q.t, q.h, q.w, g.t.input, g.h.input, g.w.input);
#pragma unroll 1
        for (int j = 0; j < taps; j++)
            inside |= uint32_t(is_inside(at, m.taps[j].place, g.t.input, g.h.input, g.w.input)) << j;
    }
    m.inside[row] = inside;
}

// The prologue, on a halo that has come: each warp changes the 16 rows of its own, and of those beyond a tile every eighth 16.
template <class T, int PROLOGUE>
__device__ __forceinline__ void transform(const Conv3dParams& p, const WideMemory& m, const Work& work, const Step& step,
                                          const Ring& halos) {
    if constexpr (PROLOGUE == PLAIN) {
        mbar_wait(halos.full(), halos.phase);
        return;
    }
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, column = lane % CHUNKS_K;
    const int c = step.chunk * TILE_K + column * 8, halo_bytes = p.halo_rows * ROW_BYTES;
    const bool exists = c < p.source_channels;
    std::conditional_t<PROLOGUE == JOIN, JoinChunk, AffineChunk> factors;
    if (exists) load_factors(factors, p.prologue, work.b.number.split, c);
    mbar_wait(halos.full(), halos.phase);
    uint8_t* halo = m.halos + halos.slot * (PROLOGUE == JOIN ? 2 : 1) * halo_bytes;
    // The frame with the tap at distance 0 holds the tile's own positions: it stores.
    const int own = m.frames[step.frame] + m.own_first;
    const bool stores = p.prologue.store != 0 && work.b.first_c == 0 && own == 0;
#pragma unroll 1
    for (int first = warp * 16 + lane / CHUNKS_K; exists && first < p.halo_rows; first += TILE_M) {
#pragma unroll
        for (int i = 0; i < 16; i += 4) {
            const int row = first + i;
            if (row >= p.halo_rows) break;
            auto* at = reinterpret_cast<Vec<T, 8>*>(halo + chunk_byte<CHUNKS_K>(row, column));
            if constexpr (PROLOGUE == JOIN) {
                const auto second = *reinterpret_cast<const Vec<T, 8>*>(reinterpret_cast<uint8_t*>(at) + halo_bytes);
                const Vec<T, 8> v = transformed(*at, second, factors, p.prologue.has_relu);
                *at = v;
                const int of_tile = row - m.own_first;
                if (stores && uint32_t(of_tile) < work.rows.num_rows) {
                    const int64_t to = element_of(int64_t(work.rows.first_row) + of_tile, c, p.prologue.store_pitch);
                    *reinterpret_cast<Vec<T, 8>*>(reinterpret_cast<T*>(p.prologue.store) + to) = v;
                }
            } else {
                *at = transformed(*at, factors);
            }
        }
    }
    // Without rows beyond the tile a warp reads what it has changed itself.
    if (p.halo_rows > TILE_M) ConsumerTeam().sync();
    else __syncwarp();
}

// A of 32 channels: the 16 rows of this warp as the tap reads them.
__device__ __forceinline__ void load_fragments(uint32_t (&a)[2][4], uint32_t halo, int row, int first_chunk, bool masks,
                                               const uint32_t (&keep)[2]) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int k = 0; k < 2; k++) {
        ldmatrix<4, false>(a[k], halo + chunk_byte<CHUNKS_K>(row + lane % 16, first_chunk + 2 * k + lane / 16));
        if (masks) a[k][0] &= keep[0], a[k][1] &= keep[1], a[k][2] &= keep[0], a[k][3] &= keep[1];
    }
}

// A stage of the filter as wgmma's operand B. Forward: [N][TILE_K], k side by side, 8 rows are 1024 bytes. grad_input:
// [N / 64][TILE_K][64], n side by side, 8 rows of k are 1024 bytes, 64 columns 8192.
template <bool GRAD>
__device__ __forceinline__ uint64_t filter_descriptor(uint32_t filter, int k) {
    constexpr uint64_t LEADING = GRAD ? TILE_K * ROW_BYTES >> 4 : 1, STRIDE = 8 * ROW_BYTES >> 4, SWIZZLE_128 = 1;
    const uint32_t at = filter + k * (GRAD ? 16 * ROW_BYTES : 32);
    return uint64_t(at >> 4 & 0x3FFF) | LEADING << 16 | STRIDE << 32 | SWIZZLE_128 << 62;
}

template <class T, int N, bool GRAD>
__device__ __forceinline__ void start_products(float (&acc)[N / 2], const uint32_t (&a)[2][4], uint32_t filter, int first_k) {
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < 2; k++)
        wgmma_m64k16_rs<N, IS_BF16<T>, GRAD>(acc, a[k], filter_descriptor<GRAD>(filter, first_k + k), 1);
    wgmma_commit();
}

// The sums of the tile: gemm_k in the order of channels, frames of the filter, taps of the frame. Products run while the next
// fragments are loaded, and the next halo is changed: the fragments of half a step each are in flight in turn.
template <class T, int N, bool GRAD, int PROLOGUE>
__device__ __forceinline__ void sum_up(const Conv3dParams& p, const WideMemory& m, const Work& work, Ring& halos, Ring& filters,
                                       float (&acc)[N / 2]) {
    const int taps = p.gather.h.filter * p.gather.w.filter, warp_row = threadIdx.x / 32 * 16, row = warp_row + threadIdx.x % 32 / 4;
    const bool masks = taps * p.gather.t.filter > 1;
    const uint32_t inside[2] = {m.inside[row], m.inside[row + 8]};
    uint32_t low[2][4], high[2][4];  // 32 channels each
    uint32_t in_use = 0;             // the barrier of the filter that is being multiplied
    Step at(p, work.first_step);
    if (work.first_step < work.last_step) transform<T, PROLOGUE>(p, m, work, at, halos);
#pragma unroll 1
    for (int step = work.first_step; step < work.last_step; step++) {
        const uint32_t halo = smem_u32(m.halos) + halos.slot * (PROLOGUE == JOIN ? 2 : 1) * p.halo_rows * ROW_BYTES;
        const int first_tap = at.frame * taps;
#pragma unroll 1
        for (int j = first_tap; j < first_tap + taps; j++) {
            const uint32_t filter = smem_u32(m.filters) + filters.slot * WideTile<N>::FILTER_BYTES;
            const uint32_t keep[2] = {0u - (inside[0] >> j & 1u), 0u - (inside[1] >> j & 1u)};
            const int halo_row = warp_row + m.taps[j].halo_row;
            mbar_wait(filters.full(), filters.phase);
            wgmma_wait<1>();
            load_fragments(low, halo, halo_row, 0, masks, keep);
            start_products<T, N, GRAD>(acc, low, filter, 0);
            wgmma_wait<1>();  // the tap before is done
            if (in_use) release(in_use);
            load_fragments(high, halo, halo_row, 4, masks, keep);
            start_products<T, N, GRAD>(acc, high, filter, 2);
            in_use = filters.empty();
            filters.advance();
        }
        // All of the halo is in registers. It was written to here, and will be by TMA.
        if constexpr (PROLOGUE != PLAIN) fence_proxy_async_shared();
        release(halos.empty());
        halos.advance(), at.advance();
        if (step + 1 < work.last_step) transform<T, PROLOGUE>(p, m, work, at, halos);
    }
    wgmma_wait<0>();
    if (in_use) release(in_use);
}

// From a column's sums to the target.
template <class T, int N, bool GRAD>
__device__ __forceinline__ void store_column(const Conv3dParams& p, const WideMemory& m, const Work& work, BlockTile b,
                                             float (&acc)[N / 2]) {
    if (p.slices > 1 && !join_slices(p, ConsumerTeam(), b, work.slice, m.flag, acc)) return;
    using Tile = Tile<N>;
    const int lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16 + lane / 4;
#pragma unroll
    for (int i = 0; i < N / 2; i += 2)
        *reinterpret_cast<float2*>(m.sums + (row + i / 2 % 2 * 8) * Tile::SUMS_PITCH + i / 4 * 8 + lane % 4 * 2) =
            make_float2(acc[i], acc[i + 1]);
    ConsumerTeam().sync();
    const BlockMemory of_tile = {nullptr, m.targets, m.flag, nullptr, nullptr, nullptr};
    finish_tile<T, N, GRAD, false, ConsumerTeam>(p, of_tile, b, m.sums);
}

template <class T, int N, bool GRAD, int PROLOGUE>
__device__ __forceinline__ void consume(const Conv3dParams& p, const WideMemory& m) {
    constexpr int SUMS_N = WideTile<N>::SUMS_N;
    Ring halos(m.halo_barriers, p.source_stages), filters(m.filter_barriers, p.filter_stages);
#pragma unroll 1
    for (uint32_t number = blockIdx.x; number < num_works<N>(p); number += gridDim.x) {
        const Work work = work_at<N>(p, number);
        ConsumerTeam().sync();  // nobody reads rows and sums of the tile before any more
        set_up_rows<GRAD>(p, m, work.rows);
        ConsumerTeam().sync();
        float acc[N / 2];
#pragma unroll
        for (int i = 0; i < N / 2; i++) acc[i] = 0.0f;
        sum_up<T, N, GRAD, PROLOGUE>(p, m, work, halos, filters, acc);
#pragma unroll
        for (int i = 0; i < WideTile<N>::COLUMNS; i++) {
            BlockTile b = work.b;
            b.column += i, b.first_c += i * SUMS_N, b.left -= i * SUMS_N;
            if (b.column >= p.columns) break;
            if (i > 0) ConsumerTeam().sync();
            store_column<T, SUMS_N, GRAD>(p, m, work, b, reinterpret_cast<float(&)[SUMS_N / 2]>(acc[i * SUMS_N / 2]));
        }
    }
}

// ---- both --------------------------------------------------------------------------------------------------------------

template <class T, int N, bool GRAD, int PROLOGUE>
__device__ __forceinline__ void conv3d_wgmma(const Conv3dParams& p, const void* source, const void* second, const void* filter) {
    DYN_SMEM(uint8_t, shared);
    WideMemory m = wide_memory<N, PROLOGUE == JOIN ? 2 : 1>(shared, p);
    const RowClass cls = row_class(p.gather, 0);
    m.own_first = -((lowest_offset(cls.h) * p.gather.w.input) + lowest_offset(cls.w));
    set_up_block(m, p, cls);
    __syncthreads();
    // 168 registers each at the start; 128 x 40 + 256 x 232 are as many.
    if (threadIdx.x >= THREADS) {
        setmaxnreg_dec<40>();
        if (threadIdx.x == THREADS) produce<N, GRAD, PROLOGUE>(p, m, source, second, filter);
    } else {
        setmaxnreg_inc<232>();
        consume<T, N, GRAD, PROLOGUE>(p, m);
    }
}
