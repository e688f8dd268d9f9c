// From the tiles' partial sums to the tables of batch norm, by the blocks that happen to be last: the last block of a group
// of tiles joins these, the last one of all joins the groups, in the order of tiles. So the result does not depend on who was
// last, and no block reads more than about two square roots of the number of tiles.
//
// Forward: count, mean and M2 of the stored values, per tile and channel. grad_input: sum g, and sum g (y - mean) for each
// batch norm. Partials: [tiles or groups][rows of sums][channels].
#pragma once
#include "../batch_norm/finalise.cuh"
#include "../common/moments.cuh"
#include "../common/reduce.cuh"
#include "../common/ticket.cuh"
#include "tile.cuh"

// The partials of one channel: set i, sum row r is base[(i * rows + r) * channels].
struct Partials {
    const float* base;
    int rows, channels;

    __device__ __forceinline__ float at(int set, int row) const {
        return __ldcg(base + (int64_t(set) * rows + row) * channels);
    }
};

// A part of the sets for each of the THREADS / N threads of a channel: in order, without gaps.
template <int N>
__device__ __forceinline__ void part_of_sets(int num_sets, int& first, int& last) {
    constexpr int PARTS = THREADS / N;
    const int part = threadIdx.x / N;
    first = int(int64_t(num_sets) * part / PARTS), last = int(int64_t(num_sets) * (part + 1) / PARTS);
}

// Joins sets of values. The result is of use to the threads below N, one a channel; it is relative to `origin`, the first
// set's mean.
template <int N, class Team>
__device__ __forceinline__ MomentSums join_moments(const Partials& from, int first_set, int num_sets, bool exists,
                                                   float& origin, double* scratch) {
    MomentSums sums;
    int first, last;
    part_of_sets<N>(num_sets, first, last);
    if (exists) {
        origin = from.at(first_set, 1);
#pragma unroll 4
        for (int i = first_set + first; i < first_set + last; i++)
            sums.add(Moments{from.at(i, 0), from.at(i, 1), from.at(i, 2)}, origin);
    }
    double* own = scratch + threadIdx.x * 4;
    own[0] = sums.count, own[1] = sums.distance, own[2] = sums.square, own[3] = sums.m2;
    Team().sync();
    if (threadIdx.x < N)
#pragma unroll 1
        for (int part = 1; part < THREADS / N; part++) {
            const double* other = own + part * N * 4;
            MomentSums more;
            more.count = other[0], more.distance = other[1], more.square = other[2], more.m2 = other[3];
            sums.add(more);
        }
    Team().sync();
    return sums;
}

// The same for plain sums, up to three rows.
template <int N, class Team>
__device__ __forceinline__ void join_sums(double (&sums)[3], const Partials& from, int first_set, int num_sets, bool exists,
                                          double* scratch) {
    int first, last;
    part_of_sets<N>(num_sets, first, last);
    double* own = scratch + threadIdx.x * 4;
#pragma unroll
    for (int row = 0; row < 3; row++) {
        sums[row] = 0.0;
        if (exists && row < from.rows)
#pragma unroll 4
            for (int i = first; i < last; i++) sums[row] += double(from.at(first_set + i, row));
        own[row] = sums[row];
    }
    Team().sync();
    if (threadIdx.x < N)
#pragma unroll 1
        for (int part = 1; part < THREADS / N; part++)
            for (int row = 0; row < 3; row++) sums[row] += own[part * N * 4 + row];
    Team().sync();
}

// ---- tables ------------------------------------------------------------------------------------------------------------

__device__ __forceinline__ float* floats(uint64_t address) { return reinterpret_cast<float*>(address); }

// stats, scale_shift and the running pair from the groups of all splits.
template <int N, class Team>
__device__ __forceinline__ void write_statistics(const Conv3dParams& p, const Partials& groups, int c, bool exists,
                                                 double* scratch) {
    const bool writes = exists && threadIdx.x < N;
    StatisticsOfChannel channel;
#pragma unroll 1
    for (int s = 0; s < p.gather.splits; s++) {
        const int num_groups = int(tiles_of(tiles_of_split(p.gather, s, Tile<N>::M), p.group_tiles));
        float origin = 0.0f;
        const MomentSums sums = join_moments<N, Team>(groups, s * p.groups_per_split, num_groups, exists, origin, scratch);
        if (writes) channel.split(p.epilogue.statistics, s, c, sums.count, sums.mean(origin), sums.sum_of_squares());
    }
    if (writes) channel.end(p.epilogue.statistics, c);
}

// A, B, C of dy = A g + B y + C, and the gradients of gamma and beta.
template <int N, class Team>
__device__ __forceinline__ void write_grad_tables(const Conv3dParams& p, const Partials& groups, int c, bool exists,
                                                  double* scratch) {
    const EpilogueParams& e = p.epilogue;
    const bool writes = exists && threadIdx.x < N;
    const double clip = double(p.gather.t.input) * p.gather.h.input * p.gather.w.input;
#pragma unroll 1
    for (int s = 0; s < p.gather.splits; s++) {
        const int num_groups = int(tiles_of(tiles_of_split(p.gather, s, Tile<N>::M), p.group_tiles));
        double sums[3];
        join_sums<N, Team>(sums, groups, s * p.groups_per_split, num_groups, exists, scratch);
        const double count = clips_of_split(p.gather, s) * clip;
#pragma unroll
        for (int k = 0; k < 2; k++)
            if (writes && k < e.num_norms) GradientOfChannel().split(e.norms[k].to, s, c, count, sums[0], sums[1 + k]);
    }
}

// Called by all threads of the team that has written its tile's partials: the block's first THREADS. c: the thread's channel, one of N from the column's
// first on, repeated; exists: whether there is such a channel.
// A function of its own: its code is in a file once, not in each kernel.
template <int N, bool GRAD, class Team>
__device__ __noinline__ void finish_statistics(const Conv3dParams& p, TileNumber tile, int column, int channels, int c,
                                               bool exists, uint32_t* flag, double* scratch) {
    const int rows = GRAD ? 1 + p.epilogue.num_norms : 3, num_groups = p.gather.splits * int(p.groups_per_split);
    const int group = int(tile.tile_of_split / p.group_tiles), set = tile.split * int(p.groups_per_split) + group;
    const int first = group * int(p.group_tiles);
    const int tiles = int(tiles_of_split(p.gather, tile.split, Tile<N>::M)), num_sets = min(int(p.group_tiles), tiles - first);
    uint32_t* tickets = reinterpret_cast<uint32_t*>(p.tickets) + int64_t(column) * (num_groups + 1);
    if (!is_last(Team(), tickets + set, num_sets, flag)) return;

    const Partials of_tiles = {floats(p.partials) + c, rows, channels}, of_groups = {floats(p.group_partials) + c, rows, channels};
    const int first_tile = tile.split * int(p.tiles_per_split) + first;
    float* to = floats(p.group_partials) + int64_t(set) * rows * channels + c;
    if constexpr (GRAD) {
        double sums[3];
        join_sums<N, Team>(sums, of_tiles, first_tile, num_sets, exists, scratch);
        if (exists && threadIdx.x < N)
            for (int row = 0; row < rows; row++) to[row * channels] = float(sums[row]);
    } else {
        float origin = 0.0f;
        const MomentSums sums = join_moments<N, Team>(of_tiles, first_tile, num_sets, exists, origin, scratch);
        if (exists && threadIdx.x < N)
            to[0] = float(sums.count), to[channels] = float(sums.mean(origin)), to[2 * channels] = float(sums.sum_of_squares());
    }
    // Splits without a full number of groups have fewer: count those that exist.
    const int last_groups = int(tiles_of(tiles_of_split(p.gather, p.gather.splits - 1, Tile<N>::M), p.group_tiles));
    const int all_groups = (p.gather.splits - 1) * int(p.groups_per_split) + last_groups;
    if (!is_last(Team(), tickets + num_groups, all_groups, flag)) return;
    if constexpr (GRAD) write_grad_tables<N, Team>(p, of_groups, c, exists, scratch);
    else write_statistics<N, Team>(p, of_groups, c, exists, scratch);
}
