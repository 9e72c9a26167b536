// The direct part: taps that are sampled one by one, applied inside a chunk and, where the filter ends inside the
// sequence, to the rows around its far end. A tile of kTapRows outputs stays in registers, and so do the kTapRows taps
// that one row of u meets. The next row of u meets the same taps shifted by one, so each multiply-add needs only 2 /
// kTapRows of a load. (AVX-512, chunks of 32 in the first-level cache: 82e9 multiply-adds a second of the core's
// 100e9.)
#pragma once
#include "micro.h"

namespace hyenarec::HYENAREC_ISA {

// sum[r] += over s < steps, a multiple of R, of taps[Step * (r - s)] * u[s].
template <int Step, class A, int R>
HYENAREC_INLINE void slide(Vec<A> (&sum)[R], const Vec<A>* taps, const Vec<A>* u, int64_t steps) {
  Vec<A> held[R];  // tap of row r at step s: held[(r - s) mod R]
  repeat<R>([&](auto r) __attribute__((always_inline)) { held[r.value] = taps[Step * r.value]; });
  for (int64_t s = 0; s < steps; s += R)
    repeat<R>([&](auto j) __attribute__((always_inline)) {
      constexpr int J = decltype(j)::value;
      Vec<A> v = u[s + J];
      repeat<R>([&](auto r) __attribute__((always_inline)) { sum[r.value] += held[(r.value - J + R) % R] * v; });
      held[R - 1 - J] = taps[Step * -(s + J + 1)];
    });
}

// sum[r] += over s <= r of taps[Step * (r - s)] * u[s].
template <int Step, class A, int R>
HYENAREC_INLINE void slide_triangle(Vec<A> (&sum)[R], const Vec<A>* taps, const Vec<A>* u) {
  Vec<A> held[R];
  repeat<R>([&](auto r) __attribute__((always_inline)) { held[r.value] = taps[Step * r.value]; });
  repeat<R>([&](auto j) __attribute__((always_inline)) {
    constexpr int J = decltype(j)::value;
    Vec<A> v = u[J];
    repeat<R - J>([&](auto lag) __attribute__((always_inline)) { sum[lag.value + J] += held[lag.value] * v; });
  });
}

template <class A>
struct Taps {
  const Vec<A>* near;  // lag 0 first; kTapPad zero vectors follow the last
  int64_t near_taps;
  const Vec<A>* far;  // indexed by lag; kTapPad zero vectors follow lag horizon - 1
  int64_t horizon;
  const Vec<A>* window;  // multiplies `rest`, one vector per row; or null
};

// Calls put(t, y) for every tile, with y its rows t to t + kTapRows - 1. y[t] = rest[t] (0 if absent; scaled by
// taps.window) + the sum of taps.near[lag] * u[t - lag] inside the chunk over the lags below near_taps, and with a
// history the same sum of taps.far over the far lags. `history` begins horizon - 1 rows before the chunk, and kTapRows
// readable vectors lie before it. Rows are rounded up to whole tiles; the last tile comes first, so that y may
// overwrite u. put() must index its rows by constants, or they do not stay in registers. each_tile() is called before
// every tile.
template <class A, class EachTile, class Put>
HYENAREC_INLINE void direct(const Taps<A>& taps, const Vec<A>* u, const Vec<A>* history, int64_t history_rows,
                            const Vec<A>* rest, int64_t rows, const EachTile& each_tile, const Put& put) {
  constexpr int R = kTapRows;
  for (int64_t t = (rows - 1) / R * R; t >= 0; t -= R) {
    each_tile();
    Vec<A> sum[R];
    for (int r = 0; r < R; ++r) sum[r] = rest ? rest[t + r] : Vec<A>{};
    if (rest && taps.window)
      for (int r = 0; r < R; ++r) sum[r] *= taps.window[t + r];
    if (history_rows > t) {
      int64_t steps = ceil_div(history_rows - t, R) * R, first = history_rows - steps;
      slide<1, A, R>(sum, taps.far + t + taps.horizon - 1 - first, history + first, steps);
    }
    int64_t oldest = t - taps.near_taps + 1, first = oldest > 0 ? oldest / R * R : 0;
    slide<1, A, R>(sum, taps.near + t - first, u + first, t - first);
    slide_triangle<1, A, R>(sum, taps.near, u + t);
    put(t, sum);
  }
}

}  // namespace hyenarec::HYENAREC_ISA
