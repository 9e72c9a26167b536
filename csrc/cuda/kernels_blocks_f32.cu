// The passes over rows of Float32 in block low-rank form.
#include "block_schedule.h"
#include "launch.inc"

namespace hyenarec::cuda {

template cudaError_t launch(const TileMoments<Float32, 1>&, unsigned, cudaStream_t);
template cudaError_t launch(const ConvolveTiles<Float32, false>&, unsigned, cudaStream_t);
template cudaError_t launch(const ConvolveTiles<Float32, true>&, unsigned, cudaStream_t);
template cudaError_t launch(const ConvolveTilesBackward<Float32, false>&, unsigned, cudaStream_t);
template cudaError_t launch(const ConvolveTilesBackward<Float32, true>&, unsigned, cudaStream_t);
template cudaError_t launch(const CorrelateTiles<Float32>&, unsigned, cudaStream_t);
template cudaError_t launch(const ZeroRest<Float32>&, unsigned, cudaStream_t);
template cudaError_t launch(const PrepareBlocks<Float32>&, unsigned, cudaStream_t);

}  // namespace hyenarec::cuda
