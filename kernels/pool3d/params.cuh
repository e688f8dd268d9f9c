// What the pool3d kernels take. Plain C++; mirrored by src/ops/pool3d/params.rs.
#pragma once
#include "../batch_norm/tables.cuh"
#include "../common/divide.cuh"
#include "../common/row_tiles.cuh"
#include "windows.cuh"

struct PoolParams {
    uint64_t from;      // forward: input [rows][from_pitch]; grad_input: gradient of the output
    uint64_t to;        // forward: output [rows][to_pitch]; grad_input: gradient of the input; 0: it is not stored
    uint64_t indices;   // max: [outputs][channels] u8 or u32, the winning position of each window; 0: none
    uint64_t table;     // f32 [splits][2][channels]: the input is relu(scale x + shift); 0: as it is
    PoolAxis t, h, w;
    RowTiles tiles;     // of the rows of `to`
    int32_t from_pitch, to_pitch, channels, column;
    int32_t index_bytes;  // 1 or 4
    int32_t accumulates;  // grad_input is added to
    float scale;          // average: 1 / positions of a window
};
static_assert(sizeof(PoolParams) == 32 + 3 * 44 + 32 + 28, "mirrored in Rust");

// grad_input of a max pool over relu(scale y + shift), with the sums of the batch norm that y goes through.
struct PoolNormParams {
    PoolParams pool;    // its table is that of the mask
    uint64_t y;         // [rows][y_pitch]: the input of the batch norm
    NormPartials at;
    NormGradient norm;
    int32_t y_pitch, reserved;
};
static_assert(sizeof(PoolNormParams) == 224 + 8 + 24 + 56 + 8, "mirrored in Rust");
