// What the compiler calls at every load and store of a kernel compiled with -fsanitize=thread. libtsan is not linked.
#ifdef SIMT_CHECK
#include "check.hpp"
#include "machine.hpp"

static void watch(const void* p, size_t bytes, simt::check::Kind kind) {
    if (!simt::fiber) return;                                                                    // host code
    if (p == static_cast<void*>(&simt::fiber) || p == static_cast<void*>(&simt::block)) return;  // threadIdx and so on
    const bool writes = kind == simt::check::Kind::Write;
    simt::check::access(p, bytes, kind, simt::fiber->linear, writes ? "a store" : "a load");
}

#define SIMT_HOOKS(bytes)                                                                      \
    void __tsan_read##bytes(void* p) { watch(p, bytes, simt::check::Kind::Read); }             \
    void __tsan_write##bytes(void* p) { watch(p, bytes, simt::check::Kind::Write); }           \
    void __tsan_unaligned_read##bytes(void* p) { watch(p, bytes, simt::check::Kind::Read); }   \
    void __tsan_unaligned_write##bytes(void* p) { watch(p, bytes, simt::check::Kind::Write); } \
    void __tsan_volatile_read##bytes(void* p) { watch(p, bytes, simt::check::Kind::Read); }    \
    void __tsan_volatile_write##bytes(void* p) { watch(p, bytes, simt::check::Kind::Write); }

extern "C" {
SIMT_HOOKS(1)
SIMT_HOOKS(2)
SIMT_HOOKS(4)
SIMT_HOOKS(8)
SIMT_HOOKS(16)
void __tsan_read_range(void* p, size_t bytes) { watch(p, bytes, simt::check::Kind::Read); }
void __tsan_write_range(void* p, size_t bytes) { watch(p, bytes, simt::check::Kind::Write); }
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
}
#endif
