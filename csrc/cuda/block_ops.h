// The ops of namespace hyenarec_cuda for the block low-rank form, as ops.h has those of the long convolution.
#pragma once

#include "legendre_blocks.h"
#include "ops.h"

namespace hyenarec::cuda_ops {

struct BlockInputs {
  Inputs rows;
  LegendreBlocksArgs args{};

  BlockInputs(const Tensor& x, const Tensor& coefficients, const MaybeTensor& decay, const MaybeTensor& skip,
              const MaybeTensor& pre, const MaybeTensor& post, const MaybeTensor& starts, const MaybeTensor& ends,
              int64_t horizon, int64_t max_length, const std::vector<int64_t>& levels, const Tensor& constants)
      : rows(x, coefficients, skip, pre, post, starts, ends, max_length) {
    const LongConvArgs& from = rows.args;
    args.dtype = from.dtype, args.packed = from.packed;
    args.sequences = from.sequences, args.rows = from.rows, args.channels = from.channels, args.groups = from.groups;
    args.terms = from.taps, args.horizon = horizon, args.max_length = max_length;
    args.starts = from.starts, args.ends = from.ends, args.wide_index = from.wide_index;
    args.x = from.x, args.pre_gate = from.pre_gate, args.post_gate = from.post_gate;
    args.coefficients = from.filter, args.skip = from.skip;
    args.decay = decay ? rows.values(*decay, args.groups, "decay") : nullptr;
    constexpr size_t kNumbers = 6;
    STD_TORCH_CHECK(levels.size() % kNumbers == 0 && levels.size() / kNumbers <= kMostBlockLevels,
                    "legendre_blocks: levels: expected six numbers each");
    args.num_levels = int(levels.size() / kNumbers);
    for (int i = 0; i < args.num_levels; ++i) {
      const int64_t* n = &levels[i * kNumbers];
      args.levels[i] = {int(n[0]), int(n[1]), int(n[2]), int(n[3]), int(n[4]), int(n[5])};
    }
    args.constants = rows.values(constants, legendre_blocks_constants(args), "constants");
  }

  void call(bool backward, void* stream) {
    Tensor workspace = empty(rows.x, {legendre_blocks_workspace(args, backward)}, ScalarType::Byte);
    args.workspace = workspace.data_ptr();
    const char* failure = (backward ? legendre_blocks_backward : legendre_blocks_forward)(args, stream);
    STD_TORCH_CHECK(failure == nullptr, "legendre_blocks: ", failure);
  }
};

template <class Current>
Tensor blocks(const Tensor& x, const Tensor& coefficients, const MaybeTensor& decay, const MaybeTensor& skip,
              const MaybeTensor& pre_gate, const MaybeTensor& post_gate, const MaybeTensor& starts,
              const MaybeTensor& ends, int64_t horizon, int64_t max_length, std::vector<int64_t> levels,
              const Tensor& constants) {
  BlockInputs in(x, coefficients, decay, skip, pre_gate, post_gate, starts, ends, horizon, max_length, levels,
                 constants);
  Current current(x);
  Tensor out = empty(x, sizes_of(x), x.scalar_type());
  in.args.out = rows_of(out);
  in.call(false, current.stream);
  return out;
}

// Gradients of x, coefficients, decay, skip, pre_gate and post_gate; empty and of x's type where not needed.
template <class Current>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> blocks_backward(
    const Tensor& grad_, const Tensor& x, const Tensor& coefficients, const MaybeTensor& decay, const MaybeTensor& skip,
    const MaybeTensor& pre_gate, const MaybeTensor& post_gate, const MaybeTensor& starts, const MaybeTensor& ends,
    int64_t horizon, int64_t max_length, std::vector<int64_t> levels, const Tensor& constants,
    std::vector<bool> needs) {
  STD_TORCH_CHECK(needs.size() == 6, "legendre_blocks_backward: needs: expected 6 flags");
  BlockInputs in(x, coefficients, decay, skip, pre_gate, post_gate, starts, ends, horizon, max_length, levels,
                 constants);
  Current current(x);
  MaybeTensor grad = unit_stride(grad_);
  in.args.grad = in.rows.like_x(grad, "grad");
  auto like = [&](bool needed, const MaybeTensor& t) {
    return needed && t ? empty(x, sizes_of(*t), t->scalar_type()) : empty(x, {0}, x.scalar_type());
  };
  auto values = [](const Tensor& t) { return t.numel() ? static_cast<float*>(t.data_ptr()) : nullptr; };
  Tensor dx = like(needs[0], x), dcoefficients = like(needs[1], coefficients), ddecay = like(needs[2], decay);
  Tensor dskip = like(needs[3], skip), dpre = like(needs[4], pre_gate), dpost = like(needs[5], post_gate);
  in.args.dx = rows_of(dx), in.args.dpre_gate = rows_of(dpre), in.args.dpost_gate = rows_of(dpost);
  in.args.dcoefficients = values(dcoefficients), in.args.ddecay = values(ddecay), in.args.dskip = values(dskip);
  in.call(true, current.stream);
  return {dx, dcoefficients, ddecay, dskip, dpre, dpost};
}

template <class Library>
void define_blocks(Library& m) {
  m.def(
      "legendre_blocks(Tensor x, Tensor coefficients, Tensor? decay, Tensor? skip, Tensor? pre_gate, "
      "Tensor? post_gate, Tensor? starts, Tensor? ends, int horizon, int max_length, int[] levels, Tensor constants) "
      "-> Tensor");
  m.def(
      "legendre_blocks_backward(Tensor grad, Tensor x, Tensor coefficients, Tensor? decay, Tensor? skip, "
      "Tensor? pre_gate, Tensor? post_gate, Tensor? starts, Tensor? ends, int horizon, int max_length, int[] levels, "
      "Tensor constants, bool[] needs) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
}
template <class Current, class Library>
void implement_blocks(Library& m) {
  m.impl("legendre_blocks", TORCH_BOX(&blocks<Current>));
  m.impl("legendre_blocks_backward", TORCH_BOX(&blocks_backward<Current>));
}

}  // namespace hyenarec::cuda_ops
