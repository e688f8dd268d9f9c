// The convolution of few channels (32 at most on either side) and several taps: what a box of rows reads is loaded once, with
// its halo, changed once by the prologue, and stays in shared memory with the whole filter; all taps are read from there.
//
// The halo is [positions of the halo][chunks of the source's channels]: a matrix row of ldmatrix is one chunk of one position,
// so any rows and taps can be brought together, two chunks (of one tap or of two) for each k16. A tile has 4096 sums: 512, 256
// or 128 rows of 8, 16 or 32 channels.
#pragma once
#include "gather.cuh"
#include "mma.cuh"

// Shared memory of a block. src/ops/conv3d/plan.rs counts the bytes.
template <int N>
struct HaloMemory {
    int32_t* row_place;    // [M] position in the halo that a row reads with the tap of the smallest distances
    uint32_t* targets;     // [M] position of the target
    uint32_t* flag;        // [4]
    int32_t* chunk_place;  // [chunks + 1] of gemm_k: distance in the halo * 4 + chunk of channels; the last: the zero chunk
    uint8_t* filter;       // [steps][B_BYTES]
    uint8_t* halo;         // [positions][chunks], a zero chunk; again for the second tensor; in the same place the sums
};
HOST_DEVICE int32_t halo_memory_bytes(int32_t tile_m, int32_t chunks) {
    return (tile_m * 8 + 16 + (chunks + 1) * 4 + 127) / 128 * 128;
}
template <int N>
__device__ __forceinline__ HaloMemory<N> halo_memory(uint8_t* shared, int most_chunks) {
    constexpr int M = Tile<N>::M;
    int32_t* ints = reinterpret_cast<int32_t*>(shared);
    uint8_t* filter = shared + halo_memory_bytes(M, most_chunks);
    const int steps = (most_chunks + CHUNKS_K - 1) / CHUNKS_K;
    return {ints, reinterpret_cast<uint32_t*>(ints + M), reinterpret_cast<uint32_t*>(ints + 2 * M), ints + 2 * M + 4,
            filter, filter + steps * Tile<N>::B_BYTES};
}

// ---- loads -------------------------------------------------------------------------------------------------------------

// The filter by steps of gemm_k, as the other kernels stage it: [N][TILE_K], or [TILE_K][N] for grad_input.
template <class T, int N, bool GRAD>
__device__ __forceinline__ void load_filter(const Conv3dParams& p, const RowClass& cls, uint8_t* to, int chunks) {
    using Tile = Tile<N>;
    const ConvGather& g = p.gather;
    const int all_taps = g.t.filter * g.h.filter * g.w.filter, per_frame = cls.h.taps * cls.w.taps;
    const int of_steps = (chunks + CHUNKS_K - 1) / CHUNKS_K * N * CHUNKS_K;
    const T* filter = reinterpret_cast<const T*>(p.filter);
#pragma unroll 1
    for (int i = threadIdx.x; i < of_steps; i += THREADS) {
        const int step = i / (N * CHUNKS_K), in_step = i % (N * CHUNKS_K);
        uint8_t* stage = to + step * Tile::B_BYTES;
        int64_t element;
        bool exists;
        uint32_t address;
        if constexpr (GRAD) {
            const int row = in_step / Tile::CHUNKS_N, column = in_step % Tile::CHUNKS_N;
            const int chunk = step * CHUNKS_K + row / 8, tap = int(p.source_chunks.quotient(chunk));
            const int c = (chunk - tap * int(p.source_chunks.divisor)) * 8 + row % 8;
            exists = chunk < chunks && column * 8 < p.target_channels;
            int filter_tap = 0;
            if (exists) {
                const int t = tap / per_frame, h = (tap - t * per_frame) / cls.w.taps, w = tap - (t * cls.h.taps + h) * cls.w.taps;
                filter_tap = (cls.t.tap(t) * g.h.filter + cls.h.tap(h)) * g.w.filter + cls.w.tap(w);
            }
            element = (int64_t(c) * all_taps + filter_tap) * p.target_channels + column * 8;
            address = smem_u32(stage + chunk_byte<Tile::CHUNKS_N>(row, column));
        } else {
            const int row = in_step / CHUNKS_K, column = in_step % CHUNKS_K, chunk = step * CHUNKS_K + column;
            exists = chunk < chunks && row < p.target_channels;
            element = int64_t(row) * all_taps * p.source_channels + chunk * 8;
            address = smem_u32(stage + chunk_byte<CHUNKS_K>(row, column));
        }
        cp_async16(address, filter + (exists ? element : 0), exists ? 16 : 0);
    }
}

// Where a thread's chunks of the halo lie. Each thread keeps to one chunk of channels.
struct HaloWalk {
    HaloAxis t, h, w;
    FastDiv by_h, by_w;
    int chunk, chunks, first, step, positions;  // positions first, first + step, ...

    __device__ __forceinline__ Position at(int i) const {
        const uint32_t th = by_w.quotient(i), q = by_h.quotient(th);
        return {0, t.first + int(q), h.first + int(th - q * by_h.divisor), w.first + int(i - th * by_w.divisor)};
    }
};

// ---- products ----------------------------------------------------------------------------------------------------------

template <class T, int N, bool GRAD>
__device__ __forceinline__ void multiply_halo(float (&acc)[Tile<N>::MMAS_M][Tile<N>::MMAS_N][4], const HaloMemory<N>& m,
                                              int chunks, int chunks_of_position) {
    using Tile = Tile<N>;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const uint32_t halo = smem_u32(m.halo), filter = smem_u32(m.filter);
    int places[Tile::MMAS_M];
#pragma unroll
    for (int i = 0; i < Tile::MMAS_M; i++) places[i] = m.row_place[warp * Tile::WARP_M + i * 16 + lane % 16];
#pragma unroll 1
    for (int chunk = 0; chunk < chunks; chunk += 2) {
        const int own = chunk + lane / 16, place = m.chunk_place[min(own, chunks)];
        uint32_t fb[Tile::MMAS_N][2];
        const uint32_t b = filter + chunk / CHUNKS_K * Tile::B_BYTES;
        const int k = chunk % CHUNKS_K;
        if constexpr (N == 8) {
            if constexpr (GRAD) ldmatrix<2, true>(fb[0], b + chunk_byte<1>(k * 8 + lane % 16, 0));
            else ldmatrix<2, false>(fb[0], b + chunk_byte<CHUNKS_K>(lane % 8, k + lane / 8 % 2));
        } else {
#pragma unroll
            for (int j = 0; j < Tile::MMAS_N; j += 2) {
                uint32_t both[4];
                if constexpr (GRAD)
                    ldmatrix<4, true>(both, b + chunk_byte<Tile::CHUNKS_N>(k * 8 + lane % 16, j + lane / 16));
                else
                    ldmatrix<4, false>(both, b + chunk_byte<CHUNKS_K>(j * 8 + lane / 16 * 8 + lane % 8, k + lane / 8 % 2));
                fb[j][0] = both[0], fb[j][1] = both[1], fb[j + 1][0] = both[2], fb[j + 1][1] = both[3];
            }
        }
#pragma unroll
        for (int i = 0; i < Tile::MMAS_M; i++) {
            // The chunk after the last is the zero chunk, whatever the row.
            const int at = own < chunks ? chunk_of_row(places[i] + (place >> 2), place & 3, chunks_of_position) : place;
            uint32_t fa[4];
            ldmatrix<4, false>(fa, halo + at * 16);
#pragma unroll
            for (int j = 0; j < Tile::MMAS_N; j++) mma_m16n8k16<IS_BF16<T>>(acc[i][j], fa, fb[j]);
        }
    }
}

// ---- kernel ------------------------------------------------------------------------------------------------------------

// Rows, targets and chunks; a __syncthreads lies before their use.
template <int N, bool GRAD>
__device__ __forceinline__ void set_up_halo(const Conv3dParams& p, const HaloMemory<N>& m, const Box& box,
                                            const RowClass& cls, const HaloWalk& walk, int chunks) {
    const ConvGather& g = p.gather;
    const int th = GRAD ? g.h.input : g.h.output, tw = GRAD ? g.w.input : g.w.output, tt = GRAD ? g.t.input : g.t.output;
    const int num_rows = box.t * box.h * box.w;
#pragma unroll 1
    for (int r = threadIdx.x; r < Tile<N>::M; r += THREADS) {
        m.row_place[r] = 0;
        m.targets[r] = 0;
        if (r >= num_rows) continue;
        const Position q = position_of_row(r, box.t, box.h, box.w);
        m.row_place[r] = ((q.t * cls.t.row_step) * walk.h.size + q.h * cls.h.row_step) * walk.w.size + q.w * cls.w.row_step;
        const Position to = {box.first.n, cls.t.target(box.first.t + q.t), cls.h.target(box.first.h + q.h),
                             cls.w.target(box.first.w + q.w)};
        m.targets[r] = uint32_t(row_of_position(to, tt, th, tw));
    }
    const int per_frame = cls.h.taps * cls.w.taps;
#pragma unroll 1
    for (int i = threadIdx.x; i <= chunks; i += THREADS) {
        if (i == chunks) {
            m.chunk_place[i] = walk.positions * walk.chunks;
            break;
        }
        const int tap = int(p.source_chunks.quotient(i)), c = i - tap * int(p.source_chunks.divisor);
        const int t = tap / per_frame, h = (tap - t * per_frame) / cls.w.taps, w = tap - (t * cls.h.taps + h) * cls.w.taps;
        // Distances from the smallest, which the first coordinate of the halo belongs to.
        const int dt = box.first.t * cls.t.row_step + cls.t.offset(t) - walk.t.first;
        const int dh = box.first.h * cls.h.row_step + cls.h.offset(h) - walk.h.first;
        const int dw = box.first.w * cls.w.row_step + cls.w.offset(w) - walk.w.first;
        m.chunk_place[i] = ((dt * walk.h.size + dh) * walk.w.size + dw) * 4 + c;
    }
}

template <class T, int N, bool GRAD, int PROLOGUE>
__device__ __forceinline__ void conv3d_halo(const Conv3dParams& p) {
    using Tile = Tile<N>;
    DYN_SMEM(uint8_t, shared);
    const ConvGather& g = p.gather;
    const int most_chunks = g.t.filter * g.h.filter * g.w.filter * int(p.source_chunks.divisor);
    const HaloMemory<N> m = halo_memory<N>(shared, most_chunks);
    BlockTile b = block_tile(p, Tile::M, N);
    const RowClass cls = row_class(g, b.number.cls);
    const Box box = box_of_tile(g, b.number);
    b.num_rows = box.t * box.h * box.w;
    const int chunks_of_position = int(p.source_chunks.divisor);
    const int chunks = cls.t.taps * cls.h.taps * cls.w.taps * chunks_of_position;
    float acc[Tile::MMAS_M][Tile::MMAS_N][4] = {};

    HaloWalk walk{};
    walk.t = halo_axis(cls.t, box.first.t, box.t), walk.h = halo_axis(cls.h, box.first.h, box.h);
    walk.w = halo_axis(cls.w, box.first.w, box.w);
    walk.by_h = fast_div(walk.h.size), walk.by_w = fast_div(walk.w.size);
    walk.chunks = chunks_of_position, walk.chunk = int(threadIdx.x) % chunks_of_position;
    walk.first = int(threadIdx.x) / chunks_of_position, walk.step = THREADS / chunks_of_position;
    walk.positions = chunks > 0 ? walk.t.size * walk.h.size * walk.w.size : 0;
    if (walk.first >= walk.step) walk.first = walk.positions;  // threads that no chunk is left for
    const int second = (walk.positions * walk.chunks + 1) * 16;  // bytes to the second tensor's halo
    const int st = GRAD ? g.t.output : g.t.input, sh = GRAD ? g.h.output : g.h.input, sw = GRAD ? g.w.output : g.w.input;
    const int c = walk.chunk * 8;

    uint32_t inside_bits = 0;  // of the thread's chunks; at most 32, see plan.rs
    int number = 0;
#pragma unroll 1
    for (int i = walk.first; i < walk.positions; i += walk.step, number++) {
        const Position q = walk.at(i);
        const bool inside = uint32_t(q.t) < uint32_t(st) && uint32_t(q.h) < uint32_t(sh) && uint32_t(q.w) < uint32_t(sw);
        const int64_t position = inside ? ((int64_t(box.first.n) * st + q.t) * sh + q.h) * sw + q.w : 0;
        const uint32_t to = smem_u32(m.halo) + chunk_of_row(i, walk.chunk, walk.chunks) * 16;
        cp_async16(to, reinterpret_cast<const T*>(p.source) + (inside ? element_of(position, c, p.source_pitch) : 0),
                   inside ? 16 : 0);
        if constexpr (PROLOGUE == JOIN)
            cp_async16(to + second,
                       reinterpret_cast<const T*>(p.prologue.second) +
                           (inside ? element_of(position, c, p.prologue.second_pitch) : 0),
                       inside ? 16 : 0);
        inside_bits |= uint32_t(inside) << number;
    }
    load_filter<T, N, GRAD>(p, cls, m.filter, chunks);
    cp_async_commit();
    if (threadIdx.x == 0) *reinterpret_cast<uint4*>(m.halo + walk.positions * walk.chunks * 16) = make_uint4(0, 0, 0, 0);
    set_up_halo<N, GRAD>(p, m, box, cls, walk, chunks);

    if constexpr (PROLOGUE != PLAIN) {
        std::conditional_t<PROLOGUE == JOIN, JoinChunk, AffineChunk> factors;
        if (walk.first < walk.positions) load_factors(factors, p.prologue, b.number.split, c);
        cp_async_wait<0>();
        number = 0;
#pragma unroll 1
        for (int i = walk.first; i < walk.positions; i += walk.step, number++) {
            if (!(inside_bits >> number & 1)) continue;
            auto* chunk = reinterpret_cast<Vec<T, 8>*>(m.halo + chunk_of_row(i, walk.chunk, walk.chunks) * 16);
            if constexpr (PROLOGUE == JOIN) {
                const auto other = *reinterpret_cast<const Vec<T, 8>*>(reinterpret_cast<uint8_t*>(chunk) + second);
                const Vec<T, 8> v = transformed(*chunk, other, factors, p.prologue.has_relu);
                *chunk = v;
                // The box that a position is a row of stores it.
                const Position q = walk.at(i);
                const int dt = q.t - box.first.t, dh = q.h - box.first.h, dw = q.w - box.first.w;
                if (p.prologue.store != 0 && uint32_t(dt) < uint32_t(box.t) && uint32_t(dh) < uint32_t(box.h) &&
                    uint32_t(dw) < uint32_t(box.w)) {
                    const int64_t position = ((int64_t(box.first.n) * st + q.t) * sh + q.h) * sw + q.w;
                    *reinterpret_cast<Vec<T, 8>*>(reinterpret_cast<T*>(p.prologue.store) +
                                                  element_of(position, c, p.prologue.store_pitch)) = v;
                }
            } else {
                *chunk = transformed(*chunk, factors);
            }
        }
    } else {
        cp_async_wait<0>();
    }
    __syncthreads();
    multiply_halo<T, N, GRAD>(acc, m, chunks, chunks_of_position);
    __syncthreads();
    float* sums = reinterpret_cast<float*>(m.halo);
    store_sums<N>(sums, acc);
    __syncthreads();
    const BlockMemory of_tile = {nullptr, m.targets, m.flag, nullptr, nullptr, nullptr};
    finish_tile<T, N, GRAD, false>(p, of_tile, b, sums);
}
