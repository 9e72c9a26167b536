// The ops of namespace hyenarec_cuda: they read tensors into plain structs, allocate outputs and workspace, and call
// the kernels.
//
// `Current` is a class: Current(x) makes the device of x current while it exists, and its `stream` is torch's current
// stream there. register.cpp has the one for GPUs, tests/native/host_ops.cpp one for kernels that run on the host.
#pragma once

#include "../common/tensors.h"
#include "long_conv.h"

namespace hyenarec::cuda_ops {

// Tensors that kernels read or write, kept until the launches are queued, and the arguments that point into them.
struct Inputs {
  Tensor x;
  MaybeTensor pre_gate, post_gate;
  LongConvArgs args{};

  Inputs(const Tensor& x_, const Tensor& filter, const MaybeTensor& skip, const MaybeTensor& pre,
         const MaybeTensor& post, const MaybeTensor& starts, const MaybeTensor& ends, int64_t max_length)
      : x(unit_stride(x_)), pre_gate(unit_stride(pre)), post_gate(unit_stride(post)) {
    args.packed = x.dim() == 2;
    STD_TORCH_CHECK(args.packed || x.dim() == 3, "long_conv: x: expected (B, L, D) or (T, D)");
    STD_TORCH_CHECK(!args.packed || (starts && ends), "long_conv: packed x needs starts and ends");
    args.dtype = dtype_of(x);
    STD_TORCH_CHECK(args.dtype != Dtype::f64, "long_conv: x: float64 is not served");
    args.sequences = args.packed ? starts->size(0) : x.size(0);
    args.rows = x.size(x.dim() - 2);
    args.channels = x.size(x.dim() - 1);
    args.max_length = max_length;
    args.starts = index(starts);
    args.ends = index(ends);
    args.wide_index = ends && ends->scalar_type() == ScalarType::Long;
    STD_TORCH_CHECK(!starts || (ends && starts->scalar_type() == ends->scalar_type()),
                    "long_conv: starts: expected beside ends, of its type");
    args.x = rows_of(x);
    args.pre_gate = like_x(pre_gate, "pre_gate");
    args.post_gate = like_x(post_gate, "post_gate");
    STD_TORCH_CHECK(filter.dim() == 2 && filter.size(0) > 0 && args.channels % filter.size(0) == 0,
                    "long_conv: filter: expected (G, K) with G a divisor of ", args.channels);
    args.groups = filter.size(0);
    args.taps = filter.size(1);
    args.filter = values(filter, args.groups * args.taps, "filter");
    args.skip = skip ? values(*skip, args.channels, "skip") : nullptr;
  }

  Rows like_x(const MaybeTensor& t, const char* name) const {
    STD_TORCH_CHECK(!t || (t->device() == x.device() && t->scalar_type() == x.scalar_type() &&
                           sizes_of(*t) == sizes_of(x)),
                    "long_conv: ", name, ": expected the shape, type and device of x");
    return rows_of(t);
  }

  float* values(const Tensor& t, int64_t count, const char* name) const {
    STD_TORCH_CHECK(t.device() == x.device() && t.scalar_type() == ScalarType::Float && t.is_contiguous() &&
                        t.numel() == count,
                    "long_conv: ", name, ": expected ", count, " contiguous float32 on x's device");
    return static_cast<float*>(t.data_ptr());
  }

 private:
  const void* index(const MaybeTensor& t) const {
    STD_TORCH_CHECK(!t || (t->device() == x.device() && t->is_contiguous() && t->numel() == args.sequences &&
                           (t->scalar_type() == ScalarType::Long || t->scalar_type() == ScalarType::Int)),
                    "long_conv: starts, ends: expected ", args.sequences, " contiguous int32 or int64 on x's device");
    return t ? t->data_ptr() : nullptr;
  }
};

inline void call(LongConvArgs& args, const Tensor& x, bool backward, void* stream) {
  Tensor workspace = empty(x, {long_conv_workspace(args, backward)}, ScalarType::Byte);
  args.workspace = workspace.data_ptr();
  const char* failure = (backward ? long_conv_backward : long_conv_forward)(args, stream);
  STD_TORCH_CHECK(failure == nullptr, "long_conv: ", failure);
}

template <class Current>
Tensor conv(const Tensor& x, const Tensor& filter, const MaybeTensor& skip, const MaybeTensor& pre_gate,
            const MaybeTensor& post_gate, const MaybeTensor& starts, const MaybeTensor& ends, int64_t max_length) {
  Inputs in(x, filter, skip, pre_gate, post_gate, starts, ends, max_length);
  Current current(x);
  Tensor out = empty(x, sizes_of(x), x.scalar_type());
  in.args.out = rows_of(out);
  call(in.args, x, false, current.stream);
  return out;
}

// Gradients of x, filter, skip, pre_gate and post_gate; empty and of x's type where not needed.
template <class Current>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> conv_backward(
    const Tensor& grad_, const Tensor& x, const Tensor& filter, const MaybeTensor& skip, const MaybeTensor& pre_gate,
    const MaybeTensor& post_gate, const MaybeTensor& starts, const MaybeTensor& ends, int64_t max_length,
    std::vector<bool> needs) {
  STD_TORCH_CHECK(needs.size() == 5, "long_conv_backward: needs: expected 5 flags");
  Inputs in(x, filter, skip, pre_gate, post_gate, starts, ends, max_length);
  Current current(x);
  MaybeTensor grad = unit_stride(grad_);
  in.args.grad = in.like_x(grad, "grad");
  auto like = [&](bool needed, const Tensor& t, ScalarType type) {
    return needed ? empty(x, sizes_of(t), type) : empty(x, {0}, x.scalar_type());
  };
  Tensor dx = like(needs[0], x, x.scalar_type()), dfilter = like(needs[1], filter, ScalarType::Float);
  Tensor dskip = like(needs[2] && skip, skip ? *skip : x, ScalarType::Float);
  Tensor dpre = like(needs[3] && pre_gate, x, x.scalar_type());
  Tensor dpost = like(needs[4] && post_gate, x, x.scalar_type());
  in.args.dx = rows_of(dx);
  in.args.dpre_gate = rows_of(dpre);
  in.args.dpost_gate = rows_of(dpost);
  in.args.dfilter = needs[1] ? static_cast<float*>(dfilter.data_ptr()) : nullptr;
  in.args.dskip = needs[2] && skip ? static_cast<float*>(dskip.data_ptr()) : nullptr;
  call(in.args, x, true, current.stream);
  return {dx, dfilter, dskip, dpre, dpost};
}

}  // namespace hyenarec::cuda_ops
