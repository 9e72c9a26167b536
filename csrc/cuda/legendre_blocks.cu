// The calls of legendre_blocks.h on the current device.
#include "block_schedule.h"

#include "calls.cuh"

namespace hyenarec {
namespace {

using namespace cuda;

const char* run(const LegendreBlocksArgs& args, bool backward, void* stream) {
  if (const char* wrong = wrong_blocks(args)) return wrong;
  Device device{static_cast<cudaStream_t>(stream)};
  run_blocks(args, backward, device);
  return device.status == cudaSuccess ? nullptr : told(cudaGetErrorString(device.status));
}

}  // namespace

int64_t legendre_blocks_workspace(const LegendreBlocksArgs& args, bool backward) {
  if (wrong_blocks(args)) return 0;  // the call says what
  DryRun dry;
  LegendreBlocksArgs sizes = args;
  sizes.workspace = nullptr;
  return run_blocks(sizes, backward, dry);
}

const char* legendre_blocks_forward(const LegendreBlocksArgs& args, void* stream) { return run(args, false, stream); }
const char* legendre_blocks_backward(const LegendreBlocksArgs& args, void* stream) { return run(args, true, stream); }

}  // namespace hyenarec
