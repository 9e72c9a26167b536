// Between chunks: moments up the tree, the blocks M^(k) between the children of one parent, reconstruction down.
//
// Every passage between a basis and its halves uses a mirror: the local basis alternates even and odd about the
// middle, so with p = front + mirrored back and q = front - mirrored back an even moment is a sum over p alone and an odd one over
// q alone: half the multiply-adds. A block is nearly a
// polynomial of low degree in i - j, so its entries with large r + s are zero and left out.
#pragma once
#include "nodes.h"

namespace hyenarec::HYENAREC_ISA {

inline int64_t evens(int64_t rank) { return (rank + 1) / 2; }

template <class A>
Scalars<A> even_basis(const Level& level) {
  return {static_cast<const A*>(level.moments), 1, evens(level.rank)};
}
template <class A>
Scalars<A> odd_basis(const Level& level) {
  return {static_cast<const A*>(level.moments) + level.half * evens(level.rank), 1, level.rank / 2};
}
template <class A>
Scalars<A> transposed(Scalars<A> m) {
  return {m.data, m.k_stride, m.row_stride};
}

// out[x][r] = moments of the folded input: p[x] and q[x] hold `half` vectors each.
template <class A, int X>
HYENAREC_INLINE void folded_moments(const Level& level, const Vec<A>* const (&p)[X], const Vec<A>* const (&q)[X],
                                    Vec<A>* const (&out)[X]) {
  multiply_rows<A, X>(evens(level.rank), even_basis<A>(level), level.half, p, 1,
                      [&](int64_t r, int x, Vec<A> v) { out[x][2 * r] = v; });
  multiply_rows<A, X>(level.rank / 2, odd_basis<A>(level), level.half, q, 1,
                      [&](int64_t r, int x, Vec<A> v) { out[x][2 * r + 1] = v; });
}

// emit(i, x, even part, odd part) for every folded row i of the reconstruction from nu[x].
template <class A, int X, class Emit>
HYENAREC_INLINE void folded_rows(const Level& level, const Vec<A>* const (&nu)[X], const Emit& emit) {
  constexpr int kHalfRows = kRows > 3 ? 3 : 1;  // two sums a row
  const Vec<A>* odd[X];
  for (int x = 0; x < X; ++x) odd[x] = nu[x] + 1;
  Scalars<A> even_rows = transposed(even_basis<A>(level)), odd_rows = transposed(odd_basis<A>(level));
  for (int64_t i0 = 0; i0 < level.half; i0 += kHalfRows)
    with_count<kHalfRows>(level.half - i0, [&](auto count) __attribute__((always_inline)) {
      constexpr int R = decltype(count)::value;
      Vec<A> even_sum[R][X] = {}, odd_sum[R][X] = {};
      auto from = [&](Scalars<A> m) { return Scalars<A>{m.data + i0 * m.row_stride, m.row_stride, m.k_stride}; };
      multiply<A, R, X>(even_sum, from(even_rows), evens(level.rank), nu, 2);
      multiply<A, R, X>(odd_sum, from(odd_rows), level.rank / 2, odd, 2);
      for (int r = 0; r < R; ++r)
        for (int x = 0; x < X; ++x) emit(i0 + r, x, even_sum[r][x], odd_sum[r][x]);
    });
}

// Moments of the parents (level l) from those of their children (level l - 1).
template <class A>
void moments_up(const Plan& plan, int l, const Tree& tree, const Vec<A>* below, Vec<A>* above, Vec<A>* fold) {
  const Level& level = plan.levels[l];
  int64_t child_rank = plan.levels[l - 1].rank, fan = plan.levels[l - 1].fan;
  for (int64_t n = 0; n < tree.num_alive[l]; n += kLanes)
    with_count<kLanes>(tree.num_alive[l] - n, [&](auto lanes) __attribute__((always_inline)) {
      constexpr int X = decltype(lanes)::value;
      const Vec<A>*p[X], *q[X];
      Vec<A>* out[X];
      for (int x = 0; x < X; ++x) {
        int64_t node = tree.alive[l][n + x];
        const Vec<A>* child = below + node * fan * child_rank;
        Vec<A>*sum = fold + x * 2 * level.half, *difference = sum + level.half;
        for (int64_t j = 0; j < fan / 2; ++j)
          for (int64_t b = 0; b < child_rank; ++b) {
            Vec<A> front = child[j * child_rank + b], back = child[(fan - 1 - j) * child_rank + b];
            sum[j * child_rank + b] = b % 2 ? front - back : front + back;
            difference[j * child_rank + b] = b % 2 ? front + back : front - back;
          }
        p[x] = sum, q[x] = difference, out[x] = above + node * level.rank;
      }
      folded_moments<A, X>(level, p, q, out);
    });
}

// Adds the parents' nu (level l) to their children's.
template <class A>
void nu_down(const Plan& plan, int l, const Tree& tree, const Vec<A>* above, Vec<A>* below) {
  const Level& level = plan.levels[l];
  int64_t child_rank = plan.levels[l - 1].rank, fan = plan.levels[l - 1].fan;
  for (int64_t n = 0; n < tree.num_alive[l]; n += kLanes)
    with_count<kLanes>(tree.num_alive[l] - n, [&](auto lanes) __attribute__((always_inline)) {
      constexpr int X = decltype(lanes)::value;
      const Vec<A>* nu[X];
      Vec<A>* child[X];
      for (int x = 0; x < X; ++x) {
        int64_t node = tree.alive[l][n + x];
        nu[x] = above + node * level.rank, child[x] = below + node * fan * child_rank;
      }
      folded_rows<A, X>(level, nu, [&](int64_t i, int x, Vec<A> even, Vec<A> odd) {
        int64_t j = i / child_rank, b = i % child_rank;
        child[x][i] += even + odd;
        child[x][(fan - 1 - j) * child_rank + b] += b % 2 ? odd - even : even - odd;
      });
    });
}

// sum[r][x] += M(r0 + r, s) * mu[x][s] for one block.
template <class A, int R, int X>
HYENAREC_INLINE void apply_block(Vec<A> (&sum)[R][X], const Vec<A>* block, const Level& level, int64_t r0,
                                 const Vec<A>* const (&mu)[X]) {
  const Vec<A>* m[R];
  for (int r = 0; r < R; ++r) m[r] = block + row_start(level, r0 + r);
  int64_t whole = row_length(level, r0 + R - 1), longest = row_length(level, r0);
  for (int64_t s = 0; s < whole; ++s) {
    Vec<A> v[X];
    for (int x = 0; x < X; ++x) v[x] = mu[x][s];
    for (int r = 0; r < R; ++r) {
      Vec<A> entry = m[r][s];
      for (int x = 0; x < X; ++x) sum[r][x] += entry * v[x];
    }
  }
  for (int64_t s = whole; s < longest; ++s)
    for (int r = 0; r < R - 1; ++r)
      if (r0 + r + s < level.degree)
        for (int x = 0; x < X; ++x) sum[r][x] += m[r][s] * mu[x][s];
}

// nu[x] (=, or += when adding) sum over k in [first, first + count) of M^(k) mu[x], where mu[x] starts at the source of
// the first k and the next k's source is one chunk earlier.
template <class A, int X>
HYENAREC_INLINE void apply_pairs(const Level& level, const Vec<A>* blocks, int64_t count, const Vec<A>* const (&mu)[X],
                                 Vec<A>* const (&nu)[X], bool adding) {
  int64_t rank = level.rank, size = entries(level);
  for (int64_t r0 = 0; r0 < rank; r0 += kRows)
    with_count<kRows>(rank - r0, [&](auto rows) __attribute__((always_inline)) {
      constexpr int R = decltype(rows)::value;
      Vec<A> sum[R][X] = {};
      const Vec<A>* source[X];
      for (int x = 0; x < X; ++x) source[x] = mu[x];
      for (int64_t k = 0; k < count; ++k) {
        apply_block<A, R, X>(sum, blocks + k * size, level, r0, source);
        for (int x = 0; x < X; ++x) source[x] -= rank;
      }
      for (int x = 0; x < X; ++x)
        for (int r = 0; r < R; ++r) nu[x][r0 + r] = adding ? nu[x][r0 + r] + sum[r][x] : sum[r][x];
    });
}

// nu of every child from the earlier children of its parent. child(x) and children(x) name the lanes' parents.
template <class A, class First, class Count>
void near_pairs(const Level& level, const Vec<A>* blocks, int64_t parents, First first, Count count, const Vec<A>* mu,
                Vec<A>* nu) {
  int64_t rank = level.rank;
  for (int64_t p = 0; p < parents; p += kLanes) {
    int64_t lanes = parents - p < kLanes ? parents - p : kLanes, longest = 0;
    for (int64_t x = 0; x < lanes; ++x) longest = count(p + x) > longest ? count(p + x) : longest;
    for (int64_t i = 0; i < longest; ++i) {
      int64_t node[kLanes] = {}, live = 0;
      for (int64_t x = 0; x < lanes; ++x)
        if (i < count(p + x)) node[live++] = first(p + x) + i;
      with_count<kLanes>(live, [&](auto number) __attribute__((always_inline)) {
        constexpr int X = decltype(number)::value;
        const Vec<A>* source[X];
        Vec<A>* target[X];
        for (int x = 0; x < X; ++x) source[x] = mu + (node[x] - 1) * rank, target[x] = nu + node[x] * rank;
        apply_pairs<A, X>(level, blocks, i < level.near_pairs ? i : level.near_pairs, source, target, false);
      });
    }
  }
}

// The pairs in different parents that the filter's end leaves to this level (only where it lies inside the sequence).
template <class A>
void far_pairs(const Level& level, const Vec<A>* blocks, int64_t children, const Vec<A>* mu, Vec<A>* nu) {
  int64_t rank = level.rank, last = level.far_first + level.far_pairs - 1;
  const Vec<A>* far = blocks + level.near_pairs * entries(level);
  for (int64_t i = 0; i < children; ++i) {
    int64_t from = level.far_first + i % level.fan, to = last < i ? last : i;
    if (from > to) continue;
    const Vec<A>* const source[1] = {mu + (i - from) * rank};
    Vec<A>* const target[1] = {nu + i * rank};
    apply_pairs<A, 1>(level, far + (from - level.far_first) * entries(level), to - from + 1, source, target, true);
  }
}

// The moments of every level from the lowest, mu[0] (zero where no rows are).
template <class A>
void all_moments(const Plan& plan, const Tree& tree, Vec<A>* const* mu, Vec<A>* fold) {
  for (int l = 1; l < plan.num_levels; ++l) {
    int64_t nodes = tree.top_nodes * (top_chunk(plan) / plan.levels[l].chunk);
    if (nodes != tree.num_alive[l]) memset((void*)mu[l], 0, nodes * plan.levels[l].rank * sizeof(Vec<A>));
    moments_up<A>(plan, l, tree, mu[l - 1], mu[l], fold);
  }
}

// From moments to nu[0], what the other chunks contribute to each chunk.
template <class A>
void between_chunks(const Plan& plan, Group group, const Tree& tree, const Tables<A>& tables, Vec<A>* const* mu,
                    Vec<A>* const* nu) {
  int top = plan.num_levels - 1;
  for (int l = top; l >= 0; --l) {
    const Level& level = plan.levels[l];
    if (l == top) {
      near_pairs<A>(level, tables.blocks[l], group.count, [&](int64_t s) { return tree.first[s]; },
                    [&](int64_t s) { return tree.first[s + 1] - tree.first[s]; }, mu[l], nu[l]);
      continue;
    }
    near_pairs<A>(level, tables.blocks[l], tree.num_alive[l + 1],
                  [&](int64_t p) { return tree.alive[l + 1][p] * level.fan; }, [&](int64_t) { return level.fan; }, mu[l],
                  nu[l]);
    int64_t ratio = top_chunk(plan) / level.chunk;
    if (level.far_pairs > 0)
      for (int64_t s = 0; s < group.count; ++s)
        far_pairs<A>(level, tables.blocks[l], (tree.first[s + 1] - tree.first[s]) * ratio,
                     mu[l] + tree.first[s] * ratio * level.rank, nu[l] + tree.first[s] * ratio * level.rank);
    nu_down<A>(plan, l + 1, tree, nu[l + 1], nu[l]);
  }
}

}  // namespace hyenarec::HYENAREC_ISA
