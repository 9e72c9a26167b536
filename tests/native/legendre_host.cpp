// The programs and schedule of legendre_conv.h on the host, for tests (host_test.cpp has those of long_conv.h).
// tests/kernels/test_toeplitz_host.py compiles this into libraries. HYENAREC_BLOCKS limits the blocks of a launch, so
// that each takes several rounds; HYENAREC_SHARED is the shared memory of a block.
#include "cuda/legendre_schedule.h"
#include "host_machine.h"

#ifndef HYENAREC_BLOCKS
#define HYENAREC_BLOCKS 4
#endif

namespace {

using namespace hyenarec;
using namespace hyenarec::cuda;

template <class Machine>
int64_t run(const LegendreConvArgs& args, bool backward, Machine&& machine) {
  LegendreSchedule<std::remove_reference_t<Machine>, HYENAREC_BLOCKS> schedule(args, HYENAREC_SHARED, machine);
  backward ? schedule.backward() : schedule.forward();
  return schedule.workspace();
}

}  // namespace

extern "C" {

int64_t legendre_args_size() { return sizeof(LegendreConvArgs); }

int64_t legendre_workspace(const LegendreConvArgs* args, bool backward) { return run(*args, backward, DryRun{}); }

void legendre_run(const LegendreConvArgs* args, bool backward, bool reversed) {
  run(*args, backward, HostMachine{reversed});
}

}  // extern "C"
