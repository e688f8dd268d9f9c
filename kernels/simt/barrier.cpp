// __syncthreads and the named barriers bar.sync, bar.arrive.
#include "check.hpp"
#include "machine.hpp"

namespace simt {

static void release(int id) {
    Barrier& b = block->barrier[id];
    check::barrier_release(id, b.waiting);
    for (int w = 0; w < block->num_warps; w++) {
        block->warp[w].ready |= b.waiting[w];
        b.waiting[w] = 0;
    }
    b.arrived = 0;
    b.needed = 0;
}

void barrier_sync(int id, int num_threads, bool wait) {
    if (id < 0 || id >= BARRIERS) fail("named barrier %d: there are %d", id, BARRIERS);
    if (num_threads >= 0 && (num_threads % 32 || num_threads == 0))
        fail("named barrier %d: %d threads, expected a multiple of the warp size", id, num_threads);
    Barrier& b = block->barrier[id];
    Fiber* f = fiber;
    if (b.arrived && b.needed != num_threads)
        fail("named barrier %d is used with %d threads while others wait for %d (-1: all)", id, num_threads, b.needed);
    check::barrier_arrive(id);
    b.needed = num_threads;
    b.arrived++;
    if (wait) b.waiting[f->warp_idx] |= 1u << f->lane;
    if (b.arrived == (num_threads < 0 ? block->num_alive : num_threads)) {
        release(id);
        block->warp[f->warp_idx].ready &= ~(1u << f->lane);  // this thread runs on
        return;
    }
    if (wait) block_on(num_threads < 0 ? "__syncthreads" : "bar.sync", id, num_threads < 0 ? 0 : num_threads);
}

void retry_barriers_after_exit() {
    for (int id = 0; id < BARRIERS; id++) {
        const Barrier& b = block->barrier[id];
        if (b.arrived && b.needed < 0 && b.arrived == block->num_alive) release(id);
    }
}

}  // namespace simt
