// How rows of the matrix view, filter taps and positions of activations belong together: plain C++, so that a host test
// reads the very functions that the kernels use. Each mapping has its inverse beside it.
//
// forward and grad_input are one gather: row r of the matrix stands for a position of the target, and with each filter tap it
// reads one position of the source, or nothing where that lies outside. Along one axis
//
//     target = row * target_step + target_first        source = row * row_step + first_offset + j * offset_step
//
// for the taps tap = first_tap + j * tap_step, j = 0 .. taps - 1. Forward has one class of rows: source is the input, target
// the output. grad_input of a stride s has s classes, the parities of the input coordinate: each is dense and has unit step,
// with those taps alone that meet it.
#pragma once
#include <cstdint>

#ifdef __CUDACC__
#define HOST_DEVICE __host__ __device__ __forceinline__
#else
#define HOST_DEVICE inline
#endif

// ---- division by a number that the host knows --------------------------------------------------------------------------

// Of dividends below 2^31: a product and a shift (Granlund and Montgomery 1994).
struct FastDiv {
    uint32_t divisor, multiplier, shift;

    HOST_DEVICE uint32_t quotient(uint32_t n) const {
        return (uint32_t(uint64_t(n) * multiplier >> 32) + n) >> shift;
    }
};
HOST_DEVICE FastDiv fast_div(uint32_t divisor) {
    uint32_t shift = 0;
    while ((uint64_t(1) << shift) < divisor) shift++;
    const uint64_t excess = (uint64_t(1) << shift) - divisor;
    return {divisor, uint32_t((excess << 32) / divisor + 1), shift};
}

// ---- one axis ----------------------------------------------------------------------------------------------------------

// A convolution along one axis. Tap k of output o reads input o * stride + first + k * dilation; first is -padding.
struct ConvAxis {
    int32_t input, output, filter, stride, first, dilation;
};

struct AxisClass {
    int32_t rows, target_step, target_first;
    int32_t row_step, first_offset, offset_step;
    int32_t taps, first_tap, tap_step;

    HOST_DEVICE int32_t target(int32_t row) const { return row * target_step + target_first; }
    HOST_DEVICE int32_t row_of_target(int32_t target) const { return (target - target_first) / target_step; }
    HOST_DEVICE int32_t offset(int32_t j) const { return first_offset + j * offset_step; }
    HOST_DEVICE int32_t source(int32_t row, int32_t j) const { return row * row_step + offset(j); }
    HOST_DEVICE int32_t tap(int32_t j) const { return first_tap + j * tap_step; }
};

HOST_DEVICE AxisClass forward_class(const ConvAxis& a) {
    return {a.output, 1, 0, a.stride, a.first, a.dilation, a.filter, 0, 1};
}

// Input i = parity + s * row gets from output o through tap k where i = o * s + first + k * dilation: so s must divide
// parity - first - k * dilation, which holds for every tap_step-th tap.
HOST_DEVICE AxisClass grad_class(const ConvAxis& a, int32_t parity) {
    const int32_t rows = parity < a.input ? (a.input - parity + a.stride - 1) / a.stride : 0;
    AxisClass c = {rows, a.stride, parity, 1, 0, 0, 0, 0, 1};
    int32_t found = 0;
#pragma unroll 1
    for (int32_t k = 0; k < a.filter && found < 2; k++) {
        if ((parity - a.first - k * a.dilation) % a.stride != 0) continue;
        if (found++ == 0) c.first_tap = k;
        else c.tap_step = k - c.first_tap;
    }
    if (found == 0) return c;
    c.taps = found == 1 ? 1 : (a.filter - 1 - c.first_tap) / c.tap_step + 1;
    c.first_offset = (parity - a.first - c.first_tap * a.dilation) / a.stride;
    c.offset_step = -(c.tap_step * a.dilation / a.stride);
    return c;
}

// ---- rows and taps of a class ------------------------------------------------------------------------------------------

struct Position {
    int32_t n, t, h, w;
};

// Row -> coordinates in a grid [n][t][h][w], and back.
HOST_DEVICE Position position_of_row(uint32_t row, int32_t t, int32_t h, int32_t w) {
    const uint32_t nth = row / uint32_t(w), nt = nth / uint32_t(h), n = nt / uint32_t(t);
    return {int32_t(n), int32_t(nt - n * t), int32_t(nth - nt * h), int32_t(row - nth * w)};
}
HOST_DEVICE int64_t row_of_position(const Position& p, int32_t t, int32_t h, int32_t w) {
    return ((int64_t(p.n) * t + p.t) * h + p.h) * w + p.w;
}

// A place in [n][t][h][w] of the source that rows and taps add up to: `linear` counts positions and may be negative.
struct Place {
    int64_t linear;
    int16_t t, h;
    int32_t w;
};
static_assert(sizeof(Place) == 16, "read as one vector");

// Coordinates, steps and offsets stay below this, so that the sum of two fits 16 bits, and a row that does not exist lies
// outside with every tap.
constexpr int32_t MAX_COORDINATE = 1 << 14;
constexpr int16_t OUTSIDE = -(1 << 15);

HOST_DEVICE Place place(int32_t n, int32_t t, int32_t h, int32_t w, int32_t size_t_, int32_t size_h, int32_t size_w) {
    return {((int64_t(n) * size_t_ + t) * size_h + h) * size_w + w, int16_t(t), int16_t(h), w};
}
HOST_DEVICE bool is_inside(const Place& row, const Place& tap, int32_t size_t_, int32_t size_h, int32_t size_w) {
    return uint32_t(row.t + tap.t) < uint32_t(size_t_) && uint32_t(row.h + tap.h) < uint32_t(size_h) &&
           uint32_t(row.w + tap.w) < uint32_t(size_w);
}

// Element of channel c at a position, and back.
HOST_DEVICE int64_t element_of(int64_t position, int32_t c, int32_t pitch) { return position * pitch + c; }
HOST_DEVICE int64_t position_of_element(int64_t element, int32_t pitch) { return element / pitch; }

// ---- tiles -------------------------------------------------------------------------------------------------------------

// The gather of a whole convolution.
struct ConvGather {
    ConvAxis t, h, w;
    int32_t n, clips_per_split, splits;  // every split but the last has clips_per_split clips
    int32_t is_grad;
    int32_t box_t, box_h, box_w;  // rows of a tile along each axis; box_w 0: a tile is a run of rows
    int32_t reserved;
};
// One class of rows: what its axes are, and how many rows a clip has.
struct RowClass {
    AxisClass t, h, w;
    uint32_t rows_per_clip;
};

HOST_DEVICE int32_t num_classes(const ConvGather& g) { return g.is_grad ? g.t.stride * g.h.stride * g.w.stride : 1; }
HOST_DEVICE uint32_t rows_of_parity(const ConvAxis& a, int32_t parity) {
    return parity < a.input ? (a.input - parity + a.stride - 1) / a.stride : 0;
}
// Rows of a class along the three axes of a clip.
struct ClassRows {
    uint32_t t, h, w;
};
HOST_DEVICE ClassRows rows_of_class(const ConvGather& g, int32_t cls) {
    if (!g.is_grad) return {uint32_t(g.t.output), uint32_t(g.h.output), uint32_t(g.w.output)};
    const int32_t th = cls / g.w.stride, t = th / g.h.stride;
    return {rows_of_parity(g.t, t), rows_of_parity(g.h, th - t * g.h.stride),
            rows_of_parity(g.w, cls - th * g.w.stride)};
}
HOST_DEVICE uint32_t rows_per_clip(const ConvGather& g, int32_t cls) {
    const ClassRows r = rows_of_class(g, cls);
    return r.t * r.h * r.w;
}
HOST_DEVICE RowClass row_class(const ConvGather& g, int32_t cls) {
    const uint32_t rows = rows_per_clip(g, cls);
    if (!g.is_grad) return {forward_class(g.t), forward_class(g.h), forward_class(g.w), rows};
    const int32_t th = cls / g.w.stride, t = th / g.h.stride;
    return {grad_class(g.t, t), grad_class(g.h, th - t * g.h.stride), grad_class(g.w, cls - th * g.w.stride), rows};
}
HOST_DEVICE int32_t clips_of_split(const ConvGather& g, int32_t split) {
    return split + 1 < g.splits ? g.clips_per_split : g.n - split * g.clips_per_split;
}
HOST_DEVICE uint32_t tiles_of(uint32_t rows, uint32_t tile_m) { return (rows + tile_m - 1) / tile_m; }

// Tiles of a class in `clips` clips: runs of tile_m rows, or the boxes of each clip.
HOST_DEVICE uint32_t tiles_of_class(const ConvGather& g, int32_t cls, uint32_t clips, uint32_t tile_m) {
    const ClassRows r = rows_of_class(g, cls);
    if (g.box_w == 0) return tiles_of(clips * r.t * r.h * r.w, tile_m);
    return clips * tiles_of(r.t, g.box_t) * tiles_of(r.h, g.box_h) * tiles_of(r.w, g.box_w);
}
HOST_DEVICE uint32_t tiles_of_split(const ConvGather& g, int32_t split, uint32_t tile_m) {
    uint32_t tiles = 0;
#pragma unroll 1
    for (int32_t cls = 0; cls < num_classes(g); cls++)
        tiles += tiles_of_class(g, cls, clips_of_split(g, split), tile_m);
    return tiles;
}

// Tiles are numbered by split, then class, then row or box: none holds rows of two splits or two classes.
struct TileNumber {
    int32_t split, cls;
    uint32_t tile_of_split, tile_of_class;
};
HOST_DEVICE TileNumber tile_number(const ConvGather& g, uint32_t tile, uint32_t tiles_per_split, uint32_t tile_m) {
    TileNumber to = {};
    const uint32_t split = tile / tiles_per_split;
    to.split = split < uint32_t(g.splits) ? int32_t(split) : g.splits - 1;
    to.tile_of_split = to.tile_of_class = tile - to.split * tiles_per_split;
#pragma unroll 1
    for (;; to.cls++) {
        const uint32_t tiles = tiles_of_class(g, to.cls, clips_of_split(g, to.split), tile_m);
        if (to.tile_of_class < tiles) return to;
        to.tile_of_class -= tiles;
    }
}
HOST_DEVICE uint32_t tile_of_number(const ConvGather& g, const TileNumber& number, uint32_t tiles_per_split,
                                    uint32_t tile_m) {
    uint32_t tile = number.split * tiles_per_split + number.tile_of_class;
    for (int32_t before = 0; before < number.cls; before++)
        tile += tiles_of_class(g, before, clips_of_split(g, number.split), tile_m);
    return tile;
}

// A run of rows, counted in the whole batch: row 0 is of clip 0.
struct Run {
    uint32_t first_row, num_rows;
};
HOST_DEVICE Run run_of_tile(const ConvGather& g, const TileNumber& tile, uint32_t tile_m) {
    const uint32_t per_clip = rows_per_clip(g, tile.cls), before = tile.tile_of_class * tile_m;
    const uint32_t left = clips_of_split(g, tile.split) * per_clip - before;
    return {uint32_t(tile.split) * g.clips_per_split * per_clip + before, left < tile_m ? left : tile_m};
}
HOST_DEVICE TileNumber tile_of_row(const ConvGather& g, int32_t cls, uint32_t row, uint32_t tile_m) {
    const uint32_t rows_of_split = g.clips_per_split * rows_per_clip(g, cls), split = row / rows_of_split;
    return {int32_t(split), cls, 0, (row - split * rows_of_split) / tile_m};
}

// A box of rows of one clip: `first` in its coordinates of rows, and as many as lie inside.
struct Box {
    Position first;
    int32_t t, h, w;
};
HOST_DEVICE Box box_of_tile(const ConvGather& g, const TileNumber& tile) {
    const ClassRows r = rows_of_class(g, tile.cls);
    const uint32_t h = tiles_of(r.h, g.box_h), w = tiles_of(r.w, g.box_w), t = tiles_of(r.t, g.box_t);
    const uint32_t nth = tile.tile_of_class / w, nt = nth / h, n = nt / t;
    const int32_t ft = int32_t(nt - n * t) * g.box_t, fh = int32_t(nth - nt * h) * g.box_h;
    const int32_t fw = int32_t(tile.tile_of_class - nth * w) * g.box_w;
    const int32_t lt = int32_t(r.t) - ft, lh = int32_t(r.h) - fh, lw = int32_t(r.w) - fw;
    return {{tile.split * g.clips_per_split + int32_t(n), ft, fh, fw},
            lt < g.box_t ? lt : g.box_t, lh < g.box_h ? lh : g.box_h, lw < g.box_w ? lw : g.box_w};
}
HOST_DEVICE TileNumber tile_of_position(const ConvGather& g, int32_t cls, const Position& row) {
    const ClassRows r = rows_of_class(g, cls);
    const uint32_t h = tiles_of(r.h, g.box_h), w = tiles_of(r.w, g.box_w), t = tiles_of(r.t, g.box_t);
    const int32_t split = row.n / g.clips_per_split, n = row.n - split * g.clips_per_split;
    return {split, cls, 0, ((n * t + row.t / g.box_t) * h + row.h / g.box_h) * w + row.w / g.box_w};
}

// What a box reads along one axis: source coordinates first .. first + size - 1, whatever lies outside.
struct HaloAxis {
    int32_t first, size;
};
HOST_DEVICE HaloAxis halo_axis(const AxisClass& a, int32_t first_row, int32_t rows) {
    const int32_t last = a.offset(a.taps - 1), low = last < a.first_offset ? last : a.first_offset;
    const int32_t reach = last < a.first_offset ? a.first_offset - last : last - a.first_offset;
    return {first_row * a.row_step + low, (rows - 1) * a.row_step + reach + 1};
}

// A run of rows at unit stride, where source and target have the same sizes [t][h][w]: rows and positions are the same numbers.
// With tap (jt, jh, jw) row r of the run reads position first_row + run_halo_first(jt) + run_halo_row(jh, jw) + r, if that tap
// lies inside for it: all taps of a frame of the filter read one longer run of positions.
HOST_DEVICE int32_t lowest_offset(const AxisClass& a) {
    const int32_t last = a.offset(a.taps - 1);
    return last < a.first_offset ? last : a.first_offset;
}
HOST_DEVICE int32_t run_halo_first(const RowClass& c, int32_t jt, int32_t size_h, int32_t size_w) {
    return (c.t.offset(jt) * size_h + lowest_offset(c.h)) * size_w + lowest_offset(c.w);
}
HOST_DEVICE int32_t run_halo_row(const RowClass& c, int32_t jh, int32_t jw, int32_t size_w) {
    return (c.h.offset(jh) - lowest_offset(c.h)) * size_w + c.w.offset(jw) - lowest_offset(c.w);
}

// ---- shared memory -----------------------------------------------------------------------------------------------------

// 16-byte chunks of 8 elements; a row has CHUNKS of them. The eight rows that one ldmatrix reads at the same
// chunk column lie in eight different groups of banks. swizzled is its own inverse in `chunk`.
template <int CHUNKS>
HOST_DEVICE int32_t swizzled(int32_t row, int32_t chunk) {
    static_assert(CHUNKS == 1 || CHUNKS == 2 || CHUNKS == 4 || CHUNKS == 8 || CHUNKS == 16, "rows of 16 to 256 bytes");
    if (CHUNKS == 1) return chunk;
    if (CHUNKS == 2) return chunk ^ ((row >> 2) & 1);
    if (CHUNKS == 4) return chunk ^ ((row >> 1) & 3);
    return chunk ^ (row & 7);
}
// Byte of a chunk in a tile of such rows.
template <int CHUNKS>
HOST_DEVICE int32_t chunk_byte(int32_t row, int32_t chunk) {
    return (row * CHUNKS + swizzled<CHUNKS>(row, chunk)) * 16;
}

// The same for 1 to 4 chunks, known at run time. Three need no swizzle: multiples of 3 fall into eight groups of banks.
HOST_DEVICE int32_t chunk_of_row(int32_t row, int32_t chunk, int32_t chunks) {
    const int32_t flip = chunks == 2 ? (row >> 2) & 1 : chunks == 4 ? (row >> 1) & 3 : 0;
    return row * chunks + (chunk ^ flip);
}
