// Where grad_filter's sums go: to the filter's gradient, or as one part's sums to the workspace, from which they are added
// up in the order of the splits and of their parts.
#pragma once
#include "grad_filter_params.cuh"

// What a block makes of the matrix view.
struct BlockTile {
    int32_t group, out_chunk, slab_chunk, first_tap, num_taps;
    int32_t split = 0;  // whose gradient it makes, where each split has one
};

// Blocks in x: tap block fastest, then slab, output channels, group.
__device__ __forceinline__ BlockTile block_tile(const GradFilterParams& p, int index) {
    const int rest = index / p.num_tap_blocks, tap_block = index - rest * p.num_tap_blocks;
    const int rest2 = rest / p.num_slabs, slab = rest - rest2 * p.num_slabs;
    const int group = rest2 / p.num_out_blocks, out_block = rest2 - group * p.num_out_blocks;
    const int first_tap = tap_block * p.taps_per_block, taps = p.t.taps * p.h.taps * p.w.taps;
    return {group, out_block * p.out_chunks, slab * p.slab_chunks, first_tap, min(p.taps_per_block, taps - first_tap)};
}

// Columns of a block come in octets: for each of its taps the chunks of its slab, then one of ones, for the bias, in the
// block that makes the first columns.
__device__ __forceinline__ bool has_bias(const GradFilterParams& p, const BlockTile& b) {
    return p.grad_bias != 0 && b.slab_chunk == 0 && b.first_tap == 0;
}
__device__ __forceinline__ int octets_of(const GradFilterParams& p, const BlockTile& b) {
    return b.num_taps * p.slab_chunks + (has_bias(p, b) ? 1 : 0);
}

// The gradient's element that is column `in_octet` of `octet`, `out` of the block's output channels; null where there is none. These
// come once for each tap of t that the gradient's rows are shifted by; the columns' taps are then those of h and w.
__device__ __forceinline__ float* place_of_sum(const GradFilterParams& p, const BlockTile& b, int octet, int in_octet, int out) {
    const int tap_t = out / (p.out_chunks * 8), of_group = b.out_chunk * 8 + out - tap_t * p.out_chunks * 8;
    if (of_group >= p.c_out || tap_t >= p.grad_taps) return nullptr;
    const int c_out = (b.group + b.split) * p.c_out + of_group;  // splits only where there is one group
    const int of_taps = b.num_taps * p.slab_chunks;
    if (octet >= of_taps)
        return octet == of_taps && in_octet == 0 && has_bias(p, b) ? reinterpret_cast<float*>(p.grad_bias) + c_out : nullptr;
    const int tap_of_block = octet / p.slab_chunks;
    int tap = b.first_tap + tap_of_block;
    int c_in = (b.slab_chunk + octet - tap_of_block * p.slab_chunks) * 8 + in_octet;
    int taps = p.t.taps * p.h.taps * p.w.taps;
    if (p.has_pixel_pairs) {
        const int row = tap / p.w.taps, tap_w = (tap - row * p.w.taps) * 2 + in_octet / 4;
        if (tap_w >= p.filter_w) return nullptr;
        tap = row * p.filter_w + tap_w;
        taps = p.t.taps * p.h.taps * p.filter_w;
        c_in = in_octet % 4;
    }
    if (c_in >= p.c_in) return nullptr;
    const int64_t element = filter_element(c_out, tap_t * taps + tap, c_in, p.grad_taps * taps, p.c_in);
    return reinterpret_cast<float*>(p.grad_filter) + element;
}

// Octets of output channels of a block.
__device__ __forceinline__ int num_out_octets(const GradFilterParams& p) { return p.out_chunks * p.grad_taps; }

// A lane's four sums of one 16 x 8 fragment: unit `unit` (two octets) of warp (warp_m, warp_n), output octet `out_octet`. Calls
// `use` with the place of each that has one.
template <class Use>
__device__ __forceinline__ void for_places(const GradFilterParams& p, const BlockTile& b, int warp_m, int warp_n, int unit,
                                           int out_octet, int lane, Use use) {
    const int octet = (warp_m * p.units + unit) * 2, out = (warp_n * p.out_octets + out_octet) * 8 + lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float* place = place_of_sum(p, b, octet + i / 2, lane / 4, out + i % 2);
        if (place) use(i, place);
    }
}
__device__ __forceinline__ void store_fragment(const GradFilterParams& p, const BlockTile& b, int warp_m, int warp_n, int unit,
                                               int out_octet, int lane, const float (&sums)[4]) {
    for_places(p, b, warp_m, warp_n, unit, out_octet, lane, [&](int i, float* place) { *place = sums[i]; });
}
// The sums over the splits before.
__device__ __forceinline__ void load_fragment(const GradFilterParams& p, const BlockTile& b, int warp_m, int warp_n, int unit,
                                              int out_octet, int lane, float (&sums)[4]) {
    for_places(p, b, warp_m, warp_n, unit, out_octet, lane, [&](int i, float* place) { sums[i] = *place; });
}

// ---- parts -------------------------------------------------------------------------------------------------------------

// Fragments of a block: [warp_m][warp_n][unit][out_octet].
__device__ __forceinline__ int num_fragments(const GradFilterParams& p) {
    return p.warps_m * p.warps_n * p.units * p.out_octets;
}
// Where lane `lane` of a fragment keeps its four sums.
__device__ __forceinline__ float4* partial(const GradFilterParams& p, int part, int block, int fragment, int lane) {
    const int64_t index = (int64_t(part) * p.num_blocks + block) * num_fragments(p) + fragment;
    return reinterpret_cast<float4*>(p.partials) + index * 32 + lane;
}

// Adds up the parts first .. end - 1 of one lane of a fragment, in their order.
__device__ __forceinline__ void add_parts(const GradFilterParams& p, int block, int fragment, int lane, int first, int end,
                                          float (&sums)[4]) {
    const float4* from = partial(p, first, block, fragment, lane);
    const int64_t step = int64_t(p.num_blocks) * num_fragments(p) * 32;
#pragma unroll 8
    for (int part = first; part < end; part++, from += step) {
        const float4 v = __ldcs(from);
        sums[0] += v.x, sums[1] += v.y, sums[2] += v.z, sums[3] += v.w;
    }
}
