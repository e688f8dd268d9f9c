// What the linear kernels take. Plain C++; mirrored by src/ops/linear/params.rs.
#pragma once
#include <cstdint>

// C[m][n] = sum over k of A(m, k) B(n, k). An operand whose lines are m or n holds k side by side, and the reverse.
struct LinearOperand {
    uint64_t address;    // T
    int32_t pitch;       // elements from one line to the next
    int32_t is_aligned;  // address and pitch are multiples of 16 bytes
};

struct LinearParams {
    LinearOperand a, b;
    uint64_t output;     // T or float, [m][output_pitch]
    uint64_t bias;       // float [n], added; or 0
    uint64_t grad_bias;  // float [m]: sums of A over k; or 0
    uint64_t partials;   // float [tiles][splits][TILE_M * TILE_N]; unused with one split
    uint64_t tickets;    // uint32_t [tiles], zero before and after; unused with one split
    int32_t m, n, k;
    int32_t output_pitch;
    int32_t k_per_split;  // a multiple of TILE_K
    int32_t k_together;   // no instruction multiplies across a multiple of it; at least k where there are several splits
    int32_t accumulates;  // grad_weight: output and grad_bias are added to
    int32_t n_tiles, is_output_f32, are_pairs;  // are_pairs: output address and pitch are multiples of two elements
};
static_assert(sizeof(LinearParams) == 112, "mirrored in Rust");
