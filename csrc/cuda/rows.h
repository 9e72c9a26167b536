// Where a call's rows lie: sequences, the blocks of M rows that they are cut into, and the reading and writing of one
// butterfly's rows in any of the three dtypes.
#pragma once
#include "../common/types.h"
#include "device.h"

namespace hyenarec::cuda {

// Block `number` of a sequence that is cut into blocks of M rows; block 0 begins at the sequence's first row.
struct Item {
  int sequence, number;
};

// One block of a sequence. While a thread block works on it, it lies in shared memory and is read where it is needed,
// so that it takes no registers from the butterflies.
struct Span {
  int64_t batch;
  int start, length;  // of the sequence in its batch row
  int rows;           // rows that its blocks write: padded, all of the batch row; packed, the length
  int number, first;  // of the block, and its first position in the sequence
};

struct Sequences {
  bool packed, wide_index;
  int rows;  // L (padded) or T (packed)
  const void *starts, *ends;

  HYENAREC_DEVICE int64_t index(const void* values, int64_t s) const {
    return wide_index ? static_cast<const int64_t*>(values)[s] : static_cast<const int32_t*>(values)[s];
  }
  // Whether packed sequence s, of `count`, begins where the one before it ends, and the last one ends with the rows.
  HYENAREC_DEVICE bool follows(int s, int count) const {
    int64_t start = starts ? index(starts, s) : 0, end = ends ? index(ends, s) : rows;
    return start == (s > 0 && ends ? index(ends, s - 1) : 0) && start <= end && (s + 1 < count || end == rows);
  }
  HYENAREC_DEVICE int clamped(int64_t row) const { return row < 0 ? 0 : row > rows ? rows : int(row); }
  HYENAREC_DEVICE Span span(Item item, int points) const {
    int start = starts ? clamped(index(starts, item.sequence)) : 0;
    int end = ends ? clamped(index(ends, item.sequence)) : rows;
    int length = end > start ? end - start : 0;
    return {packed ? 0 : item.sequence, start, length, packed ? length : rows, item.number, item.number * points};
  }
};

// The items of one launch. Padded input: every batch row has `per_sequence` of them. Packed: a list made on the device.
struct Items {
  const Item* list;
  const int* count;  // of the list, at most `most`
  int per_sequence, most;

  HYENAREC_DEVICE int size() const { return list ? *count : most; }
  HYENAREC_DEVICE Item at(int i) const { return list ? list[i] : Item{i / per_sequence, i % per_sequence}; }
};

// Calls f(Float32{}), f(Bfloat16{}) or f(Float16{}). The switch stands around a butterfly's reads, so that these stay
// independent of each other.
template <class F>
HYENAREC_DEVICE void with_dtype(Dtype dtype, const F& f) {
  switch (dtype) {
    case Dtype::bf16: return f(Bfloat16{});
    case Dtype::f16: return f(Float16{});
    default: return f(Float32{});
  }
}

// v[j] = the value at row `position + j * stride` of the sequence, zero outside it (nothing is read there).
template <int R>
HYENAREC_DEVICE void read(float (&v)[R], Dtype dtype, const Rows& from, const Span& span, int channel, int position,
                          int stride) {
  with_dtype(dtype, [&](auto type) {
    using T = decltype(type);
    int64_t row = int64_t(span.start) + position;
    const T* at = static_cast<const T*>(from.data) + span.batch * from.batch_stride + row * from.row_stride + channel;
    int64_t step = stride * from.row_stride;
    // Rows before the sequence are requested in whole blocks only: if the first is before it, all are.
    int remaining = position < 0 ? 0 : span.length - position;
    each<R>([&](auto j) { v[j.value] = j.value * stride < remaining ? float(at[j.value * step]) : 0.f; });
  });
}

// The product of a tensor and another one that may be absent.
struct Product {
  Rows value, factor;
};

// Calls f(first row, count) for R rows in parts of kMost, which limits the registers that reading takes.
template <int R, int kMost, class F>
HYENAREC_DEVICE void in_parts(const F& f) {
  constexpr int kPart = R < kMost ? R : kMost;
  each<R / kPart>([&](auto part) { f(Index<decltype(part)::value * kPart>{}, Index<kPart>{}); });
}

// v[j] *= the value at row `position + j * stride`.
template <int R>
HYENAREC_DEVICE void multiply(float (&v)[R], Dtype dtype, const Rows& by, const Span& span, int channel, int position,
                              int stride) {
  in_parts<R, 8>([&](auto first, auto count) {
    float factor[decltype(count)::value];
    read(factor, dtype, by, span, channel, position + first.value * stride, stride);
    each<decltype(count)::value>([&](auto j) { v[first.value + j.value] *= factor[j.value]; });
  });
}

template <int R>
HYENAREC_DEVICE void read(float (&v)[R], Dtype dtype, const Product& from, const Span& span, int channel, int position,
                          int stride) {
  read(v, dtype, from.value, span, channel, position, stride);
  if (from.factor.data) multiply(v, dtype, from.factor, span, channel, position, stride);
}

// Writes v times `to.factor` to the rows of `to.value`, and zeros to the rows of the batch row outside the sequence.
// Rows after the sequence continue at the beginning of the batch row, so that the sequence's blocks cover the whole
// batch row.
template <int R>
HYENAREC_DEVICE void write(const float (&v)[R], Dtype dtype, const Product& to, const Span& span, int channel,
                           int position, int stride) {
  in_parts<R, 8>([&](auto first, auto count) {
    constexpr int kCount = decltype(count)::value;
    float values[kCount];
    each<kCount>([&](auto j) { values[j.value] = v[first.value + j.value]; });
    int from = position + first.value * stride;
    if (to.factor.data) multiply(values, dtype, to.factor, span, channel, from, stride);
    with_dtype(dtype, [&](auto type) {
      using T = decltype(type);
      T* base = static_cast<T*>(to.value.data) + span.batch * to.value.batch_stride + channel;
      each<kCount>([&](auto j) {
        int p = from + j.value * stride, row = span.start + p;
        if (p >= span.length && row >= span.rows) row -= span.rows;
        if (p < span.rows) base[row * to.value.row_stride] = T::of(p < span.length ? values[j.value] : 0.f);
      });
    });
  });
}

}  // namespace hyenarec::cuda
