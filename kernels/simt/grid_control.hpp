// griddepcontrol. The emulator runs one grid at a time, so both instructions only check their use.
#pragma once

namespace simt {

void grid_launch_dependents();
void grid_dependency_wait();

}  // namespace simt
