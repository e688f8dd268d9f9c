// resize forward, grad_input: trilinear resize of activations over (t, h, w), and its gradient as a gather.
// forward     from [n][t][h][w][from_pitch] -> to [n][to][ho][wo][to_pitch]
// grad_input  from [n][to][ho][wo][from_pitch] (gradient of the output) -> to [n][t][h][w][to_pitch]
// grid    x: blocks of 256 threads over w * channel groups of a row   y: rows (t * h) of `to`   z: clips
// block   256 threads; a thread makes VECTOR neighbouring channels of one position
// needs   w * channels and t * h of `to` below 2^31; VECTOR > 1: channels, pitches and addresses are multiples of VECTOR elements
// `to` is overwritten in its channels 0 .. channels - 1. Sums are f32, in one fixed order: deterministic, no atomics.
#include "../common/places.cuh"
#include "../common/storage.cuh"
#include "axis.cuh"
#include "params.cuh"

constexpr int THREADS = 256;

// ---- one position ----------------------------------------------------------------------------------------------------

template <class T, int VECTOR>
__device__ __forceinline__ void add(float (&sums)[VECTOR], const T* from, float weight) {
    const Vec<T, VECTOR> values = *reinterpret_cast<const Vec<T, VECTOR>*>(from);
#pragma unroll
    for (int i = 0; i < VECTOR; i++) sums[i] = fmaf(weight, to_f32(values.e[i]), sums[i]);
}

// The position's eight neighbours in the input.
template <class T, int VECTOR>
__device__ __forceinline__ void sum_forward(float (&sums)[VECTOR], const ResizeParams& p, int n, int t, int h, int w, int c) {
    const Pair pt = read_by(p.t, t), ph = read_by(p.h, h), pw = read_by(p.w, w);
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const float weight = (i & 4 ? pt.fraction : 1.0f - pt.fraction) * (i & 2 ? ph.fraction : 1.0f - ph.fraction) *
                             (i & 1 ? pw.fraction : 1.0f - pw.fraction);
        if (weight == 0.0f) continue;
        const int64_t position = position_at(n, p.t.size, i & 4 ? pt.second : pt.first, p.h.size,
                                             i & 2 ? ph.second : ph.first, p.w.size, i & 1 ? pw.second : pw.first);
        add<T, VECTOR>(sums, reinterpret_cast<const T*>(p.from) + place_at(position, p.from_pitch, c), weight);
    }
}

// All output positions that read the input position.
template <class T, int VECTOR>
__device__ __forceinline__ void sum_backward(float (&sums)[VECTOR], const ResizeParams& p, int n, int t, int h, int w, int c) {
    const Range ts = readers_of(p.t, t), hs = readers_of(p.h, h), ws = readers_of(p.w, w);
    for (int ot = ts.begin; ot < ts.end; ot++) {
        const float wt = weight_of(p.t, ot, t);
        if (wt == 0.0f) continue;
        for (int oh = hs.begin; oh < hs.end; oh++) {
            const float wh = wt * weight_of(p.h, oh, h);
            if (wh == 0.0f) continue;
            for (int ow = ws.begin; ow < ws.end; ow++) {
                const float weight = wh * weight_of(p.w, ow, w);
                if (weight == 0.0f) continue;
                const int64_t position = position_at(n, p.t.resized, ot, p.h.resized, oh, p.w.resized, ow);
                add<T, VECTOR>(sums, reinterpret_cast<const T*>(p.from) + place_at(position, p.from_pitch, c), weight);
            }
        }
    }
}

// ---- kernel ----------------------------------------------------------------------------------------------------------

template <class T, int VECTOR, bool FORWARD>
__device__ __forceinline__ void resize(const ResizeParams& p) {
    const int groups = p.channels / VECTOR, in_row = int(blockIdx.x) * THREADS + int(threadIdx.x);
    const int frames = FORWARD ? p.t.resized : p.t.size;
    const int height = FORWARD ? p.h.resized : p.h.size, width = FORWARD ? p.w.resized : p.w.size;
    if (in_row >= width * groups) return;
    const int w = in_row / groups, c = in_row % groups * VECTOR;
    // Rows beyond the grid's limit of 65,535 are reached by striding.
    for (int row = blockIdx.y; row < frames * height; row += gridDim.y) {
        const int t = row / height, h = row % height;
        for (int n = blockIdx.z; n < p.n; n += gridDim.z) {
            float sums[VECTOR] = {};
            if constexpr (FORWARD) sum_forward<T, VECTOR>(sums, p, n, t, h, w, c);
            else sum_backward<T, VECTOR>(sums, p, n, t, h, w, c);
            Vec<T, VECTOR> result;
#pragma unroll
            for (int i = 0; i < VECTOR; i++) result.e[i] = from_f32<T>(sums[i]);
            const int64_t position = position_at(n, frames, t, height, h, width, w);
            *reinterpret_cast<Vec<T, VECTOR>*>(reinterpret_cast<T*>(p.to) + place_at(position, p.to_pitch, c)) = result;
        }
    }
}

// ---- variants --------------------------------------------------------------------------------------------------------

#define RESIZE_VARIANT(name, T, VECTOR, FORWARD)                                                     \
    extern "C" __global__ void __launch_bounds__(THREADS) name(const __grid_constant__ ResizeParams p) { \
        begin_grid();                                                                                    \
        resize<T, VECTOR, FORWARD>(p);                                                               \
    }                                                                                                \
    SIMT_EXPORT(name)

RESIZE_VARIANT(resize_forward_vector4_f32, float, 4, true)
RESIZE_VARIANT(resize_forward_vector8_bf16, __nv_bfloat16, 8, true)
RESIZE_VARIANT(resize_forward_vector8_f16, __half, 8, true)
RESIZE_VARIANT(resize_forward_scalar_f32, float, 1, true)
RESIZE_VARIANT(resize_forward_scalar_bf16, __nv_bfloat16, 1, true)
RESIZE_VARIANT(resize_forward_scalar_f16, __half, 1, true)
RESIZE_VARIANT(resize_grad_input_vector4_f32, float, 4, false)
RESIZE_VARIANT(resize_grad_input_vector8_bf16, __nv_bfloat16, 8, false)
RESIZE_VARIANT(resize_grad_input_vector8_f16, __half, 8, false)
RESIZE_VARIANT(resize_grad_input_scalar_f32, float, 1, false)
RESIZE_VARIANT(resize_grad_input_scalar_bf16, __nv_bfloat16, 1, false)
RESIZE_VARIANT(resize_grad_input_scalar_f16, __half, 1, false)
