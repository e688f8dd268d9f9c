// dropout apply: to = from * scale where an element is kept, times 0 elsewhere; the mask is drawn again, not stored.
// from [n][rows][from_pitch] -> to [n][rows][to_pitch]; may be the same memory
// grid    x: blocks of 256 threads over rows * channel groups of a clip   y: clips
// block   256 threads; a thread has VECTOR neighbouring channels of one row
// needs   rows * channels below 2^31; VECTOR > 1: channels, pitches and addresses are multiples of VECTOR elements
// `to` is overwritten in its channels 0 .. channels - 1. The mask has the bits of src/ops/dropout (Dropout::keeps).
#include "../common/places.cuh"
#include "../common/storage.cuh"
#include "params.cuh"

constexpr int THREADS = 256;
constexpr uint64_t GOLDEN = 0x9E3779B97F4A7C15ull;

// ---- the stream ------------------------------------------------------------------------------------------------------

__device__ __forceinline__ uint64_t splitmix64(uint64_t state) {
    uint64_t z = state + GOLDEN;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ z >> 27) * 0x94D049BB133111EBull;
    return z ^ z >> 31;
}

// The key of clip `clip`, counted in the whole batch.
__device__ __forceinline__ uint64_t key_of(const DropoutParams& p, uint64_t clip) {
    const uint32_t* words = reinterpret_cast<const uint32_t*>(p.step_address);
    const uint64_t step = words != nullptr ? uint64_t(words[1]) << 32 | words[0] : p.step;
    return splitmix64(splitmix64(p.seed ^ splitmix64(step)) ^ splitmix64(clip ^ 0x64726f706f757421ull));
}

__device__ __forceinline__ bool keeps(uint64_t key, uint64_t feature, uint32_t threshold) {
    return uint32_t(splitmix64(key + feature * GOLDEN) >> 40) >= threshold;
}

// ---- kernel ----------------------------------------------------------------------------------------------------------

template <class T, int VECTOR>
__device__ __forceinline__ void dropout(const DropoutParams& p) {
    const int groups = p.channels / VECTOR, index = int(blockIdx.x) * THREADS + int(threadIdx.x);
    if (index >= p.rows * groups) return;
    const int row = index / groups, c = index % groups * VECTOR;
    const uint64_t feature = uint64_t(row) * p.channels + c;
    for (int clip = blockIdx.y; clip < p.n; clip += gridDim.y) {
        const uint64_t key = key_of(p, p.first_clip + clip);
        const int64_t position = row_at(clip, p.rows, row);
        Vec<T, VECTOR> v =
            *reinterpret_cast<const Vec<T, VECTOR>*>(reinterpret_cast<const T*>(p.from) + place_at(position, p.from_pitch, c));
#pragma unroll
        for (int i = 0; i < VECTOR; i++)
            v.e[i] = from_f32<T>(to_f32(v.e[i]) * (keeps(key, feature + i, p.threshold) ? p.scale : 0.0f));
        *reinterpret_cast<Vec<T, VECTOR>*>(reinterpret_cast<T*>(p.to) + place_at(position, p.to_pitch, c)) = v;
    }
}

// ---- variants --------------------------------------------------------------------------------------------------------

#define DROPOUT_VARIANT(name, T, VECTOR)                                                              \
    extern "C" __global__ void __launch_bounds__(THREADS) name(const __grid_constant__ DropoutParams p) { \
        begin_grid();                                                                                     \
        dropout<T, VECTOR>(p);                                                                        \
    }                                                                                                 \
    SIMT_EXPORT(name)

DROPOUT_VARIANT(dropout_apply_vector4_f32, float, 4)
DROPOUT_VARIANT(dropout_apply_vector8_bf16, __nv_bfloat16, 8)
DROPOUT_VARIANT(dropout_apply_vector8_f16, __half, 8)
DROPOUT_VARIANT(dropout_apply_scalar_f32, float, 1)
DROPOUT_VARIANT(dropout_apply_scalar_bf16, __nv_bfloat16, 1)
DROPOUT_VARIANT(dropout_apply_scalar_f16, __half, 1)
