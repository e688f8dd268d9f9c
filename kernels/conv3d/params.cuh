// What the convolution kernels take. Plain C++; mirrored by src/ops/conv3d/params.rs.
#pragma once
#include "mapping.cuh"

// How the activations that the kernel gathers (forward and grad_filter: the input; grad_input: the gradient of the output)
// are changed on their way in. See prologue.cuh.
struct PrologueParams {
    uint64_t table;         // f32 [splits][table_rows][channels]; 0: no prologue
    uint64_t second;        // 16-bit [positions][second_pitch]: the residual, or y of A g + B y + C; 0: none
    uint64_t second_table;  // f32 [splits][2][channels] for a residual that is normalised too; 0: it is taken as it is
    uint64_t store;         // 16-bit [positions][store_pitch]: receives the result once; 0: nothing is stored
    int32_t table_rows;     // 2: scale, shift   3: A, B, C
    int32_t channels;
    int32_t second_pitch, store_pitch;
    int32_t has_relu, reserved;
};
static_assert(sizeof(PrologueParams) == 56, "mirrored in Rust");
