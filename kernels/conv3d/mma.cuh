// The convolution as a product of matrices on mma.sync: what the kernels of conv3d_forward_mma.cu and
// conv3d_grad_input_mma.cu share. One block makes one tile of rows x target channels, or one slice of its gemm_k.
//
// The steps of gemm_k go through STAGES stages of shared memory: wait for the oldest copies, change the own chunks of A by the
// prologue, meet, start the copies of a step further on, multiply.
#pragma once
#include "epilogue.cuh"
#include "gather.cuh"
#include "slices.cuh"

// Which tile this block makes: neighbouring blocks share rows. num_rows is left open.
__device__ __forceinline__ BlockTile block_tile(const Conv3dParams& p, int tile_m, int tile_n) {
    BlockTile b;
    b.tile = blockIdx.x / uint32_t(p.columns), b.column = int(blockIdx.x - b.tile * uint32_t(p.columns));
    b.number = tile_number(p.gather, b.tile, p.tiles_per_split, tile_m);
    b.num_rows = 0;
    const int columns_of_group = p.columns / p.groups, group = b.column / columns_of_group;
    const int first = (b.column - group * columns_of_group) * tile_n;
    b.first_c = group * p.target_channels + first, b.left = p.target_channels - first;
    b.channels = p.groups * p.target_channels;
    return b;
}
template <class T, int N, bool GRAD, int PROLOGUE>
__device__ __forceinline__ void conv3d_mma(const Conv3dParams& p) {
    using Gather = Gather<T, N, GRAD, PROLOGUE>;
    constexpr int DEPTH = STAGES<PROLOGUE>, STAGE = Gather::STAGE;
    DYN_SMEM(uint8_t, shared);
    const ConvGather& g = p.gather;
    const BlockMemory m = block_memory(shared, g.t.filter * g.h.filter * g.w.filter);
    BlockTile b = block_tile(p, TILE_M, N);
    const Run rows = run_of_tile(g, b.number, TILE_M);
    const RowClass cls = row_class(g, b.number.cls);
    b.num_rows = int(rows.num_rows);
    set_up(m, g, rows, cls);
    __syncthreads();

    // This block's part of gemm_k.
    const int chunks = cls.t.taps * cls.h.taps * cls.w.taps * int(p.source_chunks.divisor);
    const int all_steps = (chunks + CHUNKS_K - 1) / CHUNKS_K, steps_of_slice = (all_steps + p.slices - 1) / p.slices;
    const int first_step = min(all_steps, int(blockIdx.y) * steps_of_slice);
    const int last_step = min(all_steps, first_step + steps_of_slice);
    Gather gather{p, m, b.number.split, b.first_c, chunks,
                  {GRAD ? g.t.output : g.t.input, GRAD ? g.h.output : g.h.input, GRAD ? g.w.output : g.w.input}};

    float acc[Tile<N>::MMAS_M][Tile<N>::MMAS_N][4] = {};
    const auto stage = [&](int slot) { return m.stages + slot * STAGE; };
    const auto load = [&](int step, int slot) {
        if (step < last_step) {
            gather.load_a(step, stage(slot), slot);
            gather.load_b(step, stage(slot));
        }
        cp_async_commit();
    };
#pragma unroll 1
    for (int slot = 0; slot < DEPTH - 1; slot++) load(first_step + slot, slot);
    int slot = 0, free_slot = DEPTH - 1;
#pragma unroll 1
    for (int step = first_step; step < last_step; step++) {
        if constexpr (PROLOGUE != PLAIN) {
            typename Gather::Factors factors;
            gather.load_factors_of(step, factors);
            cp_async_wait<DEPTH - 2>();
            gather.transform(step, stage(slot), slot, factors);
        } else {
            cp_async_wait<DEPTH - 2>();
        }
        __syncthreads();
        load(step + DEPTH - 1, free_slot);
        const uint32_t a = smem_u32(stage(slot));
        multiply<T, N, GRAD>(acc, a, a + Gather::B, chunks - step * CHUNKS_K);
        free_slot = slot;
        slot = slot + 1 == DEPTH ? 0 : slot + 1;
    }
    cp_async_wait<0>();
    if (p.slices > 1) {
        constexpr int SUMS = sizeof(acc) / sizeof(float);
        if (!join_slices(p, BlockTeam(), b, blockIdx.y, m.flag, reinterpret_cast<float(&)[SUMS]>(acc))) return;
    }
    __syncthreads();
    float* sums = reinterpret_cast<float*>(m.stages);
    store_sums<N>(sums, acc);
    __syncthreads();
    finish_tile<T, N, GRAD, false>(p, m, b, sums);
}
