// From the tile's sums in shared memory to the target: bias, the other tensor, ReLU or mask, rounding, store; and the
// partial sums of what was stored. Or a batch norm whose tables are there: scale and shift, the other tensor, ReLU, rounding, store.
// The options are branches that are the same for all threads.
#pragma once
#include "prologue.cuh"
#include "statistics.cuh"

// Eight channels, of which `left` exist; CHECKED: one by one, at any alignment.
template <class T, bool CHECKED>
__device__ __forceinline__ Vec<T, 8> load_chunk(uint64_t base, int64_t element, int left) {
    const T* from = reinterpret_cast<const T*>(base) + element;
    if constexpr (CHECKED) {
        Vec<T, 8> to;
#pragma unroll
        for (int i = 0; i < 8; i++) to.e[i] = i < left ? from[i] : from_f32<T>(0.0f);
        return to;
    } else {
        return *reinterpret_cast<const Vec<T, 8>*>(from);
    }
}
template <class T, bool CHECKED>
__device__ __forceinline__ void store_chunk(uint64_t base, int64_t element, int left, const Vec<T, 8>& v) {
    T* to = reinterpret_cast<T*>(base) + element;
    if constexpr (!CHECKED) {
        *reinterpret_cast<Vec<T, 8>*>(to) = v;
    } else {
#pragma unroll
        for (int i = 0; i < 8; i++)
            if (i < left) to[i] = v.e[i];
    }
}
template <bool CHECKED>
__device__ __forceinline__ void load_floats(float (&to)[8], uint64_t base, int64_t element, int left) {
    const float* from = reinterpret_cast<const float*>(base) + element;
    if constexpr (CHECKED) {
#pragma unroll
        for (int i = 0; i < 8; i++) to[i] = i < left ? from[i] : 0.0f;
    } else {
        load8(to, from);
    }
}

// Sums over the tile's rows: threads of equal threadIdx.x % CHUNKS_N have added rows of the same 8 channels. In f64, so that
// only the few rows of a thread are added in f32. The result is of the threads below N, one a channel. scratch: [8 warps][N].
template <int N, class Team>
__device__ __forceinline__ double sum_of_rows(const float (&v)[8], double* scratch) {
    constexpr int CHUNKS = Tile<N>::CHUNKS_N;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    Team().sync();
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const double sum = warp_reduce<32, CHUNKS>(double(v[i]), Sum());
        if (lane < CHUNKS) scratch[warp * N + lane * 8 + i] = sum;
    }
    Team().sync();
    double sum = 0.0;
    if (threadIdx.x < N)
#pragma unroll
        for (int i = 0; i < THREADS / 32; i++) sum += scratch[i * N + threadIdx.x];
    return sum;
}

// The place of a block's tile among all.
struct BlockTile {
    TileNumber number;
    int num_rows;
    uint32_t tile;       // number of the tile of rows
    int column;          // tile of the target's channels, of all groups
    int first_c, left;   // its first channel in the whole target; channels from there to the group's end
    int channels;        // of the whole target
};

// relu(scale v + shift + r), where r is the other tensor as it is, or scaled and shifted too. A loop of its own: the one below has no
// register to spare for tables.
template <class T, int N, bool CHECKED>
__device__ __forceinline__ void store_normalised(const Conv3dParams& p, const BlockMemory& m, const BlockTile& b, const float* sums) {
    using Tile = Tile<N>;
    const EpilogueParams& e = p.epilogue;
    const int in_tile = threadIdx.x % Tile::CHUNKS_N * 8, c = b.first_c + in_tile, left = b.left - in_tile;
    if (left <= 0) return;
    float scale[8], shift[8], other_scale[8];
    const int64_t of_split = int64_t(b.number.split) * 2 * b.channels + c;
    load_floats<CHECKED>(scale, e.table, of_split, left);
    load_floats<CHECKED>(shift, e.table, of_split + b.channels, left);
    set_all(other_scale, 1.0f);
    if (e.add_table) {
        float other_shift[8];
        load_floats<CHECKED>(other_scale, e.add_table, of_split, left);
        load_floats<CHECKED>(other_shift, e.add_table, of_split + b.channels, left);
#pragma unroll
        for (int i = 0; i < 8; i++) shift[i] += other_shift[i];
    }
#pragma unroll 1
    for (int row = threadIdx.x / Tile::CHUNKS_N; row < b.num_rows; row += THREADS / Tile::CHUNKS_N) {
        const int64_t position = m.targets[row];
        float v[8];
        load8(v, sums + row * Tile::SUMS_PITCH + in_tile);
#pragma unroll
        for (int i = 0; i < 8; i++) v[i] = fmaf(scale[i], v[i], shift[i]);
        if (e.add) {
            const auto other = load_chunk<T, CHECKED>(e.add, element_of(position, c, e.add_pitch), left);
#pragma unroll
            for (int i = 0; i < 8; i++) v[i] = fmaf(other_scale[i], to_f32(other.e[i]), v[i]);
        }
        Vec<T, 8> stored;
#pragma unroll
        for (int i = 0; i < 8; i++) stored.e[i] = from_f32<T>(e.has_relu ? relu(v[i]) : v[i]);
        store_chunk<T, CHECKED>(p.target, element_of(position, c, p.target_pitch), left, stored);
    }
}

// A function of its own: its code is in a file once, not in each kernel. Forward and grad_input keep other sums. Team: the
// block's first THREADS threads, where there are others.
template <class T, int N, bool GRAD, bool CHECKED, class Team = BlockTeam>
__device__ __noinline__ void finish_tile(const Conv3dParams& p, BlockMemory m, BlockTile b, float* sums) {
    using Tile = Tile<N>;
    constexpr int ROWS = THREADS / Tile::CHUNKS_N;
    const EpilogueParams& e = p.epilogue;
    if constexpr (!GRAD)
        if (e.table) return store_normalised<T, N, CHECKED>(p, m, b, sums);
    double* scratch = reinterpret_cast<double*>(sums + Tile::M * Tile::SUMS_PITCH);
    const int in_tile = threadIdx.x % Tile::CHUNKS_N * 8, c = b.first_c + in_tile, left = b.left - in_tile;
    const int end = left > 0 ? int(b.num_rows) : 0;
    const bool has_sums = GRAD ? e.num_norms > 0 : e.statistics.stats != 0;

    // Forward: origin is the column's first value, near the mean; sums are of distances from it and of their squares.
    float total[8] = {}, products[2][8] = {}, origins[2][8] = {}, origin[8] = {}, bias[8] = {}, scale[8], shift[8];
    if (left > 0) {
        if constexpr (GRAD) {
            if (e.bias) load_floats<CHECKED>(bias, e.bias, int64_t(b.number.split) * b.channels + c, left);
            if (e.mask_table) {
                load_floats<CHECKED>(scale, e.mask_table, int64_t(b.number.split) * 2 * b.channels + c, left);
                load_floats<CHECKED>(shift, e.mask_table, (int64_t(b.number.split) * 2 + 1) * b.channels + c, left);
            }
#pragma unroll
            for (int k = 0; k < 2; k++)
                if (k < e.num_norms) {
                    load_floats<CHECKED>(origins[k], e.norms[k].to.stats, int64_t(b.number.split) * 3 * b.channels + c, left);
#pragma unroll
                    for (int i = 0; i < 8; i++) origins[k][i] = origin_near<T>(origins[k][i]);
                }
        } else {
            if (e.bias) load_floats<CHECKED>(bias, e.bias, c, left);
            if (has_sums) {
                load8(origin, sums + in_tile);
#pragma unroll
                for (int i = 0; i < 8; i++) origin[i] = to_f32(from_f32<T>(origin[i]));
            }
        }
    }
#pragma unroll 1
    for (int row = threadIdx.x / Tile::CHUNKS_N; row < end; row += ROWS) {
        const int64_t position = m.targets[row];
        float v[8];
        load8(v, sums + row * Tile::SUMS_PITCH + in_tile);
#pragma unroll
        for (int i = 0; i < 8; i++) v[i] += bias[i];
        if (e.add) {
            const auto other = load_chunk<T, CHECKED>(e.add, element_of(position, c, e.add_pitch), left);
#pragma unroll
            for (int i = 0; i < 8; i++) v[i] += to_f32(other.e[i]);
        }
        if constexpr (GRAD) {
            if (e.mask) {
                const auto mask = load_chunk<T, CHECKED>(e.mask, element_of(position, c, e.mask_pitch), left);
#pragma unroll
                for (int i = 0; i < 8; i++) {
                    const float y = to_f32(mask.e[i]), open = e.mask_table ? fmaf(scale[i], y, shift[i]) : y;
                    v[i] = open > 0.0f ? v[i] : 0.0f;
                }
            }
        } else if (e.has_relu) {
#pragma unroll
            for (int i = 0; i < 8; i++) v[i] = relu(v[i]);
        }
        Vec<T, 8> stored;
#pragma unroll
        for (int i = 0; i < 8; i++) stored.e[i] = from_f32<T>(v[i]), v[i] = to_f32(stored.e[i]);
        store_chunk<T, CHECKED>(p.target, element_of(position, c, p.target_pitch), left, stored);
#pragma unroll
        for (int i = 0; i < 8; i++) total[i] += v[i] - origin[i];
        if constexpr (GRAD) {
#pragma unroll
            for (int k = 0; k < 2; k++) {
                if (k >= e.num_norms) break;
                const GradNormParams& norm = e.norms[k];
                const auto y = load_chunk<T, CHECKED>(norm.y, element_of(position, c, norm.y_pitch), left);
#pragma unroll
                for (int i = 0; i < 8; i++) products[k][i] = fmaf(v[i], to_f32(y.e[i]) - origins[k][i], products[k][i]);
            }
        } else {
#pragma unroll
            for (int i = 0; i < 8; i++) products[0][i] = fmaf(v[i] - origin[i], v[i] - origin[i], products[0][i]);
        }
    }
    if (!has_sums) return;

    const int rows_of_sums = GRAD ? 1 + e.num_norms : 3, channel = threadIdx.x % N;
    const bool exists = channel < b.left, writes = exists && threadIdx.x < N;
    float* partial = floats(p.partials) + int64_t(b.tile) * rows_of_sums * b.channels + b.first_c + channel;
    const double sum = sum_of_rows<N, Team>(total, scratch);
    if constexpr (GRAD) {
        if (writes) partial[0] = float(sum);
#pragma unroll
        for (int k = 0; k < 2; k++) {
            if (k >= e.num_norms) break;
            const double product = sum_of_rows<N, Team>(products[k], scratch);
            if (writes) {
                const float mean = floats(e.norms[k].to.stats)[int64_t(b.number.split) * 3 * b.channels + b.first_c + channel];
                partial[(1 + k) * b.channels] = sum_about_mean<T>(product, sum, mean);
            }
        }
    } else {
        const double count = double(b.num_rows), squares = sum_of_rows<N, Team>(products[0], scratch);
        if (writes) {
            const double first = double(to_f32(from_f32<T>(sums[channel]))), m2 = fma(-sum, sum / count, squares);
            partial[0] = float(count), partial[b.channels] = float(first + sum / count);
            partial[2 * b.channels] = m2 < 0.0 ? 0.0f : float(m2);
        }
    }
    Team().sync();
    finish_statistics<N, GRAD, Team>(p, b.number, b.column, b.channels, b.first_c + channel, exists, m.flag,
                               scratch);
}
