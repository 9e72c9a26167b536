// The register tile shared by moments, transfers, reconstruction and table building: a small matrix of scalars, the
// same for every channel, times vectors of channels, for up to 4 lanes (chunks or table entries) at once.
#pragma once
#include "simd.h"

namespace hyenarec::HYENAREC_ISA {

template <int N>
struct Int {
  static constexpr int value = N;
};

// Calls f(Int<n>{}), or f(Int<Max>{}) where n is larger: a count known only at run time becomes a constant.
template <int Max, class F>
HYENAREC_INLINE void with_count(int64_t n, const F& f) {
  if constexpr (Max == 1) {
    f(Int<1>{});
  } else {
    if (n >= Max) f(Int<Max>{});
    else with_count<Max - 1>(n, f);
  }
}

// Calls f(Int<0>), ..., f(Int<Count - 1>): a loop that is unrolled for certain.
template <int Count, int At = 0, class F>
HYENAREC_INLINE void repeat(const F& f) {
  if constexpr (At < Count) {
    f(Int<At>{});
    repeat<Count, At + 1>(f);
  }
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// A matrix of scalars read as element (row, k) = data[row * row_stride + k * k_stride].
template <class A>
struct Scalars {
  const A* data;
  int64_t row_stride, k_stride;
};

// sum[r][x] += matrix(r, k) * in[x][k * in_stride] over k < depth.
template <class A, int R, int X>
HYENAREC_INLINE void multiply(Vec<A> (&sum)[R][X], Scalars<A> m, int64_t depth, const Vec<A>* const (&in)[X],
                              int64_t in_stride) {
  for (int64_t k = 0; k < depth; ++k) {
    Vec<A> v[X];
    for (int x = 0; x < X; ++x) v[x] = in[x][k * in_stride];
    for (int r = 0; r < R; ++r) {
      Vec<A> q = splat(m.data[r * m.row_stride + k * m.k_stride]);
      for (int x = 0; x < X; ++x) sum[r][x] += q * v[x];
    }
  }
}

// Calls out(r, x, sum) for every row r < rows and lane x < X of the product matrix * in.
template <class A, int X, class Out>
HYENAREC_INLINE void multiply_rows(int64_t rows, Scalars<A> m, int64_t depth, const Vec<A>* const (&in)[X],
                                   int64_t in_stride, const Out& out) {
  for (int64_t r0 = 0; r0 < rows; r0 += kRows)
    with_count<kRows>(rows - r0, [&](auto count) __attribute__((always_inline)) {
      constexpr int R = decltype(count)::value;
      Vec<A> sum[R][X] = {};
      multiply<A, R, X>(sum, {m.data + r0 * m.row_stride, m.row_stride, m.k_stride}, depth, in, in_stride);
      for (int r = 0; r < R; ++r)
        for (int x = 0; x < X; ++x) out(r0 + r, x, sum[r][x]);
    });
}

}  // namespace hyenarec::HYENAREC_ISA
