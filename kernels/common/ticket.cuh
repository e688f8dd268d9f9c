// Tickets: the last of several blocks goes on with what all of them have written to global memory.
//
//     write partial results;
//     if (!is_last(team, counter, count, flag)) return;
//     read the partial results of all, in an order that does not depend on who was last;
#pragma once
#include "ptx.cuh"
#include "team.cuh"

// Whether this team is the last of `count` that ask: the same answer for all of its threads. What any thread of any of the
// teams wrote before is visible to the last one after. *counter is zero before the launch, and the last team leaves it at
// zero. `flag` lies in shared memory; nothing else may use it from this call to the team's next sync.
template <class Team>
__device__ __forceinline__ bool is_last(const Team& team, uint32_t* counter, uint32_t count, uint32_t* flag) {
    __threadfence();
    team.sync();
    if (team.thread() == 0) {
        *flag = atom_add_acq_rel_gpu(counter, 1u) == count - 1;
        if (*flag) *counter = 0;
    }
    team.sync();
    return *flag != 0;
}
