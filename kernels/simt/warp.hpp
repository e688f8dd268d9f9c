// __syncthreads, __syncwarp, shuffles and votes.
#pragma once
#include <cstdint>
#include <cstring>

#include "machine.hpp"

namespace simt {

void sync_warp(uint32_t mask);
uint64_t shuffle(uint32_t mask, uint64_t value, int source_lane);
uint32_t ballot(uint32_t mask, bool predicate);

template <class T>
T shuffle_value(uint32_t mask, T value, int source_lane) {
    static_assert(sizeof(T) <= 8, "shuffles move 2, 4 or 8 bytes");
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof value);
    bits = shuffle(mask, bits, source_lane);
    memcpy(&value, &bits, sizeof value);
    return value;
}

}  // namespace simt

inline void __syncthreads() { simt::barrier_sync(0, -1, true); }
inline void __syncwarp(uint32_t mask = ~0u) { simt::sync_warp(mask); }

template <class T>
T __shfl_sync(uint32_t mask, T value, int source, int width = 32) {
    const int lane = simt::fiber->lane;
    return simt::shuffle_value(mask, value, (lane & ~(width - 1)) | (source & (width - 1)));
}
template <class T>
T __shfl_xor_sync(uint32_t mask, T value, int bits, int width = 32) {
    const int lane = simt::fiber->lane, source = lane ^ bits;
    return simt::shuffle_value(mask, value, source / width > lane / width ? lane : source);
}
template <class T>
T __shfl_down_sync(uint32_t mask, T value, unsigned distance, int width = 32) {
    const int lane = simt::fiber->lane, source = lane + int(distance);
    return simt::shuffle_value(mask, value, (lane & (width - 1)) + int(distance) < width ? source : lane);
}
template <class T>
T __shfl_up_sync(uint32_t mask, T value, unsigned distance, int width = 32) {
    const int lane = simt::fiber->lane, source = lane - int(distance);
    return simt::shuffle_value(mask, value, (lane & (width - 1)) >= int(distance) ? source : lane);
}
inline uint32_t __ballot_sync(uint32_t mask, int predicate) { return simt::ballot(mask, predicate != 0); }
inline int __any_sync(uint32_t mask, int predicate) { return simt::ballot(mask, predicate != 0) != 0; }
inline int __all_sync(uint32_t mask, int predicate) { return simt::ballot(mask, predicate == 0) == 0; }
inline uint32_t __activemask() { return simt::fiber->warp->alive; }
