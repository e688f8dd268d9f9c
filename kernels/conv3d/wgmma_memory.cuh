// What the kernels on wgmma keep in shared memory, and the rings of barriers through which producer and consumers hand it over.
// src/ops/conv3d/plan/wgmma.rs counts the bytes.
#pragma once
#include "tile.cuh"

constexpr int PRODUCERS = 128;            // a warpgroup of which one thread works; the THREADS before it are the consumers
constexpr int ROW_BYTES = TILE_K * 2;     // 128: what a swizzle of 128 bytes exchanges 16-byte chunks in
constexpr int MAX_TAPS = 32;              // a bit each

// The first THREADS threads of the block, at a barrier of their own.
struct ConsumerTeam {
    __device__ __forceinline__ int thread() const { return int(threadIdx.x); }
    __device__ __forceinline__ int size() const { return THREADS; }
    __device__ __forceinline__ void sync() const { named_bar_sync<1>(THREADS); }
};

// A tile of TILE_M rows x WIDTH target channels; its sums leave in COLUMNS tiles of SUMS_N channels.
template <int WIDTH>
struct WideTile {
    static_assert(WIDTH == 64 || WIDTH == 128 || WIDTH == 256, "whole columns of the epilogue");
    static constexpr int SUMS_N = WIDTH < 128 ? WIDTH : 128, COLUMNS = WIDTH / SUMS_N;
    static constexpr int FILTER_BYTES = WIDTH * ROW_BYTES;
};

// A tap of the filter: its distance; the row of the halo that a tile's first row reads with it; its number in the filter.
struct TapOfHalo {
    Place place;
    int32_t halo_row, filter_tap;
};

struct WideMemory {
    uint8_t* halos;            // [source_stages][1 or 2 tensors][halo_rows][TILE_K], 16-byte chunks XORed with row % 8
    uint8_t* filters;          // [filter_stages][WIDTH][TILE_K], or [WIDTH / 64][TILE_K][64] for grad_input; the same
    float* sums;               // [TILE_M][SUMS_PITCH], then the scratch of the epilogue
    TapOfHalo* taps;           // [MAX_TAPS]
    int32_t* frames;           // [MAX_TAPS] first position of a halo, for each frame of the filter, from the tile's first row
    uint32_t* targets;         // [TILE_M]
    uint32_t* inside;          // [TILE_M] bit j: tap j reads inside
    uint32_t* flag;
    uint32_t halo_barriers, filter_barriers;  // [stages][2]
    int32_t own_first;         // row of the halo that is the tile's first row, in the frame at distance 0
};

template <int WIDTH, int TENSORS>
__device__ __forceinline__ WideMemory wide_memory(uint8_t* shared, const Conv3dParams& p) {
    using Sums = Tile<WideTile<WIDTH>::SUMS_N>;
    WideMemory m;
    m.halos = shared;
    m.filters = m.halos + p.source_stages * TENSORS * p.halo_rows * ROW_BYTES;
    m.sums = reinterpret_cast<float*>(m.filters + p.filter_stages * WideTile<WIDTH>::FILTER_BYTES);
    m.taps = reinterpret_cast<TapOfHalo*>(reinterpret_cast<uint8_t*>(m.sums) + Sums::SUMS_BYTES + Sums::SCRATCH_BYTES);
    m.frames = reinterpret_cast<int32_t*>(m.taps + MAX_TAPS);
    m.targets = reinterpret_cast<uint32_t*>(m.frames + MAX_TAPS);
    m.inside = m.targets + TILE_M;
    m.flag = m.inside + TILE_M;
    m.halo_barriers = smem_u32(m.flag + 4);
    m.filter_barriers = m.halo_barriers + p.source_stages * 16;
    m.own_first = 0;
    return m;
}

// Stages one after another, the first after the last. A stage is full when its bytes have come, empty when each warp of the
// consumers has left it; `phase` counts the rounds, modulo 2.
struct Ring {
    uint32_t barriers;
    int stages, slot = 0;
    uint32_t phase = 0;

    __device__ __forceinline__ Ring(uint32_t barriers_, int stages_) : barriers(barriers_), stages(stages_) {}
    __device__ __forceinline__ uint32_t full() const { return barriers + slot * 16; }
    __device__ __forceinline__ uint32_t empty() const { return full() + 8; }
    __device__ __forceinline__ void advance() {
        if (++slot == stages) slot = 0, phase ^= 1;
    }
};
__device__ __forceinline__ void release(uint32_t barrier) {
    __syncwarp();
    if (threadIdx.x % 32 == 0) mbar_arrive(barrier);
}

// By all threads of the block; a __syncthreads lies before the use. The class of rows is the only one.
__device__ __forceinline__ void set_up_block(const WideMemory& m, const Conv3dParams& p, const RowClass& cls) {
    const ConvGather& g = p.gather;
    const int per_frame = cls.h.taps * cls.w.taps, thread = int(threadIdx.x);
    if (thread < cls.t.taps * per_frame) {
        const int jt = thread / per_frame, jh = (thread - jt * per_frame) / cls.w.taps;
        const int jw = thread - (jt * cls.h.taps + jh) * cls.w.taps;
        const Place at = place(0, cls.t.offset(jt), cls.h.offset(jh), cls.w.offset(jw), g.t.input, g.h.input, g.w.input);
        m.taps[thread] = {at, run_halo_row(cls, jh, jw, g.w.input),
                          (cls.t.tap(jt) * g.h.filter + cls.h.tap(jh)) * g.w.filter + cls.w.tap(jw)};
    }
    if (thread < cls.t.taps) m.frames[thread] = run_halo_first(cls, thread, g.h.input, g.w.input);
    if (thread == 0) {
#pragma unroll 1
        for (int i = 0; i < p.source_stages + p.filter_stages; i++) {
            mbar_init(m.halo_barriers + i * 16, 1);
            mbar_init(m.halo_barriers + i * 16 + 8, THREADS / 32);
        }
        fence_mbar_init();
    }
}
