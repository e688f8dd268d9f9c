// Fibers and their scheduler. A warp's runnable lanes are bits of a mask; there are no queues.
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "mbarrier.hpp"
#include "machine.hpp"

// Saves the callee-saved registers on the old stack and restores them from the new one.
asm(R"(
.text
.p2align 4
.globl simt_swap_stacks
.type simt_swap_stacks,@function
simt_swap_stacks:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp,(%rdi)
  movq %rsi,%rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size simt_swap_stacks,.-simt_swap_stacks
)");

namespace simt {

__thread Block* block = nullptr;
__thread Fiber* fiber = nullptr;

void fail(const char* format, ...) {
    char text[4096];
    const uint3 b = block->block_idx;
    int used = snprintf(text, sizeof text, "kernel %s, block (%u,%u,%u)", block->kernel, b.x, b.y, b.z);
    if (fiber) {
        const uint3 t = fiber->thread_idx;
        used += snprintf(text + used, sizeof text - used, ", thread (%u,%u,%u)", t.x, t.y, t.z);
    }
    used += snprintf(text + used, sizeof text - used, ": ");
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text + used, sizeof text - used, format, arguments);
    va_end(arguments);
    block->failed = true;
    *block->error = text;
    fiber = nullptr;
    void* dropped;
    swap_stacks(&dropped, block->main_sp);  // the fibers of this block are dropped
    abort();
}

static bool waits_alike(const Fiber& a, const Fiber& b) {
    return a.wait_what == b.wait_what && a.wait_a == b.wait_a && a.wait_b == b.wait_b;
}

// One line per run of lanes that wait for the same thing.
[[noreturn]] static void report_deadlock() {
    std::string report = "DEADLOCK, every live thread is blocked:";
    char line[256];
    const Fiber* first = nullptr;
    for (int w = 0; w < block->num_warps; w++) {
        const uint32_t alive = block->warp[w].alive;
        for (int lane = 0; lane < 32;) {
            if (!(alive >> lane & 1)) {
                lane++;
                continue;
            }
            const Fiber& f = block->fibers[w * 32 + lane];
            if (!first) first = &f;
            int end = lane + 1;
            while (end < 32 && (alive >> end & 1) && waits_alike(block->fibers[w * 32 + end], f)) end++;
            snprintf(line, sizeof line, "\n  warp %d lanes %d-%d: %s 0x%llx %llu%s", w, lane, end - 1, f.wait_what,
                     (unsigned long long)f.wait_a, (unsigned long long)f.wait_b, describe_mbarrier_wait(f).c_str());
            if (report.size() < 3000) report += line;
            lane = end;
        }
    }
    fiber = const_cast<Fiber*>(first);  // the report is about this thread and all others
    fail("%s", report.c_str());
}

uint64_t next_random() {
    uint64_t& x = block->random;
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    return x;
}

static int pick_lane(uint32_t ready) {
    switch (block->options.schedule) {
        case 0: return __builtin_ctz(ready);
        case 1: return 31 - __builtin_clz(ready);
        default: {
            const int from = next_random() & 31;
            const uint32_t later = ready >> from << from;
            return __builtin_ctz(later ? later : ready);
        }
    }
}

Fiber* pick() {
    Block* b = block;
    for (;;) {
        int w = b->options.schedule == 2 ? int(next_random() % b->num_warps) : b->current_warp;
        for (int i = 0; i < b->num_warps; i++, w = (w + 1 == b->num_warps ? 0 : w + 1)) {
            const uint32_t ready = b->warp[w].ready;
            if (!ready) continue;
            const int lane = pick_lane(ready);
            b->warp[w].ready &= ~(1u << lane);
            b->current_warp = w;
            return &b->fibers[w * 32 + lane];
        }
        if (!b->loads.empty()) {
            run_one_load();
            continue;
        }
        if (b->num_alive == 0) return nullptr;
        report_deadlock();
    }
}

void switch_away() {
    Fiber* from = fiber;
    Fiber* to = pick();
    if (to == from) return;
    block->num_switches++;
    fiber = to;
    swap_stacks(&from->sp, to ? to->sp : block->main_sp);
}

void block_on(const char* what, uint64_t a, uint64_t b) {
    fiber->wait_what = what;
    fiber->wait_a = a;
    fiber->wait_b = b;
    switch_away();
}

void wake(int linear) { block->warp[linear >> 5].ready |= 1u << (linear & 31); }

void yield() {
    wake(fiber->linear);
    block->current_warp = (block->current_warp + 1) % block->num_warps;
    switch_away();
}

static void exit_thread() {
    check_nothing_in_flight();
    finish_stores_of_exiting_thread();
    Warp& warp = *fiber->warp;
    warp.alive &= ~(1u << fiber->lane);
    block->num_alive--;
    retry_rendezvous_after_exit(warp);
    retry_barriers_after_exit();
    switch_away();
    abort();  // an ended fiber is never resumed
}

void fiber_main() {
    block->entry(block->entry_argument);
    exit_thread();
}

}  // namespace simt
