// The levels of the block low-rank form: moments of chunks, the blocks M^(k) between the children of one parent, and
// reconstruction.
//
// The local basis polynomials are alternately even and odd about the middle of a chunk, and every step into or out of
// the basis uses this: with p = front + mirrored back and q = front - mirrored back, an even moment is a sum over p
// alone and an odd one over q alone, which halves the multiply-adds. A block is nearly a polynomial of low degree in
// i - j, so its entries with large r + s are zero or negligible, and left out.
#pragma once
#include "scratch.h"
#include "tables.h"

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
  for (int64_t odd : {0, 1})
    multiply_rows<A, X>(odd ? level.rank / 2 : evens(level.rank), odd ? odd_basis<A>(level) : even_basis<A>(level),
                        level.half, odd ? q : p, 1, [&](int64_t r, int x, Vec<A> v) { out[x][2 * r + odd] = v; });
}

// Calls emit(i, x, even part, odd part) for the folded rows begin + i, i < count, of the reconstruction from nu[x].
template <class A, int X, class Emit>
HYENAREC_INLINE void folded_rows(const Level& level, int64_t begin, int64_t count, const Vec<A>* const (&nu)[X],
                                 const Emit& emit) {
  constexpr int kHalfRows = kRows > 3 ? 3 : 1;  // two sums per row
  const Vec<A>* odd[X];
  for (int x = 0; x < X; ++x) odd[x] = nu[x] + 1;
  Scalars<A> even_rows = transposed(even_basis<A>(level)), odd_rows = transposed(odd_basis<A>(level));
  for (int64_t i0 = 0; i0 < count; i0 += kHalfRows)
    with_count<kHalfRows>(count - i0, [&](auto rows) __attribute__((always_inline)) {
      constexpr int R = decltype(rows)::value;
      Vec<A> even_sum[R][X] = {}, odd_sum[R][X] = {};
      auto from = [&](Scalars<A> m) {
        return Scalars<A>{m.data + (begin + i0) * m.row_stride, m.row_stride, m.k_stride};
      };
      multiply<A, R, X>(even_sum, from(even_rows), evens(level.rank), nu, 2);
      multiply<A, R, X>(odd_sum, from(odd_rows), level.rank / 2, odd, 2);
      for (int r = 0; r < R; ++r)
        for (int x = 0; x < X; ++x) emit(i0 + r, x, even_sum[r][x], odd_sum[r][x]);
    });
}

// The window factors that scale a chunk's rows, or a node's children, when their moments are taken: from the row to the
// end of the chunk for sources, from the start of the chunk to the row for targets. Null data: no window.
template <class A>
struct Scale {
  const Vec<A>* data;
  int64_t step;
  Vec<A> operator[](int64_t i) const { return data[i * step]; }
};

// Moments of X chunks, from `rows` to `out`. `fold` is scratch of 2 X half vectors.
template <class A, int X>
HYENAREC_INLINE void chunk_moments(const Level& level, const Vec<A>* const (&rows)[X], Scale<A> scale, Vec<A>* fold,
                                   Vec<A>* const (&out)[X]) {
  const Vec<A>*p[X], *q[X];
  for (int x = 0; x < X; ++x) {
    Vec<A>*sum = fold + x * 2 * level.half, *difference = sum + level.half;
    const Vec<A>*front = rows[x], *back = rows[x] + level.chunk - 1;
    for (int64_t i = 0; i < level.half; ++i) {
      Vec<A> a = front[i], b = back[-i];
      if (scale.data) a *= scale[i], b *= scale[level.chunk - 1 - i];
      sum[i] = a + b, difference[i] = a - b;
    }
    p[x] = sum, q[x] = difference;
  }
  folded_moments<A, X>(level, p, q, out);
}

// y[x] = the values of the polynomial with coefficients nu[x] on the chunk's rows.
template <class A, int X>
HYENAREC_INLINE void reconstruct(const Level& level, const Vec<A>* const (&nu)[X], Vec<A>* const (&y)[X]) {
  folded_rows<A, X>(level, 0, level.half, nu, [&](int64_t i, int x, Vec<A> even, Vec<A> odd) {
    y[x][i] = even + odd;
    y[x][level.chunk - 1 - i] = even - odd;
  });
}

// Moments of a node of `level` from those of its children, fan x child.rank vectors.
template <class A, int X>
HYENAREC_INLINE void moments_up(const Level& level, const Level& child, const Vec<A>* const (&children)[X],
                                const Scale<A> (&scale)[X], Vec<A>* fold, Vec<A>* const (&out)[X]) {
  const Vec<A>*p[X], *q[X];
  int64_t rank = child.rank;
  for (int x = 0; x < X; ++x) {
    Vec<A>*sum = fold + x * 2 * level.half, *difference = sum + level.half;
    for (int64_t j = 0; j < child.fan / 2; ++j) {
      const Vec<A>*front = children[x] + j * rank, *back = children[x] + (child.fan - 1 - j) * rank;
      for (int64_t b = 0; b < rank; ++b) {
        Vec<A> a = front[b], c = b % 2 ? -back[b] : back[b];
        if (scale[x].data) a *= scale[x][j], c *= scale[x][child.fan - 1 - j];
        sum[b] = a + c, difference[b] = a - c;
      }
      sum += rank, difference += rank;
    }
    p[x] = fold + x * 2 * level.half, q[x] = p[x] + level.half;
  }
  folded_moments<A, X>(level, p, q, out);
}

// nu of the children from that of their parent, a node of `level`.
template <class A, int X>
HYENAREC_INLINE void nu_down(const Level& level, const Level& child, const Vec<A>* const (&nu)[X],
                             const Scale<A> (&scale)[X], Vec<A>* const (&children)[X]) {
  int64_t rank = child.rank;
  for (int64_t j = 0; j < child.fan / 2; ++j)
    folded_rows<A, X>(level, j * rank, rank, nu, [&](int64_t b, int x, Vec<A> even, Vec<A> odd) {
      Vec<A> front = even + odd, back = b % 2 ? odd - even : even - odd;
      if (scale[x].data) front *= scale[x][j], back *= scale[x][child.fan - 1 - j];
      children[x][j * rank + b] = front, children[x][(child.fan - 1 - j) * rank + b] = back;
    });
}

// sum[r][x] += M(r0 + r, s) * mu[x][s] for one register tile of a block and the lanes from `From` on.
template <class A, int R, int X, int From>
HYENAREC_INLINE void apply_block(Vec<A> (&sum)[R][X], const Vec<A>* tile, int64_t width, const Vec<A>* const (&mu)[X]) {
  for (int64_t s = 0; s < width; ++s) {
    Vec<A> v[X];
    for (int x = From; x < X; ++x) v[x] = mu[x][s];
    for (int r = 0; r < R; ++r) {
      Vec<A> entry = tile[r * width + s];
      for (int x = From; x < X; ++x) sum[r][x] += entry * v[x];
    }
  }
}

// Calls f(Int<rows>, first row, entries per row, offset in the block) for every register tile of a block.
template <class F>
HYENAREC_INLINE void each_tile(const Level& level, const F& f) {
  int64_t offset = 0;
  for (int64_t r0 = 0; r0 < level.rank; r0 += kRows) {
    int64_t width = row_length(level, r0);
    with_count<kRows>(level.rank - r0, [&](auto rows) __attribute__((always_inline)) { f(rows, r0, width, offset); });
    offset += kRows * width;
  }
}

// Sets nu[x] to, or when `adding` adds to it, the sum over k = 1, 2, ... of M^(k) times the moments of the node k
// before lane x. Lanes are X neighbouring nodes; `before` nodes of their parent come before the first one. Distances k
// end at `reach`.
template <class A, int X>
HYENAREC_INLINE void apply_pairs(const Level& level, const Vec<A>* blocks, int64_t before, int64_t reach,
                                 const Vec<A>* mu, Vec<A>* nu, bool adding) {
  int64_t rank = level.rank, size = entries(level), all = before < reach ? before : reach;
  each_tile(level, [&](auto rows, int64_t r0, int64_t width, int64_t offset) __attribute__((always_inline)) {
      constexpr int R = decltype(rows)::value;
      const Vec<A>* tile = blocks + offset;
      Vec<A> sum[R][X] = {};
      const Vec<A>* source[X];
      for (int x = 0; x < X; ++x) source[x] = mu + (x - 1) * rank;
      auto next = [&]() __attribute__((always_inline)) { for (int x = 0; x < X; ++x) source[x] -= rank; };
      for (int64_t k = 1; k <= all; ++k, next()) apply_block<A, R, X, 0>(sum, tile + (k - 1) * size, width, source);
      repeat<X - 1>([&](auto lane) __attribute__((always_inline)) {  // only the lanes from lane + 1 on reach this far
        int64_t k = before + 1 + lane.value;
        if (k > reach) return;
        apply_block<A, R, X, lane.value + 1>(sum, tile + (k - 1) * size, width, source);
        next();
      });
      for (int x = 0; x < X; ++x)
        for (int r = 0; r < R; ++r) {
          Vec<A>& out = nu[x * rank + r0 + r];
          out = adding ? out + sum[r][x] : sum[r][x];
        }
    });
}

// The distances [first, last] at the filter's end that this level handles for the node at `index`.
struct FarRange {
  int64_t first, last;
  FarRange(const Level& level, int64_t index) {
    int64_t end = level.far_first + level.far_pairs - 1;
    first = level.far_first + index % level.fan;
    last = end < index ? end : index;
  }
};

// nu += the contributions of nodes in other parents that this level handles at the filter's end, if that lies inside
// the sequence.
template <class A>
void apply_far_pairs(const Level& level, const Vec<A>* blocks, int64_t index, const Vec<A>* mu, Vec<A>* nu) {
  if (level.far_pairs == 0) return;
  FarRange range(level, index);
  int64_t rank = level.rank, size = entries(level);
  const Vec<A>* far = blocks + (level.near_pairs - level.far_first) * size;
  each_tile(level, [&](auto rows, int64_t r0, int64_t width, int64_t offset) __attribute__((always_inline)) {
      constexpr int R = decltype(rows)::value;
      Vec<A> sum[R][1] = {};
      for (int64_t k = range.first; k <= range.last; ++k) {
        const Vec<A>* const source[1] = {mu - k * rank};
        apply_block<A, R, 1, 0>(sum, far + k * size + offset, width, source);
      }
      for (int r = 0; r < R; ++r) nu[r0 + r] += sum[r][0];
    });
}

// Moments of the latest nodes of one level, for a few channel blocks: those that later nodes still read.
template <class A>
struct Moments {
  Vec<A>* data;
  int64_t rank, kept, slots;  // nodes kept when a slot is needed; slots of one channel block
  int64_t first = 0;          // the node in slot 0

  Vec<A>* node(int64_t block, int64_t index) const { return data + (block * slots + index - first) * rank; }

  // Makes room for nodes [index, index + count): where there is none, moves the kept nodes to the front.
  void reserve(int64_t blocks, int64_t index, int64_t count) {
    if (index + count - first <= slots) return;
    int64_t from = index - kept > first ? index - kept : first;
    for (int64_t b = 0; b < blocks && from < index; ++b)
      memmove((void*)(data + b * slots * rank), node(b, from), (index - from) * rank * sizeof(Vec<A>));
    first = from;
  }
};

}  // namespace hyenarec::HYENAREC_ISA
