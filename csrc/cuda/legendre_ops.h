// The op hyenarec_cuda.legendre_conv and its backward (ops.h has those of long_conv).
#pragma once
#include "../common/tensors.h"
#include "legendre_conv.h"

namespace hyenarec::cuda_ops {

// Tensors that kernels read or write, kept until the launches are queued, and the arguments that point into them.
struct LegendreInputs {
  Tensor x, filter;
  MaybeTensor decay, skip, pre_gate, post_gate;
  LegendreConvArgs args{};

  LegendreInputs(const Tensor& x_, const Tensor& filter_, const MaybeTensor& decay_, const MaybeTensor& skip_,
                 const MaybeTensor& pre, const MaybeTensor& post, const MaybeTensor& starts, const MaybeTensor& ends,
                 int64_t horizon, int64_t max_length, bool last_only)
      : x(unit_stride(x_)), filter(dense(filter_)), decay(decay_), skip(skip_),
        pre_gate(unit_stride(pre)), post_gate(unit_stride(post)) {
    LongConvArgs& rows = args.rows;
    rows.packed = x.dim() == 2;
    STD_TORCH_CHECK(rows.packed || x.dim() == 3, "legendre_conv: x: expected (B, L, D) or (T, D)");
    STD_TORCH_CHECK(!rows.packed || (starts && ends), "legendre_conv: packed x needs starts and ends");
    rows.dtype = dtype_of(x);
    rows.sequences = rows.packed ? starts->size(0) : x.size(0);
    rows.rows = x.size(x.dim() - 2);
    rows.channels = x.size(x.dim() - 1);
    rows.max_length = max_length;
    rows.starts = index(starts);
    rows.ends = index(ends);
    rows.wide_index = ends && ends->scalar_type() == ScalarType::Long;
    STD_TORCH_CHECK(!starts || (ends && starts->scalar_type() == ends->scalar_type()),
                    "legendre_conv: starts: expected beside ends, of its type");
    rows.x = rows_of(x);
    rows.pre_gate = like(pre_gate, sizes_of(x), "pre_gate");
    args.last_only = last_only;
    rows.post_gate = like(post_gate, out_sizes(), "post_gate");
    STD_TORCH_CHECK(filter.dim() == 2 && filter.size(0) > 0 && filter.size(1) > 0 &&
                        rows.channels % filter.size(0) == 0 && filter.device() == x.device(),
                    "legendre_conv: filter: expected (G, N) on x's device, G a divisor of ", rows.channels);
    rows.groups = filter.size(0);
    args.filter = filter.data_ptr();
    args.parameters = dtype_of(filter);
    args.terms = filter.size(1);
    args.horizon = horizon;
    STD_TORCH_CHECK(!decay || decay->scalar_type() == filter.scalar_type(), "legendre_conv: decay: not of filter's type");
    args.decay = parameter(decay, rows.groups, "decay");
    args.skip = parameter(skip, rows.channels, "skip");
    if (skip) args.skip_dtype = dtype_of(*skip);
  }

  std::vector<int64_t> out_sizes() const {
    return args.last_only ? std::vector<int64_t>{args.rows.sequences, args.rows.channels} : sizes_of(x);
  }
  Rows like(const MaybeTensor& t, const std::vector<int64_t>& sizes, const char* name) const {
    STD_TORCH_CHECK(!t || (t->device() == x.device() && t->scalar_type() == x.scalar_type() && sizes_of(*t) == sizes),
                    "legendre_conv: ", name, ": expected the type and device of x, and its shape or the output's");
    return rows_of(t);
  }

 private:
  const void* index(const MaybeTensor& t) const {
    STD_TORCH_CHECK(!t || (t->device() == x.device() && t->is_contiguous() && t->numel() == args.rows.sequences &&
                           (t->scalar_type() == ScalarType::Long || t->scalar_type() == ScalarType::Int)),
                    "legendre_conv: starts, ends: expected ", args.rows.sequences,
                    " contiguous int32 or int64 on x's device");
    return t ? t->data_ptr() : nullptr;
  }
  const void* parameter(MaybeTensor& t, int64_t count, const char* name) const {
    if (t) t = dense(*t);
    STD_TORCH_CHECK(!t || (t->device() == x.device() && t->numel() == count), "legendre_conv: ", name, ": expected ",
                    count, " values on x's device");
    return t ? t->data_ptr() : nullptr;
  }
};

inline void call(LegendreConvArgs& args, const Tensor& x, bool backward, void* stream) {
  Tensor workspace = empty(x, {hyenarec::legendre_conv_workspace(args, backward)}, ScalarType::Byte);
  args.rows.workspace = workspace.data_ptr();
  const char* failure = (backward ? hyenarec::legendre_conv_backward : hyenarec::legendre_conv_forward)(args, stream);
  STD_TORCH_CHECK(failure == nullptr, "legendre_conv: ", failure);
}

template <class Current>
Tensor legendre_conv(const Tensor& x, const Tensor& filter, const MaybeTensor& decay, const MaybeTensor& skip,
                     const MaybeTensor& pre_gate, const MaybeTensor& post_gate, const MaybeTensor& starts,
                     const MaybeTensor& ends, int64_t horizon, int64_t max_length, bool last_only) {
  LegendreInputs in(x, filter, decay, skip, pre_gate, post_gate, starts, ends, horizon, max_length, last_only);
  Current current(x);
  Tensor out = empty(x, in.out_sizes(), x.scalar_type());
  in.args.rows.out = rows_of(out);
  call(in.args, x, false, current.stream);
  return out;
}

// Gradients of x, filter, decay, skip, pre_gate and post_gate; empty and of x's type where not needed.
template <class Current>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> legendre_conv_backward(
    const Tensor& grad_, const Tensor& x, const Tensor& filter, const MaybeTensor& decay, const MaybeTensor& skip,
    const MaybeTensor& pre_gate, const MaybeTensor& post_gate, const MaybeTensor& starts, const MaybeTensor& ends,
    int64_t horizon, int64_t max_length, bool last_only, std::vector<bool> needs) {
  STD_TORCH_CHECK(needs.size() == 6, "legendre_conv_backward: needs: expected 6 flags");
  LegendreInputs in(x, filter, decay, skip, pre_gate, post_gate, starts, ends, horizon, max_length, last_only);
  Current current(x);
  MaybeTensor grad = unit_stride(grad_);
  LongConvArgs& rows = in.args.rows;
  rows.grad = in.like(grad, in.out_sizes(), "grad");
  auto wanted = [&](int which, const MaybeTensor& t) {
    return needs[which] && t ? empty(x, sizes_of(*t), t->scalar_type()) : empty(x, {0}, x.scalar_type());
  };
  auto pointer = [&](const Tensor& t, int which, bool given) {
    return needs[which] && given ? t.data_ptr() : nullptr;
  };
  Tensor dx = wanted(0, x), dfilter = wanted(1, filter), ddecay = wanted(2, decay), dskip = wanted(3, skip);
  Tensor dpre = wanted(4, pre_gate), dpost = wanted(5, post_gate);
  rows.dx = rows_of(dx);
  rows.dpre_gate = rows_of(dpre);
  rows.dpost_gate = rows_of(dpost);
  in.args.dfilter = pointer(dfilter, 1, true);
  in.args.ddecay = pointer(ddecay, 2, decay.has_value());
  in.args.dskip = pointer(dskip, 3, skip.has_value());
  call(in.args, x, true, current.stream);
  return {dx, dfilter, ddecay, dskip, dpre, dpost};
}

template <class Library>
void define_legendre(Library& m) {
  m.def(
      "legendre_conv(Tensor x, Tensor filter, Tensor? decay, Tensor? skip, Tensor? pre_gate, Tensor? post_gate, "
      "Tensor? starts, Tensor? ends, int horizon, int max_length, bool last_only) -> Tensor");
  m.def(
      "legendre_conv_backward(Tensor grad, Tensor x, Tensor filter, Tensor? decay, Tensor? skip, Tensor? pre_gate, "
      "Tensor? post_gate, Tensor? starts, Tensor? ends, int horizon, int max_length, bool last_only, bool[] needs) -> "
      "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
}
template <class Current, class Library>
void implement_legendre(Library& m) {
  m.impl("legendre_conv", TORCH_BOX(&legendre_conv<Current>));
  m.impl("legendre_conv_backward", TORCH_BOX(&legendre_conv_backward<Current>));
}

}  // namespace hyenarec::cuda_ops
