// What the sgd kernels take. Plain C++; mirrored by src/ops/sgd/params.rs and src/ops/sgd/guard.rs.
#pragma once
#include <cstdint>

// Elements begin .. begin + len of the flat arrays: they lie in one tile of SGD_TILE elements.
constexpr uint32_t SGD_TILE = 4096;
struct SgdTask {
    uint64_t begin;
    uint32_t len;
    float weight_decay;
};
static_assert(sizeof(SgdTask) == 16, "made in Rust");

// What one step leaves for the next.
struct SgdState {
    float loss_scale;            // of the next step: what its loss is multiplied with
    float factor;                // what this step's gradients are multiplied with
    float grad_norm;             // of this step, before clipping; NaN where a gradient is not finite
    uint32_t skipped;            // whether this step is skipped
    uint32_t num_skipped, num_taken;
    uint32_t good_steps;         // finite gradients in a row since the scale last changed
    uint32_t first_step;         // whether this step is the first that is taken
    uint32_t is_momentum_empty;  // the first step was skipped
};
static_assert(sizeof(SgdState) == 36, "mirrored in Rust");

struct SgdCheckParams {
    uint64_t tasks;      // SgdTask [num_tasks]
    uint64_t grads;      // float
    uint64_t partials;   // float [num_tasks]
    uint64_t ticket;     // uint32_t, 0; left at 0
    uint64_t state;      // SgdState
    uint64_t skip_flag;  // uint32_t, or 0 where there is none: read, then cleared
    uint32_t num_tasks, first_step;
    float max_grad_norm;  // infinite: no clipping
    float growth, backoff, max_loss_scale;
    uint32_t growth_interval;  // 0: the scale stays
    uint32_t reserved;
};
static_assert(sizeof(SgdCheckParams) == 80, "mirrored in Rust");

struct SgdUpdateParams {
    uint64_t tasks;                    // SgdTask [gridDim.x]
    uint64_t params, grads, momentum;  // float
    uint64_t copy;                     // 16-bit copy of params, or unused
    uint64_t lr_address;               // float that takes the place of lr, or 0
    uint64_t state;                    // SgdState, or 0
    float lr, momentum_factor, take;   // take: 1 - dampening
    float max_grad_value;              // infinite: no clipping
    uint32_t nesterov, first_step;
};
static_assert(sizeof(SgdUpdateParams) == 80, "mirrored in Rust");
