// The rows of a call in strips, which a thread walks through from the first row to the last.
#pragma once
#include "rows.h"

namespace hyenarec::cuda {

// The sequence that a row lies in, found on the device: whatever starts and ends say, only rows that there are are
// named. Remembers the last one, since the next row mostly lies in it too.
class Located {
 public:
  HYENAREC_DEVICE Located(const Sequences& sequences, int count, int batch) : in_(sequences), count_(count) {
    if (!in_.packed) take(batch);
  }

  // Of a row in its sequence; -1 where it lies in none.
  HYENAREC_DEVICE int position(int row) {
    if (in_.packed && !holds(row)) search(row);
    return holds(row) ? row - start_ : -1;
  }

 private:
  HYENAREC_DEVICE bool holds(int row) const { return start_ <= row && row < end_; }
  HYENAREC_DEVICE void take(int sequence) {
    Span span = in_.span({sequence, 0}, 0);
    start_ = span.start, end_ = span.start + span.length;
  }
  // The first sequence that ends behind the row: in order, one in which it lies if there is any.
  HYENAREC_DEVICE void search(int row) {
    int low = 0, high = count_;
    while (low < high) {
      int middle = low + (high - low) / 2;
      if (in_.index(in_.ends, middle) > row)
        high = middle;
      else
        low = middle + 1;
    }
    if (low < count_) take(low);
  }

  const Sequences& in_;
  int count_, start_ = 0, end_ = 0;
};

// Strip i is `kRows` rows of a batch row, or what is left of it.
template <int kRows>
struct Strips {
  Sequences sequences;
  int num_sequences;

  HYENAREC_DEVICE int64_t per_row() const { return ceil_div(sequences.rows, kRows); }
  HYENAREC_DEVICE int64_t count() const { return sequences.packed ? per_row() : num_sequences * per_row(); }
  HYENAREC_DEVICE int batch(int64_t i) const { return int(i / per_row()); }
  HYENAREC_DEVICE int first(int64_t i) const { return int(i % per_row()) * kRows; }
  HYENAREC_DEVICE int end(int64_t i) const {
    int after = first(i) + kRows;
    return after < sequences.rows ? after : sequences.rows;
  }
};

}  // namespace hyenarec::cuda
