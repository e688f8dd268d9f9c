// What the convolution kernels take. Plain C++; mirrored by src/ops/conv3d/params.rs.
#pragma once
#include "../batch_norm/tables.cuh"
#include "mapping.cuh"

// How the activations that the kernel gathers (forward and grad_filter: the input; grad_input: the gradient of the output)
// are changed on their way in. See prologue.cuh.
struct PrologueParams {
    uint64_t table;         // f32 [splits][table_rows][channels]; 0: no prologue
    uint64_t second;        // 16-bit [positions][second_pitch]: the residual, y of A g + B y + C, or what lies beside; 0: none
    uint64_t second_table;  // f32 [splits][2][channels] for a residual that is normalised too; 0: it is taken as it is
    uint64_t store;         // 16-bit [positions][store_pitch]: receives the result once; 0: nothing is stored
    int32_t table_rows;     // 2: scale, shift   3: A, B, C
    int32_t channels;
    int32_t second_pitch, store_pitch;
    int32_t has_relu;
    int32_t second_first;   // side by side: the channel that `second` begins with
};
static_assert(sizeof(PrologueParams) == 56, "mirrored in Rust");

// A batch norm whose gradient begins at the input of the convolution.
struct GradNormParams {
    uint64_t y;  // 16-bit [positions][y_pitch]
    NormGradient to;
    int32_t y_pitch, reserved;
};
static_assert(sizeof(GradNormParams) == 72, "mirrored in Rust");

// What happens to the sums, in this order; an address of 0 leaves a step out.
struct EpilogueParams {
    uint64_t bias;        // f32 [channels], of grad_input [splits][channels]: added
    uint64_t add;         // 16-bit [positions][add_pitch]: added; may be the target itself
    uint64_t mask;        // 16-bit [positions][mask_pitch]: kept where it is positive, else 0
    uint64_t mask_table;  // f32 [splits][2][channels]: the mask is scale * mask + shift
    // Forward; both f32 [splits][2][channels], scale and shift.
    uint64_t table;       // of the sums: takes the place of the bias
    uint64_t add_table;   // of what is added
    NormStatistics statistics;  // of the target, where its `stats` is no 0
    GradNormParams norms[2];
    int32_t add_pitch, mask_pitch;
    int32_t has_relu;
    int32_t num_norms;  // gradient sums for so many
};
static_assert(sizeof(EpilogueParams) == 280, "mirrored in Rust");

struct Conv3dParams {
    uint64_t source;      // 16-bit [n][t][h][w][source_pitch]: the input, or the gradient of the output
    uint64_t filter;      // 16-bit [c_out][ft][fh][fw][c_in / groups]; side by side: [splits][c_out][c_in]
    uint64_t target;      // 16-bit [n][t][h][w][target_pitch]: the output, or the gradient of the input
    uint64_t tickets;     // u32 [columns][splits * groups_per_split + 1], then [columns][tiles] with slices; zero
    uint64_t partials;    // f32 [tiles][rows of sums][channels]
    uint64_t group_partials;  // f32 [splits * groups_per_split][rows of sums][channels]
    uint64_t slice_sums;  // f32 [columns][tiles][slices][TILE_M * TILE_N]
    PrologueParams prologue;
    EpilogueParams epilogue;
    ConvGather gather;
    FastDiv source_chunks;  // 16-byte chunks of the source's channels, of a group
    int32_t source_channels, target_channels;  // of a group
    int32_t source_pitch, target_pitch;
    int32_t columns;         // tiles of target channels, of all groups
    uint32_t tiles_per_split;
    uint32_t group_tiles, groups_per_split;  // tiles whose statistics are joined first
    int32_t slices;          // parts of gemm_k that blocks of their own sum up
    int32_t groups;
    // Of wgmma.
    int32_t tiles;           // of rows
    int32_t halo_rows;       // that a tile reads with one frame of the filter
    int32_t source_stages, filter_stages, reserved;
};
static_assert(sizeof(Conv3dParams) == 56 + 56 + 280 + 104 + 12 + 60, "mirrored in Rust");

// For the kernel that stores what a prologue of two tensors makes.
struct PrologueOnlyParams {
    uint64_t source;  // 16-bit [positions][source_pitch]
    PrologueParams prologue;
    uint64_t positions, positions_per_split;
    int32_t source_pitch, reserved;
};
static_assert(sizeof(PrologueOnlyParams) == 88, "mirrored in Rust");

struct PackPairsParams {
    uint64_t from, to;
    int32_t rows, taps, pairs, first;
};
static_assert(sizeof(PackPairsParams) == 32, "mirrored in Rust");
