// ldmatrix, stmatrix and mma.sync: warp collectives on fragments of 8 x 8 matrices of 16-bit elements.
#pragma once
#include <cstdint>

namespace simt {

// `num` (1, 2, 4) matrices; row r of matrix i lies at the address of lane 8 i + r.
void load_matrix(uint32_t* registers, uint32_t address, int num, bool transpose);
void store_matrix(const uint32_t* registers, uint32_t address, int num, bool transpose);

// d[16][8] += a[16][k] b[k][8], k 8 or 16; f32 sums.
void mma_m16n8(float* d, const uint32_t* a, const uint32_t* b, int k, bool bf16);

}  // namespace simt
