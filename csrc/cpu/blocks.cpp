#include "blocks.h"

#include <cmath>
#include <map>
#include <memory>
#include <mutex>

#include "legendre.h"

namespace hyenarec::cpu {
namespace {

// From the costs that plan.py measured: the block form of a filter of N terms takes about as long as 16 N direct taps.
// A lowest chunk of at least twice N rows and 4 chunks in each parent are the fastest of these shapes, or close to it.
constexpr int64_t kTapsPerTerm = 16, kMostTerms = 32, kFan = 4, kMostLevels = 4;
constexpr int64_t kEndless = INT64_MAX / 4;
int64_t lowest_chunk(int64_t terms) { return terms <= 8 ? 32 : 64; }

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Matrix {
  int64_t rows, columns;
  std::vector<double> data;
  Matrix(int64_t r, int64_t c) : rows(r), columns(c), data(size_t(r * c)) {}
  double& operator()(int64_t i, int64_t j) { return data[size_t(i * columns + j)]; }
  double operator()(int64_t i, int64_t j) const { return data[size_t(i * columns + j)]; }
};

double node(int64_t p, int64_t count) { return std::cos(M_PI * (double(p) + 0.5) / double(count)); }  // Chebyshev

// The value at t of the polynomial that is 1 at node p of `count` and 0 at the others.
double cardinal(int64_t p, int64_t count, double t) {
  double x = node(p, count), sum = 1;
  double before_x = 1, now_x = x, before_t = 1, now_t = t;  // T_{m-1}, T_m
  for (int64_t m = 1; m < count; ++m) {
    sum += 2 * now_x * now_t;
    double next_x = 2 * x * now_x - before_x, next_t = 2 * t * now_t - before_t;
    before_x = now_x, now_x = next_x, before_t = now_t, now_t = next_t;
  }
  return sum / double(count);
}

double place(int64_t i, int64_t chunk) { return 2 * double(i) / double(chunk - 1) - 1; }

// Orthonormal polynomials of degree < rank on the points of a chunk, (chunk, rank).
Matrix local_basis(int64_t chunk, int64_t rank) {
  std::vector<double> points(static_cast<size_t>(chunk));
  for (int64_t i = 0; i < chunk; ++i) points[size_t(i)] = double(i);
  Matrix q(chunk, rank);
  q.data = legendre_at(points, rank, chunk);
  for (int64_t r = 0; r < rank; ++r) {
    for (int64_t s = 0; s < 2 * r; ++s) {  // Gram-Schmidt, twice
      double dot = 0;
      for (int64_t i = 0; i < chunk; ++i) dot += q(i, r) * q(i, s % r);
      for (int64_t i = 0; i < chunk; ++i) q(i, r) -= dot * q(i, s % r);
    }
    double square = 0;
    for (int64_t i = 0; i < chunk; ++i) square += q(i, r) * q(i, r);
    for (int64_t i = 0; i < chunk; ++i) q(i, r) /= std::sqrt(square);
  }
  return q;
}

// Appends Level::moments: the basis, even polynomials first, on the front half of a chunk's rows or, where `below` is
// the basis of the level below, on the moments of the front half of its children.
void append_moments(std::vector<double>& out, const Matrix& basis, const Matrix* below) {
  Matrix rows(below ? kFan / 2 * below->columns : basis.rows / 2, basis.columns);
  for (int64_t i = 0; i < rows.rows; ++i)
    for (int64_t r = 0; r < basis.columns; ++r) {
      if (!below) {
        rows(i, r) = basis(i, r);
        continue;
      }
      const int64_t child = i / below->columns, s = i % below->columns;
      for (int64_t j = 0; j < below->rows; ++j) rows(i, r) += basis(child * below->rows + j, r) * (*below)(j, s);
    }
  for (int64_t parity : {0, 1})
    for (int64_t i = 0; i < rows.rows; ++i)
      for (int64_t r = parity; r < rows.columns; r += 2) out.push_back(rows(i, r));
}

// Appends Level::from_nodes: the map from filter values at mirrored nodes of a run of lags to the entries r <= s of its
// block, in the order of EntryPlaces (tables.h). Sums of values give the entries with even r + s, which come first, and
// differences those with odd r + s.
void append_from_nodes(std::vector<double>& out, const Matrix& basis) {
  const int64_t chunk = basis.rows, count = basis.columns;
  Matrix to_basis(count, count);  // maps values at a chunk's nodes to coefficients of its local polynomials
  for (int64_t a = 0; a < count; ++a)
    for (int64_t i = 0; i < chunk; ++i) {
      const double value = cardinal(a, count, place(i, chunk));
      for (int64_t r = 0; r < count; ++r) to_basis(r, a) += basis(i, r) * value;
    }
  std::vector<Matrix> blocks;  // of the cardinal polynomial of each node
  for (int64_t p = 0; p < (count + 1) / 2; ++p) {
    Matrix half(count, count), block(count, count);
    for (int64_t a = 0; a < count; ++a)
      for (int64_t b = 0; b < count; ++b) {
        const double value = cardinal(p, count, (node(a, count) - node(b, count)) / 2);
        for (int64_t r = 0; r < count; ++r) half(r, b) += to_basis(r, a) * value;
      }
    for (int64_t r = 0; r < count; ++r)
      for (int64_t s = 0; s < count; ++s)
        for (int64_t b = 0; b < count; ++b) block(r, s) += half(r, b) * to_basis(s, b);
    blocks.push_back(block);
  }
  for (int64_t parity : {0, 1})
    for (int64_t r = 0; r < count; ++r)
      for (int64_t s = r + parity; r + s < count; s += 2)
        for (int64_t p = 0; p < (count + 1) / 2; ++p)
          out.push_back(blocks[size_t(p)](r, s) / (2 * p + 1 == count ? 2 : 1));  // the middle one is its own mirror
}

// Levels, near_pairs and far_pairs as hyenarec_kernels/lowrank/levels.py explains them.
void add_levels(Plan& plan, int64_t rank, std::vector<int64_t> chunks) {
  for (size_t l = 0; l < chunks.size(); ++l) {
    const int64_t chunk = chunks[l];
    const int64_t reach = std::min(ceil_div(plan.length, chunk), plan.horizon / chunk) - 1;
    Level& level = plan.levels[plan.num_levels++];
    level = {chunk, 0, rank, rank, rank, reach, reach + 1, 0, 0, nullptr, nullptr, chunk / 2};
    if (l > 0) level.half = kFan / 2 * rank;
    if (l + 1 == chunks.size()) continue;
    const int64_t covered = plan.horizon / chunks[l + 1] - 1;  // distances of parents that the levels above handle
    level.fan = kFan;
    level.near_pairs = std::min(kFan - 1, reach);
    level.far_first = covered * kFan + 1;
    if (ceil_div(plan.length, chunks[l + 1]) - 1 > covered)
      level.far_pairs = std::max<int64_t>(reach - level.far_first + 1, 0);
  }
}

std::unique_ptr<BlockPlan> make(const Tensor& x, int64_t terms, int64_t horizon, int64_t length) {
  Plan plan{};
  plan.horizon = horizon, plan.length = length, plan.chunk = plan.near_taps = lowest_chunk(terms);
  std::vector<int64_t> chunks{plan.chunk};
  while (2 * kFan * chunks.back() <= std::min(horizon, length) && int64_t(chunks.size()) < kMostLevels)
    chunks.push_back(kFan * chunks.back());
  add_levels(plan, std::max<int64_t>(terms, 2), chunks);
  plan.far_lag = (horizon / plan.chunk - 1) * plan.chunk + 1;
  plan.far_taps = ceil_div(length, plan.chunk) > horizon / plan.chunk ? horizon - plan.far_lag : 0;
  plan.far_row = plan.far_taps ? plan.near_taps : 0;

  std::vector<double> lags, constants;
  std::vector<size_t> offsets;
  for (int64_t lag = 0; lag < plan.near_taps; ++lag) lags.push_back(double(lag));
  for (int64_t i = 0; i < plan.far_taps; ++i) lags.push_back(double(plan.far_lag + i));
  std::unique_ptr<Matrix> below;
  for (int l = 0; l < plan.num_levels; ++l) {
    Level& level = plan.levels[l];
    level.sample_row = int64_t(lags.size());
    for (int64_t pair = 0; pair < level.near_pairs + level.far_pairs; ++pair) {
      const int64_t distance = pair < level.near_pairs ? pair + 1 : level.far_first + pair - level.near_pairs;
      for (int64_t p = 0; p < level.nodes; ++p)
        lags.push_back(double(level.chunk * distance) + double(level.chunk - 1) * node(p, level.nodes));
    }
    auto basis = std::make_unique<Matrix>(local_basis(level.chunk, level.rank));
    offsets.push_back(constants.size());
    append_moments(constants, *basis, below.get());
    offsets.push_back(constants.size());
    append_from_nodes(constants, *basis);
    below = std::move(basis);
  }
  plan.num_samples = int64_t(lags.size());
  Tensor basis = tensor_of(x, legendre_at(lags, terms, horizon), {plan.num_samples, terms});
  Tensor kept = tensor_of(x, constants, {int64_t(constants.size())});
  auto at = [&](size_t offset) { return static_cast<const char*>(kept.data_ptr()) + offset * kept.element_size(); };
  for (int l = 0; l < plan.num_levels; ++l)
    plan.levels[l].moments = at(offsets[size_t(2 * l)]), plan.levels[l].from_nodes = at(offsets[size_t(2 * l + 1)]);
  return std::make_unique<BlockPlan>(BlockPlan{plan, basis, kept});
}

}  // namespace

const BlockPlan* block_plan(const Tensor& x, int64_t terms, int64_t horizon, int64_t longest) {
  const int64_t taps = std::min(horizon, longest);
  if (terms > kMostTerms || taps < std::max(kTapsPerTerm * terms, 2 * lowest_chunk(terms))) return nullptr;
  using Key = std::tuple<int64_t, int64_t, bool, bool>;
  static auto& kept = *new std::map<Key, std::unique_ptr<BlockPlan>>;  // never freed, as in legendre.cpp
  static std::mutex mutex;
  std::lock_guard<std::mutex> lock(mutex);
  // Two plans serve every length: one where no sequence is longer than the filter, and one where some may be.
  const bool within = longest <= horizon;
  auto& plan = kept[{terms, horizon, within, dtype_of(x) == Dtype::f64}];
  if (!plan) plan = make(x, terms, horizon, within ? horizon : kEndless);
  return plan.get();
}

}  // namespace hyenarec::cpu
