// conv3d forward and grad_input with few channels and several taps: 16-bit in, f32 sums, 16-bit out (bf16 or f16).
// source, filter, target as in conv3d_forward_mma.cu and conv3d_grad_input_mma.cu
// gemm_m = boxes of rows of one clip and class (4096 / N rows)    gemm_n = N    gemm_k = taps * channels of the source
// grid    x: boxes                                                                           block: 8 warps
// shared  rows and chunks (halo_memory_bytes), the filter, the halo (of two tensors with a join); in place of the halo the sums
// needs   at most 32 channels of the source and N of the target; channels and pitches multiples of 8, addresses of 16 bytes;
//         one group; at most 32 chunks of the halo a thread; less than 2^31 positions; coordinates and extents below 2^14;
//         what lies outside the source is zero, whatever the prologue
// target  as there: rounded once, with the same epilogues and statistics; a join is stored by the box whose row a position is
// tickets are zero before the launch and after it. Deterministic: sums in the order of taps and channels.
#include "halo.cuh"

// ---- variants ----------------------------------------------------------------------------------------------------------

#define CONV3D_HALO(name, T, N, GRAD, PROLOGUE)                                                           \
    extern "C" __global__ void __launch_bounds__(THREADS, 2) name(const __grid_constant__ Conv3dParams p) { \
        begin_grid();                                                                                       \
        conv3d_halo<T, N, GRAD, PROLOGUE>(p);                                                             \
    }                                                                                                     \
    SIMT_EXPORT(name)
#define CONV3D_HALO_TYPES(name, N, GRAD, PROLOGUE)             \
    CONV3D_HALO(name##_bf16, __nv_bfloat16, N, GRAD, PROLOGUE) \
    CONV3D_HALO(name##_f16, __half, N, GRAD, PROLOGUE)
#define CONV3D_HALO_ALL(M, N)                                                    \
    CONV3D_HALO_TYPES(conv3d_forward_halo##M##x##N, N, false, PLAIN)              \
    CONV3D_HALO_TYPES(conv3d_forward_affine_halo##M##x##N, N, false, AFFINE)      \
    CONV3D_HALO_TYPES(conv3d_forward_join_halo##M##x##N, N, false, JOIN)          \
    CONV3D_HALO_TYPES(conv3d_grad_input_halo##M##x##N, N, true, PLAIN)            \
    CONV3D_HALO_TYPES(conv3d_grad_input_table_halo##M##x##N, N, true, JOIN)

CONV3D_HALO_ALL(512, 8)
CONV3D_HALO_ALL(256, 16)
CONV3D_HALO_ALL(128, 32)
