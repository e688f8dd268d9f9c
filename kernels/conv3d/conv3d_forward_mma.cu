// conv3d forward: 16-bit in, f32 sums, 16-bit out (bf16 or f16).
// input [n][t][h][w][source_pitch], filter [c_out][ft][fh][fw][c_in], output [n][to][ho][wo][target_pitch]
// gemm_m = n * to * ho * wo, cut anew at each split    gemm_n = c_out    gemm_k = ft * fh * fw * c_in
// grid    x: tiles of gemm_m times tiles of gemm_n, these first    y: slices of gemm_k        block: 8 warps
// shared  the block's rows and taps (block_memory_bytes), then the stages; after them in the same place the f32 sums
// needs   c_in, c_out and pitches multiples of 8, addresses of 16 bytes; one group; less than 2^31 positions; coordinates and
//         filter extents below 2^14; what lies outside the input is zero, whatever the prologue
// input   as it is, relu(s x + b), or a join of two tensors, which the tap at distance 0 may store (prologue.cuh)
// output  is overwritten: sums + bias + residual, ReLU, rounded once; its statistics are finished by the last blocks
// tickets are zero before the launch and after it. Deterministic: sums in the order of taps and channels, then of slices.
#include "mma.cuh"

// ---- variants ----------------------------------------------------------------------------------------------------------

#define CONV3D_FORWARD(name, T, N, PROLOGUE)                                                              \
    extern "C" __global__ void __launch_bounds__(THREADS, 2) name(const __grid_constant__ Conv3dParams p) { \
        begin_grid();                                                                                       \
        conv3d_mma<T, N, false, PROLOGUE>(p);                                                             \
    }                                                                                                     \
    SIMT_EXPORT(name)
#define CONV3D_FORWARD_TYPES(name, N, PROLOGUE)               \
    CONV3D_FORWARD(name##_bf16, __nv_bfloat16, N, PROLOGUE)   \
    CONV3D_FORWARD(name##_f16, __half, N, PROLOGUE)

CONV3D_FORWARD_TYPES(conv3d_forward_mma128x128, 128, PLAIN)
CONV3D_FORWARD_TYPES(conv3d_forward_mma128x64, 64, PLAIN)
CONV3D_FORWARD_TYPES(conv3d_forward_mma128x32, 32, PLAIN)
CONV3D_FORWARD_TYPES(conv3d_forward_affine_mma128x128, 128, AFFINE)
CONV3D_FORWARD_TYPES(conv3d_forward_affine_mma128x64, 64, AFFINE)
CONV3D_FORWARD_TYPES(conv3d_forward_affine_mma128x32, 32, AFFINE)
CONV3D_FORWARD_TYPES(conv3d_forward_join_mma128x128, 128, JOIN)
CONV3D_FORWARD_TYPES(conv3d_forward_join_mma128x64, 64, JOIN)
CONV3D_FORWARD_TYPES(conv3d_forward_join_mma128x32, 32, JOIN)
