// The passes over rows of Float16 in block low-rank form.
#include "block_schedule.h"
#include "launch.inc"

namespace hyenarec::cuda {

template cudaError_t launch(const TileMoments<Float16, 1>&, unsigned, cudaStream_t);
template cudaError_t launch(const TileMoments<Float16, 2>&, unsigned, cudaStream_t);
template cudaError_t launch(const ConvolveTiles<Float16, false>&, unsigned, cudaStream_t);
template cudaError_t launch(const ConvolveTiles<Float16, true>&, unsigned, cudaStream_t);
template cudaError_t launch(const ConvolveTilesBackward<Float16, false>&, unsigned, cudaStream_t);
template cudaError_t launch(const ConvolveTilesBackward<Float16, true>&, unsigned, cudaStream_t);
template cudaError_t launch(const CorrelateTiles<Float16>&, unsigned, cudaStream_t);
template cudaError_t launch(const ZeroRest<Float16>&, unsigned, cudaStream_t);
template cudaError_t launch(const PrepareBlocks<Float16>&, unsigned, cudaStream_t);

}  // namespace hyenarec::cuda
