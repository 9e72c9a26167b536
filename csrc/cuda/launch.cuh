// Launching a program: one kernel for all of them. Defined for each program in one kernels_*.cu.
#pragma once
#include <cuda_runtime.h>

#include "device.h"

namespace hyenarec::cuda {

struct DeviceBlock {
  template <class F>
  __device__ __forceinline__ void phase(const F& f) {
    f(int(threadIdx.x));
    __syncthreads();
  }
};

template <class Program>
__global__ void __launch_bounds__(Program::kThreads, Program::kBlocks) run(const __grid_constant__ Program program) {
  extern __shared__ float4 shared[];
  DeviceBlock block;
  program(block, blockIdx.x, shared);
}

// Why a launch failed, or cudaSuccess.
template <class Program>
cudaError_t launch(const Program& program, unsigned grid, cudaStream_t stream);

}  // namespace hyenarec::cuda
