// Blocks of 1,024 to 4,096 rows, the first with filters in parts: the largest where shared memory is scarce.
#include "launch.inc"
#include "partition.h"

namespace hyenarec::cuda {

template cudaError_t launch(const Convolve<10>&, unsigned, cudaStream_t);
template cudaError_t launch(const FilterSpectrum<10>&, unsigned, cudaStream_t);
template cudaError_t launch(const FilterGradient<10>&, unsigned, cudaStream_t);
template cudaError_t launch(const Convolve<11>&, unsigned, cudaStream_t);
template cudaError_t launch(const FilterSpectrum<11>&, unsigned, cudaStream_t);
template cudaError_t launch(const FilterGradient<11>&, unsigned, cudaStream_t);
template cudaError_t launch(const Convolve<12>&, unsigned, cudaStream_t);
template cudaError_t launch(const FilterSpectrum<12>&, unsigned, cudaStream_t);
template cudaError_t launch(const FilterGradient<12>&, unsigned, cudaStream_t);

template cudaError_t launch(const Combine<kScarce>&, unsigned, cudaStream_t);

}  // namespace hyenarec::cuda
