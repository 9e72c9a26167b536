// The passes over rows of Float32 in block low-rank form.
#include "block_schedule.h"
#include "launch.inc"

namespace hyenarec::cuda {

template cudaError_t launch(const TileMoments<Float32, kPlanesOf<Float32>>&, unsigned, cudaStream_t);
template cudaError_t launch(const ConvolveTiles<Float32>&, unsigned, cudaStream_t);
template cudaError_t launch(const ConvolveTilesBackward<Float32>&, unsigned, cudaStream_t);
template cudaError_t launch(const CorrelateTiles<Float32>&, unsigned, cudaStream_t);
template cudaError_t launch(const ZeroRest<Float32>&, unsigned, cudaStream_t);
template cudaError_t launch(const PrepareBlocks<kPlanesOf<Float32>>&, unsigned, cudaStream_t);

}  // namespace hyenarec::cuda
