// What gram_gradient.cu takes. Plain C++; mirrored by src/ops/gram/gradient_params.rs.
#pragma once
#include <cstdint>

struct GramGradientParams {
    uint64_t products;     // f32 [splits][c_out][c_in]: P, sums of g x' over a split
    uint64_t grad_sums;    // f32 [splits][c_out]: sums of g
    uint64_t moments;      // f32 [splits][c_in + c_in * c_in]: mean and covariance of x
    uint64_t stats;        // f32 [splits][3][c_out]: mean, inverse deviation and unbiased variance of y
    uint64_t gamma;        // f32 [c_out]
    uint64_t filter;       // 16-bit [c_out][c_in]
    uint64_t grad_table;   // f32 [splits][3][c_out]: A, B, C of dy = A g + B y + C
    uint64_t back_filter;  // 16-bit [splits][c_out + c_in][c_in]: A W above W' diag(B) W
    uint64_t back_shift;   // f32 [splits][c_in]: C W
    uint64_t grad_filter;  // f32 [c_out][c_in]
    uint64_t grad_gamma, grad_beta;  // f32 [c_out]
    uint64_t rows_per_split, rows_of_last;  // positions that a channel has
    int32_t c_in, c_out, splits;
    int32_t accumulates;   // the gradients of parameters are added to
};
static_assert(sizeof(GramGradientParams) == 14 * 8 + 16, "mirrored in Rust");
