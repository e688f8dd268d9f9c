// What the other parts of the emulator tell the race checker. Without SIMT_CHECK all of it is nothing.
// The checker itself: check.cpp (clocks and reports), shadow.cpp (memory), tsan_hooks.cpp (loads and stores of
// kernels).
#pragma once
#include <cstddef>
#include <cstdint>

#include "machine.hpp"

namespace simt::check {

enum class Kind { Read, Write, AtomicRead, AtomicWrite };  // AtomicWrite: any read-modify-write

#ifdef SIMT_CHECK
constexpr bool IS_ON = true;
void block_start();
// `thread` of the block reads or writes [p, p + bytes). `by_async_proxy`: wgmma and TMA.
void access(const void* p, size_t bytes, Kind kind, int thread, const char* what, bool by_async_proxy = false);
// A cp.async writes, or a wgmma reads, these bytes of shared memory from now on until the end is told.
void copy_begins(const void* p, size_t bytes);
void copy_ends(const void* p, size_t bytes);
void async_read_begins(const void* p, size_t bytes);
void async_read_ends(const void* p, size_t bytes);
void warp_join(uint32_t mask);  // the lanes of the fiber's warp: __syncwarp
void warp_join_all(int warp_idx);
void barrier_arrive(int id);
void barrier_release(int id, const uint32_t* waiting);
void mbarrier_init(uint64_t* barrier);
void mbarrier_arrive(uint64_t* barrier);
void mbarrier_phase(uint64_t* barrier);
void mbarrier_wait(uint64_t* barrier);
void tma_issue(TmaOp& op);
void tma_access(const TmaOp& op, const void* p, size_t bytes, Kind kind);
void tma_load_done(const TmaOp& op);
void tma_store_read(const TmaOp& op);  // the issuer may overwrite the shared memory
void tma_store_done(const TmaOp& op);  // and rely on the global memory
void proxy_fence();
void fence(bool gpu_scope);
// An atomic operation on `p` in global memory that also orders (acquire, release) or does not (relaxed).
void atomic_before(const void* p, size_t bytes, Kind kind, bool releases);
void atomic_after(const void* p, bool acquires);
#else
constexpr bool IS_ON = false;
inline void block_start() {}
inline void access(const void*, size_t, Kind, int, const char*, bool = false) {}
inline void copy_begins(const void*, size_t) {}
inline void copy_ends(const void*, size_t) {}
inline void async_read_begins(const void*, size_t) {}
inline void async_read_ends(const void*, size_t) {}
inline void warp_join(uint32_t) {}
inline void warp_join_all(int) {}
inline void barrier_arrive(int) {}
inline void barrier_release(int, const uint32_t*) {}
inline void mbarrier_init(uint64_t*) {}
inline void mbarrier_arrive(uint64_t*) {}
inline void mbarrier_phase(uint64_t*) {}
inline void mbarrier_wait(uint64_t*) {}
inline void tma_issue(TmaOp&) {}
inline void tma_access(const TmaOp&, const void*, size_t, Kind) {}
inline void tma_load_done(const TmaOp&) {}
inline void tma_store_read(const TmaOp&) {}
inline void tma_store_done(const TmaOp&) {}
inline void proxy_fence() {}
inline void fence(bool) {}
inline void atomic_before(const void*, size_t, Kind, bool) {}
inline void atomic_after(const void*, bool) {}
#endif

}  // namespace simt::check
