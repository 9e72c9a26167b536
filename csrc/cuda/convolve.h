// The FFT convolution, forward and backward. A thread block takes a tile of channels through one or several items,
// which are blocks of M rows (rows.h).
//
// With K <= M taps, block j of M outputs needs the block before it too. The input of an item is therefore complex,
//
//     z = u_j - i u_{j-1}         z^{-M} = -i: u_{j-1} lies M rows back
//     y_j = Re F^-1(F(z) F(h))    what does not belong to y_j is in the imaginary part
//
// One size therefore serves sequences of any length, and a block is the same work whether it is the only one or not.
// The transposed convolution takes dy_j + i dy_{j+1} and conj F(h); the filter's gradient is Re F^-1 of the sum over
// items of F(dy_j + i dy_{j+1}) conj F(u_j). For K <= M, the real parts hold nothing of other lags.
//
// Forward is one round. Backward is up to three: u with its history, for y (the post-gate's gradient); u alone, for its
// spectrum (the filter's gradient; where a sequence is one block, the first round's spectrum is the same); and dy, for
// the gradients of the input and the filter.
//
// Bytes moved per value (a row of one channel) of s bytes, where a sequence is one block; calculated, not measured.
// Forward with both gates: 4 s from and to memory, 8 of the filter's spectrum from the second-level cache, 64 through
// shared memory (32 up to M = 256). Backward, all gradients: 7 s from and to memory; from the second-level cache the
// 5 s that are read again, 16 of the spectrum, 16 to hold F(u), 16 for the partial sum; twice as many through shared
// memory.
#pragma once
#include "fft.h"
#include "rows.h"

namespace hyenarec::cuda {

struct Round {
  Product input;
  int history;        // -1: with the block before, 1: with the block after, 0: alone
  bool conjugate;     // multiply by the conjugate of the filter's spectrum
  bool only_of_many;  // left out where the sequence is one block: the round before held the same spectrum
  bool hold;          // keep the spectrum
  bool cross;         // add its product with the conjugate of the held one to the partial sum
  Product output[2];  // of the result; absent where value.data is null
  Product other;      // sum over rows of input * other, to `sums`; absent where value.data is null
};

constexpr int kMaxRounds = 3;

// Spectra of the filter: group g at column tile g / C and channel g % C; see `columns` for the order in a tile.
struct Spectra {
  const Complex* data;
  int channels, groups;

  template <class S>
  HYENAREC_DEVICE const Complex* at(int channel) const {  // for column 0; the next is kChannels further
    int group = channel / (channels / groups);
    return data + int64_t(group / S::kChannels) * S::kElements + group % S::kChannels;
  }
};

// Which tile of channels and which share of the items a block has. Tiles of 16 channels are adjacent blocks, so that
// the readers of a 32-byte sector run together; then come shares, so that a tile's filter stays in the second-level
// cache.
template <class S>
struct Tiles {
  static constexpr int kTogether = S::kChannels >= 16 ? 1 : 16 / S::kChannels;
  int tile, share;
  HYENAREC_DEVICE Tiles(int64_t index, int shares) {
    int64_t rest = index / kTogether;
    share = int(rest % shares);
    tile = int(rest / shares) * kTogether + int(index % kTogether);
  }
  static HYENAREC_DEVICE int64_t count(int64_t channels) { return ceil_div(channels, S::kChannels); }
  static HYENAREC_DEVICE int64_t grid(int64_t channels, int64_t shares) {
    return ceil_div(count(channels), kTogether) * kTogether * shares;
  }
  // Where this share's and tile's part of (shares, tiles, kElements) begins.
  HYENAREC_DEVICE int64_t slice(int channels) const { return (share * count(channels) + tile) * S::kElements; }
};

template <class S, class Block>
HYENAREC_DEVICE void store_outputs(Block& block, Complex* shared, Dtype dtype, const Product (&outputs)[2],
                                   const Span& span, int tile, int channels) {
  inverse_passes<S>(block, shared, [&](int c, int first, int stride, const auto& x) {
    constexpr int R = sizeof(x) / sizeof(Complex);
    int channel = tile * S::kChannels + c;
    if (channel >= channels) return;
    float v[R];
    each<R>([&](auto j) { v[j.value] = x[j.value].x * (1.f / S::kPoints); });
    for (const Product& output : outputs)
      if (output.value.data) write(v, dtype, output, span, channel, span.first + first, stride);
  });
}

template <int kLog>
struct Convolve {
  using S = Size<kLog>;
  static constexpr int kThreads = S::kThreads;
  static constexpr int kSharedBytes = S::kSharedBytes + int(sizeof(Span)) + kThreads * int(sizeof(float));
  // Blocks per multiprocessor, which limits the registers: 16 warps with at most 128; 24 with 80 where the butterflies
  // are small.
  static constexpr int kBlocks = kThreads >= 256 ? 512 / kThreads : 768 / kThreads;

  Dtype dtype;
  int channels, shares, num_rounds;
  Sequences sequences;
  Items items;
  Spectra filter;
  const float* skip;  // (channels,) or null
  Round rounds[kMaxRounds];
  Complex *held, *partial;  // (shares, tiles, kElements) or null; shares without an item write nothing
  float* sums;              // (shares, channels) or null

  template <class Block>
  HYENAREC_DEVICE void operator()(Block& block, int64_t index, void* memory) const {
    Tiles<S> mine(index, shares);
    if (mine.tile * S::kChannels >= channels || mine.share >= items.size()) return;
    auto* shared = static_cast<Complex*>(memory);
    auto& span = *reinterpret_cast<Span*>(shared + S::kSharedBytes / sizeof(Complex));
    auto* thread_sums = reinterpret_cast<float*>(&span + 1);
    if (sums) block.phase([&](int thread) { thread_sums[thread] = 0.f; });
    for (int i = mine.share; i < items.size(); i += shares) {
      block.phase([&](int thread) {
        if (thread == 0) span = sequences.span(items.at(i), S::kPoints);
      });
      bool alone = span.length <= S::kPoints;  // read now: the last round's barriers come before the next item's span
      for (int r = 0; r < num_rounds; ++r)
        if (!(rounds[r].only_of_many && alone))
          run(block, rounds[r], span, alone, mine, i == mine.share, shared, thread_sums);
    }
    if (sums)
      block.phase([&](int thread) {
        if (thread >= S::kChannels || mine.tile * S::kChannels + thread >= channels) return;
        float sum = 0.f;
        for (int i = thread; i < kThreads; i += S::kChannels) sum += thread_sums[i];
        sums[int64_t(mine.share) * channels + mine.tile * S::kChannels + thread] = sum;
      });
  }

 private:
  template <class Block>
  HYENAREC_DEVICE void run(Block& block, const Round& round, const Span& span, bool alone, Tiles<S> mine,
                           bool first_item, Complex* shared, float* thread_sums) const {
    forward_passes<S>(block, shared, [&](int thread, int c, int first, int stride, auto& x) {
      constexpr int R = sizeof(x) / sizeof(Complex);
      int channel = mine.tile * S::kChannels + c, position = span.first + first;
      each<R>([&](auto j) { x[j.value] = {}; });
      if (channel >= channels) return;
      in_parts<R, 16>([&](auto begin, auto count) {
        float v[decltype(count)::value];
        read(v, dtype, round.input, span, channel, position + begin.value * stride, stride);
        each<decltype(count)::value>([&](auto j) { x[begin.value + j.value].x = v[j.value]; });
      });
      if (round.other.value.data) {
        float sum = 0.f;
        in_parts<R, 8>([&](auto begin, auto count) {
          float v[decltype(count)::value];
          read(v, dtype, round.other, span, channel, position + begin.value * stride, stride);
          each<decltype(count)::value>([&](auto j) { sum += x[begin.value + j.value].x * v[j.value]; });
        });
        thread_sums[thread] += sum;
      }
      if (round.history != 0 && !alone)
        in_parts<R, 16>([&](auto begin, auto count) {
          float v[decltype(count)::value];
          int from = position + round.history * S::kPoints + begin.value * stride;
          read(v, dtype, round.input, span, channel, from, stride);
          each<decltype(count)::value>([&](auto j) { x[begin.value + j.value].y = float(round.history) * v[j.value]; });
        });
    });
    bool convolved = round.output[0].value.data || round.output[1].value.data;
    columns<S>(block, [&](int index, const Column<S>& column) {
      int channel = mine.tile * S::kChannels + column.channel;
      int64_t slice = mine.slice(channels);
      Complex x[S::kInner];
      to_spectrum<S>(shared, column, x);
      if (round.hold) each<S::kInner>([&](auto k) { held[slice + k.value * S::kColumns + index] = x[k.value]; });
      if (round.cross)
        each<S::kInner>([&](auto k) {
          int64_t at = slice + k.value * S::kColumns + index;
          Complex product = x[k.value] * conj(held[at]);
          partial[at] = first_item ? product : partial[at] + product;
        });
      if (!convolved) return;
      if (channel < channels) {
        const Complex* h = filter.at<S>(channel) + index / S::kChannels * S::kChannels;
        float at_zero = skip ? skip[channel] : 0.f;  // a tap at lag 0 is the same at every frequency
        each<S::kInner>([&](auto k) {
          Complex value = h[k.value * S::kColumns];
          value.x += at_zero;
          x[k.value] = x[k.value] * (round.conjugate ? conj(value) : value);
        });
      }
      from_spectrum<S>(shared, column, x);
    });
    if (convolved) store_outputs<S>(block, shared, dtype, round.output, span, mine.tile, channels);
  }
};

}  // namespace hyenarec::cuda
