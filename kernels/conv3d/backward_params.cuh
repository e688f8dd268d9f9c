// What conv3d_backward_pointwise.cu takes, and how its rows are cut. Plain C++; mirrored by src/ops/conv3d/backward/params.rs.
#pragma once
#include "params.cuh"

struct ConvBackwardParams {
    uint64_t g;                    // 16-bit [rows][g_pitch]: the output's gradient, or g of the table
    uint64_t grad_table;           // f32 [splits][3][c_out]: dy = A g + B y + C; 0: dy = g
    uint64_t y;                    // 16-bit [rows][y_pitch]: the output, where there is a table
    uint64_t x;                    // 16-bit [rows][x_pitch]: the input, or what its prologue makes the input from
    uint64_t scale_shift;          // f32 [splits][2][c_in]: the input is relu(s x + b); 0: it is x
    uint64_t add;                  // 16-bit [rows][add_pitch]: added to the input's gradient; may be grad_input; 0: nothing
    uint64_t filter;               // 16-bit [c_out][c_in]
    uint64_t grad_input;           // 16-bit [rows][grad_input_pitch]
    uint64_t grad_filter;          // f32 [c_out][c_in]
    uint64_t tickets;              // u32 [columns], zero
    uint64_t norm_partials;        // f32 [parts][1 + num_norms][c_in]
    uint64_t partials;             // f32 [parts][columns][CO][CI]
    GradNormParams norms[2];       // batch norms whose sums the input's gradient serves
    int32_t g_pitch, y_pitch, x_pitch, add_pitch, grad_input_pitch;
    int32_t c_in, c_out, columns;  // columns: tiles of CI input channels
    int32_t rows, rows_per_split;  // of the clips at hand; of a split that is not the last
    int32_t splits;
    int32_t tiles_per_part, parts_per_split, num_parts;
    int32_t has_mask;              // the gradient passes where the input, before its ReLU, is positive
    int32_t num_norms;
    int32_t accumulates;           // grad_filter holds the sums over the splits before
    int32_t tile_co, tile_ci;      // CO and CI
    // Shared memory. Offsets within a stage, but where they begin at 0: filter, tables, then the result's rows or none.
    int32_t tables_at, stages_at, stage_bytes;
    int32_t y_at, x_at;
    int32_t result_at, result_step;  // of the shared memory; a step a stage where the result takes the place of what is added
    int32_t norm_at[2];              // x_at, where the batch norm is that of the prologue
};
static_assert(sizeof(ConvBackwardParams) == 12 * 8 + 2 * 72 + 28 * 4, "mirrored in Rust");

// The rows of a part: whole tiles of one split, but for the split's end.
struct PartRows {
    int32_t first, end;  // empty where the last split has no such part
};
HOST_DEVICE PartRows rows_of_part(const ConvBackwardParams& p, int32_t split, int32_t part, int32_t tile_rows) {
    const int64_t begin = int64_t(split) * p.rows_per_split, left = p.rows - begin;
    const int64_t rows = left < p.rows_per_split ? left : p.rows_per_split, each = int64_t(p.tiles_per_part) * tile_rows;
    const int64_t first = part * each < rows ? part * each : rows, end = first + each < rows ? first + each : rows;
    return {int32_t(begin + first), int32_t(begin + end)};
}
