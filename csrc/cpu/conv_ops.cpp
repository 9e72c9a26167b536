// The long convolution of tensors: forward, gradients, last rows and streaming steps.
#include "ops.h"

namespace hyenarec::cpu {
namespace {

struct Inputs {
  Tensor x;
  MaybeTensor pre_gate, post_gate;
  std::vector<Sequence> sequences;
  std::vector<int64_t> outputs;  // sizes of the outputs
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

// Gradients of x, filter, skip, pre_gate and post_gate by one kernel; empty where not needed.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> gradients(
    void (*kernel)(const ConvArgs&, ParallelFor), Inputs& in, const Tensor& grad_, const Tensor& x,
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

// A plan for conv_last and its backward, which use every tap, lag 0 first.
Plan plan_of_taps(int64_t taps) {
  Plan plan{};
  plan.length = INT64_MAX;
  plan.near_taps = plan.num_samples = taps;
  return plan;
}

}  // namespace

Tensor conv(const Tensor& x, const Tensor& filter, const MaybeTensor& basis, const MaybeTensor& rate,
            const MaybeTensor& skip, const MaybeTensor& pre_gate, const MaybeTensor& post_gate,
            const MaybeTensor& starts, const MaybeTensor& ends, const Plan& plan) {
  Inputs in(x, filter, basis, skip, pre_gate, post_gate, starts, ends, plan, rate);
  Tensor out = empty(x, sizes_of(x), x.scalar_type());
  in.args.out = rows_of(out);
  kernels().conv_forward(in.args, parallel);
  return out;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> conv_backward(
    const Tensor& grad, const Tensor& x, const Tensor& filter, const MaybeTensor& basis, const MaybeTensor& rate,
    const MaybeTensor& skip, const MaybeTensor& pre_gate, const MaybeTensor& post_gate, const MaybeTensor& starts,
    const MaybeTensor& ends, const Plan& plan, std::vector<bool> needs) {
  STD_TORCH_CHECK(needs.size() == 6, "needs: expected 6 flags");
  Inputs in(x, filter, basis, skip, pre_gate, post_gate, starts, ends, plan, rate);
  bool wanted = needs[2] && rate;
  Tensor drate = empty(x, {wanted ? in.args.channels : 0}, arithmetic(in.args.dtype));
  in.args.drate = wanted ? drate.data_ptr() : nullptr;
  needs.erase(needs.begin() + 2);
  auto [dx, dfilter, dskip, dpre, dpost] =
      gradients(kernels().conv_backward, in, grad, x, filter, skip, pre_gate, post_gate, needs);
  return {dx, dfilter, drate, dskip, dpre, dpost};
}

Tensor conv_last(const Tensor& x, const Tensor& filter, const MaybeTensor& basis, const MaybeTensor& rate,
                 const MaybeTensor& skip, const MaybeTensor& pre_gate, const MaybeTensor& post_gate,
                 const MaybeTensor& starts, const MaybeTensor& ends) {
  Plan plan = plan_of_taps(basis ? basis->size(0) : filter.size(0));
  Inputs in(x, filter, basis, skip, pre_gate, post_gate, starts, ends, plan, rate, true);
  Tensor out = empty(x, {in.args.num_sequences, in.args.channels}, x.scalar_type());
  in.args.out = rows_of(out);
  kernels().conv_last(in.args, parallel);
  return out;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> conv_last_backward(
    const Tensor& grad, const Tensor& x, const Tensor& taps, const MaybeTensor& skip, const MaybeTensor& pre_gate,
    const MaybeTensor& post_gate, const MaybeTensor& starts, const MaybeTensor& ends, std::vector<bool> needs) {
  Inputs in(x, taps, {}, skip, pre_gate, post_gate, starts, ends, plan_of_taps(taps.size(0)), {}, true);
  return gradients(kernels().conv_last_backward, in, grad, x, taps, skip, pre_gate, post_gate, needs);
}

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
  kernels().conv_step(args, parallel);
  if (!in_place) {
    Tensor to = history;
    torch::stable::copy_(to, rings);
  }
  return out;
}

}  // namespace hyenarec::cpu
