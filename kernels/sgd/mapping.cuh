// Which elements of a task a thread has. Plain C++, so that a host test reads these very functions.
#pragma once
#include "params.cuh"

#ifdef __CUDACC__
#define SGD_FUNCTION __host__ __device__ __forceinline__
#else
#define SGD_FUNCTION inline
#endif

constexpr int SGD_THREADS = 256;
constexpr int SGD_VECTOR = 4;
constexpr int SGD_ROUNDS = SGD_TILE / (SGD_THREADS * SGD_VECTOR);

// The index of the first element of vector `round` of a thread; vectors of a tile lie at multiples of SGD_VECTOR.
SGD_FUNCTION uint64_t first_element(const SgdTask& task, int round, int thread) {
    return task.begin / SGD_TILE * SGD_TILE + uint64_t(round * SGD_THREADS + thread) * SGD_VECTOR;
}

// Bit i: element i of the vector belongs to the task.
SGD_FUNCTION uint32_t own_elements(const SgdTask& task, uint64_t first) {
    if (first >= task.begin && first + SGD_VECTOR <= task.begin + task.len) return 15u;
    uint32_t own = 0;
    for (int i = 0; i < SGD_VECTOR; i++) own |= uint32_t(first + i >= task.begin && first + i < task.begin + task.len) << i;
    return own;
}
