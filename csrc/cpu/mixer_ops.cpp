// The streaming steps of a whole mixer and of a block around it, as functions of tensors.
#include "ops.h"
#include "state_tensors.h"

namespace hyenarec::cpu {
namespace {

Gate gate_of(const std::string& name) {
  if (name == "none") return Gate::none;
  if (name == "identity") return Gate::identity;
  if (name == "sigmoid") return Gate::sigmoid;
  STD_TORCH_CHECK(name == "silu", "gate: expected identity, sigmoid, silu or none, got ", name);
  return Gate::silu;
}

// These steps have no kernels for half precision.
Dtype full_dtype(const Tensor& x) {
  const Dtype dtype = dtype_of(x);
  STD_TORCH_CHECK(dtype == Dtype::f32 || dtype == Dtype::f64, "x: expected float32 or float64");
  return dtype;
}

MixerArgs::Matrix matrix(const Tensor& t) { return {t.data_ptr(), t.stride(0), t.stride(1)}; }

// `around` is null for a mixer alone.
Tensor step_of(const Tensor& x_, const BlockArgs* around, const Tensor& w_in, const Tensor& w_out,
               const Tensor& projected, const Tensor& short_taps, const Tensor& short_bias, std::vector<Tensor> memory,
               std::vector<Tensor> tables, const Tensor& steps_, const std::string& gate) {
  STD_TORCH_CHECK(x_.dim() == 2 && w_in.dim() == 2 && w_in.size(0) == x_.size(1),
                  "x: expected (B, E) beside w_in (E, C), got ", x_.dim(), " dimensions or others");
  Tensor x = unit_stride(x_);
  const Dtype dtype = full_dtype(x);
  const int64_t batch = x.size(0), width = x.size(1), channels = w_in.size(1);
  STD_TORCH_CHECK(w_out.dim() == 2 && w_out.size(0) > 0 && w_out.size(0) == w_out.size(1) &&
                      channels % w_out.size(0) == 0 && channels > 0,
                  "w_out: expected (D, D) with D a divisor of the ", channels, " columns of w_in");
  for (const Tensor* w : {&w_in, &w_out})
    STD_TORCH_CHECK(w->scalar_type() == x.scalar_type(), "w_in and w_out: expected the dtype of x");
  const int64_t dim = w_out.size(0), num_gates = channels / dim - 1;
  STD_TORCH_CHECK(!memory.empty() && !tables.empty(), "memory and tables: expected page and near, then the levels'");
  const Tensor page = memory[0], near = tables[0];
  memory.erase(memory.begin()), tables.erase(tables.begin());
  STD_TORCH_CHECK(near.dim() == 3 && near.size(1) > 0 && near.size(2) == dim, "near: expected (F, C, D) with C >= 1");
  const int64_t filters = near.size(0), taps = near.size(1);
  const bool is_ring = memory.empty() && tables.empty() && page.dim() == 4 && page.size(2) == taps - 1;
  STD_TORCH_CHECK(short_taps.dim() == 2 && short_taps.size(0) > 0, "short_taps: expected (W, C) with W >= 1");
  StateTensors state(dtype);
  MixerArgs args{};
  args.num_sequences = batch, args.width = width, args.dim = dim, args.num_gates = num_gates, args.filters = filters;
  args.short_width = short_taps.size(0), args.dtype = dtype, args.gate = gate_of(gate);
  STD_TORCH_CHECK(args.gate == Gate::none ? num_gates == 0 : num_gates == filters + 1, "gate: ", gate, " with ",
                  num_gates, " gates and ", filters, " filters");
  Tensor steps = adjacent(steps_);
  state.steps(steps, batch);
  args.steps = static_cast<int64_t*>(state.written(steps_));
  args.projected = state.arithmetic_part(projected, {batch, args.short_width - 1, channels}, 0, "projected");
  args.short_taps = state.table(short_taps, {args.short_width, channels}, 0, "short_taps");
  args.short_bias = state.table(short_bias, {channels}, 0, "short_bias");
  std::vector<CompactArgs> compact;
  std::vector<StepArgs> exact;
  for (int64_t i = 0; i < filters; ++i) {
    if (!is_ring) {
      compact.push_back(state.compact(dtype, batch, dim, page, memory, near, tables, args.steps, i));
      continue;
    }
    CompactPart history = state.arithmetic_part(page, {batch, filters, taps - 1, dim}, i, "gated");
    const void* filter = state.table(near, {filters, taps, dim}, i * taps * dim, "near");
    exact.push_back({batch, dim, taps - 1, dtype, {}, {}, {}, {}, {history.data, history.stride, dim}, filter,
                     args.steps});
  }
  args.compact = compact.data(), args.exact = exact.data(), args.is_compact = !is_ring;
  Tensor out = empty(x, {batch, dim}, x.scalar_type());
  args.x = rows_of(x), args.out = rows_of(out);
  args.w_in = matrix(w_in), args.w_out = matrix(w_out);
  around ? kernels().block_step(args, *around, parallel) : kernels().mixer_step(args, parallel);
  state.copy_back();
  return out;
}

}  // namespace

Tensor mixer_step(const Tensor& x, const Tensor& w_in, const Tensor& w_out, const Tensor& projected,
                  const Tensor& short_taps, const Tensor& short_bias, std::vector<Tensor> memory,
                  std::vector<Tensor> tables, const Tensor& steps, std::string gate) {
  return step_of(x, nullptr, w_in, w_out, projected, short_taps, short_bias, std::move(memory), std::move(tables),
                 steps, gate);
}

Tensor block_step(const Tensor& x, std::vector<Tensor> norms, std::vector<Tensor> feed_forward, double eps,
                  const Tensor& w_in, const Tensor& w_out, const Tensor& projected, const Tensor& short_taps,
                  const Tensor& short_bias, std::vector<Tensor> memory, std::vector<Tensor> tables,
                  const Tensor& steps, std::string gate) {
  const Dtype dtype = full_dtype(x);
  STD_TORCH_CHECK(x.dim() == 2 && x.size(1) > 0 && has_sizes(w_out, {x.size(1), x.size(1)}),
                  "x: expected (B, D) beside w_out (D, D)");
  STD_TORCH_CHECK(norms.size() == 4, "norms: expected 4 tensors, got ", norms.size());
  STD_TORCH_CHECK(feed_forward.size() == 4 && feed_forward[0].dim() == 2 && feed_forward[0].size(1) > 0,
                  "feed_forward: expected (D, H), (H,), (H, D) and (D,), H >= 1");
  const int64_t dim = x.size(1), hidden = feed_forward[0].size(1);
  auto weight = [&](int at, Sizes sizes) {
    STD_TORCH_CHECK(has_sizes(feed_forward[at], sizes) && feed_forward[at].scalar_type() == x.scalar_type(),
                    "feed_forward: expected (", *sizes.begin(), ", ", *(sizes.begin() + 1), ") in the dtype of x");
    return matrix(feed_forward[at]);
  };
  StateTensors weights(dtype);
  auto of_norms = [&](int at) { return weights.table(norms[at], {dim}, 0, "norms"); };
  BlockArgs around{hidden, eps, {of_norms(0), of_norms(1)}, {of_norms(2), of_norms(3)}};
  around.up = weight(0, {dim, hidden});
  around.up_bias = weights.table(feed_forward[1], {hidden}, 0, "feed_forward");
  around.down = weight(2, {hidden, dim});
  around.down_bias = weights.table(feed_forward[3], {dim}, 0, "feed_forward");
  return step_of(x, &around, w_in, w_out, projected, short_taps, short_bias, std::move(memory), std::move(tables),
                 steps, gate);
}

}  // namespace hyenarec::cpu
