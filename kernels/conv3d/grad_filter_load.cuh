// How grad_filter brings an operand into shared memory: rows of chunks, copied asynchronously, then changed in place by the
// very thread that copied them.
#pragma once
#include "../common/ptx.cuh"
#include "grad_filter_params.cuh"
#include "prologue.cuh"

// What one thread copies of an operand: the same 8 channels in every `row_step`-th row.
struct Share {
    uint64_t first, second;  // addresses of the channels at position 0; second 0: one tensor
    int32_t pitch, second_pitch;
    int32_t channels;        // of the 8; the others become 0
    int32_t granule;
    int32_t chunk, row, row_step;
    int32_t first_offset, second_offset;  // in a stage
    RowLayout layout;
};

// `chunk0` and `channels` are those of the block's rows of `chunks` chunks, within the group that begins at channel `base`.
__device__ __forceinline__ Share share_of(uint64_t tensor, int pitch, const PrologueParams& prologue, int base, int chunk0,
                                          int channels, int chunks, int granule, const RowLayout& layout) {
    Share s;
    const int threads = blockDim.x, thread = threadIdx.x;
    s.row_step = threads / chunks;
    s.row = thread / chunks;
    s.chunk = thread - s.row * chunks;
    // The last threads have no row where chunks do not divide their number.
    if (s.row >= s.row_step) s.row = 1 << 30;
    s.channels = min(max(channels - (chunk0 + s.chunk) * 8, 0), 8);
    const int channel = base + (s.channels > 0 ? (chunk0 + s.chunk) * 8 : 0);
    s.first = tensor + int64_t(channel) * 2;
    s.second = prologue.second ? prologue.second + int64_t(channel) * 2 : 0;
    s.pitch = pitch;
    s.second_pitch = prologue.second_pitch;
    s.granule = granule;
    s.layout = layout;
    return s;
}

// `channels` (0 to 8) 16-bit values to a chunk, the rest of it 0.
__device__ __forceinline__ void copy_chunk(unsigned char* to, uint64_t from, int channels, int granule) {
    if (granule == 16) {
        cp_async16(smem_u32(to), reinterpret_cast<const void*>(from), channels * 2);
    } else if (granule == 8) {
        const int low = min(channels, 4), high = channels - low;
        cp_async_ca<8>(smem_u32(to), reinterpret_cast<const void*>(from), low * 2);
        cp_async_ca<8>(smem_u32(to + 8), reinterpret_cast<const void*>(high ? from + 8 : from), high * 2);
    } else {
        uint16_t values[8];
#pragma unroll
        for (int i = 0; i < 8; i++) values[i] = i < channels ? reinterpret_cast<const uint16_t*>(from)[i] : uint16_t(0);
        uint4 chunk;
        memcpy(&chunk, values, 16);
        *reinterpret_cast<uint4*>(to) = chunk;
    }
}

// Where a tile's rows lie: coordinates `t`, `h`, `w` are added to those of each row.
struct Origin {
    int32_t position;  // first position of the outer block; all positions of a tensor are below 2^31
    int32_t t, h, w;
    int32_t size_t_, size_h, size_w;
};

// Copies the thread's chunks of one tile. Bit i of the result: the thread's i-th row lies inside the tensor.
__device__ __forceinline__ uint32_t copy_rows(const Share& s, const BoxPlace* places, int rows, const Origin& o,
                                              unsigned char* stage) {
    uint32_t inside_rows = 0, bit = 1;
#pragma unroll 1
    for (int row = s.row; row < rows; row += s.row_step, bit <<= 1) {
        const BoxPlace place = places[row];
        const int t = o.t + place.t, h = o.h + place.h, w = o.w + place.w;
        const bool is_inside = uint32_t(t) < uint32_t(o.size_t_) && uint32_t(h) < uint32_t(o.size_h) &&
                               uint32_t(w) < uint32_t(o.size_w);
        const int position = is_inside ? o.position + position_in_outer(t, h, w, o.size_h, o.size_w) : 0;
        const int byte = s.layout.byte_of(row, s.chunk), channels = is_inside ? s.channels : 0;
        copy_chunk(stage + s.first_offset + byte, s.first + byte_of_position(position, s.pitch), channels, s.granule);
        if (s.second)
            copy_chunk(stage + s.second_offset + byte, s.second + byte_of_position(position, s.second_pitch), channels, s.granule);
        if (is_inside) inside_rows |= bit;
    }
    return inside_rows;
}

// The same for chunks of two neighbouring pixels with 4 channels each.
__device__ __forceinline__ void copy_pixel_pairs(const Share& s, const BoxPlace* places, int rows, const Origin& o,
                                                 unsigned char* stage) {
#pragma unroll 1
    for (int row = s.row; row < rows; row += s.row_step) {
        const BoxPlace place = places[row];
        const int t = o.t + place.t, h = o.h + place.h, w = o.w + place.w;
        const bool is_inside = uint32_t(t) < uint32_t(o.size_t_) && uint32_t(h) < uint32_t(o.size_h);
        const uint32_t to = smem_u32(stage + s.first_offset + s.layout.byte_of(row, s.chunk));
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const bool is_pixel = is_inside && uint32_t(w + i) < uint32_t(o.size_w);
            const int position =
                is_pixel ? o.position + position_in_outer(t, h, w + i, o.size_h, o.size_w) : 0;
            const uint64_t from = s.first + byte_of_position(position, s.pitch);
            cp_async_ca<8>(to + 8 * i, reinterpret_cast<const void*>(from), is_pixel ? 8 : 0);
        }
    }
}

// Copies what the windows of a tile hold: their gradients and the positions that won them. `s` is that of the gradient's rows.
__device__ __forceinline__ void copy_windows(const GradFilterParams& p, const Share& s, const BoxPlace* places, const Origin& o,
                                             unsigned char* stage) {
    const uint64_t channel_bytes = s.first - p.grad_prologue.second;
#pragma unroll 1
    for (int row = s.row; row < p.pool.box_rows; row += s.row_step) {
        const BoxPlace place = places[row];
        const int t = o.t + place.t, h = o.h + place.h, w = o.w + place.w;
        const bool is_inside = uint32_t(t) < uint32_t(o.size_t_) && uint32_t(h) < uint32_t(o.size_h) &&
                               uint32_t(w) < uint32_t(o.size_w);
        const int position = is_inside ? o.position + position_in_outer(t, h, w, o.size_h, o.size_w) : 0;
        const int at = row * p.out_chunks + s.chunk, channels = is_inside ? s.channels : 0;
        copy_chunk(stage + p.pool.gradient_offset + at * 16, p.grad_output + channel_bytes + byte_of_position(position, p.grad_pitch),
                   channels, 16);
        const uint64_t won = p.pool.indices + uint64_t(uint32_t(position)) * uint32_t(p.c_out) + channel_bytes / 2;
        cp_async_ca<8>(smem_u32(stage + p.pool.indices_offset + at * 8), reinterpret_cast<const void*>(won), channels);
    }
}

// ---- prologue ----------------------------------------------------------------------------------------------------------

// The factors of a block's channels in one split, to shared memory [3][chunks * 8]: of the tensor, of the second one, and
// what is added. Channels that do not exist stay 0.
__device__ __forceinline__ void stage_factors(float* factors, const PrologueParams& p, int split, int base, int chunk0,
                                              int channels, int chunks) {
    const int num = chunks * 8, rows = p.table_rows;
    for (int i = threadIdx.x; i < num; i += blockDim.x) {
        float scale = 0.0f, second_scale = 0.0f, shift = 0.0f;
        if (chunk0 * 8 + i < channels) {
            const int channel = base + chunk0 * 8 + i;
            const float* table = reinterpret_cast<const float*>(p.table) + int64_t(split) * rows * p.channels + channel;
            scale = table[0];
            shift = table[int64_t(rows - 1) * p.channels];
            second_scale = rows == 3 ? table[p.channels] : 1.0f;
            if (p.second_table) {
                const float* second = reinterpret_cast<const float*>(p.second_table) + int64_t(split) * 2 * p.channels;
                second_scale = second[channel];
                shift += second[p.channels + channel];
            }
        }
        factors[i] = scale;
        factors[num + i] = second_scale;
        factors[2 * num + i] = shift;
    }
}

// Changes the thread's chunks in place, once its copies have come. What lies outside stays zero.
template <class T>
__device__ __forceinline__ void transform_rows(const Share& s, const float* factors, int chunks, uint32_t inside_rows,
                                               bool has_relu, unsigned char* stage) {
    if (!inside_rows) return;
    JoinChunk f;
    load8(f.scale, factors + s.chunk * 8);
    load8(f.shift, factors + (2 * chunks + s.chunk) * 8);
    if (s.second) load8(f.second_scale, factors + (chunks + s.chunk) * 8);
#pragma unroll 1
    for (int row = s.row; inside_rows; row += s.row_step, inside_rows >>= 1) {
        if (!(inside_rows & 1)) continue;
        const int byte = s.layout.byte_of(row, s.chunk);
        Vec<T, 8>* chunk = reinterpret_cast<Vec<T, 8>*>(stage + s.first_offset + byte);
        if (s.second) {
            const Vec<T, 8>* second = reinterpret_cast<const Vec<T, 8>*>(stage + s.second_offset + byte);
            *chunk = transformed<T>(*chunk, *second, f, has_relu);
        } else {
            AffineChunk affine;
#pragma unroll
            for (int i = 0; i < 8; i++) affine.scale[i] = f.scale[i], affine.shift[i] = f.shift[i];
            *chunk = transformed<T>(*chunk, affine);
        }
    }
}

// The factors of the ReLU's mask, to shared memory [2][chunks * 8], with those of the batch norm's gradient before it.
__device__ __forceinline__ void stage_mask(float* factors, const GradFilterParams& p, int split, int chunk0) {
    const int num = p.out_chunks * 8;
    for (int i = threadIdx.x; i < num; i += blockDim.x) {
        const int channel = min(chunk0 * 8 + i, p.c_out - 1);
        const float* table = reinterpret_cast<const float*>(p.pool.scale_shift) + int64_t(split) * 2 * p.c_out + channel;
        factors[i] = table[0];
        factors[num + i] = table[p.c_out];
    }
}

// The gradient of one chunk of a position (h, w): of each window that holds it, where it won. `windows` and `won` are the thread's
// chunk of the frame's first window, which is window (first_h, first_w) of the pool.
template <class T>
__device__ __forceinline__ void gather_windows(float (&g)[8], const GradFilterParams& p, int h, int w, int first_h, int first_w,
                                               const unsigned char* windows, const unsigned char* won) {
    const GradPoolParams& pool = p.pool;
    const int last_h = min(last_window(h, pool.stride_h, pool.padding_h), pool.size_h - 1);
    const int last_w = min(last_window(w, pool.stride_w, pool.padding_w), pool.size_w - 1);
    const int from_w = first_window(w, pool.kernel_w, pool.stride_w, pool.padding_w);
#pragma unroll
    for (int k = 0; k < 8; k++) g[k] = 0.0f;
#pragma unroll 1
    for (int i = first_window(h, pool.kernel_h, pool.stride_h, pool.padding_h); i <= last_h; i++) {
#pragma unroll 1
        for (int j = from_w; j <= last_w; j++) {
            const int at = ((i - first_h) * pool.box_w + j - first_w) * p.out_chunks;
            const int tap_h = h + pool.padding_h - i * pool.stride_h, tap_w = w + pool.padding_w - j * pool.stride_w;
            const int tap = tap_h * pool.kernel_w + tap_w;
            const Vec<T, 8> values = *reinterpret_cast<const Vec<T, 8>*>(windows + at * 16);
            const Vec<uint8_t, 8> taps = *reinterpret_cast<const Vec<uint8_t, 8>*>(won + at * 8);
#pragma unroll
            for (int k = 0; k < 8; k++) g[k] += taps.e[k] == tap ? to_f32(values.e[k]) : 0.0f;
        }
    }
}

// Makes the gradient of the thread's rows of a tile from y in its place and from the windows. These were copied by others: they came
// before the last __syncthreads.
template <class T>
__device__ __forceinline__ void transform_pooled_rows(const GradFilterParams& p, const Share& s, const BoxPlace* rows,
                                                      const float* factors, uint32_t inside_rows, const Tile& tile,
                                                      unsigned char* stage) {
    const GradPoolParams& pool = p.pool;
    const int first_h = first_window(tile.h, pool.kernel_h, pool.stride_h, pool.padding_h);
    const int first_w = first_window(tile.w, pool.kernel_w, pool.stride_w, pool.padding_w);
    const int num = p.out_chunks * 8;
#pragma unroll 1
    for (int row = s.row; inside_rows; row += s.row_step, inside_rows >>= 1) {
        if (!(inside_rows & 1)) continue;
        const BoxPlace place = rows[row];
        const int frame = (place.t * pool.box_h * pool.box_w * p.out_chunks + s.chunk);
        float g[8];
        gather_windows<T>(g, p, tile.h + place.h, tile.w + place.w, first_h, first_w, stage + pool.gradient_offset + frame * 16,
                          stage + pool.indices_offset + frame * 8);
        Vec<T, 8>* chunk = reinterpret_cast<Vec<T, 8>*>(stage + s.first_offset + s.layout.byte_of(row, s.chunk));
        Vec<T, 8> y = *chunk;
#pragma unroll
        for (int k = 0; k < 8; k++) {
            const float* f = factors + s.chunk * 8 + k;
            const float v = to_f32(y.e[k]), masked = relu_gradient(g[k], fmaf(v, f[3 * num], f[4 * num]));
            y.e[k] = from_f32<T>(fmaf(f[0], masked, fmaf(f[num], v, f[2 * num])));
        }
        *chunk = y;
    }
}
