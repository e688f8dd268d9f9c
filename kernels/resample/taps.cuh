// Which source pixels a sample reads, and with which weights. The same arithmetic as src/ops/resample/taps.rs.
#pragma once
#include "../common/ptx.cuh"
#include "params.cuh"

// Pixels first .. last of an axis. The weight of pixel j is max(0, 1 - |j - position| * slope) * scale.
struct Taps {
    float position, slope, scale;
    int first, last;
};

__device__ __forceinline__ float sample_position(const ResampleAxis& axis, int i) {
    const float p = fmaf(float(i), axis.step, axis.start);
    return fminf(fmaxf(p, float(axis.lo)), float(axis.hi));
}

__device__ __forceinline__ float tap_weight(const Taps& taps, int j) {
    return fmaxf(fmaf(-fabsf(float(j) - taps.position), taps.slope, 1.0f), 0.0f) * taps.scale;
}

// Two pixels around the position, or one where it is a whole number: then the second has no weight.
__device__ __forceinline__ Taps linear_taps(const ResampleAxis& axis, int i) {
    Taps taps;
    taps.position = sample_position(axis, i);
    taps.slope = taps.scale = 1.0f;
    taps.first = int(taps.position);  // positions are never negative
    taps.last = taps.first + (taps.position > float(taps.first));
    return taps;
}

// A triangle as wide as the stride, cut off at the clamp interval.
__device__ __forceinline__ Taps antialias_taps(const ResampleAxis& axis, int i) {
    if (fabsf(axis.step) <= 1.0f) return linear_taps(axis, i);
    const float half_width = fabsf(axis.step);
    Taps taps;
    taps.position = sample_position(axis, i);
    taps.slope = 1.0f / half_width;
    taps.scale = 1.0f;
    taps.first = int(fmaxf(ceilf(taps.position - half_width), float(axis.lo)));
    taps.last = int(fminf(floorf(taps.position + half_width), float(axis.hi)));
    float sum = 0.0f;
    for (int j = taps.first; j <= taps.last; j++) sum += tap_weight(taps, j);
    taps.scale = 1.0f / sum;
    return taps;
}

template <bool ANTIALIAS>
__device__ __forceinline__ Taps make_taps(const ResampleAxis& axis, int i) {
    if constexpr (ANTIALIAS) return antialias_taps(axis, i);
    else return linear_taps(axis, i);
}
