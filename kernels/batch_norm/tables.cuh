// What becomes of the sums that batch norm needs, once they are complete. Plain C++; mirrored by src/ops/batch_norm/params.rs.
#pragma once
#include <cstdint>

// Of the statistics of a tensor. An address of 0 leaves a table out.
struct NormStatistics {
    uint64_t gamma, beta;                // f32 [channels]; read for scale_shift alone
    uint64_t stats;                      // f32 [splits][3][channels]: mean, inverse deviation, unbiased variance
    uint64_t scale_shift;                // f32 [splits][2][channels]: gamma / deviation, beta - mean * scale
    uint64_t running_mean, running_var;  // f32 [channels], updated
    uint64_t skip;                       // u32, becomes 1 where a statistic is not finite
    float eps, momentum;
    int32_t channels, splits;
};
static_assert(sizeof(NormStatistics) == 72, "mirrored in Rust");

// Of the sums of a gradient. dy = A g + B y + C; centred, C holds no B * mean: dy = A g + B (y - mean) + C.
struct NormGradient {
    uint64_t stats, gamma;           // of forward
    uint64_t grad_table;             // f32 [splits][3][channels]: A, B, C
    uint64_t grad_gamma, grad_beta;  // f32 [channels]: sums over the splits, in their order
    int32_t channels, is_centred;
    int32_t accumulates, reserved;   // grad_gamma and grad_beta hold the sums over the splits before, and go on from them
};
static_assert(sizeof(NormGradient) == 56, "mirrored in Rust");

// Where partial sums go. With groups of one tile both addresses of partials are the same.
struct NormPartials {
    uint64_t tickets;                   // u32 [columns][1 + splits * groups_per_split], zero
    uint64_t partials, group_partials;  // f32 [tiles or groups][2][channels]
};
static_assert(sizeof(NormPartials) == 24, "mirrored in Rust");
