// Count, mean and sum of squared deviations from the mean (M2) of sets of values, and how those of several sets are joined
// (Chan, Golub and LeVeque 1983). Nothing is ever a difference of two large numbers: a mean that is large against the
// deviation costs no digits.
#pragma once
#include "ptx.cuh"

struct Moments {
    float count, mean, m2;  // an empty set: 0, 0, 0
};

// Of both sets. Not symmetric to the last bit: the order of the sets counts.
__device__ __forceinline__ Moments merge(const Moments& a, const Moments& b) {
    const float count = a.count + b.count, share = count > 0.0f ? b.count / count : 0.0f, delta = b.mean - a.mean;
    return {count, fmaf(delta, share, a.mean), fmaf(delta * delta, a.count * share, a.m2 + b.m2)};
}

// Of the sets of all lanes of a group, as warp_reduce forms groups; the same bits in each of its lanes.
template <int WIDTH = 32, int STEP = 1>
__device__ __forceinline__ Moments warp_merge(Moments m) {
    const int lane = int(threadIdx.x) % 32;
#pragma unroll
    for (int bit = STEP; bit < WIDTH; bit *= 2) {
        const Moments other = {__shfl_xor_sync(~0u, m.count, bit), __shfl_xor_sync(~0u, m.mean, bit),
                               __shfl_xor_sync(~0u, m.m2, bit)};
        m = lane & bit ? merge(other, m) : merge(m, other);
    }
    return m;
}

// The same for many sets at once: sums in f64, relative to an origin that is the mean of one of the sets, without a division
// a set. Sums of the same origin are joined by adding them.
struct MomentSums {
    double count = 0.0, distance = 0.0, square = 0.0, m2 = 0.0;

    __device__ __forceinline__ void add(const Moments& m, float origin) {
        const double d = double(m.mean) - double(origin), n = double(m.count);
        count += n;
        distance = fma(n, d, distance);
        square = fma(n * d, d, square);
        m2 += double(m.m2);
    }
    __device__ __forceinline__ void add(const MomentSums& other) {
        count += other.count, distance += other.distance, square += other.square, m2 += other.m2;
    }
    __device__ __forceinline__ double mean(float origin) const { return double(origin) + distance / count; }
    // Not below 0; a NaN stays one.
    __device__ __forceinline__ double sum_of_squares() const {
        const double sum = m2 + fma(-distance, distance / count, square);
        return sum < 0.0 ? 0.0 : sum;
    }
};
