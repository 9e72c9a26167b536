// The FFT convolution with blocks of 32 to 512 rows, and the programs that do not depend on a block's size.
#include "buckets.h"
#include "launch.inc"
#include "partition.h"
#include "sums.h"

namespace hyenarec::cuda {

template cudaError_t launch(const Convolve<5>&, unsigned, cudaStream_t);
template cudaError_t launch(const FilterSpectrum<5>&, unsigned, cudaStream_t);
template cudaError_t launch(const FilterGradient<5>&, unsigned, cudaStream_t);
template cudaError_t launch(const Convolve<6>&, unsigned, cudaStream_t);
template cudaError_t launch(const FilterSpectrum<6>&, unsigned, cudaStream_t);
template cudaError_t launch(const FilterGradient<6>&, unsigned, cudaStream_t);
template cudaError_t launch(const Convolve<7>&, unsigned, cudaStream_t);
template cudaError_t launch(const FilterSpectrum<7>&, unsigned, cudaStream_t);
template cudaError_t launch(const FilterGradient<7>&, unsigned, cudaStream_t);
template cudaError_t launch(const Convolve<8>&, unsigned, cudaStream_t);
template cudaError_t launch(const FilterSpectrum<8>&, unsigned, cudaStream_t);
template cudaError_t launch(const FilterGradient<8>&, unsigned, cudaStream_t);
template cudaError_t launch(const Convolve<9>&, unsigned, cudaStream_t);
template cudaError_t launch(const FilterSpectrum<9>&, unsigned, cudaStream_t);
template cudaError_t launch(const FilterGradient<9>&, unsigned, cudaStream_t);

template cudaError_t launch(const AssignBuckets&, unsigned, cudaStream_t);
template cudaError_t launch(const SumRows&, unsigned, cudaStream_t);
template cudaError_t loaded<SumRows>();
template cudaError_t launch(const SumGroups&, unsigned, cudaStream_t);
template cudaError_t launch(const Cross&, unsigned, cudaStream_t);

}  // namespace hyenarec::cuda
