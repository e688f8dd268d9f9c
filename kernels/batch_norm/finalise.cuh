// From complete sums to batch norm's tables, one channel a thread: the same arithmetic for every kernel that forms such sums.
// A thread calls `split` for each split in order, then `end`. All arithmetic is f64, each result is rounded once.
#pragma once
#include "../common/storage.cuh"
#include "tables.cuh"

namespace batch_norm {

__device__ __forceinline__ float* floats(uint64_t address) { return reinterpret_cast<float*>(address); }

// A running value, moved towards the mean over the splits.
__device__ __forceinline__ float moved(float running, double mean, float momentum) {
    const double share = double(momentum);
    return float(fma(1.0 - share, double(running), share * mean));
}

}  // namespace batch_norm

// stats and scale_shift of each split; the running pair from the means over the splits. Statistics that are not finite show:
// they are written as they are, and set the skip flag. Where there is one, they do not enter the running pair: the step is
// skipped, and the pair must outlive it.
struct StatisticsOfChannel {
    double means = 0.0, vars = 0.0;

    __device__ __forceinline__ void split(const NormStatistics& to, int split, int c, double count, double mean, double m2) {
        const float inv_std = float(1.0 / sqrt(m2 / count + double(to.eps))), var = float(m2 / (count - 1.0));
        float* stats = batch_norm::floats(to.stats) + int64_t(split) * 3 * to.channels + c;
        stats[0] = float(mean), stats[to.channels] = inv_std, stats[2 * int64_t(to.channels)] = var;
        means += double(float(mean)), vars += double(var);
        if (!to.scale_shift) return;
        // The shift belongs to the rounded scale: a value next to the mean becomes beta, however large the mean.
        const float scale = batch_norm::floats(to.gamma)[c] * inv_std;
        float* scale_shift = batch_norm::floats(to.scale_shift) + int64_t(split) * 2 * to.channels + c;
        scale_shift[0] = scale, scale_shift[to.channels] = float(fma(-mean, double(scale), double(batch_norm::floats(to.beta)[c])));
    }

    __device__ __forceinline__ void end(const NormStatistics& to, int c) const {
        const bool is_finite = means - means == 0.0 && vars - vars == 0.0;
        if (!is_finite && to.skip) atomicOr(reinterpret_cast<uint32_t*>(to.skip), 1u);
        if (!to.running_mean || (!is_finite && to.skip)) return;
        float* mean = batch_norm::floats(to.running_mean) + c;
        float* var = batch_norm::floats(to.running_var) + c;
        *mean = batch_norm::moved(*mean, means / to.splits, to.momentum);
        *var = batch_norm::moved(*var, vars / to.splits, to.momentum);
    }
};

// For sum g (y - mean) over values y of type T, kernels sum g (y - origin), with the origin next to the mean that T can hold: these
// distances are exact. Those from the mean are not, and where it is small they are all rounded alike: an error that grows with
// the number of values as the sum of g does, and that no sum in f64 takes away.
template <class T>
__device__ __forceinline__ float origin_near(float mean) {
    return to_f32(from_f32<T>(mean));
}
// sum g (y - mean) of a tile.
template <class T>
__device__ __forceinline__ float sum_about_mean(double sum_about_origin, double sum_g, float mean) {
    return float(fma(double(origin_near<T>(mean)) - double(mean), sum_g, sum_about_origin));
}

// A, B, C of each split from sum g and sum g (y - mean); the gradients of gamma and beta, sums over the splits. These are rounded
// after each split, so that a batch whose splits come in several launches has the bits of one launch.
struct GradientOfChannel {
    static __device__ __forceinline__ void add(uint64_t sums, int c, bool goes_on, double value) {
        float* sum = batch_norm::floats(sums) + c;
        *sum = float(goes_on ? double(*sum) + value : value);
    }

    __device__ __forceinline__ void split(const NormGradient& to, int split, int c, double count, double sum_g,
                                          double sum_product) {
        const float* stats = batch_norm::floats(to.stats) + int64_t(split) * 3 * to.channels + c;
        const double mean = double(stats[0]), inv_std = double(stats[to.channels]);
        const double sum_normalised = sum_product * inv_std;
        const double a = double(batch_norm::floats(to.gamma)[c]) * inv_std, b = -a * inv_std * (sum_normalised / count);
        // C belongs to the rounded B, as the shift to the scale above.
        const double offset = to.is_centred ? 0.0 : double(float(b)) * mean;
        float* table = batch_norm::floats(to.grad_table) + int64_t(split) * 3 * to.channels + c;
        table[0] = float(a), table[to.channels] = float(b);
        table[2 * int64_t(to.channels)] = float(fma(-a, sum_g / count, -offset));
        const bool goes_on = split > 0 || to.accumulates;
        add(to.grad_gamma, c, goes_on, sum_normalised);
        add(to.grad_beta, c, goes_on, sum_g);
    }

    __device__ __forceinline__ void end(const NormGradient&, int) const {}
};
