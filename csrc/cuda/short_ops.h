// The ops of namespace hyenarec_cuda for the short convolutions and conv_step, as ops.h has the long ones. Their
// arguments are those of the operators of namespace hyenarec, so that nothing is left to do before or after the
// kernels.
#pragma once

#include "../common/tensors.h"
#include "short_conv.h"

namespace hyenarec::cuda_ops {

using cuda::ConvStepArgs, cuda::ShortConvArgs, cuda::Values;

// Checks that `t` has the type and device of x and these sizes; copies it where kernels could not read its layout.
inline Tensor beside(const Tensor& x, const Tensor& t, const std::vector<int64_t>& sizes, const char* name) {
  STD_TORCH_CHECK(t.device() == x.device() && t.scalar_type() == x.scalar_type() && sizes_of(t) == sizes, name,
                  ": expected the device and type of x, and the sizes of what it belongs to");
  return unit_stride(t);
}

// The sizes of x with this many channels instead.
inline std::vector<int64_t> with_channels(const Tensor& x, int64_t channels) {
  std::vector<int64_t> sizes = sizes_of(x);
  sizes.back() = channels;
  return sizes;
}

struct ShortInputs {
  Tensor x, weight;
  MaybeTensor bias;
  ShortConvArgs args{};

  ShortInputs(const Tensor& x_, const Tensor& weight_, const MaybeTensor& bias_, const MaybeTensor& starts,
              const MaybeTensor& ends, int64_t parts, bool silu)
      : x(unit_stride(x_)), weight(dense(weight_)), bias(bias_ ? MaybeTensor(dense(*bias_)) : bias_) {
    args.packed = x.dim() == 2;
    STD_TORCH_CHECK(args.packed || x.dim() == 3, "x: expected (B, L, C) or (T, C)");
    STD_TORCH_CHECK(!args.packed || (starts && ends), "packed x needs starts and ends");
    args.dtype = dtype_of(x);
    args.sequences = args.packed ? starts->size(0) : x.size(0);
    args.rows = x.size(x.dim() - 2);
    args.channels = x.size(x.dim() - 1);
    args.starts = index(starts);
    args.ends = index(ends);
    args.wide_index = ends && ends->scalar_type() == ScalarType::Long;
    STD_TORCH_CHECK(!starts || (ends && starts->scalar_type() == ends->scalar_type()),
                    "starts: expected beside ends, of its type");
    STD_TORCH_CHECK(parts >= 1 && args.channels % parts == 0, "dim: it does not divide ", args.channels, " channels");
    args.parts = parts, args.silu = silu;
    args.width = weight.dim() == 2 ? weight.size(1) : 0;
    args.x = rows_of(x);
    args.weight = values(weight, args.channels * args.width, "weight");
    if (bias) args.bias = values(*bias, args.channels, "bias");
  }

 private:
  const void* index(const MaybeTensor& t) const {
    STD_TORCH_CHECK(!t || (t->device() == x.device() && t->is_contiguous() && t->numel() == args.sequences &&
                           (t->scalar_type() == ScalarType::Long || t->scalar_type() == ScalarType::Int)),
                    "starts, ends: expected ", args.sequences, " contiguous int32 or int64 on x's device");
    return t ? t->data_ptr() : nullptr;
  }
  Values values(const Tensor& t, int64_t count, const char* name) const {
    STD_TORCH_CHECK(t.device() == x.device() && t.numel() == count &&
                        (t.scalar_type() == ScalarType::Float || t.scalar_type() == x.scalar_type()),
                    name, ": expected ", count, " values in float32 or the type of x, on its device");
    return {t.data_ptr(), dtype_of(t)};
  }
};

inline void check(const char* failure) { STD_TORCH_CHECK(failure == nullptr, failure); }

template <class Current>
Tensor short_conv(const Tensor& x, const Tensor& weight, const MaybeTensor& bias, const MaybeTensor& starts,
                  const MaybeTensor& ends, std::string activation) {
  ShortInputs in(x, weight, bias, starts, ends, 1, activation == "silu");
  Current current(x);
  Tensor out = empty(x, sizes_of(x), x.scalar_type());
  in.args.out = rows_of(out);
  check(cuda::short_conv_forward(in.args, current.stream));
  return out;
}

inline int64_t parts_of(const Tensor& x, int64_t dim) {
  int64_t channels = x.size(x.dim() - 1);
  STD_TORCH_CHECK(dim > 0 && channels % dim == 0 && channels >= 2 * dim, "dim: ", dim, " is no part of ", channels,
                  " channels");
  return channels / dim;
}

template <class Current>
std::tuple<Tensor, Tensor> gated_short_conv(const Tensor& x, const Tensor& weight, const MaybeTensor& bias,
                                            const MaybeTensor& starts, const MaybeTensor& ends, int64_t dim) {
  ShortInputs in(x, weight, bias, starts, ends, parts_of(x, dim), false);
  Current current(x);
  Tensor u = empty(x, with_channels(x, dim), x.scalar_type());
  Tensor q = empty(x, with_channels(x, in.args.channels - 2 * dim), x.scalar_type());
  in.args.out = rows_of(u);
  in.args.rest = rows_of(q);
  check(cuda::short_conv_forward(in.args, current.stream));
  return {u, q};
}

using ShortGradients = std::tuple<Tensor, Tensor, Tensor>;  // of x, weight and bias; empty where not needed

template <class Current>
ShortGradients short_gradients(ShortInputs& in, const std::vector<bool>& needs) {
  STD_TORCH_CHECK(needs.size() == 3, "needs: expected 3 flags");
  Current current(in.x);
  auto like = [&](bool needed, const Tensor& t) {
    return empty(in.x, needed ? sizes_of(t) : std::vector<int64_t>{0}, t.scalar_type());
  };
  bool bias = needs[2] && in.bias;
  Tensor dx = like(needs[0], in.x), dweight = like(needs[1], in.weight), dbias = like(bias, in.bias ? *in.bias : in.x);
  if (needs[0]) in.args.dx = rows_of(dx);
  if (needs[1]) in.args.dweight = {dweight.data_ptr(), dtype_of(dweight)};
  if (bias) in.args.dbias = {dbias.data_ptr(), dtype_of(dbias)};
  if (!needs[0] && !needs[1] && !bias) return {dx, dweight, dbias};
  Tensor workspace = empty(in.x, {needs[1] || bias ? cuda::short_conv_workspace(in.args) : 0}, ScalarType::Byte);
  in.args.workspace = workspace.data_ptr();
  check(cuda::short_conv_backward(in.args, current.stream));
  return {dx, dweight, dbias};
}

template <class Current>
ShortGradients short_conv_backward(const Tensor& grad_, const Tensor& x, const Tensor& weight, const MaybeTensor& bias,
                                   const MaybeTensor& starts, const MaybeTensor& ends, std::string activation,
                                   std::vector<bool> needs) {
  ShortInputs in(x, weight, bias, starts, ends, 1, activation == "silu");
  Tensor grad = beside(x, grad_, sizes_of(x), "grad");
  in.args.grad = rows_of(grad);
  return short_gradients<Current>(in, needs);
}

template <class Current>
ShortGradients gated_short_conv_backward(const Tensor& grad_u, const Tensor& grad_q, const Tensor& x,
                                         const Tensor& weight, const MaybeTensor& bias, const MaybeTensor& starts,
                                         const MaybeTensor& ends, int64_t dim, std::vector<bool> needs) {
  ShortInputs in(x, weight, bias, starts, ends, parts_of(x, dim), false);
  Tensor products = beside(x, grad_u, with_channels(x, dim), "grad_u");
  Tensor rest = beside(x, grad_q, with_channels(x, in.args.channels - 2 * dim), "grad_q");
  in.args.grad = rows_of(products);
  in.args.grad_rest = rows_of(rest);
  return short_gradients<Current>(in, needs);
}

template <class Current>
Tensor conv_step(const Tensor& x_, const Tensor& history, const Tensor& taps_, const Tensor& steps_,
                 const MaybeTensor& pre_gate, const MaybeTensor& post_gate) {
  STD_TORCH_CHECK(x_.dim() == 2 && history.dim() == 3 && taps_.dim() == 2 && steps_.dim() == 1,
                  "expected x (B, D), history (B, K-1, D), taps (K, D) and steps (B,)");
  Tensor x = unit_stride(x_), taps = dense(taps_), steps = dense(steps_);
  int64_t batch = x.size(0), channels = x.size(1), slots = history.size(1);
  STD_TORCH_CHECK(history.size(0) == batch && history.size(2) == channels && taps.size(0) == slots + 1 &&
                      taps.size(1) == channels && steps.size(0) == batch,
                  "history, taps, steps: of other sizes than x (", batch, ", ", channels, ")");
  STD_TORCH_CHECK(history.scalar_type() == ScalarType::Float && taps.scalar_type() == ScalarType::Float &&
                      steps.scalar_type() == ScalarType::Long && history.device() == x.device() &&
                      taps.device() == x.device() && steps.device() == x.device(),
                  "history, taps: expected float32, and steps int64, on x's device");
  STD_TORCH_CHECK(channels <= 1 || history.stride(2) == 1, "history: its channels are not adjacent in memory");
  Tensor pre = pre_gate ? beside(x, *pre_gate, sizes_of(x), "pre_gate") : x;
  Tensor post = post_gate ? beside(x, *post_gate, sizes_of(x), "post_gate") : x;
  Current current(x);
  Tensor out = empty(x, sizes_of(x), x.scalar_type());
  ConvStepArgs args;
  args.dtype = dtype_of(x);
  args.sequences = batch, args.channels = channels, args.slots = slots;
  args.x = rows_of(x);
  if (pre_gate) args.pre_gate = rows_of(pre);
  if (post_gate) args.post_gate = rows_of(post);
  args.out = rows_of(out);
  args.history = rows_of(history);
  args.taps = static_cast<const float*>(taps.data_ptr());
  args.steps = static_cast<const int64_t*>(steps.data_ptr());
  check(cuda::conv_step(args, current.stream));
  return out;
}

template <class Library>
void define_short(Library& m) {
  m.def("short_conv(Tensor x, Tensor weight, Tensor? bias, Tensor? starts, Tensor? ends, str activation) -> Tensor");
  m.def(
      "short_conv_backward(Tensor grad, Tensor x, Tensor weight, Tensor? bias, Tensor? starts, Tensor? ends, "
      "str activation, bool[] needs) -> (Tensor, Tensor, Tensor)");
  m.def(
      "gated_short_conv(Tensor x, Tensor weight, Tensor? bias, Tensor? starts, Tensor? ends, int dim) "
      "-> (Tensor, Tensor)");
  m.def(
      "gated_short_conv_backward(Tensor grad_u, Tensor grad_q, Tensor x, Tensor weight, Tensor? bias, Tensor? starts, "
      "Tensor? ends, int dim, bool[] needs) -> (Tensor, Tensor, Tensor)");
  m.def(
      "conv_step(Tensor x, Tensor(a!) history, Tensor taps, Tensor steps, Tensor? pre_gate, Tensor? post_gate) "
      "-> Tensor");
}

template <class Current, class Library>
void implement_short(Library& m) {
  m.impl("short_conv", TORCH_BOX(&short_conv<Current>));
  m.impl("short_conv_backward", TORCH_BOX(&short_conv_backward<Current>));
  m.impl("gated_short_conv", TORCH_BOX(&gated_short_conv<Current>));
  m.impl("gated_short_conv_backward", TORCH_BOX(&gated_short_conv_backward<Current>));
  m.impl("conv_step", TORCH_BOX(&conv_step<Current>));
}

}  // namespace hyenarec::cuda_ops
