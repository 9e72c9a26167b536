// Reads tensors into plain structs, allocates outputs and registers the ops of namespace hyenarec_cpu. Arguments are
// checked by the Python side; what is checked here is what would otherwise read out of bounds.
#include "../common/tensors.h"
#include "args.h"
#include "wire.h"

#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

namespace {

using hyenarec::ConvArgs;
using hyenarec::Dtype;
using hyenarec::dtype_of;
using hyenarec::empty;
using hyenarec::MaybeTensor;
using hyenarec::Plan;
using hyenarec::Rows;
using hyenarec::rows_of;
using hyenarec::ScalarType;
using hyenarec::Sequence;
using hyenarec::ShortConvArgs;
using hyenarec::sizes_of;
using hyenarec::StepArgs;
using hyenarec::Tensor;
using hyenarec::unit_stride;

// Subnormal numbers count as 0 while this lives: windows make them by the thousand, and one operation on them takes as
// long as a hundred others (2 x 16384 with windows of all lengths, one core: 4.3 ms, and 2.5 with them cut to 0).
struct FlushSubnormals {
#if defined(__SSE2__)
  unsigned before = _mm_getcsr();
  FlushSubnormals() { _mm_setcsr(before | 0x8040); }  // results, and operands
  ~FlushSubnormals() { _mm_setcsr(before); }
#endif
};

void parallel(int64_t count, hyenarec::Body body, void* context) {
  torch::stable::parallel_for(0, count, 1, [=](int64_t begin, int64_t end) {
    [[maybe_unused]] FlushSubnormals here;
    body(context, begin, end);
  });
}

ScalarType arithmetic(Dtype dtype) { return dtype == Dtype::f64 ? ScalarType::Double : ScalarType::Float; }

const void* values(const Tensor& t, Dtype dtype, int64_t count, const char* name) {
  STD_TORCH_CHECK(t.scalar_type() == arithmetic(dtype) && t.is_contiguous() && t.numel() == count, name,
                  ": expected ", count, " contiguous values of the arithmetic type");
  return t.data_ptr();
}

int64_t index_at(const Tensor& t, int64_t i) {
  return t.scalar_type() == ScalarType::Long ? static_cast<const int64_t*>(t.data_ptr())[i * t.stride(0)]
                                             : static_cast<const int32_t*>(t.data_ptr())[i * t.stride(0)];
}

// Sequences by starts and ends: positions in their batch row (padded) or rows of x (packed).
std::vector<Sequence> sequences_of(const Tensor& x, const MaybeTensor& starts, const MaybeTensor& ends) {
  bool packed = x.dim() == 2;
  int64_t rows = x.size(packed ? 0 : 1);
  int64_t count = ends ? ends->size(0) : packed ? 1 : x.size(0);
  STD_TORCH_CHECK(packed || count == x.size(0), "ends: expected one a batch row");
  std::vector<Sequence> sequences(count);
  for (int64_t s = 0; s < count; ++s) {
    int64_t start = starts ? index_at(*starts, s) : 0, end = ends ? index_at(*ends, s) : rows;
    STD_TORCH_CHECK(0 <= start && start <= end && end <= rows, "starts, ends: sequence ", s, " is [", start, ", ", end,
                    "), outside [0, ", rows, ")");
    sequences[s] = {packed ? 0 : s, start, end - start};
  }
  return sequences;
}

// The plan from its numbers (wire.h), whose offsets point into one array of constants.
Plan plan_of(const Tensor& numbers, const Tensor& constants) {
  constexpr int64_t kPlan = sizeof(hyenarec::PlanNumbers) / 8, kLevel = sizeof(hyenarec::LevelNumbers) / 8;
  STD_TORCH_CHECK(numbers.scalar_type() == ScalarType::Long && numbers.is_contiguous() && numbers.numel() >= kPlan,
                  "plan: expected at least ", kPlan, " contiguous int64");
  const auto& n = *static_cast<const hyenarec::PlanNumbers*>(numbers.data_ptr());
  STD_TORCH_CHECK(n.version == hyenarec::kPlanVersion, "plan: version ", n.version, ", but this extension reads version ",
                  hyenarec::kPlanVersion);
  STD_TORCH_CHECK(n.levels >= 0 && n.levels <= hyenarec::kMaxLevels, "plan: ", n.levels, " levels, of at most ",
                  hyenarec::kMaxLevels);
  STD_TORCH_CHECK(numbers.numel() == kPlan + n.levels * kLevel, "plan: ", numbers.numel(), " numbers for ", n.levels,
                  " levels");
  STD_TORCH_CHECK(n.chunk % 8 == 0, "plan: chunks of ", n.chunk, " rows are no whole tiles of 8");
  const char* base = static_cast<const char*>(constants.data_ptr());
  auto at = [base, size = constants.element_size()](int64_t offset) -> const void* { return base + offset * size; };
  Plan plan{n.horizon, n.chunk, n.near_taps, n.far_lag, n.far_taps, n.far_row, n.samples, at(n.lags), int(n.levels), {}};
  const auto* levels = reinterpret_cast<const hyenarec::LevelNumbers*>(&n + 1);
  for (int l = 0; l < plan.num_levels; ++l) {
    const auto& v = levels[l];
    STD_TORCH_CHECK(v.rank <= hyenarec::kMaxRank && v.nodes <= hyenarec::kMaxNodes, "plan: rank ", v.rank, " or ",
                    v.nodes, " nodes too large");
    plan.levels[l] = {v.chunk,      v.fan,       v.rank,       v.degree,      v.nodes,          v.near_pairs,
                      v.far_first,  v.far_pairs, v.sample_row, at(v.moments), at(v.from_nodes), v.half};
  }
  return plan;
}

struct Inputs {
  Tensor x;
  MaybeTensor pre_gate, post_gate;
  std::vector<Sequence> sequences;
  Plan plan;
  ConvArgs args;

  Inputs(const Tensor& x_, const Tensor& filter, const MaybeTensor& basis, const MaybeTensor& skip,
         const MaybeTensor& pre, const MaybeTensor& post, const MaybeTensor& starts, const MaybeTensor& ends,
         const Plan& plan_, const MaybeTensor& rate = {})
      : x(unit_stride(x_)), pre_gate(unit_stride(pre)), post_gate(unit_stride(post)),
        sequences(sequences_of(x, starts, ends)), plan(plan_) {
    args.plan = &plan;
    args.sequences = sequences.data();
    args.num_sequences = int64_t(sequences.size());
    args.channels = x.size(x.dim() - 1);
    args.padded_length = x.dim() == 3 ? x.size(1) : 0;
    args.threads = torch::stable::get_num_threads();
    args.dtype = dtype_of(x);
    args.x = rows_of(x);
    args.pre_gate = rows_of(pre_gate);
    args.post_gate = rows_of(post_gate);
    args.terms = basis ? filter.size(1) : 0;
    args.filter = values(filter, args.dtype, (basis ? args.terms : plan.num_samples) * args.channels, "filter");
    args.basis = basis ? values(*basis, args.dtype, plan.num_samples * args.terms, "basis") : nullptr;
    args.rate = rate ? values(*rate, args.dtype, args.channels, "rate") : nullptr;
    args.skip = skip ? values(*skip, args.dtype, args.channels, "skip") : nullptr;
  }
};

// `filter` (num_samples, D): its values at the plan's lags; with `basis` (num_samples, N), coefficients (D, N). With
// `rate` (D,) it is multiplied by exp(-rate * lag).
Tensor conv(const Tensor& x, const Tensor& filter, const MaybeTensor& basis, const MaybeTensor& rate,
            const MaybeTensor& skip, const MaybeTensor& pre_gate, const MaybeTensor& post_gate,
            const MaybeTensor& starts, const MaybeTensor& ends, const Tensor& plan, const Tensor& constants) {
  Inputs in(x, filter, basis, skip, pre_gate, post_gate, starts, ends, plan_of(plan, constants), rate);
  Tensor out = empty(x, sizes_of(x), x.scalar_type());
  in.args.out = rows_of(out);
  hyenarec::kernels().conv_forward(in.args, parallel);
  return out;
}

// Gradients of x, filter, skip, pre_gate and post_gate by one kernel; empty where not needed.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> gradients(
    void (*kernel)(const ConvArgs&, hyenarec::ParallelFor), Inputs& in, const Tensor& grad_, const Tensor& x,
    const Tensor& filter, const MaybeTensor& skip, const MaybeTensor& pre_gate, const MaybeTensor& post_gate,
    const std::vector<bool>& needs) {
  STD_TORCH_CHECK(needs.size() == 5, "needs: expected 5 flags");
  Tensor grad = unit_stride(grad_);
  in.args.grad = rows_of(grad);
  auto like = [&](bool needed, const Tensor& t, ScalarType type) {
    return empty(x, needed ? sizes_of(t) : std::vector<int64_t>{0}, type);
  };
  ScalarType type = x.scalar_type(), wide = arithmetic(in.args.dtype);
  Tensor dx = like(needs[0], x, type), dfilter = like(needs[1], filter, wide);
  Tensor dskip = like(needs[2] && skip, skip ? *skip : x, wide);
  Tensor dpre = like(needs[3] && pre_gate, x, type), dpost = like(needs[4] && post_gate, grad, type);
  auto rows = [](const Tensor& t) { return t.dim() > 1 ? rows_of(t) : Rows{}; };
  in.args.dx = rows(dx);
  in.args.dpre_gate = rows(dpre);
  in.args.dpost_gate = rows(dpost);
  in.args.dfilter = needs[1] ? dfilter.data_ptr() : nullptr;
  in.args.dskip = needs[2] && skip ? dskip.data_ptr() : nullptr;
  kernel(in.args, parallel);
  return {dx, dfilter, dskip, dpre, dpost};
}

// Gradients of x, filter, rate, skip, pre_gate and post_gate.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> conv_backward(
    const Tensor& grad, const Tensor& x, const Tensor& filter, const MaybeTensor& basis, const MaybeTensor& rate,
    const MaybeTensor& skip, const MaybeTensor& pre_gate, const MaybeTensor& post_gate, const MaybeTensor& starts,
    const MaybeTensor& ends, const Tensor& plan, const Tensor& constants, std::vector<bool> needs) {
  STD_TORCH_CHECK(needs.size() == 6, "needs: expected 6 flags");
  Inputs in(x, filter, basis, skip, pre_gate, post_gate, starts, ends, plan_of(plan, constants), rate);
  bool wanted = needs[2] && rate;
  Tensor drate = empty(x, {wanted ? in.args.channels : 0}, arithmetic(in.args.dtype));
  in.args.drate = wanted ? drate.data_ptr() : nullptr;
  needs.erase(needs.begin() + 2);
  auto [dx, dfilter, dskip, dpre, dpost] =
      gradients(hyenarec::kernels().conv_backward, in, grad, x, filter, skip, pre_gate, post_gate, needs);
  return {dx, dfilter, drate, dskip, dpre, dpost};
}

// A plan for the forms that use every tap, lag 0 first.
Plan plan_of_taps(int64_t taps) { return {0, 0, taps, 0, 0, 0, taps, nullptr, 0, {}}; }

// x (B, L, D) or (T, D) to the last row of each sequence, (sequences, D); filter, basis and rate as in conv, at every
// lag from 0 on.
Tensor conv_last(const Tensor& x, const Tensor& filter, const MaybeTensor& basis, const MaybeTensor& rate,
                 const MaybeTensor& skip, const MaybeTensor& pre_gate, const MaybeTensor& post_gate,
                 const MaybeTensor& starts, const MaybeTensor& ends) {
  Plan plan = plan_of_taps(basis ? basis->size(0) : filter.size(0));
  Inputs in(x, filter, basis, skip, pre_gate, post_gate, starts, ends, plan, rate);
  Tensor out = empty(x, {in.args.num_sequences, in.args.channels}, x.scalar_type());
  in.args.out = rows_of(out);
  hyenarec::kernels().conv_last(in.args, parallel);
  return out;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> conv_last_backward(
    const Tensor& grad, const Tensor& x, const Tensor& taps, const MaybeTensor& skip, const MaybeTensor& pre_gate,
    const MaybeTensor& post_gate, const MaybeTensor& starts, const MaybeTensor& ends, std::vector<bool> needs) {
  Inputs in(x, taps, {}, skip, pre_gate, post_gate, starts, ends, plan_of_taps(taps.size(0)));
  return gradients(hyenarec::kernels().conv_last_backward, in, grad, x, taps, skip, pre_gate, post_gate, needs);
}

// x (B, D), the newest row of each sequence, to (B, D); `history` (B, k, D) are rings, written to; `taps` (k + 1, D),
// the largest lag first; `steps` (B,) int64.
Tensor conv_step(const Tensor& x_, const Tensor& history, const Tensor& taps, const Tensor& steps,
                 const MaybeTensor& pre_gate_, const MaybeTensor& post_gate_) {
  Tensor x = unit_stride(x_), out = empty(x, {x.size(0), x.size(1)}, x.scalar_type());
  MaybeTensor pre_gate = unit_stride(pre_gate_), post_gate = unit_stride(post_gate_);
  Dtype dtype = dtype_of(x);
  int64_t batch = x.size(0), channels = x.size(1), slots = history.size(1);
  STD_TORCH_CHECK(history.dim() == 3 && history.size(0) == batch && history.size(2) == channels &&
                      (channels == 1 || history.stride(2) == 1) && history.scalar_type() == arithmetic(dtype),
                  "history: expected (", batch, ", k, ", channels, ") of the arithmetic type, adjacent channels");
  STD_TORCH_CHECK(steps.scalar_type() == ScalarType::Long && steps.is_contiguous() && steps.numel() == batch,
                  "steps: expected ", batch, " contiguous int64");
  StepArgs args{batch, channels, slots, dtype, rows_of(x), rows_of(pre_gate), rows_of(post_gate), rows_of(out),
                rows_of(history), values(taps, dtype, (slots + 1) * channels, "taps"),
                static_cast<const int64_t*>(steps.data_ptr())};
  hyenarec::kernels().conv_step(args, parallel);
  return out;
}

// What the short convolutions and their backwards share. `weight` is (width, C), lag 0 first; nothing is multiplied in
// where `dim` is C.
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
    STD_TORCH_CHECK(dim > 0 && args.channels % dim == 0, "dim: ", dim, " is no divisor of ", args.channels,
                    " channels");
    args.dtype = dtype_of(x);
    args.x = rows_of(x);
    args.weight = values(weight, args.dtype, args.width * args.channels, "weight");
    args.bias = bias ? values(*bias, args.dtype, args.channels, "bias") : nullptr;
  }
};

Tensor short_conv(const Tensor& x, const Tensor& weight, const MaybeTensor& bias, const MaybeTensor& starts,
                  const MaybeTensor& ends, bool silu) {
  ShortInputs in(x, weight, bias, starts, ends, x.size(x.dim() - 1), silu);
  Tensor out = empty(x, sizes_of(x), x.scalar_type());
  in.args.out = rows_of(out);
  hyenarec::kernels().short_conv(in.args, false, parallel);
  return out;
}

// The first `dim` of the short convolution's channels times the last, and those between.
std::tuple<Tensor, Tensor> gated_short_conv(const Tensor& x, const Tensor& weight, const MaybeTensor& bias,
                                            const MaybeTensor& starts, const MaybeTensor& ends, int64_t dim) {
  ShortInputs in(x, weight, bias, starts, ends, dim, false);
  STD_TORCH_CHECK(in.args.channels >= 2 * dim, "dim: ", dim, " is more than half of ", in.args.channels, " channels");
  auto like = [&](int64_t channels) {
    std::vector<int64_t> sizes = sizes_of(x);
    sizes.back() = channels;
    return empty(x, sizes, x.scalar_type());
  };
  Tensor u = like(dim), q = like(in.args.channels - 2 * dim);
  in.args.out = rows_of(u);
  in.args.rest = rows_of(q);
  hyenarec::kernels().short_conv(in.args, false, parallel);
  return {u, q};
}

using ShortGradients = std::tuple<Tensor, Tensor, Tensor>;  // of x, weight and bias; empty where not needed

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
  hyenarec::kernels().short_conv(in.args, true, parallel);
  return {dx, dweight, dbias};
}

ShortGradients short_conv_backward(const Tensor& grad_, const Tensor& x, const Tensor& weight, const MaybeTensor& bias,
                                   const MaybeTensor& starts, const MaybeTensor& ends, bool silu,
                                   std::vector<bool> needs) {
  ShortInputs in(x, weight, bias, starts, ends, x.size(x.dim() - 1), silu);
  Tensor grad = unit_stride(grad_);
  in.args.grad = rows_of(grad);
  return short_gradients(in, weight, bias, needs);
}

ShortGradients gated_short_conv_backward(const Tensor& grad_u, const Tensor& grad_q, const Tensor& x,
                                         const Tensor& weight, const MaybeTensor& bias, const MaybeTensor& starts,
                                         const MaybeTensor& ends, int64_t dim, std::vector<bool> needs) {
  ShortInputs in(x, weight, bias, starts, ends, dim, false);
  Tensor products = unit_stride(grad_u), rest = unit_stride(grad_q);
  in.args.grad = rows_of(products);
  in.args.grad_rest = rows_of(rest);
  return short_gradients(in, weight, bias, needs);
}

// `x` with each element 0 by a chance of dropped / 256 and the others scaled up by as much, or its GELU so; the mask
// follows from `seed` (one int64) and an element's place in contiguous memory.
Tensor drop(const MaybeTensor& grad_, const Tensor& x_, const Tensor& seed, int64_t dropped, bool gelu) {
  STD_TORCH_CHECK(seed.scalar_type() == ScalarType::Long && seed.numel() == 1, "seed: expected one int64");
  STD_TORCH_CHECK(0 <= dropped && dropped < 256, "dropped: expected 0 to 255, got ", dropped);
  Tensor x = torch::stable::contiguous(x_), out = empty(x, sizes_of(x), x.scalar_type());
  MaybeTensor grad = grad_ ? MaybeTensor(torch::stable::contiguous(*grad_)) : grad_;
  STD_TORCH_CHECK(!grad || (grad->numel() == x.numel() && grad->scalar_type() == x.scalar_type()),
                  "grad: expected the shape and dtype of x");
  hyenarec::kernels().dropout({x.numel(), dtype_of(x), *static_cast<const uint64_t*>(seed.data_ptr()), int(dropped),
                               gelu, x.data_ptr(), grad ? grad->data_ptr() : nullptr, out.data_ptr()},
                              parallel);
  return out;
}

Tensor dropout(const Tensor& x, const Tensor& seed, int64_t dropped, bool gelu) {
  return drop({}, x, seed, dropped, gelu);
}

Tensor dropout_backward(const Tensor& grad, const Tensor& x, const Tensor& seed, int64_t dropped, bool gelu) {
  return drop(grad, x, seed, dropped, gelu);
}

std::string plan_format() {
  return "version " + std::to_string(hyenarec::kPlanVersion) + ": " + hyenarec::plan_format_names();
}
std::string isa() { return hyenarec::kernels().name; }
int64_t scratch_peak() { return hyenarec::scratch_peak(); }
double peak(int64_t steps) { return hyenarec::kernels().peak(steps, parallel); }

}  // namespace

STABLE_TORCH_LIBRARY(hyenarec_cpu, m) {
  m.def(
      "conv(Tensor x, Tensor filter, Tensor? basis, Tensor? rate, Tensor? skip, Tensor? pre_gate, "
      "Tensor? post_gate, Tensor? starts, Tensor? ends, Tensor plan, Tensor constants) -> Tensor");
  m.def(
      "conv_backward(Tensor grad, Tensor x, Tensor filter, Tensor? basis, Tensor? rate, Tensor? skip, "
      "Tensor? pre_gate, Tensor? post_gate, Tensor? starts, Tensor? ends, Tensor plan, Tensor constants, bool[] needs) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "conv_last(Tensor x, Tensor filter, Tensor? basis, Tensor? rate, Tensor? skip, Tensor? pre_gate, "
      "Tensor? post_gate, Tensor? starts, Tensor? ends) -> Tensor");
  m.def(
      "conv_last_backward(Tensor grad, Tensor x, Tensor taps, Tensor? skip, Tensor? pre_gate, Tensor? post_gate, "
      "Tensor? starts, Tensor? ends, bool[] needs) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "conv_step(Tensor x, Tensor(a!) history, Tensor taps, Tensor steps, Tensor? pre_gate, Tensor? post_gate) "
      "-> Tensor");
  m.def("short_conv(Tensor x, Tensor weight, Tensor? bias, Tensor? starts, Tensor? ends, bool silu) -> Tensor");
  m.def(
      "short_conv_backward(Tensor grad, Tensor x, Tensor weight, Tensor? bias, Tensor? starts, Tensor? ends, "
      "bool silu, bool[] needs) -> (Tensor, Tensor, Tensor)");
  m.def(
      "gated_short_conv(Tensor x, Tensor weight, Tensor? bias, Tensor? starts, Tensor? ends, int dim) "
      "-> (Tensor, Tensor)");
  m.def(
      "gated_short_conv_backward(Tensor grad_u, Tensor grad_q, Tensor x, Tensor weight, Tensor? bias, Tensor? starts, "
      "Tensor? ends, int dim, bool[] needs) -> (Tensor, Tensor, Tensor)");
  m.def("dropout(Tensor x, Tensor seed, int dropped, bool gelu) -> Tensor");
  m.def("dropout_backward(Tensor grad, Tensor x, Tensor seed, int dropped, bool gelu) -> Tensor");
  m.def("plan_format() -> str");
  m.def("isa() -> str");
  m.def("scratch_peak() -> int");
  m.def("peak(int steps) -> float");
}
STABLE_TORCH_LIBRARY_IMPL(hyenarec_cpu, CPU, m) {
  m.impl("conv", TORCH_BOX(&conv));
  m.impl("conv_backward", TORCH_BOX(&conv_backward));
  m.impl("conv_last", TORCH_BOX(&conv_last));
  m.impl("conv_last_backward", TORCH_BOX(&conv_last_backward));
  m.impl("conv_step", TORCH_BOX(&conv_step));
  m.impl("short_conv", TORCH_BOX(&short_conv));
  m.impl("short_conv_backward", TORCH_BOX(&short_conv_backward));
  m.impl("gated_short_conv", TORCH_BOX(&gated_short_conv));
  m.impl("gated_short_conv_backward", TORCH_BOX(&gated_short_conv_backward));
  m.impl("dropout", TORCH_BOX(&dropout));
  m.impl("dropout_backward", TORCH_BOX(&dropout_backward));
}
STABLE_TORCH_LIBRARY_IMPL(hyenarec_cpu, CompositeExplicitAutograd, m) {
  m.impl("plan_format", TORCH_BOX(&plan_format));
  m.impl("isa", TORCH_BOX(&isa));
  m.impl("scratch_peak", TORCH_BOX(&scratch_peak));
  m.impl("peak", TORCH_BOX(&peak));
}

#include <Python.h>
PyMODINIT_FUNC PyInit__C() {
  static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr,
                                   nullptr};
  return PyModule_Create(&definition);
}
