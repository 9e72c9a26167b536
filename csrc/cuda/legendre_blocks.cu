// The calls of legendre_blocks.h on the current device.
#include "block_runs.h"

#include "calls.cuh"

namespace hyenarec {
namespace {

using namespace cuda;

const char* run(const LegendreBlocksArgs& args, bool backward, void* stream) {
  if (const char* wrong = wrong_blocks(args)) return wrong;
  Device device{static_cast<cudaStream_t>(stream)};
  int shared;
  device.status = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, &shared);
  if (device.status == cudaSuccess) run_blocks(args, backward, shared, device);
  return device.status == cudaSuccess ? nullptr : told(cudaGetErrorString(device.status));
}

}  // namespace

int64_t legendre_blocks_workspace(const LegendreBlocksArgs& args, bool backward) {
  if (wrong_blocks(args)) return 0;  // the call itself says what is wrong
  DryRun dry;
  LegendreBlocksArgs sizes = args;
  sizes.workspace = nullptr;
  int shared;
  bool asked = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, &shared) == cudaSuccess;
  return asked ? run_blocks(sizes, backward, shared, dry) : 0;  // the call asks again, and says what is wrong
}

const char* legendre_blocks_forward(const LegendreBlocksArgs& args, void* stream) { return run(args, false, stream); }
const char* legendre_blocks_backward(const LegendreBlocksArgs& args, void* stream) { return run(args, true, stream); }

}  // namespace hyenarec
