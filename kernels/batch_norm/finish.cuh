// The end of a kernel that has cut the rows of a tensor into tiles (RowTiles) and formed sums for batch norm over each: the
// last block of a group of tiles joins those of the group, the last of all joins the groups and writes the tables. Who is last
// does not matter: all is joined in the order of the rows. With two levels no block reads many more than two square roots of
// the number of tiles.
//
// partials, group_partials: f32 [tiles or groups][2][channels]: (mean, M2), or (sum g, sum g (y - mean)).
#pragma once
#include "../common/moments.cuh"
#include "../common/row_tiles.cuh"
#include "../common/ticket.cuh"
#include "finalise.cuh"
#include "tables.cuh"

struct GradientSums {
    double g = 0.0, product = 0.0;

    __device__ __forceinline__ void add(const GradientSums& other) { g += other.g, product += other.product; }
};

// Shared memory of a team while it finishes.
constexpr int FINISH_BYTES_PER_THREAD = 32;
static_assert(sizeof(MomentSums) <= FINISH_BYTES_PER_THREAD && sizeof(GradientSums) <= FINISH_BYTES_PER_THREAD, "fits");

// What the two kinds of sums do with a channel. `from` points to the channel's two values of set 0, `stride` apart.
struct JoinStatistics {
    using Sums = MomentSums;
    using OfChannel = StatisticsOfChannel;
    using Tables = NormStatistics;

    static __device__ __forceinline__ void add(Sums& sums, const float* from, int64_t stride, int set, float origin, float count) {
        const float* values = from + int64_t(set) * 2 * stride;
        sums.add(Moments{count, values[0], values[stride]}, origin);
    }
    static __device__ __forceinline__ void store(const Sums& sums, float* to, int64_t stride, float origin) {
        to[0] = float(sums.mean(origin)), to[stride] = float(sums.sum_of_squares());
    }
    static __device__ __forceinline__ void split(OfChannel& channel, const Tables& to, int split, int c, double count,
                                                 const Sums& sums, float origin) {
        channel.split(to, split, c, count, sums.mean(origin), sums.sum_of_squares());
    }
};
struct JoinGradients {
    using Sums = GradientSums;
    using OfChannel = GradientOfChannel;
    using Tables = NormGradient;

    static __device__ __forceinline__ void add(Sums& sums, const float* from, int64_t stride, int set, float, float) {
        const float* values = from + int64_t(set) * 2 * stride;
        sums.g += double(values[0]), sums.product += double(values[stride]);
    }
    static __device__ __forceinline__ void store(const Sums& sums, float* to, int64_t stride, float) {
        to[0] = float(sums.g), to[stride] = float(sums.product);
    }
    static __device__ __forceinline__ void split(OfChannel& channel, const Tables& to, int split, int c, double count,
                                                 const Sums& sums, float) {
        channel.split(to, split, c, count, sums.g, sums.product);
    }
};

// Joins num_sets sets of set_rows rows each (the last: what is left of num_rows), for `lanes` channels at once. Threads lane,
// lane + lanes, ... of the team take a part each; the result is of use to the first of them.
template <class Join, class Team>
__device__ __forceinline__ typename Join::Sums join_sets(const Team& team, const float* from, int64_t stride, int num_sets,
                                                         int32_t set_rows, int32_t num_rows, int lanes, bool exists,
                                                         typename Join::Sums* shared) {
    const int parts = team.size() / lanes, part = team.thread() / lanes;
    typename Join::Sums sums;
    if (exists && part < parts) {
        const float origin = from[0];
        const int end = int(int64_t(num_sets) * (part + 1) / parts);
#pragma unroll 4
        for (int i = int(int64_t(num_sets) * part / parts); i < end; i++)
            Join::add(sums, from, stride, i, origin, float(min(set_rows, num_rows - i * set_rows)));
    }
    shared[team.thread()] = sums;
    team.sync();
    if (part == 0)
        for (int other = 1; other < parts; other++) sums.add(shared[other * lanes + team.thread()]);
    team.sync();
    return sums;
}

// Tables of channels first .. first + num, by all threads of a team, from the partial sums of all groups of tiles.
template <class Join, class Team>
__device__ __forceinline__ void write_tables(const Team& team, const RowTiles& tiles, uint64_t group_partials,
                                             const typename Join::Tables& tables, int first, int num, void* shared) {
    using Sums = typename Join::Sums;
    const int64_t stride = tables.channels;
    const int lanes = min(num, team.size()), lane = team.thread() % lanes;
    for (int chunk = 0; chunk < num; chunk += lanes) {
        const bool exists = chunk + lane < num;
        const int c = exists ? first + chunk + lane : first;
        typename Join::OfChannel channel;
        for (int split = 0; split < tiles.splits; split++) {
            const float* values = batch_norm::floats(group_partials) + int64_t(split) * tiles.groups_per_split * 2 * stride + c;
            const int num_rows = rows_of_split(tiles, split);
            const Sums sums = join_sets<Join>(team, values, stride, groups_of_split(tiles, split),
                                              tiles.tile_rows * tiles.group_tiles, num_rows, lanes, exists,
                                              static_cast<Sums*>(shared));
            if (exists && team.thread() < lanes)
                Join::split(channel, tables, split, c, double(num_rows), sums, values[0]);
        }
        if (exists && team.thread() < lanes) channel.end(tables, c);
    }
}

// Called by all threads of a team that has written the partial sums of its tile for channels first .. first + num, which are
// column `column` of the tensor. `shared`: FINISH_BYTES_PER_THREAD a thread, aligned to 8, no longer in other use.
template <class Join, class Team>
__device__ __forceinline__ void finish(const Team& team, const RowTiles& tiles, const NormPartials& at,
                                       const typename Join::Tables& tables, const RowRange& tile, int column, int first, int num,
                                       uint32_t* flag, void* shared) {
    using Sums = typename Join::Sums;
    Sums* sums_of_threads = static_cast<Sums*>(shared);
    const int64_t stride = tables.channels;
    const int lanes = min(num, team.size()), lane = team.thread() % lanes;
    uint32_t* tickets = reinterpret_cast<uint32_t*>(at.tickets) + int64_t(column) * (1 + tiles.splits * tiles.groups_per_split);

    if (tiles.group_tiles > 1) {
        const int group = tile.of_split / tiles.group_tiles, first_tile = group * tiles.group_tiles;
        const int index = tile.split * tiles.groups_per_split + group;
        const int num_sets = min(tiles.group_tiles, tiles_of_split(tiles, tile.split) - first_tile);
        if (!is_last(team, tickets + 1 + index, num_sets, flag)) return;
        const int64_t from = (int64_t(tile.split) * tiles.tiles_per_split + first_tile) * 2 * stride;
        const int num_rows = rows_of_split(tiles, tile.split) - first_tile * tiles.tile_rows;
        for (int chunk = 0; chunk < num; chunk += lanes) {
            const bool exists = chunk + lane < num;
            const int c = exists ? first + chunk + lane : first;
            const float* values = batch_norm::floats(at.partials) + from + c;
            const Sums sums =
                join_sets<Join>(team, values, stride, num_sets, tiles.tile_rows, num_rows, lanes, exists, sums_of_threads);
            if (exists && team.thread() < lanes)
                Join::store(sums, batch_norm::floats(at.group_partials) + int64_t(index) * 2 * stride + c, stride, values[0]);
        }
    }
    if (!is_last(team, tickets, num_groups(tiles), flag)) return;
    write_tables<Join>(team, tiles, at.group_partials, tables, first, num, shared);
}
