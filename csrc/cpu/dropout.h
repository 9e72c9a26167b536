// Dropout, of values or of their GELU, whose mask is computed from a seed wherever it is needed and never stored.
//
// Each element is decided by one random byte. Element 256 g + 64 w + 4 c + b takes byte b of word w of what Philox
// 4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") gives for the counter (16 g + c, 0, 0)
// and the seed as key.
#pragma once
#include "simd.h"

namespace hyenarec::HYENAREC_ISA {

constexpr int64_t kMaskGroup = 256, kCounters = 16;

// The words (4, kCounters) of the counters from `first` on, a multiple of kCounters. These are arrays and plain loops,
// which compilers vectorise: 2^21 elements take one core 0.6 ms (AVX-512).
inline void philox(uint32_t* __restrict words, uint64_t first, uint64_t seed) {
  alignas(64) uint32_t a[kCounters], b[kCounters], c[kCounters] = {}, d[kCounters] = {};
  for (int64_t i = 0; i < kCounters; ++i) a[i] = uint32_t(first) + uint32_t(i), b[i] = uint32_t(first >> 32);
  uint32_t key = uint32_t(seed), other = uint32_t(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    for (int64_t i = 0; i < kCounters; ++i) {
      uint64_t p = uint64_t(0xD2511F53u) * a[i], q = uint64_t(0xCD9E8D57u) * c[i];
      a[i] = uint32_t(q >> 32) ^ b[i] ^ key, b[i] = uint32_t(q);
      c[i] = uint32_t(p >> 32) ^ d[i] ^ other, d[i] = uint32_t(p);
    }
    key += 0x9E3779B9u, other += 0xBB67AE85u;  // the golden ratio, and the square root of 3 less 1
  }
  for (const uint32_t* row : {a, b, c, d}) memcpy(words, row, sizeof a), words += kCounters;
}

// What each element of a group is multiplied by: `scale` or 0.
template <class A>
inline void factors(A* __restrict out, int64_t group, uint64_t seed, int dropped, A scale) {
  uint32_t words[4 * kCounters];
  uint8_t bytes[kMaskGroup];
  philox(words, uint64_t(group) * kCounters, seed);
  memcpy(bytes, words, sizeof bytes);
  for (int64_t i = 0; i < kMaskGroup; ++i) out[i] = bytes[i] < dropped ? A(0) : scale;
}

// The normal distribution's distribution function, `below`, and its density.
HYENAREC_INLINE void normal(Vec<double> x, Vec<double>& below, Vec<double>& density) {
  for (int c = 0; c < kWidth<double>; ++c) {
    below[c] = 0.5 * __builtin_erfc(-0.70710678118654752440 * x[c]);
    density[c] = 0.39894228040143267794 * __builtin_exp(-0.5 * x[c] * x[c]);
  }
}

// The tail 1/2 erfc(|x| / sqrt 2) is e^(-x^2 / 2) (t times a polynomial in t), t = 1 / (1 + p |x|): within 1e-7
// (Abramowitz and Stegun 1964, 7.1.26, its 1.5e-7 of erf halved).
HYENAREC_INLINE void normal(Vec<float> x, Vec<float>& below, Vec<float>& density) {
  using V = Vec<float>;
  V size = x < splat(0.0f) ? -x : x, e;
  size = size < splat(14.0f) ? size : splat(14.0f);  // where the tail is below e^(-87)
  V t = reciprocal(1.0f + 0.231641888f * size), half = 0.5f * size * size;
  exp_negative<1>(&e, &half);
  V tail = splat(0.5f * 1.061405429f);
  for (float c : {-0.5f * 1.453152027f, 0.5f * 1.421413741f, -0.5f * 0.284496736f, 0.5f * 0.254829592f})
    tail = tail * t + c;
  tail *= t * e;
  below = x < splat(0.0f) ? tail : 1.0f - tail;
  density = 0.39894228f * e;
}

template <class A, class T, bool Gelu>
void drop(const DropoutArgs& args, int64_t begin, int64_t end) {
  const T *x = static_cast<const T*>(args.x), *grad = static_cast<const T*>(args.grad);
  T* out = static_cast<T*>(args.out);
  const A scale = A(256) / A(256 - args.dropped);
  alignas(64) A factor[kMaskGroup];
  for (int64_t group = begin; group < end; ++group) {
    factors<A>(factor, group, args.seed, args.dropped, scale);
    const int64_t first = group * kMaskGroup, left = args.count - first < kMaskGroup ? args.count - first : kMaskGroup;
    auto vector = [&](int64_t i, auto load, auto store) __attribute__((always_inline)) {
      Vec<A> y, keep = load_full<A>(factor + i);
      if constexpr (Gelu) {
        Vec<A> v = load(x + first + i), below, density;
        normal(v, below, density);
        y = grad ? load(grad + first + i) * (below + v * density) : v * below;
      } else {
        y = load((grad ? grad : x) + first + i);
      }
      // Not a product: a dropped element is 0 even where it was NaN or Inf.
      store(out + first + i, keep > splat(A(0)) ? y * keep : splat(A(0)));
    };
    int64_t i = 0;
    for (; i + kWidth<A> <= left; i += kWidth<A>)
      vector(i, [](const T* p) { return load_full<A>(p); }, [](T* p, Vec<A> v) { store_full<A>(p, v); });
    if (i < left)
      vector(i, [&](const T* p) { return load_some<A>(p, left - i); },
             [&](T* p, Vec<A> v) { store_some<A>(p, v, left - i); });
  }
}

template <class A, class T>
void drop_of_type(const DropoutArgs& args, ParallelFor parallel) {
  constexpr int64_t kItem = 64;  // groups a thread takes at a time
  auto body = [](void* context, int64_t begin, int64_t end) {
    const DropoutArgs& args = *static_cast<const DropoutArgs*>(context);
    const int64_t groups = (args.count + kMaskGroup - 1) / kMaskGroup;
    begin *= kItem, end = end * kItem < groups ? end * kItem : groups;
    args.gelu ? drop<A, T, true>(args, begin, end) : drop<A, T, false>(args, begin, end);
  };
  parallel((args.count + kMaskGroup * kItem - 1) / (kMaskGroup * kItem), body, const_cast<DropoutArgs*>(&args));
}

inline void dropout(const DropoutArgs& args, ParallelFor parallel) {
  switch (args.dtype) {
    case Dtype::f32: return drop_of_type<float, float>(args, parallel);
    case Dtype::f64: return drop_of_type<double, double>(args, parallel);
    case Dtype::bf16: return drop_of_type<float, Bf16>(args, parallel);
    case Dtype::f16: return drop_of_type<float, F16>(args, parallel);
  }
}

}  // namespace hyenarec::HYENAREC_ISA
