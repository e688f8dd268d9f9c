// What the pointwise kernels take. Plain C++; mirrored by src/ops/pointwise/params.rs.
#pragma once
#include "../common/row_tiles.cuh"

struct PointwiseParams {
    uint64_t input, output;  // [rows][pitch]
    RowTiles tiles;
    int32_t input_pitch, output_pitch, channels, column;
    float value;             // fill
    int32_t reserved;
};
static_assert(sizeof(PointwiseParams) == 72, "mirrored in Rust");

struct CastParams {
    uint64_t input, output;  // [len]
    uint64_t scale;          // f32 [1]; 0: 1
    int64_t len;
    int32_t is_aligned;      // both addresses are multiples of 16 bytes
    int32_t reserved;
};
static_assert(sizeof(CastParams) == 40, "mirrored in Rust");
