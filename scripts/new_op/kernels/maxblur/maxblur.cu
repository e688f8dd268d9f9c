// maxblur forward: 2x2 maximum at step 1, blurred by [1 2 1] x [1 2 1] / 16 at step 2, over (h, w). f32 sums.
// input [n][t][h][w][input_pitch] -> output [n][t][ho][wo][output_pitch], ho = ceil(h / 2), wo = ceil(w / 2)
// grid   x: blocks of 256 threads over wo * channel groups of a row   y: rows (n * t * ho)
// block  256 threads; a thread makes VECTOR neighbouring channels of one position
// needs  wo * channels and n * t * ho below 2^31; VECTOR > 1: channels, pitches and addresses are multiples of VECTOR elements.
//        Rows and columns outside the input read as the nearest ones inside.
// output is overwritten in its channels 0 .. channels - 1. A NaN stays one. Deterministic, no workspace.
#include "../common/storage.cuh"
#include "params.cuh"

constexpr int THREADS = 256;

// ---- one position ----------------------------------------------------------------------------------------------------

template <class T, int VECTOR>
__device__ __forceinline__ void take_max(float (&largest)[VECTOR], const MaxBlurParams& p, int64_t frame, int y, int x, int c) {
    const int64_t position = (frame * p.h + min(y, p.h - 1)) * p.w + min(x, p.w - 1);
    const Vec<T, VECTOR> values =
        *reinterpret_cast<const Vec<T, VECTOR>*>(reinterpret_cast<const T*>(p.input) + position * p.input_pitch + c);
#pragma unroll
    for (int i = 0; i < VECTOR; i++) {
        const float value = to_f32(values.e[i]);
        // fmaxf would drop a NaN.
        if (value > largest[i] || value != value) largest[i] = value;
    }
}

template <class T, int VECTOR>
__device__ __forceinline__ void blur(float (&sums)[VECTOR], const MaxBlurParams& p, int64_t frame, int yo, int xo, int c) {
    for (int i = 0; i < 3; i++) {
        const int y = min(max(2 * yo + i - 1, 0), p.h - 1);
        for (int j = 0; j < 3; j++) {
            const int x = min(max(2 * xo + j - 1, 0), p.w - 1);
            float largest[VECTOR];
#pragma unroll
            for (int v = 0; v < VECTOR; v++) largest[v] = -INFINITY;
            for (int k = 0; k < 4; k++) take_max<T, VECTOR>(largest, p, frame, y + k / 2, x + k % 2, c);
            const float weight = (i == 1 ? 0.5f : 0.25f) * (j == 1 ? 0.5f : 0.25f);
#pragma unroll
            for (int v = 0; v < VECTOR; v++) sums[v] = fmaf(weight, largest[v], sums[v]);
        }
    }
}

// ---- kernel ----------------------------------------------------------------------------------------------------------

template <class T, int VECTOR>
__device__ __forceinline__ void maxblur(const MaxBlurParams& p) {
    const int groups = p.channels / VECTOR, in_row = int(blockIdx.x) * THREADS + int(threadIdx.x);
    const int height = (p.h + 1) / 2, width = (p.w + 1) / 2;
    if (in_row >= width * groups) return;
    const int xo = in_row / groups, c = in_row % groups * VECTOR;
    // Rows beyond the grid's limit of 65,535 are reached by striding.
    for (int row = blockIdx.y; row < p.n * p.t * height; row += gridDim.y) {
        float sums[VECTOR] = {};
        blur<T, VECTOR>(sums, p, row / height, row % height, xo, c);
        Vec<T, VECTOR> result;
#pragma unroll
        for (int v = 0; v < VECTOR; v++) result.e[v] = from_f32<T>(sums[v]);
        const int64_t position = int64_t(row) * width + xo;
        *reinterpret_cast<Vec<T, VECTOR>*>(reinterpret_cast<T*>(p.output) + position * p.output_pitch + c) = result;
    }
}

// ---- variants --------------------------------------------------------------------------------------------------------

#define MAXBLUR_VARIANT(name, T, VECTOR)                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS) name(const __grid_constant__ MaxBlurParams p) { \
        begin_grid();                                                                                     \
        maxblur<T, VECTOR>(p);                                                                            \
    }                                                                                                     \
    SIMT_EXPORT(name)

MAXBLUR_VARIANT(maxblur_forward_vector8_bf16, __nv_bfloat16, 8)
MAXBLUR_VARIANT(maxblur_forward_scalar_bf16, __nv_bfloat16, 1)
MAXBLUR_VARIANT(maxblur_forward_scalar_f32, float, 1)
