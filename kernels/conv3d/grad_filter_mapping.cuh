// How grad_filter cuts up its sum: plain C++, so that a host test reads the very functions that the kernels use.
//
// gemm_m = columns of the filter (tap, c_in)     gemm_n = c_out     gemm_k = output positions
//
// gemm_k is cut into tiles: boxes of tile_t x tile_h x tile_w output positions, the rows. The input that a tile reads
// through some taps is a box too. It is kept once in shared memory, every `box_step`-th input position of an axis a pixel;
// row and tap add up to a pixel. Both operands are made of chunks: 8 channels of a position, 16 bytes.
#pragma once
#include "mapping.cuh"

struct GradFilterAxis {
    int32_t output, input;           // sizes
    int32_t tile, num_tiles;         // outputs of a tile, and tiles
    int32_t first, stride, dilation; // output o reads with tap k the input coordinate first + o * stride + k * dilation
    int32_t box_step;                // input coordinates from a pixel to the next
    int32_t row_pixels, tap_pixels;  // pixels from an output to the next, from a tap of a block to the next
    int32_t taps;

    // Input coordinate of pixel 0, for a tile that begins at `output` and taps from tap_lo on.
    HOST_DEVICE int32_t box_first(int32_t output, int32_t tap_lo) const {
        return first + output * stride + tap_lo * dilation;
    }
    HOST_DEVICE int32_t box_pixels(int32_t num_taps) const {
        return (tile - 1) * row_pixels + (num_taps - 1) * tap_pixels + 1;
    }
};

// ---- tiles -------------------------------------------------------------------------------------------------------------

struct Tile {
    int32_t outer, t, h, w;  // the outer block, and the tile's first output
};

HOST_DEVICE Tile tile_of(int32_t index, const GradFilterAxis& t, const GradFilterAxis& h, const GradFilterAxis& w) {
    const int32_t plane = h.num_tiles * w.num_tiles, of_outer = t.num_tiles * plane;
    const int32_t outer = index / of_outer, in_outer = index - outer * of_outer;
    const int32_t it = in_outer / plane, in_plane = in_outer - it * plane, ih = in_plane / w.num_tiles;
    return {outer, it * t.tile, ih * h.tile, (in_plane - ih * w.num_tiles) * w.tile};
}
HOST_DEVICE int32_t index_of_tile(const Tile& tile, const GradFilterAxis& t, const GradFilterAxis& h,
                                  const GradFilterAxis& w) {
    return ((tile.outer * t.num_tiles + tile.t / t.tile) * h.num_tiles + tile.h / h.tile) * w.num_tiles + tile.w / w.tile;
}

// Tiles first .. end - 1 of a part. Parts restart at each split, whose tiles follow one another; the last split may be smaller.
struct TileRange {
    int32_t first, end;
};

// Of part `part` of a split; empty where the last split has no such part.
HOST_DEVICE TileRange tiles_of_part(int32_t split, int32_t part, int32_t tiles_per_part, int32_t tiles_per_split,
                                    int32_t num_tiles) {
    const int32_t of_split = part * tiles_per_part, first = split * tiles_per_split + of_split;
    const int32_t in_all = num_tiles - first, in_split = tiles_per_split - of_split;
    const int32_t left = in_all < in_split ? in_all : in_split, most = left < tiles_per_part ? left : tiles_per_part;
    return {first, first + (most > 0 ? most : 0)};
}

// Coordinates of entry `index` of a box, times a step.
struct BoxPlace {
    int16_t t, h, w, reserved;
};
static_assert(sizeof(BoxPlace) == 8, "read as one vector");
// Coordinate h of a row that does not exist: beyond every tensor.
constexpr int16_t NO_ROW = 0x7fff;

HOST_DEVICE BoxPlace box_place(int32_t index, int32_t size_h, int32_t size_w, int32_t step_t, int32_t step_h,
                               int32_t step_w) {
    const int32_t th = index / size_w, t = th / size_h;
    return {int16_t(t * step_t), int16_t((th - t * size_h) * step_h), int16_t((index - th * size_w) * step_w), 0};
}

// Position of coordinates in one outer block, and its place in a 16-bit tensor. Positions are below 2^31, bytes are not.
HOST_DEVICE int32_t position_in_outer(int32_t t, int32_t h, int32_t w, int32_t size_h, int32_t size_w) {
    return (t * size_h + h) * size_w + w;
}
HOST_DEVICE uint64_t byte_of_position(int32_t position, int32_t pitch) {
    return uint64_t(uint32_t(position)) * uint32_t(pitch) * 2;
}

// ---- windows of a pool behind the output --------------------------------------------------------------------------------

// The first window that holds a position of an axis, and the last, which the caller limits to the axis.
HOST_DEVICE int32_t first_window(int32_t position, int32_t kernel, int32_t stride, int32_t padding) {
    const int32_t above = position + padding - kernel + stride;
    return above < 0 ? 0 : above / stride;
}
HOST_DEVICE int32_t last_window(int32_t position, int32_t stride, int32_t padding) { return (position + padding) / stride; }

// ---- taps --------------------------------------------------------------------------------------------------------------

// The smallest box that holds taps first .. first + count - 1 in (t, h, w) order, bounds inclusive.
struct TapBox {
    int32_t t_lo, t_hi, h_lo, h_hi, w_lo, w_hi;
};

HOST_DEVICE TapBox box_of_taps(int32_t first, int32_t count, int32_t taps_h, int32_t taps_w) {
    const int32_t last = first + count - 1, plane = taps_h * taps_w;
    TapBox box = {first / plane, last / plane, 0, taps_h - 1, 0, taps_w - 1};
    if (box.t_lo == box.t_hi) {
        box.h_lo = first / taps_w % taps_h;
        box.h_hi = last / taps_w % taps_h;
    }
    if (first / taps_w == last / taps_w) {
        box.w_lo = first % taps_w;
        box.w_hi = last % taps_w;
    }
    return box;
}

// ---- shared memory -----------------------------------------------------------------------------------------------------

// Rows of chunks. The eight rows that one ldmatrix reads at the same chunk lie in eight different groups of banks if they
// follow each other: by XOR where a row has 2, 4, 8, 16 chunks, by an odd pitch elsewhere.
struct RowLayout {
    int32_t pitch, shift, mask;  // in chunks; chunk XOR (row >> shift & mask)

    HOST_DEVICE int32_t byte_of(int32_t row, int32_t chunk) const {
        return (row * pitch + (chunk ^ (row >> shift & mask))) * 16;
    }
    HOST_DEVICE int32_t chunk_at(int32_t row, int32_t byte) const {
        return (byte / 16 - row * pitch) ^ (row >> shift & mask);
    }
};

// ---- the filter --------------------------------------------------------------------------------------------------------

// Element of grad_filter [c_out][taps][c_in]; c_out counts through all groups.
HOST_DEVICE int64_t filter_element(int32_t c_out, int32_t tap, int32_t c_in, int32_t num_taps, int32_t num_c_in) {
    return (int64_t(c_out) * num_taps + tap) * num_c_in + c_in;
}
