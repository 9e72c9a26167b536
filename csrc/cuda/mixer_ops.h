// The ops of namespace hyenarec_cuda for a whole pass of a mixer of order 2: from its input and its stored parameters
// to its output, and from the output's gradient to theirs (hyenarec_kernels/nn/joint.py says what is computed).
#pragma once
#include <array>

#include "block_ops.h"
#include "legendre_ops.h"
#include "parameters.h"
#include "short_ops.h"

namespace hyenarec::cuda_ops {

using cuda::Change, cuda::Changes, cuda::Stored;

// x (..., I) by weight (O, I), as torch multiplies them.
inline Tensor linear(const Tensor& x, const Tensor& weight) {
  using torch::stable::detail::from;
  std::array<StableIValue, 3> stack{from(x), from(weight), from(MaybeTensor())};
  STD_TORCH_CHECK(torch_call_dispatcher("aten::linear", "", stack.data(), TORCH_ABI_VERSION) == AOTI_TORCH_SUCCESS,
                  "mixer: torch could not multiply");
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// (..., C) as rows (T, C).
inline Tensor as_rows(const Tensor& t) {
  if (t.dim() == 2) return t;
  int64_t channels = t.size(t.dim() - 1);
  return torch::stable::reshape(t, std::vector<int64_t>{t.numel() / channels, channels});
}

inline Stored stored(const Tensor& t) { return {t.data_ptr(), dtype_of(t)}; }

inline void change(const Changes& changes, void* stream) {
  check(changes.size == 0 ? nullptr : cuda::change_parameters(changes, stream));
}

using MixerPass = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor,
                             Tensor>;

// Returns y; projected, u, q, v; then the effective parameters: w_in, w_out, taps, offset, coefficients, decay (empty
// without log_rate) and skip. `origins`, float32, holds, one after the other, what is added to `factor` times w_in and
// w_out, and to taps, offset, terms and log_rate. x must be zero in padding.
template <class Current>
MixerPass mixer(const Tensor& x, const Tensor& w_in, const Tensor& taps, const Tensor& offset, const Tensor& terms,
                const MaybeTensor& log_rate, const Tensor& skip, const Tensor& w_out, const Tensor& scale,
                const Tensor& origins, const MaybeTensor& starts, const MaybeTensor& ends, double factor,
                int64_t horizon, std::vector<int64_t> levels, const MaybeTensor& constants) {
  STD_TORCH_CHECK(x.dim() == 2 || x.dim() == 3, "mixer: x: expected (B, L, D) or (T, D)");
  int64_t dim = x.size(x.dim() - 1), groups = scale.numel(), width = taps.size(1);
  STD_TORCH_CHECK(groups > 0 && terms.numel() % groups == 0, "mixer: terms: expected as many for each of the groups");
  Current current(x);
  Changes changes;
  std::vector<Tensor> held;  // copies that kernels read
  auto on_device = [&](bool fits, const Tensor& t, int64_t count, const char* name) {
    STD_TORCH_CHECK(fits && t.device() == x.device() && t.numel() == count, "mixer: ", name, ": expected ", count,
                    " values on x's device");
  };
  auto act = [&](const Tensor& from, std::vector<int64_t> sizes, ScalarType type, const char* name) -> Tensor {
    Tensor to = empty(x, std::move(sizes), type);
    on_device(true, from, to.numel(), name);
    held.push_back(dense(from));
    Change change;
    change.from = stored(held.back());
    change.to = to.data_ptr(), change.to_dtype = dtype_of(to), change.count = to.numel();
    changes.add(change);
    return to;
  };
  Tensor whole_in = act(w_in, {3 * dim, dim}, x.scalar_type(), "w_in");
  Tensor whole_out = act(w_out, {dim, dim}, x.scalar_type(), "w_out");
  Tensor whole_taps = act(taps, {3 * dim, width}, ScalarType::Float, "taps");
  Tensor whole_offset = act(offset, {3 * dim}, ScalarType::Float, "offset");
  Tensor coefficients = act(terms, {groups, terms.numel() / groups}, ScalarType::Float, "terms");
  MaybeTensor decay = log_rate ? MaybeTensor(act(*log_rate, {groups}, ScalarType::Float, "log_rate")) : MaybeTensor();
  Change* list = changes.list;
  int64_t moved = 0;  // number of values that have an origin
  for (int i = 0; i < changes.size; moved += list[i++].count)
    list[i].origin = static_cast<const float*>(origins.data_ptr()) + moved;
  on_device(origins.scalar_type() == ScalarType::Float && origins.is_contiguous(), origins, moved, "origins");
  on_device(true, scale, groups, "scale");
  Tensor scales = dense(scale);
  list[0].factor = list[1].factor = float(factor);
  list[4].scale = stored(scales), list[4].each = terms.numel() / groups;
  if (log_rate) list[5].exponential = true;
  on_device(true, skip, dim, "skip");
  Tensor whole_skip = skip.scalar_type() == ScalarType::Float ? torch::stable::view(dense(skip), {dim})
                                                              : act(skip, {dim}, ScalarType::Float, "skip");
  change(changes, current.stream);
  Tensor projected = linear(x, whole_in);
  auto [u, q] = gated_short_conv<Current>(projected, whole_taps, whole_offset, starts, ends, dim);
  int64_t rows = x.size(x.dim() - 2);
  Tensor v = constants ? blocks<Current>(u, coefficients, decay, whole_skip, {}, q, starts, ends, horizon, rows,
                                         levels, *constants)
                       : legendre_conv<Current>(u, coefficients, decay, whole_skip, {}, q, starts, ends, horizon, rows,
                                                false);
  Tensor y = linear(v, whole_out);
  return {y, projected, u, q, v, whole_in, whole_out, whole_taps, whole_offset, coefficients,
          decay ? *decay : empty(x, {0}, ScalarType::Float), whole_skip};
}

using MixerGradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// The gradients of x, and of w_in, taps, offset, terms, log_rate, skip and w_out as the module stores them; empty where
// not needed. The arguments from `projected` to `skip` are what `mixer` returned.
template <class Current>
MixerGradients mixer_backward(const Tensor& grad_, const Tensor& x, const Tensor& projected, const Tensor& u,
                              const Tensor& q, const Tensor& v, const Tensor& w_in, const Tensor& w_out,
                              const Tensor& taps, const Tensor& offset, const Tensor& coefficients,
                              const MaybeTensor& decay, const Tensor& skip, const Tensor& scale,
                              const MaybeTensor& starts, const MaybeTensor& ends, double factor, int64_t horizon,
                              std::vector<int64_t> levels, const MaybeTensor& constants, std::vector<bool> needs) {
  using torch::stable::matmul, torch::stable::transpose;
  STD_TORCH_CHECK(needs.size() == 8, "mixer_backward: needs: expected 8 flags");
  const bool x_needed = needs[0], in = needs[1], terms = needs[4], rate = needs[5] && decay, out = needs[7];
  Current current(x);
  Changes changes;
  Tensor none = empty(x, {0}, x.scalar_type()), scales = dense(scale);
  auto stores = [&](const Tensor& from, std::vector<int64_t> sizes) {
    Tensor to = empty(x, std::move(sizes), scale.scalar_type());
    Change change;
    change.from = stored(from);
    change.to = to.data_ptr(), change.to_dtype = dtype_of(to), change.count = to.numel();
    changes.add(change);
    return to;
  };
  auto last = [&]() -> Change& { return changes.list[changes.size - 1]; };
  int64_t dim = x.size(x.dim() - 1), rows = x.size(x.dim() - 2);
  Tensor grad = as_rows(grad_), whole_in = none, whole_out = none, dw_in = none, dw_out = none, dterms = none;
  Tensor dx = none, drate = none;
  if (out) {
    whole_out = matmul(transpose(grad, 0, 1), as_rows(v));
    dw_out = stores(whole_out, {dim, dim});
    last().factor = float(factor);
  }
  Tensor dv = matmul(grad, w_out);
  if (x.dim() == 3) dv = torch::stable::view(dv, sizes_of(x));
  std::vector<bool> long_needs{true, terms, rate, needs[6], false, true};
  auto [du, dcoefficients, ddecay, dskip, unused, dq] =
      constants ? blocks_backward<Current>(dv, u, coefficients, decay, skip, {}, q, starts, ends, horizon, rows, levels,
                                           *constants, long_needs)
                : legendre_conv_backward<Current>(dv, u, coefficients, decay, skip, {}, q, starts, ends, horizon, rows,
                                                  false, long_needs);
  auto [dprojected, dtaps, doffset] = gated_short_conv_backward<Current>(
      du, dq, projected, taps, offset, starts, ends, dim, {x_needed || in, needs[2], needs[3]});
  if (x_needed) {
    dx = matmul(as_rows(dprojected), w_in);
    if (x.dim() == 3) dx = torch::stable::view(dx, sizes_of(x));
  }
  if (in) {
    whole_in = matmul(transpose(as_rows(dprojected), 0, 1), as_rows(x));
    dw_in = stores(whole_in, {3 * dim, dim});
    last().factor = float(factor);
  }
  if (terms) {
    dterms = stores(dcoefficients, {dcoefficients.numel()});
    last().scale = stored(scales), last().each = coefficients.size(1);
  }
  if (rate) {
    drate = stores(ddecay, {ddecay.numel()});
    last().scale = stored(*decay);
  }
  change(changes, current.stream);
  return {dx, dw_in, dtaps, doffset, dterms, drate, dskip, dw_out};
}

template <class Library>
void define_mixer(Library& m) {
  m.def(
      "mixer(Tensor x, Tensor w_in, Tensor taps, Tensor offset, Tensor terms, Tensor? log_rate, Tensor skip, "
      "Tensor w_out, Tensor scale, Tensor origins, Tensor? starts, Tensor? ends, float factor, int horizon, "
      "int[] levels, Tensor? constants) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, "
      "Tensor, Tensor, Tensor)");
  m.def(
      "mixer_backward(Tensor grad, Tensor x, Tensor projected, Tensor u, Tensor q, Tensor v, Tensor w_in, Tensor w_out, "
      "Tensor taps, Tensor offset, Tensor coefficients, Tensor? decay, Tensor skip, Tensor scale, Tensor? starts, "
      "Tensor? ends, float factor, int horizon, int[] levels, Tensor? constants, bool[] needs) -> (Tensor, Tensor, "
      "Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
}
template <class Current, class Library>
void implement_mixer(Library& m) {
  m.impl("mixer", TORCH_BOX(&mixer<Current>));
  m.impl("mixer_backward", TORCH_BOX(&mixer_backward<Current>));
}

}  // namespace hyenarec::cuda_ops
