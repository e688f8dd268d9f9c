// Rendezvous of warps and warpgroups. The last lane to arrive executes the operation for all, so that a collective
// costs one switch per lane. Exited lanes are not waited for.
#include <cstring>

#include "machine.hpp"

namespace simt {

static void run_if_complete(Warp& warp, Rendezvous& r, uint32_t not_to_wake) {
    const uint32_t needed = r.mask & warp.alive;
    if (!r.arrived || r.arrived != needed) return;
    r.arrived = 0;
    r.function(r.arguments, needed);
    warp.ready |= needed & ~not_to_wake;
}

static Rendezvous* find_rendezvous(Warp& warp, uint32_t mask, const char* kind) {
    Rendezvous* unused = nullptr;
    for (Rendezvous& r : warp.rendezvous) {
        if (!r.arrived) {
            if (!unused) unused = &r;
            continue;
        }
        if (r.mask == mask) return &r;
        if (r.mask & mask)
            fail("divergent warp collective: %s with mask %08x overlaps %s with mask %08x that still waits", kind, mask,
                 r.kind, r.mask);
    }
    if (!unused) fail("%s: more than 4 divergent collectives in one warp", kind);
    return unused;
}

void warp_collective(uint32_t mask, const char* kind, void* argument, WarpFunction function) {
    Fiber* f = fiber;
    Warp& warp = *f->warp;
    const uint32_t bit = 1u << f->lane;
    if (!(mask & bit)) fail("%s: lane %d executes it but is not in its mask %08x", kind, f->lane, mask);
    Rendezvous* r = find_rendezvous(warp, mask, kind);
    if (!r->arrived) {
        r->mask = mask;
        r->kind = kind;
        r->function = function;
    } else if (r->kind != kind && strcmp(r->kind, kind) != 0) {
        fail("divergent warp collective: lane %d at %s, other lanes at %s", f->lane, kind, r->kind);
    }
    r->arguments[f->lane] = argument;
    r->arrived |= bit;
    if (r->arrived == (mask & warp.alive))
        run_if_complete(warp, *r, bit);
    else
        block_on(kind, mask, r->arrived);
}

void retry_rendezvous_after_exit(Warp& warp) {
    for (Rendezvous& r : warp.rendezvous) run_if_complete(warp, r, 0);
}

void warpgroup_collective(const char* kind, void* argument, WarpgroupFunction function) {
    Fiber* f = fiber;
    const int group = f->linear >> 7, index = f->linear & 127;
    if (group * 128 + 128 > block->num_threads)
        fail("%s: warpgroup %d is not complete, the block has %d threads", kind, group, block->num_threads);
    WarpgroupRendezvous& r = block->warpgroup[group];
    if (r.arrived && strcmp(r.kind, kind) != 0)
        fail("divergent warpgroup: thread %d of it at %s, others at %s", index, kind, r.kind);
    r.kind = kind;
    r.arguments[index] = argument;
    if (++r.arrived < 128) return block_on(kind, group);
    r.arrived = 0;
    function(r.arguments);
    for (int w = 0; w < 4; w++) block->warp[group * 4 + w].ready |= w == (index >> 5) ? ~(1u << (index & 31)) : ~0u;
}

}  // namespace simt
