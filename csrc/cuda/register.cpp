// Finds torch's current device and stream, and registers the ops of namespace hyenarec_cuda. Built only where nvcc
// compiled the kernels; torch may be without CUDA.
#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>

#include "block_ops.h"
#include "legendre_ops.h"
#include "mixer_ops.h"
#include "ops.h"
#include "short_ops.h"

namespace {

// Looked up, not linked: a torch without CUDA has no such library, and the stable ABI has no such function before 2.13.
void* current_stream(int32_t device) {
  using StreamOf = AOTITorchError (*)(int32_t, void**);
  static const auto stream_of = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_NOLOAD | RTLD_LAZY);
    return library ? reinterpret_cast<StreamOf>(dlsym(library, "aoti_torch_get_current_cuda_stream")) : nullptr;
  }();
  STD_TORCH_CHECK(stream_of, "long_conv: this torch has no CUDA");
  void* stream = nullptr;
  STD_TORCH_CHECK(stream_of(device, &stream) == AOTI_TORCH_SUCCESS, "long_conv: no stream of GPU ", device);
  return stream;
}

struct Current {
  explicit Current(const hyenarec::Tensor& x)
      : guard(x.get_device_index()), stream(current_stream(x.get_device_index())) {}
  torch::stable::accelerator::DeviceGuard guard;
  void* stream;
};

// Empty where the current device can run the kernels, otherwise why not.
std::string unsupported() {
  const char* reason = hyenarec::long_conv_unsupported();
  return reason ? reason : "";
}

}  // namespace

STABLE_TORCH_LIBRARY(hyenarec_cuda, m) {
  m.def(
      "long_conv(Tensor x, Tensor filter, Tensor? skip, Tensor? pre_gate, Tensor? post_gate, Tensor? starts, "
      "Tensor? ends, int max_length) -> Tensor");
  m.def(
      "long_conv_backward(Tensor grad, Tensor x, Tensor filter, Tensor? skip, Tensor? pre_gate, Tensor? post_gate, "
      "Tensor? starts, Tensor? ends, int max_length, bool[] needs) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  hyenarec::cuda_ops::define_legendre(m);
  hyenarec::cuda_ops::define_blocks(m);
  m.def("unsupported() -> str");
  hyenarec::cuda_ops::define_short(m);
  hyenarec::cuda_ops::define_mixer(m);
}
STABLE_TORCH_LIBRARY_IMPL(hyenarec_cuda, CUDA, m) {
  m.impl("long_conv", TORCH_BOX(&hyenarec::cuda_ops::conv<Current>));
  m.impl("long_conv_backward", TORCH_BOX(&hyenarec::cuda_ops::conv_backward<Current>));
  hyenarec::cuda_ops::implement_legendre<Current>(m);
  hyenarec::cuda_ops::implement_blocks<Current>(m);
  hyenarec::cuda_ops::implement_short<Current>(m);
  hyenarec::cuda_ops::implement_mixer<Current>(m);
}
STABLE_TORCH_LIBRARY_IMPL(hyenarec_cuda, CompositeExplicitAutograd, m) {
  m.impl("unsupported", TORCH_BOX(&unsupported));
}
