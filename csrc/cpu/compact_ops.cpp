// The step of a compact state as a function of tensors.
#include "ops.h"

#include <algorithm>
#include <functional>
#include <numeric>

namespace hyenarec::cpu {
namespace {

// By themselves these ask nothing of torch's dispatcher, which would take as long as the kernel for 20 tensors.
Tensor adjacent(const Tensor& t) { return t.is_contiguous() ? t : torch::stable::contiguous(t); }
bool has_sizes(const Tensor& t, std::initializer_list<int64_t> sizes) {
  return t.dim() == int64_t(sizes.size()) && std::equal(sizes.begin(), sizes.end(), t.sizes().begin());
}
int64_t product(std::initializer_list<int64_t> sizes, size_t from) {
  return std::accumulate(sizes.begin() + from, sizes.end(), int64_t(1), std::multiplies<int64_t>());
}

// Tensors that the kernel writes to. One that is not contiguous is copied, and copied back at the end.
class Written {
 public:
  CompactPart part(const Tensor& t, std::initializer_list<int64_t> sizes, int64_t number, const char* name) {
    STD_TORCH_CHECK(has_sizes(t, sizes), name, ": its sizes do not fit the other tensors of the state");
    Tensor flat = adjacent(t);
    if (flat.get() != t.get()) copies_.emplace_back(t, flat);
    const int64_t filter = product(sizes, 2);
    return {static_cast<char*>(flat.data_ptr()) + number * filter * int64_t(flat.element_size()), product(sizes, 1)};
  }
  void copy_back() {
    for (auto& [to, from] : copies_) torch::stable::copy_(to, from);
  }

 private:
  std::vector<std::pair<Tensor, Tensor>> copies_;
};

}  // namespace

Tensor compact_step(const Tensor& x_, const Tensor& recent, std::vector<Tensor> levels, const Tensor& near,
                    std::vector<Tensor> tables, const Tensor& steps_, int64_t number, const MaybeTensor& pre_gate_,
                    const MaybeTensor& post_gate_) {
  STD_TORCH_CHECK(x_.dim() == 2, "x: expected (B, D)");
  Tensor x = unit_stride(x_), steps = adjacent(steps_);
  const int64_t batch = x.size(0), channels = x.size(1);
  MaybeTensor pre_gate = beside(x, pre_gate_, {batch, channels}, "pre_gate");
  MaybeTensor post_gate = beside(x, post_gate_, {batch, channels}, "post_gate");
  const Dtype dtype = dtype_of(x);
  STD_TORCH_CHECK(near.dim() == 3 && 0 <= number && number < near.size(0) && near.size(1) > 1,
                  "near: expected (F, C, D) with C > 1 and F above the number ", number);
  const int64_t filters = near.size(0), count = int64_t(tables.size()) / 4;
  STD_TORCH_CHECK(count >= 1 && count <= kMaxLevels && tables.size() == size_t(4 * count) &&
                      levels.size() == size_t(3 * count),
                  "levels: expected 3 tensors a level and 4 tables, of 1 to ", kMaxLevels, " levels");
  STD_TORCH_CHECK(steps.scalar_type() == ScalarType::Long && steps.numel() == batch, "steps: expected ", batch, " int64");
  Written written;
  std::vector<Tensor> kept;
  auto arithmetic_part = [&](const Tensor& t, std::initializer_list<int64_t> sizes, const char* name) {
    STD_TORCH_CHECK(t.scalar_type() == arithmetic(dtype), name, ": expected the arithmetic type");
    return written.part(t, sizes, number, name);
  };
  auto table = [&](const Tensor& t, std::initializer_list<int64_t> sizes, bool of_filters,
                   const char* name) -> const void* {
    STD_TORCH_CHECK(has_sizes(t, sizes) && t.scalar_type() == arithmetic(dtype), name, ": expected ",
                    product(sizes, 0), " values of the arithmetic type");
    kept.push_back(adjacent(t));
    const int64_t first = of_filters ? product(sizes, 1) * number : 0;
    return static_cast<const char*>(kept.back().data_ptr()) + first * int64_t(t.element_size());
  };
  CompactArgs args{};
  args.num_sequences = batch, args.channels = channels, args.dtype = dtype, args.num_levels = count;
  args.x = rows_of(x), args.pre_gate = rows_of(pre_gate), args.post_gate = rows_of(post_gate);
  args.steps = static_cast<const int64_t*>(steps.data_ptr());
  for (int64_t b = 0; b < batch; ++b) STD_TORCH_CHECK(args.steps[b] >= 0, "steps: below 0");
  for (int64_t l = 0; l < count; ++l) {
    const Tensor &basis = tables[4 * l], &blocks = tables[4 * l + 3], &moments = levels[3 * l + 2];
    STD_TORCH_CHECK(basis.dim() == 2 && blocks.dim() == 5, "tables: expected basis (C, R) and blocks (F, slots, R, R, D)");
    const int64_t chunk = basis.size(0), rank = basis.size(1), slots = blocks.size(1);
    STD_TORCH_CHECK(rank > 0 && slots > 0 && (l == 0 ? chunk == near.size(1) : chunk % args.levels[l - 1].chunk == 0),
                    "tables: the chunks of level ", l, " do not consist of those below, or are empty");
    const bool half = moments.scalar_type() == ScalarType::BFloat16;
    STD_TORCH_CHECK((half || moments.scalar_type() == arithmetic(dtype)) && (l == 0 || half == args.half_moments),
                    "moments: expected the arithmetic type or bfloat16, the same at every level");
    args.half_moments = half;
    args.levels[l] = {chunk,
                      rank,
                      slots,
                      table(basis, {chunk, rank}, false, "basis"),
                      table(tables[4 * l + 1], {filters, chunk, channels}, true, "enter"),
                      table(tables[4 * l + 2], {filters, chunk, channels}, true, "leave"),
                      table(blocks, {filters, slots, rank, rank, channels}, true, "blocks"),
                      arithmetic_part(levels[3 * l], {batch, filters, rank, channels}, "sums"),
                      arithmetic_part(levels[3 * l + 1], {batch, filters, rank, channels}, "incoming"),
                      written.part(moments, {batch, filters, slots, rank, channels}, number, "moments")};
  }
  args.near = table(near, {filters, near.size(1), channels}, true, "near");
  args.recent = arithmetic_part(recent, {batch, filters, near.size(1) - 1, channels}, "recent");
  Tensor out = empty(x, {batch, channels}, x.scalar_type());
  args.out = rows_of(out);
  kernels().compact_step(args, parallel);
  written.copy_back();
  return out;
}

}  // namespace hyenarec::cpu
