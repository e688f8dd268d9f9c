// The filter of a stem as its forward kernel reads it: pixels of 4 stored channels in pairs, as one pixel of 8.
// from [rows][taps][4] -> to [rows][pairs][8], 16-bit; a row is (c_out, ft, fh). Pair j holds the taps 2 j + first and
// 2 j + first + 1 of w, and zeros where there is no such tap.
// grid    x: blocks of 256 threads over rows * pairs * 2; a thread moves the 4 channels of one tap     block: 256 threads
// needs   rows * pairs * 2 below 2^31; addresses of 8 bytes
// to is overwritten.
#include "../common/ptx.cuh"
#include "params.cuh"

extern "C" __global__ void __launch_bounds__(256) conv3d_pack_pairs_b16(const __grid_constant__ PackPairsParams p) {
    begin_grid();
    const int i = int(blockIdx.x * blockDim.x + threadIdx.x);
    if (i >= p.rows * p.pairs * 2) return;
    const int row = i / (p.pairs * 2), tap = i - row * p.pairs * 2 + p.first;
    const uint2* from = reinterpret_cast<const uint2*>(p.from) + int64_t(row) * p.taps + tap;
    reinterpret_cast<uint2*>(p.to)[i] = tap >= 0 && tap < p.taps ? *from : make_uint2(0, 0);
}
SIMT_EXPORT(conv3d_pack_pairs_b16)
