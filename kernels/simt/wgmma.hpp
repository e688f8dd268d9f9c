// wgmma.mma_async m64nNk16 with f32 sums: warpgroup collectives that read shared memory (B always, A or its registers).
#pragma once
#include <cstdint>

namespace simt {

struct WgmmaArguments {
    float* d;                     // N / 2 accumulators of this thread
    const uint32_t* registers_a;  // 4, or null
    uint64_t descriptor_a, descriptor_b;
    int n;
    bool bf16, scale_d, transpose_a, transpose_b;
};

void wgmma_fence();
void wgmma_mma_async(const WgmmaArguments& arguments);
void wgmma_commit_group();
void wgmma_wait_group(int may_stay);

}  // namespace simt
