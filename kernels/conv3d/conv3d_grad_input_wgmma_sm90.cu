// conv3d grad_input on wgmma: 16-bit in, f32 sums, 16-bit out (bf16 or f16). Shapes, results and tickets as in
// conv3d_grad_input_mma.cu; there is one class of rows.
// source, second, filter   tensor maps, swizzle 128: [positions][c_out] of grad_output and of y, boxes of 64 x halo_rows (halves,
//         thirds .. of them beyond 256); [c_out][taps][c_in] of the filter, boxes of 64 x 1 x 64
// gemm_m = n * t * h * w, cut anew at each split    gemm_n = c_in    gemm_k = taps * c_out
// grid    x: as many as there is work for, or multiprocessors    block: 8 warps of consumers, 4 of which one thread produces
// shared  wide_memory: rings of halos and of filters, the f32 sums, what there is to know of taps and rows, barriers
// needs   unit stride and an output as large as the input, at most 32 taps; c_in, c_out and pitches multiples of 8, addresses of
//         16 bytes; one group; less than 2^31 positions; 2 stages and more
#include "wgmma.cuh"

// ---- variants ----------------------------------------------------------------------------------------------------------

#define CONV3D_GRAD_INPUT(name, T, N, PROLOGUE)                                                                           \
    extern "C" __global__ void __launch_bounds__(THREADS + PRODUCERS, 1)                                                  \
        name(const __grid_constant__ Conv3dParams p, const __grid_constant__ CUtensorMap source,                          \
             const __grid_constant__ CUtensorMap second, const __grid_constant__ CUtensorMap filter) {                    \
        begin_grid();                                                                                                     \
        conv3d_wgmma<T, N, true, PROLOGUE>(p, &source, &second, &filter);                                                 \
    }                                                                                                                     \
    SIMT_EXPORT(name)
#define CONV3D_GRAD_INPUT_TYPES(name, N, PROLOGUE)             \
    CONV3D_GRAD_INPUT(name##_bf16, __nv_bfloat16, N, PROLOGUE) \
    CONV3D_GRAD_INPUT(name##_f16, __half, N, PROLOGUE)

CONV3D_GRAD_INPUT_TYPES(conv3d_grad_input_wgmma128x256, 256, PLAIN)
CONV3D_GRAD_INPUT_TYPES(conv3d_grad_input_wgmma128x128, 128, PLAIN)
CONV3D_GRAD_INPUT_TYPES(conv3d_grad_input_wgmma128x64, 64, PLAIN)
CONV3D_GRAD_INPUT_TYPES(conv3d_grad_input_table_wgmma128x128, 128, JOIN)
CONV3D_GRAD_INPUT_TYPES(conv3d_grad_input_table_wgmma128x64, 64, JOIN)
