// Unit kernels of the scheduler and its collectives.
#include "../../common/ptx.cuh"

struct UnitArgs {
    uint64_t a, b, c, output;
    int32_t flag, n;
};

// Sum of `a` (n values) per block through a static shared array and __syncthreads; output [blocks].
extern "C" __global__ void unit_block_sum(const UnitArgs args) {
    __shared__ float partial[128];
    const float* a = reinterpret_cast<const float*>(args.a);
    const int tid = threadIdx.x;
    float sum = 0.0f;
    for (int i = blockIdx.x * blockDim.x + tid; i < args.n; i += gridDim.x * blockDim.x) sum += a[i];
    partial[tid] = sum;
    __syncthreads();
    for (int half = 64; half > 0; half >>= 1) {
        if (tid < half) partial[tid] += partial[tid + half];
        __syncthreads();
    }
    if (tid == 0) reinterpret_cast<float*>(args.output)[blockIdx.x] = partial[0];
}
SIMT_EXPORT(unit_block_sum)
