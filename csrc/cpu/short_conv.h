// The short depthwise convolution with bias and SiLU, forward and backward, in one pass over memory each: tiles of 16
// rows, all channel blocks of a tile in turn, and the next tile fetched meanwhile, so that whole rows stream in order.
#pragma once
#include "forward.h"

namespace hyenarec::HYENAREC_ISA {

// Rows whose sigmoids are computed side by side: one is a chain of 100 cycles (8 rows spill registers and are slower).
constexpr int kSideBySide = 4;

// Of NaN some number: what it multiplies is the NaN itself.
template <class A>
HYENAREC_INLINE void sigmoid(Vec<A>* s, const Vec<A>* z) {
  exp_negative<kSideBySide>(s, z);
  for (int x = 0; x < kSideBySide; ++x) s[x] = reciprocal(s[x] + A(1));
}

constexpr int64_t kTileRows = 16, kUnitRows = 512, kShortParts = 16;

// Rows [begin, end) of a sequence.
struct Unit {
  int64_t sequence, begin, end;
};

// What a thread works in. A tile is computed in whole groups of kSideBySide rows, those past its end for nothing.
template <class A>
struct ShortWorkspace {
  Vec<A>*u;       // x from width - 1 rows before the tile on
  Vec<A>*values;  // one a row
  Vec<A>*slopes;  // gradients of z, to width - 1 rows behind the tile
  Vec<A>*behind;  // (channel_blocks, width - 1): the slopes behind the tile to come
  Vec<A>*w, *dw;  // for widths without registers of their own

  void take(Arena& arena, int64_t width, int64_t channel_blocks) {
    u = arena.take<Vec<A>>(kTileRows + width - 1);
    values = arena.take<Vec<A>>(kTileRows);
    slopes = arena.take<Vec<A>>(kTileRows + width - 1);
    behind = arena.take<Vec<A>>(channel_blocks * (width - 1));
    w = arena.take<Vec<A>>(width);
    dw = arena.take<Vec<A>>(width);
  }
};

// One channel block of a tile: `rows` rows from row `begin` of a sequence.
struct ShortTile {
  const Sequence& sequence;
  int64_t begin, rows, c0, valid;
};

template <class A, class T, int W>
struct ShortConv {
  const ShortConvArgs& args;
  bool streams;  // out leaves past the caches (128 x 200 x 192: 2.0 ms instead of 2.4; dx loses: 4.7 instead of 4.0)
  int64_t width() const { return W ? W : args.width; }

  Block block(Rows rows, const ShortTile& tile) const {
    return at(sequence_block(rows, tile.sequence, tile.c0, sizeof(T)), tile.begin);
  }
  // Fetches this block's share of the tile `ahead` rows on, in the order of memory, which the core's own prefetcher
  // follows (128 x 200 x 192 out of cache, forward: 3.4 ms without, 1.9 ms with).
  template <int Write>
  HYENAREC_INLINE void fetch(Rows rows, const ShortTile& tile, int64_t ahead) const {
    if (!rows.data) return;
    int64_t blocks = ceil_div(args.channels, kWidth<A>), share = tile.c0 / kWidth<A> * kTileRows;
    Block b = at(sequence_block(rows, tile.sequence, 0, sizeof(T)), tile.begin + ahead + share / blocks);
    int64_t column = share % blocks;
    for (int64_t i = 0; i < kTileRows; ++i) {
      __builtin_prefetch(b.data + column * int64_t(kWidth<A> * sizeof(T)), Write, 2);
      if (++column == blocks) column = 0, b.data += b.stride;
    }
  }
  // Weights, and x from width - 1 rows before the tile on: zeros before the sequence.
  HYENAREC_INLINE void enter(const ShortTile& tile, ShortWorkspace<A>& work, Vec<A>* w) const {
    for (int64_t j = 0; j < width(); ++j) w[j] = load_channels<A>(args.weight, j, args.channels, tile.c0);
    int64_t before = tile.begin < width() - 1 ? tile.begin : width() - 1, absent = width() - 1 - before;
    for (int64_t i = 0; i < absent; ++i) work.u[i] = Vec<A>{};
    load_rows<A, T>(work.u + absent, 0, at(block(args.x, tile), -before), {}, before + tile.rows, {1, tile.valid});
  }
  HYENAREC_INLINE Vec<A> bias(const ShortTile& tile) const {
    return args.bias ? load_channels<A>(args.bias, 0, args.channels, tile.c0) : Vec<A>{};
  }
  // z of row i of the tile
  HYENAREC_INLINE Vec<A> preactivation(const Vec<A>* w, const Vec<A>* u, Vec<A> bias, int64_t i) const {
    Vec<A> z = bias;
    for (int64_t j = 0; j < width(); ++j) z += w[j] * u[i + width() - 1 - j];
    return z;
  }

  void forward(const ShortTile& tile, ShortWorkspace<A>& work) const {
    Vec<A> fixed[W ? W : 1], *w = W ? fixed : work.w, bias = this->bias(tile);
    Block out = block(args.out, tile);
    fetch<0>(args.x, tile, kTileRows);
    if (!streams) fetch<1>(args.out, tile, kTileRows);
    enter(tile, work, w);
    for (int64_t i = 0; i < tile.rows; i += kSideBySide) {
      Vec<A> z[kSideBySide], s[kSideBySide];
      for (int x = 0; x < kSideBySide; ++x) z[x] = preactivation(w, work.u, bias, i + x);
      if (args.silu) {
        sigmoid<A>(s, z);
        for (int x = 0; x < kSideBySide; ++x) z[x] *= s[x];
      }
      for (int x = 0; x < kSideBySide; ++x) work.values[i + x] = z[x];
    }
    auto store = streams ? stream_rows<A, T> : store_rows<A, T>;
    store(out, work.values, 0, {}, tile.rows, {1, tile.valid});
  }

  // The tile's dx, and what it adds to dweight and dbias (sums[width]). Tiles come last first: `behind` has the slopes
  // of the width - 1 rows behind this tile, then of its own first ones. Without `sums` nothing else is wanted.
  void backward(const ShortTile& tile, ShortWorkspace<A>& work, Vec<A>* behind, Vec<A>* sums) const {
    Vec<A> fixed[W ? 2 * W : 1], *w = W ? fixed : work.w, *dw = W ? fixed + W : work.dw;
    Vec<A> bias = this->bias(tile), dbias{};
    Block grad = block(args.grad, tile), dx = block(args.dx, tile);
    fetch<0>(args.x, tile, -kTileRows), fetch<0>(args.grad, tile, -kTileRows), fetch<1>(args.dx, tile, -kTileRows);
    enter(tile, work, w);
    Vec<A>*u = work.u, *slopes = work.slopes;
    load_rows<A, T>(slopes, 0, grad, {}, tile.rows, {1, tile.valid});
    for (int64_t j = 0; j < width() - 1; ++j) slopes[tile.rows + j] = behind[j];
    for (int64_t j = 0; j < width(); ++j) dw[j] = Vec<A>{};
    if (args.silu)
      for (int64_t i = 0; i < tile.rows; i += kSideBySide) {
        Vec<A> z[kSideBySide], s[kSideBySide];
        for (int x = 0; x < kSideBySide; ++x) z[x] = preactivation(w, u, bias, i + x);
        sigmoid<A>(s, z);
        for (int x = 0; x < kSideBySide; ++x) work.values[i + x] = s[x] + z[x] * (s[x] - s[x] * s[x]);
      }
    for (int64_t i = 0; i < tile.rows; ++i) {
      if (args.silu) slopes[i] *= work.values[i];
      Vec<A> d = slopes[i];
      dbias += d;
      for (int64_t j = 0; j < width(); ++j) dw[j] += d * u[i + width() - 1 - j];
    }
    for (int64_t j = 0; j < width() - 1; ++j) behind[j] = slopes[j];
    if (!sums) return;
    for (int64_t j = 0; j < width(); ++j) sums[j] += dw[j];
    sums[width()] += dbias;
    if (!dx.data) return;
    for (int64_t i = 0; i < tile.rows; ++i) {
      Vec<A> sum{};
      for (int64_t j = 0; j < width(); ++j) sum += w[j] * slopes[i + j];
      work.values[i] = sum;
    }
    store_rows<A, T>(dx, work.values, 0, {}, tile.rows, {1, tile.valid});
  }
};

template <class A, class T, int W>
struct ShortConvCall {
  ShortConv<A, T, W> conv;
  int64_t channel_blocks, units, parts;
  Arena arena;
  Unit* unit;
  Vec<A>* sums;  // (parts, channel_blocks, width + 1)

  static int64_t count_units(const ShortConvArgs& args) {
    int64_t units = 0;
    for (int64_t s = 0; s < args.num_sequences; ++s)
      units += ceil_div(args.sequences[s].length, kUnitRows) + (args.sequences[s].length == 0);
    return units;
  }
  static bool is_large(const ShortConvArgs& args) {
    int64_t rows = 0;
    for (int64_t s = 0; s < args.num_sequences; ++s) rows += args.sequences[s].length;
    return kWholeLines && rows * args.channels * int64_t(sizeof(T)) > kStreamBytes;
  }
  int64_t part_sums() const { return channel_blocks * (conv.width() + 1); }

  ShortConvCall(const ShortConvArgs& args, bool backward)
      : conv{args, is_large(args)},
        channel_blocks(ceil_div(args.channels, kWidth<A>)),
        units(count_units(args)),
        parts(units < kShortParts ? units : kShortParts),
        arena(units * int64_t(sizeof(Unit)) + 64 + (backward ? parts * part_sums() * int64_t(sizeof(Vec<A>)) : 0)),
        unit(arena.template take<Unit>(units)),
        sums(arena.template take<Vec<A>>(0)) {
    int64_t n = 0;
    for (int64_t s = 0; s < args.num_sequences; ++s) {
      int64_t length = args.sequences[s].length, begin = 0;
      do {
        int64_t end = begin + kUnitRows < length ? begin + kUnitRows : length;
        unit[n++] = {s, begin, end};
        begin = end;
      } while (begin < length);
    }
  }

  void run(int64_t part, bool backward) const {
    const ShortConvArgs& args = conv.args;
    ShortWorkspace<A> work;
    Arena count;
    work.take(count, conv.width(), channel_blocks);
    Arena room(count.used());
    work.take(room, conv.width(), channel_blocks);
    memset((void*)work.u, 0, count.used());
    Vec<A>* mine = sums + part * part_sums();
    if (backward) memset((void*)mine, 0, part_sums() * sizeof(Vec<A>));
    for (int64_t n = part * units / parts; n < (part + 1) * units / parts; ++n) {
      const Sequence& sequence = args.sequences[unit[n].sequence];
      int64_t begin = unit[n].begin, end = unit[n].end, reach = end + conv.width() - 1;
      if (backward) {
        memset((void*)work.behind, 0, channel_blocks * (conv.width() - 1) * sizeof(Vec<A>));
        backward_rows(sequence, end, reach < sequence.length ? reach : sequence.length, work, nullptr);
        backward_rows(sequence, begin, end, work, mine);
      } else {
        for (int64_t t = begin; t < end; t += kTileRows)
          for (int64_t b = 0; b < channel_blocks; ++b) conv.forward(tile(sequence, t, end, b), work);
      }
      if (begin == 0) clear(backward ? args.dx : args.out, sequence);
    }
  }
  void backward_rows(const Sequence& sequence, int64_t begin, int64_t end, ShortWorkspace<A>& work,
                     Vec<A>* sums) const {
    for (int64_t t = begin + (end - begin - 1) / kTileRows * kTileRows; t >= begin && t < end; t -= kTileRows)
      for (int64_t b = 0; b < channel_blocks; ++b)
        conv.backward(tile(sequence, t, end, b), work, work.behind + b * (conv.width() - 1),
                      sums ? sums + b * (conv.width() + 1) : nullptr);
  }
  ShortTile tile(const Sequence& sequence, int64_t begin, int64_t end, int64_t b) const {
    int64_t c0 = b * kWidth<A>, valid = conv.args.channels - c0, rows = end - begin;
    return {sequence, begin, rows < kTileRows ? rows : kTileRows, c0, valid < kWidth<A> ? valid : kWidth<A>};
  }
  void clear(Rows rows, const Sequence& sequence) const {
    const ShortConvArgs& args = conv.args;
    if (!rows.data || args.padded_length == 0) return;
    Block block = sequence_block(rows, {sequence.batch, 0, args.padded_length}, 0, sizeof(T));
    int64_t end = sequence.start + sequence.length, bytes = args.channels * int64_t(sizeof(T));
    clear_rows(block, sequence.start, bytes);
    clear_rows(at(block, end), args.padded_length - end, bytes);
  }
  void finish() const {
    const ShortConvArgs& args = conv.args;
    for (int64_t b = 0; b < channel_blocks; ++b) {
      int64_t c0 = b * kWidth<A>, valid = args.channels - c0 < kWidth<A> ? args.channels - c0 : kWidth<A>;
      for (int64_t j = 0; j <= conv.width(); ++j) {
        Vec<A> total{};
        for (int64_t part = 0; part < parts; ++part) total += sums[part * part_sums() + b * (conv.width() + 1) + j];
        void* out = j < conv.width() ? args.dweight : args.dbias;
        int64_t at = j < conv.width() ? j * args.channels + c0 : c0;
        if (out) store_some<A>(static_cast<A*>(out) + at, total, valid);
      }
    }
  }
};

template <class A, class T, int W>
void short_conv(const ShortConvArgs& args, bool backward, ParallelFor parallel) {
  ShortConvCall<A, T, W> call(args, backward);
  auto forward_body = [](void* self, int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) static_cast<ShortConvCall<A, T, W>*>(self)->run(part, false);
    end_streaming();
  };
  auto backward_body = [](void* self, int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) static_cast<ShortConvCall<A, T, W>*>(self)->run(part, true);
  };
  parallel(call.parts, backward ? Body(backward_body) : Body(forward_body), &call);
  if (backward) call.finish();
}

template <class A, class T>
void short_conv_of_width(const ShortConvArgs& args, bool backward, ParallelFor parallel) {
  switch (args.width) {
    case 3: return short_conv<A, T, 3>(args, backward, parallel);
    case 4: return short_conv<A, T, 4>(args, backward, parallel);
    default: return short_conv<A, T, 0>(args, backward, parallel);
  }
}

inline void short_conv_of_type(const ShortConvArgs& args, bool backward, ParallelFor parallel) {
  switch (args.dtype) {
    case Dtype::f32: return short_conv_of_width<float, float>(args, backward, parallel);
    case Dtype::f64: return short_conv_of_width<double, double>(args, backward, parallel);
    case Dtype::bf16: return short_conv_of_width<float, Bf16>(args, backward, parallel);
    case Dtype::f16: return short_conv_of_width<float, F16>(args, backward, parallel);
  }
}

}  // namespace hyenarec::HYENAREC_ISA
