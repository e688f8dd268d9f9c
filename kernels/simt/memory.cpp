#include "memory.hpp"

#include <signal.h>
#include <sys/mman.h>

#include <atomic>
#include <cstdio>
#include <cstring>
#include <map>
#include <mutex>
#include <shared_mutex>

namespace simt {

constexpr size_t PAGE_BYTES = 4096;
constexpr size_t GUARD_BYTES = 64 << 10;  // wide enough for the usual index mistakes
constexpr unsigned char CANARY = 0xC5;

static size_t round_up(size_t x, size_t to) { return (x + to - 1) / to * to; }

static char* reserve(size_t bytes) {
    void* p = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return p == MAP_FAILED ? nullptr : static_cast<char*>(p);
}

static bool open_pages(char* p, size_t bytes) { return mprotect(p, bytes, PROT_READ | PROT_WRITE) == 0; }

// ---- global memory ----------------------------------------------------------------------------------
static std::shared_mutex allocations_mutex;
static std::map<const char*, Allocation> allocations;  // by base
static std::atomic<uint64_t> num_freed{0};             // invalidates the threads' cached look-ups

static size_t tail_bytes(const Allocation& a) { return round_up(a.bytes, 16) - a.bytes; }

Allocation* find_allocation(const void* p) {
    static thread_local Allocation* cached = nullptr;
    static thread_local uint64_t cached_at = ~0ull;
    const char* c = static_cast<const char*>(p);
    if (cached && cached_at == num_freed.load(std::memory_order_acquire) && c >= cached->base &&
        c < cached->base + cached->bytes)
        return cached;
    std::shared_lock<std::shared_mutex> lock(allocations_mutex);
    auto next = allocations.upper_bound(c);
    if (next == allocations.begin()) return nullptr;
    Allocation& a = std::prev(next)->second;
    if (c >= a.base + a.bytes) return nullptr;
    cached = &a;
    cached_at = num_freed.load(std::memory_order_acquire);
    return cached;
}

const Allocation* find_surroundings(const void* p) {
    const char* c = static_cast<const char*>(p);
    std::shared_lock<std::shared_mutex> lock(allocations_mutex);
    for (const auto& [base, a] : allocations)
        if (c >= a.mapping && c < a.mapping + a.mapping_bytes) return &a;
    return nullptr;
}

std::string describe_address(const void* p) {
    const char* c = static_cast<const char*>(p);
    char text[200];
    const Allocation* a = find_surroundings(p);
    if (!a)
        snprintf(text, sizeof text, "address %p, which belongs to no buffer", p);
    else if (c < a->base)
        snprintf(text, sizeof text, "%zu bytes before a buffer of %zu bytes", size_t(a->base - c), a->bytes);
    else
        snprintf(text, sizeof text, "byte %zu of a buffer of %zu bytes", size_t(c - a->base), a->bytes);
    return text;
}

std::string find_damaged_canary() {
    std::shared_lock<std::shared_mutex> lock(allocations_mutex);
    for (auto& [base, a] : allocations) {
        for (size_t i = 0; i < tail_bytes(a); i++) {
            if (static_cast<unsigned char>(a.base[a.bytes + i]) == CANARY) continue;
            memset(a.base + a.bytes, CANARY, tail_bytes(a));
            return "write at byte " + std::to_string(a.bytes + i) + " of a buffer of " + std::to_string(a.bytes) +
                   " bytes";
        }
    }
    return "";
}

// ---- arenas -----------------------------------------------------------------------------------------
static std::mutex arenas_mutex;
static std::vector<Block*> free_arenas;

static Block* make_arena() {
    char* stacks = reserve(MAX_THREADS * STACK_BYTES);
    char* windows = reserve(4 * WINDOW_BYTES);
    if (!stacks || !windows) return nullptr;
    if (!open_pages(stacks, MAX_THREADS * STACK_BYTES)) return nullptr;
    Block* b = new Block();
    b->fibers.resize(MAX_THREADS);
    for (int i = 0; i < MAX_THREADS; i++) {
        b->fibers[i].stack = stacks + i * STACK_BYTES;
        if (mprotect(b->fibers[i].stack, PAGE_BYTES, PROT_NONE) != 0) return nullptr;
    }
    const uintptr_t second = reinterpret_cast<uintptr_t>(windows) + 2 * WINDOW_BYTES - 1;
    b->window = reinterpret_cast<char*>(second & ~uintptr_t(WINDOW_BYTES - 1));
    if (!open_pages(b->window, round_up(WINDOW_BASE + SHARED_MAX_BYTES + CANARY_BYTES, PAGE_BYTES))) return nullptr;
    b->shared = b->window + WINDOW_BASE;
    return b;
}

Block* take_arena() {
    {
        std::lock_guard<std::mutex> lock(arenas_mutex);
        if (!free_arenas.empty()) {
            Block* b = free_arenas.back();
            free_arenas.pop_back();
            return b;
        }
    }
    return make_arena();
}

void return_arena(Block* b) {
    std::lock_guard<std::mutex> lock(arenas_mutex);
    free_arenas.push_back(b);
}

// ---- shared addresses -------------------------------------------------------------------------------
// Dynamic shared memory lies in the window. Static `__shared__` arrays are thread-local variables of the host thread;
// they get addresses around an anchor that is thread-local too.
static __thread char static_anchor;
constexpr uint32_t STATIC_BASE = 0x40000000;

uint32_t shared_address(const void* p) {
    const ptrdiff_t d = static_cast<const char*>(p) - block->window;
    if (d >= 0 && d < ptrdiff_t(WINDOW_BYTES)) return uint32_t(d);
    return STATIC_BASE + uint32_t(static_cast<const char*>(p) - &static_anchor);
}

char* shared_pointer(uint32_t address) {
    if (address < WINDOW_BYTES) return block->window + address;
    return &static_anchor + int32_t(address - STATIC_BASE);
}

void check_shared_bounds(const void* p, size_t bytes, const char* what) {
    const char* c = static_cast<const char*>(p);
    const ptrdiff_t d = c - block->shared;
    const bool is_dynamic = c >= block->window - WINDOW_BYTES && c < block->window + 2 * WINDOW_BYTES;
    if (is_dynamic && (d < 0 || d + bytes > block->shared_bytes))
        fail("%s: bytes %td..%td of dynamic shared memory, which has %zu", what, d, d + ptrdiff_t(bytes),
             block->shared_bytes);
}

// ---- faults -----------------------------------------------------------------------------------------
static struct sigaction previous_segv, previous_bus;

static void on_fault(int signal_number, siginfo_t* info, void*) {
    if (!block || !fiber) {  // not ours: put the old handler back and let the instruction fault again
        sigaction(signal_number, signal_number == SIGSEGV ? &previous_segv : &previous_bus, nullptr);
        return;
    }
    const char* p = static_cast<const char*>(info->si_addr);
    const char* stacks = block->fibers[0].stack;
    if (p >= stacks && p < stacks + MAX_THREADS * STACK_BYTES)
        fail("the thread's stack of %zu bytes overflows", STACK_BYTES);
    const ptrdiff_t d = p - block->shared;
    if (p >= block->window - WINDOW_BYTES && p < block->window + 2 * WINDOW_BYTES)
        fail("memory fault at byte %td of dynamic shared memory, which has %zu", d, block->shared_bytes);
    fail("memory fault at %s", describe_address(p).c_str());
}

void install_fault_handler() {
    static std::once_flag once;
    std::call_once(once, [] {
        struct sigaction action {};
        action.sa_sigaction = on_fault;
        action.sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK;
        sigaction(SIGSEGV, &action, &previous_segv);
        sigaction(SIGBUS, &action, &previous_bus);
    });
}

}  // namespace simt

// ---- C ABI ------------------------------------------------------------------------------------------
using namespace simt;

// `bytes` of zeroed global memory, or null. `at_front` 0: it ends at a guard page (rounded up to 16 bytes), so that
// reads and writes past its end fault; 1: it starts at one (and at a multiple of 4096), so that those before its start
// do.
extern "C" void* simt_alloc(size_t bytes, int at_front) {
    const size_t body = round_up(bytes ? bytes : 1, PAGE_BYTES), used = round_up(bytes ? bytes : 1, 16);
    const size_t total = body + 2 * GUARD_BYTES;
    if (body < bytes || total < body) return nullptr;
    char* mapping = reserve(total);
    if (!mapping) return nullptr;
    if (!open_pages(mapping + GUARD_BYTES, body)) {
        munmap(mapping, total);
        return nullptr;
    }
    char* base = mapping + GUARD_BYTES + (at_front ? 0 : body - used);
    Allocation a{base, bytes, mapping, total, nullptr, 0, at_front != 0};
    memset(base + bytes, CANARY, tail_bytes(a));
    std::unique_lock<std::shared_mutex> lock(allocations_mutex);
    allocations[base] = a;
    return base;
}

extern "C" void simt_free(void* p) {
    std::unique_lock<std::shared_mutex> lock(allocations_mutex);
    auto it = allocations.find(static_cast<const char*>(p));
    if (it == allocations.end()) return;
    num_freed.fetch_add(1, std::memory_order_release);
    munmap(it->second.mapping, it->second.mapping_bytes);
    if (it->second.shadow) munmap(it->second.shadow, it->second.shadow_bytes);
    allocations.erase(it);
}
