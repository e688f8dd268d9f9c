// What the attention kernels take. Plain C++; mirrored by src/ops/attention/params.rs.
#pragma once
#include <cstdint>

// T [clips][rows][pitch]: rows are the positions of a clip.
struct AttentionTensor {
    uint64_t address;
    int32_t pitch;
    int32_t is_aligned;  // address and pitch are multiples of 16 bytes
};

struct AttentionParams {
    AttentionTensor query, key, value, output;
    AttentionTensor grad_output, grad_query, grad_key, grad_value;  // backward
    uint64_t log2_sum;  // float [clips][queries]: softmax; base-2 logarithm of the sum of exponentials
    uint64_t delta;     // float [clips][queries]: softmax, backward; sum over d of grad_output * output
    int32_t queries, keys, depth, is_softmax;
    float scale;   // softmax: depth^-0.5; dot product: 1 / keys
    uint32_t reserved;
};
static_assert(sizeof(AttentionParams) == 168, "mirrored in Rust");
