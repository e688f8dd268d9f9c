// What the resample kernels take. Plain C++; mirrored by src/ops/resample/params.rs.
#pragma once
#include <cstdint>

constexpr int RESAMPLE_MAX_PATHWAYS = 4;

// Sample i lies at start + i * step source pixels; what is read is clamped to lo..hi (inclusive).
struct ResampleAxis {
    float start, step;
    int32_t lo, hi;
};

// A clip of the table.
struct ResampleClip {
    uint64_t source;        // uint8 [frames][height][width][3], one box of all frames
    uint64_t source_bytes;  // frames * height * width * 3
    int32_t height, width;
    int32_t flip;           // mirror the columns of the output
    int32_t origin_bytes;   // (row * width + column) * 3 of the box in the frames that the axes count in; 0: whole frames
    ResampleAxis t, y, x;
};
static_assert(sizeof(ResampleClip) == 80, "mirrored in Rust");

// A frame of the table: sample `sample` of the t axis goes to frame `frame[i]` of pathway i, or nowhere where it is < 0.
struct ResampleFrame {
    int32_t sample;
    int32_t frame[RESAMPLE_MAX_PATHWAYS];
};
static_assert(sizeof(ResampleFrame) == 20, "mirrored in Rust");

struct ResampleParams {
    uint64_t clips;                                // ResampleClip [n]
    uint64_t frames;                               // ResampleFrame [gridDim.y]
    uint64_t output[RESAMPLE_MAX_PATHWAYS];        // [n][output_frames[i]][height][width][pitch_c]
    int32_t output_frames[RESAMPLE_MAX_PATHWAYS];
    int32_t pitch_c[RESAMPLE_MAX_PATHWAYS];
    int32_t height, width, channels;               // of the outputs
    int32_t tile;                                  // columns of the output that a warp makes
    int32_t num_tiles;                             // tiles in a row
    int32_t row_floats;                            // shared floats of a warp
    int32_t has_vector_stores;                     // 4 channels, pitch 4, outputs aligned to 4 elements
    int32_t reserved;
    float multiply[3], add[3];                     // output = value * multiply + add
};
static_assert(sizeof(ResampleParams) == 136, "mirrored in Rust");
