// What a thread block of the Toeplitz products (toeplitz_conv.h) works on: 16 columns of 64 rows, in shared memory.
//
// A column is a block of 64 rows of a sequence: an item of rows.h. Sixteen neighbouring columns make a *round*: whole
// short sequences, or a piece of a long one. A piece also needs rows from before its first column (of the gradient,
// from after its last one), the *halo*: as many columns as the filter reaches. A tile of channels in shared memory is
//
//     pool[channel][slot][64 rows, and 16 bytes that nobody reads]
//
// with a slot for every column of the halo and of the round, and 16 more bytes per channel. There the rows of a channel
// are adjacent; in global memory the channels of a row are. So each thread of half a warp reads four rows of 16 bytes,
// transposes them in registers, and writes four rows of every channel at once; together they write 128 bytes of a slot.
// The 16 bytes between slots put the 8 columns that one ldmatrix reads into different banks, and the 16 bytes between
// channels do the same for neighbouring channels.
#pragma once
#include "rows.h"
#include "tensor_core.h"

namespace hyenarec::cuda {

constexpr int kColumnRows = 64, kRoundColumns = 16;
constexpr int kHalfWarp = 16;  // threads that move one column of 16 bytes of channels, four rows each

struct alignas(16) Vector {
  uint32_t word[4];
};

// Where a round's columns lie; for each, how many columns before and after it belong to its sequence and are in the
// pool; and the largest of these numbers.
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
  if constexpr (std::is_same_v<T, Bfloat16>)  // adds -0: there is no bare product before compute capability 9.0
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(b), "r"(0x80008000u));
  else
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
  return result;
#else
  if constexpr (sizeof(T) == 2)
    return packed<T>(unpacked<T>(a, 0) * unpacked<T>(b, 0), unpacked<T>(a, 1) * unpacked<T>(b, 1));
#endif
}

template <class T>
HYENAREC_DEVICE void multiply(Vector& v, const Vector& by) {
  each<4>([&](auto w) { v.word[w.value] = product<T>(v.word[w.value], by.word[w.value]); });
}

// The address of a channel's value in a row of a tensor.
template <class T>
HYENAREC_DEVICE T* element(const Rows& rows, int64_t batch, int64_t row, int channel) {
  return static_cast<T*>(rows.data) + batch * rows.batch_stride + row * rows.row_stride + channel;
}
// The 16 bytes from there on, which are aligned.
template <class T>
HYENAREC_DEVICE Vector& vector(const Rows& rows, int64_t batch, int64_t row, int channel) {
  return *reinterpret_cast<Vector*>(element<T>(rows, batch, row, channel));
}

HYENAREC_DEVICE uint32_t low_halves(uint32_t a, uint32_t b) { return (a & 0xffff) | b << 16; }
HYENAREC_DEVICE uint32_t high_halves(uint32_t a, uint32_t b) { return a >> 16 | (b & 0xffff0000u); }

// The channels of one tile.
template <class T>
struct Pool {
  static constexpr int kVector = 16 / int(sizeof(T));                       // channels in 16 bytes
  static constexpr int kSlotBytes = kColumnRows * int(sizeof(T)) + 16;
  char* data;
  int slots, shift;  // slots of a channel; how many of them come before the round's first column

  static HYENAREC_DEVICE int channel_bytes(int slots) { return slots * kSlotBytes + 16; }
  HYENAREC_DEVICE char* slot(int channel, int column) const {
    return data + channel * channel_bytes(slots) + (shift + column) * kSlotBytes;
  }
  HYENAREC_DEVICE T* element(int channel, int column, int row) const {
    return reinterpret_cast<T*>(slot(channel, column)) + row;
  }

  // Moves four rows of 16 bytes, from `row` of the column on, to or from the pool, where they are four rows of each
  // channel.
  HYENAREC_DEVICE void put(int channel, int column, int row, const Vector (&rows)[4]) const {
    char* at = slot(channel, column) + row * int(sizeof(T));
    int step = channel_bytes(slots);
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
    int step = channel_bytes(slots);
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
  int first, channels, vectors;  // the tile's first channel, channels of the call, vectors of 16 bytes in the tile
  bool wide;                     // tensors are aligned to 16 bytes, rows and batch strides too

  // Whether the 16 bytes from a channel of the tile on can be moved at once.
  template <class T>
  HYENAREC_DEVICE bool at_once(int channel) const {
    return wide && first + channel + Pool<T>::kVector <= channels;
  }

  // Calls f(vector, column, row) for each four rows, of the columns from `from` to before `to`, that this thread
  // handles.
  template <class F>
  HYENAREC_DEVICE void quads(int thread, int threads, int from, int to, const F& f) const {
    for (int unit = thread / kHalfWarp; unit < (to - from) * vectors; unit += threads / kHalfWarp)
      f(unit % vectors, from + unit / vectors, thread % kHalfWarp * 4);
  }
};

// Writes the products of `from` to every slot of the pool, with zeros outside the sequence.
template <class T>
HYENAREC_DEVICE void fill(int thread, int threads, const Tile& tile, const Columns& columns, const Pool<T>& pool,
                          const Product& from) {
  tile.quads(thread, threads, -pool.shift, pool.slots - pool.shift, [&](int number, int column, int row) {
    int in_round = column < 0 ? 0 : column < kRoundColumns ? column : kRoundColumns - 1;
    const Span& span = columns.span[in_round];
    int position = span.first + (column - in_round) * kColumnRows + row;
    int channel = number * Pool<T>::kVector;
    int rows_left = position < 0 ? 0 : span.length - position;  // the halo's columns may lie before the sequence
    auto real = [&](int j) { return j < rows_left; };
    int64_t first = int64_t(span.start) + position;
    if (!tile.at_once<T>(channel)) {
      HYENAREC_ONE_BY_ONE for (int i = 0; i < 4 * Pool<T>::kVector; ++i) {
        int j = i / Pool<T>::kVector, c = channel + i % Pool<T>::kVector, at = tile.first + c;
        T value = T::of(0.f);
        if (real(j) && at < tile.channels) {
          value = *element<T>(from.value, span.batch, first + j, at);
          if (from.factor.data)
            value = T::of(float(value) * float(*element<T>(from.factor, span.batch, first + j, at)));
        }
        *pool.element(c, column, row + j) = value;
      }
      return;
    }
    channel += tile.first;
    Vector rows[4]{};
    auto read = [&](const Rows& tensor, Vector(&to)[4]) {
      const T* at = element<T>(tensor, span.batch, first, channel);
      each<4>([&](auto j) {
        if (real(j.value)) to[j.value] = *reinterpret_cast<const Vector*>(at);
        at += tensor.row_stride;
      });
    };
    read(from.value, rows);
    if (from.factor.data) {
      Vector factors[4]{};
      read(from.factor, factors);
      each<4>([&](auto j) { multiply<T>(rows[j.value], factors[j.value]); });
    }
    pool.put(channel - tile.first, column, row, rows);
  });
}

// Writes the round's columns in the pool, times a factor, to each output. See `write` in rows.h for the rows that are
// zero.
template <class T>
HYENAREC_DEVICE void drain(int thread, int threads, const Tile& tile, const Columns& columns, const Pool<T>& pool,
                           const Product (&outputs)[2]) {
  tile.quads(thread, threads, 0, kRoundColumns, [&](int number, int column, int row) {
    const Span& span = columns.span[column];
    int position = span.first + row, channel = number * Pool<T>::kVector;
    auto real = [&](int j) { return position + j < span.length; };
    // Row j in the tensors; rows after the sequence continue at the beginning of the batch row.
    auto row_of = [&](int j) {
      int to = span.start + position + j;
      return int64_t(!real(j) && to >= span.rows ? to - span.rows : to);
    };
    if (!tile.at_once<T>(channel)) {
      HYENAREC_ONE_BY_ONE for (int i = 0; i < 8 * Pool<T>::kVector; ++i) {
        const Product& output = outputs[i % 2];
        int j = i / 2 / Pool<T>::kVector, c = channel + i / 2 % Pool<T>::kVector, at = tile.first + c;
        if (!output.value.data || at >= tile.channels || position + j >= span.rows) continue;
        T value = real(j) ? *pool.element(c, column, row + j) : T::of(0.f);
        if (real(j) && output.factor.data)
          value = T::of(float(value) * float(*element<T>(output.factor, span.batch, row_of(j), at)));
        *element<T>(output.value, span.batch, row_of(j), at) = value;
      }
      return;
    }
    Vector rows[4];
    pool.get(channel, column, row, rows);
    channel += tile.first;
    HYENAREC_ONE_BY_ONE for (int o = 0; o < 2; ++o) {
      const Product& output = outputs[o];
      if (!output.value.data) continue;
      Vector values[4], factors[4];
      each<4>([&](auto j) { values[j.value] = real(j.value) ? rows[j.value] : Vector{}; });
      if (real(3)) {  // all four, one after the other in memory
        if (output.factor.data) {
          const T* from = element<T>(output.factor, span.batch, row_of(0), channel);
          each<4>([&](auto j) {
            factors[j.value] = *reinterpret_cast<const Vector*>(from);
            from += output.factor.row_stride;
          });
          each<4>([&](auto j) { multiply<T>(values[j.value], factors[j.value]); });
        }
        T* to = element<T>(output.value, span.batch, row_of(0), channel);
        each<4>([&](auto j) {
          *reinterpret_cast<Vector*>(to) = values[j.value];
          to += output.value.row_stride;
        });
        continue;
      }
      each<4>([&](auto j) {
        if (output.factor.data && real(j.value))
          multiply<T>(values[j.value], vector<T>(output.factor, span.batch, row_of(j.value), channel));
        if (position + j.value < span.rows)
          vector<T>(output.value, span.batch, row_of(j.value), channel) = values[j.value];
      });
    }
  });
}

}  // namespace hyenarec::cuda
