// One pass of the convolution over a group of sequences and one channel block: moments, blocks between chunks,
// then chunk by chunk reconstruction plus the direct part. Forward runs it on u, backward also on the reversed
// output gradient.
#pragma once
#include <initializer_list>

#include "levels.h"

namespace hyenarec::HYENAREC_ISA {

template <class A>
struct Engine {
  const Plan* plan;
  Tree tree;
  Reader<A>* readers;  // one a sequence
  Vec<A>*mu[kMaxLevels], *nu[kMaxLevels];
  Vec<A>*u, *y, *history, *fold;
  Block* touched;  // (sequences, num_touched): what `finish` of near_field will read or write
  int num_touched;

  int64_t chunk_rows() const { return ceil_div(plan->chunk, kTapRows) * kTapRows; }
  int64_t history_rows() const {
    if (plan->far_taps == 0) return 0;
    int64_t whole = plan->horizon / plan->chunk;
    return plan->horizon - 1 - ((whole > 1 ? whole : 1) - 1) * plan->chunk;
  }

  void take(Arena& arena, const Plan& p, int64_t sequences, int64_t top_nodes) {
    plan = &p;
    tree.take(arena, p, sequences, top_nodes);
    readers = arena.take<Reader<A>>(sequences);
    touched = arena.take<Block>(sequences * kFetches);
    u = arena.take<Vec<A>>(kLanes * chunk_rows());
    y = arena.take<Vec<A>>(kLanes * chunk_rows());
    history = arena.take<Vec<A>>(kLanes * history_rows());
    int64_t widest = 0;
    for (int l = 1; l < p.num_levels; ++l) widest = p.levels[l].half > widest ? p.levels[l].half : widest;
    fold = arena.take<Vec<A>>(2 * kLanes * widest);
    for (int l = 0; l < p.num_levels; ++l) {
      int64_t vectors = top_nodes * (top_chunk(p) / p.levels[l].chunk) * p.levels[l].rank + 4;  // tiles read past
      mu[l] = arena.take<Vec<A>>(vectors);
      nu[l] = arena.take<Vec<A>>(vectors);
    }
  }

  // Reads a * b of the group's sequences, forwards or reversed, from now on.
  void read(const Io<A>& io, Group group, Rows a, Rows b, int64_t c0, int64_t valid, bool reversed) {
    tree.fill(*plan, group, reversed);
    for (int64_t s = 0; s < group.count; ++s) {
      int64_t rows = (tree.first[s + 1] - tree.first[s]) * top_chunk(*plan), length = group.sequences[s].length;
      int64_t flip = reversed ? rows : 0;
      readers[s] = {&io,
                    sequence_block(a, group.sequences[s], c0, io.element_size, flip),
                    sequence_block(b, group.sequences[s], c0, io.element_size, flip),
                    reversed ? rows - length : 0,
                    reversed ? rows : length,
                    valid};
    }
  }

  // Names the tensors that `finish` will read or write, in the same order of rows as `read`.
  void touch(Group group, std::initializer_list<Rows> tensors, int64_t c0, bool reversed) {
    num_touched = 0;
    for (const Rows& rows : tensors) {
      if (!rows.data) continue;
      for (int64_t s = 0; s < group.count; ++s) {
        int64_t flip = reversed ? (tree.first[s + 1] - tree.first[s]) * top_chunk(*plan) : 0;
        touched[s * kFetches + num_touched] =
            sequence_block(rows, group.sequences[s], c0, readers[s].io->element_size, flip);
      }
      ++num_touched;
    }
  }

  template <int X>
  HYENAREC_INLINE void plan_fetches(int64_t n, Lanes<A, X>& lane) const {
    auto fetch = [&](int x, Block block, int64_t from) {
      lane.fetch[x][lane.fetches++] = {block.data + from * block.stride, block.stride};
    };
    for (int x = 0; x < X; ++x) {
      lane.fetches = 0;
      const Chunk& chunk = tree.chunks[n + x];
      const Chunk& next = tree.chunks[n + x + X < tree.num_chunks ? n + x + X : n + x];
      const Reader<A>& reader = readers[next.sequence];
      fetch(x, reader.a, next.index * plan->chunk);
      if (reader.b.data) fetch(x, reader.b, next.index * plan->chunk);
      for (int t = 0; t < num_touched; ++t)
        fetch(x, touched[chunk.sequence * kFetches + t], chunk.index * plan->chunk);
    }
  }

  void read_chunk(const Chunk& chunk, Vec<A>* dst) const {
    readers[chunk.sequence].read(dst, chunk.index * plan->chunk, plan->chunk);
  }

  void lowest_moments() {
    const Level& level = plan->levels[0];
    int64_t nodes = tree.top_nodes * (top_chunk(*plan) / plan->chunk);
    if (nodes != tree.num_chunks) memset((void*)mu[0], 0, nodes * level.rank * sizeof(Vec<A>));
    for (int64_t n = 0; n < tree.num_chunks; n += kLanes)
      with_count<kLanes>(tree.num_chunks - n, [&](auto lanes) __attribute__((always_inline)) {
        constexpr int X = decltype(lanes)::value;
        const Vec<A>*p[X], *q[X];
        Vec<A>* out[X];
        for (int x = 0; x < X; ++x) {
          if (n + X + x < tree.num_chunks) {
            const Chunk& next = tree.chunks[n + X + x];
            const Reader<A>& reader = readers[next.sequence];
            for (int64_t i = 0; i < plan->chunk; ++i) {
              __builtin_prefetch(reader.a.data + (next.index * plan->chunk + i) * reader.a.stride, 0, 2);
              if (reader.b.data) __builtin_prefetch(reader.b.data + (next.index * plan->chunk + i) * reader.b.stride, 0, 2);
            }
          }
          Vec<A>* rows = u + x * chunk_rows();
          read_chunk(tree.chunks[n + x], rows);
          Vec<A>*sum = y + x * 2 * level.half, *difference = sum + level.half;
          for (int64_t i = 0; i < level.half; ++i) {
            Vec<A> front = rows[i], back = rows[plan->chunk - 1 - i];
            sum[i] = front + back, difference[i] = front - back;
          }
          p[x] = sum, q[x] = difference, out[x] = mu[0] + tree.chunks[n + x].node * level.rank;
        }
        folded_moments<A, X>(level, p, q, out);
      });
  }

  // Moments at every level, and from them nu where it is wanted.
  void far_field(Group group, const Tables<A>& tables, bool wants_nu) {
    if (plan->num_levels == 0) return;
    lowest_moments();
    all_moments<A>(*plan, tree, mu, fold);
    if (wants_nu) between_chunks<A>(*plan, group, tree, tables, mu, nu);
  }

  // finish(chunk, u rows, y rows, history or null) for every chunk that holds rows, after far_field.
  template <class Finish>
  void near_field(const Tables<A>& tables, const Finish& finish) {
    Taps<A> taps{tables.near, plan->near_taps, tables.far_by_lag(*plan), plan->horizon, history_rows()};
    for (int64_t n = 0; n < tree.num_chunks; n += kLanes)
      with_count<kLanes>(tree.num_chunks - n, [&](auto lanes) __attribute__((always_inline)) {
        constexpr int X = decltype(lanes)::value;
        Lanes<A, X> lane;
        int64_t longest = 0;
        bool reaches = false;  // some lane has rows a horizon back
        for (int x = 0; x < X; ++x) {
          const Chunk& chunk = tree.chunks[n + x];
          const Reader<A>& reader = readers[chunk.sequence];
          int64_t from = chunk.index * plan->chunk, used = reader.end - from;
          longest = used > longest ? used : longest;
          Vec<A>* past = history + x * history_rows();
          lane.u[x] = u + x * chunk_rows(), lane.y[x] = y + x * chunk_rows(), lane.history[x] = past;
          read_chunk(chunk, u + x * chunk_rows());
          reaches |= history_rows() > 0 && from - (plan->horizon - 1) + history_rows() > reader.begin;
          if (history_rows() > 0) reader.read(past, from - (plan->horizon - 1), history_rows());
        }
        taps.history_rows = reaches ? history_rows() : 0;
        longest = longest < plan->chunk ? longest : plan->chunk;
        plan_fetches<X>(n, lane);
        reconstruct<X>(n, lane);
        direct<A, X>(taps, lane, longest);
        for (int x = 0; x < X; ++x) finish(tree.chunks[n + x], lane.u[x], lane.y[x], reaches ? lane.history[x] : nullptr);
      });
  }

  // finish as in near_field, without computing y.
  template <class Finish>
  void read_chunks(const Finish& finish) {
    for (int64_t n = 0; n < tree.num_chunks; ++n) {
      const Chunk& chunk = tree.chunks[n];
      const Reader<A>& reader = readers[chunk.sequence];
      int64_t past = chunk.index * plan->chunk - (plan->horizon - 1);
      bool reaches = past + history_rows() > reader.begin && history_rows() > 0;
      read_chunk(chunk, u);
      if (reaches) reader.read(history, past, history_rows());
      finish(chunk, u, y, reaches ? history : nullptr);
    }
  }

  template <int X>
  HYENAREC_INLINE void reconstruct(int64_t n, const Lanes<A, X>& lane) {
    if (plan->num_levels == 0) {
      for (int x = 0; x < X; ++x) memset((void*)lane.y[x], 0, chunk_rows() * sizeof(Vec<A>));
      return;
    }
    const Level& level = plan->levels[0];
    const Vec<A>* from[X];
    for (int x = 0; x < X; ++x) from[x] = nu[0] + tree.chunks[n + x].node * level.rank;
    folded_rows<A, X>(level, from, [&](int64_t i, int x, Vec<A> even, Vec<A> odd) {
      lane.y[x][i] = even + odd;
      lane.y[x][plan->chunk - 1 - i] = even - odd;
    });
  }
};

}  // namespace hyenarec::HYENAREC_ISA
