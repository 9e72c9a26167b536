// The short convolution. A thread takes a few adjacent channels through a strip of rows. It reads each row once and
// keeps the rows that the next ones reach back to in registers. Where parts of the channels are multiplied, it computes
// the first and the last part at once, and other threads those between, so that only the input and the outputs pass
// through memory.
#pragma once
#include "packs.h"
#include "short_conv.h"
#include "strips.h"

namespace hyenarec::cuda {

HYENAREC_DEVICE float value_of(const Values& from, int64_t i) {
  float value = 0.f;
  with_dtype(from.dtype, [&](auto type) { value = float(static_cast<const decltype(type)*>(from.data)[i]); });
  return value;
}

HYENAREC_DEVICE float sigmoid(float z) { return 1.f / (1.f + std::exp(-z)); }

// What forward and backward share.
struct Fir {
  Sequences sequences;
  int num_sequences;
  int channels, parts, width;  // channels of one part
  bool silu, aligned;
  Rows x;
  Values weight, bias;

  HYENAREC_DEVICE int64_t all_channels() const { return int64_t(channels) * parts; }
  // What is computed independently: the product of the first and the last part is one job, each part between them
  // another.
  HYENAREC_DEVICE int jobs() const { return parts > 1 ? parts - 1 : 1; }
  HYENAREC_DEVICE int factors(int job) const { return parts > 1 && job == 0 ? 2 : 1; }
  HYENAREC_DEVICE int part(int job, int factor) const { return factor == 0 ? job : parts - 1; }
};

// The rows, channels and job of a block of kThreads threads, each with kCount channels. Neighbouring threads have
// neighbouring channels, up to `lanes` of them, and then the next strip.
template <int kThreads, int kCount>
struct Share {
  static constexpr int kMostLanes = 32, kMostChannels = kMostLanes * kCount;
  int lanes, tile, job;
  int64_t group;

  static HYENAREC_DEVICE int lanes_of(const Fir& a) {
    int lanes = 1;
    while (lanes < kMostLanes && lanes * kCount < a.channels) lanes *= 2;
    return lanes;
  }
  static HYENAREC_DEVICE int64_t tiles(const Fir& a) { return ceil_div(a.channels, lanes_of(a) * kCount); }
  static HYENAREC_DEVICE int64_t groups(const Fir& a, int64_t strips) {
    return ceil_div(strips, kThreads / lanes_of(a));
  }

  HYENAREC_DEVICE Share(const Fir& a, int64_t index) : lanes(lanes_of(a)) {
    tile = int(index % tiles(a));
    job = int(index / tiles(a) % a.jobs());
    group = index / tiles(a) / a.jobs();
  }
  HYENAREC_DEVICE int lane(int thread) const { return thread % lanes; }
  HYENAREC_DEVICE int channel(int thread) const { return (tile * lanes + lane(thread)) * kCount; }
  HYENAREC_DEVICE int64_t strip(int thread, int64_t of_group) const {
    return of_group * (kThreads / lanes) + thread / lanes;
  }
};

// The taps and biases of a block's channels in shared memory; tap `width` is the bias. The channels of one lane lie
// apart, so that neighbouring lanes read neighbouring words.
template <int kThreads, int kCount, int kWidth>
struct ChannelTaps {
  using Mine = Share<kThreads, kCount>;
  static constexpr int kFactor = (kWidth + 1) * Mine::kMostChannels;
  static constexpr int kBytes = 2 * kFactor * int(sizeof(float));
  float* values;

  static HYENAREC_DEVICE int place(int factor, int tap, int channel, int lane) {
    return factor * kFactor + (tap * kCount + channel) * Mine::kMostLanes + lane;
  }
  HYENAREC_DEVICE float at(int factor, int tap, int channel, int lane) const {
    return values[place(factor, tap, channel, lane)];
  }
  HYENAREC_DEVICE void fill(const Fir& a, const Mine& mine, int thread) const {
    int each_channel = a.width + 1, here = mine.lanes * kCount * each_channel;
    for (int i = thread; i < a.factors(mine.job) * here; i += kThreads) {
      int factor = i / here, inside = i % here / each_channel, tap = i % each_channel;
      int channel = mine.tile * mine.lanes * kCount + inside;
      if (channel >= a.channels) continue;
      int64_t whole = int64_t(a.part(mine.job, factor)) * a.channels + channel;
      float value = tap < a.width ? value_of(a.weight, whole * a.width + tap)
                    : a.bias.data ? value_of(a.bias, whole)
                                  : 0.f;
      values[place(factor, tap, inside % kCount, inside / kCount)] = value;
    }
  }
};

template <class T, int kWidth>
struct ShortConv {
  // A thread loads 128 bits at once; with many taps at most 4 channels, so that the registers hold their rows and sums.
  static constexpr int kThreads = 128, kBlocks = 3, kRows = 4, kStrip = 16;
  static constexpr int kCount = kWidth > 4 || sizeof(T) == 4 ? 4 : 8;
  using Mine = Share<kThreads, kCount>;
  using Weights = ChannelTaps<kThreads, kCount, kWidth>;
  static constexpr int kSharedBytes = Weights::kBytes;
  using P = Pack<T, kCount>;
  Fir a;
  Rows out, rest;

  HYENAREC_DEVICE Strips<kStrip> strips() const { return {a.sequences, a.num_sequences}; }
  int64_t grid() const { return Mine::groups(a, strips().count()) * a.jobs() * Mine::tiles(a); }

  template <class Block>
  HYENAREC_DEVICE void operator()(Block& block, int64_t index, void* memory) const {
    Mine mine(a, index);
    Weights weights{static_cast<float*>(memory)};
    block.phase([&](int thread) { weights.fill(a, mine, thread); });
    block.phase([&](int thread) {
      int64_t strip = mine.strip(thread, mine.group);
      if (strip >= strips().count() || mine.channel(thread) >= a.channels) return;
      if (a.factors(mine.job) == 2)
        walk<2>(mine, weights, thread, strip);
      else
        walk<1>(mine, weights, thread, strip);
    });
  }

 private:
  template <int kFactors>
  HYENAREC_DEVICE void walk(const Mine& mine, const Weights& weights, int thread, int64_t strip) const {
    int channel = mine.channel(thread), lane = mine.lane(thread), left = a.channels - channel;
    int row = strips().first(strip), end = strips().end(strip), batch = strips().batch(strip);
    Located located(a.sequences, a.num_sequences, batch);
    auto read = [&](int factor, int at) {
      const T* from = static_cast<const T*>(a.x.data) + batch * a.x.batch_stride + at * a.x.row_stride;
      return load<T, kCount>(from + int64_t(a.part(mine.job, factor)) * a.channels + channel, left, a.aligned);
    };
    bool product = mine.job == 0;
    const Rows& to = product ? out : rest;
    T* target = static_cast<T*>(to.data) + batch * to.batch_stride + channel;
    if (!product) target += int64_t(mine.job - 1) * a.channels;

    P held[kFactors][kWidth - 1 + kRows];  // of rows from kWidth - 1 before `row` on
    int before = located.position(row);
    HYENAREC_UNROLL
    for (int f = 0; f < kFactors; ++f) {
      HYENAREC_UNROLL
      for (int back = 1; back < kWidth; ++back)
        held[f][kWidth - 1 - back] = back <= before && back < a.width ? read(f, row - back) : P{};
    }
    HYENAREC_ONE_BY_ONE
    for (; row < end; row += kRows) {
      int reach[kRows];  // the largest lag that stays in the row's sequence; -1: the row is in none
      bool whole = true;
      HYENAREC_UNROLL
      for (int r = 0; r < kRows; ++r) {
        int position = row + r < end ? located.position(row + r) : -1;
        reach[r] = position < a.width ? position : a.width - 1;
        whole &= position >= a.width - 1;
        HYENAREC_UNROLL
        for (int f = 0; f < kFactors; ++f) held[f][kWidth - 1 + r] = position >= 0 ? read(f, row + r) : P{};
      }
      P result[kRows] = {};
      // Except near a sequence's ends, all rows use all taps.
      if (whole)
        convolve(weights, lane, held, [&](int) { return a.width - 1; }, result);
      else
        convolve(weights, lane, held, [&](int r) { return reach[r]; }, result);
      HYENAREC_UNROLL
      for (int r = 0; r < kRows; ++r)
        if (row + r < end) store(target + (row + r) * to.row_stride, result[r], left, a.aligned);
      HYENAREC_UNROLL
      for (int f = 0; f < kFactors; ++f) {
        HYENAREC_UNROLL
        for (int i = 0; i < kWidth - 1; ++i) held[f][i] = held[f][i + kRows];
      }
    }
  }

  template <int kFactors, class Reach>
  HYENAREC_DEVICE void convolve(const Weights& weights, int lane, const P (&held)[kFactors][kWidth - 1 + kRows],
                                const Reach& reach, P (&result)[kRows]) const {
    HYENAREC_UNROLL
    for (int c = 0; c < kCount; ++c) {
      float z[kFactors][kRows];
      HYENAREC_UNROLL
      for (int f = 0; f < kFactors; ++f) {
        float bias = weights.at(f, a.width, c, lane);
        HYENAREC_UNROLL
        for (int r = 0; r < kRows; ++r) z[f][r] = bias;
        HYENAREC_UNROLL
        for (int j = 0; j < kWidth; ++j) {
          if (j >= a.width) continue;
          float weight = weights.at(f, j, c, lane);
          HYENAREC_UNROLL
          for (int r = 0; r < kRows; ++r)
            if (j <= reach(r)) z[f][r] += weight * held[f][kWidth - 1 + r - j].get(c);
        }
      }
      HYENAREC_UNROLL
      for (int r = 0; r < kRows; ++r) {
        float value = z[0][r];
        if constexpr (kFactors == 2)
          value *= z[1][r];
        else if (a.silu)
          value *= sigmoid(value);
        result[r].set(c, reach(r) >= 0 ? value : 0.f);
      }
    }
  }
};

}  // namespace hyenarec::cuda
