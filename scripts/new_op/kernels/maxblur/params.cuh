// What the maxblur kernels take. Plain C++; mirrored by src/ops/maxblur/params.rs.
#pragma once
#include <cstdint>

struct MaxBlurParams {
    uint64_t input, output;
    int32_t n, t, h, w, channels, input_pitch, output_pitch, reserved;  // h and w are the input's
};
static_assert(sizeof(MaxBlurParams) == 48, "mirrored in Rust");
