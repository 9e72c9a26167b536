// What a block of the Toeplitz products (toeplitz_conv.h) works on: 16 columns of 64 rows, in shared memory, time by time.
//
// A column is a block of 64 rows of a sequence: an item of rows.h. Sixteen neighbours make a *round*: whole short
// sequences, or a piece of a long one, which then needs rows from before its first column (of the gradient, from after
// its last one): the *halo*, of so many columns as the filter reaches. In shared memory a tile of channels lies as
//
//     pool[channel][slot][64 rows, and 16 bytes that nobody reads]
//
// with a slot for every column of the halo and of the round. Rows of one channel are neighbours there, in memory its
// channels are: half a warp reads four rows of 16 bytes each, exchanges rows and channels in registers, and writes four
// rows of every channel at once, 128 bytes of a slot together. The 16 bytes between slots let the 8 columns that one
// ldmatrix reads lie in different banks.
#pragma once
#include "rows.h"
#include "tensor_core.h"

namespace hyenarec::cuda {

constexpr int kColumnRows = 64, kRoundColumns = 16;
constexpr int kHalfWarp = 16;  // threads that move one column of 16 bytes of channels, four rows each

struct alignas(16) Vector {
  uint32_t word[4];
};

// Where a round's columns lie, how many columns before and after each one belong to its sequence and are there, and the
// most of these.
struct alignas(16) Columns {
  Span span[kRoundColumns];
  int before[kRoundColumns], after[kRoundColumns];
  int most_before, most_after;

  HYENAREC_DEVICE void place(int column, const Sequences& sequences, const Items& items, int first, int count, int halo) {
    Span here{};
    if (column < count && first + column < items.size()) here = sequences.span(items.at(first + column), kColumnRows);
    int last = int(ceil_div(here.length, kColumnRows)) - 1 - here.number;
    span[column] = here;
    before[column] = least(here.number, column + halo);
    after[column] = last < 0 ? 0 : least(last, kRoundColumns - 1 - column + halo);
  }
  HYENAREC_DEVICE void find_most() {
    most_before = most_after = 0;
    for (int i = 0; i < kRoundColumns; ++i) {
      if (before[i] > most_before) most_before = before[i];
      if (after[i] > most_after) most_after = after[i];
    }
  }
  static HYENAREC_DEVICE int least(int a, int b) { return a < b ? a : b; }
};

// The products of two vectors, element by element, rounded once.
template <class T>
HYENAREC_DEVICE uint32_t product(uint32_t a, uint32_t b) {
  if constexpr (sizeof(T) == 4) return float_to_bits(bits_to_float(a) * bits_to_float(b));
#ifdef __CUDA_ARCH__
  uint32_t result;
  if constexpr (std::is_same_v<T, Bfloat16>)  // -0 added: there is no product alone before compute capability 9.0
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(b), "r"(0x80008000u));
  else
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
  return result;
#else
  if constexpr (sizeof(T) == 2)
    return packed<T>(unpacked<T>(a, 0) * unpacked<T>(b, 0), unpacked<T>(a, 1) * unpacked<T>(b, 1));
#endif
}

// 16 bytes of channels of one row; `wide`: at once, else one at a time, those from `channels` on as zero.
template <class T>
HYENAREC_DEVICE Vector read_vector(const Rows& from, int64_t batch, int64_t row, int channel, int channels, bool wide) {
  const T* at = static_cast<const T*>(from.data) + batch * from.batch_stride + row * from.row_stride + channel;
  if (wide) return *reinterpret_cast<const Vector*>(at);
  Vector result;
  each<4>([&](auto w) {
    if constexpr (sizeof(T) == 4) {
      result.word[w.value] = channel + w.value < channels ? float_to_bits(float(at[w.value])) : 0;
    } else {
      constexpr int v = 2 * decltype(w)::value;
      const auto* bits = reinterpret_cast<const uint16_t*>(at);
      uint32_t low = channel + v < channels ? bits[v] : 0, high = channel + v + 1 < channels ? bits[v + 1] : 0;
      result.word[w.value] = low | high << 16;
    }
  });
  return result;
}
template <class T>
HYENAREC_DEVICE void write_vector(const Rows& to, int64_t batch, int64_t row, int channel, int channels, bool wide,
                                  const Vector& v) {
  T* at = static_cast<T*>(to.data) + batch * to.batch_stride + row * to.row_stride + channel;
  if (wide) {
    *reinterpret_cast<Vector*>(at) = v;
    return;
  }
  each<4>([&](auto w) {
    if constexpr (sizeof(T) == 4) {
      if (channel + w.value < channels) at[w.value] = T::of(bits_to_float(v.word[w.value]));
    } else {
      constexpr int c = 2 * decltype(w)::value;
      auto* bits = reinterpret_cast<uint16_t*>(at);
      if (channel + c < channels) bits[c] = uint16_t(v.word[w.value]);
      if (channel + c + 1 < channels) bits[c + 1] = uint16_t(v.word[w.value] >> 16);
    }
  });
}

HYENAREC_DEVICE uint32_t low_halves(uint32_t a, uint32_t b) { return (a & 0xffff) | b << 16; }
HYENAREC_DEVICE uint32_t high_halves(uint32_t a, uint32_t b) { return a >> 16 | (b & 0xffff0000u); }

// The channels of one tile.
template <class T>
struct Pool {
  static constexpr int kVector = 16 / int(sizeof(T));                       // channels of 16 bytes
  static constexpr int kSlotBytes = kColumnRows * int(sizeof(T)) + 16;
  char* data;
  int slots, shift;  // of a channel; how many of them come before the round's first column

  HYENAREC_DEVICE char* slot(int channel, int column) const {
    return data + (int64_t(channel) * slots + shift + column) * kSlotBytes;
  }

  // Four rows of 16 bytes, from `row` of the column on, to or from the pool, where they are four rows of a channel.
  HYENAREC_DEVICE void put(int channel, int column, int row, const Vector (&rows)[4]) const {
    char* at = slot(channel, column) + row * int(sizeof(T));
    int64_t step = int64_t(slots) * kSlotBytes;
    each<4>([&](auto w) {
      constexpr int j = decltype(w)::value;
      if constexpr (sizeof(T) == 4) {
        *reinterpret_cast<Vector*>(at + j * step) = {rows[0].word[j], rows[1].word[j], rows[2].word[j], rows[3].word[j]};
      } else {
        *reinterpret_cast<Pair*>(at + 2 * j * step) = {low_halves(rows[0].word[j], rows[1].word[j]),
                                                       low_halves(rows[2].word[j], rows[3].word[j])};
        *reinterpret_cast<Pair*>(at + (2 * j + 1) * step) = {high_halves(rows[0].word[j], rows[1].word[j]),
                                                             high_halves(rows[2].word[j], rows[3].word[j])};
      }
    });
  }
  HYENAREC_DEVICE void get(int channel, int column, int row, Vector (&rows)[4]) const {
    const char* at = slot(channel, column) + row * int(sizeof(T));
    int64_t step = int64_t(slots) * kSlotBytes;
    each<4>([&](auto w) {
      constexpr int j = decltype(w)::value;
      if constexpr (sizeof(T) == 4) {
        Vector v = *reinterpret_cast<const Vector*>(at + j * step);
        each<4>([&](auto r) { rows[r.value].word[j] = v.word[r.value]; });
      } else {
        Pair a = *reinterpret_cast<const Pair*>(at + 2 * j * step);
        Pair b = *reinterpret_cast<const Pair*>(at + (2 * j + 1) * step);
        rows[0].word[j] = low_halves(a.first, b.first), rows[1].word[j] = high_halves(a.first, b.first);
        rows[2].word[j] = low_halves(a.second, b.second), rows[3].word[j] = high_halves(a.second, b.second);
      }
    });
  }

 private:
  struct alignas(8) Pair {
    uint32_t first, second;
  };
};

// A tile's part of the tensors of a call.
struct Tile {
  int first, channels, vectors;  // the tile's first channel, all channels, and how many times 16 bytes the tile has
  bool wide;                     // tensors are aligned to 16 bytes, rows and batch strides too

  // f(vector, column, row) for the four rows of every column from `from` on that fall to a thread.
  template <class F>
  HYENAREC_DEVICE void quads(int thread, int threads, int from, int to, const F& f) const {
    for (int unit = thread / kHalfWarp; unit < (to - from) * vectors; unit += threads / kHalfWarp)
      f(unit % vectors, from + unit / vectors, thread % kHalfWarp * 4);
  }
};

// The products of `from` into every slot of the pool: zero outside the sequence.
template <class T>
HYENAREC_DEVICE void fill(int thread, int threads, const Tile& tile, const Columns& columns, const Pool<T>& pool,
                          const Product& from) {
  tile.quads(thread, threads, -pool.shift, pool.slots - pool.shift, [&](int vector, int column, int row) {
    int in_round = column < 0 ? 0 : column < kRoundColumns ? column : kRoundColumns - 1;
    const Span& span = columns.span[in_round];
    int position = span.first + (column - in_round) * kColumnRows + row;
    int channel = tile.first + vector * Pool<T>::kVector;
    bool wide = tile.wide && channel + Pool<T>::kVector <= tile.channels;
    Vector rows[4]{};
    if (channel < tile.channels) {
      auto real = [&](int j) { return position + j >= 0 && position + j < span.length; };
      each<4>([&](auto j) {
        if (real(j.value))
          rows[j.value] = read_vector<T>(from.value, span.batch, int64_t(span.start) + position + j.value, channel,
                                         tile.channels, wide);
      });
      if (from.factor.data)
        each<4>([&](auto j) {
          if (!real(j.value)) return;
          Vector factor = read_vector<T>(from.factor, span.batch, int64_t(span.start) + position + j.value, channel,
                                         tile.channels, wide);
          each<4>([&](auto w) {
            rows[j.value].word[w.value] = product<T>(rows[j.value].word[w.value], factor.word[w.value]);
          });
        });
    }
    pool.put(vector * Pool<T>::kVector, column, row, rows);
  });
}

// The round's columns of the pool, times a factor, to each output: see `write` in rows.h for the rows that are zero.
template <class T>
HYENAREC_DEVICE void drain(int thread, int threads, const Tile& tile, const Columns& columns, const Pool<T>& pool,
                           const Product (&outputs)[2]) {
  tile.quads(thread, threads, 0, kRoundColumns, [&](int vector, int column, int row) {
    const Span& span = columns.span[column];
    int position = span.first + row, channel = tile.first + vector * Pool<T>::kVector;
    bool wide = tile.wide && channel + Pool<T>::kVector <= tile.channels;
    if (channel >= tile.channels || position >= span.rows) return;
    Vector rows[4];
    pool.get(vector * Pool<T>::kVector, column, row, rows);
    each<2>([&](auto o) {
      const Product& output = outputs[o.value];
      if (!output.value.data) return;
      each<4>([&](auto j) {
        int p = position + j.value;
        int64_t to = int64_t(span.start) + p;
        Vector v = rows[j.value];
        if (p >= span.length) {
          v = {};
          if (to >= span.rows) to -= span.rows;
        } else if (output.factor.data) {
          Vector factor = read_vector<T>(output.factor, span.batch, to, channel, tile.channels, wide);
          each<4>([&](auto w) { v.word[w.value] = product<T>(v.word[w.value], factor.word[w.value]); });
        }
        if (p < span.rows) write_vector<T>(output.value, span.batch, to, channel, tile.channels, wide, v);
      });
    });
  });
}

}  // namespace hyenarec::cuda
