// The calls of legendre_conv.h on the current device.
#include "legendre_schedule.h"

#include "calls.cuh"

namespace hyenarec {
namespace {

using namespace cuda;

const char* check(const LegendreConvArgs& args) {
  constexpr int64_t kMostRows = 1 << 30;  // positions are added in 32 bits; offsets in memory have 64
  const LongConvArgs& rows = args.rows;
  if (rows.dtype == Dtype::f64 || args.parameters == Dtype::f64 || args.skip_dtype == Dtype::f64)
    return "float64 is not served";
  if (rows.rows >= kMostRows || rows.sequences >= kMostRows || rows.sequences * rows.rows / kColumnRows >= kMostRows)
    return told("x: more than " + std::to_string(kMostRows) + " rows or sequences");
  if (rows.channels >= kMostRows || rows.groups < 1 || rows.channels % rows.groups)
    return "coefficients: its groups do not divide the channels";
  if (legendre_conv_taps(args) > kMostToeplitzTaps)
    return told("horizon: more than " + std::to_string(kMostToeplitzTaps) + " taps");
  return nullptr;
}

template <class Machine>
int64_t schedule(const LegendreConvArgs& args, bool backward, int shared, Machine& machine) {
  LegendreSchedule<Machine> schedule(args, shared, machine);
  backward ? schedule.backward() : schedule.forward();
  return schedule.workspace();
}

const char* run(const LegendreConvArgs& args, bool backward, void* stream) {
  if (const char* wrong = check(args)) return wrong;
  if (args.rows.channels == 0) return nullptr;
  Device device{static_cast<cudaStream_t>(stream)};
  int shared;
  device.status = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, &shared);
  if (device.status == cudaSuccess) schedule(args, backward, shared, device);
  return device.status == cudaSuccess ? nullptr : told(cudaGetErrorString(device.status));
}

}  // namespace

int64_t legendre_conv_workspace(const LegendreConvArgs& args, bool backward) {
  if (check(args) || args.rows.channels == 0) return 0;
  DryRun dry;
  LegendreConvArgs sizes = args;
  sizes.rows.workspace = nullptr;
  int shared;
  bool asked = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, &shared) == cudaSuccess;
  return asked ? schedule(sizes, backward, shared, dry) : 0;  // the call asks again, and says what is wrong
}

const char* legendre_conv_forward(const LegendreConvArgs& args, void* stream) { return run(args, false, stream); }
const char* legendre_conv_backward(const LegendreConvArgs& args, void* stream) { return run(args, true, stream); }

}  // namespace hyenarec
