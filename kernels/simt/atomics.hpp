// Atomic operations and memory fences. CUDA's atomics are relaxed: they order nothing without a fence on both sides.
#pragma once
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "machine.hpp"

namespace simt {

enum class Order { Relaxed, Acquire, Release, AcquireRelease };

// For the checker, around the operation itself. Out of line, so that the sanitizer's build does not watch it.
void before_atomic(const void* p, size_t bytes, bool writes, Order order);
void after_atomic(const void* p, Order order);
// The operation: `update` maps the old bits to the new ones.
uint64_t exchange_bits(void* p, size_t bytes, void (*update)(void* context, const void* old_bits, void* new_bits),
                       void* context);
uint64_t load_bits(const void* p, size_t bytes);
void memory_fence(bool gpu_scope);

template <class T, class F>
T read_modify_write(T* p, F f, Order order = Order::Relaxed) {
    static_assert(sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8, "atomics work on 2, 4 or 8 bytes");
    before_atomic(p, sizeof(T), true, order);
    auto update = [](void* context, const void* old_bits, void* new_bits) {
        T value;
        memcpy(&value, old_bits, sizeof value);
        value = (*static_cast<F*>(context))(value);
        memcpy(new_bits, &value, sizeof value);
    };
    const uint64_t bits = exchange_bits(p, sizeof(T), update, &f);
    after_atomic(p, order);
    T old;
    memcpy(&old, &bits, sizeof old);
    return old;
}

}  // namespace simt

template <class T>
T atomicAdd(T* p, std::common_type_t<T> v) {
    return simt::read_modify_write(p, [v](T old) { return T(old + v); });
}
template <class T>
T atomicSub(T* p, std::common_type_t<T> v) {
    return simt::read_modify_write(p, [v](T old) { return T(old - v); });
}
template <class T>
T atomicMax(T* p, std::common_type_t<T> v) {
    return simt::read_modify_write(p, [v](T old) { return old > v ? old : v; });
}
template <class T>
T atomicMin(T* p, std::common_type_t<T> v) {
    return simt::read_modify_write(p, [v](T old) { return old < v ? old : v; });
}
template <class T>
T atomicAnd(T* p, std::common_type_t<T> v) {
    return simt::read_modify_write(p, [v](T old) { return T(old & v); });
}
template <class T>
T atomicOr(T* p, std::common_type_t<T> v) {
    return simt::read_modify_write(p, [v](T old) { return T(old | v); });
}
template <class T>
T atomicExch(T* p, std::common_type_t<T> v) {
    return simt::read_modify_write(p, [v](T) { return v; });
}
template <class T>
T atomicCAS(T* p, std::common_type_t<T> expected, std::common_type_t<T> v) {
    return simt::read_modify_write(p, [expected, v](T old) { return old == expected ? v : old; });
}
inline unsigned atomicInc(unsigned* p, unsigned limit) {
    return simt::read_modify_write(p, [limit](unsigned old) { return old >= limit ? 0u : old + 1; });
}

inline void __threadfence() { simt::memory_fence(true); }
inline void __threadfence_system() { simt::memory_fence(true); }
inline void __threadfence_block() { simt::memory_fence(false); }
inline void __nanosleep(unsigned) { simt::yield(); }
