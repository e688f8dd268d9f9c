// griddepcontrol, fence.proxy.async, setmaxnreg, and what a thread must not leave behind.
#include "grid_control.hpp"

#include "check.hpp"
#include "machine.hpp"
#include "proxy_fence.hpp"
#include "warpgroup_registers.hpp"

namespace simt {

void proxy_fence() { check::proxy_fence(); }

void grid_launch_dependents() {}

void grid_dependency_wait() {
    if (fiber->wrote_global)
        fail("griddepcontrol.wait after the thread wrote global memory: the grid before may still be using it");
}

// ---- setmaxnreg -------------------------------------------------------------------------------------
// The pool is counted in registers per thread of a warpgroup.
struct RegisterRequest {
    int count;
    bool increase;
};

static void grant(int group, int count) {
    block->registers_free -= count - block->fibers[group * 128].registers;
    for (int t = 0; t < 128; t++) block->fibers[group * 128 + t].registers = count;
}

static bool fits(int group, int count) { return count - block->fibers[group * 128].registers <= block->registers_free; }

static void grant_waiting() {
    auto& waits = block->register_waits;
    for (size_t i = 0; i < waits.size();) {
        const RegisterWait wait = waits[i];
        if (!fits(wait.group, wait.count)) {
            i++;
            continue;
        }
        grant(wait.group, wait.count);
        for (int t = 0; t < 128; t++) wake(wait.group * 128 + t);
        waits.erase(waits.begin() + long(i));
    }
}

static void apply(void** arguments) {
    const RegisterRequest& first = *static_cast<RegisterRequest*>(arguments[0]);
    const int group = fiber->linear >> 7, had = block->fibers[group * 128].registers;
    for (int t = 1; t < 128; t++) {
        const RegisterRequest& other = *static_cast<RegisterRequest*>(arguments[t]);
        if (other.count != first.count || other.increase != first.increase)
            fail("setmaxnreg: thread %d of the warpgroup asks for %d registers, thread 0 for %d", t, other.count,
                 first.count);
    }
    if (first.increase ? first.count < had : first.count > had)
        fail("setmaxnreg.%s to %d registers, the warpgroup has %d", first.increase ? "inc" : "dec", first.count, had);
    if (!fits(group, first.count)) {
        block->register_waits.push_back({group, first.count});
        return;
    }
    grant(group, first.count);
    grant_waiting();
}

void set_max_registers(int count, bool increase) {
    if (count < 24 || count > 256 || count % 8)
        fail("setmaxnreg: %d registers, expected a multiple of 8 from 24 to 256", count);
    RegisterRequest request{count, increase};
    warpgroup_collective(increase ? "setmaxnreg.inc" : "setmaxnreg.dec", &request, apply);
    while (fiber->registers != count)
        block_on("setmaxnreg.inc (registers free, wanted)", uint64_t(block->registers_free), uint64_t(count));
}

// ---- thread exit ------------------------------------------------------------------------------------
void check_nothing_in_flight() {
    if (!fiber->cp_async.empty()) fail("the thread ends with %zu cp.async never waited for", fiber->cp_async.size());
    if (fiber->wgmma_unwaited) fail("the thread ends with a wgmma never waited for (wgmma.wait_group 0 is missing)");
}

}  // namespace simt
