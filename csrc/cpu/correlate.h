// Gradients of the tables: correlations of output gradient and input for taps, outer products of moments for blocks.
#pragma once
#include "pass.h"

namespace hyenarec::HYENAREC_ISA {

// dtap[lag] += sum over t in [lag, rows) of dy[t] u[t - lag], lag < min(lags, rows); rows a multiple of kTapRows.
// each_tile() is called before every kTapRows lags.
template <class A, class EachTile>
HYENAREC_INLINE void correlate_near(Vec<A>* dtap, int64_t lags, const Vec<A>* dy, const Vec<A>* u, int64_t rows,
                                    const EachTile& each_tile) {
  constexpr int R = kTapRows;
  if (lags > rows) lags = rows;
  for (int64_t lag = 0; lag < lags; lag += R) {
    each_tile();
    Vec<A> sum[R] = {};
    repeat<R>([&](auto j) __attribute__((always_inline)) {
      repeat<j.value + 1>([&](auto r) __attribute__((always_inline)) {
        sum[r.value] += dy[lag + j.value] * u[j.value - r.value];
      });
    });
    slide<-1, A, R>(sum, u + R, dy + lag + R, rows - lag - R);
    for (int r = 0; r < R; ++r)
      if (lag + r < lags) dtap[lag + r] += sum[r];
  }
}

// dtap[horizon - 1 - back] += sum over t of dy[t] history[t + back], for the filter's far end. History row 0 lies
// horizon - 1 rows before the chunk; kTapRows readable vectors, zeros or earlier rows, come before it.
template <class A>
void correlate_far(Vec<A>* dtap, int64_t horizon, int64_t history_rows, const Vec<A>* dy, const Vec<A>* history,
                   int64_t rows) {
  constexpr int R = kTapRows;
  for (int64_t back = 0; back < history_rows; back += R) {
    Vec<A> sum[R] = {};  // sum[r] goes with history[t + back + R - 1 - r]
    int64_t whole = (history_rows - back - (R - 1)) / R * R, t = 0;
    whole = whole < rows ? whole : rows / R * R;
    if (whole > 0) slide<-1, A, R>(sum, history + back + R - 1, dy, whole), t = whole;
    for (; t < rows; ++t)
      for (int r = 0; r < R; ++r)
        if (t + back + R - 1 - r < history_rows) sum[r] += dy[t] * history[t + back + R - 1 - r];
    for (int r = 0; r < R; ++r)
      if (back + R - 1 - r < history_rows) dtap[horizon - 1 - back - (R - 1 - r)] += sum[r];
  }
}

// block(r, s) += sum over n of target[n][r] source[n][s].
template <class A, int N>
HYENAREC_SHARED void outer_products(const Level& level, const Vec<A>* const (&target)[N],
                                    const Vec<A>* const (&source)[N], Vec<A>* block) {
  constexpr int kHalf = kRows > 2 ? kRows / 2 : kRows;
  each_tile(level, [&](auto, int64_t r0, int64_t width, int64_t offset) __attribute__((always_inline)) {
    for (int64_t r = r0; r < r0 + kRows && r < level.rank; r += kHalf)
      for (int64_t s0 = 0; s0 < width; s0 += 4) {
        Vec<A> sum[kHalf][4] = {};
        for (int n = 0; n < N; ++n) {
          Vec<A> v[4] = {source[n][s0], source[n][s0 + 1], source[n][s0 + 2], source[n][s0 + 3]};
          for (int i = 0; i < kHalf; ++i) {
            Vec<A> t = target[n][r + i];
            for (int s = 0; s < 4; ++s) sum[i][s] += t * v[s];
          }
        }
        int64_t count = width - s0 < 4 ? width - s0 : 4;
        for (int i = 0; i < kHalf && r + i < level.rank; ++i) {
          Vec<A>* out = block + offset + (r + i - r0) * width + s0;
          with_count<4>(count, [&](auto entries) __attribute__((always_inline)) {
            for (int s = 0; s < entries.value; ++s) out[s] += sum[i][s];
          });
        }
      }
  });
}

// Adds to the gradients of a level's blocks what X neighbouring nodes of the output gradient give, from `index` on.
template <class A, int X>
void correlate_nodes(const Level& level, const Moments<A>& dy, const Moments<A>& u, int64_t block, int64_t index,
                     Vec<A>* dblocks) {
  int64_t before = level.fan ? index % level.fan : index, size = entries(level);
  int64_t reach = level.near_pairs, all = before < reach ? before : reach;
  auto pairs = [&](auto first, int64_t k, Vec<A>* out) __attribute__((always_inline)) {  // lanes from `first` on
    constexpr int kFirst = decltype(first)::value;
    const Vec<A>*target[X - kFirst], *source[X - kFirst];
    for (int x = kFirst; x < X; ++x)
      target[x - kFirst] = dy.node(block, index + x), source[x - kFirst] = u.node(block, index + x - k);
    outer_products<A, X - kFirst>(level, target, source, out);
  };
  for (int64_t k = 1; k <= all; ++k) pairs(Int<0>{}, k, dblocks + (k - 1) * size);
  repeat<X - 1>([&](auto lane) __attribute__((always_inline)) {
    int64_t k = before + 1 + lane.value;
    if (k <= reach) pairs(Int<lane.value + 1>{}, k, dblocks + (k - 1) * size);
  });
  if (level.far_pairs == 0) return;
  for (int x = 0; x < X; ++x) {
    FarRange range(level, index + x);
    const Vec<A>* const target[1] = {dy.node(block, index + x)};
    for (int64_t k = range.first; k <= range.last; ++k) {
      const Vec<A>* const source[1] = {u.node(block, index + x - k)};
      outer_products<A, 1>(level, target, source, dblocks + (level.near_pairs + k - level.far_first) * size);
    }
  }
}

// From the gradients of the tables to those of the filter's values at the plan's lags: the transpose of build_tables.
template <class A>
void values_gradient(const Plan& plan, const Tables<A>& tables, Vec<A>* values) {
  for (int64_t i = 0; i < plan.near_taps; ++i) values[i] = tables.near[i];
  if (plan.far_row > 0)
    for (int64_t i = 0; i < plan.far_taps; ++i) values[plan.far_row + i] = tables.far[i];
  for (int l = 0; l < plan.num_levels; ++l) {
    const Level& level = plan.levels[l];
    int64_t size = entries(level), half = (level.nodes + 1) / 2;
    const A* map = static_cast<const A*>(level.from_nodes);
    EntryPlaces places(level);
    Vec<A> in_order[kMaxRank * kMaxRank], sums[kMaxNodes / 2], differences[kMaxNodes / 2];
    for (int64_t k = 0; k < num_pairs(level); ++k) {
      for (int64_t e = 0; e < places.count; ++e) {
        const Vec<A>* block = tables.blocks[l] + k * size;
        Vec<A> entry = block[places.of[e][0]], image = block[places.of[e][1]];
        bool diagonal = places.of[e][0] == places.of[e][1];
        in_order[e] = diagonal ? entry : e < places.even ? entry + image : entry - image;
      }
      const Vec<A>* const even[1] = {in_order};
      const Vec<A>* const odd[1] = {in_order + places.even};
      int64_t num_odd = places.count - places.even;
      multiply_rows<A, 1>(half, {map, 1, half}, places.even, even, 1, [&](int64_t p, int, Vec<A> v) { sums[p] = v; });
      multiply_rows<A, 1>(half, {map + places.even * half, 1, half}, num_odd, odd, 1,
                          [&](int64_t p, int, Vec<A> v) { differences[p] = v; });
      Vec<A>*first = values + level.sample_row + k * level.nodes, *last = first + level.nodes - 1;
      for (int64_t p = 0; p < half; ++p) {
        first[p] = sums[p] + differences[p], last[-p] = sums[p] - differences[p];
        if (2 * p + 1 == level.nodes) first[p] = sums[p] + sums[p];  // the middle node mirrors itself: two halves
      }
    }
  }
}

// From the gradient of the filter's values to args.dfilter: the transpose of filter_values.
template <class A>
void filter_gradient(const ConvArgs& args, const Vec<A>* values, int64_t c0) {
  int64_t valid = args.channels - c0 < kWidth<A> ? args.channels - c0 : kWidth<A>;
  A* out = static_cast<A*>(args.dfilter);
  if (!args.basis) {
    for (int64_t q = 0; q < args.plan->num_samples; ++q) store_some<A>(out + q * args.channels + c0, values[q], valid);
    return;
  }
  const Vec<A>* const in[1] = {values};
  multiply_rows<A, 1>(args.terms, {static_cast<const A*>(args.basis), 1, args.terms}, args.plan->num_samples, in, 1,
                      [&](int64_t n, int, Vec<A> v) {
                        for (int64_t c = 0; c < valid; ++c) out[(c0 + c) * args.terms + n] = v[c];
                      });
}

}  // namespace hyenarec::HYENAREC_ISA
