// The FFT convolution with blocks of 8,192 and 16,384 rows; the largest also with filters in sections (partition.h).
#include "launch.inc"
#include "partition.h"

namespace hyenarec::cuda {

template cudaError_t launch(const Convolve<13>&, unsigned, cudaStream_t);
template cudaError_t launch(const FilterSpectrum<13>&, unsigned, cudaStream_t);
template cudaError_t launch(const FilterGradient<13>&, unsigned, cudaStream_t);
template cudaError_t launch(const Convolve<14>&, unsigned, cudaStream_t);
template cudaError_t launch(const FilterSpectrum<14>&, unsigned, cudaStream_t);
template cudaError_t launch(const FilterGradient<14>&, unsigned, cudaStream_t);

template cudaError_t launch(const Combine<kLargest>&, unsigned, cudaStream_t);

}  // namespace hyenarec::cuda
