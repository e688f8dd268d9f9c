// How the rows (positions) of activations are cut into tiles, and tiles into groups: for sums over the rows of each split.
// Plain C++, so that a host test reads the very functions that the kernels use.
//
// Splits are contiguous blocks of rows; the last may be smaller. Tiles restart at each split, groups too: none holds rows of
// two splits. Tiles are numbered by split, then by row; each split but the last has tiles_per_split of them.
#pragma once
#include <cstdint>

#ifdef __CUDACC__
#define ROW_TILES_FUNCTION __host__ __device__ __forceinline__
#else
#define ROW_TILES_FUNCTION inline
#endif

struct RowTiles {
    int32_t rows, rows_per_split, splits;
    int32_t tile_rows, tiles_per_split;        // ceil(rows_per_split / tile_rows)
    int32_t group_tiles, groups_per_split;     // ceil(tiles_per_split / group_tiles)
    int32_t reserved;
};
static_assert(sizeof(RowTiles) == 32, "mirrored in Rust");

// A tile, or a group of tiles: its split, its number in the split, and its rows of the whole tensor.
struct RowRange {
    int32_t split, of_split;
    int32_t first_row, num_rows;
};

ROW_TILES_FUNCTION int32_t rows_of_split(const RowTiles& t, int32_t split) {
    return split + 1 < t.splits ? t.rows_per_split : t.rows - split * t.rows_per_split;
}
// Sets of `set_rows` rows in a split: tiles, or groups.
ROW_TILES_FUNCTION int32_t sets_of_split(const RowTiles& t, int32_t split, int32_t set_rows) {
    return (rows_of_split(t, split) - 1) / set_rows + 1;
}
ROW_TILES_FUNCTION int32_t tiles_of_split(const RowTiles& t, int32_t split) { return sets_of_split(t, split, t.tile_rows); }
ROW_TILES_FUNCTION int32_t groups_of_split(const RowTiles& t, int32_t split) {
    return (tiles_of_split(t, split) - 1) / t.group_tiles + 1;
}
ROW_TILES_FUNCTION int32_t num_tiles(const RowTiles& t) {
    return (t.splits - 1) * t.tiles_per_split + tiles_of_split(t, t.splits - 1);
}
ROW_TILES_FUNCTION int32_t num_groups(const RowTiles& t) {
    return (t.splits - 1) * t.groups_per_split + groups_of_split(t, t.splits - 1);
}
// The rows of a tile, and the tile of a row.
ROW_TILES_FUNCTION RowRange range_of_tile(const RowTiles& t, int32_t tile) {
    const int32_t split = tile / t.tiles_per_split, of_split = tile - split * t.tiles_per_split;
    const int32_t first = of_split * t.tile_rows, left = rows_of_split(t, split) - first;
    return {split, of_split, split * t.rows_per_split + first, left < t.tile_rows ? left : t.tile_rows};
}
ROW_TILES_FUNCTION int32_t tile_of_row(const RowTiles& t, int32_t row) {
    const int32_t split = row / t.rows_per_split;
    return split * t.tiles_per_split + (row - split * t.rows_per_split) / t.tile_rows;
}

// Element of a channel of a row; a tensor may have more than 2^31. And back, for a channel below the pitch.
ROW_TILES_FUNCTION int64_t element_at(int32_t row, int32_t pitch, int32_t channel) { return int64_t(row) * pitch + channel; }
ROW_TILES_FUNCTION int32_t row_of_element(int64_t element, int32_t pitch) { return int32_t(element / pitch); }
