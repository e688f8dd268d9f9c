// resample forward: ragged uint8 clips to the sampling grid of a step; crop, filter in t, y, x, flip, normalise, cast.
// source  clip n: uint8 [frames][height][width][3], anywhere (no alignment); table of ResampleClip [n]
// output  pathway i: [n][output_frames[i]][height][width][pitch_c], channels 0..2 = value * multiply + add, others 0
// grid    x: tiles of a row * ceil(height / WARPS)   y: entries of the frame table   z: clips        block: WARPS warps
// shared  WARPS x row_floats f32: the source columns of a warp's tile, already filtered in t and y
// needs   tables aligned to 8 bytes; row_floats a multiple of CHUNK, no less than 3 x the source columns of any tile
// A warp makes one tile of one row: it sums the source rows of its t and y taps into shared memory (bytes are read in words,
// neighbours side by side), then samples that row in x. A frame that several pathways show is computed once.
// Outputs are overwritten. Deterministic. No workspace but the tables.
#include "../common/storage.cuh"
#include "params.cuh"
#include "taps.cuh"

constexpr int WARPS = 4;
constexpr int CHUNK = 8;  // bytes of a row that a lane filters at a time
constexpr int WORDS = CHUNK / 4 + 1;  // aligned words that hold them wherever they begin

enum class Method { LINEAR, NEAREST_IN_TIME, ANTIALIAS };

// ---- source rows -----------------------------------------------------------------------------------------------------

struct Chunk {
    uint32_t words[WORDS];
};

// The aligned words around bytes address .. address + CHUNK - 1. Bytes outside the clip are not read.
__device__ __forceinline__ Chunk load_chunk(uint64_t address, const ResampleClip& clip) {
    const uint64_t aligned = address & ~uint64_t(3), end = clip.source + clip.source_bytes;
    Chunk chunk;
    if (aligned >= clip.source && aligned + 4 * WORDS <= end) {
#pragma unroll
        for (int i = 0; i < WORDS; i++) chunk.words[i] = __ldg(reinterpret_cast<const uint32_t*>(aligned) + i);
    } else {  // the first and the last bytes of a clip
#pragma unroll
        for (int i = 0; i < WORDS; i++) {
            chunk.words[i] = 0;
            for (int k = 0; k < 4; k++) {
                const uint64_t at = aligned + 4 * i + k;
                if (at < clip.source || at >= end) continue;
                chunk.words[i] |= uint32_t(__ldg(reinterpret_cast<const uint8_t*>(at))) << (8 * k);
            }
        }
    }
    return chunk;
}

// sums[k] += weight * byte k of the chunk that was loaded from `address`.
__device__ __forceinline__ void add_chunk(float (&sums)[CHUNK], const Chunk& chunk, uint64_t address, float weight) {
    const uint32_t shift = 8 * uint32_t(address & 3);
#pragma unroll
    for (int i = 0; i < CHUNK / 4; i++) {
        const uint32_t bytes = __funnelshift_r(chunk.words[i], chunk.words[i + 1], shift);
#pragma unroll
        for (int k = 0; k < 4; k++) {
            sums[4 * i + k] = fmaf(float((bytes >> (8 * k)) & 255u), weight, sums[4 * i + k]);
        }
    }
}

__device__ __forceinline__ void store_chunk(float* row, const float (&sums)[CHUNK]) {
#pragma unroll
    for (int i = 0; i < CHUNK; i += 4) {
        *reinterpret_cast<float4*>(row + i) = make_float4(sums[i], sums[i + 1], sums[i + 2], sums[i + 3]);
    }
}

__device__ __forceinline__ uint64_t row_address(const ResampleClip& clip, int t, int y, int x) {
    return clip.source + ((uint64_t(t) * clip.height + y) * clip.width + x) * 3;
}

// row[e] = byte e of the columns from `begin` on, filtered in t and y, for e < num_bytes and up to the end of the chunk.
template <Method METHOD>
__device__ __forceinline__ void filter_rows(float* row, const ResampleClip& clip, const Taps& ts, const Taps& ys, int begin,
                                            int num_bytes) {
    const int first = int(threadIdx.x % 32) * CHUNK;
    if constexpr (METHOD == Method::ANTIALIAS) {
        for (int e = first; e < num_bytes; e += 32 * CHUNK) {
            float sums[CHUNK] = {};
            for (int t = ts.first; t <= ts.last; t++) {
                const float t_weight = tap_weight(ts, t);
                for (int y = ys.first; y <= ys.last; y++) {
                    const uint64_t address = row_address(clip, t, y, begin) + e;
                    add_chunk(sums, load_chunk(address, clip), address, t_weight * tap_weight(ys, y));
                }
            }
            store_chunk(row + e, sums);
        }
    } else {
        // All rows are loaded before the first is used. A second tap without weight is the first row again: no traffic.
        constexpr int ROWS = METHOD == Method::NEAREST_IN_TIME ? 2 : 4;
        uint64_t address[ROWS];
        float weight[ROWS];
#pragma unroll
        for (int i = 0; i < ROWS; i++) {
            const int t = i & 2 ? ts.last : ts.first, y = i & 1 ? ys.last : ys.first;
            address[i] = row_address(clip, t, y, begin);
            const float t_fraction = ts.position - float(ts.first), y_fraction = ys.position - float(ys.first);
            weight[i] = (i & 1 ? y_fraction : 1.0f - y_fraction);
            if (ROWS == 4) weight[i] *= i & 2 ? t_fraction : 1.0f - t_fraction;
        }
        for (int e = first; e < num_bytes; e += 32 * CHUNK) {
            Chunk chunks[ROWS];
#pragma unroll
            for (int i = 0; i < ROWS; i++) chunks[i] = load_chunk(address[i] + e, clip);
            float sums[CHUNK] = {};
#pragma unroll
            for (int i = 0; i < ROWS; i++) add_chunk(sums, chunks[i], address[i] + e, weight[i]);
            store_chunk(row + e, sums);
        }
    }
}

// ---- one output pixel ------------------------------------------------------------------------------------------------

template <Method METHOD>
__device__ __forceinline__ void filter_columns(float (&value)[3], const float* row, const Taps& taps, int begin) {
    const float* from = row + (taps.first - begin) * 3;
    if constexpr (METHOD == Method::ANTIALIAS) {
        value[0] = value[1] = value[2] = 0.0f;
        for (int j = taps.first; j <= taps.last; j++, from += 3) {
            const float weight = tap_weight(taps, j);
            for (int c = 0; c < 3; c++) value[c] = fmaf(weight, from[c], value[c]);
        }
    } else {
        const float fraction = taps.position - float(taps.first);
        const int second = (taps.last - taps.first) * 3;
        for (int c = 0; c < 3; c++) value[c] = fmaf(from[second + c] - from[c], fraction, from[c]);
    }
}

// Writes the pixel to every pathway that shows the frame.
template <class T>
__device__ __forceinline__ void store(const ResampleParams& p, const ResampleFrame& frame, const float (&value)[3], int x,
                                      int y) {
    Vec<T, 4> pixel;
    for (int c = 0; c < 3; c++) pixel.e[c] = from_f32<T>(fmaf(value[c], p.multiply[c], p.add[c]));
    pixel.e[3] = from_f32<T>(0.0f);
#pragma unroll
    for (int i = 0; i < RESAMPLE_MAX_PATHWAYS; i++) {
        if (frame.frame[i] < 0) continue;
        const uint64_t output_frame = uint64_t(blockIdx.z) * p.output_frames[i] + frame.frame[i];
        const uint64_t position = (output_frame * p.height + y) * p.width + x;
        T* to = reinterpret_cast<T*>(p.output[i]) + position * p.pitch_c[i];
        if (p.has_vector_stores) {
            *reinterpret_cast<Vec<T, 4>*>(to) = pixel;
        } else {
            for (int c = 0; c < p.channels; c++) to[c] = c < 3 ? pixel.e[c] : from_f32<T>(0.0f);
        }
    }
}

// ---- kernel ----------------------------------------------------------------------------------------------------------

template <class T, Method METHOD>
__device__ __forceinline__ void resample(const ResampleParams& p) {
    DYN_SMEM(float, shared);  // [WARPS][row_floats]
    constexpr bool ANTIALIAS = METHOD == Method::ANTIALIAS;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int y = int(blockIdx.x / p.num_tiles) * WARPS + warp;
    const int tile_begin = int(blockIdx.x % p.num_tiles) * p.tile;
    const int tile_end = min(tile_begin + p.tile, p.width);
    if (y >= p.height) return;  // a whole warp; there is no barrier of the block

    const ResampleClip clip = reinterpret_cast<const ResampleClip*>(p.clips)[blockIdx.z];
    const ResampleFrame frame = reinterpret_cast<const ResampleFrame*>(p.frames)[blockIdx.y];
    const Taps y_taps = make_taps<ANTIALIAS>(clip.y, y);
    const Taps t_taps = make_taps<ANTIALIAS>(clip.t, frame.sample);  // NEAREST_IN_TIME uses the first of them

    // Source columns of the tile: positions grow or shrink along it, so its ends hold the extremes.
    const int left = clip.flip ? p.width - tile_end : tile_begin, right = left + (tile_end - tile_begin) - 1;
    const Taps left_taps = make_taps<ANTIALIAS>(clip.x, left), right_taps = make_taps<ANTIALIAS>(clip.x, right);
    const int begin = min(left_taps.first, right_taps.first), end = max(left_taps.last, right_taps.last) + 1;

    float* row = shared + warp * p.row_floats;
    filter_rows<METHOD>(row, clip, t_taps, y_taps, begin, (end - begin) * 3);
    __syncwarp();
    for (int x = tile_begin + lane; x < tile_end; x += 32) {
        float value[3];
        filter_columns<METHOD>(value, row, make_taps<ANTIALIAS>(clip.x, clip.flip ? p.width - 1 - x : x), begin);
        store<T>(p, frame, value, x, y);
    }
}

// ---- variants --------------------------------------------------------------------------------------------------------

#define RESAMPLE_VARIANT(name, T, METHOD)                                                                     \
    extern "C" __global__ void __launch_bounds__(32 * WARPS) name(const __grid_constant__ ResampleParams p) { \
        resample<T, Method::METHOD>(p);                                                                       \
    }                                                                                                         \
    SIMT_EXPORT(name)

RESAMPLE_VARIANT(resample_forward_linear_f32, float, LINEAR)
RESAMPLE_VARIANT(resample_forward_linear_bf16, __nv_bfloat16, LINEAR)
RESAMPLE_VARIANT(resample_forward_linear_f16, __half, LINEAR)
RESAMPLE_VARIANT(resample_forward_nearest_f32, float, NEAREST_IN_TIME)
RESAMPLE_VARIANT(resample_forward_nearest_bf16, __nv_bfloat16, NEAREST_IN_TIME)
RESAMPLE_VARIANT(resample_forward_nearest_f16, __half, NEAREST_IN_TIME)
RESAMPLE_VARIANT(resample_forward_antialias_f32, float, ANTIALIAS)
RESAMPLE_VARIANT(resample_forward_antialias_bf16, __nv_bfloat16, ANTIALIAS)
RESAMPLE_VARIANT(resample_forward_antialias_f16, __half, ANTIALIAS)
