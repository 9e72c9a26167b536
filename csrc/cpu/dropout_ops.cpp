// Dropout of tensors and its gradient.
#include "ops.h"

namespace hyenarec::cpu {
namespace {

Tensor drop(const MaybeTensor& grad_, const Tensor& x_, const Tensor& seed, int64_t dropped, bool gelu) {
  STD_TORCH_CHECK(seed.scalar_type() == ScalarType::Long && seed.numel() == 1, "seed: expected one int64");
  STD_TORCH_CHECK(0 <= dropped && dropped < 256, "dropped: expected 0 to 255, got ", dropped);
  Tensor x = torch::stable::contiguous(x_), out = empty(x, sizes_of(x), x.scalar_type());
  MaybeTensor grad = grad_ ? MaybeTensor(torch::stable::contiguous(*grad_)) : grad_;
  STD_TORCH_CHECK(!grad || (grad->numel() == x.numel() && grad->scalar_type() == x.scalar_type()),
                  "grad: expected the shape and dtype of x");
  kernels().dropout({x.numel(), dtype_of(x), *static_cast<const uint64_t*>(seed.data_ptr()), int(dropped),
                               gelu, x.data_ptr(), grad ? grad->data_ptr() : nullptr, out.data_ptr()},
                              parallel);
  return out;
}

}  // namespace

Tensor dropout(const Tensor& x, const Tensor& seed, int64_t dropped, bool gelu) {
  return drop({}, x, seed, dropped, gelu);
}

Tensor dropout_backward(const Tensor& grad, const Tensor& x, const Tensor& seed, int64_t dropped, bool gelu) {
  return drop(grad, x, seed, dropped, gelu);
}

}  // namespace hyenarec::cpu
