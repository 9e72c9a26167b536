// The tree of chunks over a group of sequences, and the order in which rows are read. A sequence is seen through
// virtual rows [0, n), n a whole number of top chunks: row i itself, or, for the transposed operator, row n - 1 - i.
// Reversal keeps chunk borders in place, so a chunk's moments of the reversed rows are its own with odd signs flipped.
#pragma once
#include "io.h"
#include "scratch.h"
#include "tables.h"

namespace hyenarec::HYENAREC_ISA {

struct Chunk {
  int64_t sequence, index, node;  // index: position among the sequence's lowest chunks; node: in the group
};

struct Group {
  const Sequence* sequences;
  int64_t count;
};

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t top_chunk(const Plan& plan) {
  return plan.num_levels ? plan.levels[plan.num_levels - 1].chunk : plan.chunk;
}

// Node numbers of a group: at a level with chunks of C, sequence s owns [first(s) * top / C, first(s + 1) * top / C).
struct Tree {
  int64_t* first;   // (count + 1,) in top chunks
  Chunk* chunks;    // lowest chunks that hold rows
  int64_t num_chunks;
  int64_t* alive[kMaxLevels];  // nodes that hold rows, ascending
  int64_t num_alive[kMaxLevels];

  void take(Arena& arena, const Plan& plan, int64_t sequences, int64_t top_nodes) {
    first = arena.take<int64_t>(sequences + 1);
    chunks = arena.take<Chunk>(top_nodes * (top_chunk(plan) / plan.chunk));
    for (int l = 0; l < plan.num_levels; ++l)
      alive[l] = arena.take<int64_t>(top_nodes * (top_chunk(plan) / plan.levels[l].chunk));
  }

  int64_t top_nodes = 0;

  void fill(const Plan& plan, Group group, bool reversed) {
    int64_t top = top_chunk(plan);
    first[0] = 0;
    for (int64_t s = 0; s < group.count; ++s) first[s + 1] = first[s] + ceil_div(group.sequences[s].length, top);
    top_nodes = first[group.count];
    auto each_alive = [&](int64_t chunk, auto visit) {
      for (int64_t s = 0; s < group.count; ++s) {
        int64_t nodes = (first[s + 1] - first[s]) * (top / chunk), base = first[s] * (top / chunk);
        int64_t used = ceil_div(group.sequences[s].length, chunk), begin = reversed ? nodes - used : 0;
        for (int64_t i = begin; i < begin + used; ++i) visit(s, i, base + i);
      }
    };
    num_chunks = 0;
    each_alive(plan.chunk, [&](int64_t s, int64_t i, int64_t node) { chunks[num_chunks++] = {s, i, node}; });
    for (int l = 0; l < plan.num_levels; ++l) {
      num_alive[l] = 0;
      each_alive(plan.levels[l].chunk, [&](int64_t, int64_t, int64_t node) { alive[l][num_alive[l]++] = node; });
    }
  }
};

// Reads a * b (b may be absent) of one sequence at virtual rows; rows outside the sequence read as zero.
template <class A>
struct Reader {
  const Io<A>* io;
  Block a, b;
  int64_t begin, end;  // virtual rows that exist
  int64_t valid;       // channels

  void read(Vec<A>* dst, int64_t from, int64_t rows) const {
    int64_t lo = from < begin ? begin : from, hi = from + rows > end ? end : from + rows;
    if (lo > hi) lo = hi = from;
    for (int64_t i = from; i < lo; ++i) dst[i - from] = Vec<A>{};
    if (lo < hi) {
      Block second = b.data ? at(b, lo) : b;
      io->load(dst + (lo - from), at(a, lo), second, hi - lo, valid);
    }
    for (int64_t i = hi; i < from + rows; ++i) dst[i - from] = Vec<A>{};
  }
  static Block at(Block block, int64_t i) { return {block.data + i * block.stride, block.stride}; }
};

// The rows of one sequence and channel block of a tensor, forwards or from virtual row n - 1 down.
inline Block sequence_block(Rows rows, const Sequence& sequence, int64_t c0, int64_t element, int64_t reversed_rows) {
  if (!rows.data) return {nullptr, 0};
  char* first = static_cast<char*>(rows.data) +
                (sequence.batch * rows.batch_stride + sequence.start * rows.row_stride + c0) * element;
  int64_t stride = rows.row_stride * element;
  if (reversed_rows == 0) return {first, stride};
  return {first + (reversed_rows - 1) * stride, -stride};
}

}  // namespace hyenarec::HYENAREC_ISA
