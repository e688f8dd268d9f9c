// What the softmax_loss kernels take. Plain C++; mirrored by src/ops/softmax_loss/params.rs.
#pragma once
#include <cstdint>

struct SoftmaxLossParams {
    uint64_t logits;      // float [rows][logits_pitch]
    uint64_t output;      // gradient T [rows][output_pitch]; of softmax and sigmoid float
    uint64_t labels;      // uint32_t [rows], or 0: cross-entropy with targets
    uint64_t targets;     // float [rows][targets_pitch]
    uint64_t loss;        // float [rows]
    uint64_t counters;    // uint32_t [4]: top 1, top 5, rows, labels that are no class; or 0. Added to
    uint64_t loss_scale;  // float that multiplies the gradient too, or 0
    uint64_t skip;        // uint32_t, SOFTMAX_LOSS_SKIP is set in it where a row's loss is not finite; or 0
    int32_t classes;
    int32_t logits_pitch, output_pitch, targets_pitch;
    float scale, smoothing;
};
constexpr uint32_t SOFTMAX_LOSS_SKIP = 2;  // 1 belongs to batch norm
static_assert(sizeof(SoftmaxLossParams) == 88, "mirrored in Rust");
