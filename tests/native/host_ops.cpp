// The ops of namespace hyenarec_cuda for CPU tensors, for tests: the shipped kernels run on the host, thread by thread.
#include "cuda/ops.h"
#include "host_test.cpp"

namespace hyenarec {

int64_t long_conv_workspace(const LongConvArgs& args, bool backward) { return host_workspace(&args, backward); }
const char* long_conv_forward(const LongConvArgs& args, void*) {
  host_run(&args, false, false);
  return nullptr;
}
const char* long_conv_backward(const LongConvArgs& args, void*) {
  host_run(&args, true, false);
  return nullptr;
}

}  // namespace hyenarec

namespace {

struct Current {
  explicit Current(const Tensor&) {}
  void* stream = nullptr;
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hyenarec_cuda, CPU, m) {
  m.impl("long_conv", TORCH_BOX(&hyenarec::cuda_ops::conv<Current>));
  m.impl("long_conv_backward", TORCH_BOX(&hyenarec::cuda_ops::conv_backward<Current>));
}
