// The calls of short_conv.h on the current device.
#include "calls.cuh"
#include "launch.inc"
#include "short_schedule.h"

namespace hyenarec::cuda {
namespace {

template <class Args, class Start>
const char* run(const Args& args, void* stream, const Start& start) {
  if (const char* wrong = refuse(args)) return wrong;
  Device device{static_cast<cudaStream_t>(stream)};
  if (args.channels > 0) start(device);
  return device.status == cudaSuccess ? nullptr : cudaGetErrorString(device.status);
}

}  // namespace

int64_t short_conv_workspace(const ShortConvArgs& args) {
  return refuse(args) || args.channels == 0 ? 0 : short_conv_sums(args);
}
const char* short_conv_forward(const ShortConvArgs& args, void* stream) {
  return run(args, stream, [&](Device& device) { start_short_conv(args, device); });
}
const char* short_conv_backward(const ShortConvArgs& args, void* stream) {
  return run(args, stream, [&](Device& device) { start_short_conv_backward(args, device); });
}
const char* conv_step(const ConvStepArgs& args, void* stream) {
  return run(args, stream, [&](Device& device) { start_conv_step(args, device); });
}

}  // namespace hyenarec::cuda
