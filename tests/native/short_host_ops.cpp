// The ops of short_ops.h for CPU tensors, for tests. With HYENAREC_DEFINE they are also defined, because the extension
// was compiled without them.
#include "cuda/short_ops.h"
#include "no_device.h"
#include "short_host.cpp"

#ifdef HYENAREC_DEFINE
STABLE_TORCH_LIBRARY_FRAGMENT(hyenarec_cuda, m) { hyenarec::cuda_ops::define_short(m); }
#endif
STABLE_TORCH_LIBRARY_IMPL(hyenarec_cuda, CPU, m) { hyenarec::cuda_ops::implement_short<Current>(m); }
