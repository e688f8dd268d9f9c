// What the mixup kernels take. Plain C++; mirrored by src/ops/mixup/launch.rs.
#pragma once
#include <cstdint>

struct MixupParams {
    uint64_t clips;                             // [n][frames][height][width][pitch]
    int32_t n, frames, height, width, channels;
    int32_t pitch;                              // elements from one pixel to the next
    int32_t top, left, box_height, box_width;   // the pixels that are blended, of every frame
    float keep;                                 // a clip's own share of them
    int32_t reserved;
};
static_assert(sizeof(MixupParams) == 56, "mirrored in Rust");
