// The threads that work on something together: a whole block, or some of its warps where others have another duty. What
// takes a team is called by all of its threads. Blocks have one dimension.
#pragma once
#include "ptx.cuh"

// All threads of the block.
struct BlockTeam {
    __device__ __forceinline__ int thread() const { return int(threadIdx.x); }
    __device__ __forceinline__ int size() const { return int(blockDim.x); }
    __device__ __forceinline__ void sync() const { __syncthreads(); }
};

// Threads first .. first + num of the block, both multiples of 32, which meet at the named barrier ID.
template <int ID>
struct PartTeam {
    int first, num;
    __device__ __forceinline__ int thread() const { return int(threadIdx.x) - first; }
    __device__ __forceinline__ int size() const { return num; }
    __device__ __forceinline__ void sync() const { named_bar_sync<ID>(num); }
};
