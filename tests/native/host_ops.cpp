// The ops of namespace hyenarec_cuda for CPU tensors, for tests: the shipped kernels run on the host, thread by thread,
// by the library of host_test.cpp.
#include "cuda/ops.h"

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

namespace {

struct Current {
  explicit Current(const hyenarec::Tensor&) {}
  void* stream = nullptr;
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hyenarec_cuda, CPU, m) {
  m.impl("long_conv", TORCH_BOX(&hyenarec::cuda_ops::conv<Current>));
  m.impl("long_conv_backward", TORCH_BOX(&hyenarec::cuda_ops::conv_backward<Current>));
}
