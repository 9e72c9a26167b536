// The ops of namespace hyenarec_cuda for CPU tensors, for tests: the shipped kernels run on the host, thread by thread,
// by the library of host_test.cpp.
#include "cuda/block_ops.h"
#include "cuda/legendre_ops.h"
#include "cuda/ops.h"
#include "host_blocks.cpp"
#include "legendre_host.cpp"
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

int64_t legendre_conv_workspace(const LegendreConvArgs& args, bool backward) {
  return legendre_workspace(&args, backward);
}
const char* legendre_conv_forward(const LegendreConvArgs& args, void*) {
  legendre_run(&args, false, false);
  return nullptr;
}
const char* legendre_conv_backward(const LegendreConvArgs& args, void*) {
  legendre_run(&args, true, false);
  return nullptr;
}

int64_t legendre_blocks_workspace(const LegendreBlocksArgs& args, bool backward) {
  return blocks_workspace(&args, backward, kRunLeast, kPassBlocks);
}
const char* legendre_blocks_forward(const LegendreBlocksArgs& args, void*) {
  const char* wrong = wrong_blocks(args);
  if (!wrong) blocks_run(&args, false, false, kRunLeast, kPassBlocks);
  return wrong;
}
const char* legendre_blocks_backward(const LegendreBlocksArgs& args, void*) {
  const char* wrong = wrong_blocks(args);
  if (!wrong) blocks_run(&args, true, false, kRunLeast, kPassBlocks);
  return wrong;
}

}  // namespace hyenarec

STABLE_TORCH_LIBRARY_IMPL(hyenarec_cuda, CPU, m) {
  m.impl("long_conv", TORCH_BOX(&hyenarec::cuda_ops::conv<Current>));
  m.impl("long_conv_backward", TORCH_BOX(&hyenarec::cuda_ops::conv_backward<Current>));
  hyenarec::cuda_ops::implement_legendre<Current>(m);
  hyenarec::cuda_ops::implement_blocks<Current>(m);
}
#ifdef HYENAREC_DEFINE  // an extension without them: compiled without CUDA, or before they were there
STABLE_TORCH_LIBRARY_FRAGMENT(hyenarec_cuda, m) {
  hyenarec::cuda_ops::define_legendre(m);
  hyenarec::cuda_ops::define_blocks(m);
}
#endif
