// The calls of long_conv.h on the current device.
#include <string>

#include "calls.cuh"
#include "schedule.h"

namespace hyenarec {
namespace {

using namespace cuda;

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

// Makes the launches on `machine`, with blocks as large as `shared` bytes of shared memory hold. Returns the bytes of
// workspace that they took.
template <class Machine>
int64_t schedule(const LongConvArgs& args, bool backward, int shared, Machine& machine) {
  auto with_top = [&](auto top) {
    Schedule<Machine, decltype(top)::value> schedule(args, machine);
    backward ? schedule.backward() : schedule.forward();
    return schedule.workspace();
  };
  return top_of(shared) == kScarce ? with_top(Index<kScarce>{}) : with_top(Index<kLargest>{});
}

const char* run(const LongConvArgs& args, bool backward, void* stream) {
  if (const char* wrong = check(args)) return wrong;
  if (args.channels == 0) return nullptr;
  Device device{static_cast<cudaStream_t>(stream)};
  int shared;
  device.status = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, &shared);
  if (device.status == cudaSuccess) schedule(args, backward, shared, device);
  return device.status == cudaSuccess ? nullptr : told(cudaGetErrorString(device.status));
}

}  // namespace

int64_t long_conv_workspace(const LongConvArgs& args, bool backward) {
  if (check(args) || args.channels == 0) return 0;
  DryRun dry;
  LongConvArgs sizes = args;
  sizes.workspace = nullptr;
  int shared;
  bool asked = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, &shared) == cudaSuccess;
  return asked ? schedule(sizes, backward, shared, dry) : 0;  // the call asks again, and says what is wrong
}

const char* long_conv_forward(const LongConvArgs& args, void* stream) { return run(args, false, stream); }
const char* long_conv_backward(const LongConvArgs& args, void* stream) { return run(args, true, stream); }

const char* long_conv_unsupported() {
  int major, minor, shared;
  cudaError_t status = attribute(cudaDevAttrComputeCapabilityMajor, &major);
  if (status == cudaSuccess) status = attribute(cudaDevAttrComputeCapabilityMinor, &minor);
  if (status == cudaSuccess) status = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, &shared);
  if (status != cudaSuccess) return told(cudaGetErrorString(status));
  std::string capability = std::to_string(major) + "." + std::to_string(minor);
  if (major < 8 || top_of(shared) == 0)
    return told("needs compute capability 8.0 and " + std::to_string(Convolve<kScarce>::kSharedBytes) +
                " bytes of shared memory a block; it has " + capability + " and " + std::to_string(shared));
  status = loaded<SumRows>();  // one program stands for all, which are compiled for the same devices
  if (status != cudaSuccess)
    return told("not compiled for compute capability " + capability + " (" + cudaGetErrorString(status) +
                "); HYENAREC_CUDA_ARCHS names what to compile for");
  return nullptr;
}

}  // namespace hyenarec
