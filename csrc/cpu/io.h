// Loads rows of a tensor as contiguous vectors of one channel block, in the arithmetic type, and stores them.
#pragma once
#include "micro.h"

namespace hyenarec::HYENAREC_ISA {

// A channel block of one sequence of a tensor; null data stands for an absent operand.
struct Block {
  char* data;
  int64_t stride;  // bytes between rows
};

HYENAREC_INLINE Block at(Block block, int64_t i) { return {block.data + i * block.stride, block.stride}; }

// Vector c of each row of a block whose elements are of the arithmetic type.
template <class A>
HYENAREC_INLINE Block channel_block(Block block, int64_t c) {
  return {block.data + c * int64_t(sizeof(Vec<A>)), block.stride};
}

// The rows of one sequence of a tensor from channel c0 on, forwards or from the last row down.
inline Block sequence_block(Rows rows, const Sequence& sequence, int64_t c0, int64_t element, bool reversed = false) {
  if (!rows.data) return {nullptr, 0};
  int64_t first = sequence.start + (reversed ? sequence.length - 1 : 0), stride = rows.row_stride * element;
  char* data = static_cast<char*>(rows.data) + (sequence.batch * rows.batch_stride + c0) * element + first * stride;
  return {data, reversed ? -stride : stride};
}

// Neighbouring channel blocks, worked on together so that whole cache lines are read in order.
struct Tile {
  int64_t blocks, valid;  // valid: channels of the last block
};
constexpr int64_t kTileBlocks = 4;

// Prefetches the rows of up to three tensors that the next segment reads. Every register tile of the direct part asks
// for a few, so that they arrive meanwhile (two cores, medians: forward 5 to 7% less at 128 x 50 to 32 x 1024, with
// gates 6 to 13%, gradients 5 to 8% at 128 x 200). It goes row by row: asking for one line of every row at a time made
// gates 10% slower than no prefetching. It is inlined by force, because gcc takes a function that only prefetches for
// one without effect and drops its calls.
struct Ahead {
  static constexpr int kTensors = 3, kLine = 64;
  Block blocks[kTensors] = {};
  int64_t rows = 0, lines = 0;  // rows left, lines of a row

  HYENAREC_INLINE void ask(int64_t count) {
    count = count < rows ? count : rows;
    rows -= count;
    for (Block& block : blocks)
      for (int64_t i = 0; block.data && i < count; ++i, block = at(block, 1))
        for (int64_t line = 0; line < lines; ++line) __builtin_prefetch(block.data + line * kLine, 0, 2);
  }
};

// Outputs larger than the cores' own caches are stored past the caches, which saves reading each line before it is
// written. (32 x 1024 after other work: forward 1.7 ms instead of 2.1, gradients 5.3 instead of 6.6. Together with the
// matrix product that follows in a model: 5 to 9% less; but 10% more at 1.6 MB, the smallest output measured.)
constexpr int64_t kStreamBytes = 4 << 20;

template <class A>
struct Io {
  // dst[c * stride + i] = a[i] (* b[i]) for rows i < rows and blocks c of the tile
  void (*load)(Vec<A>* dst, int64_t stride, Block a, Block b, int64_t rows, Tile tile);
  // dst[i] = src[c * stride + i] (* b[i])
  void (*store)(Block dst, const Vec<A>* src, int64_t stride, Block b, int64_t rows, Tile tile);
  // the same past the caches, to be followed by end_streaming() before another thread reads
  void (*stream)(Block dst, const Vec<A>* src, int64_t stride, Block b, int64_t rows, Tile tile);
  int64_t element_size;
};

template <class A, class T>
HYENAREC_INLINE const T* row(Block b, int64_t i) {
  return reinterpret_cast<const T*>(b.data + i * b.stride);
}

template <class A, class T>
void load_rows(Vec<A>* dst, int64_t stride, Block a, Block b, int64_t rows, Tile tile) {
  int64_t whole = tile.valid < kWidth<A> ? tile.blocks - 1 : tile.blocks;
  for (int64_t i = 0; i < rows; ++i) {
    const T *p = row<A, T>(a, i), *q = row<A, T>(b, i);
    for (int64_t c = 0; c < whole; ++c) {
      Vec<A> v = load_full<A>(p + c * kWidth<A>);
      dst[c * stride + i] = b.data ? v * load_full<A>(q + c * kWidth<A>) : v;
    }
    if (whole < tile.blocks) {
      Vec<A> v = load_some<A>(p + whole * kWidth<A>, tile.valid);
      dst[whole * stride + i] = b.data ? v * load_some<A>(q + whole * kWidth<A>, tile.valid) : v;
    }
  }
}

// dst[i] = src[i] (* factor[i]) for the first `count` rows of a register tile, in whole vectors of the arithmetic type.
template <class A, int R>
HYENAREC_INLINE void store_tile(Block dst, const Vec<A> (&src)[R], Block factor, int64_t count, bool past_caches) {
  repeat<R>([&](auto i) __attribute__((always_inline)) {
    if (i.value >= count) return;
    Vec<A> v = src[i.value];
    if (factor.data) v *= load_full<A>(row<A, A>(factor, i.value));
    A* p = const_cast<A*>(row<A, A>(dst, i.value));
    past_caches ? stream_full(p, v) : store_full<A>(p, v);
  });
}

template <class A, class T, bool Stream>
HYENAREC_INLINE void store_rows_as(Block dst, const Vec<A>* src, int64_t stride, Block b, int64_t rows, Tile tile) {
  int64_t whole = tile.valid < kWidth<A> ? tile.blocks - 1 : tile.blocks;
  for (int64_t i = 0; i < rows; ++i) {
    T* p = const_cast<T*>(row<A, T>(dst, i));
    const T* q = row<A, T>(b, i);
    for (int64_t c = 0; c < whole; ++c) {
      Vec<A> v = src[c * stride + i];
      if (b.data) v *= load_full<A>(q + c * kWidth<A>);
      if constexpr (Stream) stream_full(p + c * kWidth<A>, v);
      else store_full<A>(p + c * kWidth<A>, v);
    }
    if (whole < tile.blocks) {
      Vec<A> v = src[whole * stride + i];
      if (b.data) v *= load_some<A>(q + whole * kWidth<A>, tile.valid);
      store_some<A>(p + whole * kWidth<A>, v, tile.valid);
    }
  }
}

template <class A, class T>
void store_rows(Block dst, const Vec<A>* src, int64_t stride, Block b, int64_t rows, Tile tile) {
  store_rows_as<A, T, false>(dst, src, stride, b, rows, tile);
}

template <class A, class T>
void stream_rows(Block dst, const Vec<A>* src, int64_t stride, Block b, int64_t rows, Tile tile) {
  bool aligned = (uintptr_t(dst.data) | uintptr_t(dst.stride)) % sizeof(Vec<A>) == 0;
  if constexpr (sizeof(T) == sizeof(A))
    if (aligned) return store_rows_as<A, T, true>(dst, src, stride, b, rows, tile);
  store_rows<A, T>(dst, src, stride, b, rows, tile);
}

template <class A, class T>
constexpr Io<A> kIo = {load_rows<A, T>, store_rows<A, T>, stream_rows<A, T>, sizeof(T)};

// Writes zeros over `rows` rows.
inline void clear_rows(Block b, int64_t rows, int64_t bytes) {
  for (int64_t i = 0; i < rows; ++i) memset(b.data + i * b.stride, 0, bytes);
}

}  // namespace hyenarec::HYENAREC_ISA
