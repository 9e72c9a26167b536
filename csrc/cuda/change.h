// The kernel behind parameters.h, one value per thread, and its launch.
#pragma once
#include "parameters.h"
#include "rows.h"

namespace hyenarec::cuda {

HYENAREC_DEVICE float value_of(const Stored& from, int64_t i) {
  float value = 0.f;
  with_dtype(from.dtype, [&](auto type) { value = float(static_cast<const decltype(type)*>(from.data)[i]); });
  return value;
}

struct ChangeParameters {
  static constexpr int kThreads = 256, kSharedBytes = 0, kBlocks = 1;
  Changes changes;

  int64_t count() const {
    int64_t count = 0;
    for (int i = 0; i < changes.size; ++i) count += changes.list[i].count;
    return count;
  }
  int64_t grid() const { return ceil_div(count(), kThreads); }

  template <class Block>
  HYENAREC_DEVICE void operator()(Block& block, int64_t index, void*) const {
    block.phase([&](int thread) {
      int64_t i = index * kThreads + thread;
      int which = 0;
      while (which < changes.size && i >= changes.list[which].count) i -= changes.list[which++].count;
      if (which == changes.size) return;
      const Change& change = changes.list[which];
      float value = change.factor * value_of(change.from, i);
      if (change.origin) value += change.origin[i];
      if (change.scale.data) value *= value_of(change.scale, i / change.each);
      if (change.exponential) value = expf(value);
      with_dtype(change.to_dtype, [&](auto type) {
        using T = decltype(type);
        static_cast<T*>(change.to)[i] = T::of(value);
      });
    });
  }
};

// Null, or why the kernel does not take a call.
inline const char* refuse(const Changes& changes) {
  for (int i = 0; i < changes.size; ++i) {
    const Change& change = changes.list[i];
    if (change.from.dtype == Dtype::f64 || change.scale.dtype == Dtype::f64 || change.to_dtype == Dtype::f64)
      return "parameters: float64 is not served";
  }
  return nullptr;
}

template <class Machine>
void start_changes(const Changes& changes, Machine& machine) {
  ChangeParameters program{changes};
  machine.start(program, program.grid());
}

}  // namespace hyenarec::cuda
