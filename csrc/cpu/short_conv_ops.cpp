// The short convolutions of tensors and their gradients.
#include "ops.h"

namespace hyenarec::cpu {
namespace {

// The inputs that the short convolutions share with their backward. `weight` is (width, C), lag 0 first; where `dim` is
// C, no outputs are multiplied.
struct ShortInputs {
  Tensor x;
  std::vector<Sequence> sequences;
  ShortConvArgs args{};

  ShortInputs(const Tensor& x_, const Tensor& weight, const MaybeTensor& bias, const MaybeTensor& starts,
              const MaybeTensor& ends, int64_t dim, bool silu)
      : x(unit_stride(x_)), sequences(sequences_of(x, starts, ends)) {
    args.sequences = sequences.data();
    args.num_sequences = int64_t(sequences.size());
    args.channels = x.size(x.dim() - 1);
    args.padded_length = x.dim() == 3 ? x.size(1) : 0;
    args.width = weight.size(0);
    args.dim = dim;
    args.silu = silu;
    STD_TORCH_CHECK(args.width > 0, "weight: expected at least one tap");
    STD_TORCH_CHECK(dim > 0 && args.channels % dim == 0, "dim: ", dim, " is no divisor of ", args.channels,
                    " channels");
    args.dtype = dtype_of(x);
    args.x = rows_of(x);
    args.weight = values(weight, args.dtype, args.width * args.channels, "weight");
    args.bias = bias ? values(*bias, args.dtype, args.channels, "bias") : nullptr;
  }
  // The sizes of x with this many channels instead.
  std::vector<int64_t> sizes(int64_t channels) const {
    std::vector<int64_t> sizes = sizes_of(x);
    sizes.back() = channels;
    return sizes;
  }
};

ShortGradients short_gradients(ShortInputs& in, const Tensor& weight, const MaybeTensor& bias,
                               const std::vector<bool>& needs) {
  STD_TORCH_CHECK(needs.size() == 3, "needs: expected 3 flags");
  auto like = [&](bool needed, const Tensor& t) {
    return empty(t, needed ? sizes_of(t) : std::vector<int64_t>{0}, t.scalar_type());
  };
  Tensor dx = like(needs[0], in.x), dweight = like(needs[1], weight);
  Tensor dbias = like(needs[2] && bias, bias ? *bias : weight);
  in.args.dx = needs[0] ? rows_of(dx) : Rows{};
  in.args.dweight = needs[1] ? dweight.data_ptr() : nullptr;
  in.args.dbias = needs[2] && bias ? dbias.data_ptr() : nullptr;
  kernels().short_conv(in.args, true, parallel);
  return {dx, dweight, dbias};
}

}  // namespace

Tensor short_conv(const Tensor& x, const Tensor& weight, const MaybeTensor& bias, const MaybeTensor& starts,
                  const MaybeTensor& ends, bool silu) {
  ShortInputs in(x, weight, bias, starts, ends, x.size(x.dim() - 1), silu);
  Tensor out = empty(x, sizes_of(x), x.scalar_type());
  in.args.out = rows_of(out);
  kernels().short_conv(in.args, false, parallel);
  return out;
}

std::tuple<Tensor, Tensor> gated_short_conv(const Tensor& x, const Tensor& weight, const MaybeTensor& bias,
                                            const MaybeTensor& starts, const MaybeTensor& ends, int64_t dim) {
  ShortInputs in(x, weight, bias, starts, ends, dim, false);
  STD_TORCH_CHECK(in.args.channels >= 2 * dim, "dim: ", dim, " is more than half of ", in.args.channels, " channels");
  Tensor u = empty(x, in.sizes(dim), x.scalar_type());
  Tensor q = empty(x, in.sizes(in.args.channels - 2 * dim), x.scalar_type());
  in.args.out = rows_of(u);
  in.args.rest = rows_of(q);
  kernels().short_conv(in.args, false, parallel);
  return {u, q};
}

ShortGradients short_conv_backward(const Tensor& grad_, const Tensor& x, const Tensor& weight, const MaybeTensor& bias,
                                   const MaybeTensor& starts, const MaybeTensor& ends, bool silu,
                                   std::vector<bool> needs) {
  ShortInputs in(x, weight, bias, starts, ends, x.size(x.dim() - 1), silu);
  Tensor grad = *beside(x, grad_, sizes_of(x), "grad");
  in.args.grad = rows_of(grad);
  return short_gradients(in, weight, bias, needs);
}

ShortGradients gated_short_conv_backward(const Tensor& grad_u, const Tensor& grad_q, const Tensor& x,
                                         const Tensor& weight, const MaybeTensor& bias, const MaybeTensor& starts,
                                         const MaybeTensor& ends, int64_t dim, std::vector<bool> needs) {
  ShortInputs in(x, weight, bias, starts, ends, dim, false);
  STD_TORCH_CHECK(in.args.channels >= 2 * dim, "dim: ", dim, " is more than half of ", in.args.channels, " channels");
  Tensor products = *beside(x, grad_u, in.sizes(dim), "grad_u");
  Tensor rest = *beside(x, grad_q, in.sizes(in.args.channels - 2 * dim), "grad_q");
  in.args.grad = rows_of(products);
  in.args.grad_rest = rows_of(rest);
  return short_gradients(in, weight, bias, needs);
}

}  // namespace hyenarec::cpu
