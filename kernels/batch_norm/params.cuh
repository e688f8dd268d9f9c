// What the batch norm kernels take. Plain C++; mirrored by src/ops/batch_norm/params.rs.
#pragma once
#include "../common/row_tiles.cuh"
#include "tables.cuh"

struct NormStatisticsParams {
    uint64_t input;      // [rows][input_pitch]
    NormPartials at;
    NormStatistics to;
    RowTiles tiles;
    int32_t input_pitch, column;  // column: channels of a block
};
static_assert(sizeof(NormStatisticsParams) == 144, "mirrored in Rust");

// What a value is normalised with.
enum NormTableKind {
    NORM_SCALE_SHIFT = 0,  // table: f32 [splits][2][channels]
    NORM_STATS = 1,        // table: f32 [splits][3][channels], with gamma and beta
    NORM_RUNNING = 2,      // table: the running mean, f32 [channels], with var, gamma and beta
};

struct NormApplyParams {
    uint64_t input, output;  // [rows][pitch]
    uint64_t second;         // [rows][second_pitch], added; 0: none
    uint64_t second_table;   // f32 [splits][2][channels]: scale and shift of the second; 0: it is added as it is
    uint64_t table, var, gamma, beta;
    RowTiles tiles;
    int32_t input_pitch, output_pitch, second_pitch;
    int32_t channels, column;
    int32_t table_kind, has_relu;
    float eps;
};
static_assert(sizeof(NormApplyParams) == 128, "mirrored in Rust");

struct NormGradientSumsParams {
    uint64_t input, grad_output;  // [rows][pitch]
    uint64_t mask;                // [rows][mask_pitch]: the output of the ReLU; 0: none
    uint64_t mask_table;          // f32 [splits][2][channels]: scale and shift that make the ReLU's input from `input`; 0: none
    NormPartials at;
    NormGradient to;
    RowTiles tiles;
    int32_t input_pitch, grad_output_pitch, mask_pitch, column;
};
static_assert(sizeof(NormGradientSumsParams) == 160, "mirrored in Rust");

struct NormGradientParams {
    uint64_t input, grad_output, mask, mask_table;  // as above
    uint64_t table;          // f32 [splits][3][channels]: A, B, C
    uint64_t stats;          // f32 [splits][3][channels]: its means where the table is centred; 0: it is not
    uint64_t grad_input;     // [rows][grad_input_pitch]
    uint64_t grad_residual;  // [rows][grad_residual_pitch]: receives the masked gradient; 0: none
    RowTiles tiles;
    int32_t input_pitch, grad_output_pitch, mask_pitch, grad_input_pitch, grad_residual_pitch;
    int32_t channels, column;
    int32_t accumulates;     // into grad_residual
};
static_assert(sizeof(NormGradientParams) == 128, "mirrored in Rust");

// Tables from partial sums that another kernel has formed. `tiles` has groups of one tile.
struct NormFinaliseParams {
    uint64_t partials;  // f32 [tiles][2][channels]
    NormStatistics statistics;
    NormGradient gradient;  // one of the two is used, as the kernel says
    RowTiles tiles;
};
static_assert(sizeof(NormFinaliseParams) == 168, "mirrored in Rust");

// The running pair, or the scale and shift that it makes, from tables.
struct NormRunningParams {
    uint64_t stats;                      // f32 [splits][3][channels]
    uint64_t running_mean, running_var;  // f32 [channels]
    uint64_t gamma, beta, scale_shift;   // f32 [channels], [channels], [2][channels]
    int32_t channels, splits;
    float momentum, eps;
};
static_assert(sizeof(NormRunningParams) == 64, "mirrored in Rust");

// One of many norms whose running pairs move in one launch.
struct NormRunningEntry {
    uint64_t stats;                      // f32 [splits][3][channels]
    uint64_t running_mean, running_var;  // f32 [channels]
    int32_t channels, splits;
};
struct NormRunningAllParams {
    uint64_t entries;  // NormRunningEntry [blocks in y]
    uint64_t skipped;  // u32: where it is not 0 all running pairs stay as they are; or 0
    float momentum;
    int32_t reserved;
};
static_assert(sizeof(NormRunningEntry) == 32 && sizeof(NormRunningAllParams) == 24, "mirrored in Rust");

// One of many norms whose moments are added up in one launch.
struct NormMomentsEntry {
    uint64_t stats;                        // f32 [splits][3][channels]
    uint64_t sums;                         // f64 [2][channels]
    int32_t channels, splits;
    int32_t clips, clips_per_split;        // the last split may have fewer
    int32_t positions_per_clip, reserved;
};
struct NormMomentsParams {
    uint64_t entries;  // NormMomentsEntry [blocks in y]
};
static_assert(sizeof(NormMomentsEntry) == 40 && sizeof(NormMomentsParams) == 8, "mirrored in Rust");
