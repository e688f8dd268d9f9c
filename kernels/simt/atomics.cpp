#include "atomics.hpp"

#include "check.hpp"

namespace simt {

static bool acquires(Order o) { return o == Order::Acquire || o == Order::AcquireRelease; }
static bool releases(Order o) { return o == Order::Release || o == Order::AcquireRelease; }

void before_atomic(const void* p, size_t bytes, bool writes, Order order) {
    if (reinterpret_cast<uintptr_t>(p) % bytes) fail("atomic operation: address %p is not %zu-byte aligned", p, bytes);
    check::atomic_before(p, bytes, writes ? check::Kind::AtomicWrite : check::Kind::AtomicRead, releases(order));
}

void after_atomic(const void* p, Order order) { check::atomic_after(p, acquires(order)); }

template <class U>
static uint64_t exchange(void* p, void (*update)(void*, const void*, void*), void* context) {
    U* word = static_cast<U*>(p);
    U old = __atomic_load_n(word, __ATOMIC_RELAXED), value;
    do update(context, &old, &value);
    while (!__atomic_compare_exchange_n(word, &old, value, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED));
    return old;
}

uint64_t exchange_bits(void* p, size_t bytes, void (*update)(void*, const void*, void*), void* context) {
    if (bytes == 2) return exchange<uint16_t>(p, update, context);
    if (bytes == 4) return exchange<uint32_t>(p, update, context);
    return exchange<uint64_t>(p, update, context);
}

uint64_t load_bits(const void* p, size_t bytes) {
    if (bytes == 4) return __atomic_load_n(static_cast<const uint32_t*>(p), __ATOMIC_SEQ_CST);
    return __atomic_load_n(static_cast<const uint64_t*>(p), __ATOMIC_SEQ_CST);
}

void memory_fence(bool gpu_scope) {
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    check::fence(gpu_scope);
}

}  // namespace simt
