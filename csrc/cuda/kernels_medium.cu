// The FFT convolution with blocks of 1,024 to 4,096 rows; the first, which is the largest where shared memory is
// scarce, also with filters in sections (partition.h).
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
