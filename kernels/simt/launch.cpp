// Runs the blocks of a grid on the host's cores; the C ABI that src/device/simt.rs calls.
#include "launch.hpp"

#include <signal.h>

#include <atomic>
#include <cstdio>
#include <cstring>
#include <map>
#include <mutex>
#include <thread>

#include "check.hpp"
#include "machine.hpp"
#include "memory.hpp"
#include "warpgroup_registers.hpp"

namespace simt {

static std::map<std::string, Kernel>& registry() {
    static std::map<std::string, Kernel> kernels;
    return kernels;
}

void register_kernel(const Kernel& kernel) { registry()[kernel.name] = kernel; }

// ---- one block --------------------------------------------------------------------------------------
static void reset_fiber(Block* b, int i) {
    Fiber& f = b->fibers[i];
    f.linear = i;
    f.lane = i & 31;
    f.warp_idx = i >> 5;
    f.warp = &b->warp[f.warp_idx];
    f.thread_idx.x = i % b->block_dim.x;
    f.thread_idx.y = i / b->block_dim.x % b->block_dim.y;
    f.thread_idx.z = i / b->block_dim.x / b->block_dim.y;
    f.cp_async.clear();
    f.cp_async_group = 0;
    f.wgmma.clear();
    f.wgmma_group = 0;
    f.wgmma_fenced = f.wgmma_unwaited = false;
    f.stores.clear();
    f.store_group = 0;
    f.registers = initial_registers(b->num_threads);
    f.wrote_global = false;
    f.wait_what = "start";
    f.wait_a = f.wait_b = 0;
    // Tops are staggered: equal offsets would put every fiber's frame into the same cache set.
    auto top = reinterpret_cast<uintptr_t>(f.stack + STACK_BYTES - 256 - (i * 704) % 12288) & ~uintptr_t(15);
    void** sp = reinterpret_cast<void**>(top);
    *--sp = nullptr;
    *--sp = reinterpret_cast<void*>(fiber_main);
    for (int k = 0; k < 6; k++) *--sp = nullptr;  // the callee-saved registers
    f.sp = sp;
    f.warp->ready |= 1u << f.lane;
    f.warp->alive |= 1u << f.lane;
}

static void reset_block(Block* b, uint64_t linear) {
    b->linear = linear;
    b->block_idx.x = unsigned(linear % b->grid_dim.x);
    b->block_idx.y = unsigned(linear / b->grid_dim.x % b->grid_dim.y);
    b->block_idx.z = unsigned(linear / b->grid_dim.x / b->grid_dim.y);
    b->num_threads = b->num_alive = int(b->block_dim.x * b->block_dim.y * b->block_dim.z);
    b->num_warps = (b->num_threads + 31) / 32;
    b->current_warp = 0;
    b->failed = false;
    b->random = (b->options.seed + linear) * 0x9E3779B97F4A7C15ull | 1;
    b->registers_free = 0;
    b->register_waits.clear();
    b->loads.clear();
    b->mbarrier_waits.clear();
    memset(b->warp, 0, sizeof b->warp);
    memset(b->barrier, 0, sizeof b->barrier);
    memset(b->warpgroup, 0, sizeof b->warpgroup);
    memset(b->shared, 0xFF, b->shared_bytes + CANARY_BYTES);  // NaN in f32, f16 and bf16: unwritten memory shows up
    for (int i = 0; i < b->num_threads; i++) reset_fiber(b, i);
}

static void run_block(Block* b, uint64_t linear) {
    reset_block(b, linear);
    block = b;
    check::block_start();
    fiber = pick();
    swap_stacks(&b->main_sp, fiber->sp);
    fiber = nullptr;
    for (size_t i = 0; !b->failed && i < CANARY_BYTES; i++) {
        if (b->shared[b->shared_bytes + i] == char(0xFF)) continue;
        char text[300];
        snprintf(text, sizeof text,
                 "kernel %s, block (%u,%u,%u): write at byte %zu of dynamic shared memory, which has %zu", b->kernel,
                 b->block_idx.x, b->block_idx.y, b->block_idx.z, b->shared_bytes + i, b->shared_bytes);
        *b->error = text;
        b->failed = true;
    }
}

// ---- the grid ---------------------------------------------------------------------------------------
struct Launch {
    const Kernel* kernel;
    dim3 grid, block_dim;
    size_t shared_bytes;
    Options options;
    void** arguments;
    uint64_t id, num_blocks;
    std::atomic<uint64_t> next{0};
    std::mutex mutex;
    std::string error;
};

static void enter_kernel(void* p) {
    const Launch* launch = static_cast<Launch*>(p);
    launch->kernel->entry(launch->arguments);
}

static void set_error(Launch& launch, const std::string& error) {
    std::lock_guard<std::mutex> lock(launch.mutex);
    if (launch.error.empty()) launch.error = error;
    launch.next = launch.num_blocks;
}

// What one host thread does: blocks, until none is left or one failed.
static void run_blocks(Launch& launch) {
    Block* b = take_arena();
    if (!b) return set_error(launch, "no memory for the stacks and shared memory of a block");
    std::vector<char> signal_stack(64 << 10);
    stack_t own{}, previous{};
    own.ss_sp = signal_stack.data();
    own.ss_size = signal_stack.size();
    sigaltstack(&own, &previous);
    std::string error;
    b->error = &error;
    b->block_dim = launch.block_dim;
    b->grid_dim = launch.grid;
    b->shared_bytes = launch.shared_bytes;
    b->entry = enter_kernel;
    b->entry_argument = &launch;
    b->options = launch.options;
    b->kernel = launch.kernel->name;
    b->launch_id = launch.id;
    b->num_switches = 0;
    for (uint64_t i; (i = launch.next++) < launch.num_blocks;) {
        run_block(b, launch.options.schedule == 1 ? launch.num_blocks - 1 - i : i);
        if (b->failed) {
            set_error(launch, error);
            break;
        }
    }
    block = nullptr;
    return_arena(b);
    sigaltstack(&previous, nullptr);
}

static std::string check_launch(const Launch& l, const size_t* argument_bytes, size_t num_arguments) {
    const uint64_t threads = uint64_t(l.block_dim.x) * l.block_dim.y * l.block_dim.z;
    const std::string name = l.kernel->name;
    if (threads == 0 || threads > MAX_THREADS)
        return "kernel " + name + ": a block of " + std::to_string(threads) + " threads, expected 1 to 1024";
    if (l.num_blocks == 0 || l.grid.y > 65535 || l.grid.z > 65535 || l.grid.x > 0x7FFFFFFF)
        return "kernel " + name + ": grid (" + std::to_string(l.grid.x) + "," + std::to_string(l.grid.y) + "," +
               std::to_string(l.grid.z) + "), expected 1 to (2^31-1, 65535, 65535)";
    if (l.shared_bytes > SHARED_MAX_BYTES)
        return "kernel " + name + ": " + std::to_string(l.shared_bytes) +
               " bytes of dynamic shared memory, expected at most " + std::to_string(SHARED_MAX_BYTES);
    if (num_arguments != l.kernel->num_arguments)
        return "kernel " + name + ": expected " + std::to_string(l.kernel->num_arguments) + " arguments, got " +
               std::to_string(num_arguments);
    for (size_t i = 0; i < num_arguments; i++)
        if (argument_bytes[i] != l.kernel->argument_bytes[i])
            return "kernel " + name + ": expected " + std::to_string(l.kernel->argument_bytes[i]) +
                   " bytes in argument " + std::to_string(i) + ", got " + std::to_string(argument_bytes[i]);
    return "";
}

static void run_grid(Launch& launch) {
    install_fault_handler();
    uint64_t threads = launch.options.threads ? launch.options.threads : std::thread::hardware_concurrency();
    if (threads > launch.num_blocks) threads = launch.num_blocks;
    if (threads <= 1) return run_blocks(launch);
    std::vector<std::thread> workers;
    for (uint64_t i = 0; i < threads; i++) workers.emplace_back([&] { run_blocks(launch); });
    for (std::thread& t : workers) t.join();
}

}  // namespace simt

// ---- C ABI ------------------------------------------------------------------------------------------
using namespace simt;

static thread_local std::string last_error;

// The text of the last failure of this host thread.
extern "C" const char* simt_error() { return last_error.c_str(); }

// The name of kernel `index` in alphabetical order, or null.
extern "C" const char* simt_kernel_name(size_t index) {
    if (index >= registry().size()) return nullptr;
    return std::next(registry().begin(), long(index))->second.name;
}

// 1 if the kernels were compiled with the race checker.
extern "C" int simt_is_checked() {
#ifdef SIMT_CHECK
    return 1;
#else
    return 0;
#endif
}

// Runs `name` on grid x block threads and waits for it. `arguments` as for cuLaunchKernel; `argument_bytes` are their
// sizes. 0, or 1 with the reason in simt_error().
extern "C" int simt_launch(const char* name, const uint32_t* grid, const uint32_t* block_dim, uint32_t shared_bytes,
                           const void* const* arguments, const size_t* argument_bytes, size_t num_arguments,
                           const Options* options) {
    // One launch at a time, so that a damaged canary is its own; its blocks are spread over the cores all the same.
    static std::mutex one_at_a_time;
    std::lock_guard<std::mutex> lock(one_at_a_time);
    static uint64_t num_launches = 0;
    Launch launch;
    auto it = registry().find(name);
    if (it == registry().end()) {
        last_error = std::string("kernel ") + name + " is not compiled in";
        return 1;
    }
    launch.kernel = &it->second;
    launch.grid = dim3(grid[0], grid[1], grid[2]);
    launch.block_dim = dim3(block_dim[0], block_dim[1], block_dim[2]);
    launch.shared_bytes = shared_bytes;
    launch.options = *options;
    launch.num_blocks = uint64_t(grid[0]) * grid[1] * grid[2];
    launch.id = ++num_launches;
    last_error = check_launch(launch, argument_bytes, num_arguments);
    if (!last_error.empty()) return 1;
    // Copies, aligned as a tensor map must be: the caller's bytes may lie anywhere.
    struct alignas(128) Line {
        char bytes[128];
    };
    std::vector<std::vector<Line>> storage;
    std::vector<void*> pointers;
    for (size_t i = 0; i < num_arguments; i++) {
        storage.emplace_back(argument_bytes[i] / sizeof(Line) + 1);
        memcpy(static_cast<void*>(storage.back().data()), arguments[i], argument_bytes[i]);
        pointers.push_back(storage.back().data());
    }
    launch.arguments = pointers.data();
    run_grid(launch);
    last_error = launch.error;
    const std::string damaged = find_damaged_canary();
    if (last_error.empty() && !damaged.empty()) last_error = std::string("kernel ") + name + ": " + damaged;
    return last_error.empty() ? 0 : 1;
}
