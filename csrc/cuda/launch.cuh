// Launching a program (device.h). The functions are defined in launch.inc and instantiated in the kernels_*.cu, which
// are compiled in parallel.
#pragma once
#include <cuda_runtime.h>

#include "device.h"

namespace hyenarec::cuda {

template <class Program>
cudaError_t launch(const Program& program, unsigned grid, cudaStream_t stream);

// Success where the build has code of this program for the current device.
template <class Program>
cudaError_t loaded();

}  // namespace hyenarec::cuda
