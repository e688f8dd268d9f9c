// What the dropout kernels take. Plain C++; mirrored by src/ops/dropout/params.rs.
#pragma once
#include <cstdint>

struct DropoutParams {
    uint64_t from, to;
    uint64_t seed, step;
    uint64_t step_address;  // uint32_t [2], the lower word first, that takes the place of step; or 0
    uint64_t first_clip;
    int32_t n, rows, channels;     // rows of a clip: t * h * w
    int32_t from_pitch, to_pitch;  // elements from one row to the next
    uint32_t threshold;
    float scale;
    uint32_t reserved;
};
static_assert(sizeof(DropoutParams) == 80, "mirrored in Rust");
