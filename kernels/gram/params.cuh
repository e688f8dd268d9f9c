// What the kernels of Gram batch norm take. Plain C++; mirrored by src/ops/gram/params.rs.
#pragma once
#include "../batch_norm/tables.cuh"
#include "../common/row_tiles.cuh"

struct GramMomentsParams {
    uint64_t x;            // 16-bit [rows][pitch]
    uint64_t scale_shift;  // f32 [splits][2][channels]: x becomes relu(scale x + shift); 0: it is taken as it is
    uint64_t partials;     // f32 [slabs][channels + channels * channels]
    RowTiles slabs;
    int32_t pitch, channels;
};
static_assert(sizeof(GramMomentsParams) == 64, "mirrored in Rust");

struct GramMergeParams {
    uint64_t partials;
    uint64_t moments;  // f32 [splits][channels + channels * channels]
    RowTiles slabs;
    int32_t channels, reserved;
};
static_assert(sizeof(GramMergeParams) == 56, "mirrored in Rust");

struct GramStatisticsParams {
    uint64_t moments;
    uint64_t filter;    // 16-bit [channels out][channels]
    uint64_t partials;  // f64 [splits][tiles of channels][channels out][2]: mean, variance
    uint64_t tickets;   // u32 [splits][tiles of channels out]; zero
    NormStatistics to;
    int32_t rows, rows_per_split;
    int32_t channels, reserved;
};
static_assert(sizeof(GramStatisticsParams) == 120, "mirrored in Rust");
