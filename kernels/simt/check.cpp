// The race checker: what is ordered before what, and reports. Kernels compiled with -fsanitize=thread tell it every
// load and store (tsan_hooks.cpp), the emulator everything else (check.hpp).
#ifdef SIMT_CHECK
#include "check.hpp"

#include <cstdio>
#include <map>
#include <mutex>
#include <unordered_map>

#include "clocks.hpp"
#include "shadow.hpp"

namespace simt::check {

constexpr int ACTORS = 64;  // asynchronous copies that are told apart; two of a store

struct Thread {
    Stamp stamp;
    Known released;           // by the last fence of GPU scope: own block included
    Known released_in_block;  // by the last fence of any scope
    Known pending;            // read by atomics, known after the next fence
    uint32_t proxy_fence;     // epoch of the last fence.proxy.async
};

struct MbarrierState {
    Stamp current, done;
};

struct Checker {
    std::vector<Thread> threads;
    Stamp barriers[BARRIERS];
    std::unordered_map<const void*, MbarrierState> mbarriers;
    std::unordered_map<const void*, Known> shared_locations;
    std::map<uint32_t, Stamp> copies;  // TMA operations under way, by ticket
    uint32_t num_copies;
};

static thread_local Checker* checker = nullptr;

static Thread& thread_of(int linear) { return checker->threads[linear]; }

static void next_epoch(int linear) { thread_of(linear).stamp.clock[linear]++; }

void block_start() {
    if (!checker) checker = new Checker;
    const size_t entries = size_t(block->num_threads) + ACTORS;
    checker->threads.assign(block->num_threads, Thread{{Clock(entries, 0), {}}, {}, {}, {}, 0});
    for (int i = 0; i < block->num_threads; i++) next_epoch(i);
    for (Stamp& b : checker->barriers) b = Stamp{};
    checker->mbarriers.clear();
    checker->shared_locations.clear();
    checker->copies.clear();
    checker->num_copies = 0;
    start_shadow();
}

// ---- reports ----------------------------------------------------------------------------------------
static std::string name_thread(uint32_t block_number, uint32_t thread) {
    char text[128];
    int used = 0;
    if (block_number != uint32_t(block->linear)) {
        const dim3 g = block->grid_dim;
        used = snprintf(text, sizeof text, "block (%u,%u,%u) ", block_number % g.x, block_number / g.x % g.y,
                        block_number / g.x / g.y);
    }
    const dim3 b = block->block_dim;
    if (int(thread) < block->num_threads)
        snprintf(text + used, sizeof text - used, "thread (%u,%u,%u)", thread % b.x, thread / b.x % b.y,
                 thread / b.x / b.y);
    else
        snprintf(text + used, sizeof text - used, "an asynchronous copy");
    return text;
}

static std::string name_place(const Place& place, size_t cell) {
    char text[128];
    if (place.space == Space::StaticShared) return "static shared memory";
    if (place.space == Space::DynamicShared)
        snprintf(text, sizeof text, "byte %zu of dynamic shared memory", cell * 2);
    else
        snprintf(text, sizeof text, "byte %zu of a global buffer of %zu bytes", cell * 2, place.size);
    return text;
}

// ---- accesses ---------------------------------------------------------------------------------------
struct Current {
    Access access;
    const Stamp& stamp;
    bool writes, by_async_proxy;
    const char* what;
};

static bool is_ordered_after(const Current& now, const Access& before) {
    if (before.block == now.access.block)
        return before.thread == now.access.thread || now.stamp.clock[before.thread] >= before.clock;
    const Clock* clock = find(now.stamp.known, before.block);
    return clock && before.thread < clock->size() && (*clock)[before.thread] >= before.clock;
}

static bool is_race(const Current& now, const Access& before) {
    if (!(before.bytes & now.access.bytes) || (before.is_atomic && now.access.is_atomic)) return false;
    return !is_ordered_after(now, before);
}

static std::string describe_race(const Current& now, const Access& before, const char* verb, const Place& place,
                                 size_t cell) {
    return "RACE at " + name_place(place, cell) + ": " + now.what + " is not ordered after the " + verb + " by " +
           name_thread(before.block, before.thread);
}

static bool lacks_proxy_fence(const Current& now, const Access& write) {
    if (now.writes || !now.by_async_proxy || !write.is_generic || write.block != now.access.block) return false;
    return int(write.thread) < block->num_threads && thread_of(write.thread).proxy_fence <= write.clock;
}

static std::string describe_proxy(const Current& now, const Access& write, const Place& place, size_t cell) {
    return "missing fence.proxy.async at " + name_place(place, cell) + ": " + now.what +
           " after an ordinary store by " + name_thread(write.block, write.thread) +
           ", which has not executed the fence since";
}

static void remember_read(Cell& cell, const Current& now) {
    int slot = 0;
    while (slot < cell.num_reads && cell.reads[slot].thread != now.access.thread &&
           !is_ordered_after(now, cell.reads[slot]))
        slot++;
    if (slot == 2)
        slot = int(now.access.clock & 1);
    else if (slot == cell.num_reads)
        cell.num_reads++;
    cell.reads[slot] = now.access;
}

// Returns what is wrong, or an empty string; it must not fail while it holds the lock.
static std::string touch(const Place& place, const void* p, size_t bytes, Current now) {
    const CellLock lock(place, p);
    const size_t end = place.offset + bytes;
    for (size_t i = place.offset / 2; i * 2 < end; i++) {
        Cell& cell = place.cells[i];
        if (cell.generation != place.generation) {
            cell = Cell{};
            cell.generation = place.generation;
        }
        if (cell.copies_in_flight)
            return std::string(now.what) + " at " + name_place(place, i) + " while a cp.async into it is under way";
        if (cell.reads_in_flight && now.writes)
            return std::string(now.what) + " at " + name_place(place, i) + " while a wgmma that reads it is in flight";
        now.access.bytes = uint8_t((i * 2 >= place.offset ? 1 : 0) | (i * 2 + 1 < end ? 2 : 0));
        if (cell.has_write) {
            const char* verb = cell.write.is_atomic ? "atomic operation" : "write";
            if (is_race(now, cell.write)) return describe_race(now, cell.write, verb, place, i);
            if (lacks_proxy_fence(now, cell.write)) return describe_proxy(now, cell.write, place, i);
        }
        if (!now.writes) {
            remember_read(cell, now);
            continue;
        }
        for (int r = 0; r < cell.num_reads; r++)
            if (is_race(now, cell.reads[r])) return describe_race(now, cell.reads[r], "read", place, i);
        cell.has_write = 1;
        cell.num_reads = 0;
        cell.write = now.access;
    }
    return "";
}

// Splits at 64 bytes, so that one lock covers each part.
static void touch_all(const void* address, size_t bytes, const Current& now) {
    const char* p = static_cast<const char*>(address);
    const Place whole = find_place(p, bytes, now.what);
    if (whole.space == Space::None) return;
    if (whole.space == Space::Global && now.writes && int(now.access.thread) < block->num_threads)
        block->fibers[now.access.thread].wrote_global = true;
    for (size_t done = 0; done < bytes;) {
        const size_t to_line = 64 - (reinterpret_cast<uintptr_t>(p + done) & 63);
        const size_t part = to_line < bytes - done ? to_line : bytes - done;
        Place place = whole;
        place.offset += done;
        const std::string wrong = touch(place, p + done, part, now);
        if (!wrong.empty()) {
            if (int(now.access.thread) < block->num_threads) fiber = &block->fibers[now.access.thread];
            fail("%s", wrong.c_str());
        }
        done += part;
    }
}

static Access make_access(uint32_t clock, int thread, bool is_atomic, bool is_generic) {
    return {clock, uint32_t(block->linear), uint16_t(thread), 0, is_atomic, is_generic};
}

void access(const void* p, size_t bytes, Kind kind, int thread, const char* what, bool by_async_proxy) {
    const Thread& t = thread_of(thread);
    const bool is_atomic = kind == Kind::AtomicRead || kind == Kind::AtomicWrite;
    const bool writes = kind == Kind::Write || kind == Kind::AtomicWrite;
    touch_all(p, bytes,
              {make_access(t.stamp.clock[thread], thread, is_atomic, true), t.stamp, writes, by_async_proxy, what});
}

// Adds to a counter of the cells of [p, p + bytes) in shared memory.
static void count(const void* p, size_t bytes, uint8_t Cell::*counter, int change) {
    const Place place = find_place(p, bytes, "an asynchronous operation");
    for (size_t i = place.offset / 2; place.cells && i * 2 < place.offset + bytes; i++) {
        Cell& cell = place.cells[i];
        if (cell.generation != place.generation) {
            cell = Cell{};
            cell.generation = place.generation;
        }
        cell.*counter = uint8_t(cell.*counter + change);
    }
}

void copy_begins(const void* p, size_t bytes) { count(p, bytes, &Cell::copies_in_flight, 1); }
void copy_ends(const void* p, size_t bytes) { count(p, bytes, &Cell::copies_in_flight, -1); }
void async_read_begins(const void* p, size_t bytes) { count(p, bytes, &Cell::reads_in_flight, 1); }
void async_read_ends(const void* p, size_t bytes) { count(p, bytes, &Cell::reads_in_flight, -1); }

// ---- barriers ---------------------------------------------------------------------------------------
void warp_join(uint32_t mask) {
    const int first = fiber->warp_idx * 32;
    Stamp all;
    for (int lane = 0; lane < 32; lane++)
        if (mask >> lane & 1) all.join(thread_of(first + lane).stamp);
    for (int lane = 0; lane < 32; lane++) {
        if (!(mask >> lane & 1)) continue;
        thread_of(first + lane).stamp = all;
        next_epoch(first + lane);
    }
}

void warp_join_all(int warp_idx) {
    Fiber* const running = fiber;
    fiber = &block->fibers[warp_idx * 32];
    warp_join(~0u);
    fiber = running;
}

void barrier_arrive(int id) {
    checker->barriers[id].join(thread_of(fiber->linear).stamp);
    next_epoch(fiber->linear);
}

void barrier_release(int id, const uint32_t* waiting) {
    Stamp& all = checker->barriers[id];
    for (int i = 0; i < block->num_threads; i++)
        if (waiting[i >> 5] >> (i & 31) & 1) thread_of(i).stamp.join(all);
    all = Stamp{};
}

void mbarrier_init(uint64_t* barrier) { checker->mbarriers[barrier] = MbarrierState{}; }

void mbarrier_arrive(uint64_t* barrier) {
    checker->mbarriers[barrier].current.join(thread_of(fiber->linear).stamp);
    next_epoch(fiber->linear);
}

void mbarrier_phase(uint64_t* barrier) {
    MbarrierState& m = checker->mbarriers[barrier];
    m.done.join(m.current);
    m.current = Stamp{};
}

void mbarrier_wait(uint64_t* barrier) { thread_of(fiber->linear).stamp.join(checker->mbarriers[barrier].done); }

void proxy_fence() {
    next_epoch(fiber->linear);
    Thread& t = thread_of(fiber->linear);
    t.proxy_fence = t.stamp.clock[fiber->linear];
}

// ---- asynchronous copies ----------------------------------------------------------------------------
// A store has two actors: that of the even number reads shared memory, the other writes global memory.
static int actor_of(const TmaOp& op, bool writes_global) {
    return block->num_threads + int(op.ticket * 2 % ACTORS) + (writes_global ? 1 : 0);
}

void tma_issue(TmaOp& op) {
    op.ticket = ++checker->num_copies;
    Stamp stamp = thread_of(op.issuer).stamp;
    stamp.clock[actor_of(op, false)] = stamp.clock[actor_of(op, true)] = op.ticket;
    checker->copies[op.ticket] = std::move(stamp);
    next_epoch(op.issuer);
}

void tma_access(const TmaOp& op, const void* p, size_t bytes, Kind kind) {
    const char* what = op.is_store ? "a TMA store" : "a TMA load";
    const int actor = actor_of(op, op.is_store && kind == Kind::Write);
    touch_all(
        p, bytes,
        {make_access(op.ticket, actor, false, false), checker->copies[op.ticket], kind == Kind::Write, true, what});
}

void tma_load_done(const TmaOp& op) {
    checker->mbarriers[op.barrier].current.join(checker->copies[op.ticket]);
    checker->copies.erase(op.ticket);
}

static void know_copy(const TmaOp& op, bool writes_global) {
    uint32_t& clock = thread_of(op.issuer).stamp.clock[actor_of(op, writes_global)];
    if (clock < op.ticket) clock = op.ticket;
}

void tma_store_read(const TmaOp& op) { know_copy(op, false); }

void tma_store_done(const TmaOp& op) {
    know_copy(op, true);
    checker->copies.erase(op.ticket);
}

// ---- fences and atomics -----------------------------------------------------------------------------
struct Location {
    uint64_t launch;
    Known known;
};
static std::mutex locations_mutex;
static std::unordered_map<const void*, Location> locations;  // in global memory

static Known snapshot(const Thread& t) {
    BlockClocks own{{block->linear, std::make_shared<const Clock>(t.stamp.clock)}};
    return join(t.stamp.known, std::make_shared<const BlockClocks>(std::move(own)));
}

static void absorb(Thread& t, const Known& known) {
    if (const Clock* own = find(known, block->linear)) join(t.stamp.clock, *own);
    t.stamp.known = join(t.stamp.known, known);
}

void fence(bool gpu_scope) {
    Thread& t = thread_of(fiber->linear);
    absorb(t, t.pending);
    t.pending = nullptr;
    t.released_in_block = snapshot(t);
    if (gpu_scope) t.released = t.released_in_block;
    next_epoch(fiber->linear);
}

static bool is_shared(const void* p) {
    const Space space = find_place(p, 1, "an atomic operation").space;
    return space == Space::DynamicShared || space == Space::StaticShared;
}

void atomic_before(const void* p, size_t bytes, Kind kind, bool releases) {
    access(p, bytes, kind, fiber->linear, kind == Kind::AtomicWrite ? "an atomic operation" : "an atomic load");
    if (kind != Kind::AtomicWrite) return;
    Thread& t = thread_of(fiber->linear);
    const bool shared = is_shared(p);
    const Known known = releases ? snapshot(t) : shared ? t.released_in_block : t.released;
    if (releases) next_epoch(fiber->linear);
    if (!known) return;
    if (shared) {
        Known& at = checker->shared_locations[p];
        at = join(at, known);
        return;
    }
    std::lock_guard<std::mutex> lock(locations_mutex);
    Location& at = locations[p];
    if (at.launch != block->launch_id) at = {block->launch_id, nullptr};
    at.known = join(at.known, known);
}

void atomic_after(const void* p, bool acquires) {
    Thread& t = thread_of(fiber->linear);
    Known known;
    if (is_shared(p)) {
        known = checker->shared_locations[p];
    } else {
        std::lock_guard<std::mutex> lock(locations_mutex);
        const auto it = locations.find(p);
        if (it != locations.end() && it->second.launch == block->launch_id) known = it->second.known;
    }
    if (!known) return;
    if (acquires)
        absorb(t, known);
    else
        t.pending = join(t.pending, known);
}

}  // namespace simt::check
#endif
