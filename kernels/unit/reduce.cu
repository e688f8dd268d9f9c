// Unit kernels of what kernels share beyond single instructions: tickets, reductions, moments. Grid and block as stated.
#include "../common/moments.cuh"
#include "../common/reduce.cuh"
#include "../common/ticket.cuh"
#include "unit.cuh"

// Blocks of 96 threads, of which PartTeam uses the last 64. output: u32 [1 + blocks], then the sum of what all blocks wrote;
// its counter is zero before and after. flags[0]: 0 the whole block, 1 a part. Dynamic shared memory: 4 bytes.
extern "C" __global__ void unit_last_block(const UnitArgs args) {
    DYN_SMEM(uint32_t, flag);
    uint32_t* counter = pointer<uint32_t>(args.output);
    uint32_t* partial = counter + 1;
    const auto run = [&](const auto& team) {
        if (team.thread() == 33) partial[blockIdx.x] = blockIdx.x + 1;
        if (!is_last(team, counter, gridDim.x, flag) || team.thread() != 40) return;
        uint32_t sum = 0;
        for (uint32_t i = 0; i < gridDim.x; i++) sum += partial[i];
        partial[gridDim.x] = sum;
    };
    if (args.flags[0] == 0)
        run(BlockTeam());
    else if (threadIdx.x >= 32)
        run(PartTeam<1>{32, 64});
}
SIMT_EXPORT(unit_last_block)

// One block of 96 threads. a: f32 [96]; output: f32 [5][96]: sum over the warp, over groups of 8 lanes, over lanes 4 apart, largest of the
// warp, sum over the block. Dynamic shared memory: 12 bytes.
extern "C" __global__ void unit_reduce(const UnitArgs args) {
    DYN_SMEM(float, shared);
    const int tid = threadIdx.x;
    const float v = pointer<const float>(args.a)[tid];
    float* out = pointer<float>(args.output) + tid;
    out[0 * 96] = warp_sum(v);
    out[1 * 96] = warp_reduce<8>(v, Sum());
    out[2 * 96] = warp_reduce<32, 4>(v, Sum());
    out[3 * 96] = warp_max(v);
    out[4 * 96] = team_reduce(BlockTeam(), v, shared, Sum());
}
SIMT_EXPORT(unit_reduce)

// One warp. a: f32 [32], lane l holds the set of values 4 l .. 4 l + l % 5 of it modulo 32; output: f32 [2][3][32]: moments of all sets
// by warp_merge, and by MomentSums (the same in each lane).
extern "C" __global__ void unit_moments(const UnitArgs args) {
    const int lane = threadIdx.x;
    const float* a = pointer<const float>(args.a);
    float* out = pointer<float>(args.output) + lane;
    const auto set = [&](int l) {
        Moments m = {0.0f, 0.0f, 0.0f};
        for (int i = 0; i < l % 5; i++) m = merge(m, {1.0f, a[(4 * l + i) % 32], 0.0f});
        return m;
    };
    const Moments all = warp_merge(set(lane));
    out[0 * 32] = all.count, out[1 * 32] = all.mean, out[2 * 32] = all.m2;
    MomentSums sums;
    for (int l = 0; l < 32; l++) sums.add(set(l), a[0]);
    out[3 * 32] = float(sums.count), out[4 * 32] = float(sums.mean(a[0])), out[5 * 32] = float(sums.sum_of_squares());
}
SIMT_EXPORT(unit_moments)
