// conv3d forward on wgmma: 16-bit in, f32 sums, 16-bit out (bf16 or f16). Shapes, results and tickets as in
// conv3d_forward_mma.cu.
// source, second, filter   tensor maps, swizzle 128: [positions][c_in] of the input and of what it is joined with, boxes of
//         64 x halo_rows (halves, thirds .. of them beyond 256), or with a stride im2col maps of all positions, 64 channels x 128
//         pixels; [c_out][taps][c_in] of the filter, boxes of 64 x 1 x tile width
// gemm_m = n * to * ho * wo, cut anew at each split    gemm_n = c_out    gemm_k = taps * c_in
// grid    x: as many as there is work for, or multiprocessors    block: 8 warps of consumers, 4 of which one thread produces
// shared  wide_memory: rings of halos and of filters, the f32 sums, what there is to know of taps and rows, barriers
// needs   unit stride and an output as large as the input, at most 32 taps; or one tap, no padding, steps of at most 8;
//         c_in, c_out and pitches multiples of 8, addresses of 16 bytes; one group; less than 2^31 positions; 2 stages and more
#include "wgmma.cuh"

// ---- variants ----------------------------------------------------------------------------------------------------------

#define CONV3D_FORWARD(name, T, N, PROLOGUE)                                                                              \
    extern "C" __global__ void __launch_bounds__(THREADS + PRODUCERS, 1)                                                  \
        name(const __grid_constant__ Conv3dParams p, const __grid_constant__ CUtensorMap source,                          \
             const __grid_constant__ CUtensorMap second, const __grid_constant__ CUtensorMap filter) {                    \
        begin_grid();                                                                                                     \
        conv3d_wgmma<T, N, false, PROLOGUE>(p, &source, &second, &filter);                                                \
    }                                                                                                                     \
    SIMT_EXPORT(name)
#define CONV3D_FORWARD_TYPES(name, N, PROLOGUE)             \
    CONV3D_FORWARD(name##_bf16, __nv_bfloat16, N, PROLOGUE) \
    CONV3D_FORWARD(name##_f16, __half, N, PROLOGUE)

CONV3D_FORWARD_TYPES(conv3d_forward_wgmma128x256, 256, PLAIN)
CONV3D_FORWARD_TYPES(conv3d_forward_wgmma128x128, 128, PLAIN)
CONV3D_FORWARD_TYPES(conv3d_forward_wgmma128x64, 64, PLAIN)
CONV3D_FORWARD_TYPES(conv3d_forward_affine_wgmma128x256, 256, AFFINE)
CONV3D_FORWARD_TYPES(conv3d_forward_affine_wgmma128x128, 128, AFFINE)
CONV3D_FORWARD_TYPES(conv3d_forward_affine_wgmma128x64, 64, AFFINE)
CONV3D_FORWARD_TYPES(conv3d_forward_join_wgmma128x128, 128, JOIN)
CONV3D_FORWARD_TYPES(conv3d_forward_join_wgmma128x64, 64, JOIN)
