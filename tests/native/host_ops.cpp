// The ops of namespace hyenarec_cuda for CPU tensors, for tests. The shipped kernels run on the host, thread by thread,
// in the libraries of host_test.cpp, legendre_host.cpp and host_blocks.cpp.
#include "cuda/block_ops.h"
#include "cuda/legendre_ops.h"
#include "cuda/ops.h"
#include "host_calls.h"
#include "no_device.h"

extern "C" {
int64_t host_workspace(const hyenarec::LongConvArgs* args, int top, bool backward);
void host_run(const hyenarec::LongConvArgs* args, int top, bool backward, bool reversed);
}

namespace hyenarec {

constexpr int kTop = 14;  // kLargest

int64_t long_conv_workspace(const LongConvArgs& args, bool backward) { return host_workspace(&args, kTop, backward); }
const char* long_conv_forward(const LongConvArgs& args, void*) {
  host_run(&args, kTop, false, false);
  return nullptr;
}
const char* long_conv_backward(const LongConvArgs& args, void*) {
  host_run(&args, kTop, true, false);
  return nullptr;
}

}  // namespace hyenarec

STABLE_TORCH_LIBRARY_IMPL(hyenarec_cuda, CPU, m) {
  m.impl("long_conv", TORCH_BOX(&hyenarec::cuda_ops::conv<Current>));
  m.impl("long_conv_backward", TORCH_BOX(&hyenarec::cuda_ops::conv_backward<Current>));
  hyenarec::cuda_ops::implement_legendre<Current>(m);
  hyenarec::cuda_ops::implement_blocks<Current>(m);
}
#ifdef HYENAREC_DEFINE  // for an extension compiled without CUDA, or before these ops existed
STABLE_TORCH_LIBRARY_FRAGMENT(hyenarec_cuda, m) {
  hyenarec::cuda_ops::define_legendre(m);
  hyenarec::cuda_ops::define_blocks(m);
}
#endif
