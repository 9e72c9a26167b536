// The programs (device.h) of the block low-rank form for moments and parameters.
#include "block_schedule.h"
#include "launch.inc"

namespace hyenarec::cuda {

template cudaError_t launch(const FindBorders&, unsigned, cudaStream_t);
template cudaError_t launch(const MomentsUp&, unsigned, cudaStream_t);
template cudaError_t launch(const MomentsAcross&, unsigned, cudaStream_t);
template cudaError_t launch(const TablesGradient&, unsigned, cudaStream_t);
template cudaError_t launch(const ParametersGradient&, unsigned, cudaStream_t);

}  // namespace hyenarec::cuda
