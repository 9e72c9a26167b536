// What the calls of every operator share on the current device.
#pragma once
#include <string>

#include "launch.cuh"

namespace hyenarec::cuda {

// Launches in order; after a failure nothing more is launched.
struct Device {
  cudaStream_t stream;
  cudaError_t status = cudaSuccess;

  template <class Program>
  void start(const Program& program, int64_t grid) {
    if (status != cudaSuccess || grid == 0) return;
    status = grid > INT32_MAX ? cudaErrorInvalidConfiguration : launch(program, unsigned(grid), stream);
  }
};

inline cudaError_t attribute(cudaDeviceAttr name, int* value) {
  int device;
  cudaError_t status = cudaGetDevice(&device);
  return status == cudaSuccess ? cudaDeviceGetAttribute(value, name, device) : status;
}

inline const char* told(const std::string& message) {
  thread_local std::string text;
  text = message;
  return text.c_str();
}

}  // namespace hyenarec::cuda
