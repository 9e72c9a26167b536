// From coefficients and decays to the tables that the passes over tiles read, in one launch, and from gradients back.
#pragma once
#include "block_between.h"

namespace hyenarec::cuda {

constexpr int kTapRows = 3 * kTile;  // rows of samples: taps inside a tile, then those of the filter's end
constexpr float kFastest = 1000.f;   // rate per event at which exp(-rate) is 0

// A filter's parameters, and the samples (legendre_blocks.h), which turn them into taps and tables. Rows are adjacent
// in memory, so that neighbouring lanes have neighbouring rows.
struct Samples {
  const float *coefficients, *decay;       // (groups, terms), (groups,) or null
  const float *values, *aged, *offsets;    // (terms, rows), likewise or null, (rows,)
  int64_t rows;
  int groups, terms, horizon;

  HYENAREC_DEVICE float rate(int group) const {  // NaN stays NaN
    float rate = decay[group] / float(horizon);
    return rate > kFastest ? kFastest : rate;
  }
  HYENAREC_DEVICE float window(int64_t row, int group) const { return decay ? expf(-rate(group) * offsets[row]) : 1.f; }
  HYENAREC_DEVICE float value(int64_t row, int group) const {
    float sum = 0.f;
    for (int n = 0; n < terms; ++n) sum += values[n * rows + row] * coefficients[int64_t(group) * terms + n];
    return sum * window(row, group);
  }
};

// A table of taps for every channel, from row `first` of the samples on.
struct TapWords {
  uint32_t* words;  // (channels, Toeplitz::table_words(rows)), or null
  int first, rows;
};

template <class T>
struct PrepareBlocks {
  using Products = Toeplitz<T>;
  using Core = TensorCore<T>;
  using Far = TensorCore<MomentType<T>>;

  static constexpr int kThreads = 256, kSharedBytes = 0, kBlocks = 1;
  Samples samples;
  Channels channels;
  const float* skip;  // or null
  TapWords near, edge;
  int64_t first_row, table_rows;  // samples of the tables of levels above the first
  float* tables;                  // (table rows, groups)
  LevelShape shape;               // the first level, whose tables are operands of products
  uint32_t* between[2];           // tables of TilesBetween: M, and M transposed; or null
  float* rates;   // (channels,) or null
  const float *basis, *down, *columns;  // Q, S and q (block_moments.h)
  Basis made;
  uint32_t *in_words, *down_words, *out_words;  // of `made`
  int levels;
  LocateSlots slots[kMostBlockLevels];

  HYENAREC_DEVICE int64_t taps(const TapWords& of) const {
    return of.words ? int64_t(channels.count) * Products::table_words(of.rows) : 0;
  }
  HYENAREC_DEVICE int64_t threads() const {
    int64_t sum = taps(near) + taps(edge) + table_rows * samples.groups + (rates ? channels.count : 0) +
                  made.in_words<T>() + made.down_words<T>() + made.out_words<T>() + between_words(0) + between_words(1);
    for (int i = 0; i < levels; ++i) sum += slots[i].count;
    return sum;
  }
  HYENAREC_DEVICE int64_t grid() const { return ceil_div(threads(), kThreads); }

  template <class Block>
  HYENAREC_DEVICE void operator()(Block& block, int64_t index, void*) const {
    block.phase([&](int thread) { one(index * kThreads + thread); });
  }

 private:
  HYENAREC_DEVICE void one(int64_t i) const {
    // Whether i is among the next `count` items; otherwise takes them off i.
    auto mine = [&](int64_t count) { return i < count ? true : (i -= count, false); };
    if (mine(taps(near))) return tap_word(near, i);
    if (mine(taps(edge))) return tap_word(edge, i);
    if (mine(table_rows * samples.groups)) {
      int64_t row = i % table_rows, group = i / table_rows;
      tables[row * samples.groups + group] = samples.value(first_row + row, int(group));
      return;
    }
    if (mine(rates ? channels.count : 0)) {
      rates[i] = samples.rate(channels.group(int(i)));
      return;
    }
    if (mine(made.in_words<T>())) return in_word(i);
    if (mine(made.down_words<T>())) return down_word(int(i));
    if (mine(made.out_words<T>())) return out_word(int(i));
    for (int transposed = 0; transposed < 2; ++transposed)
      if (mine(between_words(transposed))) return between_word(transposed, i);
    for (int level = 0; level < levels; ++level)
      if (mine(slots[level].count)) return slots[level].one(i);
  }

  HYENAREC_DEVICE float tap(const TapWords& to, int channel, int at) const {
    if (at < 0 || at >= to.rows) return 0.f;
    float value = samples.value(to.first + at, channels.group(channel));
    return skip && to.first + at == 0 ? value + skip[channel] : value;
  }

  HYENAREC_DEVICE void tap_word(const TapWords& to, int64_t i) const {
    int size = Products::table_words(to.rows), channel = int(i / size), lag = int(i % size) - Products::kBefore;
    to.words[i] = word<T>(tap(to, channel, lag), Core::kInWord == 2 ? tap(to, channel, lag - 1) : 0.f);
  }

  template <class As>
  static HYENAREC_DEVICE uint32_t word(float low, float high) {
    if constexpr (sizeof(As) == 2) return packed<As>(low, high);
    else return float_to_bits(low);
  }

  HYENAREC_DEVICE void in_word(int64_t i) const {
    constexpr int P = kFinePlanes<T>, D = Core::kDepth;
    int w = int(i % 4), lane = int(i / 4 % 32), plane = int(i / 128 % P);
    int step = int(i / 128 / P / made.steps), rank = int(i / 128 / P % made.steps) * 16 + lane / 4 + w % 2 * 8;
    int row = step * D + lane % 4 * Core::kInWord + w / 2 * (D / 2);
    auto part = [&](int beside) {
      float all = beside < Core::kInWord ? basis[(row + beside) * made.steps * 16 + rank] : 0.f;
      return plane ? all - float(T::of(all)) : all;
    };
    in_words[i] = word<T>(part(0), part(1));
  }

  HYENAREC_DEVICE void down_word(int i) const {
    constexpr int D = Far::kDepth;
    const int ranks = made.steps * 16;
    int lane = i / 2 % 32, to = i / 64 % (made.steps * 2) * 8 + lane / 4;
    int column = i / 64 / (made.steps * 2) % kTileColumns;
    int from = i / 64 / (made.steps * 2) / kTileColumns * D + lane % 4 * Far::kInWord + i % 2 * (D / 2);
    const float* at = down + (column * ranks + to) * ranks + from;
    down_words[i] = word<MomentType<T>>(at[0], Far::kInWord == 2 ? at[1] : 0.f);
  }

  HYENAREC_DEVICE void out_word(int i) const {
    constexpr int D = Far::kDepth, kRows = kColumnRows / 8;
    int lane = i / 2 % 32, row = i / 64 % kRows * 8 + lane / 4;
    int rank = i / 64 / kRows * D + lane % 4 * 2 + i % 2 * (Far::kInWord == 2 ? D / 2 : 1);
    const float* at = columns + row * made.steps * 16 + rank;
    out_words[i] = word<MomentType<T>>(at[0], Far::kInWord == 2 ? at[1] : 0.f);
  }

  HYENAREC_DEVICE int64_t between_words(int transposed) const {
    return between[transposed] ? int64_t(shape.distances()) * samples.groups * TilesBetween<T>::table_words(made.steps) : 0;
  }
  HYENAREC_DEVICE void between_word(int transposed, int64_t i) const {
    constexpr int D = Far::kDepth;
    int depths = made.steps * 16 / D, w = int(i % 4), lane = int(i / 4 % 32), depth = int(i / 128 % depths);
    int row = int(i / 128 / depths % made.steps) * 16 + lane / 4 + w % 2 * 8;
    int64_t table = i / 128 / depths / made.steps;
    int column = depth * D + lane % 4 * Far::kInWord + w / 2 * (D / 2), group = int(table % samples.groups);
    auto entry = [&](int beside) {
      int r = transposed ? column + beside : row, s = transposed ? row : column + beside;
      if (r >= shape.rank || s >= shape.rank || beside >= Far::kInWord) return 0.f;
      return samples.value(kTapRows + (table / samples.groups * shape.rank + r) * shape.rank + s, group);
    };
    between[transposed][i] = word<MomentType<T>>(entry(0), entry(1));
  }
};

// Gradients of one group's parameters from a share of the samples' rows.
struct ParametersGradient {
  static constexpr int kThreads = 256, kRows = 1024, kTerms = 8, kStrips = kThreads / kTerms, kBlocks = 1;
  static constexpr int kSharedBytes = (kRows + 2 * kThreads) * int(sizeof(float));
  Samples samples;
  Channels channels;
  int64_t rows;         // tap rows and table rows
  const float* near;    // (channels, 256)
  const float* edge;    // (channels, 512) or null
  const float* tables;  // (table rows, channels)
  float *dcoefficients, *ddecay;  // (shares, groups, terms), (shares, groups) or null
  float* dskip;                   // (channels,) or null
  bool add_skip;

  HYENAREC_DEVICE int64_t shares() const { return ceil_div(rows, kRows); }
  HYENAREC_DEVICE int64_t grid() const { return shares() * samples.groups; }

  template <class Block>
  HYENAREC_DEVICE void operator()(Block& block, int64_t index, void* memory) const {
    auto* values = static_cast<float*>(memory);
    float *sums = values + kRows, *aged_sums = sums + kThreads;
    int group = int(index % samples.groups);
    int64_t share = index / samples.groups;
    int each_group = channels.total / samples.groups;
    int from = group * each_group - channels.first, to = from + each_group;
    from = from < 0 ? 0 : from, to = to > channels.count ? channels.count : to;
    block.phase([&](int thread) {
      for (int i = thread; i < kRows; i += kThreads) {
        int64_t row = share * kRows + i;
        float sum = 0.f;
        for (int c = from; row < rows && c < to; ++c) sum += value(row, c);
        values[i] = row < rows ? sum * samples.window(row, group) : 0.f;
      }
      if (share == 0 && dskip)
        for (int c = from + thread; c < to; c += kThreads) dskip[c] = value(0, c) + (add_skip ? dskip[c] : 0.f);
    });
    for (int first = 0; first < samples.terms; first += kTerms) {
      block.phase([&](int thread) {
        int n = first + thread / kStrips;
        float sum = 0.f, aged = 0.f;
        for (int i = thread % kStrips; n < samples.terms && i < kRows && share * kRows + i < rows; i += kStrips) {
          int64_t at = n * samples.rows + share * kRows + i;
          sum += values[i] * samples.values[at];
          if (ddecay) aged += values[i] * samples.aged[at];
        }
        sums[thread] = sum, aged_sums[thread] = aged;
      });
      block.phase([&](int thread) {
        int n = first + thread;
        if (thread >= kTerms || n >= samples.terms) return;
        float sum = 0.f, aged = 0.f;
        int at = thread * kStrips;
        for (int s = 0; s < kStrips; ++s) sum += sums[at + s], aged += aged_sums[at + s];
        if (dcoefficients) dcoefficients[index * samples.terms + n] = sum;
        aged_sums[at] = aged * samples.coefficients[int64_t(group) * samples.terms + n];
      });
      block.phase([&](int thread) {
        if (thread > 0 || !ddecay) return;
        float sum = first ? ddecay[index] : 0.f;
        for (int n = 0; n < kTerms && first + n < samples.terms; ++n) sum -= aged_sums[n * kStrips];
        ddecay[index] = sum;
      });
    }
  }

 private:
  HYENAREC_DEVICE float value(int64_t row, int c) const {
    if (row >= kTapRows) return tables[(row - kTapRows) * channels.count + c];
    if (row < kTile) return near[int64_t(c) * kTile + row];
    return edge ? edge[int64_t(c) * TapTables::kEdgeTaps + row - kTile] : 0.f;
  }
};

}  // namespace hyenarec::cuda
