#include "machine.hpp"
namespace simt {
void run_one_load() {}
void check_nothing_in_flight() {}
void finish_stores_of_exiting_thread() {}
}  // namespace simt
