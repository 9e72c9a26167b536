// The short depthwise convolution with bias and SiLU, or with its first channels multiplied into its last ones. Forward
// and backward are one pass over memory each: tiles of 16 rows, all channel blocks of a tile in turn, while the next
// tile is prefetched, so that whole rows are read in order.
#pragma once
#include "forward.h"
#include "sums.h"

namespace hyenarec::HYENAREC_ISA {

// Rows whose sigmoids are computed side by side, which hides latency: each is a chain of dependent instructions, 100
// cycles long (8 rows spill registers and are slower).
constexpr int kSideBySide = 4;

// NaN gives some number; SiLU multiplies that by the NaN itself.
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

// A thread's scratch. A tile is computed in whole groups of kSideBySide rows; results past its end are not used.
template <class A>
struct ShortWorkspace {
  Vec<A>*u;       // x from width - 1 rows before the tile on
  Vec<A>*values;  // one per row
  Vec<A>*gate;    // one per row: what multiplies `values`
  Vec<A>*slopes;  // gradients of z, of the tile and the width - 1 rows after it
  Vec<A>*behind;  // (channel_blocks, width - 1): the slopes after the next tile to be computed
  Vec<A>*w, *dw;  // weights and their gradients, for widths without a kernel of their own
  Vec<A>* sums;   // (channel_blocks, width + 1): gradients of weight and bias from the latest rows

  void take(Arena& arena, int64_t width, int64_t channel_blocks) {
    u = arena.take<Vec<A>>(kTileRows + width - 1);
    values = arena.take<Vec<A>>(kTileRows);
    gate = arena.take<Vec<A>>(kTileRows);
    slopes = arena.take<Vec<A>>(kTileRows + width - 1);
    behind = arena.take<Vec<A>>(channel_blocks * (width - 1));
    w = arena.take<Vec<A>>(width);
    dw = arena.take<Vec<A>>(width);
    sums = arena.take<Vec<A>>(channel_blocks * (width + 1));
  }
};

// One channel block of a tile: `rows` rows from row `begin` of a sequence.
struct ShortTile {
  const Sequence& sequence;
  int64_t begin, rows, c0, valid;
};

// A tensor with its number of channels, and the channel at which a tile begins.
struct Columns {
  Rows rows;
  int64_t channels, c0;
};

template <class A, class T, int W>
struct ShortConv {
  const ShortConvArgs& args;
  bool streams;  // store out past the caches (128 x 200 x 192: 2.0 ms instead of 2.4; not dx: 4.7 instead of 4.0)
  int64_t width() const { return W ? W : args.width; }

  int64_t between() const { return args.channels - 2 * args.dim; }
  int64_t last() const { return args.channels - args.dim; }
  bool gated(const ShortTile& tile) const {
    return args.dim < args.channels && (tile.c0 < args.dim || tile.c0 >= last());
  }
  // The channels that a gated tile's outputs are multiplied with.
  ShortTile partner(const ShortTile& tile) const {
    int64_t c0 = tile.c0 < args.dim ? tile.c0 + last() : tile.c0 - last();
    return {tile.sequence, tile.begin, tile.rows, c0, tile.valid};
  }
  Columns inputs(Rows rows, const ShortTile& tile) const { return {rows, args.channels, tile.c0}; }
  Columns outputs(Rows products, Rows rest, const ShortTile& tile) const {
    if (tile.c0 < args.dim) return {products, args.dim, tile.c0};
    if (tile.c0 < last()) return {rest, between(), tile.c0 - args.dim};
    return {products, args.dim, tile.c0 - last()};
  }
  Block block(const Columns& columns, const ShortTile& tile) const {
    return at(sequence_block(columns.rows, tile.sequence, columns.c0, sizeof(T)), tile.begin);
  }
  // Prefetches this block's share of the tile `ahead` rows further on, in memory order, which the core's own prefetcher
  // follows (128 x 200 x 192 out of cache, forward: 3.4 ms without, 1.9 ms with).
  template <int Write>
  HYENAREC_INLINE void fetch(const Columns& columns, const ShortTile& tile, int64_t ahead) const {
    if (!columns.rows.data) return;
    int64_t blocks = ceil_div(columns.channels, kWidth<A>), share = columns.c0 / kWidth<A> * kTileRows;
    Block b = at(sequence_block(columns.rows, tile.sequence, 0, sizeof(T)), tile.begin + ahead + share / blocks);
    int64_t column = share % blocks;
    for (int64_t i = 0; i < kTileRows; ++i) {
      __builtin_prefetch(b.data + column * int64_t(kWidth<A> * sizeof(T)), Write, 2);
      if (++column == blocks) column = 0, b.data += b.stride;
    }
  }
  // Loads the weights, and x from width - 1 rows before the tile on, with zeros before the sequence.
  HYENAREC_INLINE void enter(const ShortTile& tile, ShortWorkspace<A>& work, Vec<A>* w) const {
    for (int64_t j = 0; j < width(); ++j) w[j] = load_channels<A>(args.weight, j, args.channels, tile.c0);
    int64_t before = tile.begin < width() - 1 ? tile.begin : width() - 1, absent = width() - 1 - before;
    for (int64_t i = 0; i < absent; ++i) work.u[i] = Vec<A>{};
    Block x = at(block(inputs(args.x, tile), tile), -before);
    load_rows<A, T>(work.u + absent, 0, x, {}, before + tile.rows, {1, tile.valid});
  }
  HYENAREC_INLINE Vec<A> bias(const ShortTile& tile) const {
    return args.bias ? load_channels<A>(args.bias, 0, args.channels, tile.c0) : Vec<A>{};
  }
  // z, the convolution's output before SiLU or products, of row i of the tile.
  HYENAREC_INLINE Vec<A> preactivation(const Vec<A>* w, const Vec<A>* u, Vec<A> bias, int64_t i) const {
    Vec<A> z = bias;
    for (int64_t j = 0; j < width(); ++j) z += w[j] * u[i + width() - 1 - j];
    return z;
  }

  // Computes work.gate, z of the partner tile. Leaves the partner's x in `work`.
  HYENAREC_INLINE void enter_gate(const ShortTile& tile, ShortWorkspace<A>& work, Vec<A>* w) const {
    const ShortTile other = partner(tile);
    Vec<A> bias = this->bias(other);
    enter(other, work, w);
    for (int64_t i = 0; i < tile.rows; ++i) work.gate[i] = preactivation(w, work.u, bias, i);
  }

  void forward(const ShortTile& tile, ShortWorkspace<A>& work) const {
    Vec<A> fixed[W ? W : 1], *w = W ? fixed : work.w, bias = this->bias(tile);
    Columns out = outputs(args.out, args.rest, tile);
    const bool gated = this->gated(tile);
    fetch<0>(inputs(args.x, tile), tile, kTileRows);
    if (!streams) fetch<1>(out, tile, kTileRows);
    if (gated) {
      fetch<0>(inputs(args.x, partner(tile)), tile, kTileRows);
      enter_gate(tile, work, w);
    }
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
    if (gated)
      for (int64_t i = 0; i < tile.rows; ++i) work.values[i] *= work.gate[i];
    auto store = streams ? stream_rows<A, T> : store_rows<A, T>;
    store(block(out, tile), work.values, 0, {}, tile.rows, {1, tile.valid});
  }

  // Computes the tile's dx and adds to `sums` what it contributes to dweight and dbias (sums[width]). Tiles come last
  // first: `behind` has the slopes of the width - 1 rows after this tile, and afterwards those of its own first rows.
  // Where `sums` is null, only `behind` is computed.
  void backward(const ShortTile& tile, ShortWorkspace<A>& work, Vec<A>* behind, Vec<A>* sums) const {
    Vec<A> fixed[W ? 2 * W : 1], *w = W ? fixed : work.w, *dw = W ? fixed + W : work.dw;
    Vec<A> bias = this->bias(tile), dbias{};
    Columns x = inputs(args.x, tile), dx = inputs(args.dx, tile), grad = outputs(args.grad, args.grad_rest, tile);
    const bool gated = this->gated(tile);
    fetch<0>(x, tile, -kTileRows), fetch<0>(grad, tile, -kTileRows), fetch<1>(dx, tile, -kTileRows);
    if (gated) enter_gate(tile, work, w);
    enter(tile, work, w);
    Vec<A>*u = work.u, *slopes = work.slopes;
    load_rows<A, T>(slopes, 0, block(grad, tile), {}, tile.rows, {1, tile.valid});
    if (gated)
      for (int64_t i = 0; i < tile.rows; ++i) slopes[i] *= work.gate[i];
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
    if (!dx.rows.data) return;
    for (int64_t i = 0; i < tile.rows; ++i) {
      Vec<A> sum{};
      for (int64_t j = 0; j < width(); ++j) sum += w[j] * slopes[i + j];
      work.values[i] = sum;
    }
    store_rows<A, T>(block(dx, tile), work.values, 0, {}, tile.rows, {1, tile.valid});
  }
};

template <class A, class T, int W>
struct ShortConvCall {
  ShortConv<A, T, W> conv;
  int64_t slice_blocks, channel_blocks, units, parts;  // channel blocks of `dim` channels, and of all channels
  Arena arena;
  Unit* unit;
  Vec<A>* sums;  // (parts): the totals of (channel_blocks, width + 1)

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
  Vec<A>* total(int64_t part) const { return sums + part * LongSums<A>::vectors(part_sums()); }

  ShortConvCall(const ShortConvArgs& args, bool backward)
      : conv{args, is_large(args)},
        slice_blocks(ceil_div(args.dim, kWidth<A>)),
        channel_blocks(args.channels / args.dim * slice_blocks),
        units(count_units(args)),
        parts(units < kShortParts ? units : kShortParts),
        arena(units * int64_t(sizeof(Unit)) + 64 + (backward ? parts * LongSums<A>::vectors(part_sums()) * int64_t(sizeof(Vec<A>)) : 0)),
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
    LongSums<A> mine{work.sums, total(part), part_sums(), kUnitRows};
    for (int64_t n = part * units / parts; n < (part + 1) * units / parts; ++n) {
      const Sequence& sequence = args.sequences[unit[n].sequence];
      int64_t begin = unit[n].begin, end = unit[n].end, reach = end + conv.width() - 1;
      if (backward) {
        memset((void*)work.behind, 0, channel_blocks * (conv.width() - 1) * sizeof(Vec<A>));
        backward_rows(sequence, end, reach < sequence.length ? reach : sequence.length, work, nullptr);
        backward_rows(sequence, begin, end, work, work.sums);
        mine.after(end - begin);
      } else {
        for (int64_t t = begin; t < end; t += kTileRows)
          for (int64_t b = 0; b < output_blocks(); ++b) conv.forward(tile(sequence, t, end, b), work);
      }
      if (begin > 0) continue;
      clear(backward ? args.dx : args.out, backward ? args.channels : args.dim, sequence);
      if (!backward) clear(args.rest, conv.between(), sequence);
    }
    if (backward) mine.collect();
  }
  void backward_rows(const Sequence& sequence, int64_t begin, int64_t end, ShortWorkspace<A>& work,
                     Vec<A>* sums) const {
    for (int64_t t = begin + (end - begin - 1) / kTileRows * kTileRows; t >= begin && t < end; t -= kTileRows)
      for (int64_t b = 0; b < channel_blocks; ++b)
        conv.backward(tile(sequence, t, end, b), work, work.behind + b * (conv.width() - 1),
                      sums ? sums + b * (conv.width() + 1) : nullptr);
  }
  // Each `dim` channels are a slice. Where there are several, the last slice's outputs are stored with the first's.
  int64_t output_blocks() const { return channel_blocks > slice_blocks ? channel_blocks - slice_blocks : slice_blocks; }
  int64_t first_channel(int64_t b) const { return b / slice_blocks * conv.args.dim + b % slice_blocks * kWidth<A>; }
  int64_t valid_channels(int64_t b) const {
    int64_t left = conv.args.dim - b % slice_blocks * kWidth<A>;
    return left < kWidth<A> ? left : kWidth<A>;
  }
  ShortTile tile(const Sequence& sequence, int64_t begin, int64_t end, int64_t b) const {
    int64_t rows = end - begin;
    return {sequence, begin, rows < kTileRows ? rows : kTileRows, first_channel(b), valid_channels(b)};
  }
  void clear(Rows rows, int64_t channels, const Sequence& sequence) const {
    const ShortConvArgs& args = conv.args;
    if (!rows.data || args.padded_length == 0) return;
    Block block = sequence_block(rows, {sequence.batch, 0, args.padded_length}, 0, sizeof(T));
    int64_t end = sequence.start + sequence.length, bytes = channels * int64_t(sizeof(T));
    clear_rows(block, sequence.start, bytes);
    clear_rows(at(block, end), args.padded_length - end, bytes);
  }
  void finish() const {
    const ShortConvArgs& args = conv.args;
    for (int64_t part = 1; part < parts; ++part) LongSums<A>::add_part(sums, total(part), part_sums());
    if (parts > 0) LongSums<A>::finish(sums, part_sums());
    for (int64_t b = 0; b < channel_blocks; ++b) {
      for (int64_t j = 0; j <= conv.width(); ++j) {
        Vec<A> sum = parts > 0 ? sums[b * (conv.width() + 1) + j] : Vec<A>{};
        void* out = j < conv.width() ? args.dweight : args.dbias;
        int64_t at = (j < conv.width() ? j * args.channels : 0) + first_channel(b);
        if (out) store_some<A>(static_cast<A*>(out) + at, sum, valid_channels(b));
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
