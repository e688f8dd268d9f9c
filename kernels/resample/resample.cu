// resample forward: ragged uint8 clips to the sampling grid of a step; crop, filter in t, y, x, flip, normalise, cast.
// source  clip n: uint8 [frames][height][width][3], anywhere (no alignment); table of ResampleClip [n]
// output  pathway i: [n][output_frames[i]][height][width][pitch_c], channels 0..2 = value * multiply + add, others 0
// grid    x: tiles of a row * ceil(height / (WARPS * ROWS))   y: entries of the frame table   z: clips
// block   WARPS warps; a warp makes ROWS rows of its tile, WARPS apart
// shared  WARPS x row_floats f32: the source columns of a warp's tile, already filtered in t and y
// needs   tables aligned to 8 bytes; row_floats a multiple of CHUNK, no less than 3 x the source columns of any tile
// For a row a warp sums the source rows of its t and y taps into shared memory (bytes are read in words, neighbours side by
// side), then samples that row in x. A frame that several pathways show is computed once.
// Outputs are overwritten. Deterministic. No workspace but the tables.
#include "../common/storage.cuh"
#include "params.cuh"
#include "taps.cuh"

constexpr int WARPS = 4;
constexpr int ROWS = 4;
constexpr int COLUMNS = 4;  // columns of a lane: tiles have at most 32 * COLUMNS
constexpr int MIN_BLOCKS = 6;  // on an SM: 24 warps with 12 loads each cover the latency of memory
constexpr int CHUNK = 8;  // bytes of a row that a lane filters at a time
constexpr int WORDS = CHUNK / 4 + 1;  // aligned words that hold them wherever they begin

enum class Method { LINEAR, NEAREST_IN_TIME, ANTIALIAS };

// ---- source rows -----------------------------------------------------------------------------------------------------

struct Chunk {
    uint32_t words[WORDS];
};

// The aligned words around bytes address .. address + CHUNK - 1. CHECKED: bytes outside the clip are not read.
template <bool CHECKED>
__device__ __forceinline__ Chunk load_chunk(uint64_t address, const ResampleClip& clip) {
    const uint64_t aligned = address & ~uint64_t(3);
    Chunk chunk;
    if constexpr (!CHECKED) {
#pragma unroll
        for (int i = 0; i < WORDS; i++) chunk.words[i] = __ldg(reinterpret_cast<const uint32_t*>(aligned) + i);
    } else {
        const uint64_t end = clip.source + clip.source_bytes;
#pragma unroll
        for (int i = 0; i < WORDS; i++) {
            chunk.words[i] = 0;
#pragma unroll 1
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
    return clip.source + ((uint64_t(t) * clip.height + y) * clip.width + x) * 3 - uint64_t(clip.origin_bytes);
}

// row[e] = byte e of the columns from `begin` on, filtered in t and y, for e < num_bytes and up to the end of the chunk.
template <Method METHOD, bool CHECKED>
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
                    add_chunk(sums, load_chunk<CHECKED>(address, clip), address, t_weight * tap_weight(ys, y));
                }
            }
            store_chunk(row + e, sums);
        }
    } else {
        // All rows are loaded before the first is used. A second tap without weight is the first row again: no traffic.
        constexpr int READ = METHOD == Method::NEAREST_IN_TIME ? 2 : 4;
        uint64_t address[READ];
        float weight[READ];
#pragma unroll
        for (int i = 0; i < READ; i++) {
            const int t = i & 2 ? ts.last : ts.first, y = i & 1 ? ys.last : ys.first;
            address[i] = row_address(clip, t, y, begin);
            const float t_fraction = ts.position - float(ts.first), y_fraction = ys.position - float(ys.first);
            weight[i] = (i & 1 ? y_fraction : 1.0f - y_fraction);
            if (READ == 4) weight[i] *= i & 2 ? t_fraction : 1.0f - t_fraction;
        }
        for (int e = first; e < num_bytes; e += 32 * CHUNK) {
            Chunk chunks[READ];
#pragma unroll
            for (int i = 0; i < READ; i++) chunks[i] = load_chunk<CHECKED>(address[i] + e, clip);
            float sums[CHUNK] = {};
#pragma unroll
            for (int i = 0; i < READ; i++) add_chunk(sums, chunks[i], address[i] + e, weight[i]);
            store_chunk(row + e, sums);
        }
    }
}

// Whether all words that `filter_rows` reads lie in the clip: all but the first and the last rows of a clip.
__device__ __forceinline__ bool is_interior(const ResampleClip& clip, const Taps& ts, const Taps& ys, int begin, int num_bytes) {
    const uint64_t first = row_address(clip, ts.first, ys.first, begin), last = row_address(clip, ts.last, ys.last, begin);
    return (first & ~uint64_t(3)) >= clip.source && last + num_bytes + 4 * WORDS <= clip.source + clip.source_bytes;
}

// ---- one output pixel ------------------------------------------------------------------------------------------------

// Two neighbours of a filtered row: where the first lies in it, and the weight of the second (none: it is not read).
struct Column {
    int first;
    float fraction;
};

__device__ __forceinline__ Column make_column(const ResampleAxis& axis, int i, int begin) {
    const Taps taps = linear_taps(axis, i);
    return {(taps.first - begin) * 3, taps.position - float(taps.first)};
}

__device__ __forceinline__ void sample_linear(float (&value)[3], const float* row, const Column& column) {
#pragma unroll
    for (int c = 0; c < 3; c++) {
        const float first = row[column.first + c], second = row[column.first + (column.fraction > 0.0f ? 3 : 0) + c];
        value[c] = fmaf(second - first, column.fraction, first);
    }
}

__device__ __forceinline__ void sample_antialias(float (&value)[3], const float* row, const Taps& taps, int begin) {
    const float* from = row + (taps.first - begin) * 3;
    value[0] = value[1] = value[2] = 0.0f;
    for (int j = taps.first; j <= taps.last; j++, from += 3) {
        const float weight = tap_weight(taps, j);
#pragma unroll
        for (int c = 0; c < 3; c++) value[c] = fmaf(weight, from[c], value[c]);
    }
}

template <class T>
__device__ __forceinline__ Vec<T, 4> make_pixel(const ResampleParams& p, const float (&value)[3]) {
    Vec<T, 4> pixel;
#pragma unroll
    for (int c = 0; c < 3; c++) pixel.e[c] = from_f32<T>(fmaf(value[c], p.multiply[c], p.add[c]));
    pixel.e[3] = from_f32<T>(0.0f);
    return pixel;
}

// Writes columns x, x + 32, … below `end` of row y to every pathway that shows the frame.
template <class T, int N>
__device__ __forceinline__ void store(const ResampleParams& p, const ResampleFrame* frame, const Vec<T, 4> (&pixels)[N], int x,
                                      int end, int y) {
    // Not unrolled: most launches have one or two pathways, and four copies of this need too many registers.
#pragma unroll 1
    for (int i = 0; i < RESAMPLE_MAX_PATHWAYS; i++) {
        const int to_frame = __ldg(&frame->frame[i]);
        if (to_frame < 0) continue;
        const uint64_t output_frame = uint64_t(blockIdx.z) * p.output_frames[i] + to_frame;
        T* to = reinterpret_cast<T*>(p.output[i]) + ((output_frame * p.height + y) * p.width + x) * p.pitch_c[i];
        if (p.has_vector_stores) {
#pragma unroll
            for (int k = 0; k < N; k++) {
                if (x + 32 * k < end) reinterpret_cast<Vec<T, 4>*>(to)[32 * k] = pixels[k];
            }
        } else {
#pragma unroll
            for (int k = 0; k < N; k++, to += 32 * int64_t(p.pitch_c[i])) {
                if (x + 32 * k >= end) break;
                for (int c = 0; c < 3; c++) to[c] = pixels[k].e[c];
#pragma unroll 1
                for (int c = 3; c < p.channels; c++) to[c] = from_f32<T>(0.0f);
            }
        }
    }
}

// ---- kernel ----------------------------------------------------------------------------------------------------------

template <class T, Method METHOD>
__device__ __forceinline__ void resample(const ResampleParams& p) {
    DYN_SMEM(float, shared);  // [WARPS][row_floats]
    constexpr bool ANTIALIAS = METHOD == Method::ANTIALIAS;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    float* row = shared + warp * p.row_floats;
    const int tile_begin = int(blockIdx.x % p.num_tiles) * p.tile, tile_end = min(tile_begin + p.tile, p.width);
    const int row_begin = int(blockIdx.x / p.num_tiles) * (WARPS * ROWS) + warp;
    const ResampleClip clip = reinterpret_cast<const ResampleClip*>(p.clips)[blockIdx.z];
    const ResampleFrame* frame = reinterpret_cast<const ResampleFrame*>(p.frames) + blockIdx.y;
    const Taps ts = make_taps<ANTIALIAS>(clip.t, frame->sample);  // NEAREST_IN_TIME uses the first of them

    // Source columns of the tile: positions grow or shrink along it, so its ends hold the extremes.
    const int left = clip.flip ? p.width - tile_end : tile_begin, right = left + (tile_end - tile_begin) - 1;
    const Taps left_taps = make_taps<ANTIALIAS>(clip.x, left), right_taps = make_taps<ANTIALIAS>(clip.x, right);
    const int begin = min(left_taps.first, right_taps.first), end = max(left_taps.last, right_taps.last) + 1;
    Column columns[COLUMNS];
    if constexpr (!ANTIALIAS) {
#pragma unroll
        for (int i = 0; i < COLUMNS; i++) {
            const int x = min(tile_begin + lane + 32 * i, tile_end - 1);
            columns[i] = make_column(clip.x, clip.flip ? p.width - 1 - x : x, begin);
        }
    }

    for (int k = 0; k < ROWS; k++) {
        const int y = row_begin + k * WARPS;
        if (y >= p.height) return;  // a whole warp; there is no barrier of the block
        const Taps ys = make_taps<ANTIALIAS>(clip.y, y);
        const int num_bytes = (end - begin) * 3;
        if (is_interior(clip, ts, ys, begin, num_bytes)) filter_rows<METHOD, false>(row, clip, ts, ys, begin, num_bytes);
        else filter_rows<METHOD, true>(row, clip, ts, ys, begin, num_bytes);
        __syncwarp();
        if constexpr (ANTIALIAS) {
            for (int x = tile_begin + lane; x < tile_end; x += 32) {
                float value[3];
                sample_antialias(value, row, antialias_taps(clip.x, clip.flip ? p.width - 1 - x : x), begin);
                const Vec<T, 4> pixel[1] = {make_pixel<T>(p, value)};
                store<T>(p, frame, pixel, x, tile_end, y);
            }
        } else {
            Vec<T, 4> pixels[COLUMNS];
#pragma unroll
            for (int i = 0; i < COLUMNS; i++) {
                float value[3];
                sample_linear(value, row, columns[i]);
                pixels[i] = make_pixel<T>(p, value);
            }
            store<T>(p, frame, pixels, tile_begin + lane, tile_end, y);
        }
        __syncwarp();  // the row is read before the next one overwrites it
    }
}

// ---- variants --------------------------------------------------------------------------------------------------------

#define RESAMPLE_VARIANT(name, T, METHOD)                                                                     \
    extern "C" __global__ void __launch_bounds__(32 * WARPS, MIN_BLOCKS) name(const __grid_constant__ ResampleParams p) { \
        begin_grid();                                                                                                     \
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
