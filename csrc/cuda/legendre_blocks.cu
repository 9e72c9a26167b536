// The calls of legendre_blocks.h on the current device.
#include <string>

#include "block_schedule.h"
#include "launch.cuh"

namespace hyenarec {
namespace {

using namespace cuda;

struct Device {
  cudaStream_t stream;
  cudaError_t status = cudaSuccess;

  template <class Program>
  void start(const Program& program, int64_t grid) {
    if (status != cudaSuccess || grid == 0) return;
    status = grid > INT32_MAX ? cudaErrorInvalidConfiguration : launch(program, unsigned(grid), stream);
  }
};

const char* run(const LegendreBlocksArgs& args, bool backward, void* stream) {
  if (const char* wrong = wrong_blocks(args)) return wrong;
  Device device{static_cast<cudaStream_t>(stream)};
  run_blocks(args, backward, device);
  return device.status == cudaSuccess ? nullptr : cudaGetErrorString(device.status);
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
