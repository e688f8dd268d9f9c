// The emulator's contents of a CUtensorMap, and stand-ins for the driver's encoders.
#pragma once
#include <cstdint>

namespace simt {

constexpr uint32_t TENSOR_MAP_MAGIC = 0x51317A00;

// 128 bytes or less, in place of the hardware's encoding. Dimension 0 is the innermost.
struct TensorMap {
    uint32_t magic;
    uint8_t element_bytes, rank, swizzle, is_im2col;  // swizzle: 0 none, 1: 32 bytes, 2: 64, 3: 128
    uint8_t fill_nan;
    int8_t lower[3], upper[3];  // im2col: corners of the bounding box, W H D
    uint8_t element_stride[5];
    uint16_t box[5];                                 // tiled
    uint16_t channels_per_pixel, pixels_per_column;  // im2col
    const char* base;
    uint32_t size[5];
    uint64_t stride_bytes[5];
};
static_assert(sizeof(TensorMap) <= 128, "a CUtensorMap has 128 bytes");

// Bytes of `swizzle` times 16 are XORed into the address: bits 4..6 with bits 7..9, or fewer of them.
inline uint32_t swizzled(uint32_t address, int swizzle) {
    return address ^ (address >> 7 & ((1u << swizzle) - 1)) << 4;
}

// What an element outside the tensor becomes with the NaN fill: a NaN that fma.rn.oob knows. Its bits are not
// documented; these are an assumption until they are read from a GPU.
constexpr uint16_t OOB_NAN_16 = 0x7FFF;
constexpr uint32_t OOB_NAN_32 = 0x7FFFFFFF;

}  // namespace simt
