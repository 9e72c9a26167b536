// The streaming step of a compact state, as a function of tensors.
#include "ops.h"
#include "state_tensors.h"

namespace hyenarec::cpu {

CompactArgs StateTensors::compact(Dtype dtype, int64_t batch, int64_t channels, const Tensor& page,
                                  const std::vector<Tensor>& levels, const Tensor& near,
                                  const std::vector<Tensor>& tables, const int64_t* steps, int64_t number) {
  STD_TORCH_CHECK(near.dim() == 3 && 0 <= number && number < near.size(0) && near.size(1) > 1,
                  "near: expected (F, C, D) with C > 1 and F above the number ", number);
  const int64_t filters = near.size(0), lowest = near.size(1), count = int64_t(tables.size()) / 4;
  STD_TORCH_CHECK(count <= kMaxLevels && tables.size() == size_t(4 * count) &&
                      levels.size() == size_t(count ? 3 * count - 2 : 0),
                  "levels: expected 3 tensors a level, 1 of the lowest, and 4 tables, of up to ", kMaxLevels, " levels");
  for (int64_t b = 0; b < batch; ++b) STD_TORCH_CHECK(steps[b] >= 0, "steps: below 0");
  auto of_filter = [&](const Tensor& t, Sizes sizes, const char* name) {
    return table(t, sizes, product(sizes, 1) * number, name);
  };
  auto of_chunk = [&](const Tensor& t, int64_t rank, const char* name) {
    return arithmetic_part(t, {batch, filters, rank, channels}, number, name);
  };
  CompactArgs args{};
  args.num_sequences = batch, args.channels = channels, args.dtype = dtype, args.num_levels = count;
  args.steps = steps;
  for (int64_t l = 0; l < count; ++l) {
    const Tensor &basis = tables[4 * l], &blocks = tables[4 * l + 3], &moments = levels[3 * l];
    STD_TORCH_CHECK(basis.dim() == 2 && blocks.dim() == 5, "tables: expected basis (C, R) and blocks (F, slots, R, R, D)");
    const int64_t chunk = basis.size(0), rank = basis.size(1), slots = blocks.size(1);
    STD_TORCH_CHECK(rank > 0 && slots > 0 && (l == 0 ? chunk == lowest : chunk % args.levels[l - 1].chunk == 0),
                    "tables: the chunks of level ", l, " do not consist of those below, or are empty");
    STD_TORCH_CHECK(lowest <= kMaxPage && rank <= kMaxPage, "tables: expected chunks and ranks of at most ", kMaxPage);
    const bool half = moments.scalar_type() == ScalarType::BFloat16;
    STD_TORCH_CHECK((half || moments.scalar_type() == type_) && (l == 0 || half == args.half_moments),
                    "moments: expected the arithmetic type or bfloat16, the same at every level");
    args.half_moments = half;
    args.levels[l] = {chunk,
                      rank,
                      slots,
                      table(basis, {chunk, rank}, 0, "basis"),
                      of_filter(tables[4 * l + 1], {filters, chunk, channels}, "enter"),
                      of_filter(tables[4 * l + 2], {filters, chunk, channels}, "leave"),
                      of_filter(blocks, {filters, slots, rank, rank, channels}, "blocks"),
                      l ? of_chunk(levels[3 * l - 2], rank, "sums") : CompactPart{},
                      l ? of_chunk(levels[3 * l - 1], rank, "incoming") : CompactPart{},
                      part(moments, {batch, filters, slots, rank, channels}, number, "moments")};
  }
  args.near = of_filter(near, {filters, lowest, channels}, "near");
  args.rows = count ? lowest : kRingPage, args.taps = lowest;
  args.slots = (lowest + args.rows - 1) / args.rows * args.rows;
  args.page = of_chunk(page, args.slots, "page");
  return args;
}

Tensor compact_step(const Tensor& x_, const Tensor& page, std::vector<Tensor> levels, const Tensor& near,
                    std::vector<Tensor> tables, const Tensor& steps, int64_t number, const MaybeTensor& pre_gate_,
                    const MaybeTensor& post_gate_) {
  STD_TORCH_CHECK(x_.dim() == 2, "x: expected (B, D)");
  Tensor x = unit_stride(x_);
  const int64_t batch = x.size(0), channels = x.size(1);
  MaybeTensor pre_gate = beside(x, pre_gate_, {batch, channels}, "pre_gate");
  MaybeTensor post_gate = beside(x, post_gate_, {batch, channels}, "post_gate");
  const Dtype dtype = dtype_of(x);
  StateTensors state(dtype);
  const int64_t* counts = state.steps(steps, batch);
  CompactArgs args = state.compact(dtype, batch, channels, page, levels, near, tables, counts, number);
  Tensor out = empty(x, {batch, channels}, x.scalar_type());
  args.x = rows_of(x), args.pre_gate = rows_of(pre_gate), args.post_gate = rows_of(post_gate), args.out = rows_of(out);
  kernels().compact_step(args, parallel);
  state.copy_back();
  return out;
}

}  // namespace hyenarec::cpu
