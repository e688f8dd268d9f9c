// kernels/common/row_tiles.cuh: every row lies in one tile of its split, tiles in one group; offsets beyond 2^31.
#include "common/row_tiles.cuh"
#include "check.hpp"

static RowTiles make(int32_t rows, int32_t rows_per_split, int32_t tile_rows, int32_t group_tiles) {
    RowTiles t = {};
    t.rows = rows, t.rows_per_split = rows_per_split, t.splits = (rows - 1) / rows_per_split + 1, t.tile_rows = tile_rows;
    t.tiles_per_split = (rows_per_split - 1) / tile_rows + 1;
    t.group_tiles = group_tiles, t.groups_per_split = (t.tiles_per_split - 1) / group_tiles + 1;
    return t;
}

static void check_cover(int32_t rows, int32_t rows_per_split, int32_t tile_rows, int32_t group_tiles) {
    const RowTiles t = make(rows, rows_per_split, tile_rows, group_tiles);
    int32_t next = 0, groups = 0;
    for (int32_t tile = 0; tile < num_tiles(t); tile++) {
        const RowRange r = range_of_tile(t, tile);
        CHECK(r.first_row == next && r.num_rows > 0 && r.num_rows <= tile_rows);
        CHECK(r.split == r.first_row / rows_per_split && r.split == (r.first_row + r.num_rows - 1) / rows_per_split);
        CHECK(r.of_split < tiles_of_split(t, r.split));
        for (int32_t row = r.first_row; row < r.first_row + r.num_rows; row++) CHECK(tile_of_row(t, row) == tile);
        next += r.num_rows;
    }
    CHECK(next == rows);
    for (int32_t split = 0; split < t.splits; split++) {
        CHECK(groups_of_split(t, split) == sets_of_split(t, split, tile_rows * group_tiles));
        groups += groups_of_split(t, split);
    }
    CHECK(groups == num_groups(t));
}

int main() {
    for (int32_t rows : {1, 7, 64, 100})
        for (int32_t rows_per_split : {1, 7, 33, 100})
            for (int32_t tile_rows : {1, 4, 32, 256})
                for (int32_t group_tiles : {1, 2, 5}) check_cover(rows, rows_per_split, tile_rows, group_tiles);
    // Just below the largest number of rows.
    const RowTiles t = make((1 << 30) - 1, 1 << 28, 4096, 300);
    const RowRange last = range_of_tile(t, num_tiles(t) - 1);
    CHECK(last.split == 3 && last.first_row + last.num_rows == (1 << 30) - 1 && tile_of_row(t, (1 << 30) - 2) == num_tiles(t) - 1);
    // Elements of a tensor that is larger than 2^31.
    CHECK(element_at(50'000'000, 2048, 2047) == 102'400'002'047);
    for (int32_t row : {0, 1, 1 << 20, (1 << 30) - 1})
        for (int32_t pitch : {1, 3, 8, 2056, 1 << 20}) CHECK(row_of_element(element_at(row, pitch, pitch - 1), pitch) == row);
    return 0;
}
