// Computes the taps of Legendre filters from their coefficients, and the gradients of coefficients and decay from those
// of the taps.
//
//     h[g, tau] = exp(-rate[g] tau) sum_n coefficients[g, n] sqrt(2n + 1) P_n(2 tau / (K - 1) - 1)
//
// The polynomials come from their recurrence in float64, as in hyenarec_kernels/legendre.py, so no table has to be read
// or kept. An explicit filter is taken as it is, in its own dtype.
#pragma once
#include <type_traits>

#include "rows.h"

namespace hyenarec::cuda {

struct Filter {
  Dtype dtype;          // of values and decay
  const void* values;   // (groups, terms) coefficients; of an explicit filter (groups, terms) taps
  const void* decay;    // (groups,) or null
  int groups, terms;
  int64_t horizon;      // 0: an explicit filter

  HYENAREC_DEVICE float value(const void* from, int64_t index) const {
    float value = 0.f;
    with_dtype(dtype, [&](auto type) { value = static_cast<const decltype(type)*>(from)[index]; });
    return value;
  }
  // The rate is at most 1,000 per event, which leaves lag 0 alone: an infinite rate times a lag of 0 would be NaN.
  HYENAREC_DEVICE float window(int group, int lag) const {
    if (!decay) return 1.f;
    float a = value(decay, group);
    return expf(-(a > 1000.f * float(horizon) ? 1000.f : a / float(horizon)) * float(lag));
  }
  // Calls f(n, sqrt(2n + 1) P_n) for every term.
  template <class F>
  HYENAREC_DEVICE void polynomials(int lag, const F& f) const {
    double x = 2. * lag / double(horizon > 1 ? horizon - 1 : 1) - 1., before = 0., p = 1.;
    for (int n = 0; n < terms; ++n) {
      f(n, sqrt(2. * n + 1.) * p);
      double next = ((2 * n + 1) * x * p - n * before) / (n + 1);
      before = p, p = next;
    }
  }
};

struct MakeTaps {
  static constexpr int kThreads = 128, kSharedBytes = 0, kBlocks = 1;
  Filter filter;
  int taps;
  float* out;  // (groups, taps)

  int64_t grid() const { return ceil_div(int64_t(filter.groups) * taps, kThreads); }

  template <class Block>
  HYENAREC_DEVICE void operator()(Block& block, int64_t index, void*) const {
    block.phase([&](int thread) {
      int64_t at = index * kThreads + thread;
      if (at >= int64_t(filter.groups) * taps) return;
      int group = int(at / taps), lag = int(at % taps);
      if (filter.horizon == 0) {
        out[at] = filter.value(filter.values, int64_t(group) * filter.terms + lag);
        return;
      }
      double sum = 0.;
      filter.polynomials(lag, [&](int n, double p) {
        sum += double(filter.value(filter.values, int64_t(group) * filter.terms + n)) * p;
      });
      out[at] = float(sum) * filter.window(group, lag);
    });
  }
};

// One group's gradients, from those of its channels' taps.
struct FilterGradients {
  static constexpr int kThreads = 256, kMostTaps = 512, kBlocks = 1;
  static constexpr int kTerms = 8, kParts = kThreads / kTerms;  // terms summed at once; threads for each
  static constexpr int kSharedBytes = (2 * kMostTaps + kThreads) * int(sizeof(float)) + kMostTaps * kTerms * 4;
  Filter filter;
  int channels, taps;
  const float* sums;  // (channels, taps)
  const float* made;  // (groups, taps): the taps
  void *dvalues, *ddecay, *dskip;  // like the filter, like the decay, (channels,); or null
  Dtype skip_dtype;

  template <class Block>
  HYENAREC_DEVICE void operator()(Block& block, int64_t index, void* memory) const {
    auto *gradient = static_cast<float*>(memory), *windowed = gradient + kMostTaps, *parts = windowed + kMostTaps;
    auto* products = parts + kThreads;  // [term][tap]
    const int group = int(index), members = channels / filter.groups;
    auto store = [](Dtype dtype, void* to, int64_t at, float value) {
      with_dtype(dtype, [&](auto type) {
        using T = decltype(type);
        static_cast<T*>(to)[at] = T::of(value);
      });
    };
    block.phase([&](int thread) {
      for (int lag = thread; lag < taps; lag += kThreads) {
        float sum = 0.f;
        for (int c = 0; c < members; ++c) sum += sums[(int64_t(group) * members + c) * taps + lag];
        gradient[lag] = sum;
        windowed[lag] = sum * (filter.horizon ? filter.window(group, lag) : 1.f);
      }
      for (int c = thread; dskip && c < members; c += kThreads)  // skip is a tap at lag 0
        store(skip_dtype, dskip, int64_t(group) * members + c, sums[(int64_t(group) * members + c) * taps]);
    });
    if (dvalues && filter.horizon == 0)
      block.phase([&](int thread) {
        for (int lag = thread; lag < filter.terms; lag += kThreads)
          store(filter.dtype, dvalues, int64_t(group) * filter.terms + lag, lag < taps ? gradient[lag] : 0.f);
      });
    if (ddecay) {
      block.phase([&](int thread) {
        float sum = 0.f;
        for (int lag = thread; lag < taps; lag += kThreads)
          sum -= gradient[lag] * made[int64_t(group) * taps + lag] * (float(lag) / float(filter.horizon));
        parts[thread] = sum;
      });
      block.phase([&](int thread) {
        float sum = 0.f;
        for (int i = 0; thread == 0 && i < kThreads; ++i) sum += parts[i];
        if (thread == 0) store(filter.dtype, ddecay, group, sum);
      });
    }
    for (int first = 0; dvalues && filter.horizon && first < filter.terms; first += kTerms) {
      block.phase([&](int thread) {
        for (int lag = thread; lag < taps; lag += kThreads)
          filter.polynomials(lag, [&](int n, double p) {
            if (n >= first && n < first + kTerms) products[(n - first) * kMostTaps + lag] = float(p) * windowed[lag];
          });
      });
      block.phase([&](int thread) {
        float sum = 0.f;
        for (int lag = thread / kTerms; lag < taps; lag += kParts) sum += products[thread % kTerms * kMostTaps + lag];
        parts[thread] = sum;
      });
      block.phase([&](int thread) {
        int n = first + thread;
        if (thread >= kTerms || n >= filter.terms) return;
        float sum = 0.f;
        for (int i = thread; i < kThreads; i += kTerms) sum += parts[i];
        store(filter.dtype, dvalues, int64_t(group) * filter.terms + n, sum);
      });
    }
  }
};

}  // namespace hyenarec::cuda
