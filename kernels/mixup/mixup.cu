// mixup blend: in a box of every frame, clip = keep * clip + (1 - keep) * partner; clip i and clip n - 1 - i are partners.
// clips [n][frames][height][width][pitch], in place: a thread reads both partners' pixels before it writes them
// grid    x: blocks of 256 threads over frames * box_height * box_width * channel groups   y: pairs of partners
// block   256 threads; a thread has VECTOR neighbouring channels of a pixel and of its partner's
// needs   frames * box_height * box_width * channels below 2^31; VECTOR > 1: channels, pitch and address multiples of it
// The middle one of an odd number of clips is its own partner and left alone. Sums in f32, rounded once.
#include "../common/places.cuh"
#include "../common/vector_io.cuh"
#include "params.cuh"

constexpr int THREADS = 256;

template <class T, int VECTOR>
__device__ __forceinline__ void mixup(const MixupParams& p) {
    const int groups = p.channels / VECTOR, index = int(blockIdx.x) * THREADS + int(threadIdx.x);
    if (index >= p.frames * p.box_height * p.box_width * groups) return;
    const int c = index % groups * VECTOR, pixel = index / groups, row = pixel / p.box_width;
    const int w = p.left + pixel % p.box_width, h = p.top + row % p.box_height, t = row / p.box_height;
    T* clips = reinterpret_cast<T*>(p.clips);
    const float rest = 1.0f - p.keep;
    for (int clip = blockIdx.y; clip < p.n / 2; clip += gridDim.y) {
        T* own = clips + place_at(position_at(clip, p.frames, t, p.height, h, p.width, w), p.pitch, c);
        T* partner = clips + place_at(position_at(p.n - 1 - clip, p.frames, t, p.height, h, p.width, w), p.pitch, c);
        float a[VECTOR], b[VECTOR], of_own[VECTOR], of_partner[VECTOR];
        unpack(a, load_vector<T, VECTOR>(own)), unpack(b, load_vector<T, VECTOR>(partner));
#pragma unroll
        for (int i = 0; i < VECTOR; i++) {
            of_own[i] = fmaf(p.keep, a[i], rest * b[i]);
            of_partner[i] = fmaf(p.keep, b[i], rest * a[i]);
        }
        store_vector<T, VECTOR>(own, of_own), store_vector<T, VECTOR>(partner, of_partner);
    }
}

// ---- variants --------------------------------------------------------------------------------------------------------

#define MIXUP_VARIANT(name, T, VECTOR)                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS) name(const __grid_constant__ MixupParams p) { \
        begin_grid();                                                                                   \
        mixup<T, VECTOR>(p);                                                                            \
    }                                                                                                   \
    SIMT_EXPORT(name)

MIXUP_VARIANT(mixup_blend_vector4_f32, float, 4)
MIXUP_VARIANT(mixup_blend_vector4_bf16, __nv_bfloat16, 4)
MIXUP_VARIANT(mixup_blend_vector4_f16, __half, 4)
MIXUP_VARIANT(mixup_blend_scalar_f32, float, 1)
MIXUP_VARIANT(mixup_blend_scalar_bf16, __nv_bfloat16, 1)
MIXUP_VARIANT(mixup_blend_scalar_f16, __half, 1)
