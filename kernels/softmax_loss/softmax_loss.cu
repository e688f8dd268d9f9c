// softmax_loss: cross-entropy or binary cross-entropy of rows of logits and its gradient in one launch; softmax, sigmoid.
// logits f32 [rows][logits_pitch], labels u32 [rows] or targets f32 [rows][targets_pitch]
// loss f32 [rows], gradient [rows][output_pitch] in f32, bf16 or f16; sums in f32 and f64
// grid    x: rows        block: 256 threads for one row
// shared  cross_entropy, softmax: float [classes]; static: a word a warp
// needs   classes * 4 bytes of shared memory; a label of `classes` and more is not used as an index: its row's loss and
//         gradient become NaN and counters[3] grows
// loss and output are overwritten, counters are added to, a bit of skip is set where a loss is not finite; output may be the memory
// of the logits, which each thread reads before it writes. Deterministic: a thread's classes in order, then the threads' sums in one
// order. No workspace.
// Exponentials are f32; what is summed and made of them is f64, as on the CPU: a row is a few hundred of them.
#include "../common/reduce.cuh"
#include "../common/storage.cuh"
#include "params.cuh"

constexpr int THREADS = 256;
constexpr uint32_t NO_CLASS = 0xffffffffu;

struct Largest {
    __device__ __forceinline__ uint64_t operator()(uint64_t a, uint64_t b) const { return a > b ? a : b; }
};

__device__ __forceinline__ const float* row_of(uint64_t array, int pitch) {
    return reinterpret_cast<const float*>(array) + int64_t(blockIdx.x) * pitch;
}

// What the gradient of a row is multiplied with.
__device__ __forceinline__ float gradient_scale(const SoftmaxLossParams& p) {
    return p.loss_scale ? p.scale * *reinterpret_cast<const float*>(p.loss_scale) : p.scale;
}

// One thread.
__device__ __forceinline__ void store_loss(const SoftmaxLossParams& p, float loss) {
    reinterpret_cast<float*>(p.loss)[blockIdx.x] = loss;
    const bool is_finite = (__float_as_uint(loss) & 0x7f800000u) != 0x7f800000u;
    if (!is_finite && p.skip) atomicOr(reinterpret_cast<uint32_t*>(p.skip), SOFTMAX_LOSS_SKIP);
}

// ---- cross-entropy ---------------------------------------------------------------------------------------------------

// What a row's classes are compared with: probability 1 for the label, some of it spread over all classes, or as given.
struct Target {
    uint32_t label;      // NO_CLASS with `given`
    const float* given;  // [classes]
    float spread, on_label;

    __device__ __forceinline__ float of(int c) const {
        return given != nullptr ? given[c] : spread + (uint32_t(c) == label ? on_label : 0.0f);
    }
};

// The class with the largest target, the first of equal ones.
__device__ __forceinline__ uint32_t largest_target(const BlockTeam& team, const float* given, int classes, uint64_t* warps) {
    uint64_t best = 0;
    for (int c = threadIdx.x; c < classes; c += THREADS)
        if (given[c] > 0.0f) best = Largest()(best, uint64_t(__float_as_uint(given[c])) << 32 | (NO_CLASS - uint32_t(c)));
    return NO_CLASS - uint32_t(team_reduce(team, best, warps, Largest()));
}

// One thread. Of equal logits the lower class counts as the larger, a NaN as larger than any number: `rank` classes are larger.
__device__ __forceinline__ void count(uint64_t counters, bool has_number, uint32_t rank, bool is_class) {
    uint32_t* to = reinterpret_cast<uint32_t*>(counters);
    if (is_class && has_number && rank < 1) atomicAdd(&to[0], 1u);
    if (is_class && has_number && rank < 5) atomicAdd(&to[1], 1u);
    atomicAdd(&to[2], 1u);
    if (!is_class) atomicAdd(&to[3], 1u);
}

template <class T>
__device__ __forceinline__ void cross_entropy(const SoftmaxLossParams& p) {
    DYN_SMEM(float, row);  // [classes] logits - largest, then their exponentials
    __shared__ float warps[THREADS / 32];
    __shared__ double warps_f64[3][THREADS / 32];
    __shared__ uint64_t warps_target[THREADS / 32];
    __shared__ uint32_t warps_rank[THREADS / 32];
    const BlockTeam team;
    const float* logits = row_of(p.logits, p.logits_pitch);
    T* grad = reinterpret_cast<T*>(p.output) + int64_t(blockIdx.x) * p.output_pitch;
    const uint32_t* labels = reinterpret_cast<const uint32_t*>(p.labels);

    Target target = {NO_CLASS, nullptr, p.smoothing / float(p.classes), 1.0f - p.smoothing};
    if (labels != nullptr) target.label = labels[blockIdx.x];
    else target.given = row_of(p.targets, p.targets_pitch);
    if (labels != nullptr && target.label >= uint32_t(p.classes)) {
        const float nan = __uint_as_float(0x7fffffffu);
        for (int c = threadIdx.x; c < p.classes; c += THREADS) grad[c] = from_f32<T>(nan);
        if (threadIdx.x == 0) store_loss(p, nan);
        if (threadIdx.x == 0 && p.counters) count(p.counters, false, 0, false);
        return;
    }

    float largest = -__uint_as_float(0x7f800000u);
    for (int c = threadIdx.x; c < p.classes; c += THREADS) {
        row[c] = logits[c];
        largest = fmaxf(largest, row[c]);
    }
    largest = team_reduce(team, largest, warps, Max());
    if (p.counters) {
        const uint32_t own_class = labels ? target.label : largest_target(team, target.given, p.classes, warps_target);
        const float own = own_class < uint32_t(p.classes) ? row[own_class] : 0.0f;
        uint32_t rank = 0;
        for (int c = threadIdx.x; c < p.classes; c += THREADS) {
            const bool is_larger = row[c] > own || row[c] != row[c] || (row[c] == own && uint32_t(c) < own_class);
            rank += uint32_t(is_larger && uint32_t(c) != own_class);
        }
        rank = team_reduce(team, rank, warps_rank, Sum());
        if (threadIdx.x == 0) count(p.counters, own == own, rank, own_class < uint32_t(p.classes));
        __syncthreads();  // the exponentials take the logits' place
    }

    // The label apart: loss and gradient keep their digits where its probability is close to 1.
    const bool is_certain = labels != nullptr && p.smoothing == 0.0f;
    const uint32_t apart = is_certain ? target.label : NO_CLASS;
    double others = 0.0, weighted = 0.0, total = 0.0;
    for (int c = threadIdx.x; c < p.classes; c += THREADS) {
        const float below = row[c] - largest, t = target.of(c);
        row[c] = expf(below);
        if (uint32_t(c) != apart) others += double(row[c]);
        // A class that nobody expects costs nothing, however unlikely it is.
        if (t != 0.0f) weighted = fma(double(t), double(below), weighted);
        total += double(t);
    }
    others = team_reduce(team, others, warps_f64[0], Sum());  // its sync shows all exponentials to all threads
    weighted = team_reduce(team, weighted, warps_f64[1], Sum());
    total = team_reduce(team, total, warps_f64[2], Sum());

    const double all = is_certain ? double(row[target.label]) + others : others;
    const double scale = double(gradient_scale(p)), factor = scale / all;
    if (threadIdx.x == 0) {
        const bool is_largest = is_certain && weighted == 0.0;
        store_loss(p, float(is_largest ? log1p(others) : total * log(all) - weighted));
    }
    for (int c = threadIdx.x; c < p.classes; c += THREADS) {
        double g = is_certain ? double(row[c]) * factor : fma(total * factor, double(row[c]), -scale * double(target.of(c)));
        if (uint32_t(c) == apart) g = -(others * factor);
        grad[c] = from_f32<T>(float(g));
    }
}

// ---- binary cross-entropy --------------------------------------------------------------------------------------------

// The probability of x (.x) and of its opposite (.y), each to its last digits.
__device__ __forceinline__ float2 probabilities(float x) {
    const float e = expf(-fabsf(x)), larger = 1.0f / (1.0f + e), smaller = e / (1.0f + e);
    return x >= 0.0f ? make_float2(larger, smaller) : make_float2(smaller, larger);
}

template <class T>
__device__ __forceinline__ void binary_cross_entropy(const SoftmaxLossParams& p) {
    __shared__ float warps[THREADS / 32];
    const float* logits = row_of(p.logits, p.logits_pitch);
    const float* targets = row_of(p.targets, p.targets_pitch);
    T* grad = reinterpret_cast<T*>(p.output) + int64_t(blockIdx.x) * p.output_pitch;
    const float scale = gradient_scale(p) / float(p.classes);
    float sum = 0.0f;
    for (int c = threadIdx.x; c < p.classes; c += THREADS) {
        const float x = logits[c], t = targets[c];
        const float2 of = probabilities(x);
        sum += (x > 0.0f ? x : 0.0f) - x * t + log1pf(expf(-fabsf(x)));
        grad[c] = from_f32<T>(scale * fmaf(1.0f - t, of.x, -(t * of.y)));
    }
    sum = team_reduce(BlockTeam(), sum, warps, Sum());
    if (threadIdx.x == 0) store_loss(p, sum / float(p.classes));
}

// ---- for evaluation --------------------------------------------------------------------------------------------------

template <class T>
__device__ __forceinline__ void softmax(const SoftmaxLossParams& p) {
    DYN_SMEM(float, row);  // [classes]; a thread meets its own classes only
    __shared__ float warps[2][THREADS / 32];
    const BlockTeam team;
    const float* logits = row_of(p.logits, p.logits_pitch);
    T* output = reinterpret_cast<T*>(p.output) + int64_t(blockIdx.x) * p.output_pitch;
    float largest = -__uint_as_float(0x7f800000u), sum = 0.0f;
    for (int c = threadIdx.x; c < p.classes; c += THREADS) {
        row[c] = logits[c];
        largest = fmaxf(largest, row[c]);
    }
    largest = team_reduce(team, largest, warps[0], Max());
    for (int c = threadIdx.x; c < p.classes; c += THREADS) {
        row[c] = expf(row[c] - largest);
        sum += row[c];
    }
    sum = team_reduce(team, sum, warps[1], Sum());
    for (int c = threadIdx.x; c < p.classes; c += THREADS) output[c] = from_f32<T>(row[c] / sum);
}

template <class T>
__device__ __forceinline__ void sigmoid(const SoftmaxLossParams& p) {
    const float* logits = row_of(p.logits, p.logits_pitch);
    T* output = reinterpret_cast<T*>(p.output) + int64_t(blockIdx.x) * p.output_pitch;
    for (int c = threadIdx.x; c < p.classes; c += THREADS) output[c] = from_f32<T>(probabilities(logits[c]).x);
}

// ---- variants --------------------------------------------------------------------------------------------------------

#define LOSS_VARIANT(name, loss, T)                                                                       \
    extern "C" __global__ void __launch_bounds__(THREADS) name(const __grid_constant__ SoftmaxLossParams p) { \
        begin_grid();                                                                                         \
        loss<T>(p);                                                                                       \
    }                                                                                                     \
    SIMT_EXPORT(name)

LOSS_VARIANT(softmax_loss_cross_entropy_row_f32, cross_entropy, float)
LOSS_VARIANT(softmax_loss_cross_entropy_row_bf16, cross_entropy, __nv_bfloat16)
LOSS_VARIANT(softmax_loss_cross_entropy_row_f16, cross_entropy, __half)
LOSS_VARIANT(softmax_loss_binary_cross_entropy_row_f32, binary_cross_entropy, float)
LOSS_VARIANT(softmax_loss_binary_cross_entropy_row_bf16, binary_cross_entropy, __nv_bfloat16)
LOSS_VARIANT(softmax_loss_binary_cross_entropy_row_f16, binary_cross_entropy, __half)
LOSS_VARIANT(softmax_loss_softmax_row_f32, softmax, float)
LOSS_VARIANT(softmax_loss_sigmoid_row_f32, sigmoid, float)
