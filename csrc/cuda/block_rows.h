// The block form's rows. Sequences are cut into tiles of 256 rows, and a slot is a place for one tile, or for one node
// of a higher level. With nodes of C rows, padded sequence s has the slots from s * ceil(L / C) on. Packed sequence s,
// which starts at row a, has those from a / C + s up to the next sequence's first: as many as it needs, without a
// running sum, and T / C + S slots in all.
#pragma once
#include "rows.h"
#include "tensor_core.h"

namespace hyenarec::cuda {

constexpr int kTile = 256;

// A node of a sequence: rows [index C, (index + 1) C) of `length` from row `start` of batch row `sequence`.
struct Slot {
  int sequence, start, length, index;
};

// Slots of nodes of `chunk` rows.
struct Nodes {
  const Slot* slots;
  int count, chunk, per_sequence;  // per_sequence: slots of a padded sequence; 0: packed

  HYENAREC_DEVICE int first(const Slot& of) const {  // the slot of a sequence's node 0
    return per_sequence ? of.sequence * per_sequence : of.start / chunk + of.sequence;
  }
  HYENAREC_DEVICE static bool exists(const Slot& slot, int chunk) { return int64_t(slot.index) * chunk < slot.length; }
};

// Packed sequences as they can be read and written safely: within the rows, one after the other, whatever starts and
// ends say.
struct Borders {
  int *starts, *ends;  // (sequences,)
  int* covering;       // whether they cover all rows
};

// Finds the borders, in one thread block.
struct FindBorders {
  static constexpr int kThreads = 256, kSharedBytes = 2 * kThreads * int(sizeof(int)), kBlocks = 1;
  Sequences sequences;
  int count;
  Borders out;

  template <class Block>
  HYENAREC_DEVICE void operator()(Block& block, int64_t, void* memory) const {
    auto *reached = static_cast<int*>(memory), *rows = reached + kThreads;
    int chunk = int(ceil_div(count, kThreads));
    auto largest = [](int a, int b) { return a > b ? a : b; };
    auto start_of = [&](int s) { return sequences.starts ? sequences.clamped(sequences.index(sequences.starts, s)) : 0; };
    auto end_of = [&](int s) {
      return sequences.ends ? sequences.clamped(sequences.index(sequences.ends, s)) : sequences.rows;
    };
    block.phase([&](int thread) {
      int most = 0;
      for (int s = chunk * thread; s < chunk * (thread + 1) && s < count; ++s)
        most = largest(most, largest(start_of(s), end_of(s)));
      reached[thread] = most;
    });
    block.phase([&](int thread) {
      int from = 0, sum = 0;
      for (int t = 0; t < thread; ++t) from = largest(from, reached[t]);
      for (int s = chunk * thread; s < chunk * (thread + 1) && s < count; ++s) {
        int start = largest(from, start_of(s));
        out.starts[s] = start;
        out.ends[s] = from = largest(start, end_of(s));
        sum += from - start;
      }
      rows[thread] = sum;
    });
    block.phase([&](int thread) {
      if (thread > 0) return;
      int64_t sum = 0;
      for (int t = 0; t < kThreads; ++t) sum += rows[t];
      *out.covering = sum == sequences.rows;
    });
  }
};

// The last sequence that does not start after a row: the one that a row of packed input belongs to, or would if it were
// longer. With `shift` and `divisor` the same for slots.
HYENAREC_DEVICE int last_at_most(int count, const int* starts, int shift, int divisor, int value) {
  int low = 0, high = count;  // the condition holds before low, and not from high on
  while (low < high) {
    int middle = (low + high) / 2;
    if (starts[middle] / divisor + shift * middle <= value)
      low = middle + 1;
    else
      high = middle;
  }
  return low - 1;
}

// Zeros the rows of packed outputs that belong to no sequence.
template <class T>
struct ZeroRest {
  static constexpr int kThreads = 256, kSharedBytes = 0, kBlocks = 1, kOutputs = 3, kGrid = 128;
  Borders borders;
  int count, rows, channels;
  Rows outputs[kOutputs];  // or null

  template <class Block>
  HYENAREC_DEVICE void operator()(Block& block, int64_t index, void*) const {
    if (*borders.covering) return;
    block.phase([&](int thread) {
      for (int64_t row = index; row < rows; row += kGrid) {
        int s = last_at_most(count, borders.starts, 0, 1, int(row));
        if (s >= 0 && row < borders.ends[s]) continue;
        for (const Rows& to : outputs)
          for (int64_t c = thread; to.data && c < channels; c += kThreads)
            static_cast<T*>(to.data)[row * to.row_stride + c] = T::of(0.f);
      }
    });
  }
};

// Fills in the slots of one level, one thread per slot.
struct LocateSlots {
  Sequences sequences;
  Borders borders;  // of packed input
  int sequence_count, chunk, per_sequence, count;
  Slot* out;

  HYENAREC_DEVICE void one(int64_t i) const {
    if (i >= count) return;
    if (!sequences.packed) {
      int s = int(i) / per_sequence;
      Span span = sequences.span({s, 0}, 0);
      out[i] = {s, span.start, span.length, int(i) % per_sequence};
      return;
    }
    int s = last_at_most(sequence_count, borders.starts, 1, chunk, int(i));
    if (s < 0) {
      out[i] = {0, 0, 0, 0};
      return;
    }
    int start = borders.starts[s];
    out[i] = {s, start, borders.ends[s] - start, int(i) - (start / chunk + s)};
  }
};

// N words that are moved at once, 16 bytes at most.
template <int N>
struct alignas(4 * N) Aligned {
  uint32_t word[N];
};

}  // namespace hyenarec::cuda
