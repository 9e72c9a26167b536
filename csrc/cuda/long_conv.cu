// The calls of long_conv.h on the current device.
#include <string>

#include "launch.cuh"
#include "schedule.h"

namespace hyenarec {
namespace {

using namespace cuda;

// Launches in order; the first failure ends the call.
struct Device {
  cudaStream_t stream;
  cudaError_t status = cudaSuccess;

  template <class Program>
  void start(const Program& program, int64_t grid) {
    if (status != cudaSuccess || grid == 0) return;
    status = grid > INT32_MAX ? cudaErrorInvalidConfiguration : launch(program, unsigned(grid), stream);
  }
};

const char* told(const std::string& message) {
  thread_local std::string text;
  text = message;
  return text.c_str();
}

const char* check(const LongConvArgs& args) {
  // Positions of two sequences' ends are added in 32 bits; offsets in memory have 64.
  constexpr int64_t kMostRows = 1 << 30;
  if (args.dtype == Dtype::f64) return "x: expected float32, bfloat16 or float16";
  if (args.rows >= kMostRows || args.taps >= kMostRows || args.sequences >= kMostRows)
    return told("x, filter: more than " + std::to_string(kMostRows) + " rows, sequences or taps");
  if (args.channels >= kMostRows || args.groups < 1 || args.channels % args.groups)
    return "filter: its groups do not divide the channels";
  return nullptr;
}

const char* run(const LongConvArgs& args, void* stream, void (Schedule<Device>::*pass)()) {
  if (const char* wrong = check(args)) return wrong;
  if (args.channels == 0) return nullptr;
  Device device{static_cast<cudaStream_t>(stream)};
  Schedule<Device> schedule(args, device);
  (schedule.*pass)();
  return device.status == cudaSuccess ? nullptr : told(cudaGetErrorString(device.status));
}

}  // namespace

int64_t long_conv_workspace(const LongConvArgs& args, bool backward) {
  if (check(args) || args.channels == 0) return 0;
  DryRun dry;
  LongConvArgs sizes = args;
  sizes.workspace = nullptr;
  Schedule<DryRun> schedule(sizes, dry);
  backward ? schedule.backward() : schedule.forward();
  return schedule.workspace();
}

const char* long_conv_forward(const LongConvArgs& args, void* stream) {
  return run(args, stream, &Schedule<Device>::forward);
}
const char* long_conv_backward(const LongConvArgs& args, void* stream) {
  return run(args, stream, &Schedule<Device>::backward);
}

const char* long_conv_unsupported() {
  int device, major, shared;
  cudaError_t status = cudaGetDevice(&device);
  if (status == cudaSuccess) status = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  if (status == cudaSuccess)
    status = cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (status != cudaSuccess) return told(cudaGetErrorString(status));
  constexpr int kNeeded = Convolve<kLargest>::kSharedBytes;
  if (major < 8 || shared < kNeeded)
    return told("needs compute capability 8.0 and " + std::to_string(kNeeded) +
                " bytes of shared memory a block; the device has " + std::to_string(major) + ".x and " +
                std::to_string(shared));
  return nullptr;
}

}  // namespace hyenarec
