// The index mappings of kernels/conv3d/mapping.cuh, compiled for the host: against plain loops, with their inverses, and
// beyond 2^31.
#include <cstdio>
#include <cstdlib>
#include <set>
#include <tuple>

#include "conv3d/mapping.cuh"

#define CHECK(condition)                                                     \
    do {                                                                     \
        if (!(condition)) {                                                  \
            std::printf("line %d: %s does not hold\n", __LINE__, #condition); \
            std::exit(1);                                                    \
        }                                                                    \
    } while (false)

static int output_size(int input, int filter, int stride, int padding, int dilation) {
    return (input + 2 * padding - dilation * (filter - 1) - 1) / stride + 1;
}

static void divisions() {
    for (uint32_t d : {1u, 2u, 3u, 7u, 10u, 64u, 1000u, 65537u, (1u << 30) + 1, (1u << 31) - 1})
        for (uint32_t n : {0u, 1u, 2u, 3u, 63u, 64u, 1u << 20, d - 1, d, (1u << 31) - 2, (1u << 31) - 1})
            CHECK(fast_div(d).quotient(n) == n / d);
}

// (output, tap, input) that meet: by the definition and through the classes of rows.
static void axes() {
    for (int input : {1, 2, 5, 10})
        for (int filter : {1, 2, 3, 5})
            for (int stride : {1, 2, 3, 4})
                for (int padding : {0, 1, 3})
                    for (int dilation : {1, 2, 3}) {
                        if (input + 2 * padding < dilation * (filter - 1) + 1) continue;
                        const int output = output_size(input, filter, stride, padding, dilation);
                        const ConvAxis a = {input, output, filter, stride, -padding, dilation};
                        std::set<std::tuple<int, int, int>> want, forward, grad;
                        for (int o = 0; o < output; o++)
                            for (int k = 0; k < filter; k++) {
                                const int i = o * stride - padding + k * dilation;
                                if (i >= 0 && i < input) want.insert({o, k, i});
                            }
                        const AxisClass f = forward_class(a);
                        for (int row = 0; row < f.rows; row++)
                            for (int j = 0; j < f.taps; j++)
                                if (f.source(row, j) >= 0 && f.source(row, j) < input)
                                    forward.insert({f.target(row), f.tap(j), f.source(row, j)});
                        std::set<int> targets;
                        for (int parity = 0; parity < stride; parity++) {
                            const AxisClass g = grad_class(a, parity);
                            CHECK(g.rows == int(rows_of_parity(a, parity)));
                            for (int row = 0; row < g.rows; row++) {
                                CHECK(g.target(row) < input && g.row_of_target(g.target(row)) == row);
                                CHECK(targets.insert(g.target(row)).second);
                                const HaloAxis halo = halo_axis(g, row, 1);
                                for (int j = 0; j < g.taps; j++) {
                                    CHECK(g.source(row, j) >= halo.first && g.source(row, j) < halo.first + halo.size);
                                    if (g.source(row, j) >= 0 && g.source(row, j) < output)
                                        grad.insert({g.source(row, j), g.tap(j), g.target(row)});
                                }
                            }
                        }
                        CHECK(int(targets.size()) == input && forward == want && grad == want);
                    }
}

static void tiles() {
    for (int is_grad : {0, 1})
        for (int boxes : {0, 1})
            for (int n : {1, 3, 5})
                for (int splits : {1, 2, 3}) {
                    const ConvAxis t = {3, output_size(3, 3, 2, 1, 1), 3, 2, -1, 1};
                    const ConvAxis h = {7, output_size(7, 3, 1, 1, 1), 3, 1, -1, 1};
                    const ConvAxis w = {9, output_size(9, 2, 3, 0, 1), 2, 3, 0, 1};
                    const int per_split = (n + splits - 1) / splits, used = (n + per_split - 1) / per_split;
                    const ConvGather g = {t, h, w, n, per_split, used, is_grad, 2 * boxes, 3 * boxes, 2 * boxes, 0};
                    const uint32_t tile_m = 8, per = tiles_of_split(g, 0, tile_m);
                    const uint32_t all = (used - 1) * per + tiles_of_split(g, used - 1, tile_m);
                    std::set<std::tuple<int, int64_t>> seen;
                    for (uint32_t tile = 0; tile < all; tile++) {
                        const TileNumber number = tile_number(g, tile, per, tile_m);
                        CHECK(tile_of_number(g, number, per, tile_m) == tile);
                        const ClassRows r = rows_of_class(g, number.cls);
                        const auto add = [&](const Position& q, const TileNumber& inverse) {
                            CHECK(q.n / per_split == number.split && q.n < n);
                            CHECK(inverse.split == number.split && inverse.tile_of_class == number.tile_of_class);
                            CHECK(seen.insert({number.cls, row_of_position(q, r.t, r.h, r.w)}).second);
                        };
                        if (boxes) {
                            const Box box = box_of_tile(g, number);
                            for (int i = 0; i < box.t * box.h * box.w; i++) {
                                Position q = position_of_row(i, box.t, box.h, box.w);
                                q = {box.first.n, box.first.t + q.t, box.first.h + q.h, box.first.w + q.w};
                                CHECK(q.t < int(r.t) && q.h < int(r.h) && q.w < int(r.w));
                                add(q, tile_of_position(g, number.cls, q));
                            }
                        } else {
                            const Run run = run_of_tile(g, number, tile_m);
                            for (uint32_t row = run.first_row; row < run.first_row + run.num_rows; row++) {
                                const Position q = position_of_row(row, r.t, r.h, r.w);
                                CHECK(row_of_position(q, r.t, r.h, r.w) == row);
                                add(q, tile_of_row(g, number.cls, row, tile_m));
                            }
                        }
                    }
                    const int rows = is_grad ? t.input * h.input * w.input : t.output * h.output * w.output;
                    CHECK(int(seen.size()) == n * rows);
                }
}

// At unit stride, source and target of one size: with each tap a run of rows reads a part of its frame's halo.
static void halos_of_runs() {
    for (int is_grad : {0, 1})
        for (int f : {1, 2, 3, 5})
            for (int dilation : {1, 2}) {
                const int padding = (f - 1) * dilation / 2;
                if (output_size(7, f, 1, padding, dilation) != 7) continue;
                const ConvAxis t = {5, 5, 3, 1, -1, 1}, h = {7, 7, f, 1, -padding, dilation}, w = {6, 6, 3, 1, -1, 1};
                const ConvGather g = {t, h, w, 2, 1, 2, is_grad, 0, 0, 0, 0};
                const RowClass cls = row_class(g, 0);
                const int reach = run_halo_row(cls, is_grad ? 0 : f - 1, is_grad ? 0 : 2, 6);
                CHECK(reach == (f - 1) * dilation * 6 + 2);
                const int own = -(lowest_offset(cls.h) * 6 + lowest_offset(cls.w)), center = (f - 1) / 2;
                if (f % 2) CHECK(own == run_halo_row(cls, center, 1, 6) && run_halo_first(cls, 1, 7, 6) == -own);
                for (int row = 0; row < 2 * 5 * 7 * 6; row++)
                    for (int jt = 0; jt < 3; jt++)
                        for (int jh = 0; jh < f; jh++)
                            for (int jw = 0; jw < 3; jw++) {
                                const Position q = position_of_row(row, 5, 7, 6);
                                const Place at = place(0, q.t, q.h, q.w, 5, 7, 6);
                                const Place tap = place(0, cls.t.offset(jt), cls.h.offset(jh), cls.w.offset(jw), 5, 7, 6);
                                const int in_halo = run_halo_row(cls, jh, jw, 6);
                                CHECK(in_halo >= 0 && in_halo <= reach);
                                if (!is_inside(at, tap, 5, 7, 6)) continue;
                                const Position from = {q.n, cls.t.source(q.t, jt), cls.h.source(q.h, jh), cls.w.source(q.w, jw)};
                                CHECK(row_of_position(from, 5, 7, 6) == row + run_halo_first(cls, jt, 7, 6) + in_halo);
                            }
            }
}

template <int CHUNKS>
static void swizzles() {
    for (int first = 0; first < 64; first += 8)
        for (int chunk = 0; chunk < CHUNKS; chunk++) {
            std::set<int> banks;
            for (int row = first; row < first + 8; row++) {
                CHECK(swizzled<CHUNKS>(row, swizzled<CHUNKS>(row, chunk)) == chunk);
                banks.insert(chunk_byte<CHUNKS>(row, chunk) / 16 % 8);
            }
            CHECK(banks.size() == 8);
        }
}
static void swizzles_at_run_time() {
    for (int chunks = 1; chunks <= 4; chunks++)
        for (int first = 0; first < 64; first++) {
            std::set<int> all, banks;
            for (int row = first; row < first + 8; row++) {
                for (int chunk = 0; chunk < chunks; chunk++) {
                    const int at = chunk_of_row(row, chunk, chunks);
                    CHECK(at >= row * chunks && at < (row + 1) * chunks && all.insert(at).second);
                }
                banks.insert(chunk_of_row(row, 0, chunks) % 8);
            }
            CHECK(banks.size() == 8);
        }
}

// Offsets beyond 2^31 elements, and beyond 2^31 positions.
static void large() {
    const int64_t position = (int64_t(1) << 31) - 1;
    CHECK(element_of(position, 2047, 2048) == position * 2048 + 2047);
    CHECK(position_of_element(element_of(position, 2047, 2048), 2048) == position);
    const Place far = place(1000000, 31, 223, 223, 32, 224, 224);
    CHECK(far.linear == ((int64_t(1000000) * 32 + 31) * 224 + 223) * 224 + 223);
    CHECK(far.linear > (int64_t(1) << 31) && far.t == 31 && far.h == 223 && far.w == 223);
    const Position q = position_of_row((1u << 31) - 1, 32, 224, 224);
    CHECK(row_of_position(q, 32, 224, 224) == position);
    // A row that does not exist is outside with every tap; so is a tap beyond either edge.
    const Place none = {0, OUTSIDE, OUTSIDE, 0};
    for (int t : {-MAX_COORDINATE, -1, 0, 1, MAX_COORDINATE}) {
        const Place tap = {0, int16_t(t < MAX_COORDINATE ? t : t - 1), 0, 0};
        CHECK(!is_inside(none, tap, MAX_COORDINATE, 1, 1));
        CHECK(is_inside(place(0, 3, 0, 0, 8, 1, 1), tap, 8, 1, 1) == (t >= -3 && t < 5));
    }
}

int main() {
    divisions();
    axes();
    tiles();
    halos_of_runs();
    swizzles<1>(), swizzles<2>(), swizzles<4>(), swizzles<8>(), swizzles<16>();
    swizzles_at_run_time();
    large();
    std::printf("mappings hold\n");
}
