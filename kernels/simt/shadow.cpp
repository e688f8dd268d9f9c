#ifdef SIMT_CHECK
#include "shadow.hpp"

#include <link.h>
#include <sys/mman.h>

#include <mutex>

#include "memory.hpp"

namespace simt::check {

// ---- static shared memory ---------------------------------------------------------------------------
// `__shared__` arrays are thread-local variables: they lie in the block of thread-local storage that this program has
// for the running host thread.
struct ThreadStorage {
    const char* begin;
    size_t bytes;
};

static int find_storage(dl_phdr_info* info, size_t, void* result) {
    const auto here = reinterpret_cast<ElfW(Addr)>(&find_storage);
    bool is_ours = false;
    size_t bytes = 0;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const auto& header = info->dlpi_phdr[i];
        const ElfW(Addr) start = info->dlpi_addr + header.p_vaddr;
        if (header.p_type == PT_LOAD && here >= start && here < start + header.p_memsz) is_ours = true;
        if (header.p_type == PT_TLS) bytes = header.p_memsz;
    }
    if (!is_ours) return 0;
    *static_cast<ThreadStorage*>(result) = {static_cast<const char*>(info->dlpi_tls_data),
                                            info->dlpi_tls_data ? bytes : 0};
    return 1;
}

static const ThreadStorage& thread_storage() {
    static thread_local ThreadStorage storage{nullptr, 0};
    static thread_local bool is_known = false;
    if (!is_known) {
        dl_iterate_phdr(find_storage, &storage);
        is_known = true;
    }
    return storage;
}

// ---- cells ------------------------------------------------------------------------------------------
struct SharedShadow {
    std::vector<Cell> dynamic_cells, static_cells;
    uint32_t generation = 0;
};
static thread_local SharedShadow shared_shadow;

void start_shadow() {
    const size_t cells = SHARED_MAX_BYTES / 2, static_cells = thread_storage().bytes / 2 + 1;
    if (shared_shadow.dynamic_cells.empty()) shared_shadow.dynamic_cells.resize(cells, Cell{});
    if (shared_shadow.static_cells.empty()) shared_shadow.static_cells.resize(static_cells, Cell{});
    shared_shadow.generation++;
}

static Cell* cells_of(Allocation& a) {
    static std::mutex mutex;
    if (void* ready = __atomic_load_n(&a.shadow, __ATOMIC_ACQUIRE)) return static_cast<Cell*>(ready);
    std::lock_guard<std::mutex> lock(mutex);
    if (a.shadow) return static_cast<Cell*>(a.shadow);
    a.shadow_bytes = (a.bytes / 2 + 1) * sizeof(Cell);
    void* p = mmap(nullptr, a.shadow_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) fail("the race checker finds no memory for a buffer of %zu bytes", a.bytes);
    __atomic_store_n(&a.shadow, p, __ATOMIC_RELEASE);
    return static_cast<Cell*>(p);
}

static Place global_place(const char* p, size_t bytes, const char* what) {
    Allocation* a = find_allocation(p);
    if (!a) {
        if (find_surroundings(p)) fail("%s: %s", what, describe_address(p).c_str());
        return {Space::None, nullptr, 0, 0, 0};
    }
    const size_t offset = size_t(p - a->base);
    if (offset + bytes > a->bytes)
        fail("%s: bytes %zu..%zu of a buffer of %zu bytes", what, offset, offset + bytes, a->bytes);
    return {Space::Global, cells_of(*a), offset, a->bytes, uint32_t(block->launch_id)};
}

Place find_place(const void* address, size_t bytes, const char* what) {
    const char* p = static_cast<const char*>(address);
    if (p >= block->window - WINDOW_BYTES && p < block->window + 2 * WINDOW_BYTES) {
        check_shared_bounds(p, bytes, what);
        return {Space::DynamicShared, shared_shadow.dynamic_cells.data(), size_t(p - block->shared),
                block->shared_bytes, shared_shadow.generation};
    }
    const char* stacks = block->fibers[0].stack;
    if (p >= stacks && p < stacks + MAX_THREADS * STACK_BYTES) return {Space::None, nullptr, 0, 0, 0};
    const char* fibers = reinterpret_cast<const char*>(block->fibers.data());
    if (p >= fibers && p < fibers + MAX_THREADS * sizeof(Fiber)) return {Space::None, nullptr, 0, 0, 0};  // threadIdx
    if (p >= reinterpret_cast<char*>(block) && p < reinterpret_cast<char*>(block + 1))
        return {Space::None, nullptr, 0, 0, 0};  // blockIdx and so on
    const ThreadStorage& storage = thread_storage();
    if (p >= storage.begin && p < storage.begin + storage.bytes)
        return {Space::StaticShared, shared_shadow.static_cells.data(), size_t(p - storage.begin), storage.bytes,
                shared_shadow.generation};
    return global_place(p, bytes, what);
}

// ---- locks ------------------------------------------------------------------------------------------
static unsigned char locks[4096];

CellLock::CellLock(const Place& place, const void* p) : flag_(nullptr) {
    if (place.space != Space::Global) return;
    flag_ = &locks[(reinterpret_cast<uintptr_t>(p) >> 6) % sizeof locks];
    while (__atomic_test_and_set(flag_, __ATOMIC_ACQUIRE)) __builtin_ia32_pause();
}

CellLock::~CellLock() {
    if (flag_) __atomic_clear(flag_, __ATOMIC_RELEASE);
}

}  // namespace simt::check
#endif
