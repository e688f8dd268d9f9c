// Checks kernels/conv3d/grad_filter_mapping.cuh on the host: every mapping against its inverse, and offsets past 2^31.
// output[0]: number of checks, output[1]: line of the first that failed. Never compiled for a GPU.
#include "../../common/ptx.cuh"
#include "../../conv3d/grad_filter_mapping.cuh"

namespace {

struct Counter {
    uint32_t* output;
    void check(bool is_right, int line) const {
        output[0]++;
        if (!is_right && output[1] == 0) output[1] = uint32_t(line);
    }
};
#define CHECK(condition) counter.check(condition, __LINE__)

GradFilterAxis axis(int output, int tile) {
    GradFilterAxis a = {};
    a.output = output, a.tile = tile, a.num_tiles = (output + tile - 1) / tile;
    return a;
}

void check_tiles(const Counter& counter) {
    for (int size = 1; size < 12; size++) {
        const GradFilterAxis t = axis(size, 2), h = axis(13 - size, 3), w = axis(7, size);
        const int tiles = 3 * t.num_tiles * h.num_tiles * w.num_tiles;
        for (int i = 0; i < tiles; i++) {
            const Tile tile = tile_of(i, t, h, w);
            CHECK(index_of_tile(tile, t, h, w) == i);
            CHECK(tile.outer < 3 && tile.t < t.output && tile.h < h.output && tile.w < w.output);
        }
    }
}

// The parts of all splits hold each tile once, in order, and no tile of another split.
void check_parts(const Counter& counter) {
    for (int per_split = 1; per_split < 9; per_split++)
        for (int per_part = 1; per_part <= per_split; per_part++)
            for (int num_tiles = 1; num_tiles < 4 * per_split; num_tiles++) {
                int next = 0;
                for (int split = 0; split * per_split < num_tiles; split++)
                    for (int part = 0; part * per_part < per_split; part++) {
                        const TileRange tiles = tiles_of_part(split, part, per_part, per_split, num_tiles);
                        CHECK(tiles.first == tiles.end || (tiles.first == next && tiles.end <= num_tiles));
                        CHECK(tiles.first == tiles.end || (tiles.first / per_split == split && (tiles.end - 1) / per_split == split));
                        next += tiles.end - tiles.first;
                    }
                CHECK(next == num_tiles);
            }
}

// Each tap of a range lies in its box, and each face of the box holds one.
void check_taps(const Counter& counter) {
    const int taps_h = 3, taps_w = 4, taps = 2 * taps_h * taps_w;
    for (int first = 0; first < taps; first++) {
        for (int count = 1; first + count <= taps; count++) {
            const TapBox box = box_of_taps(first, count, taps_h, taps_w);
            TapBox seen = {99, -1, 99, -1, 99, -1};
            for (int tap = first; tap < first + count; tap++) {
                const int t = tap / (taps_h * taps_w), h = tap / taps_w % taps_h, w = tap % taps_w;
                seen = {min(seen.t_lo, t), max(seen.t_hi, t), min(seen.h_lo, h),
                        max(seen.h_hi, h), min(seen.w_lo, w), max(seen.w_hi, w)};
            }
            CHECK(seen.t_lo == box.t_lo && seen.t_hi == box.t_hi && seen.h_lo >= box.h_lo && seen.h_hi <= box.h_hi);
            CHECK(seen.w_lo >= box.w_lo && seen.w_hi <= box.w_hi);
            CHECK(count > 1 || (box.h_lo == box.h_hi && box.w_lo == box.w_hi));
        }
    }
}

// Row and tap add up to the pixel that holds the input coordinate which the convolution reads.
void check_box(const Counter& counter) {
    for (int stride = 1; stride < 5; stride++) {
        for (int dilation = 1; dilation < 5; dilation++) {
            for (int step = 1; step < 5; step++) {
                if (stride % step || dilation % step) continue;
                GradFilterAxis a = axis(20, 6);
                a.first = -3, a.stride = stride, a.dilation = dilation;
                a.box_step = step, a.row_pixels = stride / step, a.tap_pixels = dilation / step, a.taps = 3;
                for (int output = 6; output < 12; output++) {
                    for (int tap = 1; tap < 3; tap++) {
                        const int pixel = (output - 6) * a.row_pixels + (tap - 1) * a.tap_pixels;
                        CHECK(a.box_first(6, 1) + pixel * step == output * stride - 3 + tap * dilation);
                        CHECK(pixel < a.box_pixels(2));
                    }
                }
            }
        }
    }
}

// Chunks of rows lie apart, and eight rows at one chunk in eight groups of banks.
void check_rows(const Counter& counter) {
    for (int chunks = 1; chunks <= 16; chunks++) {
        RowLayout rows = {chunks | 1, 0, 0};
        if (chunks == 2) rows = {2, 2, 1};
        if (chunks == 4) rows = {4, 1, 3};
        if (chunks == 8 || chunks == 16) rows = {chunks, 0, 7};
        bool is_taken[32 * 17] = {};
        for (int row = 0; row < 32; row++) {
            for (int chunk = 0; chunk < chunks; chunk++) {
                const int byte = rows.byte_of(row, chunk);
                CHECK(byte % 16 == 0 && byte / 16 < 32 * 17 && !is_taken[byte / 16]);
                is_taken[byte / 16] = true;
                CHECK(rows.chunk_at(row, byte) == chunk);
                uint32_t groups = 0;
                for (int i = 0; i < 8; i++) groups |= 1u << (rows.byte_of(row / 8 * 8 + i, chunk) / 16 % 8);
                CHECK(groups == 0xff);
            }
        }
    }
}

// The windows of a pool that hold a position, by asking all.
void check_windows(const Counter& counter) {
    for (int kernel = 1; kernel < 5; kernel++) {
        for (int stride = 1; stride < 5; stride++) {
            for (int padding = 0; padding <= kernel / 2; padding++) {
                for (int position = 0; position < 12; position++) {
                    const int first = first_window(position, kernel, stride, padding);
                    const int last = last_window(position, stride, padding);
                    for (int window = 0; window < 16; window++) {
                        const int tap = position + padding - window * stride;
                        CHECK((tap >= 0 && tap < kernel) == (window >= first && window <= last));
                    }
                }
            }
        }
    }
}

void check_large_offsets(const Counter& counter) {
    // 23,000 frames of 300 x 300: 2.07e9 positions, with a pitch of 2048 some 8e12 bytes.
    const int32_t last = position_in_outer(22999, 299, 299, 300, 300);
    CHECK(last == 2070000000 - 1);
    CHECK(byte_of_position(last, 2048) == uint64_t(2069999999) * 4096);
    CHECK(filter_element(2047, 244, 2047, 245, 2048) == int64_t(2048) * 245 * 2048 - 1);
    CHECK(filter_element(65535, 8, 65535, 9, 65536) == int64_t(65536) * 9 * 65536 - 1);
}

}  // namespace

extern "C" __global__ void grad_filter_mapping(uint64_t output) {
    const Counter counter = {reinterpret_cast<uint32_t*>(output)};
    check_tiles(counter);
    check_parts(counter);
    check_taps(counter);
    check_box(counter);
    check_rows(counter);
    check_windows(counter);
    check_large_offsets(counter);
}
SIMT_EXPORT(grad_filter_mapping)
