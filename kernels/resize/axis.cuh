// Where the samples of a resized axis lie. The same arithmetic as src/ops/resize/axis.rs.
#pragma once
#include "../common/ptx.cuh"
#include "params.cuh"

// The two input elements that output sample i reads, and the weight of the second.
struct Pair {
    int first, second;
    float fraction;
};

__device__ __forceinline__ Pair read_by(const ResizeAxis& axis, int i) {
    const float position = fminf(fmaxf(fmaf(float(i), axis.step, axis.start), 0.0f), float(axis.size - 1));
    Pair pair;
    pair.first = int(position);
    pair.second = min(pair.first + 1, axis.size - 1);
    pair.fraction = position - float(pair.first);
    return pair;
}

// The weight of input element j in output sample i; 0 where i does not read j.
__device__ __forceinline__ float weight_of(const ResizeAxis& axis, int i, int j) {
    const Pair pair = read_by(axis, i);
    if (pair.first == pair.second) return pair.first == j ? 1.0f : 0.0f;
    return pair.first == j ? 1.0f - pair.fraction : pair.second == j ? pair.fraction : 0.0f;
}

struct Range {
    int begin, end;
};

// Output samples that may read input element j: positions in (j - 1, j + 1), and one more on both sides against rounding.
// The first and the last element are also read by all samples that are clamped to them.
__device__ __forceinline__ Range readers_of(const ResizeAxis& axis, int j) {
    Range range = {0, axis.resized};
    if (axis.step > 0.0f) {
        const float below = (float(j - 1) - axis.start) * axis.inverse_step;
        const float above = (float(j + 1) - axis.start) * axis.inverse_step;
        if (j > 0) range.begin = max(0, int(below) - 1);
        if (j < axis.size - 1) range.end = min(axis.resized, int(above) + 2);
    }
    return range;
}
