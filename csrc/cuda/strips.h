// The rows of a call, divided into strips; a thread goes through a strip from its first row to its last.
#pragma once
#include "rows.h"

namespace hyenarec::cuda {

// Finds the sequence that a row lies in, on the device. Whatever starts and ends say, it only names rows that exist. It
// remembers the last sequence, since the next row mostly lies in the same one.
class Located {
 public:
  HYENAREC_DEVICE Located(const Sequences& sequences, int count, int batch) : in_(sequences), count_(count) {
    if (!in_.packed) take(batch);
  }

  // A row's position in its sequence; -1 where it lies in none.
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
  // Takes the first sequence that ends after the row. Where sequences are in order, the row lies in this one or in
  // none.
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
