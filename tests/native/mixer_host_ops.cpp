// The ops of mixer_ops.h for CPU tensors, for tests. The shipped kernels run on the host, thread by thread, in the
// libraries of legendre_host.cpp and host_blocks.cpp and in short_host.cpp.
#include "cuda/mixer_ops.h"
#include "host_calls.h"
#include "no_device.h"
#include "short_host.cpp"

#ifdef HYENAREC_DEFINE
STABLE_TORCH_LIBRARY_FRAGMENT(hyenarec_cuda, m) { hyenarec::cuda_ops::define_mixer(m); }
#endif
STABLE_TORCH_LIBRARY_IMPL(hyenarec_cuda, CPU, m) { hyenarec::cuda_ops::implement_mixer<Current>(m); }
