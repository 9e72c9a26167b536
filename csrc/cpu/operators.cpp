#include "operators.h"

#include <memory>

#include "blocks.h"
#include "legendre.h"
#include "ops.h"
#include "segments.h"

namespace hyenarec::cpu {
namespace {

// Copies the first `count` columns of a parameter (G, n), which is in the arithmetic type, to each channel of x: to
// (count, D) `by_lag`, otherwise to (D, count).
template <class A>
void spread(const Tensor& parameter, int64_t shared, int64_t count, bool by_lag, A* out) {
  const int64_t groups = parameter.size(0), columns = parameter.size(1), channels = groups * shared;
  const A* in = static_cast<const A*>(parameter.data_ptr());
  for (int64_t d = 0; d < channels; ++d)
    for (int64_t k = 0; k < count; ++k) out[by_lag ? k * channels + d : d * count + k] = in[d / shared * columns + k];
}

Tensor per_channel(const Tensor& parameter_, const Tensor& x, int64_t count, bool by_lag, const char* name) {
  const int64_t channels = x.size(x.dim() - 1);
  STD_TORCH_CHECK(parameter_.dim() == 2 && parameter_.size(0) > 0 && parameter_.size(1) >= count &&
                      channels % parameter_.size(0) == 0,
                  name, ": expected (G, n) with n >= 1 and G a divisor of the ", channels, " channels of x");
  Tensor parameter = in_arithmetic(parameter_, x);
  Tensor out = empty(x, by_lag ? std::vector<int64_t>{count, channels} : std::vector<int64_t>{channels, count},
                     parameter.scalar_type());
  const int64_t shared = channels / parameter.size(0);
  out.scalar_type() == ScalarType::Double
      ? spread(parameter, shared, count, by_lag, static_cast<double*>(out.data_ptr()))
      : spread(parameter, shared, count, by_lag, static_cast<float*>(out.data_ptr()));
  return out;
}

// (C, W) to (W, C)
Tensor lag_major(const Tensor& weight, const Tensor& x) {
  STD_TORCH_CHECK(weight.dim() == 2 && weight.size(0) == x.size(x.dim() - 1) && weight.size(1) > 0,
                  "weight: expected (C, W) with W >= 1 and the channels of x");
  return per_channel(weight, x, weight.size(1), true, "weight");
}

// A plan that applies every tap directly: `taps` of them, for sequences of up to `length` >= `taps` rows.
Plan direct_plan(int64_t taps, int64_t length) {
  Plan plan{};
  plan.horizon = plan.near_taps = plan.num_samples = taps;
  plan.length = length;
  plan.chunk = (std::min(std::max<int64_t>(taps, 64), length) + 7) / 8 * 8;
  plan.far_taps = length > plan.chunk ? taps : 0;
  return plan;
}

Tensor long_conv(const Tensor& x, const Tensor& filter, const MaybeTensor& skip, const MaybeTensor& pre_gate,
                 const MaybeTensor& post_gate, const MaybeTensor& starts, const MaybeTensor& ends, bool last_only) {
  const int64_t longest = longest_of(x, starts, ends);
  STD_TORCH_CHECK(filter.dim() == 2 && filter.size(1) > 0, "filter: expected (G, K) with K >= 1");
  const int64_t taps = std::min(filter.size(1), longest);
  Tensor used = per_channel(filter, x, taps, true, "filter");
  MaybeTensor scale = in_arithmetic(skip, x);
  if (last_only) return conv_last(x, used, {}, {}, scale, pre_gate, post_gate, starts, ends);
  return conv(x, used, {}, {}, scale, pre_gate, post_gate, starts, ends, direct_plan(taps, longest));
}

Tensor legendre_conv(const Tensor& x, const Tensor& coefficients, const MaybeTensor& decay, const MaybeTensor& skip,
                     const MaybeTensor& pre_gate, const MaybeTensor& post_gate, const MaybeTensor& starts,
                     const MaybeTensor& ends, int64_t horizon, bool last_only) {
  const int64_t longest = longest_of(x, starts, ends);
  STD_TORCH_CHECK(horizon > 0, "horizon: expected at least 1, got ", horizon);
  STD_TORCH_CHECK(coefficients.dim() == 2 && coefficients.size(1) > 0, "coefficients: expected (G, N) with N >= 1");
  STD_TORCH_CHECK(!decay || (decay->dim() == 1 && decay->size(0) == coefficients.size(0)),
                  "decay: expected ", coefficients.size(0), " values, one a group");
  const int64_t taps = std::min(horizon, longest), terms = coefficients.size(1);
  Tensor filter = per_channel(coefficients, x, terms, false, "coefficients");
  MaybeTensor rate = decay ? MaybeTensor(event_rate(*decay, x, horizon)) : decay;
  MaybeTensor scale = in_arithmetic(skip, x);
  const BlockPlan* blocks = last_only ? nullptr : block_plan(x, terms, horizon, longest);
  if (blocks) return conv(x, filter, blocks->basis, rate, scale, pre_gate, post_gate, starts, ends, blocks->plan);
  Tensor basis = legendre_at_taps(x, terms, horizon, taps);
  if (last_only) return conv_last(x, filter, basis, rate, scale, pre_gate, post_gate, starts, ends);
  return conv(x, filter, basis, rate, scale, pre_gate, post_gate, starts, ends, direct_plan(taps, longest));
}

Tensor short_conv_by_name(const Tensor& x, const Tensor& weight, const MaybeTensor& bias, const MaybeTensor& starts,
                          const MaybeTensor& ends, std::string activation) {
  STD_TORCH_CHECK(activation.empty() || activation == "silu", "activation: expected none or silu, got ", activation);
  return short_conv(x, lag_major(weight, x), in_arithmetic(bias, x), starts, ends, activation == "silu");
}

std::tuple<Tensor, Tensor> gated_short_conv_of(const Tensor& x, const Tensor& weight, const MaybeTensor& bias,
                                               const MaybeTensor& starts, const MaybeTensor& ends, int64_t dim) {
  return gated_short_conv(x, lag_major(weight, x), in_arithmetic(bias, x), starts, ends, dim);
}

void refuse_quantized(StableIValue*, uint64_t, uint64_t) {
  STD_TORCH_CHECK(false, "hyenarec: quantized tensors are not supported");
}

using torch::stable::detail::StableLibrary;

// Schemas and kernels, which stay registered with torch as long as this object lives. The schemas are those of
// hyenarec_kernels.
struct Operators {
  StableLibrary schemas, kernels;

  explicit Operators(const char* name_space)
      : schemas(StableLibrary::Kind::FRAGMENT, name_space, nullptr, __FILE__, __LINE__),
        kernels(StableLibrary::Kind::IMPL, name_space, "CPU", __FILE__, __LINE__) {
    schemas.def(
        "long_conv(Tensor x, Tensor filter, Tensor? skip, Tensor? pre_gate, Tensor? post_gate, Tensor? starts, "
        "Tensor? ends, bool last_only) -> Tensor");
    schemas.def(
        "legendre_conv(Tensor x, Tensor coefficients, Tensor? decay, Tensor? skip, Tensor? pre_gate, "
        "Tensor? post_gate, Tensor? starts, Tensor? ends, int horizon, bool last_only) -> Tensor");
    schemas.def(
        "short_conv(Tensor x, Tensor weight, Tensor? bias, Tensor? starts, Tensor? ends, str activation) -> Tensor");
    schemas.def(
        "gated_short_conv(Tensor x, Tensor weight, Tensor? bias, Tensor? starts, Tensor? ends, int dim) "
        "-> (Tensor, Tensor)");
    schemas.def(
        "conv_step(Tensor x, Tensor(a!) history, Tensor taps, Tensor steps, Tensor? pre_gate, Tensor? post_gate) "
        "-> Tensor");
    schemas.def(
        "compact_step(Tensor x, Tensor(a!) page, Tensor(b!)[] levels, Tensor near, Tensor[] tables, Tensor steps, "
        "int number, Tensor? pre_gate, Tensor? post_gate) -> Tensor");
    schemas.def(
        "mixer_step(Tensor x, Tensor w_in, Tensor w_out, Tensor(a!) projected, Tensor short_taps, Tensor short_bias, "
        "Tensor(b!)[] memory, Tensor[] tables, Tensor(c!) steps, str gate) -> Tensor");
    schemas.def(
        "block_step(Tensor x, Tensor[] norms, Tensor[] feed_forward, float eps, Tensor w_in, Tensor w_out, "
        "Tensor(a!) projected, Tensor short_taps, Tensor short_bias, Tensor(b!)[] memory, Tensor[] tables, "
        "Tensor(c!) steps, str gate) -> Tensor");
    schemas.def("segments(Tensor? starts, Tensor ends, SymInt rows, bool packed, str op) -> (Tensor, Tensor)");
    schemas.def("runs(Tensor mask, str op) -> (Tensor, Tensor)");
    kernels.impl("long_conv", TORCH_BOX(&long_conv));
    kernels.impl("legendre_conv", TORCH_BOX(&legendre_conv));
    kernels.impl("short_conv", TORCH_BOX(&short_conv_by_name));
    kernels.impl("gated_short_conv", TORCH_BOX(&gated_short_conv_of));
    kernels.impl("conv_step", TORCH_BOX(&conv_step));
    kernels.impl("compact_step", TORCH_BOX(&compact_step));
    kernels.impl("mixer_step", TORCH_BOX(&mixer_step));
    kernels.impl("block_step", TORCH_BOX(&block_step));
    kernels.impl("segments", TORCH_BOX(&segments));
    kernels.impl("runs", TORCH_BOX(&runs));
  }
};

// Null where the operators are defined already; then those serve.
std::unique_ptr<Operators> define() {
  try {
    return std::make_unique<Operators>("hyenarec");
  } catch (const std::exception&) {
    return nullptr;
  }
}
std::unique_ptr<Operators> operators = define();
const Operators native{"hyenarec_native"};  // these Python never takes over

}  // namespace

void leave_operators_to_python() { operators.reset(); }

// These stay registered. A loaded package points at torch's record of each operator, and the record lives as long as
// any kernel of the operator.
STABLE_TORCH_LIBRARY_IMPL(hyenarec, QuantizedCPU, m) {
  for (const char* name : {"long_conv", "legendre_conv", "short_conv", "gated_short_conv", "conv_step", "compact_step",
                           "mixer_step", "block_step", "segments", "runs"})
    m.impl(name, refuse_quantized);
}

}  // namespace hyenarec::cpu
