// Gradients of the short convolution: another walk through the strips (fir.h). It recomputes what was multiplied,
// passes each row's gradient on to the rows that it was computed from, and sums the gradients of taps and biases. Each
// block writes its own sums; a second launch adds these in a fixed order.
#pragma once
#include "fir.h"

namespace hyenarec::cuda {

template <class T, int kWidth>
struct ShortConvBackward {
  // Fewer channels per thread than forward: the taps' sums and the gradients of unfinished rows fill the registers.
  static constexpr int kThreads = 128, kBlocks = sizeof(T) == 4 ? 2 : 3, kRows = 4;
  static constexpr int kCount = kWidth > 4 ? 2 : 4, kStrip = 32;
  static constexpr int64_t kWave = 512;  // blocks; a constant, so that results do not depend on how many run at once
  using Mine = Share<kThreads, kCount>;
  using Weights = ChannelTaps<kThreads, kCount, kWidth>;
  static constexpr int kSums = 2 * (kWidth + 1) * kCount;  // of one thread
  static constexpr int kSharedBytes = Weights::kBytes + kSums * kThreads * int(sizeof(float));
  using P = Pack<T, kCount>;
  Fir a;
  Rows grad, grad_rest, dx;
  int64_t shares;
  float* sums;  // (shares, width + 1, all channels) or null

  HYENAREC_DEVICE Strips<kStrip> strips() const { return {a.sequences, a.num_sequences}; }
  HYENAREC_DEVICE int64_t groups() const { return Mine::groups(a, strips().count()); }
  static int64_t shares_of(const Fir& a, int64_t groups) {
    int64_t most = kWave / (a.jobs() * Mine::tiles(a));
    return groups < most ? groups : most > 0 ? most : 1;
  }
  int64_t grid() const { return shares * a.jobs() * Mine::tiles(a); }

  template <class Block>
  HYENAREC_DEVICE void operator()(Block& block, int64_t index, void* memory) const {
    Mine mine(a, index);
    Weights weights{static_cast<float*>(memory)};
    float* found = weights.values + Weights::kBytes / sizeof(float);
    int factors = a.factors(mine.job);
    block.phase([&](int thread) { weights.fill(a, mine, thread); });
    block.phase([&](int thread) {
      if (factors == 2)
        walk<2>(mine, weights, thread, found);
      else
        walk<1>(mine, weights, thread, found);
    });
    if (!sums) return;
    block.phase([&](int thread) {
      int each_tap = mine.lanes * kCount, each_factor = (a.width + 1) * each_tap;
      for (int i = thread; i < factors * each_factor; i += kThreads) {
        int factor = i / each_factor, tap = i % each_factor / each_tap, inside = i % each_tap;
        int channel = mine.tile * each_tap + inside;
        if (channel >= a.channels) continue;
        const float* from = found + place(factor, tap < a.width ? tap : kWidth, inside % kCount, inside / kCount);
        float sum = 0.f;
        for (int k = 0; k < kThreads; k += mine.lanes) sum += from[k];
        int64_t row = mine.group * (a.width + 1) + tap;
        sums[row * a.all_channels() + int64_t(a.part(mine.job, factor)) * a.channels + channel] = sum;
      }
    });
  }

 private:
  static HYENAREC_DEVICE int place(int factor, int tap, int channel, int thread) {
    return ((factor * (kWidth + 1) + tap) * kCount + channel) * kThreads + thread;
  }

  template <int kFactors>
  HYENAREC_DEVICE void walk(const Mine& mine, const Weights& weights, int thread, float* found) const {
    float taps[kFactors][kWidth + 1][kCount] = {};
    if (mine.channel(thread) < a.channels) {
      HYENAREC_ONE_BY_ONE
      for (int64_t group = mine.group; group < groups(); group += shares) {
        int64_t strip = mine.strip(thread, group);
        if (strip < strips().count()) walk_strip(mine, weights, thread, strip, taps);
      }
    }
    if (!sums) return;
    HYENAREC_UNROLL
    for (int f = 0; f < kFactors; ++f) {
      HYENAREC_UNROLL
      for (int j = 0; j <= kWidth; ++j) {
        HYENAREC_UNROLL
        for (int c = 0; c < kCount; ++c) found[place(f, j, c, thread)] = taps[f][j][c];
      }
    }
  }

  template <int kFactors>
  HYENAREC_DEVICE void walk_strip(const Mine& mine, const Weights& weights, int thread, int64_t strip,
                                  float (&taps)[kFactors][kWidth + 1][kCount]) const {
    int channel = mine.channel(thread), lane = mine.lane(thread), left = a.channels - channel;
    int first = strips().first(strip), end = strips().end(strip), batch = strips().batch(strip);
    Located located(a.sequences, a.num_sequences, batch);
    auto read = [&](const Rows& from, int64_t at, int row) {
      return load<T, kCount>(static_cast<const T*>(from.data) + batch * from.batch_stride + row * from.row_stride + at,
                             left, a.aligned);
    };
    auto own = [&](int factor) { return int64_t(a.part(mine.job, factor)) * a.channels + channel; };
    bool between = mine.job > 0;
    int64_t of_rest = int64_t(mine.job - 1) * a.channels + channel;

    P held[kFactors][kWidth - 1 + kRows];
    float pending[kFactors][kWidth][kCount] = {};  // gradients of the newest row and of those before it
    int before = located.position(first);
    HYENAREC_UNROLL
    for (int f = 0; f < kFactors; ++f) {
      HYENAREC_UNROLL
      for (int back = 1; back < kWidth; ++back)
        held[f][kWidth - 1 - back] = back <= before && back < a.width ? read(a.x, own(f), first - back) : P{};
    }
    HYENAREC_ONE_BY_ONE
    for (int row = first; row < end + kWidth - 1; row += kRows) {
      int reach[kRows];
      P gradient[kRows];
      HYENAREC_UNROLL
      for (int r = 0; r < kRows; ++r) {
        int at = row + r, position = at < a.sequences.rows ? located.position(at) : -1;
        if (position < at - end + 1) position = -1;  // it reaches back to none of this strip's rows
        reach[r] = position < a.width ? position : a.width - 1;
        gradient[r] = position < 0 ? P{} : between ? read(grad_rest, of_rest, at) : read(grad, channel, at);
        HYENAREC_UNROLL
        for (int f = 0; f < kFactors; ++f) held[f][kWidth - 1 + r] = position >= 0 ? read(a.x, own(f), at) : P{};
      }
      HYENAREC_UNROLL
      for (int r = 0; r < kRows; ++r) {
        P finished[kFactors] = {};
        HYENAREC_UNROLL
        for (int c = 0; c < kCount; ++c) {
          auto x = [&](int f, int j) { return held[f][kWidth - 1 + r - j].get(c); };
          float z[kFactors] = {}, dz[kFactors];
          HYENAREC_UNROLL
          for (int f = 0; f < kFactors; ++f) {
            if (kFactors == 1 && !a.silu) continue;
            z[f] = weights.at(f, a.width, c, lane);
            HYENAREC_UNROLL
            for (int j = 0; j < kWidth; ++j)
              if (j <= reach[r]) z[f] += weights.at(f, j, c, lane) * x(f, j);
          }
          float dout = gradient[r].get(c);
          if constexpr (kFactors == 2) {
            dz[0] = dout * z[1], dz[1] = dout * z[0];
          } else {
            float gate = sigmoid(z[0]);
            dz[0] = a.silu ? dout * gate * (1.f + z[0] * (1.f - gate)) : dout;
          }
          HYENAREC_UNROLL
          for (int f = 0; f < kFactors; ++f) {
            float slope = reach[r] >= 0 ? dz[f] : 0.f, mine_alone = row + r < end ? slope : 0.f;
            taps[f][kWidth][c] += mine_alone;
            HYENAREC_UNROLL
            for (int j = 0; j < kWidth; ++j) {
              if (j > reach[r]) continue;
              pending[f][j][c] += weights.at(f, j, c, lane) * slope;
              taps[f][j][c] += mine_alone * x(f, j);
            }
            finished[f].set(c, pending[f][kWidth - 1][c]);
            HYENAREC_UNROLL
            for (int j = kWidth - 1; j > 0; --j) pending[f][j][c] = pending[f][j - 1][c];
            pending[f][0][c] = 0.f;
          }
        }
        int complete = row + r - (kWidth - 1);
        if (!dx.data || complete < first || complete >= end) continue;
        T* to = static_cast<T*>(dx.data) + batch * dx.batch_stride + complete * dx.row_stride;
        HYENAREC_UNROLL
        for (int f = 0; f < kFactors; ++f) store(to + own(f), finished[f], left, a.aligned);
      }
      HYENAREC_UNROLL
      for (int f = 0; f < kFactors; ++f) {
        HYENAREC_UNROLL
        for (int i = 0; i < kWidth - 1; ++i) held[f][i] = held[f][i + kRows];
      }
    }
  }
};

// The gradients of taps (channels, width) and biases from their sums over shares.
struct ShortConvSums {
  static constexpr int kColumns = 32, kStrips = 8, kThreads = kColumns * kStrips, kBlocks = 1;
  static constexpr int kSharedBytes = kThreads * int(sizeof(float));
  const float* in;  // (shares, width + 1, channels)
  int64_t shares, channels;
  int width;
  Values dweight, dbias;

  int64_t grid() const { return ceil_div(channels * (width + 1), kColumns); }

  template <class Block>
  HYENAREC_DEVICE void operator()(Block& block, int64_t index, void* memory) const {
    auto* strips = static_cast<float*>(memory);
    int64_t columns = channels * (width + 1);
    block.phase([&](int thread) {
      int64_t column = index * kColumns + thread % kColumns;
      float sum = 0.f;
      if (column < columns)
        for (int64_t r = thread / kColumns; r < shares; r += kStrips) sum += in[r * columns + column];
      strips[thread] = sum;
    });
    block.phase([&](int thread) {
      int64_t column = index * kColumns + thread, channel = column % channels;
      if (thread >= kColumns || column >= columns) return;
      float sum = 0.f;
      for (int s = 0; s < kStrips; ++s) sum += strips[s * kColumns + thread];
      int tap = int(column / channels);
      const Values& to = tap < width ? dweight : dbias;
      if (to.data)
        with_dtype(to.dtype, [&](auto type) {
          using T = decltype(type);
          static_cast<T*>(to.data)[tap < width ? channel * width + tap : channel] = T::of(sum);
        });
    });
  }
};

}  // namespace hyenarec::cuda
