// The calls of parameters.h on the current device.
#include "calls.cuh"
#include "change.h"
#include "launch.inc"

namespace hyenarec::cuda {

const char* change_parameters(const Changes& changes, void* stream) {
  if (const char* wrong = refuse(changes)) return wrong;
  Device device{static_cast<cudaStream_t>(stream)};
  start_changes(changes, device);
  return device.status == cudaSuccess ? nullptr : cudaGetErrorString(device.status);
}

}  // namespace hyenarec::cuda
