// From coefficients and decays to what the tiles read, in one launch, and the gradients back.
#pragma once
#include "block_levels.h"

namespace hyenarec::cuda {

constexpr int kTapRows = 3 * kTile;  // of samples: taps inside a tile, then those of the filter's end
constexpr float kFastest = 1000.f;   // decay an event at which exp(-decay) is 0

// A filter's parameters, and the samples that turn them into values.
struct Samples {
  const float *coefficients, *decay;     // (groups, terms), (groups,) or null
  const float *rows, *aged, *offsets;    // (rows, terms), likewise or null, (rows,)
  int groups, terms, horizon;

  HYENAREC_DEVICE float rate(int group) const {  // NaN stays NaN
    float rate = decay[group] / float(horizon);
    return rate > kFastest ? kFastest : rate;
  }
  HYENAREC_DEVICE float window(int64_t row, int group) const { return decay ? expf(-rate(group) * offsets[row]) : 1.f; }
  HYENAREC_DEVICE float value(int64_t row, int group) const {
    float sum = 0.f;
    for (int n = 0; n < terms; ++n) sum += rows[row * terms + n] * coefficients[int64_t(group) * terms + n];
    return sum * window(row, group);
  }
};

// Taps in the form that tiles read them: `before` and `size` as in `Taps`, from row `first` of the samples on.
struct TapWords {
  uint32_t* words;  // (channels, planes, size)
  int first, before, size, rows;
};

template <int P>
struct PrepareBlocks {
  static constexpr int kThreads = 256, kSharedBytes = 0, kBlocks = 1;
  Samples samples;
  Channels channels;
  const float* skip;  // or null
  TapWords near, edge;
  int64_t table_rows;
  float* tables;  // (table rows, groups)
  float* rates;   // (channels,) or null
  const float* basis;
  int steps;
  uint32_t *in, *out;  // of Basis
  int levels;
  LocateSlots slots[kMostBlockLevels];

  HYENAREC_DEVICE int64_t taps(const TapWords& of) const { return of.words ? int64_t(channels.count) * of.size : 0; }
  HYENAREC_DEVICE int64_t basis_words() const { return int64_t(16) * steps * 32 * 4; }
  HYENAREC_DEVICE int64_t threads() const {
    int64_t sum = taps(near) + taps(edge) + table_rows * samples.groups + (rates ? channels.count : 0) +
                  2 * basis_words();
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
    // What is left of i once earlier parts have taken theirs.
    auto mine = [&](int64_t count) { return i < count ? true : (i -= count, false); };
    if (mine(taps(near))) return tap_word(near, i);
    if (mine(taps(edge))) return tap_word(edge, i);
    if (mine(table_rows * samples.groups)) {
      tables[i] = samples.value(kTapRows + i / samples.groups, int(i % samples.groups));
      return;
    }
    if (mine(rates ? channels.count : 0)) {
      rates[i] = samples.rate(channels.group(int(i)));
      return;
    }
    if (mine(basis_words())) return basis_word<true>(in, i);
    if (mine(basis_words())) return basis_word<false>(out, i);
    for (int level = 0; level < levels; ++level)
      if (mine(slots[level].count)) return slots[level].one(i);
  }

  HYENAREC_DEVICE float tap(const TapWords& to, int channel, int at) const {
    if (at < 0 || at >= to.rows) return 0.f;
    float value = samples.value(to.first + at, channels.group(channel));
    return skip && to.first + at == 0 ? value + skip[channel] : value;
  }

  HYENAREC_DEVICE void tap_word(const TapWords& to, int64_t i) const {
    int channel = int(i / to.size), at = int(i % to.size), lag = at - to.before + (to.first ? kTile : 0);
    uint32_t words[P];
    split(words, tap(to, channel, lag), tap(to, channel, lag - 1));
    each<P>([&](auto p) { to.words[(int64_t(channel) * P + p.value) * to.size + at] = words[p.value]; });
  }

  // Word `w` of `lane` of the left operand (16, 16) at `rows` and `step`: of Q^T its rows are ranks, of Q of the tile.
  template <bool transposed>
  HYENAREC_DEVICE void basis_word(uint32_t* to, int64_t i) const {
    constexpr int kStored = transposed ? kBasisPlanes<P> : P;
    int w = int(i % 4), lane = int(i / 4 % 32), step = int(i / 128 % steps), rows = int(i / 128 / steps);
    int row = lane / 4 + w % 2 * 8, column = lane % 4 * 2 + w / 2 * 8;
    auto q = [&](int beside) {
      int t = rows * 16 + (transposed ? column + beside : row), rank = step * 16 + (transposed ? row : column + beside);
      return basis[t * steps * 16 + rank];
    };
    uint32_t words[kStored];
    split(words, q(0), q(1));
    each<kStored>([&](auto p) { to[((i / 128 * kStored + p.value) * 32 + lane) * 4 + w] = words[p.value]; });
  }
};

// Gradients of one group's parameters from a share of the samples' rows.
struct ParametersGradient {
  static constexpr int kThreads = 256, kRows = 1024, kStrips = 8, kBlocks = 1;
  static constexpr int kSharedBytes = (kRows + 2 * kThreads) * int(sizeof(float));
  Samples samples;
  Channels channels;
  int64_t rows;         // tap rows and those of tables
  const float* near;    // (channels, 256)
  const float* edge;    // (2, channels, 256) or null
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
    for (int first = 0; first < samples.terms; first += 32) {
      block.phase([&](int thread) {
        int n = first + thread % 32;
        float sum = 0.f, aged = 0.f;
        for (int i = thread / 32; n < samples.terms && i < kRows && share * kRows + i < rows; i += kStrips) {
          int64_t at = (share * kRows + i) * samples.terms + n;
          sum += values[i] * samples.rows[at];
          if (ddecay) aged += values[i] * samples.aged[at];
        }
        sums[thread] = sum, aged_sums[thread] = aged;
      });
      block.phase([&](int thread) {
        int n = first + thread;
        if (thread >= 32 || n >= samples.terms) return;
        float sum = 0.f, aged = 0.f;
        for (int s = 0; s < kStrips; ++s) sum += sums[s * 32 + thread], aged += aged_sums[s * 32 + thread];
        if (dcoefficients) dcoefficients[index * samples.terms + n] = sum;
        aged_sums[thread] = aged * samples.coefficients[int64_t(group) * samples.terms + n];
      });
      block.phase([&](int thread) {
        if (thread > 0 || !ddecay) return;
        float sum = first ? ddecay[index] : 0.f;
        for (int n = 0; n < 32 && first + n < samples.terms; ++n) sum -= aged_sums[n];
        ddecay[index] = sum;
      });
    }
  }

 private:
  HYENAREC_DEVICE float value(int64_t row, int c) const {
    if (row >= kTapRows) return tables[(row - kTapRows) * channels.count + c];
    if (row < kTile) return near[int64_t(c) * kTile + row];
    return edge ? edge[((row / kTile - 1) * channels.count + c) * kTile + row % kTile] : 0.f;
  }
};

}  // namespace hyenarec::cuda
