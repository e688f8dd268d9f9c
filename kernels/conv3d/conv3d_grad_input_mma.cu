// conv3d grad_input: 16-bit in, f32 sums, 16-bit out (bf16 or f16).
// grad_output [n][to][ho][wo][source_pitch], filter [c_out][ft][fh][fw][c_in], grad_input [n][t][h][w][target_pitch]
// gemm_m = n * t * h * w, by parity of the coordinate under a stride: each is a dense problem of unit step with the taps that
//          meet it; cut anew at each split    gemm_n = c_in    gemm_k = taps * c_out
// grid    x: tiles of gemm_m times tiles of gemm_n, these first    y: slices of gemm_k        block: 8 warps
// shared  the block's rows and taps (block_memory_bytes), then the stages; after them in the same place the f32 sums
// needs   c_in, c_out and pitches multiples of 8, addresses of 16 bytes; one group; less than 2^31 positions; coordinates and
//         filter extents below 2^14; what lies outside grad_output is zero, whatever the prologue
// input   grad_output as it is, or A g + B y + C, which the tap at distance 0 may store (prologue.cuh); `beside`: its channels and then
//         those of relu(s x + b), with a filter [c_out][c_in] and a bias for each split
// output  grad_input is overwritten: sums + the other branch's gradient (which may be grad_input), masked, rounded once; the
//         sums of it that the batch norms before it need are finished by the last blocks
// tickets are zero before the launch and after it. Deterministic: sums in the order of taps and channels, then of slices.
#include "mma.cuh"

// ---- variants ----------------------------------------------------------------------------------------------------------

#define CONV3D_GRAD_INPUT(name, T, N, PROLOGUE)                                                           \
    extern "C" __global__ void __launch_bounds__(THREADS, 2) name(const __grid_constant__ Conv3dParams p) { \
        begin_grid();                                                                                       \
        conv3d_mma<T, N, true, PROLOGUE>(p);                                                              \
    }                                                                                                     \
    SIMT_EXPORT(name)
#define CONV3D_GRAD_INPUT_TYPES(name, N, PROLOGUE)               \
    CONV3D_GRAD_INPUT(name##_bf16, __nv_bfloat16, N, PROLOGUE)   \
    CONV3D_GRAD_INPUT(name##_f16, __half, N, PROLOGUE)

CONV3D_GRAD_INPUT_TYPES(conv3d_grad_input_mma128x128, 128, PLAIN)
CONV3D_GRAD_INPUT_TYPES(conv3d_grad_input_mma128x64, 64, PLAIN)
CONV3D_GRAD_INPUT_TYPES(conv3d_grad_input_mma128x32, 32, PLAIN)
CONV3D_GRAD_INPUT_TYPES(conv3d_grad_input_table_mma128x128, 128, JOIN)
CONV3D_GRAD_INPUT_TYPES(conv3d_grad_input_table_mma128x64, 64, JOIN)
CONV3D_GRAD_INPUT_TYPES(conv3d_grad_input_table_mma128x32, 32, JOIN)
CONV3D_GRAD_INPUT_TYPES(conv3d_grad_input_beside_mma128x128, 128, BESIDE)
CONV3D_GRAD_INPUT_TYPES(conv3d_grad_input_beside_mma128x64, 64, BESIDE)
CONV3D_GRAD_INPUT_TYPES(conv3d_grad_input_beside_mma128x32, 32, BESIDE)
