// Filters with more taps than the largest block has rows. Every block of the input is transformed once, without
// history, and kept (a round of Convolve that only holds). Block j of the output is then Re F^-1 of the sum over q of
// F(u_{j-q}) V_q, where V_q is the spectrum of what filter.h calls pair q of the filter: one inverse transform per
// block. The transposed convolution is the sum of F(dy_{j+q}) conj V_q; the filter's cross spectra are X_q = sum over
// items of F(dy_j) conj F(u_{j-q}).
#pragma once
#include "filter.h"

namespace hyenarec::cuda {

template <int kLog>
struct Combine {
  using S = Size<kLog>;
  static constexpr int kThreads = S::kThreads, kSharedBytes = S::kSharedBytes + int(sizeof(Span)), kBlocks = 1;

  Dtype dtype;
  int channels, pairs;
  bool conjugate;  // the transposed convolution
  Sequences sequences;
  Items items;
  const Complex* blocks;  // (items, tiles, kElements): a sequence's items are adjacent
  Spectra filter;         // (pairs, ...)
  const float* skip;
  Product output[2];

  template <class Block>
  HYENAREC_DEVICE void operator()(Block& block, int64_t index, void* memory) const {
    auto* shared = static_cast<Complex*>(memory);
    Tiles<S> mine(index, items.most);
    int64_t tiles = Tiles<S>::count(channels);
    int tile = mine.tile, i = mine.share;
    if (tile >= tiles || i >= items.size()) return;
    auto& span = *reinterpret_cast<Span*>(shared + S::kSharedBytes / sizeof(Complex));
    block.phase([&](int thread) {
      if (thread == 0) span = sequences.span(items.at(i), S::kPoints);
    });
    int64_t window_size = ceil_div(filter.groups, S::kChannels) * S::kElements;
    columns<S>(block, [&](int index, const Column<S>& column) {
      int channel = tile * S::kChannels + column.channel, last = int(ceil_div(span.length, S::kPoints)) - 1;
      int reach = conjugate ? last - span.number : span.number;  // blocks on the side that is summed over
      if (span.number > last) reach = -1;                        // padding
      if (conjugate && i + reach >= items.size()) reach = items.size() - 1 - i;  // overlapping sequences: some missing
      Complex sum[S::kInner];
      each<S::kInner>([&](auto k) { sum[k.value] = {}; });
      for (int q = 0; channel < channels && q < pairs && q <= reach; ++q) {
        const Complex* h = filter.at<S>(channel) + q * window_size + index / S::kChannels * S::kChannels;
        const Complex* u = blocks + ((conjugate ? i + q : i - q) * tiles + tile) * S::kElements + index;
        float at_zero = skip && q == 0 ? skip[channel] : 0.f;  // a tap at lag 0; in pair 1 it is imaginary
        each<S::kInner>([&](auto k) {
          Complex value = h[k.value * S::kColumns];
          value.x += at_zero;
          sum[k.value] = sum[k.value] + u[k.value * S::kColumns] * (conjugate ? conj(value) : value);
        });
      }
      from_spectrum<S>(shared, column, sum);
    });
    store_outputs<S>(block, shared, dtype, output, span, tile, channels);
  }
};

// The cross spectra X_q of every channel.
struct Cross {
  static constexpr int kThreads = 256, kSharedBytes = 0, kBlocks = 1;
  const Complex *gradients, *inputs;  // (items, row)
  Items items;
  int pairs;
  int64_t row;  // tiles times kElements
  Complex* out; // (pairs, row)

  int64_t grid() const { return ceil_div(pairs * row, kThreads); }

  template <class Block>
  HYENAREC_DEVICE void operator()(Block& block, int64_t index, void*) const {
    block.phase([&](int thread) {
      int64_t at = index * kThreads + thread;
      if (at >= pairs * row) return;
      int q = int(at / row);
      int64_t element = at % row;
      Complex sum{};
      for (int i = q; i < items.size(); ++i)
        if (items.at(i).number >= q)
          sum = sum + gradients[i * row + element] * conj(inputs[(i - q) * row + element]);
      out[at] = sum;
    });
  }
};

}  // namespace hyenarec::cuda
