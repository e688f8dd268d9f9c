// sgd: all parameters in one launch. Two kernels, because a step must know before its first store whether it is skipped:
//
// sgd_check   sum of squares of the gradients and whether all are finite; the last block decides what the update does
// sgd_update  torch.optim.SGD's rule on flat f32 arrays, and the 16-bit copy of the parameters, in one pass
//
// grid    x: one block a task (SgdTask: a part of one tile of 4096 elements with one weight decay)
// block   256 threads; a thread has 4 vectors of 4 neighbouring elements
// shared  static: 8 floats and a flag (sgd_check)
// needs   f32 arrays aligned to 16 bytes, the copy to 8; tasks that do not overlap
// params, momentum and copy are overwritten within the tasks, nothing else is touched; a skipped step writes nothing.
// check: partials are overwritten, ticket is 0 before and after, state is updated, skip_flag is cleared.
// Deterministic: sums of a thread's 16 squares, of the block, then of the blocks in f64, each in one fixed order.
#include "../common/reduce.cuh"
#include "../common/storage.cuh"
#include "../common/ticket.cuh"
#include "mapping.cuh"

constexpr int THREADS = SGD_THREADS, VECTOR = SGD_VECTOR, ROUNDS = SGD_ROUNDS;

// ---- a thread's elements ---------------------------------------------------------------------------------------------

// The vector's own elements; the others read as 0. They may lie outside of the array, or belong to another block.
__device__ __forceinline__ Vec<float, VECTOR> load(uint64_t array, uint64_t first, uint32_t own) {
    const float* from = reinterpret_cast<const float*>(array) + first;
    if (own == 15u) return *reinterpret_cast<const Vec<float, VECTOR>*>(from);
    Vec<float, VECTOR> v;
#pragma unroll
    for (int i = 0; i < VECTOR; i++) v.e[i] = own >> i & 1u ? from[i] : 0.0f;
    return v;
}

template <class T>
__device__ __forceinline__ void store(uint64_t array, uint64_t first, uint32_t own, const Vec<T, VECTOR>& v) {
    T* to = reinterpret_cast<T*>(array) + first;
    if (own == 15u) {
        *reinterpret_cast<Vec<T, VECTOR>*>(to) = v;
        return;
    }
#pragma unroll
    for (int i = 0; i < VECTOR; i++)
        if (own >> i & 1u) to[i] = v.e[i];
}

// ---- check -----------------------------------------------------------------------------------------------------------

// Sum of squares of the task's gradients, times `factor` each; NaN where one of them is not finite. An infinite sum of
// finite gradients stays infinite, so the two can be told apart.
__device__ __forceinline__ float sum_of_squares(const SgdCheckParams& p, const SgdTask& task, float factor) {
    float sum = 0.0f;
    bool is_finite = true;
#pragma unroll
    for (int round = 0; round < ROUNDS; round++) {
        const uint64_t first = first_element(task, round, int(threadIdx.x));
        const Vec<float, VECTOR> g = load(p.grads, first, own_elements(task, first));
#pragma unroll
        for (int i = 0; i < VECTOR; i++) {
            is_finite &= (__float_as_uint(g.e[i]) & 0x7f800000u) != 0x7f800000u;
            const float unscaled = g.e[i] * factor;
            sum = fmaf(unscaled, unscaled, sum);
        }
    }
    return is_finite ? sum : __uint_as_float(0x7fffffffu);
}

// One thread: what the update does, and the loss scale of the next step. The same rule as src/ops/sgd/guard.rs.
__device__ __forceinline__ void decide(const SgdCheckParams& p, SgdState& s, double sum) {
    uint32_t* flag = reinterpret_cast<uint32_t*>(p.skip_flag);
    const bool is_finite = sum == sum, is_flagged = flag != nullptr && *flag != 0;
    if (is_flagged) *flag = 0;
    s.grad_norm = float(sqrt(sum));
    const float clip = fminf(1.0f, p.max_grad_norm / (s.grad_norm + 1e-6f));
    s.factor = (p.max_grad_norm < __uint_as_float(0x7f800000u) ? clip : 1.0f) / s.loss_scale;
    s.skipped = !is_finite || is_flagged;
    s.num_skipped += s.skipped;
    s.num_taken += 1u - s.skipped;
    s.first_step = p.first_step != 0 || s.is_momentum_empty != 0;
    s.is_momentum_empty = s.first_step & s.skipped;
    if (p.growth_interval == 0) return;
    if (!is_finite) {
        s.loss_scale *= p.backoff;
        s.good_steps = 0;
    } else if (!s.skipped && ++s.good_steps == p.growth_interval) {
        s.loss_scale = fminf(s.loss_scale * p.growth, p.max_loss_scale);
        s.good_steps = 0;
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) sgd_check_vector4_f32(const __grid_constant__ SgdCheckParams p) {
    begin_grid();
    __shared__ float warps[THREADS / 32];
    __shared__ double warps_f64[THREADS / 32];
    __shared__ uint32_t flag;
    const BlockTeam team;
    SgdState* state = reinterpret_cast<SgdState*>(p.state);
    float* partials = reinterpret_cast<float*>(p.partials);
    // From the end to the start: the update, which begins at the start, finds the last gradients read in the cache.
    const uint32_t index = p.num_tasks - 1 - blockIdx.x;
    const SgdTask task = reinterpret_cast<const SgdTask*>(p.tasks)[index];
    const float sum = team_reduce(team, sum_of_squares(p, task, 1.0f / state->loss_scale), warps, Sum());
    if (threadIdx.x == 0) partials[index] = sum;
    if (!is_last(team, reinterpret_cast<uint32_t*>(p.ticket), p.num_tasks, &flag)) return;
    double all = 0.0;
    for (uint32_t i = threadIdx.x; i < p.num_tasks; i += THREADS) all += double(partials[i]);
    all = team_reduce(team, all, warps_f64, Sum());
    if (threadIdx.x == 0) decide(p, *state, all);
}
SIMT_EXPORT(sgd_check_vector4_f32)

// ---- update ----------------------------------------------------------------------------------------------------------

struct Rule {
    float lr, factor, max_value, weight_decay, mu, take, from_g, from_m;
    bool has_momentum, is_first;
};

// One element: torch.optim.SGD.
__device__ __forceinline__ void update(const Rule& r, float& p, float g, float& m) {
    g *= r.factor;
    // Comparisons, so that a NaN stays one.
    g = g > r.max_value ? r.max_value : g < -r.max_value ? -r.max_value : g;
    g = fmaf(r.weight_decay, p, g);
    // A choice, not a product with zero: what the momentum held before the first step may be anything.
    if (r.has_momentum) m = r.is_first ? g : fmaf(r.mu, m, r.take * g);
    const float step = r.has_momentum ? fmaf(r.from_m, m, r.from_g * g) : g;
    p = fmaf(-r.lr, step, p);
}

template <class Copy, bool HAS_COPY>
__device__ __forceinline__ void sgd_update(const SgdUpdateParams& p) {
    const SgdTask task = reinterpret_cast<const SgdTask*>(p.tasks)[blockIdx.x];
    const SgdState* state = reinterpret_cast<const SgdState*>(p.state);
    if (state != nullptr && state->skipped) return;
    Rule rule;
    rule.lr = p.lr_address ? *reinterpret_cast<const float*>(p.lr_address) : p.lr;
    rule.factor = state != nullptr ? state->factor : 1.0f;
    rule.max_value = p.max_grad_value;
    rule.weight_decay = task.weight_decay, rule.mu = p.momentum_factor, rule.take = p.take;
    rule.from_g = p.nesterov ? 1.0f : 0.0f, rule.from_m = p.nesterov ? p.momentum_factor : 1.0f;
    rule.has_momentum = p.momentum_factor != 0.0f;
    rule.is_first = state != nullptr ? state->first_step != 0 : p.first_step != 0;

    Vec<float, VECTOR> values[ROUNDS], grads[ROUNDS], momentum[ROUNDS];  // all loads before the first use
#pragma unroll
    for (int round = 0; round < ROUNDS; round++) {
        const uint64_t first = first_element(task, round, int(threadIdx.x));
        const uint32_t own = own_elements(task, first);
        values[round] = load(p.params, first, own);
        grads[round] = load(p.grads, first, own);
        momentum[round] = load(p.momentum, first, rule.has_momentum ? own : 0u);
    }
#pragma unroll
    for (int round = 0; round < ROUNDS; round++) {
        const uint64_t first = first_element(task, round, int(threadIdx.x));
        const uint32_t own = own_elements(task, first);
        if (own == 0) continue;
#pragma unroll
        for (int i = 0; i < VECTOR; i++) update(rule, values[round].e[i], grads[round].e[i], momentum[round].e[i]);
        store(p.params, first, own, values[round]);
        if (rule.has_momentum) store(p.momentum, first, own, momentum[round]);
        if constexpr (HAS_COPY) {
            Vec<Copy, VECTOR> copy;
#pragma unroll
            for (int i = 0; i < VECTOR; i++) copy.e[i] = from_f32<Copy>(values[round].e[i]);
            store(p.copy, first, own, copy);
        }
    }
}

// ---- variants --------------------------------------------------------------------------------------------------------

#define SGD_UPDATE(name, Copy, HAS_COPY)                                                                \
    extern "C" __global__ void __launch_bounds__(THREADS) name(const __grid_constant__ SgdUpdateParams p) { \
        begin_grid();                                                                                       \
        sgd_update<Copy, HAS_COPY>(p);                                                                  \
    }                                                                                                   \
    SIMT_EXPORT(name)

SGD_UPDATE(sgd_update_vector4_f32, float, false)
SGD_UPDATE(sgd_update_vector4_bf16, __nv_bfloat16, true)
SGD_UPDATE(sgd_update_vector4_f16, __half, true)
