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
