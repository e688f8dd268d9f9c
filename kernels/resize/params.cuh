// What the resize kernels take. Plain C++; mirrored by src/ops/resize/params.rs.
#pragma once
#include <cstdint>

// Output sample i lies at start + i * step input elements, clamped to 0 .. size - 1; step >= 0.
struct ResizeAxis {
    float start, step, inverse_step;  // inverse_step is 0 where step is
    int32_t size, resized;
};

struct ResizeParams {
    uint64_t from;             // forward: the input; grad_input: the gradient of the output
    uint64_t to;               // forward: the output; grad_input: the gradient of the input
    ResizeAxis t, h, w;
    int32_t n, channels;
    int32_t from_pitch, to_pitch;  // elements from one position to the next
    int32_t reserved;
};
static_assert(sizeof(ResizeParams) == 96, "mirrored in Rust");
