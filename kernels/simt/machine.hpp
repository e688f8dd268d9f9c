// The emulated machine: one fiber per CUDA thread; all fibers of a block stay on one host thread, blocks are spread
// over host threads. This header holds the state of a block and what the other parts of the emulator call on it.
#pragma once
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <vector>

#include <vector_types.h>  // uint3, dim3

namespace simt {

constexpr size_t STACK_BYTES = 64 << 10;
constexpr size_t SHARED_MAX_BYTES = 227 << 10;  // most dynamic shared memory that a block of sm_90 can have
constexpr size_t WINDOW_BYTES = 1 << 18;        // aligned window of the 32-bit shared addresses
constexpr size_t WINDOW_BASE = 1024;            // as on hardware the first KiB is reserved, so address 0 is never valid
constexpr size_t CANARY_BYTES = 1024;           // behind dynamic shared memory
constexpr int MAX_THREADS = 1024;
constexpr int MAX_WARPS = MAX_THREADS / 32;
constexpr int MAX_WARPGROUPS = MAX_THREADS / 128;

// How a launch is run. Mirrored by `RawOptions` in src/device/simt.rs.
struct Options {
    uint32_t eager;     // 0: async copies as late as legal, wgmma at once; 1: copies at once, wgmma as late as legal
    uint32_t schedule;  // 0: lane order, 1: reverse, 2: random
    uint64_t seed;      // of the random schedule
    uint32_t threads;   // host threads, 0 = one per core
    uint32_t reserved;
};

// ---- operations in flight ---------------------------------------------------------------------------
struct CpAsyncOp {
    char* destination;
    const char* source;
    int bytes, source_bytes;  // the rest is zeroed
    int group;
};

struct WgmmaOp {
    uint64_t descriptor_a, descriptor_b;
    const uint32_t* registers_a;  // null: A comes from shared memory
    uint32_t copy_a[4];           // of registers_a at issue, to see whether they were changed in flight
    float* d;
    int n;
    bool bf16, scale_d, transpose_a, transpose_b;
    bool holds_d;  // this operation saved the accumulators and filled the registers with NaN
    std::vector<float> saved_d;
    int group;
};

struct TmaOp {
    alignas(64) char map[128];  // by value: a kernel parameter dies with its fiber
    char* shared;
    uint64_t* barrier;  // of a load
    int coordinate[5];
    int offset[3];  // im2col
    bool is_im2col, is_store;
    bool was_read, was_waited_for;  // a store's progress
    int issuer;
    int group;                   // of a store
    std::vector<char> captured;  // a store's data, between the read of shared memory and the write
    uint32_t ticket;             // the checker's number of it
};

// ---- threads, warps, barriers -----------------------------------------------------------------------
struct Warp;

struct Fiber {
    void* sp;
    uint3 thread_idx;
    int linear, lane, warp_idx;
    Warp* warp;
    const char* wait_what;  // what a blocked fiber waits for, for the deadlock report
    uint64_t wait_a, wait_b;
    std::vector<CpAsyncOp> cp_async;
    int cp_async_group;
    std::vector<WgmmaOp> wgmma;
    int wgmma_group, wgmma_keep;
    bool wgmma_fenced, wgmma_unwaited;
    std::vector<TmaOp> stores;
    int store_group;
    int registers;  // by setmaxnreg
    bool wrote_global;
    char* stack;
};

using WarpFunction = void (*)(void** arguments, uint32_t mask);
using WarpgroupFunction = void (*)(void** arguments);

// A warp collective that waits for its lanes. Divergent code can have several with disjoint masks.
struct Rendezvous {
    uint32_t mask, arrived;
    const char* kind;
    WarpFunction function;
    void* arguments[32];
};

struct Warp {
    uint32_t ready, alive;
    Rendezvous rendezvous[4];
};

struct WarpgroupRendezvous {
    int arrived;
    const char* kind;
    void* arguments[128];
};

constexpr int BARRIERS = 16;

struct Barrier {
    int arrived, needed;          // needed < 0: all live threads
    uint32_t waiting[MAX_WARPS];  // lanes to wake
};

struct MbarrierWait {
    uint64_t* barrier;
    int linear;
};

// A warpgroup that waits in setmaxnreg.inc.
struct RegisterWait {
    int group, count;
};

struct Block {
    uint3 block_idx;
    dim3 block_dim, grid_dim;
    uint64_t linear;  // block number in the grid
    char* window;     // WINDOW_BYTES aligned to their size, with unmapped surroundings
    char* shared;     // dynamic shared memory, in the window
    size_t shared_bytes;
    int num_threads, num_warps, num_alive, current_warp;
    Warp warp[MAX_WARPS];
    Barrier barrier[BARRIERS];
    WarpgroupRendezvous warpgroup[MAX_WARPGROUPS];
    std::vector<Fiber> fibers;
    std::vector<TmaOp> loads;
    std::vector<MbarrierWait> mbarrier_waits;
    std::vector<RegisterWait> register_waits;
    int registers_free;
    void* main_sp;
    void (*entry)(void*);
    void* entry_argument;
    Options options;
    uint64_t random;
    uint64_t launch_id;
    uint64_t num_switches;
    bool failed;
    std::string* error;
    const char* kernel;
};

// __thread, not thread_local: it cannot have a constructor, so that kernels reach it without a wrapper call.
extern __thread Block* block;
extern __thread Fiber* fiber;

// ---- failure ----------------------------------------------------------------------------------------
// Ends the block: the launch returns the message with kernel, block and thread before it. Call it from a fiber.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// ---- scheduler --------------------------------------------------------------------------------------
Fiber* pick();  // null when all threads have ended
void swap_stacks(void** save_sp, void* to_sp) asm("simt_swap_stacks");
void switch_away();  // the fiber is not marked ready any more
void block_on(const char* what, uint64_t a = 0, uint64_t b = 0);
void wake(int linear);
void yield();
void fiber_main();
uint64_t next_random();

// ---- warps and warpgroups ---------------------------------------------------------------------------
// Each lane of `mask` leaves a pointer; the last one runs `function` for all.
void warp_collective(uint32_t mask, const char* kind, void* argument, WarpFunction function);
void warpgroup_collective(const char* kind, void* argument, WarpgroupFunction function);
void retry_rendezvous_after_exit(Warp& warp);

// ---- block barriers ---------------------------------------------------------------------------------
void barrier_sync(int id, int num_threads, bool wait);  // num_threads < 0: all live threads
void retry_barriers_after_exit();

// ---- shared memory ----------------------------------------------------------------------------------
uint32_t shared_address(const void* p);  // 32 bits, as hardware's
char* shared_pointer(uint32_t address);
// Fails unless [p, p + bytes) lies in the block's dynamic shared memory; static shared memory passes.
void check_shared_bounds(const void* p, size_t bytes, const char* what);

// ---- what the scheduler and thread exit need of the asynchronous units -------------------------------
void run_one_load();  // the TMA load that comes next
void check_nothing_in_flight();
void finish_stores_of_exiting_thread();

}  // namespace simt
