// The calls of short_conv.h and of parameters.h for CPU tensors, for tests. The shipped kernels run on the host, thread
// by thread. With HYENAREC_NOTHING defined they do not run at all, so that a call takes only the host's part of its
// time.
#include <cstdlib>

#include "cuda/change.h"
#include "cuda/short_schedule.h"
#include "host_machine.h"

namespace hyenarec::cuda {
namespace {

#ifdef HYENAREC_NOTHING
int64_t launches = 0;
struct Machine {
  template <class Program>
  void start(const Program&, int64_t grid) {
    launches += grid > 0;
  }
};
#else
struct Machine : HostMachine {
  Machine() : HostMachine{std::getenv("HYENAREC_REVERSED") != nullptr} {}
};
#endif

template <class Args, class Start>
const char* run(const Args& args, const Start& start) {
  const char* wrong = refuse(args);
  Machine machine;
  if (!wrong) start(machine);
  return wrong;
}

}  // namespace

int64_t short_conv_workspace(const ShortConvArgs& args) { return refuse(args) ? 0 : short_conv_sums(args); }
const char* short_conv_forward(const ShortConvArgs& args, void*) {
  return run(args, [&](Machine& machine) { start_short_conv(args, machine); });
}
const char* short_conv_backward(const ShortConvArgs& args, void*) {
  return run(args, [&](Machine& machine) { start_short_conv_backward(args, machine); });
}
const char* conv_step(const ConvStepArgs& args, void*) {
  return run(args, [&](Machine& machine) { start_conv_step(args, machine); });
}
const char* change_parameters(const Changes& changes, void*) {
  return run(changes, [&](Machine& machine) { start_changes(changes, machine); });
}

}  // namespace hyenarec::cuda
