// Turns filter values at the plan's lags into the tables that the inner loops read, for one channel block: the taps
// and, for every chunk distance k, the kept entries of the block M^(k) in the local polynomial basis. Entries lie row
// by row; row r has those with s < min(rank, degree - r). The map from values to entries is the same for every k and
// channel. All rows of a register tile are stored as wide as its first one, with zeros after their own entries.
#pragma once
#include "direct.h"

namespace hyenarec::HYENAREC_ISA {

inline int64_t row_length(const Level& level, int64_t r) {
  return level.rank < level.degree - r ? level.rank : level.degree - r;
}
inline int64_t row_start(const Level& level, int64_t r) {
  int64_t start = 0, r0 = 0;
  for (; r0 + kRows <= r; r0 += kRows) start += kRows * row_length(level, r0);
  return start + (r - r0) * row_length(level, r0);
}
inline int64_t entries(const Level& level) { return row_start(level, level.rank); }

// Where a block stores the entries (r, s), r <= s, and their mirror images, in the order of the map: even r + s first.
// Reversing time turns a block of a convolution into its transpose, and a basis polynomial of odd degree into its
// negative: M(s, r) = (-1)^(r + s) M(r, s), so only half of the entries are computed.
struct EntryPlaces {
  int16_t of[kMaxRank * (kMaxRank + 1) / 2][2];
  int64_t even = 0, count = 0;

  explicit EntryPlaces(const Level& level) {
    int64_t start[kMaxRank];
    for (int64_t r = 0; r < level.rank; ++r) start[r] = row_start(level, r);
    for (int parity : {0, 1}) {
      for (int64_t r = 0; r < level.rank; ++r)
        for (int64_t s = r + parity; s < row_length(level, r); s += 2)
          of[count][0] = int16_t(start[r] + s), of[count++][1] = int16_t(start[s] + r);
      if (parity == 0) even = count;
    }
  }
};
inline int64_t num_pairs(const Level& level) { return level.near_pairs + level.far_pairs; }

// Window factors smaller than these count as 0: kSmallestTap for the factor of a single tap, kSmallestFactor where
// three or more factors are multiplied (Window, below). Otherwise products with ordinary data would be subnormal, and
// one operation on subnormal numbers takes as long as a hundred others (2 x 16384 with windows of all lengths, one
// core: 4.3 ms, and 2.5 ms with this cut). What is cut lies below the rounding of what it would be added to. Subnormal
// values in the data are kept.
template <class A>
constexpr A kSmallestTap = sizeof(A) == 4 ? 0x1p-80 : 0x1p-400;
template <class A>
constexpr A kSmallestFactor = sizeof(A) == 4 ? 0x1p-32 : 0x1p-100;

template <class A>
HYENAREC_INLINE Vec<A> damping(Vec<A> rate, int64_t lag, A smallest = kSmallestFactor<A>) {
  Vec<A> e, z = rate * A(lag);
  exp_negative<1>(&e, &z);
  return (e < splat(smallest) ? Vec<A>{} : e) + (rate - rate);  // NaN stays NaN
}

// The factors of exp(-rate lag) for one channel block. The lag between row j of a chunk and row i of the k-th chunk
// after it is k C + i - j = (C - j) + (k - 1) C + i. So sources are scaled by the factor from their row to the end of
// their chunk, blocks by that of the chunks between, and targets by that from the start of their chunk to their row;
// children inside their parent likewise. No factor is above 1, and what remains between the two chunks is the
// polynomial. Null pointers: no window.
template <class A>
struct Window {
  Vec<A>* rows = nullptr;             // i = 0..chunk
  Vec<A>* children[kMaxLevels] = {};  // of a node of level l: at lag j * chunk of its children, j < their fan

  Window() = default;
  Window(const Plan& plan, Vec<A>* at) : rows(at) {
    at += plan.chunk + 1;
    for (int l = 1; l < plan.num_levels; ++l) children[l] = at, at += plan.levels[l - 1].fan;
  }
  static int64_t vectors(const Plan& plan) {
    int64_t count = plan.chunk + 1;
    for (int l = 1; l < plan.num_levels; ++l) count += plan.levels[l - 1].fan;
    return count;
  }
  void fill(const Plan& plan, Vec<A> rate) const {
    for (int64_t i = 0; i <= plan.chunk; ++i) rows[i] = damping<A>(rate, i);
    for (int l = 1; l < plan.num_levels; ++l)
      for (int64_t j = 0; j < plan.levels[l - 1].fan; ++j)
        children[l][j] = damping<A>(rate, j * plan.levels[l - 1].chunk);
  }
};

// Where a plan's tables lie in one channel block's storage of table_vectors(plan) vectors.
template <class A>
struct Tables {
  Vec<A>* near;
  Vec<A>* far;  // lag far_lag first; `near` itself where that holds every lag
  Vec<A>* blocks[kMaxLevels];
  Window<A> window;

  Tables() = default;
  Tables(const Plan& plan, Vec<A>* at) : near(at), far(at) {
    at += plan.near_taps + kTapPad;
    if (plan.far_row > 0) far = at, at += plan.far_taps + kTapPad;
    for (int l = 0; l < plan.num_levels; ++l)
      blocks[l] = at, at += num_pairs(plan.levels[l]) * entries(plan.levels[l]);
  }
  const Vec<A>* far_by_lag(const Plan& plan) const { return far - plan.far_lag; }
};

inline int64_t table_vectors(const Plan& plan) {
  int64_t vectors = plan.near_taps + kTapPad + (plan.far_row > 0 ? plan.far_taps + kTapPad : 0);
  for (int l = 0; l < plan.num_levels; ++l) vectors += num_pairs(plan.levels[l]) * entries(plan.levels[l]);
  return vectors;
}

template <class A>
HYENAREC_INLINE Vec<A> load_channels(const void* rows, int64_t index, int64_t channels, int64_t c0) {
  const A* p = static_cast<const A*>(rows) + index * channels + c0;
  return channels - c0 < kWidth<A> ? load_some<A>(p, channels - c0) : load_full<A>(p);
}

// Multiplies values at the plan's lags by the window: taps by the factor of their lag, values for a block by that of
// the chunks between.
template <class A>
void damp(const Plan& plan, Vec<A> rate, Vec<A>* values) {
  for (int64_t i = 0; i < plan.near_taps; ++i) values[i] *= damping<A>(rate, i, kSmallestTap<A>);
  for (int64_t i = 0; plan.far_row > 0 && i < plan.far_taps; ++i)
    values[plan.far_row + i] *= damping<A>(rate, plan.far_lag + i, kSmallestTap<A>);
  for (int l = 0; l < plan.num_levels; ++l) {
    const Level& level = plan.levels[l];
    for (int64_t p = 0; p < num_pairs(level); ++p) {
      int64_t distance = p < level.near_pairs ? p + 1 : level.far_first + p - level.near_pairs;
      Vec<A> between = damping<A>(rate, (distance - 1) * level.chunk);
      for (int64_t q = 0; q < level.nodes; ++q) values[level.sample_row + p * level.nodes + q] *= between;
    }
  }
}

// The filter's values at the plan's lags, without its window. `room` is for num_samples + terms vectors: the
// coefficients, then these values.
template <class A>
Vec<A>* filter_values(const ConvArgs& args, int64_t c0, Vec<A>* room) {
  Vec<A>* values = room + args.terms;
  if (!args.basis) {
    for (int64_t q = 0; q < args.plan->num_samples; ++q)
      values[q] = load_channels<A>(args.filter, q, args.channels, c0);
    return values;
  }
  int64_t valid = args.channels - c0 < kWidth<A> ? args.channels - c0 : kWidth<A>;
  const A* coefficients = static_cast<const A*>(args.filter) + c0 * args.terms;
  for (int64_t n = 0; n < args.terms; ++n) {
    A lanes[kWidth<A>] = {};
    for (int64_t c = 0; c < valid; ++c) lanes[c] = coefficients[c * args.terms + n];
    room[n] = load_full<A>(lanes);
  }
  const Vec<A>* const in[1] = {room};
  multiply_rows<A, 1>(args.plan->num_samples, {static_cast<const A*>(args.basis), args.terms, 1}, args.terms, in, 1,
                      [&](int64_t q, int, Vec<A> v) { values[q] = v; });
  return values;
}

// Builds the tables of a filter that has these values at the plan's lags.
template <class A>
void build_tables(const Plan& plan, const Vec<A>* values, const Tables<A>& tables) {
  auto taps = [&](Vec<A>* out, int64_t row, int64_t count) {
    for (int64_t i = 0; i < count; ++i) out[i] = values[row + i];
    for (int64_t i = 0; i < kTapPad; ++i) out[count + i] = Vec<A>{};
  };
  taps(tables.near, 0, plan.near_taps);
  if (plan.far_row > 0) taps(tables.far, plan.far_row, plan.far_taps);
  for (int l = 0; l < plan.num_levels; ++l) {
    const Level& level = plan.levels[l];
    int64_t count = level.nodes, half = (count + 1) / 2, size = entries(level), pairs = num_pairs(level);
    const A* map = static_cast<const A*>(level.from_nodes);
    Vec<A> sums[kLanes * kMaxNodes / 2], differences[kLanes * kMaxNodes / 2];
    EntryPlaces places(level);
    for (int64_t k0 = 0; k0 < pairs; k0 += kLanes)
      with_count<kLanes>(pairs - k0, [&](auto lanes) __attribute__((always_inline)) {
        constexpr int X = decltype(lanes)::value;
        const Vec<A>*even[X], *odd[X];
        for (int x = 0; x < X; ++x) {
          const Vec<A>*first = values + level.sample_row + (k0 + x) * count, *last = first + count - 1;
          for (int64_t p = 0; p < half; ++p)
            sums[x * half + p] = first[p] + last[-p], differences[x * half + p] = first[p] - last[-p];
          even[x] = sums + x * half, odd[x] = differences + x * half;
        }
        Vec<A>* out = tables.blocks[l] + k0 * size;
        for (bool is_odd : {false, true}) {
          const int64_t from = is_odd ? places.even : 0, rows = is_odd ? places.count - places.even : places.even;
          multiply_rows<A, X>(rows, {map + from * half, half, 1}, half, is_odd ? odd : even, 1,
                              [&](int64_t e, int x, Vec<A> v) {
                                const auto& place = places.of[from + e];
                                out[x * size + place[0]] = v, out[x * size + place[1]] = is_odd ? -v : v;
                              });
        }
        for (int64_t r = 0; r < level.rank; ++r) {
          int64_t start = row_start(level, r), width = row_length(level, r / kRows * kRows);
          for (int64_t s = row_length(level, r); s < width; ++s)
            for (int x = 0; x < X; ++x) out[x * size + start + s] = Vec<A>{};
        }
      });
  }
}

}  // namespace hyenarec::HYENAREC_ISA
