// Sums over many rows. If a million float32 terms of one sign are added one after the other, the error is 3e-6, 50
// times that of torch's pairwise sum. Here only a few thousand rows are added that way. Their sums are added to a total
// that also keeps what its rounding leaves out: the error is 1e-7 for any number of rows.
#pragma once
#include "simd.h"

namespace hyenarec::HYENAREC_ISA {

// total + rest += v. Knuth's two-sum gives exactly what the addition rounds off. Where that is NaN, nothing is kept:
// the total shows the Inf or NaN itself.
template <class A>
HYENAREC_INLINE void add_exactly(Vec<A>& total, Vec<A>& rest, Vec<A> v) {
  Vec<A> sum = total + v, added = sum - total, lost = (total - (sum - added)) + (v - added);
  rest += lost == lost ? lost : Vec<A>{};
  total = sum;
}

// `count` sums. The caller adds to `recent` and calls after() with the number of rows that it added.
template <class A>
struct LongSums {
  Vec<A>* recent = nullptr;  // zeros at first
  Vec<A>* total = nullptr;   // count sums, then what their rounding left out; need not be initialised
  int64_t count = 0, every = 0;
  int64_t rows = 0;
  bool started = false;

  static int64_t vectors(int64_t count) { return 2 * count; }  // of `total`

  void after(int64_t more) {
    rows += more;
    if (rows >= every) collect();
  }
  // Moves `recent` to the total and leaves zeros there.
  void collect() {
    Vec<A>* rest = total + count;
    if (started)
      for (int64_t i = 0; i < count; ++i) add_exactly<A>(total[i], rest[i], recent[i]);
    else
      memcpy((void*)total, recent, count * sizeof(Vec<A>)), memset((void*)rest, 0, count * sizeof(Vec<A>));
    memset((void*)recent, 0, count * sizeof(Vec<A>));
    started = true, rows = 0;
  }
  // Adds another part's total.
  static void add_part(Vec<A>* total, const Vec<A>* part, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      add_exactly<A>(total[i], total[count + i], part[i]);
      total[count + i] += part[count + i];
    }
  }
  // Leaves the finished sums in the first half.
  static void finish(Vec<A>* total, int64_t count) {
    for (int64_t i = 0; i < count; ++i) total[i] += total[count + i];
  }
};

}  // namespace hyenarec::HYENAREC_ISA
