// Gradients of the tables: correlations of output gradient and input for taps, outer products of moments for blocks.
#pragma once
#include "engine.h"

namespace hyenarec::HYENAREC_ISA {

// A tile of kLags lags and kSteps rows takes kLags + kSteps - 1 rows of u and kSteps of dy from memory for
// kLags * kSteps multiply-adds, all in registers: 23 of 32, or 13 of 16.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kLags = 8, kSteps = 4, kOuter = 4;
#else
constexpr int kLags = 6, kSteps = 2, kOuter = 2;
#endif

// dtap[lag] += sum over t in [lag, rows) of dy[t] u[t - lag], lag < min(lags, rows).
template <class A>
void correlate_near(Vec<A>* dtap, int64_t lags, const Vec<A>* dy, const Vec<A>* u, int64_t rows) {
  if (lags > rows) lags = rows;
  for (int64_t lag = 0; lag < lags; lag += kLags) {
    Vec<A> sum[kLags] = {};
    int64_t t = lag;
    for (; t < lag + kLags - 1 && t < rows; ++t)
      for (int r = 0; r < kLags; ++r)
        if (lag + r <= t) sum[r] += dy[t] * u[t - lag - r];
    for (; t + kSteps <= rows; t += kSteps) {
      Vec<A> window[kLags + kSteps - 1], step[kSteps];
      for (int i = 0; i < kLags + kSteps - 1; ++i) window[i] = u[t - lag - (kLags - 1) + i];
      for (int j = 0; j < kSteps; ++j) step[j] = dy[t + j];
      for (int j = 0; j < kSteps; ++j)
        for (int r = 0; r < kLags; ++r) sum[r] += step[j] * window[j + kLags - 1 - r];
    }
    for (; t < rows; ++t)
      for (int r = 0; r < kLags; ++r) sum[r] += dy[t] * u[t - lag - r];
    for (int r = 0; r < kLags; ++r)
      if (lag + r < lags) dtap[lag + r] += sum[r];
  }
}

// dtap[horizon - 1 - back] += sum over t of dy[t] history[t + back]: the far end, where history row 0 lies a horizon
// less one before the chunk.
template <class A>
void correlate_far(Vec<A>* dtap, int64_t horizon, int64_t history_rows, const Vec<A>* dy, const Vec<A>* history,
                   int64_t rows) {
  for (int64_t back = 0; back < history_rows; back += kLags) {
    Vec<A> sum[kLags] = {};
    int64_t whole = history_rows - back - (kLags - 1), t = 0;
    whole = whole < rows ? whole : rows;
    for (; t < whole; ++t)
      for (int r = 0; r < kLags; ++r) sum[r] += dy[t] * history[t + back + r];
    for (; t < rows; ++t)
      for (int r = 0; r < kLags; ++r)
        if (t + back + r < history_rows) sum[r] += dy[t] * history[t + back + r];
    for (int r = 0; r < kLags; ++r)
      if (back + r < history_rows) dtap[horizon - 1 - back - r] += sum[r];
  }
}

template <class A>
struct MomentPair {
  const Vec<A>*target, *source;  // moments of the reversed output gradient of I, and of the input of I - k
};

// dblock(r, s) += sum over pairs of (-1)^r target[r] source[s]; the sign undoes the reversal inside the chunk.
template <class A>
void outer_products(const Level& level, const MomentPair<A>* pairs, int64_t count, Vec<A>* dblock) {
  for (int64_t r0 = 0; r0 < level.rank; r0 += kOuter)
    for (int64_t s0 = 0; s0 < row_length(level, r0); s0 += 4) {
      Vec<A> sum[kOuter][4] = {};
      for (int64_t n = 0; n < count; ++n) {
        const Vec<A>*target = pairs[n].target + r0, *source = pairs[n].source + s0;
        Vec<A> v[4] = {source[0], source[1], source[2], source[3]};
        for (int r = 0; r < kOuter; ++r)
          for (int s = 0; s < 4; ++s) sum[r][s] += target[r] * v[s];
      }
      for (int r = 0; r < kOuter && r0 + r < level.rank; ++r)
        for (int s = 0; s < 4 && s0 + s < row_length(level, r0 + r); ++s) {
          Vec<A>& out = dblock[row_start(level, r0 + r) + s0 + s];
          out = (r0 + r) % 2 ? out - sum[r][s] : out + sum[r][s];
        }
    }
}

// Gradients of a level's blocks from the moments that both engines hold.
template <class A>
void correlate_level(const Plan& plan, int l, Group group, const Engine<A>& u, const Engine<A>& dy, Vec<A>* dblocks,
                     MomentPair<A>* pairs) {
  const Level& level = plan.levels[l];
  int64_t ratio = top_chunk(plan) / level.chunk, rank = level.rank;
  for (int64_t p = 0; p < num_pairs(level); ++p) {
    bool far = p >= level.near_pairs;
    int64_t k = far ? level.far_first + p - level.near_pairs : p + 1, count = 0;
    for (int64_t s = 0; s < group.count; ++s) {
      int64_t first = u.tree.first[s] * ratio, last = u.tree.first[s + 1] * ratio - 1;
      int64_t used = ceil_div(group.sequences[s].length, level.chunk);
      for (int64_t i = k; i < used; ++i) {
        int64_t place = level.fan ? i % level.fan : i;  // in the parent: near pairs stay inside, far ones lie outside
        if (far ? level.far_first + place > k : place < k) continue;
        pairs[count++] = {dy.mu[l] + (last - i) * rank, u.mu[l] + (first + i - k) * rank};
      }
    }
    outer_products<A>(level, pairs, count, dblocks + p * entries(level));
  }
}

// Back from tables to samples, the transpose of build_tables; called for one channel block.
template <class A>
void samples_gradient(const Plan& plan, const Tables<A>& sums, void* dsamples, int64_t channels, int64_t c0,
                      int64_t valid) {
  auto store = [&](int64_t row, Vec<A> v) {
    store_some<A>(static_cast<A*>(dsamples) + row * channels + c0, v, valid);
  };
  for (int64_t i = 0; i < plan.near_taps; ++i) store(i, sums.near[i]);
  if (plan.far_row > 0)
    for (int64_t i = 0; i < plan.far_taps; ++i) store(plan.far_row + i, sums.far[i]);
  for (int l = 0; l < plan.num_levels; ++l) {
    const Level& level = plan.levels[l];
    int64_t size = entries(level);
    Scalars<A> map{static_cast<const A*>(level.from_nodes), 1, level.nodes};
    for (int64_t k = 0; k < num_pairs(level); ++k) {
      const Vec<A>* const in[1] = {sums.blocks[l] + k * size};
      multiply_rows<A, 1>(level.nodes, map, size, in, 1,
                          [&](int64_t p, int, Vec<A> v) { store(level.sample_row + k * level.nodes + p, v); });
    }
  }
}

}  // namespace hyenarec::HYENAREC_ISA
