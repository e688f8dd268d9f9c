// Tiles whose gemm_k is cut into slices: blocks of their own leave their sums in memory; the last one adds all of them up, in the
// order of slices.
#pragma once
#include "epilogue.cuh"

// Called by all threads of a team of THREADS, with the sums that each of them holds of the tile b. The same thread reads what the
// thread of its number wrote. Returns whether this team goes on, with the sums of all slices.
template <int SUMS, class Team>
__device__ __forceinline__ bool join_slices(const Conv3dParams& p, const Team& team, const BlockTile& b, int slice,
                                            uint32_t* flag, float (&sums)[SUMS]) {
    static_assert(SUMS % 4 == 0, "moved in vectors");
    const uint64_t tile = uint64_t(b.tile) * p.columns + b.column;
    uint32_t* tickets = reinterpret_cast<uint32_t*>(p.tickets) +
                        int64_t(p.columns) * (p.gather.splits * int(p.groups_per_split) + 1);
    const auto at = [&](int of_slice, int i) {
        const int64_t first = (int64_t(tile) * p.slices + of_slice) * (SUMS * THREADS);
        return reinterpret_cast<float4*>(floats(p.slice_sums) + first) + i * THREADS + threadIdx.x;
    };
#pragma unroll
    for (int i = 0; i < SUMS / 4; i++)
        *at(slice, i) = make_float4(sums[4 * i], sums[4 * i + 1], sums[4 * i + 2], sums[4 * i + 3]);
    if (!is_last(team, tickets + tile, p.slices, flag)) return false;
#pragma unroll
    for (int i = 0; i < SUMS / 4; i++) {
        float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll 1
        for (int s = 0; s < p.slices; s++) {
            const float4 v = __ldcg(at(s, i));
            sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
        }
        sums[4 * i] = sum.x, sums[4 * i + 1] = sum.y, sums[4 * i + 2] = sum.z, sums[4 * i + 3] = sum.w;
    }
    team.sync();  // the flag is used again
    return true;
}
