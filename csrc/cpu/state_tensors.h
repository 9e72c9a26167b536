// Brings the tensors of a streaming state into the form that the kernels of a step take.
#pragma once
#include "inputs.h"

#include <functional>
#include <numeric>

namespace hyenarec::cpu {

using Sizes = std::initializer_list<int64_t>;

// These do not call torch's dispatcher unless they must copy: for 20 tensors it would take as long as the kernel.
inline Tensor adjacent(const Tensor& t) { return t.is_contiguous() ? t : torch::stable::contiguous(t); }
inline bool has_sizes(const Tensor& t, Sizes sizes) {
  return t.dim() == int64_t(sizes.size()) && std::equal(sizes.begin(), sizes.end(), t.sizes().begin());
}
inline int64_t product(Sizes sizes, size_t from) {
  return std::accumulate(sizes.begin() + from, sizes.end(), int64_t(1), std::multiplies<int64_t>());
}

// Holds the tensors that had to be copied for a kernel; those that it writes to are copied back at the end.
class StateTensors {
 public:
  explicit StateTensors(Dtype dtype) : type_(arithmetic(dtype)) {}

  void* written(const Tensor& t) {
    for (const auto& [to, from] : copies_)  // already copied, for another filter
      if (to.get() == t.get()) return from.data_ptr();
    Tensor flat = adjacent(t);
    if (flat.get() != t.get()) copies_.emplace_back(t, flat);
    return flat.data_ptr();
  }
  // The part of filter `number` in `t`, whose sizes are (sequences, filters, ... of one filter). The kernel writes to
  // it.
  CompactPart part(const Tensor& t, Sizes sizes, int64_t number, const char* name) {
    STD_TORCH_CHECK(has_sizes(t, sizes), name, ": its sizes do not fit the other tensors of the state");
    const int64_t first = number * product(sizes, 2) * int64_t(t.element_size());
    return {static_cast<char*>(written(t)) + first, product(sizes, 1)};
  }
  CompactPart arithmetic_part(const Tensor& t, Sizes sizes, int64_t number, const char* name) {
    STD_TORCH_CHECK(t.scalar_type() == type_, name, ": expected the arithmetic type");
    return part(t, sizes, number, name);
  }
  // A tensor that is only read, from element `first` on.
  const void* table(const Tensor& t, Sizes sizes, int64_t first, const char* name) {
    STD_TORCH_CHECK(has_sizes(t, sizes) && t.scalar_type() == type_, name, ": expected ", product(sizes, 0),
                    " values of the arithmetic type");
    kept_.push_back(adjacent(t));
    return static_cast<const char*>(kept_.back().data_ptr()) + first * int64_t(t.element_size());
  }
  const int64_t* steps(const Tensor& t, int64_t batch) {
    STD_TORCH_CHECK(t.scalar_type() == ScalarType::Long && t.numel() == batch, "steps: expected ", batch, " int64");
    kept_.push_back(adjacent(t));
    return static_cast<const int64_t*>(kept_.back().data_ptr());
  }
  // The arguments for filter `number` of a compact state; the caller sets x, gates and out.
  CompactArgs compact(Dtype dtype, int64_t batch, int64_t channels, const Tensor& page,
                      const std::vector<Tensor>& levels, const Tensor& near, const std::vector<Tensor>& tables,
                      const int64_t* steps, int64_t number);
  void copy_back() {
    for (auto& [to, from] : copies_) torch::stable::copy_(to, from);
  }

 private:
  ScalarType type_;
  std::vector<std::pair<Tensor, Tensor>> copies_;
  std::vector<Tensor> kept_;
};

}  // namespace hyenarec::cpu
