// The direct part: taps sampled one by one, applied inside a chunk (lags below the chunk's start) and, where the filter
// ends inside the sequence, to the rows around its far end. A tile of kTapRows rows x X lanes stays in registers; a tap
// loaded once serves X multiply-adds, a row of u serves kTapRows.
#pragma once
#include "micro.h"

namespace hyenarec::HYENAREC_ISA {

// Rows to bring into the cache while a tile computes: a channel block touches 64 bytes of every row, a stride the
// hardware does not follow. (Forward, 32 x 1024: 67 cycles a vector instead of 70; 8 x 4096: 68 instead of 74.)
struct Fetch {
  const char* data;
  int64_t stride;
};
constexpr int kFetches = 6;

// Lanes of the direct part: contiguous vectors of one channel block.
template <class A, int X>
struct Lanes {
  Fetch fetch[X][kFetches];
  int fetches;
  const Vec<A>* u[X];        // rows of the chunk
  const Vec<A>* history[X];  // rows from -(horizon - 1), where the far part reads; unused without far taps
  Vec<A>* y[X];
};

template <class A>
struct Taps {
  const Vec<A>* near;  // lag 0 first; kTapRows zero vectors follow the last
  int64_t near_taps;
  const Vec<A>* far;  // indexed by lag; kTapRows zero vectors follow lag horizon - 1
  int64_t horizon, history_rows;  // history_rows 0: no far part
};

template <class A, int R, int X>
HYENAREC_INLINE void accumulate_taps(Vec<A> (&sum)[R][X], const Vec<A>* tap, const Vec<A>* const (&u)[X], int64_t begin,
                                     int64_t end) {
  // sum[r][x] += tap[r - s] * u[x][s]
  for (int64_t s = begin; s < end; ++s) {
    Vec<A> v[X];
    for (int x = 0; x < X; ++x) v[x] = u[x][s];
    for (int r = 0; r < R; ++r) {
      Vec<A> h = tap[r - s];
      for (int x = 0; x < X; ++x) sum[r][x] += h * v[x];
    }
  }
}

template <class A, int X>
HYENAREC_INLINE void direct_tile(const Taps<A>& taps, const Lanes<A, X>& lanes, int64_t t0) {
  constexpr int R = kTapRows;
  Vec<A> sum[R][X];
  for (int r = 0; r < R; ++r)
    for (int x = 0; x < X; ++x) sum[r][x] = lanes.y[x][t0 + r];
  for (int x = 0; x < X; ++x)
    for (int f = 0; f < lanes.fetches; ++f)
      for (int r = 0; r < R; ++r) __builtin_prefetch(lanes.fetch[x][f].data + (t0 + r) * lanes.fetch[x][f].stride, 0, 2);
  if (taps.history_rows > 0)
    accumulate_taps<A, R, X>(sum, taps.far + t0 + taps.horizon - 1, lanes.history, t0, taps.history_rows);
  int64_t first = t0 - taps.near_taps + 1;
  accumulate_taps<A, R, X>(sum, taps.near + t0, lanes.u, first > 0 ? first : 0, t0);
  for (int j = 0; j < R; ++j) {
    Vec<A> v[X];
    for (int x = 0; x < X; ++x) v[x] = lanes.u[x][t0 + j];
    for (int r = j; r < R; ++r)
      for (int x = 0; x < X; ++x) sum[r][x] += taps.near[r - j] * v[x];
  }
  for (int r = 0; r < R; ++r)
    for (int x = 0; x < X; ++x) lanes.y[x][t0 + r] = sum[r][x];
}

// y[t] += sum over the sampled lags; rows beyond the last are rounded up to a tile (buffers hold whole tiles).
template <class A, int X>
void direct(const Taps<A>& taps, const Lanes<A, X>& lanes, int64_t rows) {
  for (int64_t t0 = 0; t0 < rows; t0 += kTapRows) direct_tile<A, X>(taps, lanes, t0);
}

}  // namespace hyenarec::HYENAREC_ISA
