// batch_norm moments: sums over batches, of every norm of a network, for precise statistics.
// stats f32 [splits][3][channels] -> sums f64 [2][channels] of each norm: clips x mean, clips x mean square. Added to.
// grid    x: channels of the widest norm, THREADS a block   y: norms
// block   256 threads, a thread a channel; splits in order: deterministic
// shared  none        needs  sums at a multiple of 8 bytes
#include "../common/storage.cuh"
#include "params.cuh"

constexpr int THREADS = 256;

extern "C" __global__ void __launch_bounds__(THREADS)
    batch_norm_add_moments_f32(const __grid_constant__ NormMomentsParams p) {
    begin_grid();
    const NormMomentsEntry norm = reinterpret_cast<const NormMomentsEntry*>(p.entries)[blockIdx.y];
    const int c = int(blockIdx.x) * THREADS + int(threadIdx.x);
    if (c >= norm.channels) return;
    double means = 0.0, squares = 0.0;
    for (int split = 0; split < norm.splits; split++) {
        const float* stats = reinterpret_cast<const float*>(norm.stats) + int64_t(split) * 3 * norm.channels + c;
        // The last split may be ragged.
        const int clips = min(norm.clips_per_split, norm.clips - split * norm.clips_per_split);
        const double count = double(clips) * double(norm.positions_per_clip);
        const double mean = double(stats[0]), unbiased_var = double(stats[2 * int64_t(norm.channels)]);
        means += double(clips) * mean;
        squares += double(clips) * (unbiased_var * (count - 1.0) / count + mean * mean);
    }
    double* sums = reinterpret_cast<double*>(norm.sums) + c;
    sums[0] += means, sums[norm.channels] += squares;
}
SIMT_EXPORT(batch_norm_add_moments_f32)
