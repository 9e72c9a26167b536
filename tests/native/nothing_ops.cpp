// The ops of mixer_ops.h, and the ops that they consist of, for CPU tensors, in namespace hyenarec_nothing. They run no
// kernels (short_host.cpp); `host_launches` returns how many would have been launched.
#define HYENAREC_NOTHING
#include "cuda/block_runs.h"
#include "cuda/legendre_schedule.h"
#include "cuda/mixer_ops.h"
#include "no_device.h"
#include "short_host.cpp"

namespace hyenarec {
namespace {

using namespace cuda;

constexpr int64_t kBlocks = 4;  // per launch
constexpr int kShared = 227 << 10;

template <class AnyMachine>
int64_t run(const LegendreConvArgs& args, bool backward, AnyMachine&& machine) {
  LegendreSchedule<std::remove_reference_t<AnyMachine>, kBlocks> schedule(args, kShared, machine);
  backward ? schedule.backward() : schedule.forward();
  return schedule.workspace();
}

template <class AnyMachine>
int64_t run(const LegendreBlocksArgs& args, bool backward, AnyMachine&& machine) {
  return run_blocks(args, backward, kShared, machine);
}

template <class Args>
const char* call(const Args& args, bool backward) {
  run(args, backward, Machine());
  return nullptr;
}

}  // namespace

int64_t legendre_conv_workspace(const LegendreConvArgs& args, bool backward) {
  LegendreConvArgs sizes = args;
  sizes.rows.workspace = nullptr;
  return run(sizes, backward, DryRun{});
}
const char* legendre_conv_forward(const LegendreConvArgs& args, void*) { return call(args, false); }
const char* legendre_conv_backward(const LegendreConvArgs& args, void*) { return call(args, true); }

int64_t legendre_blocks_workspace(const LegendreBlocksArgs& args, bool backward) {
  LegendreBlocksArgs sizes = args;
  sizes.workspace = nullptr;
  return run(sizes, backward, DryRun{});
}
const char* legendre_blocks_forward(const LegendreBlocksArgs& args, void*) { return call(args, false); }
const char* legendre_blocks_backward(const LegendreBlocksArgs& args, void*) { return call(args, true); }

}  // namespace hyenarec

extern "C" int64_t host_launches() { return hyenarec::cuda::launches; }

STABLE_TORCH_LIBRARY(hyenarec_nothing, m) {
  hyenarec::cuda_ops::define_short(m);
  hyenarec::cuda_ops::define_legendre(m);
  hyenarec::cuda_ops::define_blocks(m);
  hyenarec::cuda_ops::define_mixer(m);
}
STABLE_TORCH_LIBRARY_IMPL(hyenarec_nothing, CPU, m) {
  hyenarec::cuda_ops::implement_short<Current>(m);
  hyenarec::cuda_ops::implement_legendre<Current>(m);
  hyenarec::cuda_ops::implement_blocks<Current>(m);
  hyenarec::cuda_ops::implement_mixer<Current>(m);
}
