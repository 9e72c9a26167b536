// The programs of legendre_schedule.h.
#include "last_row.h"
#include "launch.inc"
#include "taps.h"
#include "toeplitz_conv.h"

namespace hyenarec::cuda {

template cudaError_t launch(const ToeplitzConv<Bfloat16, false>&, unsigned, cudaStream_t);
template cudaError_t launch(const ToeplitzConv<Bfloat16, true>&, unsigned, cudaStream_t);
template cudaError_t launch(const ToeplitzConv<Float16, false>&, unsigned, cudaStream_t);
template cudaError_t launch(const ToeplitzConv<Float16, true>&, unsigned, cudaStream_t);
template cudaError_t launch(const ToeplitzConv<Float32, false>&, unsigned, cudaStream_t);
template cudaError_t launch(const ToeplitzConv<Float32, true>&, unsigned, cudaStream_t);

template cudaError_t launch(const MakeTaps&, unsigned, cudaStream_t);
template cudaError_t launch(const FilterGradients&, unsigned, cudaStream_t);
template cudaError_t launch(const LastRow&, unsigned, cudaStream_t);

}  // namespace hyenarec::cuda
