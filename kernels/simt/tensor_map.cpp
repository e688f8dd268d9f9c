// The driver's argument checks are repeated here as far as its documentation states them.
#include "tensor_map.hpp"

#include <cstdio>
#include <cstring>
#include <string>

#include <cuda.h>

using namespace simt;

static thread_local std::string map_error;

static int refuse(const std::string& why) {
    map_error = why;
    return CUDA_ERROR_INVALID_VALUE;
}

static int element_bytes(int type) {
    switch (type) {
        case CU_TENSOR_MAP_DATA_TYPE_UINT8: return 1;
        case CU_TENSOR_MAP_DATA_TYPE_UINT16:
        case CU_TENSOR_MAP_DATA_TYPE_FLOAT16:
        case CU_TENSOR_MAP_DATA_TYPE_BFLOAT16: return 2;
        case CU_TENSOR_MAP_DATA_TYPE_UINT32:
        case CU_TENSOR_MAP_DATA_TYPE_INT32:
        case CU_TENSOR_MAP_DATA_TYPE_FLOAT32:
        case CU_TENSOR_MAP_DATA_TYPE_FLOAT32_FTZ:
        case CU_TENSOR_MAP_DATA_TYPE_TFLOAT32:
        case CU_TENSOR_MAP_DATA_TYPE_TFLOAT32_FTZ: return 4;
        default: return 0;
    }
}

static bool is_float(int type) {
    return type == CU_TENSOR_MAP_DATA_TYPE_FLOAT16 || type == CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 ||
           (type >= CU_TENSOR_MAP_DATA_TYPE_FLOAT32 && element_bytes(type) == 4);
}

// What both kinds of maps share. `inner_elements`: elements of one row in shared memory.
static int encode(TensorMap& map, int type, uint32_t rank, void* base, const uint64_t* size,
                  const uint64_t* stride_bytes, const uint32_t* element_stride, int swizzle, int fill_nan,
                  uint32_t inner_elements) {
    memset(&map, 0, sizeof map);
    map.magic = TENSOR_MAP_MAGIC;
    map.element_bytes = uint8_t(element_bytes(type));
    map.rank = uint8_t(rank);
    map.swizzle = uint8_t(swizzle);
    map.fill_nan = fill_nan != 0;
    map.base = static_cast<const char*>(base);
    if (!map.element_bytes) return refuse("the element type is not emulated");
    if (rank < 1 || rank > 5) return refuse("the rank must be 1 to 5");
    if (swizzle < 0 || swizzle > 3) return refuse("the swizzle is not emulated");
    if (fill_nan && !is_float(type)) return refuse("only float types can be filled with NaN");
    if (reinterpret_cast<uintptr_t>(base) & 15) return refuse("the address is not 16-byte aligned");
    for (uint32_t i = 0; i < rank; i++) {
        if (size[i] == 0 || size[i] > 1ull << 32) return refuse("a size is 0 or above 2^32");
        if (element_stride[i] < 1 || element_stride[i] > 8) return refuse("an element stride is not 1 to 8");
        if (i && (stride_bytes[i - 1] & 15 || stride_bytes[i - 1] >= 1ull << 40))
            return refuse("a stride is no multiple of 16 bytes, or 2^40 and more");
        map.size[i] = uint32_t(size[i] - 1);
        map.stride_bytes[i] = i ? stride_bytes[i - 1] : map.element_bytes;
        map.element_stride[i] = uint8_t(element_stride[i]);
    }
    const uint32_t inner_bytes = inner_elements * map.element_bytes;
    if (inner_bytes % 16) return refuse("a row of the box is no multiple of 16 bytes");
    if (swizzle && inner_bytes > 16u << swizzle) return refuse("a row of the box is longer than the swizzle");
    return CUDA_SUCCESS;
}

// Why the last encoder of this thread refused.
extern "C" const char* simt_tensor_map_error() { return map_error.c_str(); }

// As cuTensorMapEncodeTiled; `swizzle` and `fill_nan` are the values of the driver's enums.
extern "C" int simt_encode_tiled(void* map, int type, uint32_t rank, void* base, const uint64_t* size,
                                 const uint64_t* stride_bytes, const uint32_t* box, const uint32_t* element_stride,
                                 int swizzle, int fill_nan) {
    TensorMap m;
    const int status = encode(m, type, rank, base, size, stride_bytes, element_stride, swizzle, fill_nan, box[0]);
    if (status) return status;
    for (uint32_t i = 0; i < rank; i++) {
        if (box[i] == 0 || box[i] > 256) return refuse("a side of the box is not 1 to 256");
        m.box[i] = uint16_t(box[i]);
    }
    memset(map, 0, 128);
    memcpy(map, &m, sizeof m);
    return CUDA_SUCCESS;
}

// As cuTensorMapEncodeIm2col.
extern "C" int simt_encode_im2col(void* map, int type, uint32_t rank, void* base, const uint64_t* size,
                                  const uint64_t* stride_bytes, const int* lower, const int* upper,
                                  uint32_t channels_per_pixel, uint32_t pixels_per_column,
                                  const uint32_t* element_stride, int swizzle, int fill_nan) {
    TensorMap m;
    const int status =
        encode(m, type, rank, base, size, stride_bytes, element_stride, swizzle, fill_nan, channels_per_pixel);
    if (status) return status;
    if (rank < 3) return refuse("im2col needs a rank of 3 to 5");
    if (channels_per_pixel == 0 || channels_per_pixel > 256) return refuse("channels per pixel must be 1 to 256");
    if (pixels_per_column == 0 || pixels_per_column > 1024) return refuse("pixels per column must be 1 to 1024");
    // The corners share 16 bits: rank 3 has one of 16, rank 4 two of 8, rank 5 three of 5. The emulator keeps 8.
    const int limit = rank == 5 ? 16 : 128;
    for (uint32_t i = 0; i + 2 < rank; i++) {
        if (lower[i] < -limit || lower[i] >= limit || upper[i] < -limit || upper[i] >= limit)
            return refuse("a corner of the bounding box is out of range");
        m.lower[i] = int8_t(lower[i]);
        m.upper[i] = int8_t(upper[i]);
    }
    m.is_im2col = 1;
    m.channels_per_pixel = uint16_t(channels_per_pixel);
    m.pixels_per_column = uint16_t(pixels_per_column);
    memset(map, 0, 128);
    memcpy(map, &m, sizeof m);
    return CUDA_SUCCESS;
}
