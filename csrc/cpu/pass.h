// One pass of the convolution along one sequence, for a tile of channel blocks, segment by segment. What later rows
// need of the past is held in the moments of the latest nodes of every level, so rows are read once and scratch does
// not grow with the sequence. A segment is kLanes chunks, which share every load of a basis and of a block; without
// levels it is one chunk.
#pragma once
#include "io.h"
#include "levels.h"

namespace hyenarec::HYENAREC_ISA {

// Reads a * b (b may be absent) of one sequence; rows outside read as zero.
template <class A>
struct Reader {
  const Io<A>* io;
  Block a, b;
  int64_t length;
  Tile tile;

  // Reads rows [from, from + rows) of block c to dst + c * stride.
  void read(Vec<A>* dst, int64_t stride, int64_t from, int64_t rows) const {
    int64_t low = from < 0 ? -from : 0, high = length - from < rows ? length - from : rows;
    low = low < rows ? low : rows, high = high > low ? high : low;
    if (low < high) io->load(dst + low, stride, at(a, from + low), b.data ? at(b, from + low) : b, high - low, tile);
    for (int64_t c = 0; c < tile.blocks; ++c) {
      for (int64_t i = 0; i < low; ++i) dst[c * stride + i] = Vec<A>{};
      for (int64_t i = high; i < rows; ++i) dst[c * stride + i] = Vec<A>{};
    }
  }
};

// Rows [from, from + rows) of a sequence: `chunks` chunks from number `chunk` on.
struct Segment {
  int64_t from, rows, chunk, chunks;
  bool last;
};

template <class A>
struct Pass {
  const Plan* plan;
  Reader<A> reader;
  const Tables<A>* tables;  // one per channel block of the tile
  bool targets = false;     // whether moments are taken of blocks' targets (output gradients), not of their sources
  Moments<A> mu[kMaxLevels];
  Vec<A>* nu[kMaxLevels];  // (blocks, nodes of one parent, rank); of one segment where the lowest level has no parent
  Vec<A>* u;        // (blocks, stride())
  Vec<A>* y;        // likewise; may be u itself
  Vec<A>* history;  // (blocks, history_stride())
  Ahead ahead;      // prefetched while the present segment is computed
  Vec<A>* work;     // folded rows, then what other chunks contribute: small, so that it stays in the first-level cache

  int top() const { return plan->num_levels - 1; }
  int64_t lanes() const { return plan->num_levels ? kLanes : 1; }
  int64_t segment_rows() const { return lanes() * plan->chunk; }
  int64_t stride() const { return segment_rows() + kTapRows; }
  int64_t nu_nodes(int l) const { return plan->levels[l].fan ? plan->levels[l].fan : l ? 1 : kLanes; }
  int64_t ratio(int l) const { return plan->levels[l].chunk / plan->chunk; }
  int64_t chunk_history() const {
    if (plan->far_taps == 0) return 0;
    int64_t whole = plan->horizon / plan->chunk;
    return plan->horizon - 1 - ((whole > 1 ? whole : 1) - 1) * plan->chunk;
  }
  int64_t history_stride() const { return kTapRows + (lanes() - 1) * plan->chunk + chunk_history(); }

  void take(Arena& arena, const Plan& p, int64_t blocks, int64_t longest, bool in_place) {
    plan = &p;
    u = arena.take<Vec<A>>(blocks * stride());
    y = in_place ? u : arena.take<Vec<A>>(blocks * stride());
    history = chunk_history() ? arena.take<Vec<A>>(blocks * history_stride()) : nullptr;
    int64_t widest = 0;
    for (int l = 0; l < p.num_levels; ++l) {
      const Level& level = p.levels[l];
      widest = level.half > widest ? level.half : widest;
      int64_t reach = level.far_pairs ? level.far_first + level.far_pairs - 1 : level.fan ? 0 : level.near_pairs;
      int64_t family = level.fan > kLanes ? level.fan : kLanes, all = ceil_div(longest, level.chunk * family) * family;
      int64_t kept = reach == 0 ? 0 : reach + kLanes - 1 > family ? reach + kLanes - 1 : family;
      int64_t slots = 2 * kept + family < all ? 2 * kept + family : all;
      mu[l] = {arena.take<Vec<A>>(blocks * slots * level.rank + 4), level.rank, kept, slots};  // + 4: tiles overread
      nu[l] = arena.take<Vec<A>>(blocks * nu_nodes(l) * level.rank + 1);
    }
    work = arena.take<Vec<A>>(2 * kLanes * widest);
  }

  void begin(const Reader<A>& from, const Tables<A>* of, bool of_targets = false) {
    reader = from, tables = of, targets = of_targets;
    for (int l = 0; l < plan->num_levels; ++l) mu[l].first = 0;
  }

  Vec<A>* nu_node(int l, int64_t block, int64_t index) const {
    const Level& level = plan->levels[l];
    return nu[l] + (block * nu_nodes(l) + (level.fan ? index % level.fan : 0)) * level.rank;
  }
  int64_t before(int l, int64_t index) const { return plan->levels[l].fan ? index % plan->levels[l].fan : index; }

  template <class F>
  void each_segment(const F& f) const {
    for (int64_t from = 0; from < reader.length; from += segment_rows()) {
      int64_t left = reader.length - from, rows = left < segment_rows() ? left : segment_rows();
      f(Segment{from, rows, from / plan->chunk, ceil_div(rows, plan->chunk), rows == left});
    }
  }

  // Computes the segment's y from its rows. Calls put(block, first row, y) for every tile of kTapRows rows, the last of
  // which may reach past the segment.
  template <class Put>
  void run(const Segment& segment, const Put& put) {
    read(segment);
    read_history(segment);
    descend(segment.chunk);
    convolve(segment, put);
  }
  void run(const Segment& segment) {
    run(segment, [&](int64_t c, int64_t first, const Vec<A>(&rows)[kTapRows])
                     __attribute__((always_inline)) { keep(c, first, rows); });
  }
  HYENAREC_INLINE void keep(int64_t c, int64_t first, const Vec<A> (&rows)[kTapRows]) {
    Vec<A>* to = y + c * stride() + first;
    for (int r = 0; r < kTapRows; ++r) to[r] = rows[r];
  }

  void read(const Segment& segment) {
    reader.read(u, stride(), segment.from, segment_rows());
    if (plan->num_levels) mu[0].reserve(reader.tile.blocks, segment.chunk, segment.chunks);
  }

  void all_moments(const Segment& segment) {
    for (int64_t c = 0; c < reader.tile.blocks; ++c) moments(c, segment);
  }

  HYENAREC_SHARED void moments(int64_t c, const Segment& segment) {
    if (plan->num_levels == 0) return;
    with_count<kLanes>(segment.chunks, [&](auto lanes) __attribute__((always_inline)) {
      constexpr int X = decltype(lanes)::value;
      const Vec<A>* rows[X];
      Vec<A>* out[X];
      for (int x = 0; x < X; ++x)
        rows[x] = u + c * stride() + x * plan->chunk, out[x] = mu[0].node(c, segment.chunk + x);
      const Vec<A>* window = tables[c].window.rows;
      Scale<A> scale = targets || !window ? Scale<A>{window, 1} : Scale<A>{window + plan->chunk, -1};
      chunk_moments<A, X>(plan->levels[0], rows, scale, work, out);
    });
  }

  // Computes nu of the nodes above the lowest level that begin at this chunk, and passes it down to their children.
  void descend(int64_t chunk) {
    for (int l = top(); l > 0; --l) {
      if (chunk % ratio(l)) continue;
      const Level &level = plan->levels[l], &child = plan->levels[l - 1];
      int64_t index = chunk / ratio(l);
      for (int64_t c = 0; c < reader.tile.blocks; ++c) {
        Vec<A>*out = nu_node(l, c, index), *moments = mu[l].node(c, index);
        apply_pairs<A, 1>(level, tables[c].blocks[l], before(l, index), level.near_pairs, moments, out, l < top());
        apply_far_pairs<A>(level, tables[c].blocks[l], index, moments, out);
      }
      with_count<kTileBlocks>(reader.tile.blocks, [&](auto blocks) __attribute__((always_inline)) {
        constexpr int X = decltype(blocks)::value;
        const Vec<A>* from[X];
        Vec<A>* to[X];
        Scale<A> scale[X];
        for (int c = 0; c < X; ++c)
          from[c] = nu_node(l, c, index), to[c] = nu_node(l - 1, c, 0), scale[c] = {tables[c].window.children[l], 1};
        nu_down<A, X>(level, child, from, scale, to);
      });
    }
  }

  // Whether the segment needs rows from a horizon back: the filter must end inside the sequence, before this segment
  // does.
  bool reaches(const Segment& segment) const {
    int64_t last_chunk = segment.from + (segment.chunks - 1) * plan->chunk;
    return chunk_history() > 0 && last_chunk - (plan->horizon - 1) + chunk_history() > 0;
  }
  Vec<A>* past(int64_t c, int64_t first) const { return history + c * history_stride() + kTapRows + first; }
  void read_history(const Segment& segment) {
    if (!reaches(segment)) return;
    for (int64_t c = 0; c < reader.tile.blocks; ++c)
      for (int64_t i = 1; i <= kTapRows; ++i) past(c, 0)[-i] = Vec<A>{};
    reader.read(past(0, 0), history_stride(), segment.from - (plan->horizon - 1), history_stride() - kTapRows);
  }

  // Computes the segment's moments and y: first what other chunks contribute, then the taps inside each chunk.
  template <class Put>
  void convolve(const Segment& segment, const Put& put) {
    int64_t history_rows = reaches(segment) ? chunk_history() : 0;
    auto ask = [&]() __attribute__((always_inline)) { ask_ahead(); };
    for (int64_t c = 0; c < reader.tile.blocks; ++c) {
      moments(c, segment);
      if (plan->num_levels) from_other_chunks(c, segment);
      Taps<A> taps{tables[c].near, plan->near_taps, tables[c].far_by_lag(*plan), plan->horizon,
                   tables[c].window.rows};
      for (int64_t x = 0; x < segment.chunks; ++x) {
        int64_t first = x * plan->chunk, used = used_rows(segment, x);
        const Vec<A>* rest = plan->num_levels ? work + first : nullptr;
        direct<A>(taps, u + c * stride() + first, past(c, first), history_rows, rest, used, ask,
                  [&](int64_t t, const Vec<A>(&rows)[kTapRows])
                      __attribute__((always_inline)) { put(c, first + t, rows); });
      }
    }
  }

  // Prefetches the share of one register tile; each channel block of a segment has one tile per kTapRows rows.
  HYENAREC_INLINE void ask_ahead() { ahead.ask(ceil_div(kTapRows, reader.tile.blocks)); }

  int64_t used_rows(const Segment& segment, int64_t x) const {
    int64_t left = segment.rows - x * plan->chunk;
    return left < plan->chunk ? left : plan->chunk;
  }

  HYENAREC_SHARED void from_other_chunks(int64_t c, const Segment& segment) {
    const Level& level = plan->levels[0];
    const int64_t chunk = segment.chunk;
    with_count<kLanes>(segment.chunks, [&](auto lanes) __attribute__((always_inline)) {
      constexpr int X = decltype(lanes)::value;
      Vec<A>* first = nu_node(0, c, chunk);
      const Vec<A>* moments = mu[0].node(c, chunk);
      apply_pairs<A, X>(level, tables[c].blocks[0], before(0, chunk), level.near_pairs, moments, first, top() > 0);
      const Vec<A>* from[X];
      Vec<A>* to[X];
      for (int x = 0; x < X; ++x) {
        apply_far_pairs<A>(level, tables[c].blocks[0], chunk + x, moments + x * level.rank, first + x * level.rank);
        from[x] = first + x * level.rank, to[x] = work + x * plan->chunk;
      }
      reconstruct<A, X>(level, from, to);
    });
  }

  // Computes the moments of the nodes above the lowest level that end with the segment; when `all`, also of those that
  // the end of the sequence cuts short.
  void ascend(const Segment& segment, bool all) {
    int64_t chunk = segment.chunk + segment.chunks;
    for (int l = 1; l <= top() && (all || chunk % ratio(l) == 0); ++l) {
      const Level &level = plan->levels[l], &child = plan->levels[l - 1];
      int64_t index = (chunk - 1) / ratio(l), children = ceil_div(chunk, ratio(l - 1));
      mu[l].reserve(reader.tile.blocks, index, 1);
      mu[l - 1].reserve(reader.tile.blocks, children, (index + 1) * child.fan - children);
      with_count<kTileBlocks>(reader.tile.blocks, [&](auto blocks) __attribute__((always_inline)) {
        constexpr int X = decltype(blocks)::value;
        const Vec<A>* from[X];
        Vec<A>* to[X];
        Scale<A> scale[X];
        for (int c = 0; c < X; ++c) {
          const Vec<A>* window = tables[c].window.children[l];
          scale[c] = targets || !window ? Scale<A>{window, 1} : Scale<A>{window + child.fan - 1, -1};
          for (int64_t i = children; i < (index + 1) * child.fan; ++i)
            memset((void*)mu[l - 1].node(c, i), 0, child.rank * sizeof(Vec<A>));
          from[c] = mu[l - 1].node(c, index * child.fan), to[c] = mu[l].node(c, index);
        }
        moments_up<A, X>(level, child, from, scale, work, to);
      });
    }
  }
};

}  // namespace hyenarec::HYENAREC_ISA
