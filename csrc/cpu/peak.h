// The multiply-add peak of a core: a loop over registers alone, with as many independent sums as hide the latency.
#pragma once
#include "simd.h"

namespace hyenarec::HYENAREC_ISA {

inline double peak(int64_t steps, ParallelFor parallel) {
  struct Context {
    int64_t steps;
    float sink[2];
  } context{steps, {}};
  auto body = [](void* self, int64_t begin, int64_t end) {
    Context& c = *static_cast<Context*>(self);
    constexpr int kSums = 12;
    for (int64_t i = begin; i < end; ++i) {
      Vec<float> sum[kSums], a = splat(0.999f), b = splat(1.0f);  // sums tend to 1000: no subnormals
      for (int k = 0; k < kSums; ++k) sum[k] = splat(float(k));
      for (int64_t s = 0; s < c.steps; ++s)
        for (int k = 0; k < kSums; ++k) sum[k] = sum[k] * a + b;
      for (int k = 0; k < kSums; ++k) c.sink[i] += sum[k][0];
    }
  };
  parallel(2, body, &context);
  return 2.0 * 12 * double(steps) * kWidth<float>;
}

}  // namespace hyenarec::HYENAREC_ISA
