// What the grad_filter kernels take. Plain C++; mirrored by src/ops/conv3d/grad_filter/params.rs.
#pragma once
#include "grad_filter_mapping.cuh"
#include "params.cuh"

// The gradient of a max pool over (h, w) that follows the batch norm and its ReLU: kernels named `pool` gather each position's
// gradient from the windows that it won.
struct GradPoolParams {
    uint64_t indices;      // u8 [n][to][size_h][size_w][c_out]: the window's winning position
    uint64_t scale_shift;  // f32 [splits][2][c_out]: the ReLU was open where scale y + shift is positive
    int32_t size_h, size_w;  // of the pool's output
    int32_t kernel_h, kernel_w, stride_h, stride_w, padding_h, padding_w;
    int32_t box_h, box_w, box_rows;           // windows that hold a tile's rows: [frames][box_h][box_w]
    int32_t places_offset;                    // in shared memory
    int32_t gradient_offset, indices_offset;  // in a stage: [box_rows][out_chunks] of 16 and of 8 bytes
};
static_assert(sizeof(GradPoolParams) == 72, "mirrored in Rust");

struct GradFilterParams {
    uint64_t input, grad_output;       // 16-bit activations
    uint64_t grad_filter;              // f32 [c_out][taps][c_in], all groups one after the other
    uint64_t grad_bias;                // f32 [c_out]; 0: not asked for
    uint64_t partials;                 // f32 [num_parts][num_blocks][fragments][32][4]; 0: one part, whose sums are stored
    PrologueParams input_prologue, grad_prologue;
    GradFilterAxis t, h, w;
    int32_t last_input_t;                 // size in t of the last outer block's input
    int32_t grad_t, last_grad_t;          // frames of the gradient in an outer block, and in the last
    int32_t grad_first_t;                 // frame of the gradient that a tile's rows begin with, before the tile's own
    int32_t grad_taps, grad_tap_rows;     // taps of t that the gradient's rows are shifted by, and rows from one to the next
    int32_t grad_box_rows;                // rows of the gradient that a tile copies
    int32_t num_outer, outer_per_split;   // blocks that t, h, w are sizes of: clips, or splits where clips are joined in t
    int32_t input_pitch, grad_pitch;
    int32_t c_in, c_out;                  // of one group
    int32_t num_tiles, tiles_per_part, num_parts;
    int32_t tiles_per_split, parts_per_split;  // of a split that is not the last; of all where there is one part
    int32_t accumulates;                  // grad_filter and grad_bias are added to
    int32_t is_of_splits;                 // grad_filter [splits][c_out][taps][c_in], grad_bias [splits][c_out]: of one group
    int32_t reserved;
    int32_t taps_per_block, num_tap_blocks, slab_chunks, num_slabs;
    int32_t out_chunks, num_out_blocks;   // chunks of 8 output channels a block has, and blocks for those of a group
    int32_t warps_m, warps_n, warps_k;
    int32_t units, out_octets;            // of a warp: the kernel's UNITS and OCTETS
    int32_t input_granule, grad_granule;  // bytes that are copied at once: 16, 8 or 2
    int32_t has_pixel_pairs, filter_w;    // a chunk holds 4 channels of 2 neighbouring pixels; the filter's own width
    int32_t rows;                         // of a tile, padded to a multiple of 16
    RowLayout input_rows, grad_rows;
    int32_t box_offset, factors_offset, stages_offset;                     // in shared memory
    int32_t second_input_offset, grad_offset, second_grad_offset, stage_bytes;  // in a stage
    int32_t num_blocks;                   // blocks in x of the launch that makes the parts
    int32_t warps_per_sum, warps_per_split;  // warps that share the parts of one fragment, and those of one split of it
    GradPoolParams pool;
};
static_assert(sizeof(GradFilterParams) == 568, "mirrored in Rust");
