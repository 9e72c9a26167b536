// Reads tensors into plain structs, allocates outputs and registers the ops of namespace hyenarec_cpu. Arguments are
// checked by the Python side; what is checked here is what would otherwise read out of bounds.
#include "../common/tensors.h"
#include "args.h"
#include "wire.h"

#include <cstring>

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

void parallel(int64_t count, hyenarec::Body body, void* context) {
  torch::stable::parallel_for(0, count, 1, [=](int64_t begin, int64_t end) { body(context, begin, end); });
}

ScalarType arithmetic(Dtype dtype) { return dtype == Dtype::f64 ? ScalarType::Double : ScalarType::Float; }

const void* values(const Tensor& t, Dtype dtype, int64_t count, const char* name) {
  STD_TORCH_CHECK(t.scalar_type() == arithmetic(dtype) && t.is_contiguous() && t.numel() == count, name,
                  ": expected ", count, " contiguous values of the arithmetic type");
  return t.data_ptr();
}

// A gate or gradient beside `x`, of these sizes: kernels read it by the sizes of x.
MaybeTensor beside(const Tensor& x, const MaybeTensor& t, const std::vector<int64_t>& sizes, const char* name) {
  STD_TORCH_CHECK(!t || (sizes_of(*t) == sizes && t->scalar_type() == x.scalar_type()), name,
                  ": expected the dtype of x and one value for each value of the output");
  return unit_stride(t);
}

// `starts` or `ends`: reads one value a sequence.
class Index {
 public:
  Index(const MaybeTensor& t, int64_t count, const char* name) {
    if (!t) return;
    ScalarType type = t->scalar_type();
    STD_TORCH_CHECK(t->dim() == 1 && t->size(0) == count && (type == ScalarType::Long || type == ScalarType::Int), name,
                    ": expected ", count, " values of int32 or int64");
    data_ = t->data_ptr(), wide_ = type == ScalarType::Long, stride_ = t->stride(0);
  }
  int64_t at(int64_t i, int64_t otherwise) const {
    if (!data_) return otherwise;
    return wide_ ? static_cast<const int64_t*>(data_)[i * stride_] : static_cast<const int32_t*>(data_)[i * stride_];
  }

 private:
  const void* data_ = nullptr;
  bool wide_ = false;
  int64_t stride_ = 0;
};

// Sequences by starts and ends: positions in their batch row (padded), or rows of x, which they cover in order (packed).
// Refuses what the operators' own checks refuse, which compiled and exported programs may come without.
std::vector<Sequence> sequences_of(const Tensor& x, const MaybeTensor& starts, const MaybeTensor& ends) {
  STD_TORCH_CHECK(x.dim() == 2 || x.dim() == 3, "x: expected padded (B, L, D) or packed (T, D)");
  const bool packed = x.dim() == 2;
  const int64_t rows = x.size(packed ? 0 : 1), count = !packed ? x.size(0) : ends ? ends->size(0) : 1;
  Index first(starts, count, "starts"), last(ends, count, "ends");
  std::vector<Sequence> sequences(count);
  int64_t reached = 0;
  for (int64_t s = 0; s < count; ++s) {
    int64_t start = first.at(s, 0), end = last.at(s, rows);
    STD_TORCH_CHECK(0 <= start && start <= end && end <= rows, packed ? "sequence " : "row ", s, " runs from ", start,
                    " to ", end, ", which does not lie within its ", rows, packed ? " rows" : " positions");
    STD_TORCH_CHECK(!packed || start == reached, "cu_seqlens: sequence ", s, " begins at row ", start, " and not at ",
                    reached, ": packed sequences must cover the rows of x in order");
    sequences[s] = {packed ? 0 : s, start, end - start};
    reached = end;
  }
  STD_TORCH_CHECK(!packed || reached == rows, "cu_seqlens must run from 0 to the ", rows, " rows of x, got 0 to ", reached);
  return sequences;
}

// The plan as wire.h describes it, with pointers into `constants`, an array of the arithmetic type.
Plan plan_of(const Tensor& numbers, const Tensor& constants, const Tensor& x) {
  using hyenarec::kHeadFields;
  using hyenarec::kLevelFields;
  const int64_t count = numbers.numel();
  STD_TORCH_CHECK(numbers.scalar_type() == ScalarType::Long && numbers.is_contiguous() && count >= kHeadFields,
                  "plan: expected at least ", kHeadFields, " contiguous int64");
  const auto* values = static_cast<const int64_t*>(numbers.data_ptr());
  hyenarec::WireHead head;
  std::memcpy(&head, values, sizeof head);
  STD_TORCH_CHECK(head.version == hyenarec::kInterface && head.head_fields == kHeadFields &&
                      head.level_fields == kLevelFields,
                  "plan: it is of version ", head.version, " with ", head.head_fields, " + ", head.level_fields,
                  " fields, and the compiled extension reads version ", hyenarec::kInterface, " with ", kHeadFields,
                  " + ", kLevelFields, ": reinstall");
  const int64_t levels = (count - kHeadFields) / kLevelFields;
  STD_TORCH_CHECK(count == kHeadFields + levels * kLevelFields && levels <= hyenarec::kMaxLevels,
                  "plan: expected ", kLevelFields, " values for each of at most ", hyenarec::kMaxLevels, " levels, got ",
                  count - kHeadFields);
  STD_TORCH_CHECK(constants.scalar_type() == arithmetic(dtype_of(x)) && constants.is_contiguous(),
                  "constants: expected contiguous values of the arithmetic type");
  auto constant = [&](int64_t offset, int64_t needed) {
    STD_TORCH_CHECK(0 <= offset && offset + needed <= constants.numel(), "plan: it reads past its ", constants.numel(),
                    " constants");
    return static_cast<const char*>(constants.data_ptr()) + offset * int64_t(constants.element_size());
  };
  Plan plan{head.horizon, head.length, head.chunk, head.near_taps, head.far_lag, head.far_taps, head.far_row,
            head.num_samples, constant(head.lags, head.num_samples), int(levels), {}};
  STD_TORCH_CHECK(plan.chunk > 0 && plan.chunk % 8 == 0, "plan: chunks of ", plan.chunk, " rows are no whole tiles of 8");
  for (int64_t l = 0; l < levels; ++l) {
    hyenarec::WireLevel v;
    std::memcpy(&v, values + kHeadFields + l * kLevelFields, sizeof v);
    STD_TORCH_CHECK(0 < v.rank && v.rank <= hyenarec::kMaxRank && 0 < v.nodes && v.nodes <= hyenarec::kMaxNodes,
                    "plan: rank ", v.rank, " or ", v.nodes, " nodes too large");
    plan.levels[l] = {v.chunk,     v.fan,       v.rank,       v.degree,
                      v.nodes,     v.near_pairs, v.far_first, v.far_pairs,
                      v.sample_row, constant(v.moments, v.half * v.rank), constant(v.from_nodes, 0), v.half};
  }
  return plan;
}

struct Inputs {
  Tensor x;
  MaybeTensor pre_gate, post_gate;
  std::vector<Sequence> sequences;
  std::vector<int64_t> outputs;  // their sizes
  Plan plan;
  ConvArgs args{};

  Inputs(const Tensor& x_, const Tensor& filter, const MaybeTensor& basis, const MaybeTensor& skip,
         const MaybeTensor& pre, const MaybeTensor& post, const MaybeTensor& starts, const MaybeTensor& ends,
         const Plan& plan_, const MaybeTensor& rate = {}, bool last_only = false)
      : x(unit_stride(x_)), sequences(sequences_of(x, starts, ends)), plan(plan_) {
    outputs = last_only ? std::vector<int64_t>{int64_t(sequences.size()), x.size(x.dim() - 1)} : sizes_of(x);
    pre_gate = beside(x, pre, sizes_of(x), "pre_gate");
    post_gate = beside(x, post, outputs, "post_gate");
    for (const Sequence& sequence : sequences)
      STD_TORCH_CHECK(sequence.length <= plan.length, "plan: it serves sequences of at most ", plan.length,
                      " rows, and one has ", sequence.length);
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
  Inputs in(x, filter, basis, skip, pre_gate, post_gate, starts, ends, plan_of(plan, constants, x), rate);
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
  Tensor grad = *beside(in.x, grad_, in.outputs, "grad");
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
  Inputs in(x, filter, basis, skip, pre_gate, post_gate, starts, ends, plan_of(plan, constants, x), rate);
  bool wanted = needs[2] && rate;
  Tensor drate = empty(x, {wanted ? in.args.channels : 0}, arithmetic(in.args.dtype));
  in.args.drate = wanted ? drate.data_ptr() : nullptr;
  needs.erase(needs.begin() + 2);
  auto [dx, dfilter, dskip, dpre, dpost] =
      gradients(hyenarec::kernels().conv_backward, in, grad, x, filter, skip, pre_gate, post_gate, needs);
  return {dx, dfilter, drate, dskip, dpre, dpost};
}

// A plan for the forms that use every tap, lag 0 first.
Plan plan_of_taps(int64_t taps) {
  Plan plan{};
  plan.length = INT64_MAX;
  plan.near_taps = plan.num_samples = taps;
  return plan;
}

// x (B, L, D) or (T, D) to the last row of each sequence, (sequences, D); filter, basis and rate as in conv, at every
// lag from 0 on.
Tensor conv_last(const Tensor& x, const Tensor& filter, const MaybeTensor& basis, const MaybeTensor& rate,
                 const MaybeTensor& skip, const MaybeTensor& pre_gate, const MaybeTensor& post_gate,
                 const MaybeTensor& starts, const MaybeTensor& ends) {
  Plan plan = plan_of_taps(basis ? basis->size(0) : filter.size(0));
  Inputs in(x, filter, basis, skip, pre_gate, post_gate, starts, ends, plan, rate, true);
  Tensor out = empty(x, {in.args.num_sequences, in.args.channels}, x.scalar_type());
  in.args.out = rows_of(out);
  hyenarec::kernels().conv_last(in.args, parallel);
  return out;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> conv_last_backward(
    const Tensor& grad, const Tensor& x, const Tensor& taps, const MaybeTensor& skip, const MaybeTensor& pre_gate,
    const MaybeTensor& post_gate, const MaybeTensor& starts, const MaybeTensor& ends, std::vector<bool> needs) {
  Inputs in(x, taps, {}, skip, pre_gate, post_gate, starts, ends, plan_of_taps(taps.size(0)), {}, true);
  return gradients(hyenarec::kernels().conv_last_backward, in, grad, x, taps, skip, pre_gate, post_gate, needs);
}

// x (B, D), the newest row of each sequence, to (B, D); `history` (B, k, D) are rings, written to; `taps` (k + 1, D),
// the largest lag first; `steps` (B,) int64. Rings whose channels do not lie side by side are copied there and back.
Tensor conv_step(const Tensor& x_, const Tensor& history, const Tensor& taps_, const Tensor& steps_,
                 const MaybeTensor& pre_gate_, const MaybeTensor& post_gate_) {
  STD_TORCH_CHECK(x_.dim() == 2, "x: expected (B, D)");
  Tensor x = unit_stride(x_), taps = torch::stable::contiguous(taps_), steps = torch::stable::contiguous(steps_);
  const int64_t batch = x.size(0), channels = x.size(1);
  MaybeTensor pre_gate = beside(x, pre_gate_, {batch, channels}, "pre_gate");
  MaybeTensor post_gate = beside(x, post_gate_, {batch, channels}, "post_gate");
  Dtype dtype = dtype_of(x);
  STD_TORCH_CHECK(history.dim() == 3 && history.size(0) == batch && history.size(2) == channels &&
                      history.scalar_type() == arithmetic(dtype),
                  "history: expected (", batch, ", k, ", channels, ") of the arithmetic type");
  const int64_t slots = history.size(1);
  STD_TORCH_CHECK(steps.scalar_type() == ScalarType::Long && steps.numel() == batch, "steps: expected ", batch, " int64");
  const bool in_place = channels == 1 || history.stride(2) == 1;
  Tensor rings = in_place ? history : torch::stable::contiguous(history);
  Tensor out = empty(x, {batch, channels}, x.scalar_type());
  StepArgs args{batch, channels, slots, dtype, rows_of(x), rows_of(pre_gate), rows_of(post_gate), rows_of(out),
                rows_of(rings), values(taps, dtype, (slots + 1) * channels, "taps"),
                static_cast<const int64_t*>(steps.data_ptr())};
  hyenarec::kernels().conv_step(args, parallel);
  if (!in_place) {
    Tensor to = history;
    torch::stable::copy_(to, rings);
  }
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
    STD_TORCH_CHECK(args.width > 0, "weight: expected at least one tap");
    STD_TORCH_CHECK(dim > 0 && args.channels % dim == 0, "dim: ", dim, " is no divisor of ", args.channels,
                    " channels");
    args.dtype = dtype_of(x);
    args.x = rows_of(x);
    args.weight = values(weight, args.dtype, args.width * args.channels, "weight");
    args.bias = bias ? values(*bias, args.dtype, args.channels, "bias") : nullptr;
  }
  // Of a tensor beside x with so many channels.
  std::vector<int64_t> sizes(int64_t channels) const {
    std::vector<int64_t> sizes = sizes_of(x);
    sizes.back() = channels;
    return sizes;
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
  Tensor u = empty(x, in.sizes(dim), x.scalar_type());
  Tensor q = empty(x, in.sizes(in.args.channels - 2 * dim), x.scalar_type());
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

std::string isa() { return hyenarec::kernels().name; }
int64_t interface() { return hyenarec::kInterface; }
std::string plan_fields() { return std::string(hyenarec::kHeadNames) + "/ " + hyenarec::kLevelNames; }
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
  m.def("interface() -> int");
  m.def("plan_fields() -> str");
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
  m.impl("interface", TORCH_BOX(&interface));
  m.impl("plan_fields", TORCH_BOX(&plan_fields));
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
