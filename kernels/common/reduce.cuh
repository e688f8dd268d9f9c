// Reductions over the lanes of a warp and the threads of a team, in one fixed order: equal bits in every run, and the same
// result in every lane or thread.
#pragma once
#include "ptx.cuh"
#include "team.cuh"

struct Sum {
    template <class T>
    __device__ __forceinline__ T operator()(T a, T b) const {
        return a + b;
    }
};
// A NaN loses, as in fmaxf.
struct Max {
    __device__ __forceinline__ float operator()(float a, float b) const { return fmaxf(a, b); }
};

// Over groups of WIDTH neighbouring lanes whose numbers differ by multiples of STEP: lanes STEP apart are joined first.
template <int WIDTH = 32, int STEP = 1, class T, class Op>
__device__ __forceinline__ T warp_reduce(T v, Op op) {
    static_assert((WIDTH & (WIDTH - 1)) == 0 && WIDTH <= 32 && (STEP & (STEP - 1)) == 0 && STEP <= WIDTH, "powers of 2");
#pragma unroll
    for (int bit = STEP; bit < WIDTH; bit *= 2) v = op(v, __shfl_xor_sync(~0u, v, bit));
    return v;
}
template <class T>
__device__ __forceinline__ T warp_sum(T v) {
    return warp_reduce(v, Sum());
}
__device__ __forceinline__ float warp_max(float v) { return warp_reduce(v, Max()); }

// Over all threads of a team. `shared`: T [team.size() / 32]; a sync of the team lies before its next use.
template <class Team, class T, class Op>
__device__ __forceinline__ T team_reduce(const Team& team, T v, T* shared, Op op) {
    v = warp_reduce(v, op);
    if (team.thread() % 32 == 0) shared[team.thread() / 32] = v;
    team.sync();
    T all = shared[0];
    for (int warp = 1; warp < team.size() / 32; warp++) all = op(all, shared[warp]);
    return all;
}
