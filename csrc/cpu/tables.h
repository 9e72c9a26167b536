// From filter values at the plan's lags to what the inner loops read, for one channel block: taps, and for every chunk
// distance k the upper-left triangle of the block M^(k) in the local polynomial basis. Column-major in r: entry (r, s),
// r + s < rank, is at triangle_start(r) + s. The map from samples to entries is the same for every k and channel.
#pragma once
#include "direct.h"

namespace hyenarec::HYENAREC_ISA {

inline int64_t triangle(int64_t rank) { return rank * (rank + 1) / 2; }
inline int64_t triangle_start(int64_t rank, int64_t r) { return r * rank - r * (r - 1) / 2; }
inline int64_t num_pairs(const Level& level) { return level.near_pairs + level.far_pairs; }

// Where a plan's tables lie in one channel block's storage of table_vectors(plan) vectors.
template <class A>
struct Tables {
  Vec<A>* near;
  Vec<A>* far;  // lag far_lag first; `near` itself where that holds every lag
  Vec<A>* blocks[kMaxLevels];

  Tables(const Plan& plan, Vec<A>* at) : near(at), far(at) {
    at += plan.near_taps + kTapRows;
    if (plan.far_row > 0) far = at, at += plan.far_taps + kTapRows;
    for (int l = 0; l < plan.num_levels; ++l)
      blocks[l] = at, at += num_pairs(plan.levels[l]) * triangle(plan.levels[l].rank);
  }
  const Vec<A>* far_by_lag(const Plan& plan) const { return far - plan.far_lag; }
};

inline int64_t table_vectors(const Plan& plan) {
  int64_t vectors = plan.near_taps + kTapRows + (plan.far_row > 0 ? plan.far_taps + kTapRows : 0);
  for (int l = 0; l < plan.num_levels; ++l) vectors += num_pairs(plan.levels[l]) * triangle(plan.levels[l].rank);
  return vectors;
}

template <class A>
HYENAREC_INLINE Vec<A> load_channels(const void* rows, int64_t index, int64_t channels, int64_t c0) {
  const A* p = static_cast<const A*>(rows) + index * channels + c0;
  return channels - c0 < kWidth<A> ? load_some<A>(p, channels - c0) : load_full<A>(p);
}

template <class A>
void build_tables(const Plan& plan, const void* samples, int64_t channels, int64_t c0, const Tables<A>& tables) {
  auto taps = [&](Vec<A>* out, int64_t row, int64_t count) {
    for (int64_t i = 0; i < count; ++i) out[i] = load_channels<A>(samples, row + i, channels, c0);
    for (int64_t i = 0; i < kTapRows; ++i) out[count + i] = Vec<A>{};
  };
  taps(tables.near, 0, plan.near_taps);
  if (plan.far_row > 0) taps(tables.far, plan.far_row, plan.far_taps);
  for (int l = 0; l < plan.num_levels; ++l) {
    const Level& level = plan.levels[l];
    int64_t rank = level.rank, entries = triangle(rank), pairs = num_pairs(level);
    Scalars<A> map{static_cast<const A*>(level.from_nodes), rank, 1};
    Vec<A> nodes[kLanes * 64];
    for (int64_t k0 = 0; k0 < pairs; k0 += kLanes)
      with_count<kLanes>(pairs - k0, [&](auto lanes) __attribute__((always_inline)) {
        constexpr int X = decltype(lanes)::value;
        const Vec<A>* in[X];
        for (int x = 0; x < X; ++x) {
          in[x] = nodes + x * rank;
          for (int64_t p = 0; p < rank; ++p)
            nodes[x * rank + p] = load_channels<A>(samples, level.sample_row + (k0 + x) * rank + p, channels, c0);
        }
        Vec<A>* out = tables.blocks[l] + k0 * entries;
        multiply_rows<A, X>(entries, map, rank, in, 1, [&](int64_t e, int x, Vec<A> v) { out[x * entries + e] = v; });
      });
  }
}

}  // namespace hyenarec::HYENAREC_ISA
