// conv3d forward and grad_input for what the vector kernels do not take: any channels, pitches and alignment, and groups.
// Shapes, types, results and tickets as in conv3d_forward_mma.cu and conv3d_grad_input_mma.cu; elements are loaded and stored
// one by one, channels are filled up with zeros to chunks of 8.
// gemm_k = taps * channels of a group's source, in chunks of 8
// grid    x: tiles of gemm_m times tiles of gemm_n of all groups, these first                 block: 8 warps
// shared  the block's rows and taps (block_memory_bytes), then one stage; in the same place the f32 sums
// needs   less than 2^31 positions; coordinates and filter extents below 2^14
#include "mma.cuh"

constexpr int TILE_N = 64;

// ---- loads -------------------------------------------------------------------------------------------------------------

// Channels c .. c + 7 of a position, changed by the prologue; channels from `end` on are zero. c counts in the whole source.
template <class T>
__device__ __forceinline__ Vec<T, 8> gathered(const Conv3dParams& p, int64_t position, int c, int end, int split,
                                              bool stores) {
    const PrologueParams& f = p.prologue;
    const T* from = reinterpret_cast<const T*>(p.source) + element_of(position, c, p.source_pitch);
    const T* second = reinterpret_cast<const T*>(f.second) + element_of(position, c, f.second_pitch);
    T* store = reinterpret_cast<T*>(f.store) + element_of(position, c, f.store_pitch);
    const float* table = floats(f.table) + int64_t(split) * f.table_rows * f.channels + c;
    const float* second_table = floats(f.second_table) + int64_t(split) * 2 * f.channels + c;
    Vec<T, 8> to;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        to.e[i] = from_f32<T>(0.0f);
        if (c + i >= end) continue;
        to.e[i] = from[i];
        if (!f.table) continue;
        float v = to_f32(from[i]);
        if (f.table_rows == 3) {
            v = fmaf(table[i], v, fmaf(table[f.channels + i], to_f32(second[i]), table[2 * f.channels + i]));
        } else if (f.second) {
            float scale = 1.0f, shift = table[f.channels + i];
            if (f.second_table) scale = second_table[i], shift += second_table[f.channels + i];
            v = fmaf(table[i], v, fmaf(scale, to_f32(second[i]), shift));
        } else {
            v = fmaf(table[i], v, table[f.channels + i]);
        }
        to.e[i] = from_f32<T>(f.has_relu ? relu(v) : v);
        if (stores) store[i] = to.e[i];
    }
    return to;
}

// The filter as [target channel n][chunk of gemm_k]: elements k .. k + 7 of tap `filter_tap`; n counts in the group.
template <class T>
__device__ __forceinline__ Vec<T, 8> filter_chunk(const Conv3dParams& p, int group, int n, int filter_tap, int k) {
    const int num_taps = p.gather.t.filter * p.gather.h.filter * p.gather.w.filter;
    const T* filter = reinterpret_cast<const T*>(p.filter);
    Vec<T, 8> to;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const bool exists = n < p.target_channels && k + i < p.source_channels;
        const int out = p.gather.is_grad ? k + i : n, in = p.gather.is_grad ? n : k + i;
        const int outs = p.gather.is_grad ? p.source_channels : p.target_channels;
        const int ins = p.gather.is_grad ? p.target_channels : p.source_channels;
        to.e[i] = exists ? filter[(int64_t(group * outs + out) * num_taps + filter_tap) * ins + in] : from_f32<T>(0.0f);
    }
    return to;
}

// ---- kernel ------------------------------------------------------------------------------------------------------------

template <class T>
__device__ __forceinline__ void conv3d_checked(const Conv3dParams& p) {
    DYN_SMEM(uint8_t, shared);
    const ConvGather& g = p.gather;
    const BlockMemory m = block_memory(shared, g.t.filter * g.h.filter * g.w.filter);
    BlockTile b = block_tile(p, TILE_M, TILE_N);
    const Run rows = run_of_tile(g, b.number, TILE_M);
    const RowClass cls = row_class(g, b.number.cls);
    b.num_rows = int(rows.num_rows);
    set_up(m, g, rows, cls);
    const int st = g.is_grad ? g.t.output : g.t.input, sh = g.is_grad ? g.h.output : g.h.input;
    const int sw = g.is_grad ? g.w.output : g.w.input;
    const int group = b.first_c / p.target_channels, first_n = b.first_c - group * p.target_channels;
    const int chunks = cls.t.taps * cls.h.taps * cls.w.taps * int(p.source_chunks.divisor);
    const int first_source = group * p.source_channels, column = threadIdx.x % CHUNKS_K;

    float acc[Tile<TILE_N>::MMAS_M][Tile<TILE_N>::MMAS_N][4] = {};
#pragma unroll 1
    for (int step = 0; step * CHUNKS_K < chunks; step++) {
        __syncthreads();
        const int chunk = step * CHUNKS_K + column, tap = int(p.source_chunks.quotient(chunk));
        const int c = (chunk - tap * int(p.source_chunks.divisor)) * 8;
        const bool exists = chunk < chunks;
        const Place at = exists ? m.taps[tap] : Place{0, OUTSIDE, OUTSIDE, 0};
        const bool stores = p.prologue.store != 0 && first_n == 0 && (at.t | at.h | at.w) == 0;
#pragma unroll 1
        for (int row = threadIdx.x / CHUNKS_K; row < TILE_M + TILE_N; row += THREADS / CHUNKS_K) {
            Vec<T, 8> v = {};
            if (row < TILE_M) {
                const Place from = m.rows[row];
                if (exists && is_inside(from, at, st, sh, sw))
                    v = gathered<T>(p, from.linear + at.linear, first_source + c, first_source + p.source_channels,
                                    b.number.split, stores);
            } else if (exists) {
                v = filter_chunk<T>(p, group, first_n + row - TILE_M, m.filter_tap[tap], c);
            }
            *reinterpret_cast<Vec<T, 8>*>(m.stages + chunk_byte<CHUNKS_K>(row, column)) = v;
        }
        __syncthreads();
        const uint32_t a = smem_u32(m.stages);
        multiply<T, TILE_N, false>(acc, a, a + Tile<TILE_N>::A_BYTES, chunks - step * CHUNKS_K);
    }
    __syncthreads();
    float* sums = reinterpret_cast<float*>(m.stages);
    store_sums<TILE_N>(sums, acc);
    __syncthreads();
    if (g.is_grad) finish_tile<T, TILE_N, true, true>(p, m, b, sums);
    else finish_tile<T, TILE_N, false, true>(p, m, b, sums);
}

// ---- variants ----------------------------------------------------------------------------------------------------------

#define CONV3D_CHECKED(name, T)                                                                           \
    extern "C" __global__ void __launch_bounds__(THREADS, 2) name(const __grid_constant__ Conv3dParams p) { \
        begin_grid();                                                                                       \
        conv3d_checked<T>(p);                                                                             \
    }                                                                                                     \
    SIMT_EXPORT(name)

CONV3D_CHECKED(conv3d_gather_checked128x64_bf16, __nv_bfloat16)
CONV3D_CHECKED(conv3d_gather_checked128x64_f16, __half)
