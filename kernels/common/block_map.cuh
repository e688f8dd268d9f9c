// The threads of a block over the rows of a tile and the channels of a column: neighbouring threads take neighbouring vectors
// of channels, so that a warp reads whole lines. A row of the tile is walked by the threads of one row_thread; these take the
// rows row_thread, row_thread + row_threads, ...
#pragma once
#include "ptx.cuh"

struct BlockMap {
    int lanes, row_threads;    // threads along channels and along rows; the rest is idle
    int row_thread, channel;   // the thread's, and the first of its channels
    bool works;                // whether there is a channel for it

    __device__ __forceinline__ BlockMap(int threads, int vector, int column, int first_channel, int channels) {
        lanes = column / vector, row_threads = threads / lanes;
        row_thread = int(threadIdx.x) / lanes;
        channel = first_channel + (int(threadIdx.x) - row_thread * lanes) * vector;
        works = row_thread < row_threads && channel < channels;
    }
};

// Joins what the row_threads of a block have, in one fixed order, into that of row_thread 0. Sums: put(shared, slot) and
// take(shared, slot), which joins another's. `shared` has a slot a thread.
template <class Sums>
__device__ __forceinline__ void join_rows(Sums& own, const BlockMap& map, float* shared) {
    for (int rows = map.row_threads; rows > 1;) {
        const int half = (rows + 1) / 2;
        if (map.row_thread >= half && map.row_thread < rows) own.put(shared, int(threadIdx.x));
        __syncthreads();
        if (map.row_thread < rows - half) own.take(shared, int(threadIdx.x) + half * map.lanes);
        __syncthreads();
        rows = half;
    }
}

// Plain sums of two values a channel.
template <int N, int THREADS>
struct PairSums {
    static constexpr int SHARED_FLOATS = 2 * N * THREADS;
    float first[N] = {}, second[N] = {};

    // Slots lie side by side, value by value: no two threads of a warp meet in a bank.
    __device__ __forceinline__ void put(float* shared, int slot) const {
#pragma unroll
        for (int i = 0; i < N; i++) shared[i * THREADS + slot] = first[i], shared[(N + i) * THREADS + slot] = second[i];
    }
    __device__ __forceinline__ void take(const float* shared, int slot) {
#pragma unroll
        for (int i = 0; i < N; i++) first[i] += shared[i * THREADS + slot], second[i] += shared[(N + i) * THREADS + slot];
    }
};
