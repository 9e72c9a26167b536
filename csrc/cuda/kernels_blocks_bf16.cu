// The passes over rows of Bfloat16 in block low-rank form.
#include "block_schedule.h"
#include "launch.inc"

namespace hyenarec::cuda {

template cudaError_t launch(const TileMoments<Bfloat16, 1>&, unsigned, cudaStream_t);
template cudaError_t launch(const TileMoments<Bfloat16, 2>&, unsigned, cudaStream_t);
template cudaError_t launch(const ConvolveTiles<Bfloat16, false>&, unsigned, cudaStream_t);
template cudaError_t launch(const ConvolveTiles<Bfloat16, true>&, unsigned, cudaStream_t);
template cudaError_t launch(const ConvolveTilesBackward<Bfloat16, false>&, unsigned, cudaStream_t);
template cudaError_t launch(const ConvolveTilesBackward<Bfloat16, true>&, unsigned, cudaStream_t);
template cudaError_t launch(const CorrelateTiles<Bfloat16>&, unsigned, cudaStream_t);
template cudaError_t launch(const ZeroRest<Bfloat16>&, unsigned, cudaStream_t);
template cudaError_t launch(const PrepareBlocks<Bfloat16>&, unsigned, cudaStream_t);

}  // namespace hyenarec::cuda
